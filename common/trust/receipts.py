"""A witness's receipt for a revocation: the statement's own note with the witness's timed line under it.

It answers a coordinator that drops a revocation: whoever holds it can show that this was said, and by when. The time is
the witness's; the line has the form of a cosignature, and is none (`cosignature.py`). A witness signs what is brought
to it; whether the owner said it is seen from the log, and an owner's own witness is no witness of what that owner
said.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from common.errors import ConcordError, ConflictError, ConsentError, MalformedError, NotFoundError, VerificationError
from common.trust.cosignature import Witness, cosigned
from common.trust.history import History
from common.trust.note import Note
from common.trust.rules import owner_key_name
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
    if not (taken := cosigned(note, witnesses, is_receipt=True)):
        raise VerificationError(f"no witness that is trusted here took {statement.type} {statement.record_id}")
    return Receipt(note, statement, taken)


def parse_receipt_of_owner(data: bytes, witnesses: Sequence[Witness], history: History) -> Receipt:
    """A receipt that counts against the log: by a witness other than the owner's own."""
    _, statement = parse_revocation(data)
    party = history.parties.get(statement.party)
    own = None if party is None or party.witness is None else party.witness.public_key
    return parse_receipt(data, [witness for witness in witnesses if witness.public_key != own])


def logged_texts(receipts: Iterable[Receipt], entries: Iterable[bytes]) -> set[str]:
    """Which of the receipts' statements are among the log's entries, by their text."""
    wanted = {receipt.note.text.encode() for receipt in receipts}
    found = {text for entry in entries if (text := entry[: entry.rindex(b"\n\n") + 1]) in wanted}
    return {text.decode() for text in found}


def hasten(history: History, receipts: Iterable[Receipt]) -> None:
    """Let what these revocations, which are in the log, ask for be due as if it had held them GRACE after the first
    witness took them: a coordinator gains nothing by recording one late."""
    for receipt in receipts:
        match receipt.statement:
            case ConsentRevoke(effect="withdraw_published", grant_id=grant_id):
                deadline = receipt.statement.deadline_from(min(receipt.taken.values()) + GRACE)
                for index, cause in history.taking_back.items():  # one a consent, so it is this very revocation
                    if cause.grant_id == grant_id:
                        history.taking_back[index] = replace(cause, deadline=min(cause.deadline, deadline))


def why_not_owed(receipt: Receipt, history: History) -> str | None:
    """Why the log, which does not hold this revocation, could not take it either; None where it could: it is owed.

    Raises:
        MalformedError: this owner did not sign it.
    """
    said = receipt.statement
    party = history.parties.get(said.party)
    if party is not None and said.key_id in party.revoked_key_ids:
        return f"{said.party} has revoked key {said.key_id} since"
    own = owner_key_name(said.federation, said.party)
    signatures = tuple(each for each in receipt.note.signatures if each.name == own)
    if not signatures:
        raise MalformedError(f"{said.party} did not sign this {said.type}")
    note = Note(receipt.note.text, signatures)
    try:
        history.check_parsed(note, said)
    except (ConflictError, ConsentError, NotFoundError) as error:
        return str(error)
    except ConcordError as error:
        raise MalformedError(f"{said.party} did not sign this {said.type}: {error}") from error
    return None


def is_overdue(receipt: Receipt, *, at: datetime) -> bool:
    """Whether the log had to hold it by then."""
    return min(receipt.taken.values()) + GRACE < at


MAX_RECEIPT_BYTES: Final = 2 * MAX_STATEMENT_BYTES
