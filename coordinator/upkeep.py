"""What a serving coordinator sees to by itself, again and again: its published files follow the log, whoever appended,
what was withdrawn is taken down, whoever recorded it and whatever failed before, and campaigns end in time.
"""

import logging
from collections.abc import Callable
from threading import Event, Thread
from typing import Final

from common.errors import ConcordError
from coordinator.home import Coordinator
from coordinator.withdrawal import carry_out

logger = logging.getLogger(__name__)

EVERY_S: Final = 5.0
_LEAVE_S: Final = 10.0
"""A release that is being made elsewhere is not waited for for longer when this stops."""


class Upkeep:
    """A thread that looks while the block runs."""

    def __init__(
        self, coordinator: Coordinator, *, every_s: float = EVERY_S, also: Callable[[], object] = lambda: None
    ) -> None:
        self._coordinator, self._every_s, self._also = coordinator, every_s, also
        self._stop = Event()
        self._done = (-1, -1)
        self._thread = Thread(target=self._run, name="upkeep", daemon=True)

    def __enter__(self) -> "Upkeep":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(_LEAVE_S)

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            try:
                self.look()
            except (ConcordError, OSError) as error:
                logger.warning("%s; trying again", error)
            except Exception:  # a loop that ends would leave what an owner took back where it is
                logger.exception("upkeep failed; trying again")

    def look(self) -> None:
        """Bring everything up to the log as it is.

        Raises:
            ConcordError: something cannot be done now; the rest is done.
        """
        self._coordinator.log.follow()
        self._coordinator.enrolment.reads.write()
        self._also()
        with self._coordinator.registry.history() as history:
            asked = len(history.taking_back), len(history.withdrawals)
        if asked != self._done:
            carry_out(self._coordinator, in_background=False)
            self._done = asked
        self._coordinator.campaigns.close_due()
