"""An auditor who was invited: joins, looks, fetches everything and audits it at home; it may do nothing else."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from common import audit_online
from common.audit import audit
from common.audit_online import AuditorHome, connect, enrol, fetch, look
from common.errors import (
    ConflictError,
    MalformedError,
    NotFoundError,
    NotPermittedError,
    TooLargeError,
    VerificationError,
)
from common.trust.note import Checkpoint, SigningKey, sign
from common.trust.root import TrustedRoot
from tests.commands import concord
from tests.federation import Federation


def _joined(federation: Federation, path: Path, *, party: str = "auditor/kim") -> AuditorHome:
    home = AuditorHome(path)
    enrol(home, federation.invitation(party))
    return home


def _quiet(done: int, total: int) -> None:
    pass


@pytest.fixture
def lively(consortium: Federation) -> Federation:
    """A consortium with two releases, one of them without somebody."""
    for seed, name in enumerate(("archive", "hospital")):
        consortium.enrol(name).take_part(seed)
    consortium.release()
    consortium.owners["archive"].opt_out()
    consortium.release()
    return consortium


def test_what_is_fetched_passes_the_audit(lively: Federation, tmp_path: Path) -> None:
    home, copy = _joined(lively, tmp_path / "auditor"), tmp_path / "copy"
    lively.coordinator.log.sign_head()
    head, seen = look(home)
    assert (head.size, seen) == (lively.coordinator.registry.head().size, None)
    assert fetch(home, copy, most_bytes=10**9, on_bytes=_quiet) > 20
    root = TrustedRoot.parse(home.trusted_root.read_bytes())
    report = audit(copy, root=root, last_seen=home.seen.read_bytes())
    assert report.holds, report.findings
    lively.enrol("library")
    lively.coordinator.log.sign_head()
    head, seen = look(home)
    assert seen is not None
    assert head.size == seen.size + 1
    fetch(home, copy, most_bytes=10**9, on_bytes=_quiet)
    assert audit(copy, root=root, last_seen=home.seen.read_bytes()).holds


def test_objects_that_are_here_are_not_read_again(lively: Federation, tmp_path: Path) -> None:
    home, copy = _joined(lively, tmp_path / "auditor"), tmp_path / "copy"
    fetch(home, copy, most_bytes=10**9, on_bytes=_quiet)
    kept = {path: path.stat().st_ino for path in (copy / "objects").iterdir()}
    fetch(home, copy, most_bytes=10**9, on_bytes=_quiet)
    assert {path: path.stat().st_ino for path in (copy / "objects").iterdir()} == kept


def test_a_log_that_forgot_something_is_noticed(consortium: Federation, tmp_path: Path) -> None:
    home = _joined(consortium, tmp_path / "auditor")
    head, _ = look(home)
    key = SigningKey.from_pem(
        (consortium.coordinator.home.keys / "log.key").read_bytes(), name=consortium.coordinator.registry.root.log.name
    )
    for other in (Checkpoint(head.origin, head.size + 1, bytes(32)), Checkpoint(head.origin, head.size, bytes(32))):
        home.seen.write_bytes(bytes(sign(str(other), key)))
        with pytest.raises(VerificationError):
            look(home)
        assert (home.path / "contradiction").exists()
        assert home.seen.read_bytes() == bytes(sign(str(other), key))


def test_more_than_is_allowed_is_not_fetched(lively: Federation, tmp_path: Path) -> None:
    home = _joined(lively, tmp_path / "auditor")
    with pytest.raises(TooLargeError, match="allow more with --most-gigabytes"):
        fetch(home, tmp_path / "copy", most_bytes=1000, on_bytes=_quiet)


@pytest.mark.parametrize(
    "name",
    ["../registry.sqlite", "/etc/hostname", "log/../../keys/log.key", "", ".", "log", "log//checkpoint", "objects/.x"],
)
def test_nothing_but_published_files_is_read(name: str, lively: Federation, tmp_path: Path) -> None:
    (lively.coordinator.publication.path / "objects" / ".x").write_text("hidden")
    with (
        connect(_joined(lively, tmp_path / "auditor")) as calls,
        pytest.raises(NotFoundError, match="is not published"),
    ):
        list(calls.read(name))


@pytest.mark.parametrize("name", ["../outside", "/outside", "a/../../outside", "a//b", ".hidden", "a/.b", ""])
def test_a_coordinator_that_lies_about_names_writes_nothing_elsewhere(
    name: str, lively: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = _joined(lively, tmp_path / "auditor")
    monkeypatch.setattr(audit_online.AuditorCalls, "listed", lambda _: [(name, 1)])
    with pytest.raises(MalformedError, match="which it cannot have"):
        fetch(home, tmp_path / "copy", most_bytes=10**9, on_bytes=_quiet)
    assert not (tmp_path / "outside").exists()


def test_a_certificate_is_renewed_after_half_of_its_life(consortium: Federation, tmp_path: Path) -> None:
    home = _joined(consortium, tmp_path / "auditor")
    before = home.tls.read_bytes()
    look(home)
    assert home.tls.read_bytes() == before
    with pytest.MonkeyPatch.context() as patched:
        late = datetime.now(UTC) + timedelta(hours=13)

        class Clock(datetime):
            """Thirteen hours on."""

            @classmethod
            def now(cls, tz: Any = None) -> Any:
                return late

        patched.setattr(audit_online, "datetime", Clock)
        look(home)
    assert home.tls.read_bytes() != before
    look(home)


def test_an_invitation_whose_reply_was_lost_is_redeemed_again(consortium: Federation, tmp_path: Path) -> None:
    home, invitation = AuditorHome(tmp_path / "auditor"), consortium.invitation("auditor/kim")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(audit_online, "write_atomic", _cut_off)
        with pytest.raises(KeyboardInterrupt):
            enrol(home, invitation)
    assert enrol(home, invitation) == "auditor/kim"
    look(home)


def _cut_off(path: Path, data: bytes) -> None:
    raise KeyboardInterrupt


def test_a_home_is_one_partys(consortium: Federation, tmp_path: Path) -> None:
    home = _joined(consortium, tmp_path / "auditor")
    with pytest.raises(ConflictError, match="another party's"):
        enrol(home, consortium.invitation("auditor/other"))
    with pytest.raises(MalformedError, match="an owner joins with"):
        enrol(AuditorHome(tmp_path / "other"), consortium.invitation("archive"))


def test_an_auditor_that_was_revoked_reads_nothing(consortium: Federation, tmp_path: Path) -> None:
    home = _joined(consortium, tmp_path / "auditor")
    done = concord("coordinator", "revoke", "auditor/kim", "--home", consortium.coordinator.home.path)
    assert done.returncode == 0, done.stderr
    with pytest.raises(NotPermittedError, match="revoked"):
        look(home)


def test_commands_join_look_and_fetch(lively: Federation, tmp_path: Path) -> None:
    invitation, home = tmp_path / "kim.invitation", ("--home", tmp_path / "auditor")

    def do(*words: str | Path) -> Any:
        done = concord(*words, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    do("coordinator", "invite", "kim", "--role", "auditor", "--output", invitation,
       "--home", lively.coordinator.home.path)  # fmt: skip
    text = json.loads(invitation.read_text())
    text |= {"target": f"127.0.0.1:{lively.ports[0]}", "enrolment_target": f"127.0.0.1:{lively.ports[1]}"}
    assert do("audit", "enrol", "--invitation", invitation, *home)["party"] == "auditor/kim"
    assert do("audit", "look", *home)["entries"] > 5
    fetched = do("audit", "fetch", tmp_path / "copy", *home)
    assert do("audit", "verify", tmp_path / "copy", "--root", tmp_path / "auditor" / "trusted_root.json")["audit"]
    assert fetched["files"] > 20
    parties = do("coordinator", "owners", "--home", lively.coordinator.home.path)["parties"]
    assert {each["party"]: each["role"] for each in parties}["kim"] == "auditor"
