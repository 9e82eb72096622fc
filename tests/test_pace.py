"""An owner's line: how fast, and at which hours."""

import time as clock
from datetime import datetime, time, timedelta
from threading import Event

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import MalformedError
from owner_client.pace import Pace, parse_hours

NOON = datetime(2026, 11, 24, 12, 0, 0)


def _at(hours: str, moment: datetime) -> Pace:
    return Pace(hours=hours, now=lambda: moment)


@pytest.mark.parametrize(
    ("hours", "clock_time", "opens_in"),
    [
        ("22:00-06:00", "23:30", timedelta(0)),
        ("22:00-06:00", "05:59", timedelta(0)),
        ("22:00-06:00", "06:00", timedelta(hours=16)),
        ("22:00-06:00", "12:00", timedelta(hours=10)),
        ("12:00-13:00", "12:00", timedelta(0)),
        ("12:00-13:00", "13:00", timedelta(hours=23)),
        ("12:00-13:00", "11:00", timedelta(hours=1)),
    ],
)
def test_it_opens_when_its_hours_begin(hours: str, clock_time: str, opens_in: timedelta) -> None:
    pace = _at(hours, datetime.combine(NOON.date(), datetime.strptime(clock_time, "%H:%M").time()))
    assert pace.opens_in_s() == opens_in.total_seconds()
    assert pace.is_open == (not opens_in)


@given(st.times(), st.times(), st.times())
def test_when_it_says_it_opens_it_is_open(begin: time, end: time, at: time) -> None:
    spelt = [f"{moment.hour:02}:{moment.minute:02}" for moment in (begin, end)]
    if spelt[0] == spelt[1]:
        return
    hours = "-".join(spelt)
    now = datetime.combine(NOON.date(), at)
    opens = now + timedelta(seconds=_at(hours, now).opens_in_s())
    assert _at(hours, opens + timedelta(seconds=1 if opens != now else 0)).is_open


@pytest.mark.parametrize("text", ["", "22:00", "22-6", "22:00-22:00", "25:00-06:00", "22:00-06:00-07:00", "night"])
def test_other_hours_are_refused(text: str) -> None:
    with pytest.raises(MalformedError, match="22:00-06:00"):
        parse_hours(text)


def test_a_rate_is_kept() -> None:
    pace, begun = Pace(megabytes_per_s=10), clock.monotonic()
    for _ in range(6):
        pace.spend(500_000)
    assert clock.monotonic() - begun >= 0.29


def test_a_stop_ends_the_waiting() -> None:
    stop = Event()
    stop.set()
    pace = Pace(megabytes_per_s=0.001, hours="12:00-13:00", stop=stop, now=lambda: NOON - timedelta(hours=2))
    begun = clock.monotonic()
    pace.spend(10**9)
    pace.wait_until_open()
    assert clock.monotonic() - begun < 10
