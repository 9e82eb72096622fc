"""What status says of a daemon: what it does, how far, what troubles it and what is next; and of one that is gone."""

import json
import os
import signal
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from common.console import JsonReporter
from common.pauses import Pauses
from common.state_file import StatedReporter, StateFile, read_state
from owner_client.status_cli import standing
from tests.commands import concord, start, stop, wait_for_step
from tests.federation import Federation, Owner, free_ports


def _until(look: Callable[[], Any], holds: Callable[[Any], bool]) -> Any:
    """What is there once it is as wanted."""
    until = datetime.now(UTC) + timedelta(seconds=90)
    while not holds(found := look()):
        assert datetime.now(UTC) < until, found
        Event().wait(0.1)
    return found


def _settle(owner: Owner) -> None:
    owner.home.settings_file.write_text("poll_s = 0.2\n" + owner.home.settings_file.read_text())


def test_before_any_daemon_status_says_so(federation: Federation) -> None:
    owner = federation.enrol("archive")
    federation.stop()  # needs no connection
    said = concord("owner", "status", "--home", owner.home.path)
    assert said.returncode == 0, said.stderr
    assert "none runs here: concord owner run" in said.stdout
    found = json.loads(concord("owner", "status", "--home", owner.home.path, "--json").stdout.splitlines()[-1])
    assert found["daemon"] == {"running": False}
    assert found["certificate_until"] > found["renews_at"] > datetime.now(UTC).isoformat()[:10]
    assert found["sent_bytes"] > 0


def test_status_follows_a_daemon_through_trouble_and_its_end(consortium: Federation) -> None:
    owner = consortium.enrol("archive")
    _settle(owner)
    daemon = start("owner", "run", "--home", owner.home.path)

    def state() -> Any:
        return standing(owner.home)["daemon"]

    try:
        wait_for_step(daemon, "the log has 2 entries")
        now = _until(state, lambda found: found.get("log_entries") == 2 and "contact_at" in found)
        assert (now["running"], now["pid"]) == (True, daemon.pid)
        consortium.stop()
        troubled = _until(state, lambda found: "trouble" in found)
        assert "does not answer" in troubled["trouble"]
        assert troubled["next_try_at"] >= troubled["updated_at"][:10]
        assert "next try" in concord("owner", "status", "--home", owner.home.path).stdout
        consortium.start()
        _until(state, lambda found: "trouble" not in found)
    finally:
        os.kill(daemon.pid, signal.SIGKILL)
        daemon.communicate()
    assert not state()["running"]
    assert "it was last seen" in concord("owner", "status", "--home", owner.home.path).stdout


def test_a_daemon_follows_its_coordinator_to_another_address(consortium: Federation) -> None:
    owner = consortium.enrol("archive")
    _settle(owner)
    daemon = start("owner", "run", "--home", owner.home.path)
    try:
        wait_for_step(daemon, "the log has 2 entries")
        consortium.stop()
        before, consortium.ports = consortium.ports, free_ports(2)
        consortium.start()
        settings = owner.home.settings_file
        settings.write_text(settings.read_text().replace(f":{before[0]}", f":{consortium.ports[0]}"))
        consortium.enrol("hospital")
        wait_for_step(daemon, "the log has 3 entries")
    finally:
        stop(daemon, signal.SIGTERM)


def test_a_daemon_that_is_not_let_in_stays_and_is_let_in_again(consortium: Federation) -> None:
    owner = consortium.enrol("archive")
    _settle(owner)
    daemon = start("owner", "run", "--home", owner.home.path)
    try:
        wait_for_step(daemon, "the log has 2 entries")
        concord("coordinator", "revoke", "archive", "--home", consortium.coordinator.home.path)
        _until(lambda: read_state(owner.home.state), lambda found: "is revoked" in str(found.get("trouble")))
        consortium.enrol("archive")
        _until(lambda: read_state(owner.home.state), lambda found: "trouble" not in found)
        assert daemon.poll() is None
    finally:
        stop(daemon, signal.SIGTERM)


def test_the_coordinators_status_has_every_owner(consortium: Federation) -> None:
    consortium.enrol("archive").take_part(1)
    consortium.enrol("hospital")
    home = consortium.coordinator.home
    said = concord("coordinator", "status", "--home", home.path, "--json")
    rows = {row["owner"]: row for row in json.loads(said.stdout.splitlines()[-1])["owners_now"]}
    assert rows["archive"]["expert"]
    assert rows["archive"]["consent"].startswith("until ")
    assert not rows["hospital"]["expert"]
    assert rows["hospital"]["consent"] == "none"
    assert rows["hospital"]["certificate"].startswith("good")
    assert "hospital" in concord("coordinator", "status", "--home", home.path).stdout


def test_progress_is_written_with_its_speed_and_taken_away_after(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    with (tmp_path / "out").open("w") as stream:
        reporter = StatedReporter(JsonReporter(stream), StateFile(path))
        reporter.progress("sending the expert", done=0, total=4e6)
        reporter.progress("sending the expert", done=4e6, total=4e6)
        found = read_state(path)
        assert (found["task"], found["done"], found["total"]) == ("sending the expert", 4e6, 4e6)
        assert float(str(found["mb_per_s"])) > 0
        reporter.step("sent")
        assert "task" not in read_state(path)
        assert read_state(path)["doing"] == "sent"


@pytest.mark.parametrize("data", [b"", b"[1]", b"{"])
def test_a_state_that_is_none_says_nothing(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "state.json").write_bytes(data)
    assert read_state(tmp_path / "state.json") == {}


def test_pauses_grow_differ_and_begin_again() -> None:
    pauses = Pauses(longest_s=8)
    seen = [pauses.next_s(1) for _ in range(6)]
    for pause, about in zip(seen, (1, 2, 4, 8, 8, 8), strict=True):
        assert 0.7 * about <= pause <= 1.3 * about
    assert len(set(seen)) == 6
    pauses.begin_again()
    assert pauses.next_s(1) <= 1.3


# Releases come down


def _releases(consortium: Federation) -> Owner:
    for seed, name in enumerate(("archive", "hospital")):
        consortium.enrol(name).take_part(seed)
    consortium.release()
    return consortium.owners["archive"]


def test_an_owner_fetches_a_release_and_what_it_has_is_not_sent_again(consortium: Federation, tmp_path: Path) -> None:
    owner = _releases(consortium)
    done = concord("owner", "fetch-release", "--home", owner.home.path, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    shown = consortium.coordinator.publication.release("release-1")
    for path in shown.iterdir():
        assert (Path(found["directory"]) / path.name).read_bytes() == path.read_bytes()
    served = len(consortium.coordinator.enrolment.last_calls)
    assert served
    fetches = _fetches(owner)
    again = concord("owner", "fetch-release", "release-1", "--output", tmp_path / "again", "--home", owner.home.path)
    assert again.returncode == 0, again.stderr
    assert _fetches(owner) == fetches


def _fetches(owner: Owner) -> int:
    lines = [json.loads(line) for line in owner.home.ledger.read_bytes().splitlines()]
    return sum(line["calls"] for line in lines if line["name"] == "Fetch")


@pytest.mark.parametrize(
    ("name", "says"), [("release-9", "there is no release 'release-9'"), ("../x", "there is no release")]
)
def test_what_is_not_released_is_not_fetched(name: str, says: str, consortium: Federation) -> None:
    owner = _releases(consortium)
    done = concord("owner", "fetch-release", name, "--home", owner.home.path)
    assert done.returncode == 1
    assert says in done.stderr


def test_a_withdrawn_release_is_not_fetched(consortium: Federation) -> None:
    owner = _releases(consortium)
    concord("owner", "opt-out", "--withdraw-within-hours", "0", "--home", owner.home.path)
    _until(
        lambda: concord("owner", "fetch-release", "release-1", "--home", owner.home.path).stderr,
        lambda said: "release-1 was withdrawn by entry" in said,
    )


def test_a_release_is_not_mixed_with_other_files(consortium: Federation, tmp_path: Path) -> None:
    owner = _releases(consortium)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("dear")
    done = concord("owner", "fetch-release", "--output", tmp_path / "other", "--home", owner.home.path)
    assert "letter.txt, which is no part of it" in done.stderr
