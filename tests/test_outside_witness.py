"""Outside witnesses over real HTTP: what they cosign, what they refuse, and the receipts that they give owners."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.audit import Finding, audit
from common.errors import (
    ConcordError,
    ConflictError,
    MalformedError,
    NotFoundError,
    UnavailableError,
    VerificationError,
)
from common.http import post
from common.trust import merkle
from common.trust.cosignature import Witness, cosigned, sign_receipt
from common.trust.evidence import Evidence, judge
from common.trust.note import Checkpoint, Note, SigningKey, sign
from common.trust.receipts import GRACE, parse_receipt
from common.trust.root import TrustedRoot
from common.trust.statements import ConsentRevoke, format_time, new_record_id, sign_statement
from common.trust.tlog_witness import AddCheckpoint
from common.witness import WitnessHome, WitnessService, make_server
from coordinator.outside_witnesses import Bringing, OutsideWitness
from owner_client import revocations
from tests.commands import concord
from tests.federation import FEDERATION, Federation, Owner

NAME, ORIGIN = "witness.example/w1", "made.example/log"
KEY = SigningKey.generate(ORIGIN)
MADE = TrustedRoot("made.example", ORIGIN, KEY.verifier, SigningKey.generate("made.example/coordinator").verifier)
NOTES = [b"%d" % number for number in range(9)]
FORK = [*NOTES[:3], b"other", *NOTES[4:]]


def _checkpoint(notes: list[bytes], *, key: SigningKey = KEY) -> bytes:
    running = merkle.RunningRoot()
    for note in notes:
        running.append(merkle.leaf_hash(note))
    return bytes(sign(str(Checkpoint(ORIGIN, len(notes), running.root)), key))


def _request(old: int, new: int, notes: list[bytes] = NOTES, *, key: SigningKey = KEY) -> bytes:
    running, stored = merkle.RunningRoot(), list[bytes]()
    for note in notes[:new]:
        stored += running.append(merkle.leaf_hash(note))
    proof = merkle.consistency_proof(old, new, lambda places: [stored[p] for p in places]) if old else ()
    return bytes(AddCheckpoint(old, proof, _checkpoint(notes[:new], key=key)))


@dataclass(frozen=True)
class Running:
    """A witness that serves."""

    home: WitnessHome
    service: WitnessService
    address: str

    @property
    def line(self) -> str:
        """As a coordinator's settings name it."""
        return f"{self.service.witness} {self.address}"

    def add(self, request: bytes) -> tuple[int, str, bytes]:
        """POST a request."""
        return post(f"{self.address}/add-checkpoint", request, most=10_000)


@contextmanager
def _serving(home: WitnessHome) -> Iterator[Running]:
    service = WitnessService(home)
    server = make_server(service, host="127.0.0.1", port=0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield Running(home, service, f"http://127.0.0.1:{server.server_address[1]}")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def witness(tmp_path: Path) -> Iterator[Running]:
    """A witness of a made log."""
    home = WitnessHome.create(tmp_path / "witness", name=NAME)
    home.watch(MADE)
    with _serving(home) as running:
        yield running


# The witness


def _is_cosigned(answer: tuple[int, str, bytes], notes: list[bytes], witness: Witness) -> bool:
    status, _, body = answer
    text = Note.parse(_checkpoint(notes)).text
    return status == 200 and NAME in cosigned(Note.parse(f"{text}\n".encode() + body), [witness])


def test_what_continues_what_was_seen_is_cosigned(witness: Running) -> None:
    for old, new in ((0, 2), (2, 2), (2, 3), (3, 8), (8, 9), (9, 9)):
        assert _is_cosigned(witness.add(_request(old, new)), NOTES[:new], witness.service.witness)


def test_what_was_seen_is_known_after_a_restart(witness: Running) -> None:
    assert witness.add(_request(0, 5))[0] == 200
    with _serving(witness.home) as again:
        assert again.add(_request(0, 8)) == (409, "text/x.tlog.size", b"5\n")
        assert again.add(_request(5, 8))[0] == 200


@pytest.mark.parametrize(
    ("old", "new", "notes", "status"),
    [
        (5, 8, FORK, 422),  # another history
        (5, 5, FORK, 409),  # another root of the same size
        (0, 8, FORK, 409),  # as if nothing had been seen
        (3, 8, FORK, 409),
        (0, 3, NOTES, 409),  # a rollback
        (3, 3, NOTES, 409),
        (3, 8, NOTES, 409),  # true, but it starts elsewhere
    ],
)
def test_a_fork_and_a_rollback_are_refused(
    witness: Running, old: int, new: int, notes: list[bytes], status: int
) -> None:
    assert witness.add(_request(0, 5))[0] == 200
    found, kind, body = witness.add(_request(old, new, notes))
    assert found == status
    if status == 409:
        assert (kind, body) == ("text/x.tlog.size", b"5\n")
    assert witness.add(_request(5, 8))[0] == 200  # nothing of it was taken


def test_a_fork_leaves_evidence_that_convinces_a_third_person(witness: Running, tmp_path: Path) -> None:
    assert witness.add(_request(0, 5))[0] == 200
    assert witness.add(_request(5, 5, FORK))[0] == 409
    (file,) = (witness.home.path / "evidence").iterdir()
    (tmp_path / "root.json").write_bytes(bytes(MADE))
    judged = concord("audit", "evidence", file, "--root", tmp_path / "root.json")
    assert judged.returncode == 0, judged.stderr
    assert "signed two different logs of 5 entries" in " ".join(judged.stdout.split())


@pytest.mark.parametrize(
    ("request_of", "status", "why"),
    [
        (lambda: _request(0, 5, key=SigningKey.generate(ORIGIN)), 403, "step 1"),
        (lambda: _request(0, 5).replace(b"made.example/log", b"what.example/log"), 404, "does not watch"),
        (lambda: b"", 400, "request"),
        (lambda: b"old 0\n" + _request(0, 5), 400, "request"),
        (lambda: _request(0, 5).replace(b"old 0", b"old 00"), 400, "canonical"),
        (lambda: _request(0, 5).replace(b"old 0", b"old -1"), 400, "no size"),
        (lambda: b"old 1" + b"\nAAAA" + _request(0, 5)[5:], 400, "no size and proof"),
        (lambda: b"old 7" + _request(0, 5)[5:], 400, "from 7 entries to 5"),
        (lambda: b"x" * 100_000, 413, "at most"),
        (lambda: b"old 0\n" + b"A" * 43 + b"=" + _request(0, 5)[5:], 422, "empty"),
    ],
)
def test_what_is_no_request_is_refused(
    witness: Running, request_of: Callable[[], bytes], status: int, why: str
) -> None:
    found, _, body = witness.add(request_of())
    assert (found, why in body.decode()) == (status, True), body
    assert post(f"{witness.address}/else", b"", most=100)[0] == 404
    assert witness.add(_request(0, 5))[0] == 200


@pytest.mark.parametrize(
    ("head", "answer"),
    [
        (b"POST /add-checkpoint HTTP/1.1\r\nContent-Length: " + b"9" * 6000 + b"\r\n\r\n", b"413"),
        (b"POST /add-checkpoint HTTP/1.1\r\nContent-Length: -1\r\n\r\n", b"400"),
        (b"POST /add-checkpoint HTTP/1.1\r\n\r\n", b"400"),
        (b"nonsense\r\n\r\n", b"400"),
    ],
)
def test_a_request_that_lies_about_itself_is_refused(
    witness: Running, head: bytes, answer: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    host, port = witness.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(head)
        assert answer in connection.makefile("rb").read()
    with socket.create_connection((host, int(port))) as gone:
        gone.sendall(b"POST /add-checkpoint HTTP/1.1\r\nContent-Length: 100\r\n\r\n")
    assert witness.add(_request(0, 5))[0] == 200
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_a_witness_that_disagrees_is_said_once_and_never_taken_for_agreement(
    federation: Federation, outside: OutsideWitness, caplog: pytest.LogCaptureFixture
) -> None:
    federation.publish_base()
    root, key = federation.coordinator.registry.root, federation.coordinator.home.keys / "log.key"
    fork = Checkpoint(root.origin, federation.coordinator.registry.head().size, b"x" * 32)
    signed = bytes(sign(str(fork), SigningKey.from_pem(key.read_bytes(), name=root.log.name)))
    shown = post(f"{outside.address}/add-checkpoint", bytes(AddCheckpoint(0, (), signed)), most=9_999)
    assert shown[0] == 200  # the witness saw another log of the same size before
    for _ in range(3):
        with pytest.raises(ConflictError, match="has seen a log that this one"):
            _bring(federation, outside)
    bringing = Bringing(federation.coordinator.registry, [outside], every_s=1)
    for _ in range(3):
        bringing.bring_to_all()
    assert len([record for record in caplog.records if "Nothing is added to the log" in record.getMessage()]) == 1
    with pytest.raises(UnavailableError, match=r"nothing is added to this log: .* has seen a log that"):
        federation.enrol("archive")
    assert federation.coordinator.registry.size() == fork.size
    assert not audit(federation.public, witnesses=[outside.witness], quorum=1).holds


@given(st.binary(max_size=300))
def test_a_request_is_read_whole_or_refused(data: bytes) -> None:
    with suppress(MalformedError):
        assert bytes(AddCheckpoint.parse(data)) == data


# The coordinator's side


@pytest.fixture
def outside(federation: Federation, witness: Running) -> OutsideWitness:
    """The witness as a coordinator knows it that it watches."""
    witness.home.watch(federation.coordinator.registry.root)
    witness.service._roots |= {federation.coordinator.registry.root.origin: federation.coordinator.registry.root}
    return OutsideWitness.parse(witness.line)


def _bring(federation: Federation, outside: OutsideWitness) -> bool:
    return outside.bring(federation.coordinator.registry)


def test_new_checkpoints_are_cosigned_and_published(federation: Federation, outside: OutsideWitness) -> None:
    federation.publish_base()
    assert _bring(federation, outside)
    assert not _bring(federation, outside)
    federation.enrol("archive")
    assert _bring(federation, outside)
    assert audit(federation.public, witnesses=[outside.witness], quorum=1).holds
    forgetful = OutsideWitness(outside.witness, outside.address)  # a coordinator that was started anew
    federation.enrol("hospital")
    assert "cosigned up to 2 entries by" in audit(federation.public, witnesses=[outside.witness]).findings[0].found
    assert _bring(federation, forgetful)
    assert audit(federation.public, witnesses=[outside.witness], quorum=1).holds


def test_a_quiet_log_is_cosigned_again(federation: Federation, outside: OutsideWitness) -> None:
    assert _bring(federation, outside)
    assert not _bring(federation, outside)
    outside.cosigned_at -= 3600
    assert _bring(federation, outside)


def test_a_serving_coordinator_brings_them_by_itself(federation: Federation, outside: OutsideWitness) -> None:
    federation.publish_base()
    with Bringing(federation.coordinator.registry, [outside], every_s=0.01):
        deadline = datetime.now(UTC) + timedelta(seconds=30)
        while not audit(federation.public, witnesses=[outside.witness], quorum=1).holds:
            assert datetime.now(UTC) < deadline


def test_a_coordinator_that_the_witness_contradicts_says_so(federation: Federation, outside: OutsideWitness) -> None:
    federation.publish_base()
    assert _bring(federation, outside)
    ahead = OutsideWitness(outside.witness, outside.address, size=7)  # it has seen more of it than there is
    with pytest.raises(ConflictError, match="rolled back"):
        _bring(federation, ahead)


def test_a_witness_that_is_not_there_or_answers_nonsense_is_said(federation: Federation, witness: Running) -> None:
    federation.publish_base()
    stranger = OutsideWitness.parse(witness.line)  # it does not watch this log
    with pytest.raises(UnavailableError, match="answers 404"):
        _bring(federation, stranger)
    gone = OutsideWitness.parse(f"{witness.service.witness} http://127.0.0.1:9")
    with pytest.raises(UnavailableError, match="cannot be reached"):
        _bring(federation, gone)
    for line in ("", "key", f"{witness.service.witness}", *(f"{witness.service.witness} {address}" for address in
                 ("ftp://w", "http://[::1", "http://w:port", "http://"))):  # fmt: skip
        with pytest.raises(MalformedError):
            OutsideWitness.parse(line)


def test_a_cosignature_by_another_key_is_not_taken(federation: Federation, outside: OutsideWitness) -> None:
    federation.publish_base()
    another = Witness.of(SigningKey.generate(NAME))
    with pytest.raises(VerificationError, match="no cosignature by"):
        _bring(federation, OutsideWitness(another, outside.address))


# Evidence


def _larger() -> Evidence:
    return Evidence((_checkpoint(NOTES[:5]), _checkpoint(FORK)))


def test_evidence_of_two_sizes_is_judged_by_the_entries() -> None:
    with pytest.raises(VerificationError, match="give the published log as well"):
        judge(_larger(), MADE)
    assert "does not continue it" in judge(_larger(), MADE, entries=FORK)
    with pytest.raises(VerificationError, match="are not those of the checkpoint"):
        judge(_larger(), MADE, entries=NOTES)
    honest = Evidence((_checkpoint(NOTES[:5]), _checkpoint(NOTES)))
    with pytest.raises(VerificationError, match="proves nothing"):
        judge(honest, MADE, entries=NOTES)
    with pytest.raises(VerificationError, match="same checkpoint"):
        judge(Evidence((_checkpoint(NOTES), _checkpoint(NOTES))), MADE)


def test_evidence_that_another_key_signed_proves_nothing() -> None:
    forged = _checkpoint(FORK, key=SigningKey.generate(ORIGIN))
    with pytest.raises(VerificationError, match="step 1"):
        judge(Evidence((_checkpoint(NOTES), forged)), MADE)


def test_evidence_is_read_back_and_nothing_else() -> None:
    data = bytes(_larger())
    assert Evidence.parse(data) == _larger()
    for wrong in (b"{}", b"[]", data.replace(b"evidence", b"gossip"), data.replace(b'"proof":[]', b'"proof":["x"]')):
        with pytest.raises(MalformedError):
            Evidence.parse(wrong)


# Receipts


def test_a_revocation_that_a_coordinator_drops_is_flagged(
    federation: Federation, outside: OutsideWitness, tmp_path: Path
) -> None:
    federation.publish_base()
    owner = federation.enrol("archive")
    owner.take_part(seed=0)
    federation.stop()
    with pytest.raises(ConcordError):
        owner.opt_out()
    ((receipt, taken),) = revocations.hand_over(owner.home, outside.witness, outside.address)
    assert revocations.hand_over(owner.home, outside.witness, outside.address) == [(receipt, taken)]  # no later time
    data = receipt.read_bytes()
    known = {"witnesses": [outside.witness], "receipts": {"r": data}}
    assert "r is owed from" in audit(federation.public, now=taken, **known).findings[5].found
    assert audit(federation.public, now=taken + GRACE, **known).holds
    failed = audit(federation.public, now=taken + GRACE + timedelta(seconds=2), **known).findings[-1]
    assert (failed.step, failed.holds) == (6, False)
    assert "of archive is not in the log, although witness.example/w1 took it on" in failed.found
    federation.start()
    owner.opt_out()
    late = audit(federation.public, now=taken + 2 * GRACE, **known)
    assert late.holds
    assert "1 of 1 revocations with a receipt are in the log" in late.findings[5].found
    keys = tmp_path / "witnesses"
    keys.write_text(f"{outside.witness}\n")
    verified = concord("audit", "verify", federation.public, "--receipt", receipt, "--witnesses", keys)
    assert verified.returncode == 0, verified.stderr


def test_a_coordinator_that_refuses_revocations_does_not_escape_their_receipts(
    federation: Federation, outside: OutsideWitness, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation.publish_base()
    owner = federation.enrol("archive")
    owner.take_part(seed=0)
    with monkeypatch.context() as patched:
        patched.setattr(federation.coordinator.registry, "record", _refuse)
        with pytest.raises(ConflictError, match=r"another year\. Your revocation stays signed"):
            owner.opt_out()
        ((receipt, taken),) = revocations.hand_over(owner.home, outside.witness, outside.address)
        with pytest.raises(ConflictError, match="another year"):
            owner.consent()
    known = {"witnesses": [outside.witness], "receipts": {"r": receipt.read_bytes()}}
    failed = audit(federation.public, now=taken + GRACE + timedelta(seconds=2), **known).findings[-1]
    assert (failed.step, "although witness.example/w1 took it" in failed.found) == (6, True)
    owner.opt_out()  # what waited is sent
    assert audit(federation.public, now=taken + 2 * GRACE, **known).holds


def _refuse(*_: object, **__: object) -> bytes:
    raise ConflictError("come back another year")


def test_a_receipt_is_a_witnesss_own_and_for_a_revocation(
    federation: Federation, outside: OutsideWitness, witness: Running
) -> None:
    federation.publish_base()
    owner = federation.enrol("archive")
    with pytest.raises(NotFoundError, match="nothing was revoked"):
        revocations.hand_over(owner.home, outside.witness, outside.address)
    owner.consent()
    (consent,) = (path for path in owner.home.statements.glob("*.note") if b"consent.grant" in path.read_bytes())
    status, _, body = post(f"{witness.address}/add-revocation", consent.read_bytes(), most=500)
    assert (status, b"witnesses take revocations, not consent.grant" in body) == (400, True)
    owner.opt_out()
    ((receipt, _),) = revocations.hand_over(owner.home, outside.witness, outside.address)
    with pytest.raises(VerificationError, match="no witness that is trusted here"):
        parse_receipt(receipt.read_bytes(), [Witness.of(SigningKey.generate("another.example"))])
    with pytest.raises(VerificationError, match="no witness that is trusted here"):
        revocations.hand_over(owner.home, Witness.of(SigningKey.generate("another.example")), outside.address)
    changed = receipt.read_bytes().replace(b"future", b"futura")
    with pytest.raises(ConcordError):
        parse_receipt(changed, [outside.witness])
    with pytest.raises(MalformedError, match="r is no receipt that counts here"):
        audit(federation.public, witnesses=[outside.witness], receipts={"r": changed})


def _revocation(federation: Federation, key: SigningKey, **fields: object) -> bytes:
    """A revocation of the archive's consent that could be the log's next entry, by whatever key."""
    history, root = federation.coordinator.registry.head(), federation.coordinator.registry.root
    said = {
        "federation": root.federation, "origin": root.origin, "party": "archive", "key_id": key.verifier.key_id,
        "record_id": new_record_id(datetime.now(UTC)), "seq": history.parties["archive"].next_seq,
        "prev": history.parties["archive"].head, "issued_at": format_time(datetime.now(UTC)),
        "grant_id": next(iter(history.grants)), "effect": "future", "deadline_s": 0,
    }  # fmt: skip
    return sign_statement(ConsentRevoke.model_validate(said | fields), key)


def _key(owner: Owner, kind: str) -> SigningKey:
    file = owner.home.signing_key if kind == "owner" else owner.home.witness_key
    return SigningKey.from_pem(file.read_bytes(), name=f"{FEDERATION}/{kind}/{owner.name}")


def test_what_the_owner_did_not_say_is_held_against_nobody(
    federation: Federation, outside: OutsideWitness, witness: Running
) -> None:
    """Anybody may have anything witnessed; whose word it is, the log says."""
    federation.publish_base()
    owner = federation.enrol("archive")
    owner.consent()
    stranger = SigningKey.generate(f"{FEDERATION}/owner/archive")
    late = datetime.now(UTC) + 2 * GRACE

    def judged(note: bytes) -> list[Finding]:
        status, _, receipt = post(f"{witness.address}/add-revocation", note, most=9_999)
        assert status == 200
        return audit(federation.public, now=late, witnesses=[outside.witness], receipts={"r": receipt}).findings

    nobody = SigningKey.generate("somebody.else")
    for key in (stranger, nobody):
        with pytest.raises(MalformedError, match="r is no receipt that counts here: archive did not sign"):
            judged(_revocation(federation, key))
    own = _key(owner, "owner")
    assert "is not in the log, although" in judged(_revocation(federation, own))[-1].found
    followed = judged(_revocation(federation, own, seq=9))
    assert "r is not owed: statement 9 of archive" in followed[5].found
    assert followed[-1].holds
    forged = _revocation(federation, own).replace(b'"future"', b'"futura"')
    assert post(f"{witness.address}/add-revocation", forged, most=9_999)[0] == 400


def test_an_owners_own_witness_is_none_for_its_own_word(federation: Federation) -> None:
    federation.publish_base()
    archive, hospital = federation.enrol("archive"), federation.enrol("hospital")
    archive.consent()
    note = Note.parse(_revocation(federation, _key(archive, "owner")))
    late = datetime.now(UTC) + 2 * GRACE
    lines = [sign_receipt(note.text, _key(each, "witness"), at=datetime.now(UTC)) for each in (archive, hospital)]
    own, other = (bytes(Note(note.text, (*note.signatures, line))) for line in lines)
    with pytest.raises(MalformedError, match=r"no witness that is trusted here took.*--witnesses FILE"):
        audit(federation.public, now=late, receipts={"r": own})
    assert "is not in the log, although" in audit(federation.public, now=late, receipts={"r": other}).findings[-1].found


def test_a_file_that_is_no_receipt_is_said_by_name(federation: Federation, tmp_path: Path) -> None:
    federation.publish_base()
    (tmp_path / "no.note").write_bytes(b"nothing")
    for path in (tmp_path / "no.note", tmp_path / "absent", tmp_path):
        refused = concord("audit", "verify", federation.public, "--receipt", path)
        assert refused.returncode == 1
        assert str(path) in "".join(refused.stderr.split())
        assert "FAILED" not in refused.stderr


# The command


def test_the_command_makes_a_witness_once(tmp_path: Path) -> None:
    home = tmp_path / "witness"
    made = concord("witness", "init", "--name", NAME, "--home", home, "--json")
    assert made.returncode == 0, made.stderr
    assert str(WitnessHome(home).key().verifier.name) == NAME
    assert "already" in concord("witness", "init", "--name", NAME, "--home", home).stderr
    assert "key name" in concord("witness", "init", "--name", "a name", "--home", tmp_path / "other").stderr
    (tmp_path / "root.json").write_bytes(bytes(MADE))
    assert concord("witness", "watch", tmp_path / "root.json", "--home", home).returncode == 0
    assert WitnessHome(home).roots() == [MADE]
    other = TrustedRoot(MADE.federation, ORIGIN, SigningKey.generate(ORIGIN).verifier, MADE.coordinator)
    (tmp_path / "root.json").write_bytes(bytes(other))
    assert "watched already" in concord("witness", "watch", tmp_path / "root.json", "--home", home).stderr
    assert "witness init" in concord("witness", "serve", "--home", tmp_path / "none").stderr
