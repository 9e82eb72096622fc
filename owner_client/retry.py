"""Waiting for a coordinator that is not there: tries again with growing pauses that a stop ends at once.

Pauses differ by chance from one owner to the next: after a restart not everybody comes back in the same second.
"""

import random
from collections.abc import Callable
from threading import Event
from typing import Final, TypeVar

from common.errors import UnavailableError

_FIRST_PAUSE_S: Final = 0.2
_LONGEST_PAUSE_S: Final = 15.0
_JITTER: Final = 0.3

_Result = TypeVar("_Result")


class Retry:
    """How long an unavailable coordinator is waited for, in seconds; `stop` ends the waiting."""

    def __init__(self, *, patience_s: float, stop: Event | None = None) -> None:
        self._patience_s = patience_s
        self._stop = stop or Event()

    def __call__(self, attempt: Callable[[], _Result], *, progress: Callable[[], object] | None = None) -> _Result:
        """Run `attempt` until it works. Where `progress` answers something new, patience begins again: a transfer that
        moves between breaks of its line is not given up.

        Raises:
            UnavailableError: patience has ended.
            KeyboardInterrupt: `stop` is set.
        """
        waited_s, pause_s, seen = 0.0, _FIRST_PAUSE_S, progress() if progress else None
        while True:
            if self._stop.is_set():
                raise KeyboardInterrupt
            try:
                return attempt()
            except UnavailableError:
                if progress is not None and (now := progress()) != seen:
                    waited_s, pause_s, seen = 0.0, _FIRST_PAUSE_S, now
                if waited_s >= self._patience_s and not self._stop.is_set():
                    raise
                self._stop.wait(pause_s * random.uniform(1 - _JITTER, 1 + _JITTER))  # noqa: S311
                waited_s, pause_s = waited_s + pause_s, min(2 * pause_s, _LONGEST_PAUSE_S)
