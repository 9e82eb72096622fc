"""Calls to a coordinator as anybody could make them: raw stubs, hand-made statements, none of the client's checks."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest

from common.errors import ConcordError
from common.rpc.channel import call, open_channel, stream
from common.rpc.identity import TlsIdentity
from common.rpc.transfer import CHUNK_BYTES
from common.trust import strict_json
from common.trust.manifest import digest_of
from common.trust.note import SigningKey, sign
from common.trust.rules import owner_key_name
from common.trust.statements import TYPE_PREFIX, format_time, new_record_id, parse_note
from protos import (
    enrolment_pb2,
    enrolment_pb2_grpc,
    registry_pb2,
    registry_pb2_grpc,
    transfer_pb2,
    transfer_pb2_grpc,
)
from tests.federation import FEDERATION, Federation, Owner

TIMEOUT_S = 30


@dataclass(frozen=True)
class RawCalls:
    """Every call there is, over one connection."""

    enrolment: enrolment_pb2_grpc.EnrolmentStub
    registry: registry_pb2_grpc.RegistryStub
    transfer: transfer_pb2_grpc.TransferStub

    def redeem(self, token: str, *, csr: bytes, note: bytes) -> enrolment_pb2.RedeemReply:
        """Redeem an invitation."""
        request = enrolment_pb2.RedeemRequest(token=token, csr=csr, note=note)
        return call(self.enrolment.Redeem, request, timeout_s=TIMEOUT_S)

    def record(self, note: bytes) -> bytes:
        """Record a statement; returns the receipt as it came."""
        return call(self.registry.Record, registry_pb2.RecordRequest(note=note), timeout_s=TIMEOUT_S).receipt

    def open(self, note: bytes) -> transfer_pb2.OpenUploadReply:
        """Announce an upload."""
        return call(self.transfer.OpenUpload, transfer_pb2.OpenUploadRequest(note=note), timeout_s=TIMEOUT_S)

    def put(self, *chunks: transfer_pb2.Chunk) -> transfer_pb2.PutChunksReply:
        """Send chunks."""
        reply: transfer_pb2.PutChunksReply = list(stream(self.transfer.PutChunks, iter(chunks)))[-1]
        return reply

    def finish(self, upload_id: str) -> bytes:
        """Say that all was sent; returns the receipt as it came."""
        request = transfer_pb2.FinishUploadRequest(upload_id=upload_id)
        return call(self.transfer.FinishUpload, request, timeout_s=TIMEOUT_S).receipt

    def upload(self, note: bytes, data: bytes, *, file: str | None = None) -> bytes:
        """Announce, send and finish; `file` is the digest that the chunks are sent under."""
        upload_id = self.open(note).upload_id
        for start in range(0, len(data), CHUNK_BYTES):
            piece = data[start : start + CHUNK_BYTES]
            self.put(
                chunk(upload_id, file or digest_of(data), index=start // CHUNK_BYTES, data=piece, before=data[:start])
            )
        return self.finish(upload_id)


def chunk(upload_id: str, file: str, *, index: int, data: bytes, before: bytes = b"") -> transfer_pb2.Chunk:
    """A chunk that says the truth about its bytes and those `before` it."""
    return transfer_pb2.Chunk(
        upload_id=upload_id, file=file, index=index, data=data, sha256=hashlib.sha256(before + data).digest()
    )


@contextmanager
def calling(target: str, *, authority: bytes, tls: TlsIdentity | None) -> Iterator[RawCalls]:
    """Calls to `target`, anonymous without `tls`."""
    with open_channel(target, authority=authority, tls=tls) as channel:
        yield RawCalls(
            enrolment_pb2_grpc.EnrolmentStub(channel),
            registry_pb2_grpc.RegistryStub(channel),
            transfer_pb2_grpc.TransferStub(channel),
        )


@contextmanager
def calling_as(owner: Owner) -> Iterator[RawCalls]:
    """Calls to the owner's coordinator with the owner's own certificate."""
    with calling(owner.home.settings().target, authority=owner.home.authority.read_bytes(), tls=tls_of(owner)) as calls:
        yield calls


def tls_of(owner: Owner) -> TlsIdentity:
    """The owner's TLS key and certificate."""
    return TlsIdentity.parse(owner.home.tls.read_bytes(), authority=owner.home.authority.read_bytes())


def key_of(owner: Owner) -> SigningKey:
    """The owner's signing key."""
    return SigningKey.from_pem(owner.home.signing_key.read_bytes(), name=owner_key_name(FEDERATION, owner.name))


def next_fields(owner: Owner) -> dict[str, object]:
    """What the owner's next statement has in common with all others."""
    notes = sorted(owner.home.statements.glob("*.note"))
    last = parse_note(notes[-1].read_bytes())[1] if notes else None
    now = datetime.now(UTC)
    return {
        "federation": FEDERATION,
        "origin": f"{FEDERATION}/log",
        "party": owner.name,
        "key_id": key_of(owner).verifier.key_id,
        "record_id": new_record_id(now),
        "seq": len(notes),
        "prev": last.digest if last else None,
        "issued_at": format_time(now),
    }


def note_of(kind: str, fields: Mapping[str, object], *keys: SigningKey) -> bytes:
    """A signed note of any fields whatever."""
    return bytes(sign(f"{TYPE_PREFIX}{kind}\n{strict_json.canonical(dict(fields)).decode()}\n", *keys))


def contribution(owner: Owner, grant_id: str, data: bytes, **changes: object) -> bytes:
    """The announcement of `data` as the owner's expert, not kept at home; `changes` are to its fields."""
    fields = {
        **next_fields(owner),
        "grant_id": grant_id,
        "files": {"expert.safetensors": {"digest": digest_of(data), "size": len(data)}},
        "tokens_seen": 1,
        "training_config_digest": digest_of(b""),
        **changes,
    }
    return note_of("expert.contribute", fields, key_of(owner))


@contextmanager
def refused(federation: Federation, error: type[ConcordError], match: str) -> Iterator[None]:
    """What the block tries fails with this error, and neither the log nor what is published changes."""
    before = _public_state(federation)
    with pytest.raises(error, match=match):
        yield
    assert _public_state(federation) == before


def _public_state(federation: Federation) -> tuple[int, set[str]]:
    public = federation.public
    return federation.coordinator.registry.head().size, {str(path.relative_to(public)) for path in public.rglob("*")}
