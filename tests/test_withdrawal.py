"""An owner takes back what is published: the releases that hold its expert, and the expert, are gone for everybody."""

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from common.audit import audit
from common.errors import ConsentError, UnavailableError
from common.files import exclusive
from common.trust.manifest import Manifest
from common.trust.statements import ReleaseWithdraw
from coordinator import withdrawal
from owner_client import participation
from tests.commands import concord
from tests.federation import Federation, Owner, running_federation

TOMORROW = datetime.now(UTC) + timedelta(days=1)


@pytest.fixture
def released(tmp_path: Path) -> Iterator[Federation]:
    """Release 1 holds the experts of archive and hospital."""
    with running_federation(tmp_path) as federation:
        federation.publish_base()
        for seed, name in enumerate(("archive", "hospital")):
            federation.enrol(name).take_part(seed)
        federation.release()
        yield federation


def take_back(owner: Owner, *, within: timedelta = timedelta(0)) -> None:
    """Opt out of releases that are published too."""
    with owner.member() as member:
        participation.opt_out(member, reason=None, withdraw_within=within)


def objects(federation: Federation) -> set[str]:
    """Digests of what is published."""
    return {f"sha256:{path.name}" for path in (federation.public / "objects").iterdir()}


def files_of(directory: Path) -> set[str]:
    """Digests of the files in a directory."""
    return {entry.digest for entry in Manifest.parse((directory / "manifest.json").read_bytes()).files.values()}


def test_what_an_owner_takes_back_is_gone_and_the_rest_stays(released: Federation) -> None:
    first, base = released.public / "releases" / "release-1", released.public / "base" / "0"
    gone, kept = files_of(first) - files_of(base), files_of(base)
    experts = [c.files for c in released.coordinator.registry.head().contributions_by_index.values()]
    archive, hospital = ({file.digest for file in files.values()} for files in experts)
    take_back(released.owner("archive"))
    withdrawal.carry_out(released.coordinator, in_background=False)  # waits for who does it already
    assert not first.exists()
    assert not objects(released) & ((gone - hospital) | archive)
    assert kept | hospital <= objects(released)
    report = audit(released.public, now=TOMORROW)
    assert report.holds, report.findings
    assert "1 releases withdrawn" in report.findings[5].found
    second = released.release()
    assert second.owners == {1: "hospital"}
    assert audit(released.public, now=TOMORROW).holds


def test_a_model_whose_rows_are_being_trained_goes_with_its_release(released: Federation) -> None:
    """It holds the expert that is taken back."""
    training = released.coordinator.home.router_training
    for release in ("release-1", "release-9"):
        (training / release / "key" / "trained").mkdir(parents=True)
        (training / release / "key" / "trained" / "model.safetensors").write_bytes(b"whole")
    take_back(released.owners["archive"])
    withdrawal.carry_out(released.coordinator, in_background=False)
    assert sorted(path.name for path in training.iterdir()) == ["release-9"]


def test_shards_that_a_later_release_shares_stay(released: Federation) -> None:
    released.owner("archive").opt_out()
    second = released.release()
    shared = files_of(second.directory)
    first = files_of(released.public / "releases" / "release-1")
    assert shared & first
    take_back(released.owner("archive"))  # what it revoked for the future alone, it may still have back
    withdrawal.carry_out(released.coordinator, in_background=False)
    assert not (released.public / "releases" / "release-1").exists()
    assert second.directory.exists()
    assert shared <= objects(released)
    take_back(released.owner("hospital"))
    withdrawal.carry_out(released.coordinator, in_background=False)
    assert not (released.public / "releases").is_dir() or not list((released.public / "releases").iterdir())
    assert not (first | shared) - files_of(released.public / "base" / "0") & objects(released) - {
        file.digest
        for contribution in released.coordinator.registry.head().contributions_by_index.values()
        for file in contribution.files.values()
    }
    assert audit(released.public, now=TOMORROW).holds


def test_what_was_asked_for_once_is_asked_for_no_more(released: Federation) -> None:
    owner = released.owner("archive")
    owner.opt_out()
    with pytest.raises(ConsentError, match="none is in force"):
        owner.opt_out()
    take_back(owner)
    with pytest.raises(ConsentError, match="was not asked for before"):
        take_back(owner)
    history = released.coordinator.registry.head()
    assert [cause.party for cause in history.taking_back.values()] == ["archive"]


def test_hours_that_were_signed_before_are_said_to_stand(released: Federation) -> None:
    owner = released.owner("archive")
    released.stop()
    with pytest.raises(UnavailableError, match="is signed and kept"):
        take_back(owner, within=timedelta(hours=24))
    released.start()
    done = concord("owner", "opt-out", "--withdraw-within-hours", "1", "--home", owner.home.path)
    assert done.returncode == 0, done.stderr
    assert "an earlier request was signed already, and stands" in " ".join((done.stdout + done.stderr).split())


def test_an_audit_says_what_is_still_there_after_its_time(released: Federation, tmp_path: Path) -> None:
    before = tmp_path / "before"
    shutil.copytree(released.public, before)
    take_back(released.owner("archive"), within=timedelta(hours=1))
    withdrawal.carry_out(released.coordinator, in_background=False)
    after = tmp_path / "after"
    shutil.copytree(released.public, after)
    shutil.copytree(before / "releases", after / "releases", dirs_exist_ok=True)
    assert audit(after).holds  # there is time
    assert "is still published; entry 9 withdrew it" in audit(after, now=TOMORROW).findings[-1].found
    shutil.rmtree(after / "releases")
    shutil.copytree(before / "objects", after / "objects", dirs_exist_ok=True)
    found = audit(after, now=TOMORROW).findings[-1]
    assert found.step == 7
    assert "entry 8 takes it back" in found.found
    for path in (after / "objects").iterdir():
        if f"objects/{path.name} is still" in found.found:
            path.rename(path.with_name(f".{path.name}.1-2.partial"))
    assert "1-2.partial is still published" in audit(after, now=TOMORROW).findings[-1].found
    shutil.rmtree(after / "objects")
    shutil.copytree(released.public / "objects", after / "objects")
    shutil.copytree(before / "releases" / "release-1", after / "releases" / ".release-1.hidden")
    assert audit(after).holds
    assert ".release-1.hidden is still published; entry 9" in audit(after, now=TOMORROW).findings[-1].found


def test_a_crash_between_word_and_deed_is_made_good(released: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    """The statement is in the log, the files are there; whoever starts next takes them down."""
    monkeypatch.setattr(withdrawal, "Thread", _NeverStarted)
    take_back(released.owner("archive"))
    history = released.coordinator.registry.head()
    assert [type(s) for s in history.withdrawals.values()] == [ReleaseWithdraw]
    assert (released.public / "releases" / "release-1").exists()
    second = released.release()  # the next one in the house tidies up
    assert not (released.public / "releases" / "release-1").exists()
    assert second.directory.exists()
    assert audit(released.public, now=TOMORROW).holds


class _NeverStarted:
    def __init__(self, **_: object) -> None: ...

    def start(self) -> None: ...


def test_files_wait_for_a_release_that_is_being_made(released: Federation) -> None:
    with exclusive(released.coordinator.home.release_lock, what="a release"):
        take_back(released.owner("archive"))
        assert (released.public / "releases" / "release-1").exists()
    withdrawal.carry_out(released.coordinator, in_background=False)
    assert not (released.public / "releases" / "release-1").exists()


def test_a_withdrawn_release_s_directory_holds_nothing_else_while_it_is_there(
    released: Federation, tmp_path: Path
) -> None:
    public, shown = tmp_path / "copy", "releases/release-1"
    shutil.copytree(released.public / shown, tmp_path / "shown")
    take_back(released.owner("archive"), within=timedelta(days=1))
    withdrawal.carry_out(released.coordinator, in_background=False)
    shutil.copytree(released.public, public)
    shutil.copytree(tmp_path / "shown", public / shown)
    assert audit(public).holds
    (public / shown / "x").write_bytes(b"x")
    assert f"{shown}/x is published but its manifest does not list it" in audit(public).findings[-1].found
