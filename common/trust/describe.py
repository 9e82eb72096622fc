"""Statements in words, for people who sign or read them."""

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
            return f"publishes {statement.release}: {statement.manifest_digest}{until}"
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
        case _:
            return f"joins with key {statement.key_id}"
