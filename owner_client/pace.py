"""How fast and when an owner's line may be used: a rate, and hours of the day (a hospital's line at night)."""

import time as clock
from collections.abc import Callable
from datetime import datetime, time, timedelta
from threading import Event
from typing import Final

from common.errors import MalformedError

_MINUTE_S: Final = 60.0
_MEGABYTE: Final = 1_000_000


class Pace:
    """At most `megabytes_per_s` (None for as fast as it goes), within `hours` such as `22:00-06:00` local time."""

    def __init__(
        self,
        *,
        megabytes_per_s: float | None = None,
        hours: str | None = None,
        stop: Event | None = None,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        self._rate = None if megabytes_per_s is None else megabytes_per_s * _MEGABYTE
        self._hours = None if hours is None else parse_hours(hours)
        self._stop, self._now = stop or Event(), now
        self._free_at = clock.monotonic()

    @property
    def is_open(self) -> bool:
        """Whether the line may be used at this hour."""
        return self.opens_in_s() == 0

    def opens_in_s(self) -> float:
        """Seconds until the line may be used; 0 when it may."""
        if self._hours is None:
            return 0.0
        (begin, end), now = self._hours, self._now()
        at = now.time()
        if (begin <= at < end) if begin < end else (at >= begin or at < end):
            return 0.0
        opens = datetime.combine(now.date(), begin, now.tzinfo)
        return max(1.0, ((opens if opens > now else opens + timedelta(days=1)) - now).total_seconds())

    def wait_until_open(self) -> None:
        """Return when the line may be used, or a stop was asked for."""
        while (seconds := self.opens_in_s()) and not self._stop.wait(min(seconds, _MINUTE_S)):
            pass

    def spend(self, size_bytes: int) -> None:
        """Return when so many bytes may go; a pause is not made up for by going faster afterwards."""
        if self._rate is None:
            return
        now = clock.monotonic()
        self._free_at = max(self._free_at, now) + size_bytes / self._rate
        if self._free_at > now:
            self._stop.wait(self._free_at - now)


def parse_hours(text: str) -> tuple[time, time]:
    """Begin and end of `HH:MM-HH:MM`, which may span midnight.

    Raises:
        MalformedError: it is not that, or is empty.
    """
    try:
        begin, end = (time.fromisoformat(part) for part in text.split("-"))
    except ValueError as error:
        raise MalformedError(f"hours {text!r}: write them as 22:00-06:00") from error
    if begin == end or begin.tzinfo or end.tzinfo:
        raise MalformedError(f"hours {text!r}: they begin and end at different times of the day, as in 22:00-06:00")
    return begin, end
