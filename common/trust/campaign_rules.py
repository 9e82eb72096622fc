"""The rules of campaigns: who may ask whom for what, and when an answer counts."""

from typing import TYPE_CHECKING

from common.errors import ConflictError, ConsentError, MalformedError, NotFoundError, NotPermittedError, TooLargeError
from common.trust.campaign_statements import (
    MAX_ATTACHMENT_BYTES,
    MEASURES,
    WITH_ATTACHMENT,
    CampaignClose,
    CampaignDecline,
    CampaignDefine,
    CampaignModel,
    CampaignResult,
    Evaluate,
    Extraction,
    Train,
)
from common.trust.speakers import CLOCKS_DIFFER, only_coordinator, only_owner
from common.trust.state import Campaign
from common.trust.statement_fields import COORDINATOR, parse_time

if TYPE_CHECKING:
    from common.trust.history import History


def check_define(statement: CampaignDefine, history: "History") -> None:
    """A campaign asks owners who have joined, once each, for something that is there, between two dates."""
    only_coordinator(statement, history)
    if statement.owners != sorted(set(statement.owners)):
        raise MalformedError("a campaign names its owners in order, each once")
    if strange := [name for name in statement.owners if name == COORDINATOR or name not in history.parties]:
        raise NotFoundError(f"a campaign asks {strange[0]}, who has not joined")
    if statement.quorum > len(statement.owners):
        raise MalformedError(f"a quorum of {statement.quorum} of {len(statement.owners)} owners cannot be had")
    if not max(statement.opens_at, statement.issued_at) < statement.closes_at:
        raise MalformedError(f"a campaign from {statement.opens_at} until {statement.closes_at} is never open")
    match statement.parameters:
        case Evaluate(model=model) | Extraction(model=model):
            _check_model(model, history)
        case Train(base_digest=digest) if digest not in history.bases:
            raise NotFoundError(f"base {digest} is not in the log; experts are trained over a logged base")


def _check_model(model: CampaignModel, history: "History") -> None:
    """A model is what it is said to be."""
    release = history.releases.get(model.name)
    match model.stands:
        case "base" if model.manifest.digest not in history.bases:
            raise NotFoundError(f"base {model.manifest.digest} is not in the log")
        case "release" if release is None or release.statement.manifest_digest != model.manifest.digest:
            raise NotFoundError(f"{model.manifest.digest} is not what the log names {model.name}")
        case "release" if release is not None and release.withdrawn_index is not None:
            raise ConflictError(f"{model.name} was withdrawn by entry {release.withdrawn_index}; nobody is to use it")


def check_decline(statement: CampaignDecline, history: "History") -> None:
    """An owner that was asked declines, once, while the campaign is open."""
    _check_answer(statement, history)


def check_result(statement: CampaignResult, history: "History") -> None:
    """An owner that was asked and has not left answers what was asked, once, in time."""
    campaign = _check_answer(statement, history)
    asked = campaign.statement
    if history.standing.get(statement.party) == 0:
        raise ConsentError(f"{statement.party} has left: its consents are revoked, and its answers count no more")
    if statement.subject != asked.subject:
        raise ConflictError(f"this answer is about {statement.subject}; campaign {asked.record_id} is about "
                            f"{asked.subject}")  # fmt: skip
    _check_figures(statement, asked)
    _check_attachment(statement, asked)


def _check_answer(statement: CampaignDecline | CampaignResult, history: "History") -> Campaign:
    only_owner(statement)
    campaign = history.campaigns.get(statement.campaign_id)
    if campaign is None:
        raise NotFoundError(f"campaign {statement.campaign_id} is not in the log")
    asked = campaign.statement
    if statement.party not in asked.owners:
        raise NotPermittedError(f"campaign {asked.record_id} did not ask {statement.party}")
    if campaign.closed_index is not None:
        raise ConflictError(f"campaign {asked.record_id} was closed by entry {campaign.closed_index}: this is late")
    if (earlier := history.answers.get((asked.record_id, statement.party))) is not None:
        raise ConflictError(f"{statement.party} answered campaign {asked.record_id} already, by entry {earlier.index}")
    said = parse_time(statement.issued_at)
    if not parse_time(asked.opens_at) - CLOCKS_DIFFER <= said <= parse_time(asked.closes_at):
        raise ConflictError(
            f"an answer of {statement.issued_at} to campaign {asked.record_id}, open from {asked.opens_at} until "
            f"{asked.closes_at}: it is too early or late"
        )
    return campaign


def _check_figures(statement: CampaignResult, asked: CampaignDefine) -> None:
    named = [(figure.name, figure.measure) for figure in statement.figures]
    if len(set(named)) < len(named):
        raise MalformedError("an answer gives each figure once")
    if strange := [figure.measure for figure in statement.figures if figure.measure not in MEASURES[asked.kind]]:
        raise MalformedError(f"{strange[0]} is no figure of a campaign of kind {asked.kind}")
    if not statement.figures and MEASURES[asked.kind]:
        raise MalformedError(f"an answer to a campaign of kind {asked.kind} gives a figure at least")
    if few := [figure for figure in statement.figures if figure.documents < asked.min_documents]:
        raise MalformedError(
            f"{few[0].name} {few[0].measure} is over {few[0].documents} documents; {asked.min_documents} are asked for "
            "at least, so that a figure is nobody's own"
        )


def _check_attachment(statement: CampaignResult, asked: CampaignDefine) -> None:
    attached = statement.attachment
    if attached is None:
        if asked.kind == "select-proxy":
            raise MalformedError("an answer to select-proxy names the file with the documents' ids")
        return
    if asked.kind not in WITH_ATTACHMENT:
        raise MalformedError(f"nothing goes beside an answer to a campaign of kind {asked.kind}")
    if attached.size > MAX_ATTACHMENT_BYTES:
        raise TooLargeError(f"an attachment of {attached.size} bytes; at most {MAX_ATTACHMENT_BYTES} are allowed")


def check_close(statement: CampaignClose, history: "History") -> None:
    """The coordinator closes an open campaign for a reason that holds, and says of every owner what it did."""
    only_coordinator(statement, history)
    campaign = history.campaigns.get(statement.campaign_id)
    if campaign is None:
        raise NotFoundError(f"campaign {statement.campaign_id} is not in the log")
    if campaign.closed_index is not None:
        raise ConflictError(f"campaign {statement.campaign_id} was closed by entry {campaign.closed_index} already")
    said = statement.reported, statement.declined, statement.absent
    if said != history.answered(statement.campaign_id):
        raise ConflictError("who reported, declined or was absent is another than the log has; close it anew")
    asked = campaign.statement
    if statement.by == "quorum" and len(statement.reported) < asked.quorum:
        raise ConflictError(f"{len(statement.reported)} owners reported, under the quorum of {asked.quorum}")
    if statement.by == "everybody" and statement.absent:
        raise ConflictError(f"{', '.join(statement.absent)} have not answered; closed because everybody did")
    if statement.by == "date" and parse_time(statement.issued_at) < parse_time(asked.closes_at):
        raise ConflictError(f"campaign {statement.campaign_id} is open until {asked.closes_at}")
