"""What small HTTP servers here share: so many callers at once, replies in one piece, a line where a caller fails."""

import logging
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import BaseRequestHandler
from threading import BoundedSemaphore
from typing import Any, Final

logger = logging.getLogger(__name__)

_MOST_CALLERS: Final = 256
_TIMEOUT_S: Final = 30.0


class BoundedServer(ThreadingHTTPServer):
    """A thread for each caller, up to a number; whoever comes then is turned away, and tries again."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], handler: type[BaseRequestHandler]) -> None:
        self._free = BoundedSemaphore(_MOST_CALLERS)
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a caller in a thread of its own, if there is one left."""
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a caller to its end."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A caller that hangs up is no error of ours."""
        error = sys.exception()
        level = logging.INFO if isinstance(error, OSError) else logging.ERROR
        logger.log(level, "%s: %s: %s", client_address[0], type(error).__name__, error)


class QuietHandler(BaseHTTPRequestHandler):
    """Times out, writes a reply at once, and logs through logging."""

    timeout = _TIMEOUT_S
    disable_nagle_algorithm = True
    wbufsize = -1

    def log_message(self, format: str, *arguments: object) -> None:
        """One line for each request."""
        logger.info(format, *arguments)
