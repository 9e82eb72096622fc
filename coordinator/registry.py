"""The registry: who may record what, and the entry in the log, in one transaction.

The rules are `common/trust/history.py`, folded over the log itself: there is no second copy of the state that could
disagree with it. Within a write transaction the history is brought up to the log's head first, so that several
processes (the daemon, `publish`, `release`) may record at the same time.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from threading import RLock
from typing import Final, TypeVar

from pydantic import ValidationError
from sqlalchemy import Connection

from common.config import describe
from common.errors import (
    ConcordError,
    ConflictError,
    MalformedError,
    NotFoundError,
    NotPermittedError,
    UnavailableError,
    VerificationError,
)
from common.trust.campaign_statements import CampaignResult
from common.trust.cosignature import Witness, cosigned
from common.trust.history import History
from common.trust.note import Note, SigningKey, sign
from common.trust.root import TrustedRoot
from common.trust.state import Party
from common.trust.statements import (
    COORDINATOR,
    ConsentRevoke,
    ExpertContribute,
    OwnerEnrol,
    Statement,
    format_time,
    new_record_id,
    parse_note,
    parse_time,
    sign_statement,
)
from coordinator.group_commit import GroupCommit
from coordinator.live_history import LiveHistory, snapshot
from coordinator.log import Appender, Log, index_of
from coordinator.store import Store

MAX_CLOCK_SKEW: Final = timedelta(minutes=10)

_Kind = TypeVar("_Kind", bound=Statement)


@dataclass(frozen=True, slots=True)
class Recorded:
    """A statement in the log."""

    leaf_index: int
    entry: bytes
    statement: Statement


@dataclass(slots=True)
class _Request:
    """A statement that is to be recorded, and what became of it."""

    note: bytes
    parsed: Note
    statement: Statement
    arrived: bool
    receipt: bytes = b""
    refused: Exception | None = None
    is_settled: bool = False
    """Whether the transaction that it was in came to an end."""


def _no_effects(connection: Connection, statement: Statement) -> None:
    pass


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Registry:
    """Records statements. Thread-safe; several registries may share one store.

    `effects` is what a statement changes beside the log, in the same transaction. `contradicted` is asked once, before
    anything is signed: why nothing may be, because others have seen another log, if they have.
    """

    def __init__(
        self,
        store: Store,
        log: Log,
        *,
        root: TrustedRoot,
        key: SigningKey,
        now: Callable[[], datetime] = _utc_now,
        effects: Callable[[Connection, Statement], None] = _no_effects,
        contradicted: Callable[["Registry"], str | None] = lambda registry: None,
    ) -> None:
        self._contradicted: Callable[[Registry], str | None] | None = contradicted
        self._stopped: str | None = None
        self._store = store
        self._log = log
        self._key = key
        self._now = now
        self._effects = effects
        self._root = root
        self._lock = RLock()
        self._live = LiveHistory(root)
        self._recording = GroupCommit(self._record_all)

    @property
    def root(self) -> TrustedRoot:
        """What parties and auditors trust this registry by."""
        return self._root

    @contextmanager
    def history(self) -> Iterator[History]:
        """The history of all entries on disk, for as long as nothing else happens here: be brief, change nothing.

        Raises:
            UnavailableError: the database cannot be read, or lost entries.
        """
        with self._lock:
            with self._store.reading() as connection:
                history = self._live.catch_up(connection)
            yield history

    def head(self) -> History:
        """The history of all entries on disk, as it is now. A copy: of a large log, ask `history` where it is often."""
        with self.history() as history:
            return snapshot(history)

    def size(self) -> int:
        """How many entries are on disk."""
        with self.history() as history:
            return history.size

    def party(self, name: str) -> Party | None:
        """A party as of the last entry on disk, if it has joined."""
        with self.history() as history:
            return history.parties.get(name)

    def check_may_append(self) -> None:
        """Ask, once, whether others have seen a log that this one does not continue.

        Raises:
            UnavailableError: somebody has, now or later; owners keep what they said until this is settled.
        """
        with self._lock:
            if self._contradicted is not None:
                why, self._contradicted = self._contradicted(self), None
                self._stopped = self._stopped or why
            if self._stopped is not None:
                raise UnavailableError(f"nothing is added to this log: {self._stopped}")

    def stop_appending(self, why: str) -> None:
        """Sign nothing any more until this is started anew: somebody saw a log that this one does not continue."""
        self._stopped = self._stopped or why

    def check(self, note: bytes, *, caller: str) -> Statement:
        """The statement in `note`, if `caller` might record it now or has recorded it already; records nothing."""
        parsed, statement = self._check_caller(note, caller)
        with self._lock, self._store.reading() as connection:
            history = self._live.catch_up(connection)
            if index_of(connection, statement) is not None:
                return statement
            _check_in_time(statement, history, self._now())
            return history.check_parsed(parsed, statement)

    def record(self, note: bytes, *, caller: str, arrived: bool = False) -> bytes:
        """Record a party's signed statement and return its receipt. The same statement again gives a receipt again.

        A contribution is recorded only where the caller knows that its files have `arrived` and were checked.

        Raises:
            ConcordError: as `History.check`; NotPermittedError where the statement is another party's.
        """
        request = _Request(note, *self._check_caller(note, caller), arrived)
        self._recording.submit(request)
        if request.refused is not None:
            raise request.refused
        if not request.is_settled:
            raise UnavailableError("the registry failed while it recorded this together with others; try again")
        return request.receipt or self._log.receipt(self._index_of(request.statement))

    def record_together(self, said: Sequence[tuple[bytes, str]], *, arrived: bool = False) -> None:
        """Record statements, each with its caller, in one transaction, as `record` does what many ask for at once.

        Raises:
            ConcordError: as `record`, for the first that is refused; the others are recorded.
        """
        requests = [_Request(note, *self._check_caller(note, caller), arrived) for note, caller in said]
        self._record_all(requests)
        for request in requests:
            if request.refused is not None:
                raise request.refused

    def _record_all(self, requests: list[_Request]) -> None:
        """Record what may be recorded in one transaction; whoever asked for something else is told."""
        try:
            with self._appending() as append:
                for request in requests:
                    try:
                        self._record_one(append, request)
                    except ConcordError as refused:
                        request.refused = refused
        except ConcordError as failed:
            for request in requests:
                request.refused = request.refused or failed
            return
        for request in requests:
            request.is_settled = True
            if request.refused is None and (index := append.appended.get(request.statement.record_id)) is not None:
                request.receipt = append.log.receipt(index)

    def _record_one(self, append: "_Appending", request: _Request) -> None:
        if append.index_of(request.statement) is not None:
            return
        if isinstance(request.statement, ExpertContribute) and not request.arrived:
            raise ConflictError("this expert was not uploaded; upload it: concord owner submit")
        if isinstance(request.statement, CampaignResult) and not request.arrived:
            raise ConflictError("an answer to a campaign is reported with what goes beside it: concord owner run")
        _check_in_time(request.statement, append.history, self._now())
        append(request.note, parsed=(request.parsed, request.statement))

    def find(self, statement: Statement) -> tuple[bytes, bytes]:
        """The entry and receipt of a statement that is in the log."""
        index = self._index_of(statement)
        return self._log.entry(index), self._log.receipt(index)

    def _index_of(self, statement: Statement) -> int:
        with self._store.reading() as connection:
            index = index_of(connection, statement)
        if index is None:
            raise NotFoundError(f"{statement.type} {statement.record_id} is not in the log")
        return index

    def receipt_of(self, statement: Statement) -> bytes | None:
        """The receipt of a statement that is in the log, else None."""
        with self._store.reading() as connection:
            index = index_of(connection, statement)
        return None if index is None else self._log.receipt(index)

    def holds(self, statement: Statement) -> bool:
        """Whether a statement is in the log."""
        with self._store.reading() as connection:
            return index_of(connection, statement) is not None

    def issue(self, kind: type[_Kind], **fields: object) -> Recorded:
        """Sign and record a statement of the coordinator itself.

        Raises:
            MalformedError: a field is not what such a statement may hold.
        """
        with self._appending() as append:
            party = append.history.parties[COORDINATOR]
            now = self._now()
            try:
                statement = kind(
                    federation=self.root.federation,
                    origin=self.root.origin,
                    party=COORDINATOR,
                    key_id=self._key.verifier.key_id,
                    record_id=new_record_id(now),
                    seq=party.next_seq,
                    prev=party.head,
                    issued_at=format_time(now),
                    **fields,
                )
            except ValidationError as error:
                raise MalformedError(f"{kind.type}: {describe(error)}") from error
            entry = sign_statement(statement, self._key)
            index = append(entry)
        self.publish()
        return Recorded(index, entry, statement)

    def admit(self, note: bytes, *, claim: Callable[[Connection], None]) -> Recorded:
        """Countersign and record an owner's enrolment. `claim` runs first in the same transaction: where it raises,
        nothing is recorded; where recording fails, what it wrote is undone. The same enrolment again is found again.
        """
        parsed, statement = parse_note(note)
        if not isinstance(statement, OwnerEnrol):
            raise MalformedError(f"an enrolment is wanted, not {statement.type}")
        if len(parsed.signatures) != 1:
            raise MalformedError(f"an enrolment is signed once, by its owner, not {len(parsed.signatures)} times")
        self._check_time(statement)
        ours = sign(parsed.text, self._key)
        entry = bytes(Note(parsed.text, (*parsed.signatures, *ours.signatures)))
        with self._appending() as append:
            claim(append.connection)
            index = append.index_of(statement)
            if index is None:
                index = append(entry)
        return Recorded(index, self._log.entry(index), statement)

    def cosign(self, note: bytes, *, caller: str) -> None:
        """Keep the cosignature that `caller`'s witness put under a checkpoint of this log. Again is no second one.

        Raises:
            MalformedError: it is no checkpoint's note.
            NotPermittedError: the caller has no witness key in the log.
            VerificationError: no cosignature by it is there, it does not hold, or it is dated in the future.
            ConflictError: this log never signed that checkpoint.
        """
        parsed, party = Note.parse(note), self.party(caller)
        if party is None or (witness := party.witness) is None:
            raise NotPermittedError(f"the log names no witness key of {caller}; only witnesses cosign")
        self.keep_cosignature(parsed, witness)

    def keep_cosignature(self, note: Note, witness: Witness) -> None:
        """Keep the cosignature of a witness that is nobody's here. Raises as `cosign`."""
        at = cosigned(note, [witness]).get(witness.name)
        if at is None or at > self._now() + MAX_CLOCK_SKEW:
            raise VerificationError(
                f"no cosignature by {witness.name} is there; sign the checkpoint with that key"
                if at is None
                else f"cosigned at {at}"
            )
        self._keep(note, witness)

    def _keep(self, note: Note, witness: Witness) -> None:
        line = next(each for each in note.signatures if each.key_id == witness.key_id and each.name == witness.name)
        self._log.cosign(note, line)

    def checkpoint(self) -> bytes:
        """The latest signed checkpoint with its cosignatures."""
        return self._log.checkpoint()

    def consistency(self, old_size: int, new_size: int) -> tuple[bytes, ...]:
        """The consistency proof between two sizes; `MalformedError` where the log never had them."""
        return self._log.consistency(old_size, new_size)

    def publish(self) -> bytes:
        """Sign and publish the log's head; errors as `check_may_append`."""
        self.check_may_append()
        return self._log.sign_head()

    def receipt(self, leaf_index: int) -> bytes:
        """The receipt of an entry."""
        return self._log.receipt(leaf_index)

    @contextmanager
    def _appending(self) -> Iterator["_Appending"]:
        """A write transaction over the log's head, which ends with a signed checkpoint over what was appended."""
        with self._lock:
            self.check_may_append()
            try:
                with self._store.transaction() as connection:
                    history = self._live.catch_up(connection)
                    append = _Appending(
                        connection, self._log.appender(connection, size=history.size), history, self._effects
                    )
                    yield append
                    append.log.seal()
            except BaseException:
                self._live.undone()
                raise
            if append.statements:
                self._live.committed(append.log)
                self._log.committed(append.log)

    def _check_caller(self, note: bytes, caller: str) -> tuple[Note, Statement]:
        parsed, statement = parse_note(note)
        if statement.party != caller:
            raise NotPermittedError(f"{caller} may not record a statement of {statement.party}")
        if self._is_dated_ahead(statement) and not self.holds(statement):
            # What is in the log stays answered, also by a clock that was set right since.
            self._check_time(statement)
        return parsed, statement

    def _is_dated_ahead(self, statement: Statement) -> bool:
        return parse_time(statement.issued_at) > self._now() + MAX_CLOCK_SKEW

    def _check_time(self, statement: Statement) -> None:
        if self._is_dated_ahead(statement):
            raise MalformedError(f"{statement.type} is dated {statement.issued_at}, in the future; set the clock right")


def _check_in_time(statement: Statement, history: History, now: datetime) -> None:
    """What a revocation asks for can still be done in time: once it is in the log, an audit holds the log to it."""
    if not isinstance(statement, ConsentRevoke) or statement.effect != "withdraw_published":
        return
    if (deadline := statement.deadline_from(history.latest)) + MAX_CLOCK_SKEW < now:
        raise ConflictError(
            f"releases were to be withdrawn by {deadline:%Y-%m-%dT%H:%M:%SZ}, and that had passed when this came; sign "
            "it anew: concord owner opt-out --withdraw-within-hours HOURS"
        )


class _Appending:
    """Appends within a write transaction, each checked against the history of all that is in the log before it."""

    def __init__(
        self,
        connection: Connection,
        log: Appender,
        history: History,
        effects: Callable[[Connection, Statement], None],
    ) -> None:
        self.connection, self.log, self.history = connection, log, history
        self._effects = effects
        self.statements: list[Statement] = []
        self.appended: dict[str, int] = {}
        """Leaf indexes, by record id."""

    def index_of(self, statement: Statement) -> int | None:
        """Where exactly this statement is in the log, if it is."""
        if not self.history.has_record(statement.record_id):
            return None
        if (index := self.appended.get(statement.record_id)) is not None:
            return index if statement in self.statements else None
        return index_of(self.connection, statement)

    def __call__(self, entry: bytes, *, parsed: tuple[Note, Statement] | None = None) -> int:
        """Check and append; returns the leaf index. `parsed` is what the caller has made of the entry already."""
        statement = self.history.check_parsed(*(parsed or parse_note(entry)))
        index = self.log.append(entry, statement=statement)
        self._effects(self.connection, statement)
        self.history.take(statement)
        self.statements.append(statement)
        self.appended[statement.record_id] = index
        return index
