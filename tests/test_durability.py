"""What is acknowledged outlives kill -9 and power cuts; many more of both with `benchmarks/durability.py`."""

from pathlib import Path

from benchmarks.durability import kills, power_cuts


def test_nothing_acknowledged_is_lost_by_kills(tmp_path: Path) -> None:
    found = kills(6, tmp_path)
    assert found["acknowledged"] > 6
    assert found["lost"] == 0


def test_nothing_acknowledged_is_lost_by_power_cuts(tmp_path: Path) -> None:
    found = power_cuts(60, tmp_path, synchronous="FULL")
    assert found["acknowledged"] > 60
    assert (found["lost"], found["unreadable_or_forked"]) == (0, 0)


def test_the_cuts_do_lose_what_is_not_synced(tmp_path: Path) -> None:
    assert power_cuts(20, tmp_path, synchronous="OFF")["lost"] > 0
