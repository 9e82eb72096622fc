"""What is fuzzed: every parser of bytes that strangers send, and what has to be true of whatever it accepts.

A target raises nothing for bytes that are refused as they should be (`MalformedError`, `TooLargeError`), and an
`AssertionError` for what is accepted and should not be: bytes that do not come back the same, or a changed statement
whose signature still holds.
"""

import random
from collections.abc import Callable
from typing import Final

from common.errors import ConcordError, MalformedError, TooLargeError, VerificationError
from common.trust import strict_json
from common.trust.cosignature import Witness
from common.trust.evidence import Evidence
from common.trust.history import History
from common.trust.manifest import Manifest
from common.trust.note import Checkpoint, Note, Proof, SigningKey, Verifier, open_checkpoint, sign
from common.trust.receipts import parse_receipt
from common.trust.root import TrustedRoot
from common.trust.statements import parse, parse_note
from common.trust.tiles import format_bundle, parse_bundle
from common.trust.tlog_witness import AddCheckpoint
from tests.trust.telling import ROOT, Telling

_LOG: Final = Telling()
_LOG.publishes()
_LOG.joins("archive")
_LOG.contributes("archive", _LOG.consents("archive"))
_LOG.releases()
_LOG.revokes("archive", next(iter(_LOG.history.grants)), reason="no more")
_NEXT: Final = _LOG.note("archive", "consent.grant", expert={"name": "e", "base_digest": "sha256:" + "a" * 64,
                         "kind": "full"}, scope={"line": "main"}, purposes=["research"],
                         terms={"uri": "t", "digest": "sha256:" + "c" * 64}, not_before="2026-11-23T00:00:00Z",
                         not_after="2027-11-23T00:00:00Z")  # fmt: skip
_KEY: Final = SigningKey.generate("log.example")
_CHECKPOINT: Final = bytes(sign(str(Checkpoint("log.example", 7, bytes(range(32)))), _KEY))


def _reads_back(read: Callable[[bytes], object]) -> Callable[[bytes], None]:
    def target(data: bytes) -> None:
        try:
            found = read(data)
        except (MalformedError, TooLargeError):
            return
        written = bytes(found) if not isinstance(found, str) else found.encode()  # type: ignore[call-overload]
        assert written == data

    return target


def _note(data: bytes) -> None:
    _reads_back(Note.parse)(data)


def _statement(data: bytes) -> None:
    try:
        note, statement = parse_note(data)
    except (MalformedError, TooLargeError):
        return
    assert bytes(note) == data
    assert statement.text == note.text == parse(note.text).text


def _append(data: bytes) -> None:
    """Only the very statement that was signed may be the next entry."""
    history = History(ROOT)
    for entry in _LOG.entries:
        history.take(parse_note(entry)[1])
    try:
        history.check(data)
    except ConcordError:
        return
    assert data == _NEXT


def _checkpoint(data: bytes) -> None:
    try:
        open_checkpoint(data, log=_KEY.verifier)
    except (MalformedError, TooLargeError, VerificationError):
        return
    assert Note.parse(data).text == Note.parse(_CHECKPOINT).text


def _json(data: bytes) -> None:
    try:
        value = strict_json.loads(data)
    except MalformedError:
        return
    assert strict_json.is_canonical(data, value) == (strict_json.canonical(value) == data)


def _bundle(data: bytes) -> None:
    try:
        assert format_bundle(parse_bundle(data)) == data
    except MalformedError:
        return


def _receipt(data: bytes) -> None:
    try:
        parse_receipt(data, [Witness.of(_KEY)])
    except (MalformedError, TooLargeError, VerificationError):
        return
    raise AssertionError("nobody gave such a receipt")


def _line(read: Callable[[str], object]) -> Callable[[bytes], None]:
    return _reads_back(lambda data: str(read(data.decode("latin-1"))).encode("latin-1").decode("latin-1"))


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    "note": _note,
    "statement": _statement,
    "append": _append,
    "checkpoint": _checkpoint,
    "proof": _reads_back(Proof.parse),
    "add_checkpoint": _reads_back(AddCheckpoint.parse),
    "evidence": _reads_back(Evidence.parse),
    "json": _json,
    "bundle": _bundle,
    "receipt": _receipt,
    "root": _reads_back(TrustedRoot.parse),
    "manifest": _reads_back(Manifest.parse),
    "verifier": _line(Verifier.parse),
    "witness": _line(Witness.parse),
}

SEEDS: Final[dict[str, list[bytes]]] = {
    "note": [_CHECKPOINT, _NEXT],
    "statement": [*_LOG.entries, _NEXT],
    "append": [_NEXT, *_LOG.entries],
    "checkpoint": [_CHECKPOINT],
    "proof": [bytes(Proof(3, (bytes(32),) * 3, _CHECKPOINT))],
    "add_checkpoint": [
        bytes(AddCheckpoint(3, (bytes(32),) * 2, _CHECKPOINT)),
        bytes(AddCheckpoint(0, (), _CHECKPOINT)),
    ],
    "evidence": [bytes(Evidence((_CHECKPOINT, _CHECKPOINT), (bytes(32),)))],
    "json": [b'{"a":[1,2.5,"x",null,true],"b":{"c":"\\u00e9"}}', b"[1e400]", b'{"a":1,"a":2}'],
    "bundle": [format_bundle(_LOG.entries)],
    "receipt": [_LOG.entries[-1]],
    "root": [bytes(ROOT)],
    "manifest": [b'{"a":{"digest":"sha256:' + b"0" * 64 + b'","size":1}}'],
    "verifier": [str(_KEY.verifier).encode()],
    "witness": [str(Witness.of(_KEY)).encode()],
}


_ODD: Final = (b"\n", b"\\", b'"', b"\x00", b"{", b"1", b"\xff", b"NaN", b"-0", b" ")


def mutated(seed: bytes, chance: random.Random) -> bytes:
    """A valid input with a few bytes changed, dropped, doubled or moved."""
    data = bytearray(seed)
    for _ in range(chance.choice((1, 1, 1, 2, 4, 8))):
        if not data:
            break
        place, other = chance.randrange(len(data)), chance.randrange(len(data))
        match chance.randrange(6):
            case 0:
                data[place] ^= 1 << chance.randrange(8)
            case 1:
                data[place] = chance.randrange(256)
            case 2:
                del data[place : place + chance.choice((1, 1, 4, 32))]
            case 3:
                data[place:place] = data[other : other + chance.choice((1, 8, 64))]
            case 4:
                data[place], data[other] = data[other], data[place]
            case _:
                data[place:place] = chance.choice(
                    (b"\n", b"\\", b'"', b"\x00", b"{", b"1", b"\xff", b"NaN", b"-0", b" ")
                )
    return bytes(data)
