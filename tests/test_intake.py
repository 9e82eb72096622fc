"""Experts that are not what they should be and uploads that are not what was announced: refused, nothing half-done.

Sent by raw calls under the owner's real identity, so that it is the coordinator's checks that refuse.
"""

import hashlib
import pickle
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save

from common.errors import (
    ConcordError,
    ConflictError,
    ConsentError,
    MalformedError,
    NotFoundError,
    NotPermittedError,
    TooLargeError,
    VerificationError,
)
from common.rpc.chunk_message import ChunkMessage
from common.rpc.transfer import CHUNK_BYTES
from common.trust.manifest import digest_of
from common.trust.statements import ConsentGrant
from coordinator.releases import publish_base
from tests.federation import SIZES, Federation, Owner, expert_weights, write_base
from tests.raw_calls import calling_as, chunk, contribution, key_of, next_fields, note_of, refused

Tensors = dict[str, torch.Tensor]
WIDER = replace(SIZES, hidden_size=64, intermediate_size=1024)
"""An expert of it is two chunks."""
UP = "model.layers.1.mlp.experts.1.up_proj.weight"
ROW = "model.layers.0.mlp.gate.rows.1"


def _saved(tensors: Tensors, **metadata: str) -> bytes:
    return bytes(save(tensors, metadata={"format": "pt", **metadata}))


def _with(**changes: torch.Tensor) -> Callable[[Tensors], bytes]:
    def change(tensors: Tensors) -> bytes:
        return _saved({**tensors, **{UP if name == "up" else name: value for name, value in changes.items()}})

    return change


def _one_value(value: float) -> Callable[[Tensors], bytes]:
    def change(tensors: Tensors) -> bytes:
        tensors[UP][3, 5] = value
        return _saved(tensors)

    return change


def _renamed(old: str, new: str) -> Callable[[Tensors], bytes]:
    return lambda tensors: _saved({new if name == old else name: value for name, value in tensors.items()})


def _padded(tensors: Tensors) -> bytes:
    data = _saved(tensors)
    length = int.from_bytes(data[:8], "little")
    return (length + 8192).to_bytes(8, "little") + data[8 : 8 + length] + b" " * 8192 + data[8 + length :]


BAD_EXPERTS = {
    "an extra tensor": (lambda tensors: _saved({**tensors, "secret": torch.zeros(2)}), "secret must not be in"),
    "a shared parameter": (
        lambda tensors: _saved({**tensors, "model.norm.weight": torch.zeros(16)}),
        "model.norm.weight must not be in",
    ),
    "the public expert": (_renamed(UP, UP.replace("experts.1", "experts.0")), "experts.0.up_proj.weight must not be"),
    "a missing tensor": (
        lambda tensors: _saved({name: value for name, value in tensors.items() if name != ROW}),
        "rows.1 is missing from",
    ),
    "a wrong shape": (_with(up=torch.zeros(16, 24)), "this base needs .*24, 16"),
    "a wrong dtype": (_with(up=torch.zeros(24, 16, dtype=torch.bfloat16)), "BF16.*this base needs .*F32"),
    "a dtype no model has": (_with(up=torch.zeros(24, 16, dtype=torch.int64)), "dtype 'I64'; allowed"),
    "NaN": (_one_value(float("nan")), "holds NaN or infinity; train again"),
    "infinity": (_one_value(float("inf")), "holds NaN or infinity; train again"),
    "minus infinity": (_one_value(float("-inf")), "holds NaN or infinity; train again"),
    "a pickle": (lambda tensors: pickle.dumps({UP: [0.0]}), "not a safetensors file"),
    "a torch archive": (lambda tensors: b"PK\x03\x04" + b"\0" * 500, "not a safetensors file"),
    "no bytes that mean anything": (lambda tensors: b"\0" * 64, "not a safetensors file"),
    "trailing bytes": (lambda tensors: _saved(tensors) + b"and more", "where its header says"),
    "a cut-off file": (lambda tensors: _saved(tensors)[:-4], "where its header says"),
    "metadata of its own": (lambda tensors: _saved(tensors, text="a page of text"), "metadata"),
    "bytes hidden in padding": (_padded, "padding"),
}


@pytest.fixture
def owner(consortium: Federation) -> Owner:
    """An owner that has joined."""
    return consortium.enrol("archive")


@pytest.fixture
def grant(owner: Owner) -> ConsentGrant:
    """Its consent."""
    return owner.consent()


def _honest_submission_works(federation: Federation, owner: Owner) -> None:
    size = federation.coordinator.registry.head().size
    owner.put_expert(expert_weights(7))
    assert owner.submit().receipt is not None
    assert federation.coordinator.registry.head().size == size + 1
    assert list(federation.coordinator.home.incoming.iterdir()) == []


@pytest.mark.parametrize("case", BAD_EXPERTS)
def test_what_is_no_expert_is_refused(case: str, consortium: Federation, owner: Owner, grant: ConsentGrant) -> None:
    make, match = BAD_EXPERTS[case]
    data = make(expert_weights(1))
    with calling_as(owner) as calls, refused(consortium, MalformedError, match):
        calls.upload(contribution(owner, grant.record_id, data), data)
    _honest_submission_works(consortium, owner)


def test_bytes_with_another_digest_are_dropped(consortium: Federation, owner: Owner, grant: ConsentGrant) -> None:
    announced, sent = _saved(expert_weights(1)), _saved(expert_weights(2))
    note = contribution(owner, grant.record_id, announced)
    with calling_as(owner) as calls:
        with refused(consortium, VerificationError, "dropped, send it again"):
            calls.upload(note, sent, file=digest_of(announced))
        calls.upload(note, announced)
    assert consortium.release().owners == {1: "archive"}


def test_a_chunk_that_was_damaged_is_not_stored(consortium: Federation, owner: Owner, grant: ConsentGrant) -> None:
    data = _saved(expert_weights(1))
    with calling_as(owner) as calls:
        upload_id = calls.open(contribution(owner, grant.record_id, data)).upload_id
        damaged = chunk(upload_id, digest_of(data), index=0, data=data)
        damaged.data = data[:-1] + bytes([data[-1] ^ 1])
        with refused(consortium, VerificationError, "damaged on the way; send it again"):
            calls.put(damaged)
        with refused(consortium, ConflictError, "1 chunks .* are missing; send them"):
            calls.finish(upload_id)
    _discard_and_submit(consortium, owner)


def _discard_and_submit(federation: Federation, owner: Owner) -> None:
    """The upload left open above is not in the way of another one of the same owner, which takes its place."""
    owner.put_expert(expert_weights(7))
    assert owner.submit().receipt is not None
    assert federation.release().owners == {1: owner.name}


def _too_long(data: bytes) -> list[tuple[int, bytes]]:
    return [(0, data + b"x")]


def _beyond_the_end(data: bytes) -> list[tuple[int, bytes]]:
    return [(0, data), (1, b"x")]


def _out_of_order(data: bytes) -> list[tuple[int, bytes]]:
    return [(1, data)]


@pytest.mark.parametrize(
    ("pieces", "error", "match"),
    [
        (_too_long, MalformedError, r"chunk 0 has \d+ bytes, not \d+"),
        (_beyond_the_end, TooLargeError, "more bytes than announced"),
        (_out_of_order, ConflictError, "chunk 1 came where 0 is next; open the upload again"),
    ],
)
def test_more_bytes_than_announced_are_refused(
    pieces: Callable[[bytes], list[tuple[int, bytes]]],
    error: type[ConcordError],
    match: str,
    consortium: Federation,
    owner: Owner,
    grant: ConsentGrant,
) -> None:
    data = _saved(expert_weights(1))
    with calling_as(owner) as calls:
        upload_id = calls.open(contribution(owner, grant.record_id, data)).upload_id
        with refused(consortium, error, match):
            calls.put(*(chunk(upload_id, digest_of(data), index=i, data=piece) for i, piece in pieces(data)))
    stored = sum(path.stat().st_size for path in consortium.coordinator.home.incoming.glob("*/*.part"))
    assert stored <= len(data)
    _discard_and_submit(consortium, owner)


def test_a_file_that_was_not_announced_is_refused(consortium: Federation, owner: Owner, grant: ConsentGrant) -> None:
    data = _saved(expert_weights(1))
    with calling_as(owner) as calls:
        upload_id = calls.open(contribution(owner, grant.record_id, data)).upload_id
        for file in (digest_of(b"other"), "../../registry.sqlite", ""):
            with refused(consortium, MalformedError, "announced no file"):
                calls.put(chunk(upload_id, file, index=0, data=data))


@pytest.mark.parametrize("name", ["../x", "a/b", "/etc/passwd", "..", ".hidden", "x\\y", "", "manifest.json"])
def test_a_path_in_a_file_name_is_refused(name: str, consortium: Federation, owner: Owner, grant: ConsentGrant) -> None:
    data = _saved(expert_weights(1))
    files = {name: {"digest": digest_of(data), "size": len(data)}}
    note = contribution(owner, grant.record_id, data, files=files)
    with calling_as(owner) as calls, refused(consortium, MalformedError, "plain file name|does not list itself"):
        calls.open(note)
    _honest_submission_works(consortium, owner)


def test_other_files_than_the_expert_are_refused(consortium: Federation, owner: Owner, grant: ConsentGrant) -> None:
    data = _saved(expert_weights(1))
    entry = {"digest": digest_of(data), "size": len(data)}
    note = contribution(owner, grant.record_id, data, files={"expert.safetensors": entry, "notes.txt": entry})
    with calling_as(owner) as calls, refused(consortium, MalformedError, r"one file, expert\.safetensors, not"):
        calls.open(note)


@pytest.mark.parametrize("upload_id", ["../../keys", "x" * 5000, "", ".", "0" * 36, "a\0b"])
def test_an_upload_that_was_not_opened_is_not_found(upload_id: str, consortium: Federation, owner: Owner) -> None:
    with calling_as(owner) as calls:
        with refused(consortium, NotFoundError, "open it first"):
            calls.finish(upload_id)
        with refused(consortium, NotFoundError, "open it first"):
            calls.put(chunk(upload_id, digest_of(b"x"), index=0, data=b"x"))


def test_an_announced_size_no_expert_has_is_refused(consortium: Federation, owner: Owner, grant: ConsentGrant) -> None:
    files = {"expert.safetensors": {"digest": digest_of(b""), "size": 2**52}}
    note = contribution(owner, grant.record_id, b"", files=files)
    with calling_as(owner) as calls, refused(consortium, TooLargeError, "an expert of this base has at most"):
        calls.open(note)
    assert list(consortium.coordinator.home.incoming.iterdir()) == []


def test_an_empty_expert_is_refused(consortium: Federation, owner: Owner, grant: ConsentGrant) -> None:
    with calling_as(owner) as calls, refused(consortium, MalformedError, "not a safetensors file"):
        calls.upload(contribution(owner, grant.record_id, b""), b"")
    _honest_submission_works(consortium, owner)


def test_a_message_over_the_limit_is_refused(consortium: Federation, owner: Owner, grant: ConsentGrant) -> None:
    data = _saved(expert_weights(1))
    with calling_as(owner) as calls:
        upload_id = calls.open(contribution(owner, grant.record_id, data)).upload_id
        with refused(consortium, TooLargeError, "at most 4194304 bytes"):
            calls.put(chunk(upload_id, digest_of(data), index=0, data=b"\0" * (5 * CHUNK_BYTES)))
    _discard_and_submit(consortium, owner)


def test_an_expert_is_not_recorded_without_its_upload(
    consortium: Federation, owner: Owner, grant: ConsentGrant
) -> None:
    note = contribution(owner, grant.record_id, _saved(expert_weights(1)))
    with calling_as(owner) as calls, refused(consortium, ConflictError, "was not uploaded; upload it"):
        calls.record(note)
    _honest_submission_works(consortium, owner)


def test_an_upload_is_announced_by_a_contribution_alone(consortium: Federation, owner: Owner) -> None:
    grant = owner.consent()
    fields = {**next_fields(owner), "grant_id": grant.record_id, "effect": "future", "deadline_s": 0}
    with calling_as(owner) as calls, refused(consortium, MalformedError, "announced by expert.contribute"):
        calls.open(note_of("consent.revoke", fields, key_of(owner)))


def test_nobody_touches_the_upload_of_another(consortium: Federation, owner: Owner, grant: ConsentGrant) -> None:
    data = _saved(expert_weights(1))
    with calling_as(owner) as calls:
        upload_id = calls.open(contribution(owner, grant.record_id, data)).upload_id
    with calling_as(consortium.enrol("thief")) as calls:
        with refused(consortium, NotPermittedError, "is not of thief"):
            calls.put(chunk(upload_id, digest_of(data), index=0, data=data))
        with refused(consortium, NotPermittedError, "is not of thief"):
            calls.finish(upload_id)


def test_nobody_takes_over_the_upload_of_another(consortium: Federation, owner: Owner, grant: ConsentGrant) -> None:
    data = _saved(expert_weights(1))
    thief = consortium.enrol("thief")
    thief_grant = thief.consent()
    with calling_as(owner) as calls:
        upload_id = calls.open(contribution(owner, grant.record_id, data)).upload_id
        with (
            calling_as(thief) as thief_calls,
            refused(consortium, ConflictError, "is of another statement; announce yours under a new record id"),
        ):
            thief_calls.open(contribution(thief, thief_grant.record_id, data, record_id=upload_id))
        calls.put(chunk(upload_id, digest_of(data), index=0, data=data))
        calls.finish(upload_id)
    assert consortium.release().owners == {1: "archive"}


def test_a_consent_of_another_does_not_serve(consortium: Federation, owner: Owner, grant: ConsentGrant) -> None:
    thief = consortium.enrol("thief")
    data = _saved(expert_weights(1))
    with calling_as(thief) as calls, refused(consortium, ConsentError, "thief has no consent .* sign one first"):
        calls.open(contribution(thief, grant.record_id, data))


def test_nothing_is_published_when_the_consent_ends_before_the_upload(
    consortium: Federation, owner: Owner, grant: ConsentGrant
) -> None:
    data = _saved(expert_weights(1))
    with calling_as(owner) as calls:
        upload_id = calls.open(contribution(owner, grant.record_id, data)).upload_id
        calls.put(chunk(upload_id, digest_of(data), index=0, data=data))
        owner.opt_out()
        with refused(consortium, ConsentError, "in force; sign one first"):
            calls.finish(upload_id)
    owner.consent()
    _discard_and_submit(consortium, owner)


def test_a_stream_left_open_cannot_change_what_a_later_one_sent(federation: Federation) -> None:
    """Else an owner could change its expert after it was checked, and break the audit of everybody's release."""
    publish_base(federation.coordinator, write_base(federation.path / "wide", sizes=WIDER))
    owner = federation.enrol("archive")
    data = _saved(expert_weights(1, sizes=WIDER))
    intake = federation.coordinator.intake
    upload_id, _ = intake.open(contribution(owner, owner.consent().record_id, data), caller="archive")

    def received(index: int, piece: bytes) -> ChunkMessage:
        so_far = data[: index * CHUNK_BYTES] + piece
        return ChunkMessage(upload_id, digest_of(data), index, piece, hashlib.sha256(so_far).digest())

    def interrupted() -> Iterator[ChunkMessage]:
        yield received(0, data[:CHUNK_BYTES])
        list(intake.put([received(1, data[CHUNK_BYTES:])], caller="archive"))
        yield received(1, bytes(len(data) - CHUNK_BYTES))

    with pytest.raises(ConflictError, match="another call took this upload over; open it again"):
        list(intake.put(interrupted(), caller="archive"))
    intake.finish(upload_id, caller="archive")
    assert (federation.public / "objects" / digest_of(data).removeprefix("sha256:")).read_bytes() == data


def test_an_owner_has_one_upload_at_a_time(consortium: Federation, owner: Owner, grant: ConsentGrant) -> None:
    experts = [_saved(expert_weights(seed)) for seed in range(5)]
    with calling_as(owner) as calls:
        opened = [calls.open(contribution(owner, grant.record_id, data)).upload_id for data in experts]
        assert [path.name for path in consortium.coordinator.home.incoming.iterdir()] == [opened[-1]]
        with refused(consortium, NotFoundError, "is open; open it first"):
            calls.finish(opened[0])
    _honest_submission_works(consortium, owner)
