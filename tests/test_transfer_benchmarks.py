"""The benchmarks of transfer in small: they run to their last line, and what it says is possible."""

import json
import subprocess
import sys
from typing import Any

import pytest


def result_of(name: str, *arguments: str) -> dict[str, Any]:
    """What a benchmark says on its last line."""
    command = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def test_transfer_says_how_fast_it_is_beside_its_ceiling() -> None:
    found = result_of("transfer", "--size-mib", "2", "--rounds", "1", "--no-peers", "--no-kills")
    for way in ("up", "down"):
        assert found[way]["ratio_to_ceiling"] > 0
        assert found[way]["client_peak_rss_mb"] < 200
        assert found[way]["server_peak_rss_mb"] < 200


def test_uploads_that_were_killed_are_intact() -> None:
    found = result_of("upload_kills", "--kills", "1", "--size-mib", "4")
    assert sum(found["kills"].values()) >= 1
    assert found["uploads_intact"] == found["uploads_finished"] >= 1


def test_many_owners_all_end() -> None:
    found = result_of("many_owners", "--owners", "2", "--size-mib", "2")
    assert found["failed"] == 0
    assert found["fairness_index"] > 0


def test_strangers_who_hold_connections_fail_no_call() -> None:
    found = result_of("half_open", "--half-open", "50", "--size-mib", "2", "--uploads", "1", "--seconds", "2")
    assert found["failed_calls"] == 0
    assert found["half_open"] == 50
    assert found["uploads"] == 2


def test_without_room_on_the_disk_it_says_so_and_begins_nothing() -> None:
    with pytest.raises(AssertionError, match="GB free and this needs"):
        result_of("transfer", "--size-mib", "100000000")
