"""Keys, signed notes, log checkpoints and inclusion proof files, in the C2SP text formats.

Specs: c2sp.org/signed-note (Ed25519, signature type 0x01), c2sp.org/tlog-checkpoint, c2sp.org/tlog-proof. Every
`parse` is the inverse of formatting: what does not come back byte for byte is a `MalformedError`. Stricter than the
specs on purpose: at most 128 signatures, no extension lines in a checkpoint, no extra data in a proof, and a note on
which one of our keys signed twice is refused. Hashing is in `merkle.py`; what statements say is in `statements.py`.
"""

import re
from base64 import b64decode, b64encode
from binascii import a2b_base64, b2a_base64
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from typing import Final, Self

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from nacl.bindings import crypto_sign_BYTES, crypto_sign_open
from nacl.exceptions import BadSignatureError

from common.errors import MalformedError, TooLargeError, VerificationError
from common.trust.merkle import HASH_BYTES, MAX_SIZE

MAX_SIGNATURES: Final = 128
"""Room for the cosignatures of many witnesses."""
MAX_NOTE_BYTES: Final = 64 * 1024

_ED25519_TYPE: Final = b"\x01"
_PREFIX: Final = "\u2014"
_KEY_ID = re.compile(r"[0-9a-f]{8}")
_NAME = re.compile(r"[^\s+\x00-\x1f]+")
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f]")  # all below U+0020 but the newline
_REMEMBERED: Final = 4096
_PROOF_HEADER: Final = "c2sp.org/tlog-proof@v1"
_MAX_PROOF_HASHES: Final = 63


@dataclass(frozen=True, slots=True)
class Verifier:
    """A public key and the name it signs under; `str()` is its line `name+key id+base64`.

    Raises:
        ValueError: the name is not a key name, or the key is not canonical, not on the curve or of small order.
    """

    name: str
    public_key: bytes
    key_id: str = field(init=False, repr=False, compare=False)
    """The 32-bit key id as 8 hex digits: a hint at which key signed, never a proof of it."""

    def __post_init__(self) -> None:
        _check_name(self.name)
        _check_public_key(self.public_key)
        object.__setattr__(self, "key_id", _key_id(self.name, self.public_key))  # frozen; asked of every signature

    @classmethod
    def parse(cls, line: str) -> Self:
        """Read `name+key id+base64` strictly.

        Raises:
            MalformedError: it is not exactly that, the key id is another key's, or the key is unsafe.
        """
        try:
            if line.count("+") < 2:
                raise ValueError("it is not NAME+KEY ID+BASE64")
            name, _, encoded = line.split("+", 2)
            verifier = cls(name, b64decode(encoded, validate=True)[1:])
        except ValueError as error:
            raise MalformedError(f"verifier key {line[:120]!r}: {error}") from error
        if str(verifier) != line:
            raise MalformedError(f"verifier key {line[:120]!r}: expected {str(verifier)!r}")
        return verifier

    def __str__(self) -> str:
        return f"{self.name}+{self.key_id}+{_encode_base64(_ED25519_TYPE + self.public_key)}"

    def verify(self, text: str, data: bytes) -> None:
        """Check that `data` is this key's Ed25519 signature over `text`.

        Raises:
            VerificationError: it is not.
        """
        if not signature_holds(self.public_key, text.encode(), data):
            raise VerificationError(f"the signature by {self.name}+{self.key_id} does not hold")


def signature_holds(public_key: bytes, message: bytes, data: bytes) -> bool:
    """Whether `data` is the Ed25519 signature over `message` by a key that is known to be safe, as a Verifier's is."""
    try:
        return len(data) == crypto_sign_BYTES and crypto_sign_open(data + message, public_key) == message
    except BadSignatureError:
        return False


@dataclass(frozen=True, slots=True)
class SigningKey:
    """An Ed25519 private key, the name it signs under (not part of the PEM), and the public half."""

    name: str
    private_key: Ed25519PrivateKey = field(repr=False)
    verifier: Verifier = field(init=False, repr=False)

    def __post_init__(self) -> None:
        public_key = self.private_key.public_key().public_bytes_raw()
        object.__setattr__(self, "verifier", Verifier(self.name, public_key))  # frozen; derived once, checking is slow

    @classmethod
    def generate(cls, name: str) -> Self:
        """A new random key."""
        return cls(name, Ed25519PrivateKey.generate())

    @classmethod
    def from_pem(cls, pem: bytes, *, name: str) -> Self:
        """Read an unencrypted PKCS8 PEM.

        Raises:
            MalformedError: it is not one, or holds another kind of key. Its contents are never in the message.
        """
        try:
            key = serialization.load_pem_private_key(pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise MalformedError(f"signing key {name}: not an unencrypted PKCS8 PEM") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise MalformedError(f"signing key {name}: not an Ed25519 key")
        return cls(name, key)

    def to_pem(self) -> bytes:
        """The key as unencrypted PKCS8 PEM: whoever writes it keeps it from others' eyes (0600)."""
        return self.private_key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def sign(self, text: str) -> bytes:
        """Ed25519 signature over `text`, 64 bytes: the `data` of a `Signature`."""
        return self.private_key.sign(text.encode())


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature line: `key_id` as 8 hex digits, `data` as the key's algorithm has it. Not verified."""

    name: str
    key_id: str
    data: bytes

    def __post_init__(self) -> None:
        _check_name(self.name)
        if not _KEY_ID.fullmatch(self.key_id):
            raise ValueError(f"key id {self.key_id!r} is not 8 hex digits")
        if not self.data:
            raise ValueError("the signature is empty")

    def __str__(self) -> str:
        return f"{_PREFIX} {self.name} {_encode_base64(bytes.fromhex(self.key_id) + self.data)}"


@dataclass(frozen=True, slots=True)
class Note:
    """Text ending in a newline, and the signature lines under it. Trust the text only after `verify`."""

    text: str
    signatures: tuple[Signature, ...]

    def __post_init__(self) -> None:
        if not self.text.endswith("\n"):
            raise ValueError("the text does not end in a newline")
        # Printable but for its ends of lines: nothing to look for, and much quicker to tell.
        if not self.text.replace("\n", "").isprintable() and (match := _CONTROL.search(self.text)):
            raise ValueError(f"control character {match[0]!r} in the text")
        self.text.encode()  # a lone surrogate is a ValueError
        if not 1 <= len(self.signatures) <= MAX_SIGNATURES:
            raise ValueError(f"{len(self.signatures)} signatures, expected 1 to {MAX_SIGNATURES}")

    @classmethod
    def parse(cls, data: bytes, *, max_bytes: int = MAX_NOTE_BYTES) -> Self:
        """Read a signed note strictly; nothing is verified.

        Raises:
            TooLargeError: more than `max_bytes`.
            MalformedError: it is not exactly what formatting a note gives.
        """
        if len(data) > max_bytes:
            raise TooLargeError(f"note of {len(data)} bytes, at most {max_bytes} are read")
        try:
            text, blank, lines = data.decode().rpartition("\n\n")
            note = cls(text + "\n", tuple([_parse_signature(line) for line in lines[:-1].split("\n")]))
        except ValueError as error:
            raise MalformedError(f"note {data[:80]!r}: {error}") from error
        # Each line is spelt as it would be again, and the rest is what was cut apart: nothing else can differ.
        if not blank or not data.endswith(b"\n"):
            raise MalformedError(f"note {data[:80]!r} is not canonical")
        return note

    def __bytes__(self) -> bytes:
        lines = "".join(f"{signature}\n" for signature in self.signatures)
        return f"{self.text}\n{lines}".encode()

    def verify(self, *verifiers: Verifier) -> tuple[Verifier, ...]:
        """Check that every one of `verifiers` signed exactly once; lines by other keys are ignored.

        Returns:
            `verifiers`, as proof of what was checked.

        Raises:
            VerificationError: one did not sign, signed twice, or its signature does not hold.
            ValueError: no verifier, or one twice: the caller's policy would hold for nothing.
        """
        if not verifiers or len({(verifier.name, verifier.key_id) for verifier in verifiers}) < len(verifiers):
            raise ValueError(f"expected distinct verifiers, got {len(verifiers)}")
        for verifier in verifiers:
            verifier.verify(self.text, self.signature_by(verifier))
        return verifiers

    def signature_by(self, verifier: Verifier) -> bytes:
        """The one signature line's data that is said to be by `verifier`; nothing is verified.

        Raises:
            VerificationError: there is none, or several.
        """
        key_id = verifier.key_id
        own = [s.data for s in self.signatures if s.key_id == key_id and s.name == verifier.name]
        if len(own) != 1:
            raise VerificationError(f"{len(own)} signatures by {verifier.name}+{key_id}, expected one")
        return own[0]


def sign(text: str, *keys: SigningKey) -> Note:
    """A note over `text`, signed by every key in the order given.

    Raises:
        ValueError: the text cannot be a note's, or there are no keys, or one twice.
    """
    signatures = tuple(Signature(key.name, key.verifier.key_id, key.sign(text)) for key in keys)
    if len({(signature.name, signature.key_id) for signature in signatures}) < len(signatures):
        raise ValueError("a key can sign a note only once")
    return Note(text, signatures)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A log's state: its name, the number of entries and their 32-byte root hash. `str()` is the note's text."""

    origin: str
    size: int
    root: bytes

    def __post_init__(self) -> None:
        if not self.origin or "\n" in self.origin or _CONTROL.search(self.origin):
            raise ValueError(f"origin {self.origin[:80]!r} is empty or has control characters")
        if not 0 <= self.size <= MAX_SIZE:
            raise ValueError(f"tree size {self.size} is not between 0 and {MAX_SIZE}")
        if len(self.root) != HASH_BYTES:
            raise ValueError(f"root hash of {len(self.root)} bytes, expected {HASH_BYTES}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a checkpoint's text: three lines, no extension lines.

        Raises:
            MalformedError: it is not exactly that.
        """
        try:
            if text.count("\n") != 3:
                raise ValueError("it is not three lines: origin, size and root hash")
            origin, size, root, _ = text.split("\n")
            checkpoint = cls(origin, int(size), b64decode(root, validate=True))
        except ValueError as error:
            raise MalformedError(f"checkpoint {text[:80]!r}: {error}") from error
        if str(checkpoint) != text:
            raise MalformedError(f"checkpoint {text[:80]!r} is not canonical")
        return checkpoint

    def __str__(self) -> str:
        return f"{self.origin}\n{self.size}\n{_encode_base64(self.root)}\n"


def open_checkpoint(
    data: bytes, *, log: Verifier, origin: str | None = None, max_bytes: int = MAX_NOTE_BYTES
) -> Checkpoint:
    """The checkpoint in a note signed by `log`; its origin is `origin`, or else the verifier's name.

    Raises:
        TooLargeError: more than `max_bytes`.
        MalformedError: not a note, or not a checkpoint.
        VerificationError: not signed by `log`, or another log's checkpoint.
    """
    note = Note.parse(data, max_bytes=max_bytes)
    note.verify(log)
    checkpoint = Checkpoint.parse(note.text)
    expected = log.name if origin is None else origin
    if checkpoint.origin != expected:
        raise VerificationError(f"checkpoint of {checkpoint.origin!r}, expected {expected!r}")
    return checkpoint


@dataclass(frozen=True, slots=True)
class Proof:
    """An inclusion proof beside the signed checkpoint it leads to: `bytes()` is a `.tlog-proof` file.

    `hashes` start at the leaf's sibling (RFC 6962); `checkpoint` is the note, verbatim. Nothing is verified.
    """

    index: int
    hashes: tuple[bytes, ...]
    checkpoint: bytes

    def __post_init__(self) -> None:
        if not 0 <= self.index < MAX_SIZE:
            raise ValueError(f"leaf index {self.index} is not between 0 and {MAX_SIZE - 1}")
        if len(self.hashes) > _MAX_PROOF_HASHES:
            raise ValueError(f"{len(self.hashes)} hashes, expected at most {_MAX_PROOF_HASHES}")
        if any(len(hashed) != HASH_BYTES for hashed in self.hashes):
            raise ValueError(f"a hash that is not {HASH_BYTES} bytes")

    @classmethod
    def parse(cls, data: bytes, *, max_bytes: int = MAX_NOTE_BYTES) -> Self:
        """Read a `.tlog-proof` file strictly, down to the checkpoint's form; nothing is verified.

        Raises:
            TooLargeError: more than `max_bytes`.
            MalformedError: it is not exactly that, or carries extra data.
        """
        if len(data) > max_bytes:
            raise TooLargeError(f"proof of {len(data)} bytes, at most {max_bytes} are read")
        head, _, checkpoint = data.partition(b"\n\n")
        try:
            if b"\n" not in head:
                raise ValueError("it does not begin with a line of its format and one of its index")
            _, index, *lines = head.decode().split("\n")
            hashes = tuple(b64decode(line, validate=True) for line in lines)
            proof = cls(int(index.removeprefix("index ")), hashes, checkpoint)
        except ValueError as error:
            raise MalformedError(f"proof {data[:80]!r}: {error}") from error
        Checkpoint.parse(Note.parse(checkpoint, max_bytes=max_bytes).text)
        if bytes(proof) != data:
            raise MalformedError(f"proof {data[:80]!r} is not canonical")
        return proof

    def __bytes__(self) -> bytes:
        lines = [_PROOF_HEADER, f"index {self.index}", *map(_encode_base64, self.hashes)]
        return "\n".join(lines).encode() + b"\n\n" + self.checkpoint


def _key_id(name: str, public_key: bytes) -> str:
    return sha256(name.encode() + b"\n" + _ED25519_TYPE + public_key).hexdigest()[:8]


@lru_cache(_REMEMBERED)  # the same few parties sign again and again
def _check_name(name: str) -> None:
    """A key name has no Unicode spaces, no plus and, to be writable in a note, no control characters."""
    name.encode()  # a lone surrogate is a ValueError
    if not _NAME.fullmatch(name):
        raise ValueError(f"key name {name[:80]!r} is empty or has a space, plus or control character")


def _parse_signature(line: str) -> Signature:
    """One signature line, spelt as `str` of it is."""
    if line.count(" ") != 2:
        raise ValueError("it does not end in signatures, a line each: \u2014 NAME BASE64")
    prefix, name, encoded = line.split(" ")
    data = a2b_base64(encoded, strict_mode=True)
    if prefix != _PREFIX or b2a_base64(data, newline=False).decode() != encoded:
        raise ValueError(f"signature line {line[:80]!r} is not canonical")
    return Signature(name, data[:4].hex(), data[4:])


_P: Final = 2**255 - 19
_D: Final = -121665 * pow(121666, -1, _P) % _P


def _check_public_key(key: bytes) -> None:
    """Refuse encodings (RFC 8032 section 5.1.3) of no point, of one point twice, and of the eight small-order points.

    Under a small-order key some signature holds for any text, so it binds nobody.
    """
    if len(key) != 32:
        raise ValueError(f"public key of {len(key)} bytes, expected 32")
    y = int.from_bytes(key, "little") & ~(1 << 255)
    if y >= _P:
        raise ValueError("public key is not canonical")
    square = y * y % _P
    # Orders 1 and 2 have y = 1 and -1, order 4 has y = 0; order 8 doubles to y = 0, so x^2 = -y^2 on the curve.
    if y * (square - 1) * (_D * square * square + 2 * square - 1) % _P == 0:
        raise ValueError("public key is of small order")
    # x^2 = (y^2 - 1) / (d y^2 + 1) has a root just when the product of the two has one.
    if pow((square - 1) * (_D * square + 1), (_P - 1) // 2, _P) != 1:
        raise ValueError("public key is not on the curve")


def _encode_base64(data: bytes) -> str:
    return b64encode(data).decode("ascii")
