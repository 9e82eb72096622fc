"""Revocations handed straight to a witness: the answer to a coordinator that does not record them or is not there.

What is signed here and is no one's secret goes to the witness; its timed receipt stays, for any auditor.
"""

from datetime import datetime
from pathlib import Path

from common.errors import NotFoundError, UnavailableError, VerificationError
from common.files import write_into
from common.http import post
from common.trust.cosignature import Witness
from common.trust.note import Note
from common.trust.receipts import MAX_RECEIPT_BYTES, parse_receipt
from common.trust.statements import ConsentRevoke, OwnerKeyRevoke, parse_note
from common.witness import ADD_REVOCATION
from owner_client import egress
from owner_client.config import OwnerHome


def hand_over(home: OwnerHome, witness: Witness, address: str) -> list[tuple[Path, datetime]]:
    """Hand every revocation that this owner signed to a witness; where each receipt is, and the witness's time.

    Raises:
        NotFoundError: nothing was revoked here.
        UnavailableError: the witness cannot be reached, or refuses.
        VerificationError: what came back is no receipt by this witness for what was handed over.
    """
    notes = [path.read_bytes() for path in sorted(home.statements.glob("*.note"))]
    said = [note for note in notes if isinstance(parse_note(note)[1], (ConsentRevoke, OwnerKeyRevoke))]
    if not said:
        raise NotFoundError("nothing was revoked in this home; run: concord owner opt-out")
    return [_hand_over(home, witness, address, note) for note in said]


def _hand_over(home: OwnerHome, witness: Witness, address: str, note: bytes) -> tuple[Path, datetime]:
    path = home.path / "receipts" / f"{witness.key_id}-{parse_note(note)[1].record_id}.note"
    if path.exists():  # another one would bear a later time
        return path, parse_receipt(path.read_bytes(), [witness]).taken[witness.name]
    name = f"revocation to {witness.name}"
    message = egress.message(home.ledger, "statement", name=name, data=note, to=address)
    status, _, body = post(f"{address.rstrip('/')}/{ADD_REVOCATION}", message.data, most=MAX_RECEIPT_BYTES)
    if status != 200:
        raise UnavailableError(f"{witness.name} answers {status}: {body[:300].decode(errors='replace').strip()}")
    receipt = parse_receipt(body, [witness])
    if receipt.note.text != Note.parse(note).text:
        raise VerificationError(f"{witness.name} answered with a receipt for something else")
    return write_into(path.parent, path.name, body), receipt.taken[witness.name]
