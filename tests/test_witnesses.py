"""Owners as witnesses: their daemons cosign what continues the log they know, and others ask for a quorum."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event

import pytest

from common.audit import audit
from common.audit_bundle import audit_bundle, export
from common.errors import ConflictError, NotPermittedError, UnavailableError, VerificationError
from common.trust.cosignature import Witness, cosign, cosigned
from common.trust.note import MAX_SIGNATURES, Checkpoint, Note, SigningKey, sign
from common.trust.statements import COORDINATOR, CertRevoke
from common.trust.tiles import CHECKPOINT_NAME, COSIGNED_NAME, format_bundle
from common.trust.verify import check_receipt
from coordinator.file_server import FileServer
from owner_client import egress
from owner_client.membership import Membership, cosign_checkpoint
from tests import commands
from tests.federation import THREE, Federation, Owner


def witness(owner: Owner) -> bool:
    """What the daemon does once: look, check, cosign."""
    with owner.member() as member:
        checkpoint, _ = member.client.watch()
        return cosign_checkpoint(member, checkpoint)


def names(federation: Federation) -> list[str]:
    """Who cosigned the published checkpoint."""
    note = Note.parse((federation.public / "log" / CHECKPOINT_NAME).read_bytes())
    return [name.rpartition("/")[2] for name in cosigned(note, federation.coordinator.registry.head().witnesses)]


def test_witnesses_cosign_what_is_published(three: Federation) -> None:
    assert names(three) == []
    assert witness(three.owner("hospital"))
    assert not witness(three.owner("hospital"))  # once is enough
    assert witness(three.owner("archive"))
    assert names(three) == ["archive", "hospital"]
    assert "(2 of 3 witnesses)" in audit(three.public).findings[0].found
    assert audit(three.public, quorum=2).holds
    (failed,) = audit(three.public, quorum=3).findings
    assert (failed.step, failed.holds) == (1, False)
    assert "2 of 3 witnesses cosigned; 3 are asked for" in failed.found
    three.owner("library").consent()  # a later checkpoint, which nobody cosigned yet
    assert names(three) == []
    assert witness(three.owner("library"))
    assert names(three) == ["library"]


def test_a_bundle_carries_cosignatures(three: Federation, tmp_path: Path) -> None:
    witness(three.owner("archive"))
    export(three.public, tmp_path / "bundle.zip")
    assert audit_bundle(tmp_path / "bundle.zip", quorum=1).holds
    assert not audit_bundle(tmp_path / "bundle.zip", quorum=2).holds


def test_receipts_carry_cosignatures(three: Federation) -> None:
    owner = three.owner("archive")
    owner.consent()
    witness(three.owner("hospital"))
    with owner.member() as member:
        said = member.chain.statements()[-1]
        receipt = member.client.record(egress.statement(owner.home.ledger, said, to="test"))
        proof, _ = check_receipt(member.root, receipt, entry=said.note)
    found = cosigned(Note.parse(proof.checkpoint), three.coordinator.registry.head().witnesses)
    assert list(found) == ["test.concord/witness/hospital"]


def test_an_auditor_names_the_witnesses_it_trusts(three: Federation, tmp_path: Path) -> None:
    witness(three.owner("archive"))
    known = {str(w).split("+")[0].rpartition("/")[2]: str(w) for w in three.coordinator.registry.head().witnesses}
    trusted = tmp_path / "witnesses"
    for who, status in (("archive", 0), ("hospital", 1)):
        trusted.write_text(f"# those I know\n{known[who]}\n")
        done = commands.concord("audit", "verify", str(three.public), "--quorum", "1", "--witnesses", str(trusted))
        assert done.returncode == status, done.stdout + done.stderr
    assert "0 of 1 witnesses cosigned; 1 are asked for" in done.stdout + done.stderr


def test_an_owner_waits_for_its_quorum_before_it_signs(three: Federation) -> None:
    owner = three.owner("archive")
    lines = [str(each) for each in three.coordinator.registry.head().witnesses]
    with owner.home.settings_file.open("a") as settings:
        settings.write(f"witnesses = {lines}\nquorum = 2\n")
    base = owner.base()
    with pytest.raises(UnavailableError, match=r"0 of 3 witnesses cosigned the log of 4 .*you ask for 2"):
        owner.consent()
    witness(three.owner("hospital"))
    with pytest.raises(UnavailableError, match="1 of 3 witnesses"):
        owner.consent()
    witness(three.owner("library"))
    assert owner.consent().expert.base_digest == base.digest


def _growing(federation: Federation) -> int:
    """The log grows after each look of a witness, so no checkpoint has two lines; its size at the first look."""
    size = federation.coordinator.registry.size()
    for name in ("hospital", "library"):
        witness(federation.owner(name))
        federation.coordinator.registry.issue(CertRevoke, owner=name)
    return size


def test_a_log_that_grows_under_its_witnesses_finds_its_quorum(three: Federation, tmp_path: Path) -> None:
    owner = three.owner("hospital")
    owner.consent()
    size = _growing(three)
    assert names(three) == []
    found = audit(three.public, quorum=2).findings[0]
    assert found.holds
    assert (
        f"cosigned up to {size} entries by test.concord/witness/hospital, test.concord/witness/library" in found.found
    )
    assert "(2 of 3 witnesses)" in found.found
    export(three.public, tmp_path / "bundle.zip")
    with FileServer(three.public, host="127.0.0.1", port=0) as server:
        for where in (tmp_path / "bundle.zip", f"http://127.0.0.1:{server.port}"):
            assert f"up to {size} entries by" in audit_bundle(where, quorum=2).findings[0].found
    late = audit(three.public, quorum=2, now=datetime.now(UTC) + timedelta(hours=2)).findings[-1]
    assert (late.step, late.holds) == (1, False)
    assert f"2 of 3 witnesses cosigned {size} of {size + 2} entries; entry {size} of" in late.found


def test_an_owner_finds_its_quorum_while_the_log_grows(three: Federation) -> None:
    owner = three.owner("archive")
    owner.patience_s = 60
    known = three.coordinator.registry.head().witnesses
    with ThreadPoolExecutor(1) as pool, owner.member() as member:
        member.client.watch()
        size = three.coordinator.registry.size()
        three.owner("hospital").consent()
        waiting = pool.submit(member.client.wait_for_quorum, known, 2)
        deadline = datetime.now(UTC) + timedelta(seconds=30)
        while (pinned := member.client.pinned()) is None or pinned.size == size:  # until it has had its first look
            assert datetime.now(UTC) < deadline
        _growing(three)
        waiting.result(60)
    assert names(three) == []


@pytest.mark.parametrize(("size", "step"), [(2, 2), (4, 2), (9, None)])
def test_a_cosigned_checkpoint_of_another_history_is_flagged(three: Federation, size: int, step: int | None) -> None:
    """Whoever asks for a quorum or not: the log signed two histories. Of a longer log than is shown it says nothing."""
    root = three.coordinator.registry.root
    key = SigningKey.from_pem((three.coordinator.home.keys / "log.key").read_bytes(), name=root.log.name)
    forged = bytes(sign(str(Checkpoint(root.origin, size, bytes(32))), key))
    (three.public / "log" / COSIGNED_NAME).write_bytes(format_bundle([forged]))
    report = audit(three.coordinator.home.public)
    assert [finding.step for finding in report.findings if not finding.holds] == ([] if step is None else [step])


@pytest.mark.parametrize("data", [b"x", b"\0\1x", format_bundle([b"no note"])])
def test_cosigned_checkpoints_that_are_none_are_flagged(three: Federation, data: bytes) -> None:
    (three.public / "log" / COSIGNED_NAME).write_bytes(data)
    failed = audit(three.coordinator.home.public).findings[-1]
    assert (failed.step, failed.holds) == (1, False)


def test_a_witness_that_looks_again_says_until_when(three: Federation) -> None:
    """On a quiet log the newest line of a witness counts; one that is hardly newer is not kept."""
    registry, key = three.coordinator.registry, SigningKey.generate("w.example/w1")
    text, now = Note.parse(registry.checkpoint()).text, datetime.now(UTC).replace(microsecond=0)
    for hours_ago, kept in ((3, 3), (2, 2), (2.5, 2), (0.1, 0.1), (0, 0.1)):
        line = cosign(text, key, at=now - timedelta(hours=hours_ago))
        registry.keep_cosignature(Note(text, (*sign(text, key).signatures, line)), Witness.of(key))
        for shown in (registry.checkpoint(), three.coordinator.log.cosigned()[0]):
            assert cosigned(Note.parse(shown), [Witness.of(key)]) == {"w.example/w1": now - timedelta(hours=kept)}


def test_an_owners_daemon_looks_again_within_hours(three: Federation) -> None:
    with three.owner("archive").member() as member:
        checkpoint, _ = member.client.watch()
        text = Note.parse(checkpoint).text
        _cosign(member, text, at=datetime.now(UTC) - timedelta(hours=2))
        shown, _ = member.client.watch()
        assert cosign_checkpoint(member, shown)
        again, _ = member.client.watch()
        assert not cosign_checkpoint(member, again)


def test_more_witnesses_than_a_note_has_lines_find_their_quorum(three: Federation) -> None:
    registry = three.coordinator.registry
    text = Note.parse(registry.checkpoint()).text
    keys = [SigningKey.generate(f"w.example/{number}") for number in range(MAX_SIGNATURES + 2)]
    for key in keys:
        line = cosign(text, key, at=datetime.now(UTC))
        registry.keep_cosignature(Note(text, (*sign(text, key).signatures, line)), Witness.of(key))
    assert audit(three.public, witnesses=[Witness.of(key) for key in keys], quorum=len(keys)).holds


def _cosign(member: Membership, text: str, *, at: datetime, key: SigningKey | None = None) -> None:
    key = key or member.witness
    assert key is not None
    data = bytes(Note(text, (*sign(text, key).signatures, cosign(text, key, at=at))))
    member.client.cosign(egress.message(member.home.ledger, "cosignature", name="checkpoint", data=data, to="test"))


def test_what_is_no_cosignature_of_this_log_is_refused(three: Federation) -> None:
    now = datetime.now(UTC)
    with three.owner("archive").member() as member, three.owner("hospital").member() as other:
        text = Note.parse(member.client.watch()[0]).text
        head = Checkpoint.parse(text)
        forked = str(Checkpoint(head.origin, head.size, bytes(32)))
        elsewhere = [str(Checkpoint(head.origin, 99, head.root)), str(Checkpoint("other", head.size, b"x" * 32))]
        for wrong in (forked, *elsewhere):
            with pytest.raises(ConflictError, match="is not this log's"):
                _cosign(member, wrong, at=now)
        with pytest.raises(VerificationError, match=r"no cosignature by .*archive"):
            _cosign(member, text, at=now, key=other.witness)
        with pytest.raises(VerificationError, match="cosigned at"):
            _cosign(member, text, at=now + timedelta(hours=1))
    assert names(three) == []


def test_who_has_no_witness_cosigns_nothing(three: Federation) -> None:
    with three.owner("archive").member() as member:
        checkpoint, _ = member.client.watch()
    for caller in (COORDINATOR, "nobody"):
        with pytest.raises(NotPermittedError, match=f"names no witness key of {caller}"):
            three.coordinator.registry.cosign(checkpoint, caller=caller)


def test_a_witness_that_saw_another_log_does_not_cosign(three: Federation, tmp_path: Path) -> None:
    owner = three.owner("archive")
    with owner.member() as member:
        member.client.watch()
        seen = Checkpoint.parse(Note.parse(owner.home.pinned.read_bytes()).text)
        key = SigningKey.from_pem((three.coordinator.home.keys / "log.key").read_bytes(), name=member.root.log.name)
        forked = str(Checkpoint(seen.origin, seen.size + 1, bytes(32)))
        shutil.copy(owner.home.pinned, tmp_path / "seen")
        owner.home.pinned.write_bytes(bytes(sign(forked, key)))
        with pytest.raises(VerificationError, match="both checkpoints are kept"):
            member.client.watch()
    assert names(three) == []
    assert len(list(owner.home.evidence.iterdir())) == 1


def test_witnesses_at_once_while_the_log_grows(three: Federation) -> None:
    def follow(owner: Owner) -> None:
        while not done.is_set():
            witness(owner)

    done = Event()
    with ThreadPoolExecutor(len(THREE)) as pool:
        following = [pool.submit(follow, three.owner(name)) for name in THREE]
        try:
            for name in THREE:
                three.owner(name).consent()
        finally:
            done.set()
        for each in following:
            each.result()
    for name in THREE:
        witness(three.owner(name))
    assert names(three) == sorted(THREE)
    assert audit(three.public, quorum=3).holds


def test_the_log_of_cosignatures_only_grows(three: Federation) -> None:
    witness(three.owner("archive"))
    for action in ("UPDATE cosignatures SET line = ''", "DELETE FROM cosignatures"):
        with pytest.raises(Exception, match="append-only"), three.coordinator.store.transaction() as connection:
            connection.exec_driver_sql(action)


def test_a_key_line_of_an_owner_is_read_from_the_log(three: Federation) -> None:
    for known in three.coordinator.registry.head().witnesses:
        assert Witness.parse(str(known)) == known
