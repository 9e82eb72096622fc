"""Saying what was found: the answer passes egress, is signed once, and is sent until the log has it.

The owner's chain of statements decides what was said already: an answer that was signed before a crash is sent again,
byte for byte, and never signed a second time.
"""

from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from common.trust.campaign_statements import CampaignDecline, CampaignResult
from common.trust.statements import parse_time
from common.trust.strict_json import load_object
from owner_client import egress
from owner_client.campaign_folder import CampaignFolder, folder_of
from owner_client.chain import Said
from owner_client.membership import REFUSALS, Membership, send
from owner_client.participation import send_unsent


def report(member: Membership, folder: CampaignFolder) -> bool:
    """Sign and send the answer, or the refusal; False where it must come later, since the chain is in use, or where
    Flower is to fetch it.

    Raises:
        EgressDeniedError: the settings or a person do not let it leave.
        ApprovalNeededError, SignatureNeededError: a person is needed first.
        ConcordError: the coordinator refused it; the message says why.
    """
    with member.chain.turn_if_free() as is_free:
        if not is_free:
            return False
        said = said_before(member, folder)
        if said is None:
            if not _is_chain_free(member):
                return False
            said = _sign(member, folder)
        folder.write("answer.note", said.note)
        if waits_for_flower(member):
            return False
        done = send(member, said)
        assert done.receipt is not None, "send() answers with a receipt or raises"
        folder.write("receipt", done.receipt)
        return True


def _is_chain_free(member: Membership) -> bool:
    """Whether the next statement may be signed: all before it are in the log, or were refused and set aside. An upload
    that is not done waits, and so does a revocation that is sent again and again; neither is this campaign's failure.
    """
    if not waits_for_flower(member):
        with suppress(*REFUSALS):
            send_unsent(member)
    return not member.chain.pending()


def waits_for_flower(member: Membership) -> bool:
    """Whether what is signed and not in the log is an answer that Flower is to fetch. Not for long, and whoever signs
    something else meanwhile sends it first: an opt-out waits for nobody.
    """
    settings = member.settings.flower
    if not settings.enabled:
        return False
    for said in member.chain.pending():
        if not isinstance(said.statement, CampaignResult | CampaignDecline):
            return False
        age_s = (datetime.now(UTC) - parse_time(said.statement.issued_at)).total_seconds()
        if age_s > settings.patience_s or folder_of(member.home, said.statement.campaign_id).has("native"):
            return False
    return bool(member.chain.pending())


def said_before(member: Membership, folder: CampaignFolder) -> Said | None:
    """The answer to a campaign, if it was signed."""
    for said in member.chain.statements():
        if isinstance(said.statement, CampaignResult | CampaignDecline) and said.statement.campaign_id == folder.id:
            return said
    return None


def _sign(member: Membership, folder: CampaignFolder) -> Said:
    content = folder.read("answer.json")
    if content is None or folder.has("declined"):
        reason = (folder.read("declined") or b"").decode().strip()
        optional: dict[str, Any] = {"reason": reason} if reason else {}
        return member.chain.say(CampaignDecline, campaign_id=folder.id, **optional)
    egress.let_answer_go(
        member.reviews,
        name=f"answer to {folder.asked.kind} {folder.id}",
        content=content,
        attachment=folder.read("attachment") or b"",
        to=member.settings.target,
    )
    fields: dict[str, Any] = load_object(content, what="the answer")
    return member.chain.say(CampaignResult, **fields)
