"""Small HTTP requests carried on: a server that answers each by a function, and a call that asks the next one.

Each request is read whole, up to a limit, and so is each reply. TLS is made in the thread of the caller, so that one
who is slow keeps nobody else waiting.
"""

import logging
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from threading import Thread
from typing import Any, Final

from common.errors import UnavailableError
from common.http_server import BoundedServer, QuietHandler

logger = logging.getLogger(__name__)

_MOST_BYTES: Final = 32 * 1024 * 1024
_TIMEOUT_S: Final = 30.0
_NOT_CARRIED: Final = frozenset(
    {
        "connection",
        "content-length",
        "host",
        "keep-alive",
        "transfer-encoding",
        "accept-encoding",
        "upgrade",
        "server",
        "date",
    }
)


@dataclass(frozen=True, slots=True)
class Asked:
    """One POST request; `certificate` is what its caller has shown, PEM."""

    path: str
    headers: Mapping[str, str]
    body: bytes
    certificate: bytes | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """What is answered."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


Answer = Callable[[Asked], Reply]


class AnsweringServer:
    """Answers POST requests over TLS while the block runs; `context` is asked at each handshake."""

    def __init__(self, host: str, port: int, *, context: Callable[[], ssl.SSLContext], answer: Answer) -> None:
        try:
            self._server = _Server((host, port), _handler(answer), context)
        except OSError as error:
            raise UnavailableError(f"{host}:{port} cannot be listened on ({error.strerror})") from error
        self._thread = Thread(target=self._server.serve_forever, name="answering", daemon=True)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_address[1])

    def __enter__(self) -> "AnsweringServer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(BoundedServer):
    block_on_close = False  # an idle caller would hold us up

    def __init__(self, address: tuple[str, int], handler: Any, context: Callable[[], ssl.SSLContext]) -> None:
        self._context = context
        super().__init__(address, handler)

    def finish_request(self, request: Any, client_address: Any) -> None:
        request.settimeout(_TIMEOUT_S)
        with self._context().wrap_socket(request, server_side=True) as secured:
            super().finish_request(secured, client_address)


def _handler(answer: Answer) -> type[QuietHandler]:
    class Handler(QuietHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *arguments: object) -> None:
            logger.debug(format, *arguments)  # nodes ask every few seconds

        def do_POST(self) -> None:
            reply = self._answer()
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(reply.body)))
            self.end_headers()
            self.wfile.write(reply.body)

        def _answer(self) -> Reply:
            size = self.headers.get("Content-Length", "")
            if not size.isdecimal() or int(size) > _MOST_BYTES:
                self.close_connection = True
                return Reply(413, b"a length up to 32 MiB is wanted")
            body = self.rfile.read(int(size))
            shown = self.connection.getpeercert(binary_form=True)
            certificate = ssl.DER_cert_to_PEM_cert(shown).encode() if shown else None
            return answer(Asked(self.path, carried(self.headers), body, certificate))

    return Handler


def carried(headers: Any) -> dict[str, str]:
    """The headers that go on: not those of the connection."""
    return {name.lower(): value for name, value in headers.items() if name.lower() not in _NOT_CARRIED}


def forward(asked: Asked, *, host: str, port: int, context: ssl.SSLContext) -> Reply:
    """Ask the next one the same, over TLS.

    Raises:
        UnavailableError: it cannot be reached, or is not who it should be.
    """
    connection: HTTPConnection = HTTPSConnection(host, port, timeout=_TIMEOUT_S, context=context)
    try:
        connection.request("POST", asked.path, body=asked.body, headers=dict(asked.headers))
        response = connection.getresponse()
        body = response.read(_MOST_BYTES + 1)
        if len(body) > _MOST_BYTES:
            raise UnavailableError(f"{host}:{port} answers with more than 32 MiB")
        return Reply(response.status, body, carried(response.headers))
    except (OSError, HTTPException) as error:
        raise UnavailableError(f"{host}:{port} does not answer: {error}") from error
    finally:
        connection.close()
