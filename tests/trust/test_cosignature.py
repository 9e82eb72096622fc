"""Cosignatures: the C2SP format to the byte, and every change of one refused."""

from base64 import b64encode
from datetime import UTC, datetime
from hashlib import sha256

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.errors import ConflictError, MalformedError, VerificationError
from common.trust.cosignature import Witness, cosign, cosigned, sign_receipt
from common.trust.note import Checkpoint, Note, Signature, SigningKey, Verifier, sign
from tests.trust.telling import Telling, key_of, refused

LOG = SigningKey.generate("log.example")
KEY = SigningKey("witness.example", Ed25519PrivateKey.from_private_bytes(bytes([7]) * 32))
WITNESS = Witness.of(KEY)
TEXT = str(Checkpoint("log.example", 5, bytes(range(32))))
AT = datetime(2026, 11, 23, 9, tzinfo=UTC)


def note(*more: Signature) -> Note:
    """The log's checkpoint with cosignatures."""
    return Note(TEXT, (*sign(TEXT, LOG).signatures, *more))


def test_a_cosignature_says_when() -> None:
    assert cosigned(note(cosign(TEXT, KEY, at=AT)), [WITNESS]) == {"witness.example": AT}
    assert cosigned(note(), [WITNESS]) == {}
    again = Note.parse(bytes(note(cosign(TEXT, KEY, at=AT))))
    assert cosigned(again, [WITNESS]) == {"witness.example": AT}


def test_the_format_is_that_of_the_specification() -> None:
    """Made here from the words of c2sp.org/tlog-cosignature alone."""
    public = KEY.private_key.public_key().public_bytes_raw()
    key_id = sha256(b"witness.example\n\x04" + public).digest()[:4]
    seconds = int(AT.timestamp())
    message = b"cosignature/v1\ntime %d\n" % seconds + TEXT.encode()
    data = key_id + seconds.to_bytes(8, "big") + KEY.private_key.sign(message)
    assert str(cosign(TEXT, KEY, at=AT)) == f"\u2014 witness.example {b64encode(data).decode()}"
    encoded = b64encode(b"\x04" + public).decode()
    assert str(WITNESS) == f"witness.example+{key_id.hex()}+{encoded}"
    assert Witness.parse(str(WITNESS)) == WITNESS
    assert Verifier("witness.example", public).key_id != WITNESS.key_id


def test_every_flipped_bit_is_refused() -> None:
    good = cosign(TEXT, KEY, at=AT)
    for bit in range(8 * len(good.data)):
        data = bytearray(good.data)
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises(VerificationError):
            cosigned(note(Signature(good.name, good.key_id, bytes(data))), [WITNESS])


@pytest.mark.parametrize("data", [b"x", b"\0" * 72, b"\0" * 8 + b"x" * 64, b"\xff" * 72, b"\0" * 73])
def test_what_has_no_such_form_is_refused(data: bytes) -> None:
    with pytest.raises(VerificationError):
        cosigned(note(Signature(KEY.name, WITNESS.key_id, data)), [WITNESS])


def test_a_cosignature_is_for_one_checkpoint_and_by_one_key() -> None:
    other = str(Checkpoint("log.example", 6, bytes(32)))
    with pytest.raises(VerificationError, match="does not hold"):
        cosigned(Note(other, (*sign(other, LOG).signatures, cosign(TEXT, KEY, at=AT))), [WITNESS])
    stranger = SigningKey.generate("witness.example")
    assert cosigned(note(cosign(TEXT, stranger, at=AT)), [WITNESS]) == {}
    forged = Signature(KEY.name, WITNESS.key_id, cosign(TEXT, stranger, at=AT).data)
    with pytest.raises(VerificationError, match="does not hold"):
        cosigned(note(forged), [WITNESS])


def test_two_cosignatures_of_one_witness_are_one_too_many() -> None:
    later = cosign(TEXT, KEY, at=datetime(2026, 11, 24, tzinfo=UTC))
    with pytest.raises(VerificationError, match="2 cosignatures by witness"):
        cosigned(note(cosign(TEXT, KEY, at=AT), later), [WITNESS])


@pytest.mark.parametrize(
    "line",
    [
        "",
        "witness.example",
        str(KEY.verifier),
        str(WITNESS) + "\n",
        str(WITNESS).replace("witness", "other"),
        "witness.example+00000000+BA==",
        f"witness.example+{WITNESS.key_id}+{b64encode(bytes([4]) + bytes(32)).decode()}",
    ],
)
def test_a_line_that_is_no_witness_s_is_refused(line: str) -> None:
    with pytest.raises(MalformedError, match="witness key"):
        Witness.parse(line)


# In the log


def _witness(party: str, key: SigningKey | None = None) -> str:
    name = f"health.example/witness/{party}"
    return str(Witness.of(key if key else SigningKey.generate(name)))


def test_an_owner_joins_with_a_witness(log: Telling) -> None:
    line = _witness("hospital")
    log.joins("hospital", witness_key=line)
    assert [str(witness) for witness in log.history.witnesses] == [line]


def test_a_witness_is_called_after_its_owner(log: Telling) -> None:
    act = lambda: log.joins("hospital", witness_key=_witness("archive"))  # noqa: E731
    refused(log, MalformedError, "may not be called", act)
    act = lambda: log.joins("hospital", witness_key=str(key_of("hospital").verifier))  # noqa: E731
    refused(log, MalformedError, "witness key", act)


def test_one_witness_is_not_two_owners(log: Telling) -> None:
    key = SigningKey.generate("health.example/witness/hospital")
    log.joins("hospital", witness_key=_witness("hospital", key))
    same = SigningKey("health.example/witness/library", key.private_key)
    act = lambda: log.joins("library", witness_key=_witness("library", same))  # noqa: E731
    refused(log, ConflictError, "is another owner's", act)


def test_a_receipt_and_a_cosignature_are_never_taken_for_each_other() -> None:
    receipt, cosignature = sign_receipt(TEXT, KEY, at=AT), cosign(TEXT, KEY, at=AT)
    assert cosigned(note(receipt), [WITNESS], is_receipt=True) == {"witness.example": AT}
    assert cosigned(note(receipt), [WITNESS]) == {}
    assert cosigned(note(cosignature), [WITNESS], is_receipt=True) == {}
    assert len({WITNESS.key_id, WITNESS.receipt_key_id, KEY.verifier.key_id}) == 3
    renamed = (
        Signature(KEY.name, WITNESS.key_id, receipt.data),
        Signature(KEY.name, WITNESS.receipt_key_id, cosignature.data),
    )
    for line, is_receipt in zip(renamed, (False, True), strict=True):
        with pytest.raises(VerificationError, match="does not hold"):
            cosigned(note(line), [WITNESS], is_receipt=is_receipt)
    seconds = int(AT.timestamp())
    assert receipt.data[:8] == seconds.to_bytes(8, "big")
    KEY.verifier.verify(f"concord/v1 receipt\ntime {seconds}\n{TEXT}", receipt.data[8:])
