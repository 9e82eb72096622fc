"""What the log's entries mean: who has joined, what they agreed to, what is in force. The registry's rules.

`History` folds entries one by one. The coordinator asks it before it appends, an auditor folds the same entries again:
one set of rules, written once. No I/O and no clock: "now" of a rule is the `issued_at` of the statement it judges.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import singledispatchmethod
from typing import Final

from common.errors import ConcordError, ConflictError, ConsentError, MalformedError, NotFoundError, NotPermittedError
from common.trust.cosignature import Witness
from common.trust.manifest import Manifest, digest_of
from common.trust.note import Note, Verifier
from common.trust.root import TrustedRoot
from common.trust.state import Contribution, Grant, Party, Release, TakingBack
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
    parse_note,
    parse_time,
)

_EPOCH: Final = datetime.fromtimestamp(0, UTC)
MAX_BACKDATING: Final = timedelta(minutes=20)
"""How much earlier than an entry before it a release may be dated: clocks of owners and coordinator differ."""


def _verify(note: Note, verifiers: Sequence[Verifier]) -> None:
    note.verify(*verifiers)


@dataclass(slots=True)
class History:
    """The state that the first `size` entries of a log amount to."""

    root: TrustedRoot
    verify: Callable[[Note, Sequence[Verifier]], None] = field(default=_verify, repr=False)
    """How a note's signatures are checked: at once, or by whoever checks many together (`signature_pool`)."""
    size: int = 0
    parties: dict[str, Party] = field(default_factory=dict)
    records: set[int] = field(default_factory=set)
    """Ids of all records, as numbers: there is one for every entry."""
    bases: dict[str, BasePublish] = field(default_factory=dict)
    grants: dict[str, Grant] = field(default_factory=dict)
    grant_ids: dict[int, str] = field(default_factory=dict)
    """By entry: the consent that entry is."""
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
    latest: datetime = _EPOCH
    """The latest date of any entry."""
    _manifests: dict[str, Manifest] = field(default_factory=dict, repr=False)
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
        self._check(statement)
        return statement

    def has_record(self, record_id: str) -> bool:
        """Whether a statement with this id is in the log."""
        return _number(record_id) in self.records

    def append(self, entry: bytes) -> Statement:
        """Check `entry` and take it as the next one."""
        statement = self.check(entry)
        self.take(statement)
        return statement

    def take(self, statement: Statement) -> None:
        """Take a statement as the next one that `check` found to be allowed, with nothing taken since."""
        self._apply(statement)
        party = self.parties[statement.party]
        self.parties[statement.party] = replace(party, next_seq=statement.seq + 1, head=statement.digest)
        self.records.add(_number(statement.record_id))
        self.latest = max(self.latest, parse_time(statement.issued_at))
        self.size += 1

    def _signer(self, note: Note, statement: Statement) -> Party:
        if isinstance(statement, OwnerEnrol):
            if statement.party in self.parties:
                raise ConflictError(f"{statement.party} has joined already; choose another name")
            own = _owner_key(statement, statement.public_key)
            party, verifiers = Party((own,)), [own, self.root.coordinator]
        elif known := self.parties.get(statement.party):
            party, verifiers = known, [v for v in [known.verifier(statement.key_id)] if v is not None]
        else:
            raise NotPermittedError(f"{statement.party} has not joined this federation")
        if party.verifier(statement.key_id) is None:
            revoked = " any more" if statement.key_id in party.revoked_key_ids else ""
            raise NotPermittedError(f"key {statement.key_id} does not sign for {statement.party}{revoked}")
        if isinstance(statement, OwnerKeyAdd):
            verifiers.append(_owner_key(statement, statement.public_key))
            if verifiers[-1].key_id in {*party.revoked_key_ids, *(verifier.key_id for verifier in party.verifiers)}:
                raise ConflictError(f"key {verifiers[-1].key_id} is or was a key of {statement.party}; make a new one")
        self.verify(note, verifiers)
        if len(note.signatures) != len(verifiers):
            raise MalformedError(
                f"{statement.type} carries {len(note.signatures)} signatures; {len(verifiers)} belong under it"
            )
        return party

    # What each kind of statement needs. Nothing here changes state.

    @singledispatchmethod
    def _check(self, statement: Statement) -> None:
        raise AssertionError(f"no rule for {statement.type}")

    @_check.register
    def _(self, statement: OwnerEnrol) -> None:
        _only_owner(statement)
        if statement.witness_key is None:
            return
        witness = Witness.parse(statement.witness_key)
        if witness.name != witness_key_name(statement.federation, statement.party):
            raise MalformedError(f"the witness key of {statement.party} may not be called {witness.name!r}")
        # Else one witness's cosignature could be shown as another's too: it does not say whose it is.
        if witness.public_key in {known.public_key for known in self.witnesses}:
            raise ConflictError(f"the witness key of {statement.party} is another owner's; make a new one")

    @_check.register
    def _(self, statement: OwnerKeyAdd) -> None:
        _only_owner(statement)

    @_check.register
    def _(self, statement: OwnerKeyRevoke) -> None:
        _only_owner(statement)
        party = self.parties[statement.party]
        if party.verifier(statement.revoked_key_id) is None:
            raise NotFoundError(f"key {statement.revoked_key_id} does not sign for {statement.party}")
        if len(party.verifiers) == 1:
            raise ConflictError(f"{statement.revoked_key_id} is the last key of {statement.party}; add another first")

    @_check.register
    def _(self, statement: CertRevoke) -> None:
        if statement.party not in (COORDINATOR, statement.owner):
            raise NotPermittedError(f"{statement.party} may not revoke certificates of {statement.owner}")
        if statement.owner == COORDINATOR or statement.owner not in self.parties:
            raise NotFoundError(f"no owner {statement.owner} has joined")

    @_check.register
    def _(self, statement: BasePublish) -> None:
        _only_coordinator(statement)
        if statement.base_digest in self.bases:
            raise ConflictError(f"base {statement.base_digest} is published already")
        if statement.round != len(self.bases):
            raise ConflictError(f"base of round {statement.round} where round {len(self.bases)} is next")

    @_check.register
    def _(self, statement: ConsentGrant) -> None:
        _only_owner(statement)
        if statement.expert.base_digest not in self.bases:
            raise NotFoundError(f"base {statement.expert.base_digest} is not in the log; consent only to a logged base")
        if not parse_time(statement.not_before) < parse_time(statement.not_after):
            raise MalformedError(f"consent from {statement.not_before} until {statement.not_after} is never in force")

    @_check.register
    def _(self, statement: ConsentRevoke) -> None:
        grant = self._own_grant(statement.grant_id, party=statement.party)
        if grant.revoked_index is not None:
            raise ConflictError(f"consent {statement.grant_id} was revoked by entry {grant.revoked_index} already")

    @_check.register
    def _(self, statement: ExpertContribute) -> None:
        grant = self._own_grant(statement.grant_id, party=statement.party)
        _check_in_force(grant, at=parse_time(statement.issued_at))
        _check_covers(grant, statement.manifest.digest)
        for name, file in statement.files.items():
            if self.contributors.get(file.digest, statement.party) != statement.party:
                raise ConflictError(
                    f"{name} is byte for byte what another owner contributed; train an expert on your own text"
                )

    @_check.register
    def _(self, statement: ReleasePublish) -> None:
        _only_coordinator(statement)
        if statement.release in self.releases:
            raise ConflictError(f"{statement.release} is published already")
        if statement.log_size != self.size:
            raise ConflictError(
                f"{statement.release} was made from {statement.log_size} entries; the log has {self.size}"
            )
        if parse_time(statement.issued_at) < self.latest - MAX_BACKDATING:
            raise ConflictError(
                f"{statement.release} is dated {statement.issued_at}, before entries that it follows; a release may "
                "not be dated back to when a consent was in force"
            )
        if statement.base_digest not in self.bases:
            raise NotFoundError(f"{statement.release} is over base {statement.base_digest}, which is not in the log")
        if [expert.slot for expert in statement.experts] != list(range(1, len(statement.experts) + 1)):
            raise MalformedError(f"the experts of {statement.release} do not take slots 1 to {len(statement.experts)}")
        if len({expert.grant_index for expert in statement.experts}) != len(statement.experts):
            raise MalformedError(f"{statement.release} holds an expert twice")
        for expert in statement.experts:
            self._check_released(expert, statement)
        if (until := first_lapse(self, statement.experts)) != statement.not_after:
            raise ConsentError(
                f"{statement.release} is said to be good until {statement.not_after}; its consents say {until}"
            )

    @_check.register
    def _(self, statement: ReleaseWithdraw) -> None:
        _only_coordinator(statement)
        release, cause = self.releases.get(statement.release), self.taking_back.get(statement.cause_index)
        if release is None:
            raise NotFoundError(f"{statement.release} is not in the log")
        if release.withdrawn_index is not None:
            raise ConflictError(f"{statement.release} was withdrawn by entry {release.withdrawn_index} already")
        if cause is None or not _holds(self, cause, release):
            raise NotPermittedError(
                f"entry {statement.cause_index} is no revocation that asks to withdraw {statement.release}"
            )

    def _own_grant(self, grant_id: str, *, party: str) -> Grant:
        grant = self.grants.get(grant_id)
        if grant is None or grant.party != party:
            raise ConsentError(f"{party} has no consent {grant_id}; sign one first")
        return grant

    def _check_released(self, expert: ReleasedExpert, release: ReleasePublish) -> None:
        if expert.grant_index not in self.grant_ids:
            raise ConsentError(f"slot {expert.slot} names entry {expert.grant_index}, which is no consent")
        grant = self.grants[self.grant_ids[expert.grant_index]]
        check_releasable(grant, release=release.release, line=release.line, base_digest=release.base_digest,
                         at=parse_time(release.issued_at))  # fmt: skip
        contribution = self.contributions.get(grant.record_id)
        if (
            contribution is None
            or contribution.index != expert.contribute_index
            or contribution.manifest_digest != expert.digest
        ):
            raise ConsentError(f"slot {expert.slot} is not what {grant.party} contributed under its consent")
        _check_covers(grant, expert.digest)

    # What each kind of statement changes.

    @singledispatchmethod
    def _apply(self, statement: Statement) -> None:
        raise AssertionError(f"no rule for {statement.type}")

    @_apply.register
    def _(self, statement: OwnerEnrol) -> None:
        witness = None if statement.witness_key is None else Witness.parse(statement.witness_key)
        self.parties[statement.party] = Party((Verifier.parse(statement.public_key),), witness=witness)

    @_apply.register
    def _(self, statement: OwnerKeyAdd) -> None:
        party = self.parties[statement.party]
        added = Verifier.parse(statement.public_key)
        self.parties[statement.party] = replace(party, verifiers=(*party.verifiers, added))

    @_apply.register
    def _(self, statement: OwnerKeyRevoke) -> None:
        party, gone = self.parties[statement.party], statement.revoked_key_id
        left = tuple(verifier for verifier in party.verifiers if verifier.key_id != gone)
        self.parties[statement.party] = replace(party, verifiers=left, revoked_key_ids=party.revoked_key_ids | {gone})

    @_apply.register
    def _(self, statement: CertRevoke) -> None:
        pass  # certificates are no part of what the log amounts to

    @_apply.register
    def _(self, statement: BasePublish) -> None:
        self.bases[statement.base_digest] = statement

    @_apply.register
    def _(self, statement: ConsentGrant) -> None:
        self.grants[statement.record_id] = Grant(self.size, statement.party, statement.record_id, statement)
        self.grant_ids[self.size] = statement.record_id

    @_apply.register
    def _(self, statement: ConsentRevoke) -> None:
        grant = self.grants[statement.grant_id]
        self.grants[statement.grant_id] = replace(grant, standing=None, revoked_index=self.size)
        self.contributions.pop(statement.grant_id, None)
        if statement.effect == "withdraw_published":
            self.taking_back[self.size] = TakingBack(statement.party, statement.grant_id, statement.deadline)

    @_apply.register
    def _(self, statement: ExpertContribute) -> None:
        digest, grant_id = statement.manifest.digest, self.grants[statement.grant_id].record_id
        files = self._manifests.setdefault(digest, statement.manifest).files
        contribution = Contribution(self.size, statement.party, grant_id, files, digest)
        self.contributions[grant_id] = contribution
        self.contributions_by_index[self.size] = contribution
        for file in files.values():
            self.contributors.setdefault(file.digest, statement.party)

    @_apply.register
    def _(self, statement: ReleasePublish) -> None:
        self.releases[statement.release] = Release(self.size, statement)

    @_apply.register
    def _(self, statement: ReleaseWithdraw) -> None:
        self.releases[statement.release] = replace(self.releases[statement.release], withdrawn_index=self.size)
        self.withdrawals[self.size] = statement


def _owner_key(statement: Statement, line: str) -> Verifier:
    verifier = Verifier.parse(line)
    if verifier.name != owner_key_name(statement.federation, statement.party):
        raise MalformedError(f"the key of {statement.party} may not be called {verifier.name!r}")
    return verifier


def _number(record_id: str) -> int:
    return int(record_id.replace("-", ""), 16)


def _holds(history: History, cause: TakingBack, release: Release) -> bool:
    """Whether a release holds the expert that is taken back."""
    index = history.grants[cause.grant_id].index
    return any(expert.grant_index == index for expert in release.statement.experts)


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
    asking = (index for index, cause in history.taking_back.items() if _holds(history, cause, release))
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


def first_lapse(history: History, experts: Sequence[ReleasedExpert]) -> str | None:
    """When the first of the consents that `experts` are there by lapses; None without experts."""
    dates = [history.grants[history.grant_ids[each.grant_index]].statement.not_after for each in experts]
    return min(dates, default=None)


def owner_key_name(federation: str, party: str) -> str:
    """What an owner's signing key is called in notes."""
    return f"{federation}/owner/{party}"


def witness_key_name(federation: str, party: str) -> str:
    """What the key is called that an owner's daemon cosigns checkpoints with."""
    return f"{federation}/witness/{party}"


def _only_coordinator(statement: Statement) -> None:
    if statement.party != COORDINATOR:
        raise NotPermittedError(f"only the coordinator may say {statement.type}, not {statement.party}")


def _only_owner(statement: Statement) -> None:
    if statement.party == COORDINATOR:
        raise NotPermittedError(f"only a data owner may say {statement.type}")


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
        raise ConsentError(f"consent {consent.record_id} does not cover {release} of line {line}: {consent.scope}")


def releasable_experts(
    history: History, *, release: str, line: str, base_digest: str, at: datetime
) -> list[tuple[Grant, Contribution]]:
    """Every contributed expert that may be in `release`, in the order of their consents in the log."""
    chosen = []
    for grant_id, contribution in history.contributions.items():
        grant = history.grants[grant_id]
        try:
            check_releasable(grant, release=release, line=line, base_digest=base_digest, at=at)
        except ConsentError:
            continue
        chosen.append((grant, contribution))
    return sorted(chosen, key=lambda pair: pair[0].index)


def left_out(history: History, *, release: str, line: str, base_digest: str, at: datetime) -> dict[str, str]:
    """Why contributed experts with an unrevoked consent may not be in `release`, by party."""
    reasons = {}
    for grant_id in history.contributions:
        grant = history.grants[grant_id]
        if grant.revoked_index is None:
            try:
                check_releasable(grant, release=release, line=line, base_digest=base_digest, at=at)
            except ConsentError as error:
                reasons[grant.party] = str(error)
    return reasons


def replay(root: TrustedRoot, entries: Iterable[bytes]) -> History:
    """The history of a whole log.

    Raises:
        ConcordError: of the class that `History.check` raises, naming the entry.
    """
    history = History(root)
    for index, entry in enumerate(entries):
        try:
            history.append(entry)
        except ConcordError as error:
            raise type(error)(f"entry {index} ({digest_of(entry)}): {error}") from error
    return history
