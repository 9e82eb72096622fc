"""What auditors ask of a log that holds: who is in a release and why others are not, what an owner ever said, and
whether one release is another without somebody. Answers come from the replayed log and the published files alone.
"""

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from common.audit import Report
from common.audit_files import same_tensor
from common.errors import ConsentError, NotFoundError, VerificationError
from common.model import checkpoint
from common.model.config import CONFIG_FILE
from common.model.expert import EXPERT_NAME, read_config
from common.model.partition import PROJECTIONS, feed_forward, joined_router, owner_of
from common.trust.describe import describe
from common.trust.history import History, replay
from common.trust.rules import check_releasable
from common.trust.state import Grant, Release
from common.trust.statements import COORDINATOR, ConsentGrant, ReleasePublish, Statement, parse_note, parse_time


@dataclass(frozen=True, slots=True)
class Member:
    """One owner's expert in a release, and the consent it is there by."""

    owner: str
    slot: int
    expert_digest: str
    grant: ConsentGrant
    grant_index: int
    revoked: "Event | None" = None
    """What revoked the consent since."""


@dataclass(frozen=True, slots=True)
class ReleaseAnswer:
    """Who is in a release, and why everybody else who had joined by then is not."""

    index: int
    statement: ReleasePublish
    withdrawn: "Event | None"
    round: int
    members: tuple[Member, ...]
    others: dict[str, str]


def about_release(report: Report, name: str) -> ReleaseAnswer:
    """Who is in the release called `name`.

    Raises:
        NotFoundError: the log names no such release.
    """
    history = report.history
    release = release_called(history, name)
    said = release.statement
    members = []
    for expert in said.experts:
        (grant,) = history.grants_at([expert.grant_index])
        digest = history.contributions_by_index[expert.contribute_index].files[EXPERT_NAME].digest
        _, consent = parse_note(report.entries[grant.index])
        assert isinstance(consent, ConsentGrant)
        revoked = _event(report, grant.revoked_index)
        members.append(Member(grant.party, expert.slot, digest, consent, grant.index, revoked))
    then = replay(history.root, islice(report.entries, release.index), verified=True)
    inside = {member.owner for member in members}
    outside = sorted(then.parties.keys() - inside - {COORDINATOR})
    return ReleaseAnswer(
        index=release.index,
        statement=said,
        withdrawn=_event(report, release.withdrawn_index),
        round=history.bases[said.base_digest].round,
        members=tuple(members),
        others={owner: why_not(then, owner, said) for owner in outside},
    )


def why_not(then: History, owner: str, release: ReleasePublish) -> str:
    """Why an owner has no expert in `release`; `then` is the history before it."""
    grants = [grant for grant in then.grants.values() if grant.party == owner]
    if not grants:
        return "never consented to anything"
    newest = max(grants, key=lambda grant: grant.index)
    return _why_not(then, newest, release)


def _why_not(then: History, grant: Grant, release: ReleasePublish) -> str:
    if grant.revoked_index is None and grant.record_id not in then.contributions:
        return f"contributed no expert under its consent (entry {grant.index})"
    try:
        check_releasable(
            grant,
            release=release.release,
            line=release.line,
            base_digest=release.base_digest,
            at=parse_time(release.issued_at),
        )
    except ConsentError as error:
        return str(error)
    return "could have been in it: its consent was in force and its expert was there"


@dataclass(frozen=True, slots=True)
class Event:
    """An entry of an owner in the log."""

    index: int
    statement: Statement
    said: str


def _event(report: Report, index: int | None) -> Event | None:
    """What an entry says; None where there is none."""
    if index is None:
        return None
    _, statement = parse_note(report.entries[index])
    return Event(index, statement, describe(statement))


def about_owner(report: Report, owner: str) -> tuple[list[Event], dict[str, int]]:
    """All that an owner said, in order, and the slots that its experts take in releases.

    Raises:
        NotFoundError: nobody of that name joined.
    """
    events = [
        Event(index, statement, describe(statement))
        for index, statement in enumerate(report.statements)
        if statement.party == owner
    ]
    if not events:
        known = ", ".join(sorted(report.history.parties.keys() - {COORDINATOR})) or "nobody"
        raise NotFoundError(f"the log has nothing from {owner!r}; joined have: {known}")
    slots = {name: owners.index(owner) + 1 for name, owners in report.releases.items() if owner in owners}
    return events, slots


@dataclass(frozen=True, slots=True)
class Removal:
    """Two releases of which the later one is the earlier one without some owners' experts."""

    left: dict[str, str]
    """Owners who are no longer in it, with the digest of the expert that is gone."""
    kept: tuple[str, ...]
    num_tensors: int
    """How many tensors were compared."""


def removal(public: Path, report: Report, before: str, after: str) -> Removal:
    """That release `after` is release `before` without some experts, and in nothing else different.

    The report is of a whole audit: both releases hold exactly the files that the log names.

    Raises:
        NotFoundError: the log names no such release, or one of them was withdrawn.
        VerificationError: nobody left, somebody joined or replaced an expert, or anything else is different.
    """
    first, second = about_release(report, before), about_release(report, after)
    for name, answer in ((before, first), (after, second)):
        if answer.withdrawn is not None:
            raise NotFoundError(f"{name} was withdrawn by entry {answer.withdrawn.index}; its files are gone")
        if (training := answer.statement.router_training) is not None:
            raise VerificationError(
                f"{name} has trained router rows, which nobody can take out again; compare {training.parent}, which "
                f"it is but for them, and then: concord audit rebuild {name}"
            )
    old, new = ({member.owner: member for member in answer.members} for answer in (first, second))
    if first.statement.base_digest != second.statement.base_digest:
        raise VerificationError(f"{after} is over another base than {before}; nothing of it can be compared")
    if added := sorted(new.keys() - old.keys()):
        raise VerificationError(
            f"{after} holds {added[0]}, who is not in {before}: it is not {before} without somebody"
        )
    if changed := [owner for owner in sorted(new) if new[owner].expert_digest != old[owner].expert_digest]:
        raise VerificationError(f"{changed[0]} has another expert in {after} than in {before}")
    left = {owner: old[owner].expert_digest for owner in sorted(old.keys() - new.keys())}
    if not left:
        raise VerificationError(f"nobody who is in {before} is missing from {after}")
    slots = {new[owner].slot: old[owner].slot for owner in new} | {0: 0}
    directories = [public / "releases" / name for name in (before, after)]
    return Removal(left, tuple(sorted(new)), _compare(*directories, slots=slots))


def _compare(before: Path, after: Path, *, slots: dict[int, int]) -> int:
    """Compare every tensor of `after` with the one it was in `before`; `slots` gives earlier slots by later ones."""
    old, new = checkpoint.read_checkpoint(before), checkpoint.read_checkpoint(after)
    config = read_config(after)
    if config.with_experts(1, 1) != read_config(before).with_experts(1, 1):
        raise VerificationError(f"{after / CONFIG_FILE} differs from {before} in more than the number of experts")
    layers = range(config.num_hidden_layers)
    earlier_names = {name: name for name in new if owner_of(name) == "shared"} | {
        feed_forward(layer, slot, projection): feed_forward(layer, earlier, projection)
        for layer in layers
        for slot, earlier in slots.items()
        for projection in PROJECTIONS
    }
    routers = [joined_router(layer) for layer in layers]
    if earlier_names.keys() | set(routers) != new.keys():
        raise VerificationError(f"{after}: its tensors are not those of the experts it is said to hold")
    for name, earlier_name in earlier_names.items():
        if earlier_name not in old or not same_tensor(new[name], old[earlier_name]):
            raise VerificationError(f"{after}: tensor {name} is not the same bytes as {earlier_name} in {before}")
    for name in routers:
        rows, earlier_rows = checkpoint.tensor_bytes(new[name]), checkpoint.tensor_bytes(old[name])
        width = len(rows) // len(slots)
        for slot, earlier in slots.items():
            if rows[slot * width :][:width] != earlier_rows[earlier * width :][:width]:
                raise VerificationError(f"{after}: row {slot} of {name} is not the same bytes as row {earlier} before")
    return len(new)


def release_called(history: History, name: str) -> Release:
    """The release of that name; `NotFoundError` where the log names none."""
    if name not in history.releases:
        known = ", ".join(history.releases) or "none yet"
        raise NotFoundError(f"the log names no release {name!r}; there are: {known}")
    return history.releases[name]
