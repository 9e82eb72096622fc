"""The published files over HTTP, with headers that let caches and content networks carry the reads.

Any file server may take this one's place (`public/` is a plain directory); what matters is what may be kept how long.
Tiles and bundles never change under their names. The checkpoint is asked for anew each time. What is released may be
withdrawn, so its files are kept for minutes, by name and by digest alike. That something is not there is never kept:
the next tile comes with the next entry.
"""

import re
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import Final

from common.errors import UnavailableError
from common.http_server import BoundedServer, QuietHandler

_FOREVER: Final = "public, max-age=31536000, immutable"
_MINUTES: Final = "public, max-age=300"
_KEPT: Final = (200, 206, 304)
_RULES: Final = (
    (re.compile(r"/log/tile/.+"), _FOREVER, "application/octet-stream"),
    (re.compile(r"/objects/[0-9a-f]{64}"), _MINUTES, "application/octet-stream"),
    (re.compile(r"/log/checkpoint"), "no-cache", "text/plain; charset=utf-8"),
    (re.compile(r"/log/cosigned"), "no-cache", "application/octet-stream"),
    (re.compile(r"/trusted_root\.json|/(?:base|releases)/[^/]+/[^/]+"), _MINUTES, None),
)
"""Path, how long it may be kept, content type where the name does not say it. Nothing else is served."""


class FileServer:
    """Serves a public directory while the block runs; not at all without a port."""

    def __init__(self, public: Path, *, host: str, port: int | None) -> None:
        self._server = None if port is None else _make(public, host, port)
        self._thread = None if self._server is None else Thread(target=self._server.serve_forever, daemon=True)

    @property
    def port(self) -> int | None:
        """Where it listens."""
        return None if self._server is None else int(self._server.server_address[1])

    def __enter__(self) -> "FileServer":
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()


def _make(public: Path, host: str, port: int) -> BoundedServer:
    class Handler(QuietHandler, SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        _tag: str | None = None
        _status = 0

        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(public))  # type: ignore[arg-type]

        def _rule(self) -> tuple[str, str | None] | None:
            path = getattr(self, "path", "%")  # a request that could not be read has none
            if any(part.startswith(".") or not part for part in path.split("/")[1:]) or "%" in path or "?" in path:
                return None
            return next(((kept, kind) for pattern, kept, kind in _RULES if pattern.fullmatch(path)), None)

        def send_head(self) -> object:  # type: ignore[override]
            path = Path(self.translate_path(self.path))
            if self._rule() is None or not path.is_file():
                self.send_error(404)
                return None
            # Files are replaced, never changed: a tag tells two of them apart that were made in the same second.
            found = path.stat()
            self._tag = f'"{found.st_ino:x}-{found.st_mtime_ns:x}-{found.st_size:x}"'
            del self.headers["If-Modified-Since"]
            if self.headers.get("If-None-Match") == self._tag:
                self.send_response(304)
                self.end_headers()
                return None
            return super().send_head()

        def guess_type(self, path: object) -> str:
            rule = self._rule()
            kind = None if rule is None else rule[1]
            return kind or super().guess_type(str(path))

        def send_response(self, code: int, message: str | None = None) -> None:
            self._status = int(code)
            super().send_response(code, message)

        def end_headers(self) -> None:
            rule = self._rule() if self._status in _KEPT else None
            self.send_header("Cache-Control", rule[0] if rule else "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            if rule and self._tag is not None:
                self.send_header("ETag", self._tag)
            self._tag = None
            super().end_headers()

    try:
        return BoundedServer((host, port), Handler)
    except OSError as error:
        raise UnavailableError(
            f"{host}:{port} cannot be listened on ({error.strerror}); choose another files_port in coordinator.toml"
        ) from error
