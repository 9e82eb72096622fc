"""Statements in words, for people who sign or read them."""

from common.trust.campaign_statements import (
    CampaignClose,
    CampaignDecline,
    CampaignDefine,
    CampaignResult,
    Evaluate,
    Extraction,
    Figure,
    Parameters,
    SelectProxy,
    Train,
)
from common.trust.statements import (
    BasePublish,
    CertRevoke,
    ConsentGrant,
    ConsentRevoke,
    ExpertContribute,
    OwnerKeyAdd,
    OwnerKeyRevoke,
    ReleasePublish,
    ReleaseWithdraw,
    Statement,
)


def describe(statement: Statement) -> str:
    """What a statement says, in a line."""
    match statement:
        case ConsentGrant():
            scope = statement.scope.model_dump()
            where = ", ".join(f"{kind} {name}" for kind, name in scope.items())
            law = f", jurisdiction {statement.jurisdiction}" if statement.jurisdiction is not None else ""
            return (
                f"consents to {where} for {', '.join(statement.purposes)}, {statement.not_before} to "
                f"{statement.not_after}, under {statement.terms.uri} ({statement.terms.digest}){law}"
            )
        case ConsentRevoke():
            what = f"withdraws consent {statement.grant_id}"
            if statement.effect == "withdraw_published":
                what += f", and releases that hold its expert by {statement.deadline:%Y-%m-%dT%H:%M:%SZ}"
            return what + (f": {statement.reason}" if statement.reason else "")
        case ExpertContribute():
            files = ", ".join(f"{name} {file.digest}" for name, file in statement.files.items())
            return f"contributes {files}, trained on {statement.tokens_seen:,} tokens"
        case BasePublish():
            return f"publishes base {statement.round}: {statement.base_digest}"
        case ReleasePublish():
            until = f", good until {statement.not_after}" if statement.not_after else ""
            return f"publishes {statement.release}: {statement.manifest_digest}{until}{_trained(statement)}"
        case ReleaseWithdraw():
            return f"withdraws {statement.release}, as entry {statement.cause_index} asks"
        case CertRevoke():
            return f"revokes the certificates of {statement.owner}" + (
                f": {statement.reason}" if statement.reason else ""
            )
        case OwnerKeyAdd():
            return f"signs with {statement.public_key.split('+')[1]} too"
        case OwnerKeyRevoke():
            return f"signs with {statement.revoked_key_id} no longer" + (
                f": {statement.reason}" if statement.reason else ""
            )
        case CampaignDefine():
            who = f"{', '.join(statement.owners)} (a quorum of {statement.quorum})"
            return f"asks {who} until {statement.closes_at} {describe_asked(statement.parameters)}"
        case CampaignDecline():
            return f"gives no answer to campaign {statement.campaign_id}" + (
                f": {statement.reason}" if statement.reason else ""
            )
        case CampaignResult():
            figures = "; ".join(map(_figure, statement.figures))
            beside = f", beside it {statement.attachment.digest}" if statement.attachment else ""
            return f"answers campaign {statement.campaign_id} about {statement.subject}: {figures or 'begun'}{beside}"
        case CampaignClose():
            return f"closes campaign {statement.campaign_id} by {statement.by}: {_who(statement)}"
        case _:
            return f"joins with key {statement.key_id}"


def _trained(release: ReleasePublish) -> str:
    training = release.router_training
    if training is None:
        return ""
    slots = " ".join(str(each.slot) for each in training.proxies)
    return f"; it is {training.parent} with router rows of slots {slots} trained by campaign {training.campaign_id}"


def describe_asked(asked: Parameters) -> str:
    """What a campaign asks an owner to do."""
    match asked:
        case Evaluate(model=model):
            return f"how good {model.stands} {model.name} ({model.manifest.digest}) is on their held-out text"
        case SelectProxy():
            return f"which {asked.count} documents of the public pool {asked.pool.digest} look like theirs"
        case Train():
            return f"to train and submit an expert over base {asked.base_digest} now"
        case Extraction(model=model):
            return (
                f"how often {model.stands} {model.name} ({model.manifest.digest}) goes on word for word for "
                f"{asked.continuation_tokens} tokens after {asked.prefix_tokens} of theirs"
            )


def _figure(figure: Figure) -> str:
    return f"{figure.name} {figure.measure} {figure.value:.6g} ({figure.documents} documents)"


def _who(closed: CampaignClose) -> str:
    groups = (("reported", closed.reported), ("declined", closed.declined), ("absent", closed.absent))
    return ", ".join(f"{word} {' '.join(names) or 'nobody'}" for word, names in groups)
