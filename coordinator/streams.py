"""Room for streams: each holds a thread while it lasts, so no party may hold many, nor all of them together all."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from time import monotonic
from typing import Final

from common.errors import UnavailableError
from common.rpc.liveness import Liveness

SILENCE_S: Final = 60.0
"""How long a stream may stand still before it ends; what arrived stays, and it goes on in another."""
KEPT_FREE: Final = 4
"""Threads that streams leave to short calls."""
A_PARTY: Final = 4
ASK_AGAIN_S: Final = 1.0
"""A stream of somebody who may call no longer ends so soon."""


class Permitted:
    """Asks again and again, while a stream lasts, whether its caller may call still. Made where the call begins."""

    def __init__(self, ask: Callable[[], object], *, now: Callable[[], float] = monotonic) -> None:
        self._ask, self._now, self._asked_at = ask, now, now()

    def check(self) -> None:
        """Raise `NotPermittedError` where that was found out to be over."""
        if self._now() - self._asked_at >= ASK_AGAIN_S:
            self._ask()
            self._asked_at = self._now()


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
