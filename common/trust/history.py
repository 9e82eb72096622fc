"""What the log's entries mean: who has joined, what they agreed to, what is in force. The registry's rules.

`History` folds entries one by one. The coordinator asks it before it appends, an auditor folds the same entries again:
one set of rules, written once. No I/O and no clock: "now" of a rule is the `issued_at` of the statement it judges.
"""

from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cache, singledispatch
from typing import Final

from common.errors import ConcordError, ConflictError, ConsentError, MalformedError, NotPermittedError
from common.trust.campaign_statements import CampaignClose, CampaignDecline, CampaignDefine, CampaignResult
from common.trust.cosignature import Witness
from common.trust.manifest import Manifest, digest_of
from common.trust.note import Note, Verifier
from common.trust.root import TrustedRoot
from common.trust.rules import check, check_releasable, holds, owner_key
from common.trust.state import Campaign, CampaignAnswer, Contribution, Grant, Party, RecordIds, Release, TakingBack
from common.trust.statements import (
    COORDINATOR,
    BasePublish,
    CertRevoke,
    ConsentGrant,
    ConsentRevoke,
    ExpertContribute,
    OwnerEnrol,
    OwnerKeyAdd,
    OwnerKeyRevoke,
    ReleasePublish,
    ReleaseWithdraw,
    Statement,
    parse_note,
    parse_time,
)

_EPOCH: Final = datetime.fromtimestamp(0, UTC)


def _verify(note: Note, verifiers: Sequence[Verifier]) -> None:
    note.verify(*verifiers)


def _take_for_true(note: Note, verifiers: Sequence[Verifier]) -> None:
    pass


@dataclass(slots=True)
class History:
    """The state that the first `size` entries of a log amount to."""

    root: TrustedRoot
    verify: Callable[[Note, Sequence[Verifier]], None] = field(default=_verify, repr=False)
    """How a note's signatures are checked: at once, or by whoever checks many together (`signature_pool`)."""
    size: int = 0
    parties: dict[str, Party] = field(default_factory=dict)
    records: RecordIds = field(default_factory=RecordIds)
    bases: dict[str, BasePublish] = field(default_factory=dict)
    grants: dict[str, Grant] = field(default_factory=dict)
    _grant_indices: "array[int]" = field(default_factory=lambda: array("Q"), repr=False)
    _grant_ids: list[str] = field(default_factory=list, repr=False)
    """The entries that are consents, and which, in the log's order."""
    contributions: dict[str, Contribution] = field(default_factory=dict)
    """By grant that was not revoked: the latest contribution under a grant is the one that counts."""
    contributions_by_index: dict[int, Contribution] = field(default_factory=dict)
    """By entry: every contribution, also those that a later one replaced."""
    contributors: dict[str, str] = field(default_factory=dict)
    """By digest of a contributed file: the party that contributed it first. It stays theirs, whatever they revoke."""
    releases: dict[str, Release] = field(default_factory=dict)
    taking_back: dict[int, TakingBack] = field(default_factory=dict)
    """By entry: the revocations that ask to withdraw what is published."""
    withdrawals: dict[int, ReleaseWithdraw] = field(default_factory=dict)
    """By entry."""
    campaigns: dict[str, Campaign] = field(default_factory=dict)
    answers: dict[tuple[str, str], CampaignAnswer] = field(default_factory=dict)
    """By campaign and owner."""
    standing: dict[str, int] = field(default_factory=dict)
    """By owner that ever consented: how many of its consents are not revoked. One with none has left."""
    latest: datetime = _EPOCH
    """The latest date of any entry, or when a witness saw the log so far (`seen`), if that was later."""
    manifests: dict[str, Manifest] = field(default_factory=dict, repr=False)
    """Of all contributions, each once."""

    def __post_init__(self) -> None:
        self.parties.setdefault(COORDINATOR, Party((self.root.coordinator,)))

    @property
    def witnesses(self) -> list[Witness]:
        """Of all owners that have one."""
        return [party.witness for party in self.parties.values() if party.witness is not None]

    def check(self, entry: bytes) -> Statement:
        """The statement in `entry`, if it may be the next entry of this log; changes nothing.

        Raises:
            MalformedError: it does not parse.
            VerificationError: a signature does not hold.
            NotPermittedError: another federation, an unknown party, or a party that may not say this.
            ConflictError: a broken sequence, a repeated record, or a state that forbids it.
            ConsentError: it needs a consent that is absent, lapsed or revoked.
        """
        return self.check_parsed(*parse_note(entry))

    def check_parsed(self, note: Note, statement: Statement) -> Statement:
        """The same for what `parse_note` made of an entry."""
        if (statement.federation, statement.origin) != (self.root.federation, self.root.origin):
            raise NotPermittedError(f"this statement is for {statement.federation!r} at {statement.origin!r}, not here")
        party = self._signer(note, statement)
        if (statement.seq, statement.prev) != (party.next_seq, party.head):
            raise ConflictError(
                f"statement {statement.seq} of {statement.party} after {statement.prev} breaks its sequence: "
                f"{party.next_seq} after {party.head} is next"
            )
        if self.has_record(statement.record_id):
            raise ConflictError(f"record {statement.record_id} is in the log already")
        _rule(type(statement))(statement, self)
        return statement

    def has_record(self, record_id: str) -> bool:
        """Whether a statement with this id is in the log."""
        return record_id in self.records

    def grant_at(self, index: int) -> Grant | None:
        """The consent that the entry at `index` is; None where it is none."""
        place = bisect_left(self._grant_indices, index)
        if place == len(self._grant_indices) or self._grant_indices[place] != index:
            return None
        return self.grants[self._grant_ids[place]]

    def grants_at(self, indices: Iterable[int]) -> list[Grant]:
        """The consents that the entries at these indices are, all of which are known to be consents."""
        grants = [self.grant_at(index) for index in indices]
        assert None not in grants, "asked of entries that a rule found to be consents"
        return [grant for grant in grants if grant is not None]

    def answered(self, campaign_id: str) -> tuple[list[str], list[str], list[str]]:
        """Who of the owners that a campaign asks has reported, who has declined, and who has said nothing."""
        by_answer: dict[bool | None, list[str]] = {True: [], False: [], None: []}
        for owner in self.campaigns[campaign_id].statement.owners:
            answer = self.answers.get((campaign_id, owner))
            by_answer[answer.is_result if answer else None].append(owner)
        return by_answer[True], by_answer[False], by_answer[None]

    def is_taken_back(self, grant_id: str) -> bool:
        """Whether a revocation of this consent asks to withdraw what is published."""
        return any(cause.grant_id == grant_id for cause in self.taking_back.values())

    def add_grant(self, grant: Grant) -> None:
        """Take in a consent, the latest one."""
        self.grants[grant.record_id] = grant
        self._grant_indices.append(grant.index)
        self._grant_ids.append(grant.record_id)
        self.standing[grant.party] = self.standing.get(grant.party, 0) + 1

    def append(self, entry: bytes) -> Statement:
        """Check `entry` and take it as the next one."""
        statement = self.check(entry)
        self.take(statement)
        return statement

    def take(self, statement: Statement) -> None:
        """Take a statement as the next one that `check` found to be allowed, with nothing taken since."""
        _effect(type(statement))(statement, self)
        party = self.parties[statement.party]
        self.parties[statement.party] = party.after(statement)
        self.records.add(statement.record_id)
        if (issued_at := parse_time(statement.issued_at)) > self.latest:
            self.latest = issued_at
        self.size += 1

    def seen(self, at: datetime) -> None:
        """Somebody saw the log as it is at that time: what follows came later."""
        self.latest = max(self.latest, at)

    def _signer(self, note: Note, statement: Statement) -> Party:
        if isinstance(statement, OwnerEnrol):
            if statement.party in self.parties:
                raise ConflictError(f"{statement.party} has joined already; choose another name")
            own = owner_key(statement, statement.public_key)
            party, verifiers = Party((own,)), [own, self.root.coordinator]
        elif known := self.parties.get(statement.party):
            party, verifiers = known, [v for v in [known.verifier(statement.key_id)] if v is not None]
        else:
            raise NotPermittedError(f"{statement.party} has not joined this federation")
        if party.verifier(statement.key_id) is None:
            revoked = " any more" if statement.key_id in party.revoked_key_ids else ""
            raise NotPermittedError(f"key {statement.key_id} does not sign for {statement.party}{revoked}")
        if isinstance(statement, OwnerKeyAdd):
            verifiers.append(owner_key(statement, statement.public_key))
            if verifiers[-1].key_id in {*party.revoked_key_ids, *(verifier.key_id for verifier in party.verifiers)}:
                raise ConflictError(f"key {verifiers[-1].key_id} is or was a key of {statement.party}; make a new one")
        self.verify(note, verifiers)
        if len(note.signatures) != len(verifiers):
            raise MalformedError(
                f"{statement.type} carries {len(note.signatures)} signatures; {len(verifiers)} belong under it"
            )
        return party


@singledispatch
def _apply(statement: Statement, history: History) -> None:
    raise AssertionError(f"no rule for {statement.type}")


@_apply.register
def _(statement: OwnerEnrol, history: History) -> None:
    witness = None if statement.witness_key is None else Witness.parse(statement.witness_key)
    history.parties[statement.party] = Party((Verifier.parse(statement.public_key),), witness=witness)


@_apply.register
def _(statement: OwnerKeyAdd, history: History) -> None:
    party = history.parties[statement.party]
    added = Verifier.parse(statement.public_key)
    history.parties[statement.party] = replace(party, verifiers=(*party.verifiers, added))


@_apply.register
def _(statement: OwnerKeyRevoke, history: History) -> None:
    party, gone = history.parties[statement.party], statement.revoked_key_id
    left = tuple(verifier for verifier in party.verifiers if verifier.key_id != gone)
    history.parties[statement.party] = replace(party, verifiers=left, revoked_key_ids=party.revoked_key_ids | {gone})


@_apply.register
def _(statement: CertRevoke, history: History) -> None:
    pass  # certificates are no part of what the log amounts to


@_apply.register
def _(statement: BasePublish, history: History) -> None:
    history.bases[statement.base_digest] = statement


@_apply.register
def _(statement: ConsentGrant, history: History) -> None:
    history.add_grant(Grant(history.size, statement.party, statement.record_id, statement))


@_apply.register
def _(statement: ConsentRevoke, history: History) -> None:
    grant = history.grants[statement.grant_id]
    if grant.revoked_index is None:
        history.grants[statement.grant_id] = replace(grant, standing=None, revoked_index=history.size)
        history.standing[grant.party] -= 1
    history.contributions.pop(statement.grant_id, None)
    if statement.effect == "withdraw_published":
        history.taking_back[history.size] = TakingBack(
            statement.party, statement.grant_id, statement.deadline_from(history.latest)
        )


@_apply.register
def _(statement: ExpertContribute, history: History) -> None:
    digest, grant_id = statement.manifest_digest, history.grants[statement.grant_id].record_id
    files = history.manifests.setdefault(digest, statement.manifest).files
    contribution = Contribution(history.size, statement.party, grant_id, files, digest)
    history.contributions[grant_id] = contribution
    history.contributions_by_index[history.size] = contribution
    for file in files.values():
        history.contributors.setdefault(file.digest, statement.party)


@_apply.register
def _(statement: ReleasePublish, history: History) -> None:
    history.releases[statement.release] = Release(history.size, statement)


@_apply.register
def _(statement: ReleaseWithdraw, history: History) -> None:
    history.releases[statement.release] = replace(history.releases[statement.release], withdrawn_index=history.size)
    history.withdrawals[history.size] = statement


@_apply.register
def _(statement: CampaignDefine, history: History) -> None:
    history.campaigns[statement.record_id] = Campaign(history.size, statement)


@_apply.register
def _(statement: CampaignDecline, history: History) -> None:
    history.answers[statement.campaign_id, statement.party] = CampaignAnswer(history.size, is_result=False)


@_apply.register
def _(statement: CampaignResult, history: History) -> None:
    history.answers[statement.campaign_id, statement.party] = CampaignAnswer(
        history.size, is_result=True, attachment=statement.attachment.digest if statement.attachment else None
    )


@_apply.register
def _(statement: CampaignClose, history: History) -> None:
    campaign = history.campaigns[statement.campaign_id]
    history.campaigns[statement.campaign_id] = replace(campaign, closed_index=history.size)


@cache  # singledispatch looks each time through weak references, for every entry of a log
def _rule(kind: type[Statement]) -> Callable[[Statement, History], None]:
    """The rule for statements of a kind."""
    return check.dispatch(kind)


@cache
def _effect(kind: type[Statement]) -> Callable[[Statement, History], None]:
    """What statements of a kind change."""
    return _apply.dispatch(kind)


def withdrawals_due(history: History) -> list[tuple[Release, int]]:
    """Releases that are yet to be withdrawn, each with the entry of the first revocation that asks for it."""
    return [
        (release, cause_index)
        for release in history.releases.values()
        if release.withdrawn_index is None
        for cause_index in [_first_cause(history, release)]
        if cause_index is not None
    ]


def _first_cause(history: History, release: Release) -> int | None:
    asking = (index for index, cause in history.taking_back.items() if holds(history, cause, release))
    return min(asking, default=None)


def taken_back(history: History) -> dict[str, str]:
    """Files that were contributed under a consent whose revocation takes back what is published: digest to consent."""
    asked = {cause.grant_id for cause in history.taking_back.values()}
    return {
        file.digest: contribution.grant_id
        for contribution in history.contributions_by_index.values()
        if contribution.grant_id in asked
        for file in contribution.files.values()
    }


def releasable_experts(
    history: History, *, release: str, line: str, base_digest: str, at: datetime
) -> list[tuple[Grant, Contribution]]:
    """Contributed experts that may be in `release`, in the order of their consents in the log: one of each owner, under
    its latest consent that allows it."""
    chosen: dict[str, tuple[Grant, Contribution]] = {}
    for grant_id, contribution in history.contributions.items():
        grant = history.grants[grant_id]
        try:
            check_releasable(grant, release=release, line=line, base_digest=base_digest, at=at)
        except ConsentError:
            continue
        if grant.party not in chosen or chosen[grant.party][0].index < grant.index:
            chosen[grant.party] = grant, contribution
    return sorted(chosen.values(), key=lambda pair: pair[0].index)


def left_out(history: History, *, release: str, line: str, base_digest: str, at: datetime) -> dict[str, str]:
    """Why owners of contributed experts with an unrevoked consent have none in `release`, by party."""
    reasons, inside = {}, set()
    for grant_id in history.contributions:
        grant = history.grants[grant_id]
        if grant.revoked_index is None:
            try:
                check_releasable(grant, release=release, line=line, base_digest=base_digest, at=at)
                inside.add(grant.party)
            except ConsentError as error:
                reasons[grant.party] = str(error)
    return {party: reason for party, reason in reasons.items() if party not in inside}


def replay(root: TrustedRoot, entries: Iterable[bytes], *, verified: bool = False) -> History:
    """The history of a whole log; of one that was `verified` before, signatures are not checked again.

    Raises:
        ConcordError: of the class that `History.check` raises, naming the entry.
    """
    history = History(root, verify=_take_for_true) if verified else History(root)
    for index, entry in enumerate(entries):
        try:
            history.append(entry)
        except ConcordError as error:
            raise type(error)(f"entry {index} ({digest_of(entry)}): {error}") from error
    return history
