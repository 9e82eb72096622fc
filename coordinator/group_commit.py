"""Many callers, one commit: whoever gets the lock carries out what all have asked for while they waited.

A commit that waits for the disk costs the same for one request as for a hundred. Alone, a request goes straight
through.
"""

from collections.abc import Callable
from threading import Lock
from typing import Final, Generic, TypeVar

_Request = TypeVar("_Request")

MAX_BATCH: Final = 256


class GroupCommit(Generic[_Request]):
    """Calls `commit` with everything that is asked for, one call at a time; `commit` writes results into requests."""

    def __init__(self, commit: Callable[[list[_Request]], None]) -> None:
        self._commit = commit
        self._mutex, self._turn = Lock(), Lock()
        self._waiting: list[_Request] = []
        self._open: set[int] = set()

    def submit(self, request: _Request) -> None:
        """Ask, and return once a commit that had `request` in it is over.

        Raises:
            Exception: what `commit` raised, where this caller was the one that ran it.
        """
        with self._mutex:
            self._waiting.append(request)
            self._open.add(id(request))
        with self._turn:
            while id(request) in self._open:
                with self._mutex:
                    batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
                try:
                    self._commit(batch)
                finally:
                    self._open.difference_update(map(id, batch))
