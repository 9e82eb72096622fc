"""The ledger tells the truth: an owner's whole life is read on the wire, inside TLS, and held against it."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from common.rpc.chunk_message import ChunkMessage
from common.rpc.identity import TlsIdentity
from common.rpc.transfer import CHUNK_BYTES
from common.trust.pki import make_csr, new_key
from common.trust.statements import ConsentRevoke
from owner_client import egress, membership, participation
from owner_client.client import Retry
from owner_client.ledger import TRAFFIC, UPLOAD, ledger_at
from owner_client.membership import cosign_checkpoint
from tests.federation import Federation, Owner, expert_weights
from tests.in_the_clear import Connection, Wire, listening_in

MARKER = "MARKER-patient-4711-has-a-cough"
A_CHUNK = 300
"""What a message takes beside the bytes of its chunk, at most."""
A_CALL = 1500
"""What a call takes beside its messages, at most: headers, frames, acknowledgements, records of TLS."""
A_CONNECTION = 8192
"""What its handshake and settings take, at most."""
A_RECORD = 64
"""What TLS and HTTP/2 take for each 16 KiB, at most."""


@dataclass
class Life:
    """An owner's, with all that went over the wire."""

    owner: Owner
    wire: Wire

    @property
    def counted(self) -> int:
        """Bytes that left by calls, as the ledger has them."""
        lines = ledger_at(self.owner.home.ledger).lines()
        return sum(int(str(line["size_bytes"])) for line in lines if line["kind"] in (TRAFFIC, UPLOAD))


@pytest.fixture
def life(consortium: Federation, tmp_path: Path) -> Iterator[Life]:
    """An owner that has joined over a wire that is listened to, with a marker in all that it has."""
    owner, wire = consortium.owner("archive"), Wire()
    text = tmp_path / "text"
    text.mkdir()
    (text / "train.txt").write_text(f"{MARKER}\n" * 100)

    def identity() -> TlsIdentity:
        return TlsIdentity.parse(owner.home.tls.read_bytes(), authority=owner.home.authority.read_bytes())

    with listening_in(consortium, wire, identity=identity) as ports:
        given = consortium.invitation("archive")
        given = type(given)(
            owner=given.owner, target=f"127.0.0.1:{ports[0]}", enrolment_target=f"127.0.0.1:{ports[1]}",
            authority=given.authority, root=given.root, token=given.token,
        )  # fmt: skip
        membership.enrol(owner.home, given, data=text, public=text, retry=Retry(patience_s=0))
        yield Life(owner, wire)


def _live(life: Life) -> None:
    owner = life.owner
    owner.consent()
    expert = owner.put_expert(expert_weights(1))
    (expert / "training.json").write_text(json.dumps({"tokens": 7, "note": MARKER}))
    (expert / "log.txt").write_text(MARKER)
    owner.submit()
    with owner.member() as member:
        checkpoint, _ = member.client.watch()
        cosign_checkpoint(member, checkpoint)
    _renew(owner)
    owner.opt_out()


def _renew(owner: Owner) -> None:
    with owner.member() as member:
        csr = make_csr(new_key())
        member.client.renew(egress.certificate_request(owner.home.ledger, csr, to=member.settings.target))


def test_the_ledger_has_every_byte_and_the_text_is_in_none(life: Life) -> None:
    _live(life)
    wire, counted = life.wire, life.counted
    uploads = [line for line in ledger_at(life.owner.home.ledger).lines() if line["kind"] == UPLOAD]
    chunks = sum(-(-int(str(line["size_bytes"])) // CHUNK_BYTES) for line in uploads)
    assert chunks >= 1
    assert 0 < wire.message_bytes - counted <= A_CHUNK * chunks  # nothing else was said inside TLS
    overhead = A_CALL * wire.calls + A_CONNECTION * len(wire.connections) + A_RECORD * (counted // 16384 + 1)
    assert counted < wire.socket_bytes <= counted + overhead
    assert MARKER.encode() not in wire.clear
    assert MARKER.encode() in (life.owner.home.settings().data or Path()).joinpath("train.txt").read_bytes()


def test_the_listener_would_find_the_text(life: Life) -> None:
    life.owner.consent()
    with life.owner.member() as member:
        participation.opt_out(member, reason=MARKER)
        assert any(isinstance(said.statement, ConsentRevoke) for said in member.chain.statements())
    assert MARKER.encode() in life.wire.clear


def test_the_listener_would_find_text_that_chunks_part() -> None:
    halves = (b"x" * 50 + MARKER[:9].encode(), MARKER[9:].encode() + b"y" * 50)
    chunks = [ChunkMessage("upload", "sha256:0", i, half, bytes(32)).format() for i, half in enumerate(halves)]
    stream = b"".join(b"\0" + len(chunk).to_bytes(4, "big") + chunk for chunk in chunks)
    frame = len(stream).to_bytes(3, "big") + b"\0\0" + (1).to_bytes(4, "big") + stream
    wire = Wire([Connection(clear=bytearray(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame))])
    assert MARKER.encode() not in stream
    assert MARKER.encode() in wire.clear


def test_the_listener_would_miss_a_line_in_the_ledger(life: Life) -> None:
    """A message that was sent and not written down is seen: the sums differ."""
    _live(life)
    lines = life.owner.home.ledger.read_bytes().splitlines()
    dropped = next(line for line in lines if b'"name":"Record"' in line)
    size = int(json.loads(dropped)["size_bytes"])
    uploads = [line for line in lines if b'"kind":"upload"' in line]
    assert life.wire.message_bytes - (life.counted - size) > A_CHUNK * len(uploads)
