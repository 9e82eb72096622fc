"""Signed notes, checkpoints and proof files: published and independent vectors, and each way of being invalid."""

from base64 import b64encode
from collections.abc import Iterator
from hashlib import sha256

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ConcordError, MalformedError, TooLargeError, VerificationError
from common.trust.note import (
    MAX_SIGNATURES,
    Checkpoint,
    Note,
    Proof,
    Signature,
    SigningKey,
    Verifier,
    open_checkpoint,
    sign,
)

ORIGIN = "log.example/concord"
P = 2**255 - 19
ED25519_ORDER = 2**252 + 27742317777372353535851937790883648493


def key_of(name: str, seed: int) -> SigningKey:
    return SigningKey(name, Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32))


LOG = key_of(ORIGIN, 1)
WITNESS = key_of("witness.example", 2)
STRANGER = key_of("stranger.example", 3)

ROOT = sha256(b"root").digest()
CHECKPOINT = Checkpoint(ORIGIN, 42, ROOT)
SIGNED = bytes(sign(str(CHECKPOINT), LOG))
HASHES = tuple(sha256(bytes([i])).digest() for i in range(3))
PROOF = bytes(Proof(7, HASHES, SIGNED))


def signature_line(name: str, seed: int, text: bytes) -> bytes:
    """A signature line made with `cryptography` alone, from the words of the specification."""
    private = Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)
    public = private.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    key_id = sha256(name.encode() + b"\n\x01" + public).digest()[:4]
    return b"\xe2\x80\x94 " + name.encode() + b" " + b64encode(key_id + private.sign(text)) + b"\n"


# Vectors.


def test_the_published_note_verifies() -> None:
    """The example in the documentation of Go's golang.org/x/mod/sumdb/note."""
    verifier = Verifier.parse("PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW")
    data = (
        "If you think cryptography is the answer to your problem,\n"
        "then you don't know what your problem is.\n"
        "\n"
        "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
    ).encode()
    note = Note.parse(data)
    assert note.verify(verifier) == (verifier,)
    assert bytes(note) == data


def test_a_signed_checkpoint_is_what_the_specification_says() -> None:
    text = f"{ORIGIN}\n42\n".encode() + b64encode(ROOT) + b"\n"
    expected = text + b"\n" + signature_line(ORIGIN, 1, text) + signature_line("witness.example", 2, text)
    assert bytes(sign(str(CHECKPOINT), LOG, WITNESS)) == expected


def test_the_verifier_line_is_what_the_specification_says() -> None:
    public = Ed25519PrivateKey.from_private_bytes(bytes([1]) * 32).public_key().public_bytes_raw()
    key_id = sha256(ORIGIN.encode() + b"\n\x01" + public).hexdigest()[:8]
    assert LOG.verifier.key_id == key_id
    assert str(LOG.verifier) == f"{ORIGIN}+{key_id}+{b64encode(bytes([1]) + public).decode()}"


def test_a_proof_file_is_what_the_specification_says() -> None:
    lines = [b"c2sp.org/tlog-proof@v1", b"index 7", *(b64encode(hashed) for hashed in HASHES), b""]
    expected = b"\n".join(lines) + b"\n" + SIGNED
    assert bytes(Proof(7, HASHES, SIGNED)) == expected


def test_a_proof_of_a_tree_of_one_leaf_has_no_hashes() -> None:
    proof = Proof(0, (), SIGNED)
    assert bytes(proof) == b"c2sp.org/tlog-proof@v1\nindex 0\n\n" + SIGNED
    assert Proof.parse(bytes(proof)) == proof


# Keys.


def test_a_signing_key_survives_its_pem() -> None:
    key = SigningKey.generate("owner.example/a")
    pem = key.to_pem()
    assert pem.startswith(b"-----BEGIN PRIVATE KEY-----\n")
    assert SigningKey.from_pem(pem, name=key.name).verifier == key.verifier


def test_generated_keys_differ() -> None:
    assert SigningKey.generate("a").verifier != SigningKey.generate("a").verifier


def test_a_signing_key_does_not_show_itself() -> None:
    assert repr(LOG) == f"SigningKey(name={ORIGIN!r})"


def test_pems_that_are_no_signing_key_are_refused() -> None:
    encryption = serialization.BestAvailableEncryption(b"secret")
    pkcs8 = serialization.PrivateFormat.PKCS8
    encrypted = LOG.private_key.private_bytes(serialization.Encoding.PEM, pkcs8, encryption)
    p256 = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, pkcs8, serialization.NoEncryption()
    )
    for pem in (b"", b"not a key", LOG.to_pem()[:-40], encrypted, p256):
        with pytest.raises(MalformedError, match="signing key a"):
            SigningKey.from_pem(pem, name="a")


BAD_NAMES = ["", "a b", "a+b", "a\nb", "a\tb", "a\x00b", "a\x1fb", "a\u00a0b", "a\u2028b", "a\u3000", "\ud800"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_bad_key_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError):
        Verifier(name, LOG.verifier.public_key)
    with pytest.raises(ValueError):
        SigningKey.generate(name)
    with pytest.raises(ValueError):
        Signature(name, "00000000", b"signature")


@pytest.mark.parametrize("name", ["a", "log.example/concord", "größe", "日本", "—"])
def test_other_key_names_round_trip(name: str) -> None:
    key = SigningKey.generate(name)
    assert Verifier.parse(str(key.verifier)) == key.verifier
    assert Note.parse(bytes(sign("text\n", key))).verify(key.verifier) == (key.verifier,)


def small_order_points() -> Iterator[bytes]:
    """All eight points of order 1, 2, 4 and 8, from a multiple of a point outside the prime-order subgroup."""
    d = -121665 * pow(121666, -1, P) % P
    root_of_minus_one = pow(2, (P - 1) // 4, P)

    def add(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
        cross = d * a[0] * b[0] * a[1] * b[1] % P
        x = (a[0] * b[1] + a[1] * b[0]) * pow(1 + cross, -1, P) % P
        return x, (a[1] * b[1] + a[0] * b[0]) * pow(1 - cross, -1, P) % P

    def times(scalar: int, point: tuple[int, int]) -> tuple[int, int]:
        total = (0, 1)
        for bit in bin(scalar)[2:]:
            total = add(total, total)
            total = add(total, point) if bit == "1" else total
        return total

    found: set[tuple[int, int]] = set()
    for y in range(2, 40):
        x_squared = (y * y - 1) * pow(d * y * y + 1, -1, P) % P
        x = pow(x_squared, (P + 3) // 8, P)
        x = x if x * x % P == x_squared else x * root_of_minus_one % P
        if x * x % P == x_squared:
            torsion = times(ED25519_ORDER, (x, y))
            found |= {times(k, torsion) for k in range(8)}
    assert len(found) == 8
    for x, y in found:
        yield (y | (x & 1) << 255).to_bytes(32, "little")


@pytest.mark.parametrize("key", list(small_order_points()))
def test_small_order_keys_are_refused(key: bytes) -> None:
    with pytest.raises(ValueError, match="small order"):
        Verifier("a", key)


def test_some_text_holds_under_a_small_order_key() -> None:
    """Why they are refused: with the identity as key, the identity and zero sign anything."""
    identity = (1).to_bytes(32, "little")
    Ed25519PublicKey.from_public_bytes(identity).verify(identity + bytes(32), b"whatever")


@pytest.mark.parametrize("y", range(P, 2**255))
@pytest.mark.parametrize("sign_bit", [0, 1])
def test_non_canonical_keys_are_refused(y: int, sign_bit: int) -> None:
    with pytest.raises(ValueError, match="not canonical"):
        Verifier("a", (y | sign_bit << 255).to_bytes(32, "little"))


def test_the_other_sign_of_a_point_with_one_sign_is_refused() -> None:
    for y in (1, P - 1):
        with pytest.raises(ValueError, match="small order"):
            Verifier("a", (y | 1 << 255).to_bytes(32, "little"))


def test_keys_off_the_curve_are_refused() -> None:
    with pytest.raises(ValueError, match="not on the curve"):
        Verifier("a", (2).to_bytes(32, "little"))


@pytest.mark.parametrize("length", [0, 31, 33])
def test_keys_of_another_length_are_refused(length: int) -> None:
    with pytest.raises(ValueError, match=f"public key of {length} bytes"):
        Verifier("a", bytes(length))


@given(st.binary(min_size=32, max_size=32))
def test_every_generated_key_is_accepted(seed: bytes) -> None:
    key = SigningKey("a", Ed25519PrivateKey.from_private_bytes(seed))
    assert Verifier.parse(str(key.verifier)) == key.verifier


def encoded_key(name: str, key: bytes) -> str:
    key_id = sha256(name.encode() + b"\n" + key).hexdigest()[:8]
    return f"{name}+{key_id}+{b64encode(key).decode()}"


def bad_verifier_lines() -> Iterator[tuple[str, str]]:
    line, public = str(LOG.verifier), LOG.verifier.public_key
    name, key_id, encoded = line.split("+", 2)
    yield "empty", ""
    yield "no key", f"{name}+{key_id}"
    yield "empty name", encoded_key("", b"\x01" + public)
    yield "space in the name", encoded_key("a b", b"\x01" + public)
    yield "another key's id", f"{name}+{WITNESS.verifier.key_id}+{encoded}"
    yield "upper-case id", f"{name}+{key_id.upper()}+{encoded}"
    yield "long id", f"{name}+0{key_id}+{encoded}"
    yield "cosignature type", encoded_key(name, b"\x04" + public)
    yield "no type", encoded_key(name, public)
    yield "short key", encoded_key(name, b"\x01" + public[:-1])
    yield "small order", encoded_key(name, b"\x01" + bytes(32))
    yield "empty key", f"{name}+{key_id}+"
    yield "padding", line + "="
    yield "cut short", line[:-1]
    yield "leading space", " " + line
    yield "trailing newline", line + "\n"
    yield "not base64", f"{name}+{key_id}+!{encoded[1:]}"


@pytest.mark.parametrize(
    "line", [line for _, line in bad_verifier_lines()], ids=[why for why, _ in bad_verifier_lines()]
)
def test_bad_verifier_lines_are_refused(line: str) -> None:
    assert line != str(LOG.verifier)
    with pytest.raises(MalformedError, match="verifier key"):
        Verifier.parse(line)


# Notes: the form.

NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc", "Z"], exclude_characters="+"), min_size=1, max_size=20)
TEXTS = st.text(st.one_of(st.characters(exclude_categories=["Cs", "Cc"]), st.just("\n"), st.just("—"))).map(
    lambda text: text + "\n"
)
SIGNATURES = st.builds(
    Signature,
    name=NAMES,
    key_id=st.binary(min_size=4, max_size=4).map(bytes.hex),
    data=st.binary(min_size=1, max_size=80),
)


@given(st.builds(Note, text=TEXTS, signatures=st.lists(SIGNATURES, min_size=1, max_size=MAX_SIGNATURES).map(tuple)))
def test_every_note_comes_back(note: Note) -> None:
    assert Note.parse(bytes(note)) == note


@given(st.one_of(st.binary(max_size=200), st.text(alphabet="a\n —+=A\r", max_size=60).map(str.encode)))
def test_whatever_parses_as_a_note_is_written_back_the_same(data: bytes) -> None:
    try:
        note = Note.parse(data)
    except MalformedError:
        return
    assert bytes(note) == data


@given(TEXTS)
def test_any_text_can_be_signed_and_verified(text: str) -> None:
    note = Note.parse(bytes(sign(text, LOG, WITNESS)))
    assert note.text == text
    assert note.verify(WITNESS.verifier, LOG.verifier) == (WITNESS.verifier, LOG.verifier)


def test_a_signature_line_inside_the_text_stays_text() -> None:
    inner = bytes(sign("inner\n", STRANGER)).decode()
    note = Note.parse(bytes(sign(inner, LOG)))
    assert note.text == inner
    assert [signature.name for signature in note.signatures] == [ORIGIN]


def test_other_signature_types_are_carried() -> None:
    note = Note("text\n", (Signature("a", "01020304", b"x"), Signature("b", "01020305", bytes(5000))))
    assert Note.parse(bytes(note)) == note


TEXT = str(CHECKPOINT).encode()
LINE = signature_line(ORIGIN, 1, TEXT)


def stray_bits(line: bytes) -> bytes:
    """The same bytes in base64, with a bit set that padding ignores."""
    assert line.endswith(b"=\n")
    alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    last = alphabet[alphabet.index(line[-3]) ^ 1]
    return line[:-3] + bytes([last]) + b"=\n"


BAD_NOTES = {
    "empty": b"",
    "only a newline": b"\n",
    "text alone": TEXT,
    "no signatures": TEXT + b"\n",
    "no empty line": TEXT + LINE,
    "no text": b"\n" + LINE,
    "signatures alone": LINE,
    "no final newline": (TEXT + b"\n" + LINE)[:-1],
    "trailing newline": TEXT + b"\n" + LINE + b"\n",
    "trailing bytes": TEXT + b"\n" + LINE + b"x",
    "trailing line": TEXT + b"\n" + LINE + b"x\n",
    "trailing NUL": TEXT + b"\n" + LINE + b"\x00",
    "empty line between signatures": b"\n" + LINE + b"\n" + LINE[:-1],
    "CRLF": (TEXT + b"\n" + LINE).replace(b"\n", b"\r\n"),
    "CRLF in the signature line": TEXT + b"\n" + LINE[:-1] + b"\r\n",
    "tab in the text": b"a\tb\n\n" + LINE,
    "NUL in the text": b"a\x00b\n\n" + LINE,
    "escape in the text": b"a\x1bb\n\n" + LINE,
    "not UTF-8": b"\xff\n\n" + LINE,
    "overlong UTF-8": b"\xc0\xaf\n\n" + LINE,
    "surrogate": b"\xed\xa0\x80\n\n" + LINE,
    "hyphen for the em dash": TEXT + b"\n" + LINE.replace("—".encode(), b"-"),
    "en dash for the em dash": TEXT + b"\n" + LINE.replace("—".encode(), "\u2013".encode()),
    "leading space": TEXT + b"\n " + LINE,
    "two spaces": TEXT + b"\n" + LINE.replace(b" ", b"  ", 1),
    "trailing space": TEXT + b"\n" + LINE[:-1] + b" \n",
    "tab for space": TEXT + b"\n" + LINE.replace(b" ", b"\t", 1),
    "no name": TEXT + b"\n" + LINE.replace(b" " + ORIGIN.encode(), b""),
    "empty name": TEXT + b"\n" + LINE.replace(ORIGIN.encode(), b""),
    "plus in the name": TEXT + b"\n" + LINE.replace(b"/concord", b"+concord"),
    "no-break space in the name": TEXT + b"\n" + LINE.replace(b"/concord", "\u00a0".encode()),
    "no padding": TEXT + b"\n" + LINE.replace(b"=\n", b"\n"),
    "double padding": TEXT + b"\n" + LINE.replace(b"=\n", b"==\n"),
    "stray bits": TEXT + b"\n" + stray_bits(LINE),
    "URL-safe base64": TEXT + b"\n" + "— a _-__".encode() + b"\n",
    "not base64": TEXT + b"\n" + "— a !!!!".encode() + b"\n",
    "no signature": TEXT + b"\n" + "— a ".encode() + b"\n",
    "short key id": TEXT + b"\n" + "— a ".encode() + b64encode(b"123") + b"\n",
    "key id alone": TEXT + b"\n" + "— a ".encode() + b64encode(b"1234") + b"\n",
    "too many signatures": TEXT + b"\n" + LINE * (MAX_SIGNATURES + 1),
}


@pytest.mark.parametrize("data", BAD_NOTES.values(), ids=BAD_NOTES.keys())
def test_bad_notes_are_refused(data: bytes) -> None:
    assert data != TEXT + b"\n" + LINE
    with pytest.raises(MalformedError, match="note b"):
        Note.parse(data)


def test_sixteen_signatures_are_read() -> None:
    assert len(Note.parse(TEXT + b"\n" + LINE * MAX_SIGNATURES).signatures) == MAX_SIGNATURES


def test_a_note_over_the_limit_is_refused() -> None:
    assert Note.parse(SIGNED, max_bytes=len(SIGNED)).text == str(CHECKPOINT)
    with pytest.raises(TooLargeError, match=f"note of {len(SIGNED)} bytes"):
        Note.parse(SIGNED, max_bytes=len(SIGNED) - 1)


@pytest.mark.parametrize("text", ["", "no newline", "a\r\n", "a\x00\n", "\ud800\n"])
def test_texts_that_no_note_can_carry_are_not_signed(text: str) -> None:
    with pytest.raises(ValueError):
        sign(text, LOG)


def test_a_note_of_text_that_is_no_unicode_is_not_made() -> None:
    with pytest.raises(ValueError, match="surrogates"):
        Note("\ud800\n", (Signature("a", "00000000", b"x"),))


def test_signing_with_no_key_or_one_twice_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="0 signatures"):
        sign("text\n")
    with pytest.raises(ValueError, match="only once"):
        sign("text\n", LOG, LOG)


def test_a_key_id_is_hex_and_a_signature_not_empty() -> None:
    for key_id in ("", "1234567", "123456789", "ABCDEF01", "0x123456"):
        with pytest.raises(ValueError, match="8 hex digits"):
            Signature("a", key_id, b"x")
    with pytest.raises(ValueError, match="empty"):
        Signature("a", "00000000", b"")


# Notes: what holds.


def test_unknown_signatures_are_ignored() -> None:
    note = sign("text\n", STRANGER, LOG)
    broken = Note(note.text, (Signature(STRANGER.name, STRANGER.verifier.key_id, b"broken"), note.signatures[1]))
    assert broken.verify(LOG.verifier) == (LOG.verifier,)


def test_a_key_sharing_only_the_name_or_only_the_id_is_unknown() -> None:
    note = sign("text\n", LOG)
    lookalikes = (Signature(ORIGIN, "00000000", b"x"), Signature("else", LOG.verifier.key_id, b"x"))
    assert Note(note.text, lookalikes + note.signatures).verify(LOG.verifier) == (LOG.verifier,)
    with pytest.raises(VerificationError, match="0 signatures"):
        Note(note.text, lookalikes).verify(LOG.verifier)


def test_a_missing_signature_is_refused() -> None:
    with pytest.raises(VerificationError, match=f"0 signatures by {WITNESS.name}"):
        sign("text\n", LOG).verify(LOG.verifier, WITNESS.verifier)


def test_a_known_key_with_a_bad_signature_is_refused() -> None:
    note = sign("text\n", LOG, WITNESS)
    for text, signatures in (
        ("text \n", note.signatures),
        (note.text, (note.signatures[0], Signature(WITNESS.name, WITNESS.verifier.key_id, note.signatures[0].data))),
        (note.text, (note.signatures[0], Signature(WITNESS.name, WITNESS.verifier.key_id, b"short"))),
    ):
        with pytest.raises(VerificationError, match="does not hold"):
            Note(text, signatures).verify(LOG.verifier, WITNESS.verifier)


def test_a_signature_by_another_key_under_the_same_name_and_id_is_refused() -> None:
    forged = Signature(ORIGIN, LOG.verifier.key_id, STRANGER.sign("text\n"))
    with pytest.raises(VerificationError, match="does not hold"):
        Note("text\n", (forged,)).verify(LOG.verifier)


def test_a_known_key_signing_twice_is_refused() -> None:
    note = sign("text\n", LOG)
    with pytest.raises(VerificationError, match="2 signatures"):
        Note(note.text, note.signatures * 2).verify(LOG.verifier)


def test_the_second_form_of_a_signature_is_refused() -> None:
    """Ed25519's S plus the group order satisfies the equation too: accepting it would give one note two spellings."""
    (signature,) = sign("text\n", LOG).signatures
    s = int.from_bytes(signature.data[32:], "little") + ED25519_ORDER
    second = Signature(signature.name, signature.key_id, signature.data[:32] + s.to_bytes(32, "little"))
    with pytest.raises(VerificationError, match="does not hold"):
        Note("text\n", (second,)).verify(LOG.verifier)


def test_verifying_against_nothing_or_one_key_twice_is_a_mistake() -> None:
    note = sign("text\n", LOG)
    with pytest.raises(ValueError, match="distinct verifiers"):
        note.verify()
    with pytest.raises(ValueError, match="distinct verifiers"):
        note.verify(LOG.verifier, LOG.verifier)


def test_every_flipped_bit_of_a_signed_checkpoint_is_refused() -> None:
    for position in range(len(SIGNED)):
        for bit in range(8):
            flipped = bytearray(SIGNED)
            flipped[position] ^= 1 << bit
            with pytest.raises((MalformedError, VerificationError)):
                open_checkpoint(bytes(flipped), log=LOG.verifier)


def test_every_dropped_or_doubled_byte_of_a_signed_checkpoint_is_refused() -> None:
    for position in range(len(SIGNED)):
        for middle in (b"", SIGNED[position : position + 1] * 2):
            with pytest.raises((MalformedError, VerificationError)):
                open_checkpoint(SIGNED[:position] + middle + SIGNED[position + 1 :], log=LOG.verifier)


# Checkpoints.

CHECKPOINTS = st.builds(
    Checkpoint,
    origin=st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1),
    size=st.integers(0, 2**63 - 1),
    root=st.binary(min_size=32, max_size=32),
)


@given(CHECKPOINTS)
def test_every_checkpoint_comes_back(checkpoint: Checkpoint) -> None:
    assert Checkpoint.parse(str(checkpoint)) == checkpoint


@given(CHECKPOINTS)
def test_every_signed_checkpoint_opens(checkpoint: Checkpoint) -> None:
    data = bytes(sign(str(checkpoint), LOG, WITNESS))
    assert open_checkpoint(data, log=LOG.verifier, origin=checkpoint.origin) == checkpoint


@given(st.text(alphabet="a0 1\n=+" + b64encode(ROOT).decode(), max_size=80))
def test_whatever_parses_as_a_checkpoint_is_written_back_the_same(text: str) -> None:
    try:
        checkpoint = Checkpoint.parse(text)
    except MalformedError:
        return
    assert str(checkpoint) == text


ROOT_64 = b64encode(ROOT).decode()
BAD_CHECKPOINTS = {
    "empty": "",
    "no origin": f"\n42\n{ROOT_64}\n",
    "control character in the origin": f"a\tb\n42\n{ROOT_64}\n",
    "no size": f"a\n\n{ROOT_64}\n",
    "leading zero": f"a\n042\n{ROOT_64}\n",
    "plus sign": f"a\n+42\n{ROOT_64}\n",
    "minus sign": f"a\n-42\n{ROOT_64}\n",
    "underscore": f"a\n4_2\n{ROOT_64}\n",
    "leading space": f"a\n 42\n{ROOT_64}\n",
    "trailing space": f"a\n42 \n{ROOT_64}\n",
    "hex": f"a\n0x2a\n{ROOT_64}\n",
    "Arabic digits": f"a\n٤٢\n{ROOT_64}\n",
    "size 2**63": f"a\n{2**63}\n{ROOT_64}\n",
    "huge size": f"a\n{'9' * 5000}\n{ROOT_64}\n",
    "no root": "a\n42\n\n",
    "short root": f"a\n42\n{b64encode(bytes(31)).decode()}\n",
    "long root": f"a\n42\n{b64encode(bytes(33)).decode()}\n",
    "root without padding": f"a\n42\n{ROOT_64[:-1]}\n",
    "root with stray bits": "a\n42\n" + stray_bits(f"{ROOT_64}\n".encode()).decode(),
    "root in hex": f"a\n42\n{ROOT.hex()}\n",
    "space in the root": f"a\n42\n{ROOT_64[:8]} {ROOT_64[8:]}\n",
    "no final newline": f"a\n42\n{ROOT_64}",
    "extension line": f"a\n42\n{ROOT_64}\nextension\n",
    "empty line": f"a\n42\n{ROOT_64}\n\n",
    "CRLF": f"a\r\n42\r\n{ROOT_64}\r\n",
}


@pytest.mark.parametrize("text", BAD_CHECKPOINTS.values(), ids=BAD_CHECKPOINTS.keys())
def test_bad_checkpoints_are_refused(text: str) -> None:
    with pytest.raises(MalformedError, match="checkpoint"):
        Checkpoint.parse(text)


def test_checkpoints_out_of_range_are_not_made() -> None:
    for origin, size, root in (("", 1, ROOT), ("a\nb", 1, ROOT), ("a", -1, ROOT), ("a", 2**63, ROOT), ("a", 1, b"")):
        with pytest.raises(ValueError):
            Checkpoint(origin, size, root)


def test_a_checkpoint_opens_with_unknown_cosignatures() -> None:
    assert open_checkpoint(bytes(sign(str(CHECKPOINT), LOG, WITNESS)), log=LOG.verifier) == CHECKPOINT


def test_a_checkpoint_signed_by_another_key_is_refused() -> None:
    impostor = key_of(ORIGIN, 9)
    with pytest.raises(VerificationError, match="0 signatures"):
        open_checkpoint(bytes(sign(str(CHECKPOINT), impostor)), log=LOG.verifier)


def test_another_logs_checkpoint_is_refused() -> None:
    other = bytes(sign(str(Checkpoint("other.example", 42, ROOT)), LOG))
    with pytest.raises(VerificationError, match=r"checkpoint of 'other\.example'"):
        open_checkpoint(other, log=LOG.verifier)
    assert open_checkpoint(other, log=LOG.verifier, origin="other.example").origin == "other.example"
    with pytest.raises(VerificationError, match="checkpoint of"):
        open_checkpoint(SIGNED, log=LOG.verifier, origin="other.example")


def test_a_signed_note_that_is_no_checkpoint_is_refused() -> None:
    with pytest.raises(MalformedError, match="checkpoint"):
        open_checkpoint(bytes(sign(f"{ORIGIN}\nstatement\n", LOG)), log=LOG.verifier)


def test_a_checkpoint_over_the_limit_is_refused() -> None:
    with pytest.raises(TooLargeError):
        open_checkpoint(SIGNED, log=LOG.verifier, max_bytes=100)


# Proof files.


@given(st.integers(0, 2**63 - 2), st.lists(st.binary(min_size=32, max_size=32), max_size=63).map(tuple), CHECKPOINTS)
def test_every_proof_comes_back(index: int, hashes: tuple[bytes, ...], checkpoint: Checkpoint) -> None:
    proof = Proof(index, hashes, bytes(sign(str(checkpoint), LOG)))
    assert Proof.parse(bytes(proof)) == proof


def test_every_flipped_bit_of_a_proof_changes_or_breaks_it() -> None:
    """What parses is written back the same, so no two files mean the same proof."""
    parsed = Proof.parse(PROOF)
    for position in range(len(PROOF)):
        for bit in range(8):
            flipped = bytearray(PROOF)
            flipped[position] ^= 1 << bit
            try:
                other = Proof.parse(bytes(flipped))
            except ConcordError:
                continue
            assert other != parsed
            assert bytes(other) == flipped


HASH_64 = b64encode(HASHES[0])
HEADER = b"c2sp.org/tlog-proof@v1\n"
BAD_PROOFS = {
    "empty": b"",
    "checkpoint alone": SIGNED,
    "another version": PROOF.replace(b"@v1", b"@v2"),
    "no index": HEADER + HASH_64 + b"\n\n" + SIGNED,
    "no header": PROOF.removeprefix(HEADER),
    "header alone": HEADER + b"\n" + SIGNED,
    "extra data": PROOF.replace(b"\nindex", b"\nextra AAAA\nindex"),
    "index with a leading zero": PROOF.replace(b"index 7", b"index 07"),
    "negative index": PROOF.replace(b"index 7", b"index -7"),
    "index without a space": PROOF.replace(b"index 7", b"index7"),
    "index with two spaces": PROOF.replace(b"index 7", b"index  7"),
    "index too large": PROOF.replace(b"index 7", f"index {2**63 - 1}".encode()),
    "index twice": PROOF.replace(b"index 7\n", b"index 7\nindex 7\n"),
    "upper-case index": PROOF.replace(b"index 7", b"Index 7"),
    "short hash": HEADER + b"index 7\n" + b64encode(bytes(31)) + b"\n\n" + SIGNED,
    "hash with stray bits": HEADER + b"index 7\n" + stray_bits(HASH_64 + b"\n") + b"\n" + SIGNED,
    "space after a hash": HEADER + b"index 7\n" + HASH_64 + b" \n\n" + SIGNED,
    "too many hashes": HEADER + b"index 7\n" + (HASH_64 + b"\n") * 64 + b"\n" + SIGNED,
    "two empty lines": PROOF.replace(b"\n\n", b"\n\n\n", 1).replace(b"index 7", b"index 8"),
    "no empty line": PROOF.replace(b"\n\n", b"\n", 1),
    "no checkpoint": PROOF.removesuffix(SIGNED),
    "unsigned checkpoint": PROOF.removesuffix(SIGNED) + TEXT,
    "note that is no checkpoint": PROOF.removesuffix(SIGNED) + bytes(sign("text\n", LOG)),
    "trailing newline": PROOF + b"\n",
    "CRLF": PROOF.replace(b"\n", b"\r\n"),
    "not UTF-8": PROOF.replace(b"index", b"\xffndex"),
    "leading byte order mark": b"\xef\xbb\xbf" + PROOF,
}


@pytest.mark.parametrize("data", BAD_PROOFS.values(), ids=BAD_PROOFS.keys())
def test_bad_proofs_are_refused(data: bytes) -> None:
    assert data != PROOF
    with pytest.raises(MalformedError, match=r"proof b|note b|checkpoint '"):
        Proof.parse(data)


def test_a_proof_over_the_limit_is_refused() -> None:
    assert Proof.parse(PROOF, max_bytes=len(PROOF)).index == 7
    with pytest.raises(TooLargeError, match=f"proof of {len(PROOF)} bytes"):
        Proof.parse(PROOF, max_bytes=len(PROOF) - 1)


def test_proofs_out_of_range_are_not_made() -> None:
    for index, hashes in ((-1, ()), (2**63 - 1, ()), (0, (b"short",)), (0, HASHES[:1] * 64)):
        with pytest.raises(ValueError):
            Proof(index, hashes, SIGNED)
