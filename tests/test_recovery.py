"""A registry from an older backup: refused where others have seen more, and rolled forward from what they saw."""

import json
import re
import shutil
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from common.audit import audit
from common.errors import ConflictError, UnavailableError, VerificationError
from common.trust.statements import CertRevoke
from common.witness import WitnessHome
from coordinator.home import open_home
from coordinator.outside_witnesses import OutsideWitness, ask
from coordinator.recovery import recover
from tests.commands import concord, start
from tests.federation import Federation, Owner, running_federation
from tests.test_outside_witness import NAME, Running, _serving


@dataclass
class Lost:
    """A consortium's directory: the coordinator as it is, and a backup from before the second owner took part."""

    path: Path
    witness: Running

    @property
    def home(self) -> Path:
        return self.path / "coordinator"

    def restore(self, *, but: tuple[str, ...] = ()) -> None:
        """The home from the backup, but for what is named."""
        for name in but:
            (self.path / "kept").mkdir(exist_ok=True)
            shutil.move(self.home / name, self.path / "kept" / name)
        shutil.rmtree(self.home)
        shutil.copytree(self.path / "backup", self.home)
        for name in but:
            shutil.rmtree(self.home / name)
            shutil.move(self.path / "kept" / name, self.home / name)


def _settle(federation: Federation, witness: Running) -> None:
    """Bring the checkpoint to the witness and the files up to date."""
    assert ask(federation.coordinator.registry, [witness.line]) is None
    assert federation.public


@pytest.fixture
def lost(tmp_path: Path) -> Iterator[Lost]:
    home = WitnessHome.create(tmp_path / "witness", name=NAME)
    with running_federation(tmp_path) as federation:
        home.watch(federation.coordinator.registry.root)
    with _serving(home) as witness:
        settings = tmp_path / "coordinator" / "coordinator.toml"
        text = settings.read_text().replace(
            "outside_witnesses = []", f"outside_witnesses = {json.dumps([witness.line])}"
        )
        settings.write_text(text)
        with running_federation(tmp_path) as federation:
            federation.publish_base()
            federation.enrol("archive").take_part(1)
            _settle(federation, witness)
        shutil.copytree(tmp_path / "coordinator", tmp_path / "backup")
        with running_federation(tmp_path) as federation:
            federation.enrol("hospital").take_part(2)
            federation.release()
            federation.coordinator.registry.issue(CertRevoke, owner="archive")
            _settle(federation, witness)
        yield Lost(tmp_path, witness)


def _entries(home: Path) -> list[tuple[int, bytes]]:
    with sqlite3.connect(home / "registry.sqlite") as connection:
        return connection.execute("SELECT leaf_index, note FROM entries ORDER BY leaf_index").fetchall()


def _said(text: str) -> str:
    return " ".join(text.split())


def test_a_home_that_is_older_than_what_a_witness_saw_does_not_serve(lost: Lost) -> None:
    lost.restore()
    refused = start("coordinator", "serve", "--home", lost.home)
    output, errors = refused.communicate(timeout=60)
    assert refused.returncode == 1
    assert "serving" not in output
    assert "has cosigned 9 entries, this log has 4" in _said(errors)
    assert "concord coordinator recover --from DIR" in _said(errors)
    assert len(_entries(lost.home)) == 4


@pytest.mark.parametrize("command", [["release"], ["revoke", "archive"]])
def test_nor_does_any_command_sign_in_it(lost: Lost, command: list[str]) -> None:
    lost.restore()
    refused = concord("coordinator", *command, "--home", lost.home)
    assert refused.returncode == 1
    assert "nothing is added to this log" in _said(refused.stderr)
    assert concord("coordinator", "status", "--home", lost.home).returncode == 0  # which signs nothing
    assert len(_entries(lost.home)) == 4


def test_a_witness_that_is_away_keeps_nobody_from_serving(lost: Lost, caplog: pytest.LogCaptureFixture) -> None:
    (away,) = (OutsideWitness(OutsideWitness.parse(lost.witness.line).witness, "http://127.0.0.1:1") for _ in "1")
    with open_home(lost.home) as coordinator:
        assert ask(coordinator.registry, [f"{away.witness} {away.address}"]) is None
    assert "cannot be reached" in caplog.text


@pytest.mark.parametrize("gone", [(), ("checkpoint",), ("checkpoint", "tile/entries/000.p/9")])
def test_an_older_database_beside_its_newer_files_is_refused(lost: Lost, gone: tuple[str, ...]) -> None:
    lost.restore(but=("public",))
    for name in gone:
        (lost.home / "public" / "log" / name).unlink()
    with (
        pytest.raises(ConflictError, match=r"holds 4 entries but .* Going on would fork the log"),
        open_home(lost.home),
    ):
        pass


def test_a_database_older_than_its_own_newest_checkpoint_is_refused(lost: Lost) -> None:
    """Entries were lost, and with them what is published; the checkpoint over them was not."""
    lost.restore()
    shutil.rmtree(lost.home / "public" / "log")
    with sqlite3.connect(lost.home / "registry.sqlite") as connection:
        connection.execute("DROP TRIGGER entries_no_delete")
        connection.execute("DELETE FROM entries WHERE leaf_index = 3")
    with pytest.raises(ConflictError, match="holds 3 entries but a checkpoint of 4 was signed"), open_home(lost.home):
        pass


def test_a_registry_is_rolled_forward_from_its_own_files(lost: Lost) -> None:
    newest = _entries(lost.home)
    lost.restore(but=("public",))
    done = concord("coordinator", "recover", "--home", lost.home, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["before"], result["after"], result["joined"], result["missing"]) == (4, 9, ["hospital"], [])
    assert _entries(lost.home) == newest
    assert audit(lost.home / "public", witnesses=[lost.witness.service.witness], quorum=1).holds
    with running_federation(lost.path) as federation:
        assert ask(federation.coordinator.registry, [lost.witness.line]) is None
        assert federation.release().owners == {1: "archive", 2: "hospital"}
        assert federation.coordinator.enrolment.latest_certificates()["archive"].is_revoked
    assert audit(lost.home / "public").holds


def test_a_whole_home_is_rolled_forward_from_a_copy(lost: Lost) -> None:
    newest, copy = _entries(lost.home), lost.path / "copy"
    shutil.copytree(lost.home / "public", copy)
    lost.restore()
    behind = concord("coordinator", "recover", "--home", lost.home)  # from its own files, which are as old
    assert behind.returncode == 1
    assert "nothing may be signed yet: " in _said(behind.stderr + behind.stdout)
    assert "has cosigned 9 entries, this log has 4" in _said(behind.stderr + behind.stdout)
    found = recover(lost.home, copy)
    assert (found.missing, found.still_behind) == ([], None)
    assert (found.without_certificate, found.with_certificate) == (["archive", "hospital"], [])
    report = audit(lost.home / "public")  # as it is now, with what the log names shown
    assert report.holds, report.findings[-1]
    before = _entries(lost.home)
    assert before == newest
    again = recover(lost.home, copy)
    assert (again.before, again.after, again.joined) == (9, 9, [])
    assert recover(lost.home, lost.path / "backup" / "public").after == 9  # never back
    assert _entries(lost.home) == before
    with running_federation(lost.path) as federation:
        federation.release()
    assert audit(lost.home / "public").holds


def test_files_that_are_nowhere_are_said(lost: Lost) -> None:
    copy = lost.path / "copy"
    shutil.copytree(lost.home / "public", copy)
    shutil.rmtree(copy / "objects")
    lost.restore()
    found = recover(lost.home, copy)
    assert found.after == 9
    assert found.missing


def _forked(lost: Lost) -> Path:
    """Published files of another history of the same log, as long as the true one."""
    lost.restore()
    settings = lost.home / "coordinator.toml"
    settings.write_text(settings.read_text().replace(json.dumps([lost.witness.line]), "[]"))
    with running_federation(lost.path) as federation:
        for _ in range(6):
            federation.coordinator.registry.issue(CertRevoke, owner="archive")
        assert federation.public
    return Path(shutil.copytree(lost.home / "public", lost.path / "fork"))


def test_what_the_registry_does_not_begin_is_refused(lost: Lost) -> None:
    shutil.copytree(lost.home, lost.path / "true")
    fork = _forked(lost)
    shutil.rmtree(lost.home)
    shutil.copytree(lost.path / "true", lost.home)
    before = _entries(lost.home)
    with pytest.raises(ConflictError, match="9 entries and the 10 that were published are two different logs"):
        recover(lost.home, fork)
    assert _entries(lost.home) == before


@pytest.mark.parametrize("what", ["checkpoint", "entries"])
def test_what_the_log_did_not_sign_is_refused(lost: Lost, what: str) -> None:
    copy = lost.path / "copy"
    shutil.copytree(lost.home / "public", copy)
    name = "checkpoint" if what == "checkpoint" else "tile/entries/000.p/9"
    damaged = copy / "log" / name
    before, _, after = damaged.read_bytes().rpartition(b"test.concord")
    damaged.write_bytes(before + b"best.concord" + after)
    lost.restore()
    with pytest.raises(VerificationError, match="step 1" if what == "checkpoint" else "step [34]"):
        recover(lost.home, copy)
    assert len(_entries(lost.home)) == 4


def test_a_contradiction_that_comes_later_stops_the_log(lost: Lost) -> None:
    """As where a database's copy that lags behind took over: owners keep what they said, nothing is forked."""
    with running_federation(lost.path) as federation:
        registry, owner = federation.coordinator.registry, _owner(federation)
        registry.stop_appending("the witness has seen more")
        for sign in (owner.opt_out, lambda: registry.issue(CertRevoke, owner="archive"), registry.publish):
            with pytest.raises(UnavailableError, match="nothing is added to this log: the witness has seen more"):
                sign()
        assert registry.size() == 9
        with owner.member() as member:
            assert len(member.chain.pending()) == 1  # it waits
    with running_federation(lost.path) as federation:  # started anew
        owner = _owner(federation)
        with owner.member() as member:
            assert member.client.watch()[1] == 9
        owner.opt_out()
        assert federation.coordinator.registry.size() == 10


def _owner(federation: Federation) -> Owner:
    """An owner who was told where the coordinator is now."""
    owner = federation.owner("hospital")
    settings = re.sub(
        r"(?m)^target = .*$", f'target = "127.0.0.1:{federation.ports[0]}"', owner.home.settings_file.read_text()
    )
    owner.home.settings_file.write_text(settings)
    return owner


def test_a_lost_log_is_begun_anew_under_another_name(tmp_path: Path) -> None:
    made = concord("coordinator", "init", "--federation", "test.concord", "--origin", "test.concord/log-2",
                   "--home", tmp_path / "home")  # fmt: skip
    assert made.returncode == 0, made.stderr
    checkpoint = (tmp_path / "home" / "public" / "log" / "checkpoint").read_text()
    assert checkpoint.splitlines()[0] == "test.concord/log-2"
