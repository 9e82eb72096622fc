"""Room for streams: each holds a thread while it lasts, so no party may hold many, nor all of them together all."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Final

from common.errors import UnavailableError
from common.rpc.liveness import Liveness

SILENCE_S: Final = 60.0
"""How long a stream may stand still before it ends; what arrived stays, and it goes on in another."""
KEPT_FREE: Final = 4
"""Threads that streams leave to short calls."""
A_PARTY: Final = 4


class Streams:
    """Counts streams by party, and ends those that stand still."""

    def __init__(self, *, threads: int) -> None:
        self._most = max(1, threads - KEPT_FREE)
        self._open: Counter[str] = Counter()
        self._lock = Lock()
        self._liveness = Liveness(lambda: SILENCE_S)

    @contextmanager
    def stream(self, party: str, *, end: Callable[[], object]) -> Iterator[Callable[[], None]]:
        """Hold a place for a stream of `party`; yields what is to be called whenever it moves.

        Raises:
            UnavailableError: this party has enough of them, or all together do.
        """
        with self._lock:
            if self._open[party] >= A_PARTY:
                raise UnavailableError(f"{party} has {A_PARTY} transfers under way; wait for one of them to end")
            if self._open.total() >= self._most:
                raise UnavailableError(f"{self._most} transfers are under way, as many as there may be; try again soon")
            self._open[party] += 1
        try:
            with self._liveness.watching(end) as moved:
                yield moved
        finally:
            with self._lock:
                self._open[party] -= 1
