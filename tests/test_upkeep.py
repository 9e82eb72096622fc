"""What a serving coordinator sees to by itself."""

import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from common.errors import UnavailableError
from common.trust.statements import CertRevoke
from coordinator import withdrawal
from coordinator.home import open_home
from coordinator.upkeep import Upkeep
from tests.federation import Federation, running_federation
from tests.test_withdrawal import _NeverStarted, take_back


@pytest.fixture
def released(tmp_path: Path) -> Iterator[Federation]:
    """A release that holds one expert."""
    with running_federation(tmp_path) as federation:
        federation.publish_base()
        federation.enrol("archive").take_part(1)
        federation.release()
        yield federation


def _wait(until: Callable[[], bool]) -> None:
    deadline = datetime.now(UTC) + timedelta(seconds=30)
    while not until():
        assert datetime.now(UTC) < deadline


def test_files_follow_what_another_coordinator_appended(released: Federation, tmp_path: Path) -> None:
    """Two homes of one registry, each with published files of its own."""
    log, first = released.coordinator.log, released.coordinator.home
    second = Path(shutil.copytree(first.path, tmp_path / "second"))
    for path in second.glob("registry.sqlite*"):
        path.unlink()
    (second / "registry.sqlite").symlink_to(first.database)
    with Upkeep(released.coordinator, every_s=0.01), open_home(second) as other:
        index = other.registry.issue(CertRevoke, owner="archive").leaf_index
        _wait(lambda: (found := log.published()) is not None and found.size == index + 1)


def test_what_was_withdrawn_is_taken_down_whatever_failed_before(
    released: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(withdrawal, "Thread", _NeverStarted)  # as if it had died
    take_back(released.owner("archive"))
    shown = released.coordinator.home.public / "releases" / "release-1"
    assert shown.exists()
    with Upkeep(released.coordinator, every_s=0.01):
        _wait(lambda: not shown.exists())


def test_a_look_that_fails_is_not_the_last(released: Federation, caplog: pytest.LogCaptureFixture) -> None:
    registry = released.coordinator.registry
    upkeep = Upkeep(released.coordinator, every_s=0.01)
    upkeep.look()
    with released.coordinator.store.transaction() as connection:
        connection.exec_driver_sql("ALTER TABLE entries RENAME TO away")
    with pytest.raises(UnavailableError, match="cannot be read"):
        upkeep.look()
    with upkeep:
        _wait(lambda: "trying again" in caplog.text)
        with released.coordinator.store.transaction() as connection:
            connection.exec_driver_sql("ALTER TABLE away RENAME TO entries")
        registry.issue(CertRevoke, owner="archive")
        _wait(lambda: (found := released.coordinator.log.published()) is not None and found.size == registry.size())


def test_a_home_without_the_models_takes_down_what_it_has(released: Federation) -> None:
    """Another home of the same registry holds the expert that was uploaded to it, and nothing made elsewhere."""
    objects = released.coordinator.home.public / "objects"
    with released.coordinator.registry.history() as history:
        (contribution,) = history.contributions_by_index.values()
    expert = {entry.digest.removeprefix("sha256:") for entry in contribution.files.values()}
    for path in objects.iterdir():
        if path.name not in expert:
            path.unlink()
    take_back(released.owner("archive"))
    Upkeep(released.coordinator).look()
    assert list(objects.iterdir()) == []
