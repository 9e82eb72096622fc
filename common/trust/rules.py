"""The registry's rules: what each kind of statement needs of the log before it, and when a consent lets an expert in.

Nothing here changes state, and there is no clock: "now" of a rule is the `issued_at` of the statement it judges.
"""

from collections.abc import Sequence
from datetime import datetime
from functools import singledispatch
from typing import TYPE_CHECKING, TypedDict, Unpack

from common.errors import ConflictError, ConsentError, MalformedError, NotFoundError, NotPermittedError
from common.trust import campaign_rules, router_rules
from common.trust.campaign_statements import CampaignClose, CampaignDecline, CampaignDefine, CampaignResult
from common.trust.cosignature import Witness
from common.trust.note import Verifier
from common.trust.speakers import check_not_dated_back, only_coordinator, only_owner
from common.trust.state import Grant, Release, TakingBack
from common.trust.statements import (
    COORDINATOR,
    BasePublish,
    CertRevoke,
    ConsentGrant,
    ConsentRevoke,
    ExpertContribute,
    LineScope,
    OwnerEnrol,
    OwnerKeyAdd,
    OwnerKeyRevoke,
    ReleasedExpert,
    ReleasePublish,
    ReleaseWithdraw,
    Statement,
    parse_time,
)

if TYPE_CHECKING:
    from common.trust.history import History


@singledispatch
def check(statement: Statement, history: "History") -> None:
    """Raise what `History.check` raises unless `statement`, rightly signed, may be the next entry."""
    raise AssertionError(f"no rule for {statement.type}")


@check.register(OwnerEnrol)
def _(statement: OwnerEnrol, history: "History") -> None:
    only_owner(statement)
    signing = owner_key(statement, statement.public_key)
    _check_nobody_elses(statement, signing, history)
    if statement.witness_key is None:
        return
    witness = Witness.parse(statement.witness_key)
    if witness.name != witness_key_name(statement.federation, statement.party):
        raise MalformedError(f"the witness key of {statement.party} may not be called {witness.name!r}")
    # Else one witness's cosignature could be shown as another's too: it does not say whose it is.
    if witness.public_key in {known.public_key for known in history.witnesses}:
        raise ConflictError(f"the witness key of {statement.party} is another owner's; make a new one")
    if witness.public_key in {signing.public_key, *_ours(history)}:
        raise ConflictError(f"the witness key of {statement.party} signs something else too; make a new one")


@check.register(OwnerKeyAdd)
def _(statement: OwnerKeyAdd, history: "History") -> None:
    only_owner(statement)
    added, witness = owner_key(statement, statement.public_key), history.parties[statement.party].witness
    _check_nobody_elses(statement, added, history)
    if witness is not None and added.public_key == witness.public_key:
        raise ConflictError(f"key {added.key_id} of {statement.party} is its witness key too; make a new one")


@check.register(OwnerKeyRevoke)
def _(statement: OwnerKeyRevoke, history: "History") -> None:
    only_owner(statement)
    party = history.parties[statement.party]
    if party.verifier(statement.revoked_key_id) is None:
        raise NotFoundError(f"key {statement.revoked_key_id} does not sign for {statement.party}")
    if len(party.verifiers) == 1:
        raise ConflictError(f"{statement.revoked_key_id} is the last key of {statement.party}; add another first")


@check.register(CertRevoke)
def _(statement: CertRevoke, history: "History") -> None:
    if statement.party not in (COORDINATOR, statement.owner):
        raise NotPermittedError(f"{statement.party} may not revoke certificates of {statement.owner}")
    if statement.owner == COORDINATOR or statement.owner not in history.parties:
        raise NotFoundError(f"no owner {statement.owner} has joined")
    if statement.party == COORDINATOR:
        check_not_dated_back(statement, history)


@check.register(BasePublish)
def _(statement: BasePublish, history: "History") -> None:
    only_coordinator(statement, history)
    if statement.base_digest in history.bases:
        raise ConflictError(f"base {statement.base_digest} is published already")
    if statement.round != len(history.bases):
        raise ConflictError(f"base of round {statement.round} where round {len(history.bases)} is next")


@check.register(ConsentGrant)
def _(statement: ConsentGrant, history: "History") -> None:
    only_owner(statement)
    if statement.expert.base_digest not in history.bases:
        raise NotFoundError(f"base {statement.expert.base_digest} is not in the log; consent only to a logged base")
    if not parse_time(statement.not_before) < parse_time(statement.not_after):
        raise MalformedError(f"consent from {statement.not_before} until {statement.not_after} is never in force")


@check.register(ConsentRevoke)
def _(statement: ConsentRevoke, history: "History") -> None:
    grant = _own_grant(history, statement.grant_id, party=statement.party)
    if grant.revoked_index is None:
        return
    # Whoever revoked for the future may still ask to have back what is published; no more can be asked than that.
    if statement.effect == "future" or history.is_taken_back(statement.grant_id):
        raise ConflictError(f"consent {statement.grant_id} was revoked by entry {grant.revoked_index} already")


@check.register(ExpertContribute)
def _(statement: ExpertContribute, history: "History") -> None:
    grant = _own_grant(history, statement.grant_id, party=statement.party)
    _check_in_force(grant, at=parse_time(statement.issued_at))
    _check_covers(grant, statement.manifest_digest)
    for name, file in statement.files.items():
        if history.contributors.get(file.digest, statement.party) != statement.party:
            raise ConflictError(
                f"{name} is byte for byte what another owner contributed; train an expert on your own text"
            )


@check.register(ReleasePublish)
def _(statement: ReleasePublish, history: "History") -> None:
    only_coordinator(statement, history)
    if statement.release in history.releases:
        raise ConflictError(f"{statement.release} is published already")
    if statement.log_size != history.size:
        raise ConflictError(
            f"{statement.release} was made from {statement.log_size} entries; the log has {history.size}"
        )
    if statement.base_digest not in history.bases:
        raise NotFoundError(f"{statement.release} is over base {statement.base_digest}, which is not in the log")
    if [expert.slot for expert in statement.experts] != list(range(1, len(statement.experts) + 1)):
        raise MalformedError(f"the experts of {statement.release} do not take slots 1 to {len(statement.experts)}")
    if statement.num_experts_per_tok > len(statement.experts) + 1:
        raise MalformedError(
            f"{statement.release} gives a token {statement.num_experts_per_tok} experts; it has "
            f"{len(statement.experts) + 1} with the public one"
        )
    owners = [check_released(history, expert, **_place(statement)) for expert in statement.experts]
    if twice := next((owner for owner in owners if owners.count(owner) > 1), None):
        raise MalformedError(f"{statement.release} holds an expert of {twice} twice; an owner has one in a release")
    if (until := first_lapse(history, statement.experts)) != statement.not_after:
        raise ConsentError(
            f"{statement.release} is said to be good until {statement.not_after}; its consents say {until}"
        )
    router_rules.check_training(statement, history, owners=owners)


@check.register(ReleaseWithdraw)
def _(statement: ReleaseWithdraw, history: "History") -> None:
    only_coordinator(statement, history)
    release, cause = history.releases.get(statement.release), history.taking_back.get(statement.cause_index)
    if release is None:
        raise NotFoundError(f"{statement.release} is not in the log")
    if release.withdrawn_index is not None:
        raise ConflictError(f"{statement.release} was withdrawn by entry {release.withdrawn_index} already")
    if cause is None or not holds(history, cause, release):
        raise NotPermittedError(
            f"entry {statement.cause_index} is no revocation that asks to withdraw {statement.release}"
        )


check.register(CampaignDefine)(campaign_rules.check_define)
check.register(CampaignDecline)(campaign_rules.check_decline)
check.register(CampaignResult)(campaign_rules.check_result)
check.register(CampaignClose)(campaign_rules.check_close)


def _own_grant(history: "History", grant_id: str, *, party: str) -> Grant:
    grant = history.grants.get(grant_id)
    if grant is None or grant.party != party:
        raise ConsentError(f"{party} has no consent {grant_id}; sign one first")
    return grant


class Place(TypedDict):
    """What consents are asked about: a release, its line and base, and when."""

    release: str
    line: str
    base_digest: str
    at: datetime


def _place(statement: ReleasePublish) -> Place:
    return {
        "release": statement.release,
        "line": statement.line,
        "base_digest": statement.base_digest,
        "at": parse_time(statement.issued_at),
    }


def check_released(history: "History", expert: ReleasedExpert, **place: Unpack[Place]) -> str:
    """Whose expert it is; `ConsentError` where it may not be in that release now."""
    grant = history.grant_at(expert.grant_index)
    if grant is None:
        raise ConsentError(f"slot {expert.slot} names entry {expert.grant_index}, which is no consent")
    check_releasable(grant, **place)
    contribution = history.contributions.get(grant.record_id)
    if (
        contribution is None
        or contribution.index != expert.contribute_index
        or contribution.manifest_digest != expert.digest
    ):
        raise ConsentError(f"slot {expert.slot} is not what {grant.party} contributed under its consent")
    _check_covers(grant, expert.digest)
    return grant.party


def owner_key_name(federation: str, party: str) -> str:
    """What an owner's signing key is called in notes."""
    return f"{federation}/owner/{party}"


def witness_key_name(federation: str, party: str) -> str:
    """What the key is called that an owner's daemon cosigns checkpoints with."""
    return f"{federation}/witness/{party}"


def owner_key(statement: Statement, line: str) -> Verifier:
    """The signing key in `line`, if it may be one of the party whose statement it is in."""
    verifier = Verifier.parse(line)
    if verifier.name != owner_key_name(statement.federation, statement.party):
        raise MalformedError(f"the key of {statement.party} may not be called {verifier.name!r}")
    return verifier


def _ours(history: "History") -> set[bytes]:
    """The keys of log and coordinator."""
    return {history.root.log.public_key, history.root.coordinator.public_key}


def _check_nobody_elses(statement: Statement, key: Verifier, history: "History") -> None:
    """Whoever has the coordinator's key could otherwise sign for this owner."""
    if key.public_key in _ours(history):
        raise ConflictError(f"key {key.key_id} of {statement.party} is the coordinator's; make a new one")


def holds(history: "History", cause: TakingBack, release: Release) -> bool:
    """Whether a release holds the expert that is taken back."""
    index = history.grants[cause.grant_id].index
    return any(expert.grant_index == index for expert in release.statement.experts)


def first_lapse(history: "History", experts: Sequence[ReleasedExpert]) -> str | None:
    """When the first of the consents that `experts` are there by lapses; None without experts."""
    dates = [grant.statement.not_after for grant in history.grants_at(each.grant_index for each in experts)]
    return min(dates, default=None)


def _check_in_force(grant: Grant, *, at: datetime) -> None:
    if grant.revoked_index is not None:
        raise ConsentError(f"consent {grant.record_id} of {grant.party} was revoked by entry {grant.revoked_index}")
    consent = grant.statement
    if not parse_time(consent.not_before) <= at < parse_time(consent.not_after):
        raise ConsentError(
            f"consent {consent.record_id} of {consent.party} is in force from {consent.not_before} until "
            f"{consent.not_after}, not at {at:%Y-%m-%dT%H:%M:%SZ}"
        )


def is_in_force(grant: Grant, *, at: datetime) -> bool:
    """Whether a consent is neither revoked nor outside its dates at that time."""
    try:
        _check_in_force(grant, at=at)
    except ConsentError:
        return False
    return True


def is_to_come(grant: Grant, *, at: datetime) -> bool:
    """Whether a consent that is not revoked begins after that time."""
    return grant.revoked_index is None and at < parse_time(grant.statement.not_before)


def _check_covers(grant: Grant, manifest_digest: str) -> None:
    wanted = grant.statement.expert.manifest_digest
    if wanted not in (None, manifest_digest):
        raise ConsentError(f"consent {grant.statement.record_id} covers expert {wanted}, not {manifest_digest}")


def check_releasable(grant: Grant, *, release: str, line: str, base_digest: str, at: datetime) -> None:
    """Raise `ConsentError` unless `grant` lets its expert into `release` of `line` over this base at that time."""
    _check_in_force(grant, at=at)
    consent = grant.statement
    if consent.expert.base_digest != base_digest:
        raise ConsentError(f"consent {consent.record_id} is for base {consent.expert.base_digest}, not {base_digest}")
    covered = consent.scope.line == line if isinstance(consent.scope, LineScope) else consent.scope.release == release
    if not covered:
        allowed = f"line {consent.scope.line}" if isinstance(consent.scope, LineScope) else consent.scope.release
        raise ConsentError(f"consent {consent.record_id} does not cover {release} of line {line}: it is for {allowed}")
