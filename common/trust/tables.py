"""The state of the registry as tables for people: owners, consents, releases, campaigns."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from common.trust.history import History
from common.trust.rules import is_in_force
from common.trust.state import Campaign, Grant, Release
from common.trust.statements import COORDINATOR, ConsentGrant, LineScope, parse_note


@dataclass(frozen=True, slots=True)
class RegistryTable:
    """Cells of text under named columns."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def tables_of(
    history: History,
    *,
    at: datetime,
    entry: Callable[[int], bytes],
    certificates: Mapping[str, str] | None = None,
) -> list[RegistryTable]:
    """Who has joined, what is or was agreed to, and what was released, who was asked and answered, as of that time.

    What a consent that was revoked said is read from its `entry`. Of `certificates` the log says nothing; whoever
    issues them knows what each owner has.
    """
    owners = [party for party in history.parties if party != COORDINATOR]
    issued = ("certificate",) if certificates is not None else ()
    known = certificates or {}
    return [
        RegistryTable(
            "owners",
            ("owner", "keys", "witness", "statements", *issued),
            [(*_owner(history, party), *(known.get(party, "") for _ in issued)) for party in owners],
        ),
        RegistryTable(
            "consents",
            ("entry", "owner", "state", "covers", "purposes", "from", "until", "expert"),
            [_consent(history, grant, at, entry) for grant in history.grants.values()],
        ),
        RegistryTable(
            "releases",
            ("entry", "release", "owners", "state", "good until"),
            [_release(history, release) for release in history.releases.values()],
        ),
        RegistryTable(
            "campaigns",
            ("entry", "campaign", "kind", "state", "reported", "declined", "nothing said", "open until"),
            [_campaign(history, campaign) for campaign in history.campaigns.values()],
        ),
    ]


def _owner(history: History, party: str) -> tuple[str, ...]:
    known = history.parties[party]
    keys = ", ".join(verifier.key_id for verifier in known.verifiers)
    return party, keys, "yes" if known.witness else "no", str(known.next_seq)


def _consent(history: History, grant: Grant, at: datetime, entry: Callable[[int], bytes]) -> tuple[str, ...]:
    expert = history.contributions.get(grant.record_id)
    said, state = grant.standing, f"revoked by entry {grant.revoked_index}"
    if said is None:
        _, statement = parse_note(entry(grant.index))
        assert isinstance(statement, ConsentGrant)
        said = statement
    else:
        state = "in force" if is_in_force(grant, at=at) else "outside its dates"
    scope = f"line {said.scope.line}" if isinstance(said.scope, LineScope) else said.scope.release
    return (
        str(grant.index),
        grant.party,
        state,
        scope,
        ", ".join(said.purposes),
        said.not_before,
        said.not_after,
        f"entry {expert.index}" if expert else ("none yet" if grant.revoked_index is None else ""),
    )


def _release(history: History, release: Release) -> tuple[str, ...]:
    grants = history.grants_at(each.grant_index for each in release.statement.experts)
    state = "published" if release.withdrawn_index is None else f"withdrawn by entry {release.withdrawn_index}"
    if (training := release.statement.router_training) is not None:
        state += f", {training.parent} with trained rows"
    return (
        str(release.index),
        release.statement.release,
        ", ".join(grant.party for grant in grants) or "nobody",
        state,
        release.statement.not_after or "",
    )


def _campaign(history: History, campaign: Campaign) -> tuple[str, ...]:
    asked = campaign.statement
    state = "open" if campaign.closed_index is None else f"closed by entry {campaign.closed_index}"
    who = (", ".join(names) for names in history.answered(asked.record_id))
    return str(campaign.index), asked.record_id, asked.kind, state, *who, asked.closes_at
