"""What an owner is asked, and what it decides. Whoever brings an offer (the daemon's own poll, or another dispatcher)
hands it to `take_offer`, asks `state_of` later and takes the answer from `answer_of`: each may be repeated.

Nothing here works on a campaign or sends anything: that is the daemon's (`owner_client/campaign_worker.py`).
"""

from collections.abc import Collection
from datetime import UTC, datetime

from common.errors import ConflictError, MalformedError, NotPermittedError
from common.files import read_required
from common.trust.campaign_statements import CampaignDefine, Evaluate, Extraction
from common.trust.note import Note
from common.trust.root import TrustedRoot
from common.trust.statements import parse_note, parse_time
from owner_client.campaign_folder import folder_of, folders
from owner_client.config import OwnerHome, OwnerSettings


def take_offer(home: OwnerHome, note: bytes) -> str:
    """Take in what the coordinator asks, and decide by this owner's settings; the campaign's state here.

    Raises:
        MalformedError: it is no such statement.
        VerificationError: the coordinator did not sign it.
        NotPermittedError: it is of another federation, or does not ask this owner.
        ConflictError: it is over, or another one had this id.
    """
    settings = home.settings()
    root = TrustedRoot.parse(read_required(home.trusted_root, hint="restore it or enrol again"))
    asked = _check(*parse_note(note), root=root, owner=settings.owner)
    folder = folder_of(home, asked.record_id)
    if folder.state == "unknown":
        if parse_time(asked.closes_at) <= datetime.now(UTC):
            raise ConflictError(f"campaign {asked.record_id} was open until {asked.closes_at}; it is over")
        folder.keep_offer(note)
    elif folder.asked != asked:
        raise ConflictError(f"campaign {asked.record_id} asked something else before; tell the other owners")
    folder.forget("closed")
    if is_accepted_by_settings(settings, asked):
        folder.write_first("accepted", b"by the settings\n", unless=("declined",))
    return folder.state


def asked_no_more(home: OwnerHome, offered: Collection[str]) -> None:
    """Whatever waits for a person's word and is not among the campaigns that are `offered` now waits no longer."""
    for folder in folders(home):
        if folder.state == "offered" and folder.id not in offered:
            folder.write("closed")


def _check(note: Note, statement: object, *, root: TrustedRoot, owner: str) -> CampaignDefine:
    if not isinstance(statement, CampaignDefine):
        raise MalformedError(f"an offer of a campaign is wanted, not {getattr(statement, 'type', 'that')}")
    note.verify(root.coordinator)
    if (statement.federation, statement.origin) != (root.federation, root.origin):
        raise NotPermittedError(f"this campaign is of {statement.federation!r}, not of {root.federation!r}")
    if owner not in statement.owners:
        raise NotPermittedError(f"campaign {statement.record_id} does not ask {owner}")
    return statement


def is_accepted_by_settings(settings: OwnerSettings, asked: CampaignDefine) -> bool:
    """Whether this owner's settings accept a campaign without asking a person."""
    policy = settings.campaigns
    match asked.parameters:
        case Evaluate(model=model) | Extraction(model=model) if model.stands == "candidate" and not policy.candidates:
            return False
    return asked.kind in policy.accept


def decide(home: OwnerHome, campaign_id: str, *, accept: bool, reason: str | None = None) -> str:
    """A person's word on what is asked; accepting again what failed has it tried again. The state it is in then.

    Raises:
        NotFoundError: nothing of this id was asked.
        ConflictError: it was decided the other way, or is over.
    """
    folder = folder_of(home, campaign_id)
    asked = folder.asked
    if accept and parse_time(asked.closes_at) <= datetime.now(UTC):
        raise ConflictError(f"campaign {campaign_id} was open until {asked.closes_at}; it is over")
    name, other = ("accepted", "declined") if accept else ("declined", "accepted")
    may_change = folder.state == "failed"  # what could not be done may be declined after all
    folder.write_first(name, (reason or "").encode(), unless=() if may_change else (other,))
    if not folder.has(name):
        raise ConflictError(f"campaign {campaign_id} was {folder.state} already; what was decided stands")
    folder.forget("failed")
    return folder.state


def state_of(home: OwnerHome, campaign_id: str) -> str:
    """How far a campaign is here; `unknown` where it was not offered."""
    return folder_of(home, campaign_id).state


def answer_of(home: OwnerHome, campaign_id: str) -> tuple[bytes, bytes] | None:
    """The signed answer and what goes beside it, once there is one."""
    folder = folder_of(home, campaign_id)
    note = folder.read("answer.note")
    return None if note is None else (note, folder.read("attachment") or b"")
