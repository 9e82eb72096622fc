"""What happens in the log while a release is made: what changes nothing is counted, what does is refused."""

from collections.abc import Callable
from pathlib import Path

import pytest

from common.audit import audit
from common.errors import ConcordError, ConflictError, ConsentError, TooLargeError
from coordinator.releases import PublishedRelease, make_release
from tests.federation import Federation, expert_weights


@pytest.fixture
def two(federation: Federation) -> Federation:
    """Two owners with an expert each."""
    federation.publish_base()
    for seed, name in enumerate(("archive", "hospital")):
        federation.enrol(name).take_part(seed)
    return federation


def _release_while(federation: Federation, act: Callable[[], object]) -> PublishedRelease:
    def evaluate(_directory: Path) -> None:
        act()

    return make_release(federation.coordinator, evaluate=evaluate)


def test_an_entry_that_changes_nothing_about_it_is_counted(two: Federation) -> None:
    before = two.coordinator.registry.head().size
    release = _release_while(two, lambda: two.enrol("university"))
    assert release.statement.log_size == before + 1
    assert set(release.owners.values()) == {"archive", "hospital"}
    assert audit(two.public, root=two.coordinator.registry.root).holds


CHANGES: dict[str, tuple[Callable[[Federation], object], type[ConcordError], str]] = {
    "an owner leaves": (lambda f: f.owner("archive").opt_out(), ConsentError, "opted out, or its consent lapsed"),
    "an owner brings an expert": (
        lambda f: f.enrol("university").take_part(7),
        ConflictError,
        "an expert came",
    ),
    "an owner sends a better one": (
        lambda f: (f.owner("archive").put_expert(expert_weights(9)), f.owner("archive").submit()),
        ConflictError,
        "an expert came",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_who_is_in_it_refuses_it_and_leaves_nothing(two: Federation, change: str) -> None:
    act, error, match = CHANGES[change]
    objects: set[str] = set()

    def acting() -> None:
        act(two)
        objects.update(path.name for path in (two.public / "objects").iterdir())

    with pytest.raises(error, match=match):
        _release_while(two, acting)
    assert {path.name for path in (two.public / "objects").iterdir()} == objects
    assert not two.coordinator.registry.head().releases
    again = two.release()
    assert again.statement.release == "release-1"
    assert audit(two.public, root=two.coordinator.registry.root).holds


def test_more_experts_than_a_statement_can_name_are_refused_before_anything_is_made(
    two: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coordinator.releases.MAX_LIST_BYTES", 2200)
    before = two.coordinator.registry.size()
    with pytest.raises(TooLargeError, match=r"of 2 experts would take 2\d\d\d bytes .* at most 2200 .* another line"):
        _release_while(two, lambda: pytest.fail("it was assembled"))
    assert two.coordinator.registry.size() == before
    assert not list(two.coordinator.home.work.glob("*"))


def test_what_a_crash_left_without_an_entry_is_taken_back(two: Federation) -> None:
    left = two.coordinator.home.work / "release-1"
    left.mkdir(parents=True)
    (left / "weights").write_bytes(b"of somebody who opted out since")
    two.coordinator.publication.add_objects(left, ours=True)
    assert "the log does not name it" in audit(two.public).findings[-1].found
    two.release()
    report = audit(two.public)
    assert report.holds, report.findings[-1]
