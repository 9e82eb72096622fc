"""Owners as witnesses: their daemons cosign what continues the log they know, and others ask for a quorum."""

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event

import pytest

from common.audit import audit
from common.audit_bundle import audit_bundle, export
from common.errors import ConflictError, NotPermittedError, UnavailableError, VerificationError
from common.trust.cosignature import Witness, cosign, cosigned
from common.trust.note import Checkpoint, Note, SigningKey, sign
from common.trust.statements import COORDINATOR
from common.trust.tiles import CHECKPOINT_NAME
from common.trust.verify import check_receipt
from owner_client.membership import Membership, cosign_checkpoint
from tests import commands
from tests.federation import Federation, Owner, running_federation

NAMES = ("archive", "hospital", "library")


@pytest.fixture
def three(tmp_path: Path) -> Iterator[Federation]:
    """A base and three owners."""
    with running_federation(tmp_path) as federation:
        federation.publish_base()
        for name in NAMES:
            federation.enrol(name)
        yield federation


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
    failed = audit(three.public, quorum=3).findings[-1]
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
        receipt = member.client.record(said.note)
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


def _cosign(member: Membership, text: str, *, at: datetime, key: SigningKey | None = None) -> None:
    key = key or member.witness
    assert key is not None
    member.client.cosign(bytes(Note(text, (*sign(text, key).signatures, cosign(text, key, at=at)))))


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
    with ThreadPoolExecutor(len(NAMES)) as pool:
        following = [pool.submit(follow, three.owner(name)) for name in NAMES]
        try:
            for name in NAMES:
                three.owner(name).consent()
        finally:
            done.set()
        for each in following:
            each.result()
    for name in NAMES:
        witness(three.owner(name))
    assert names(three) == sorted(NAMES)
    assert audit(three.public, quorum=3).holds


def test_the_log_of_cosignatures_only_grows(three: Federation) -> None:
    witness(three.owner("archive"))
    for action in ("UPDATE cosignatures SET line = ''", "DELETE FROM cosignatures"):
        with pytest.raises(Exception, match="append-only"), three.coordinator.store.transaction() as connection:
            connection.exec_driver_sql(action)


def test_a_key_line_of_an_owner_is_read_from_the_log(three: Federation) -> None:
    for known in three.coordinator.registry.head().witnesses:
        assert Witness.parse(str(known)) == known
