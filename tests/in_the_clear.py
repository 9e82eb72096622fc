"""What an owner sends, byte for byte: led through a relay that counts bytes on the socket and, since a test holds all
keys, ends TLS and reads what is inside.
"""

import select
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Thread

from common.errors import MalformedError
from common.rpc.chunk_message import parse_chunk
from common.rpc.identity import TlsIdentity
from common.trust.identity import Identity
from common.trust.pki import make_csr, new_key
from tests.federation import Federation

_READ_BYTES = 256 * 1024
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_FRAME_HEADER = 9
_DATA, _HEADERS, _PADDED = 0, 1, 8
_MESSAGE_HEADER = 5


@dataclass
class Connection:
    """What one connection brought from the owner's side."""

    socket_bytes: int = 0
    clear: bytearray = field(default_factory=bytearray)

    def frames(self) -> Iterator[tuple[int, int, bytes]]:
        """HTTP/2 frames (RFC 9113 section 4.1): type, stream and payload, without padding."""
        if not self.clear:
            return
        assert self.clear.startswith(_PREFACE)
        at = len(_PREFACE)
        while at + _FRAME_HEADER <= len(self.clear):
            length, kind, flags = int.from_bytes(self.clear[at : at + 3], "big"), self.clear[at + 3], self.clear[at + 4]
            stream = int.from_bytes(self.clear[at + 5 : at + 9], "big")
            payload = bytes(self.clear[at + _FRAME_HEADER : at + _FRAME_HEADER + length])
            if kind == _DATA and flags & _PADDED:
                payload = payload[1 : len(payload) - payload[0]]
            yield kind, stream, payload
            at += _FRAME_HEADER + length

    def messages(self) -> list[bytes]:
        """What gRPC sent: every message of every call."""
        streams: dict[int, bytearray] = {}
        for kind, stream, payload in self.frames():
            if kind == _DATA:
                streams.setdefault(stream, bytearray()).extend(payload)
        return [message for data in streams.values() for message in _messages(bytes(data))]

    @property
    def calls(self) -> int:
        """How many calls it carried."""
        return sum(kind == _HEADERS for kind, _, _ in self.frames())


def _messages(data: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(data):
        assert data[at] == 0, "compressed"
        length = int.from_bytes(data[at + 1 : at + _MESSAGE_HEADER], "big")
        yield data[at + _MESSAGE_HEADER : at + _MESSAGE_HEADER + length]
        at += _MESSAGE_HEADER + length


def _carried(message: bytes) -> bytes:
    """The bytes of a file in a message, if it is a chunk: text that two of them part is whole again."""
    try:
        return bytes(parse_chunk(message).data)
    except MalformedError:
        return b""


@dataclass
class Wire:
    """All that went through."""

    connections: list[Connection] = field(default_factory=list)

    @property
    def clear(self) -> bytes:
        """Everything inside TLS: as it went, with messages put together again, and with the bytes of chunks."""
        messages = [message for each in self.connections for message in each.messages()]
        return b"".join([*(bytes(each.clear) for each in self.connections), *messages, *map(_carried, messages)])

    @property
    def message_bytes(self) -> int:
        """Of all messages of all calls."""
        return sum(len(message) for each in self.connections for message in each.messages())

    @property
    def socket_bytes(self) -> int:
        """On the socket."""
        return sum(each.socket_bytes for each in self.connections)

    @property
    def calls(self) -> int:
        """Of all connections."""
        return sum(each.calls for each in self.connections)


@contextmanager
def listening_in(
    federation: Federation, wire: Wire, *, identity: Callable[[], TlsIdentity | None]
) -> Iterator[list[int]]:
    """Two ports that lead to the federation's two, and note what the owner sends; `identity` is the owner's own, with
    which the relay goes on to the coordinator.
    """
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                _relay(federation, port, wire, identity if port == federation.ports[0] else lambda: None)
            )
            for port in federation.ports
        ]


@contextmanager
def _relay(federation: Federation, port: int, wire: Wire, identity: Callable[[], TlsIdentity | None]) -> Iterator[int]:
    here = _server_context(federation)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            while True:
                try:
                    taken, _ = server.accept()
                except OSError:
                    return
                Thread(target=_carry, args=(taken, here, port, federation, wire, identity), daemon=True).start()

        Thread(target=accept, daemon=True).start()
        yield int(server.getsockname()[1])


def _server_context(federation: Federation) -> ssl.SSLContext:
    """What the owner takes for its coordinator."""
    authority, now, key = federation.coordinator.authority, datetime.now(UTC), new_key()
    certificate = authority.issue_own(
        make_csr(key), identity=Identity.coordinator(federation.coordinator.registry.root.federation),
        not_before=now - timedelta(minutes=5), not_after=now + timedelta(hours=1), server_names=["127.0.0.1"],
    )  # fmt: skip
    return _context(ssl.PROTOCOL_TLS_SERVER, TlsIdentity(key, certificate, b""), federation.path / "relay.pem")


def _context(protocol: int, identity: TlsIdentity | None, path: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the coordinator's own tests are about that
    context.set_alpn_protocols(["h2"])
    if identity is not None:
        path.write_bytes(bytes(identity))
        context.load_cert_chain(path)
    return context


def _carry(
    taken: socket.socket,
    here: ssl.SSLContext,
    port: int,
    federation: Federation,
    wire: Wire,
    identity: Callable[[], TlsIdentity | None],
) -> None:
    """One connection: bytes from the socket are counted, then opened, then sent on over TLS of our own."""
    connection = Connection()
    wire.connections.append(connection)
    arriving, leaving = ssl.MemoryBIO(), ssl.MemoryBIO()
    inside = here.wrap_bio(arriving, leaving, server_side=True)
    with taken, suppress(OSError, ssl.SSLError):
        while True:
            try:
                inside.do_handshake()
                break
            except ssl.SSLWantReadError:
                taken.sendall(leaving.read())
                if not (data := taken.recv(_READ_BYTES)):
                    return
                connection.socket_bytes += len(data)
                arriving.write(data)
        taken.sendall(leaving.read())
        there = _context(ssl.PROTOCOL_TLS_CLIENT, identity(), federation.path / f"relay-{id(connection)}.pem")
        with there.wrap_socket(socket.create_connection(("127.0.0.1", port))) as onward:
            _both_ways(taken, inside, arriving, leaving, onward, connection)


def _both_ways(
    taken: socket.socket,
    inside: ssl.SSLObject,
    arriving: ssl.MemoryBIO,
    leaving: ssl.MemoryBIO,
    onward: ssl.SSLSocket,
    connection: Connection,
) -> None:
    onward.setblocking(False)
    waiting = bytearray()
    while True:
        readable, _, _ = select.select([taken, onward], [onward] if waiting else [], [], 60)
        if taken in readable:
            if not (data := taken.recv(_READ_BYTES)):
                return
            connection.socket_bytes += len(data)
            arriving.write(data)
        while True:
            try:
                clear = inside.read(_READ_BYTES)
            except ssl.SSLWantReadError:
                break
            if not clear:
                return
            connection.clear += clear
            waiting += clear
        with suppress(ssl.SSLWantWriteError, ssl.SSLWantReadError):
            while waiting:
                del waiting[: onward.send(waiting)]
        with suppress(ssl.SSLWantReadError):
            while data := onward.recv(_READ_BYTES):
                inside.write(data)
                taken.sendall(leaving.read())
            return
