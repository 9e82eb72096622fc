"""Calls that no coordinator should take, made from what the .proto files say: each request as it should be, and then
with one thing wrong. One that is new in a .proto is here as soon as `test_bad_calls.py` says how it is made rightly.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from common.trust import strict_json
from common.trust.note import SigningKey, sign
from common.trust.statements import TYPE_PREFIX
from protos import campaign_pb2, enrolment_pb2, registry_pb2, transfer_pb2
from tests.raw_calls import note_of

FILES: Final = (campaign_pb2, enrolment_pb2, registry_pb2, transfer_pb2)
METHODS: Final[dict[str, MethodDescriptor]] = {
    f"/{service.full_name}/{method.name}": method
    for file in FILES
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
UNKNOWN_ID: Final = "01890000-0000-7000-8000-000000000000"
UNKNOWN_DIGEST: Final = "sha256:" + "0" * 64
OVER_THE_LIMIT: Final = 5 * 1024 * 1024

STRINGS: Final = {
    "absent": "",
    "too long": "x" * 70_000,
    "a NUL": "\0",
    "a NUL inside": "release-1\0.key",
    "letters that look like others": "r\u0435lease-1",
    "turned round": "\u202e1-esaeler",
    "a way out": "../../keys/log.key",
    "a way out by a detour": "log/../../keys/log.key",
    "an absolute path": "/etc/passwd",
    "an id that nobody has": UNKNOWN_ID,
    "a digest that nothing has": UNKNOWN_DIGEST,
    "a digest in capitals": "SHA256:" + "AB" * 32,
    "a digest that leads elsewhere": "sha256:../../keys/log.key",
    "a format": "%s%n{0}${HOME}",
    "SQL": "' OR 1=1 --",
    "spaces": "   ",
}
BYTES: Final = {
    "absent": b"",
    "a NUL": b"\0",
    "zeros": bytes(1000),
    "no UTF-8": b"\xff\xfe" * 50,
    "too long": b"A" * 300_000,
    "text": "— concord\n".encode(),
    "PEM of nothing": b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
    "a script": b"#!/bin/sh\nrm -rf /\n",
}
NUMBERS: Final = {"minus one": 2**64 - 1, "the least": 2**63, "huge": 2**53, "past the end": 10**9}


@dataclass(frozen=True)
class BadCall:
    """What is wrong with it, and its messages as they go over the wire."""

    what: str
    messages: tuple[bytes, ...]


def bad_calls(method: MethodDescriptor, good: Message) -> Iterator[BadCall]:
    """The right request with one thing wrong, by all ways that its fields and the wire have."""
    yield from _unreadable(method, good)
    for field in method.input_type.fields:
        for what, value in _values(field).items():
            changed = GetMessageClass(method.input_type)()
            changed.CopyFrom(good)
            setattr(changed, field.name, value)
            yield BadCall(f"{field.name}: {what}", (changed.SerializeToString(),))
        if field.type == FieldDescriptor.TYPE_STRING:
            broken = bytes([field.number << 3 | 2, 3]) + b"\xff\xfe\xfd"
            yield BadCall(f"{field.name}: no UTF-8", (_without(good, field) + broken,))


def _values(field: FieldDescriptor) -> Mapping[str, object]:
    kinds: dict[int, Mapping[str, object]] = {
        FieldDescriptor.TYPE_STRING: STRINGS,
        FieldDescriptor.TYPE_BYTES: BYTES,
        FieldDescriptor.TYPE_UINT64: NUMBERS,
        FieldDescriptor.TYPE_BOOL: {},
    }
    return kinds[field.type]


def _without(message: Message, field: FieldDescriptor) -> bytes:
    left = type(message)()
    left.CopyFrom(message)
    left.ClearField(field.name)
    return left.SerializeToString()


def _unreadable(method: MethodDescriptor, good: Message) -> Iterator[BadCall]:
    data = good.SerializeToString()
    yield BadCall("no message at all", (b"\xff" * 40,))
    yield BadCall("a field that is longer than the message", (data + b"\x7a\xff\xff\xff\x7f",))
    yield BadCall("a number without an end", (data + b"\x78" + b"\xff" * 11,))
    yield BadCall("a group that is never closed", (data + b"\x7b",))
    yield BadCall("field nought", (data + b"\x00\x00",))
    yield BadCall("larger than any message", (data + b"\x7a\x80\x80\xc0\x02" + bytes(OVER_THE_LIMIT),))
    yield BadCall("one that cannot be read, then a right one", (b"\xff" * 40, data))
    for field in method.input_type.fields:
        if field.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES):
            cut_off = bytes([field.number << 3 | 2, 100]) + b"short"
            yield BadCall(f"{field.name}: cut off", (_without(good, field) + cut_off,))


def bad_notes(kind: str, fields: Mapping[str, object], key: SigningKey) -> dict[str, bytes]:
    """A statement that would be taken, with one thing wrong."""
    stranger = SigningKey.generate(key.verifier.name)

    def changed(**changes: object) -> bytes:
        return note_of(kind, {**fields, **changes}, key)

    def of_text(body: str) -> bytes:
        return bytes(sign(f"{TYPE_PREFIX}{kind}\n{body}\n", key))

    text, right = strict_json.canonical(dict(fields)).decode(), note_of(kind, fields, key)
    return {
        "signed by a stranger": note_of(kind, fields, stranger),
        "signed by nobody": right.partition(b"\n\n")[0] + b"\n\n",
        "changed after it was signed": right.replace(b'"seq":', b'"seq":1', 1),
        "of another party": changed(party="nobody"),
        "of the coordinator": changed(party="coordinator"),
        "of another federation": changed(federation="other.example"),
        "of another log": changed(origin="other.example/log"),
        "a number left out": changed(seq=int(str(fields["seq"])) + 5),
        "a number before its time": changed(seq=2**53 - 1),
        "a number below nought": changed(seq=-1),
        "after another statement": changed(prev=UNKNOWN_DIGEST),
        "by another key's id": changed(key_id="00000000"),
        "dated ahead": changed(issued_at="2999-01-01T00:00:00Z"),
        "dated nowhen": changed(issued_at="2026-02-31T00:00:00Z"),
        "an id that leads elsewhere": changed(record_id="../../keys/log.key"),
        "a field more": changed(note="patient 17"),
        "a field less": note_of(kind, {name: fields[name] for name in fields if name != "origin"}, key),
        "no such kind": note_of("consent.erase", fields, key),
        "white space": of_text(text.replace(",", ", ")),
        "a key twice": of_text(text[:-1] + ',"seq":1}'),
        "not a number": of_text(text.replace('"seq":', '"seq":NaN,"x":')),
        "too deep": of_text('{"a":' * 500 + "1" + "}" * 500),
        "a list": of_text("[]"),
        "too much of it": changed(record_id="x" * 20_000),
        "a line more": bytes(sign(f"{TYPE_PREFIX}{kind}\n{text}\n{text}\n", key)),
        "other line ends": right.replace(b"\n", b"\r\n"),
    }
