"""A copy of a ledger for somebody else: a signed note that says how many lines there are and the last one's digest, and
then the lines. Whoever has it can check it without anything else, and hold later copies against it.
"""

from dataclasses import dataclass
from typing import Final

from common.errors import MalformedError, VerificationError
from common.trust import strict_json
from common.trust.note import Note, SigningKey, Verifier, sign
from owner_client.ledger import Head, Line, verify_lines

_TYPE: Final = "concord/v1 ledger"
_MOST_NOTE_BYTES: Final = 4096
_END: Final = b"\n--\n"


@dataclass(frozen=True, slots=True)
class Export:
    """A checked copy: whose it says it is, and which key signed it, if any."""

    name: str
    head: Head
    lines: list[Line]
    signed_by: str | None

    def describe_signature(self) -> str:
        """Who vouches for it, for people."""
        return f"signed by {self.signed_by}" if self.signed_by else f"of {self.name}, signed by nobody"


def export(data: bytes, head: Head, *, name: str, key: SigningKey | None) -> bytes:
    """The copy of a ledger whose lines are `data` and whose owner's key is called `name`."""
    text = f"{_TYPE}\n{strict_json.canonical({'lines': head.size, 'name': name, 'head': head.digest}).decode()}\n"
    note = text.encode() if key is None else bytes(sign(text, key))
    return note + _END + data


def read_export(data: bytes, key: Verifier | None) -> Export:
    """Check a copy; where `key` is given it must be signed by it.

    Raises:
        MalformedError: it is no copy of a ledger.
        VerificationError: a line was changed, or the signature does not hold or is another's.
    """
    head, separator, lines = data.partition(_END)
    if not separator or not head.startswith(f"{_TYPE}\n".encode()):
        raise MalformedError("this is no ledger that `concord owner ledger export` wrote")
    match strict_json.load_object(head.split(b"\n", 2)[1], what="the ledger's head"):
        case {"lines": int(size), "name": str(name), "head": str(digest), **rest} if not rest:
            pass
        case _:
            raise MalformedError("the ledger's head is not one that is written here")
    found, reached = verify_lines(lines)
    if reached != Head(size, digest):
        raise VerificationError(f"the copy has {reached.size} lines; its head says {size}, or another last one")
    return Export(name, reached, found, _signer(head, key, name))


def _signer(head: bytes, key: Verifier | None, name: str) -> str | None:
    if key is None and head.count(b"\n") == 2:
        return None
    try:
        note = Note.parse(head, max_bytes=_MOST_NOTE_BYTES)
    except MalformedError as error:
        raise VerificationError(f"it is not signed: {error}") from error
    if key is None:
        return f"{note.signatures[0].name}+{note.signatures[0].key_id}, which was not checked: name its line with --key"
    note.verify(key)
    if key.name != name:
        raise VerificationError(f"it is the ledger of {name}, signed by {key.name}")
    return f"{key.name}+{key.key_id}"
