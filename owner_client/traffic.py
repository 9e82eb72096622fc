"""Bytes of small calls, added up: what polls, reads and renewals send is written to the ledger as sums."""

from collections import Counter
from collections.abc import Callable
from threading import Lock
from time import monotonic
from typing import Final

from common.errors import NoRoomError
from owner_client.ledger import Ledger

WRITE_EVERY_S: Final = 60.0


class Traffic:
    """What one connection to `to` sends beside uploads; written now and then, and when it is closed."""

    def __init__(self, ledger: Ledger, *, to: str, now: Callable[[], float] = monotonic) -> None:
        self._ledger, self._to, self._now = ledger, to, now
        self._calls, self._bytes = Counter[str](), Counter[str]()
        self._lock = Lock()
        self._written_at = now()

    def sent(self, name: str, size_bytes: int) -> None:
        """A call of that name has sent so many bytes."""
        with self._lock:
            self._calls[name] += 1
            self._bytes[name] += size_bytes
        if self._now() - self._written_at >= WRITE_EVERY_S:
            self.write()

    def write(self) -> None:
        """Write what was sent since the last time."""
        with self._lock:
            sums = {name: (calls, self._bytes[name]) for name, calls in self._calls.items()}
            self._calls.clear()
            self._bytes.clear()
            self._written_at = self._now()
        if not sums:
            return
        try:
            self._ledger.record_traffic(sums, to=self._to)
        except NoRoomError:
            with self._lock:  # written once there is room
                for name, (calls, size_bytes) in sums.items():
                    self._calls[name] += calls
                    self._bytes[name] += size_bytes
            raise
