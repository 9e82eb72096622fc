"""A witness's receipt for a revocation: the statement's own note with the witness's timed cosignature under it.

It answers a coordinator that drops a revocation: whoever holds it can show that this was said, and by when. The time is
the witness's; the signature is over the statement's text as over a checkpoint's (C2SP tlog-cosignature), and no
statement reads as a checkpoint.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from common.errors import MalformedError, VerificationError
from common.trust.cosignature import Witness, cosigned
from common.trust.note import Note
from common.trust.statements import MAX_STATEMENT_BYTES, ConsentRevoke, OwnerKeyRevoke, Statement, parse_note

GRACE: Final = timedelta(hours=24)
"""How long after a witness took a revocation the log may be without it."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """A revocation that witnesses took, and when each did."""

    note: Note
    statement: Statement
    taken: Mapping[str, datetime]


def parse_revocation(data: bytes) -> tuple[Note, Statement]:
    """A revocation as its owner signed it.

    Raises:
        MalformedError: it is none.
    """
    note, statement = parse_note(data)
    if not isinstance(statement, (ConsentRevoke, OwnerKeyRevoke)):
        raise MalformedError(f"witnesses take revocations, not {statement.type}")
    return note, statement


def parse_receipt(data: bytes, witnesses: Sequence[Witness]) -> Receipt:
    """A receipt with the cosignature of at least one of `witnesses`.

    Raises:
        MalformedError: it is no revocation's note.
        VerificationError: none of them cosigned it, or a cosignature does not hold.
    """
    note, statement = parse_revocation(data)
    if not (taken := cosigned(note, witnesses)):
        raise VerificationError(f"no witness that is trusted here took {statement.type} {statement.record_id}")
    return Receipt(note, statement, taken)


def dropped(receipts: Iterable[Receipt], logged: set[str], *, at: datetime) -> list[Receipt]:
    """Receipts of revocations whose digest is not among those `logged`, although they had to be by then."""
    return [
        receipt
        for receipt in receipts
        if receipt.statement.digest not in logged and min(receipt.taken.values()) + GRACE < at
    ]


MAX_RECEIPT_BYTES: Final = 2 * MAX_STATEMENT_BYTES
