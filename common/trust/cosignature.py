"""Cosignatures: a witness's word that a checkpoint continues all it has seen of the log (C2SP tlog-cosignature).

A cosignature is a line under the checkpoint's note, of Ed25519 type 0x04: eight bytes of POSIX seconds, big-endian,
then the signature over `cosignature/v1`, `time SECONDS` and the checkpoint's text. The only other thing that a
witness's key signs are receipts (`receipts.py`): the same line of a type of its own (signed-note's 0xff and a name),
over another first line, so that neither is ever taken for the other.
"""

import re
from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Final, Self

from common.errors import MalformedError, VerificationError
from common.trust.note import Note, Signature, SigningKey, Verifier

_TYPE: Final = b"\x04"
_RECEIPT: Final = "concord/v1 receipt"
_TIME_BYTES: Final = 8
_SIGNATURE_BYTES: Final = 64
_LINE: Final = re.compile(r"([^+]+)\+([0-9a-f]{8})\+([A-Za-z0-9+/]+=*)")
_LATEST: Final = int(datetime(9999, 12, 31, tzinfo=UTC).timestamp())


@dataclass(frozen=True, slots=True)
class Witness:
    """A witness's public key and name; `str()` is its line `name+key id+base64`.

    Raises:
        ValueError: the name is not a key name, or the key is not canonical, not on the curve or of small order.
    """

    name: str
    public_key: bytes

    def __post_init__(self) -> None:
        Verifier(self.name, self.public_key)  # the same names and keys are good

    @classmethod
    def of(cls, key: SigningKey) -> Self:
        """The public half of a witness's key."""
        return cls(key.name, key.verifier.public_key)

    @classmethod
    def parse(cls, line: str) -> Self:
        """Read `name+key id+base64` strictly.

        Raises:
            MalformedError: it is not exactly that, the key id is another key's, or the key is unsafe.
        """
        found = _LINE.fullmatch(line)
        try:
            witness = None if found is None else cls(found[1], b64decode(found[3], validate=True)[1:])
        except ValueError as error:
            raise MalformedError(f"witness key {line[:120]!r}: {error}") from error
        if witness is None or str(witness) != line:
            raise MalformedError(f"witness key {line[:120]!r} is not NAME+KEY ID+BASE64 of a cosigner's Ed25519 key")
        return witness

    def __str__(self) -> str:
        return f"{self.name}+{self.key_id}+{b64encode(_TYPE + self.public_key).decode()}"

    @property
    def key_id(self) -> str:
        """The 32-bit key id as 8 hex digits; another than the same key's for signing notes."""
        return sha256(self.name.encode() + b"\n" + _TYPE + self.public_key).hexdigest()[:8]

    @property
    def receipt_key_id(self) -> str:
        """The key id of its receipts."""
        kind = b"\xff" + _RECEIPT.encode() + b"\n"
        return sha256(self.name.encode() + b"\n" + kind + self.public_key).hexdigest()[:8]

    def verify(self, text: str, data: bytes, *, is_receipt: bool = False) -> datetime:
        """When this witness cosigned the checkpoint `text`, if `data` is its cosignature; likewise of a receipt.

        Raises:
            VerificationError: it is not.
        """
        seconds = int.from_bytes(data[:_TIME_BYTES], "big")
        if len(data) != _TIME_BYTES + _SIGNATURE_BYTES or not 0 < seconds <= _LATEST:
            raise VerificationError(f"the cosignature by {self.name} has no such form or time")
        try:
            Verifier(self.name, self.public_key).verify(
                _message(text, seconds, is_receipt=is_receipt), data[_TIME_BYTES:]
            )
        except VerificationError as error:
            raise VerificationError(f"the cosignature by {self.name}+{self.key_id} does not hold") from error
        return datetime.fromtimestamp(seconds, UTC)


def _message(text: str, seconds: int, *, is_receipt: bool) -> str:
    return f"{_RECEIPT if is_receipt else 'cosignature/v1'}\ntime {seconds}\n{text}"


def cosign(text: str, key: SigningKey, *, at: datetime) -> Signature:
    """The cosignature of a checkpoint's text; only for one that continues all that was cosigned before."""
    return Signature(key.name, Witness.of(key).key_id, _timed(text, key, at, is_receipt=False))


def sign_receipt(text: str, key: SigningKey, *, at: datetime) -> Signature:
    """A witness's line under a statement that was handed to it then."""
    return Signature(key.name, Witness.of(key).receipt_key_id, _timed(text, key, at, is_receipt=True))


def _timed(text: str, key: SigningKey, at: datetime, *, is_receipt: bool) -> bytes:
    seconds = int(at.timestamp())
    return seconds.to_bytes(_TIME_BYTES, "big") + key.sign(_message(text, seconds, is_receipt=is_receipt))


def cosigned(note: Note, witnesses: Iterable[Witness], *, is_receipt: bool = False) -> Mapping[str, datetime]:
    """Which of `witnesses` cosigned a checkpoint's note, or gave a receipt, by name, and when; lines by others are
    ignored.

    Raises:
        VerificationError: a line that says it is a witness's does not hold, or there are two of them.
    """
    found: dict[str, datetime] = {}
    for witness in witnesses:
        key_id = witness.receipt_key_id if is_receipt else witness.key_id
        lines = [each for each in note.signatures if (each.name, each.key_id) == (witness.name, key_id)]
        if len(lines) > 1:
            raise VerificationError(f"{len(lines)} cosignatures by {witness.name}, expected one")
        if lines:
            found[witness.name] = witness.verify(note.text, lines[0].data, is_receipt=is_receipt)
    return found
