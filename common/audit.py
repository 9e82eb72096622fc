"""The audit: everything a coordinator published, checked offline with nothing but the published files and the log.

The plan is `common/trust/verify.py`'s, steps 1 to 8; steps 7 and 8, which read files, are in `audit_files.py`. It needs
neither torch nor grpc.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from time import monotonic, sleep
from types import MappingProxyType
from typing import Final

from common.audit_files import ROOT_NAME, check_files, check_placed
from common.errors import ConcordError, MalformedError, VerificationError
from common.files import read_required
from common.trust.cosignature import Witness
from common.trust.history import History
from common.trust.manifest import FileDigests
from common.trust.note import Checkpoint, Note
from common.trust.quorum import MOST_BEHIND, find_quorum, parse_cosigned
from common.trust.receipts import GRACE, Receipt, hasten, is_overdue, logged_texts, parse_receipt_of_owner, why_not_owed
from common.trust.root import TrustedRoot
from common.trust.signature_pool import SignatureChecks
from common.trust.state import Release
from common.trust.statements import Statement, parse_note, parse_time
from common.trust.tiles import CHECKPOINT_NAME, COSIGNED_NAME, LogEntries
from common.trust.verify import (
    STEPS,
    Seen,
    StepFailed,
    Unaccounted,
    check_checkpoint,
    check_entries,
    check_revocations,
    checking_signatures,
    failed_at,
    fold_history,
)

_HINT: Final = "this is not a coordinator's public directory, or not a whole copy of one"
_AGAIN: Final = 5
_SOON_S: Final = 2.0
_LOOK_S: Final = 0.05
_SHOWN: Final = 5
_NAMED: Final = 12
"""Releases, and owners of each, that a finding names; `audit release` lists all."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one step found."""

    step: int
    holds: bool
    found: str

    @property
    def title(self) -> str:
        """What the step is about."""
        return STEPS[self.step]


@dataclass(slots=True)
class Report:
    """The findings in order; the audit stops at the first step that does not hold."""

    findings: list[Finding] = field(default_factory=list)
    checkpoint: bytes = b""
    cosigned: Sequence[bytes] = ()
    """Checkpoints that witnesses cosigned, which may be smaller ones."""
    releases: dict[str, list[str]] = field(default_factory=dict)
    entries: Sequence[bytes] = ()
    """The log, entry by entry; there when step 4 holds."""
    _history: History | None = None
    keeps: object = None
    """What the entries are read from, where it is only lent."""
    is_unaccounted: bool = False
    """Whether something was published that the log did not name."""

    @property
    def holds(self) -> bool:
        """Whether every step that was asked for was taken and holds."""
        return bool(self.findings) and all(finding.holds for finding in self.findings)

    @property
    def history(self) -> History:
        """What the log's entries amount to; there when step 4 holds."""
        assert self._history is not None, "asked of a log that does not hold"
        return self._history

    @history.setter
    def history(self, history: History) -> None:
        """Keep what step 4 folded."""
        self._history = history

    @property
    def statements(self) -> Iterator[Statement]:
        """What the log says, entry by entry."""
        return (parse_note(entry)[1] for entry in self.entries)

    def found(self, step: int, text: str) -> None:
        """Note what a step that holds found."""
        self.findings.append(Finding(step, holds=True, found=text))

    @property
    def log_lines(self) -> Iterator[str]:
        """The log's entries, a line each, for people."""
        for index, said in enumerate(self.statements):
            yield f"{index:>4}  {said.issued_at}  {said.party:<16}  {said.type}"


def audit(
    public: Path,
    *,
    root: TrustedRoot | None = None,
    last_seen: bytes | None = None,
    was_audited: bool = False,
    log_alone: bool = False,
    now: datetime | None = None,
    quorum: int = 0,
    witnesses: Sequence[Witness] | None = None,
    receipts: Mapping[str, bytes] = MappingProxyType({}),
) -> Report:
    """Check the public directory of a coordinator.

    `root` is what the auditor trusts; without it the directory's own is taken, which proves that the files agree with
    each other but not whose they are. `last_seen` is the checkpoint note of an earlier audit; where that audit was of
    this very root and held (`was_audited`), signatures up to there are not checked again. `log_alone` leaves out steps
    7 and 8, which read every byte of every model. Deadlines are judged `now`, by the auditor's clock by default, and no
    entry may be dated later; none of the coordinator's after `last_seen` before what witnesses say of that.
    Step 1 asks for `quorum` cosignatures by `witnesses`, or by the owners' that the log names. Step 6 asks for every
    revocation that such a witness gave one of the `receipts` for, by the name that it is known by.

    Raises:
        NotFoundError: it is no public directory.
        MalformedError: what was given beside it is no checkpoint of that log, or no receipt.
    """
    root = root or TrustedRoot.parse(read_required(public / ROOT_NAME, hint=_HINT))

    def once() -> Report:
        return _audit_once(
            public, root, last_seen, quorum, witnesses, receipts, now or datetime.now(UTC),
            was_audited=was_audited, log_alone=log_alone,
        )  # fmt: skip

    report = once()
    for _ in range(_AGAIN):
        if not _is_outrun(public, report):
            break
        report = once()
    return report


def _is_outrun(public: Path, report: Report) -> bool:
    """Whether files did not fit the log, which has grown since, or grows soon: then they may fit what it is now.

    Files are published before the entry that names them, and the log's checkpoint is published last.
    """
    if report.holds or report.findings[-1].step not in (7, 8):
        return False
    checkpoint, until = public / "log" / CHECKPOINT_NAME, monotonic() + (_SOON_S if report.is_unaccounted else 0)
    while (same := checkpoint.read_bytes() == report.checkpoint) and monotonic() < until:
        sleep(_LOOK_S)
    return not same


def _audit_once(
    public: Path,
    root: TrustedRoot,
    last_seen: bytes | None,
    quorum: int,
    witnesses: Sequence[Witness] | None,
    receipts: Mapping[str, bytes],
    now: datetime,
    *,
    was_audited: bool,
    log_alone: bool,
) -> Report:
    report = Report()
    try:
        seen = None if last_seen is None else _seen(root, last_seen, witnesses, quorum)
        checked = seen.checkpoint.size if seen is not None and was_audited else 0
        with checking_signatures(checked=checked) as signatures:
            _check_log(public, root, seen, report, now, signatures)
            _check_quorum(report, quorum, witnesses, now)
            _check_receipts(report, receipts, witnesses, now)
            if not log_alone:
                _check_models(public, report, now)
    except StepFailed as error:
        # Who witnesses are is known once the log is replayed: nothing is said of what comes after the step.
        report.findings = [finding for finding in report.findings if finding.step < error.step]
        report.findings.append(Finding(error.step, holds=False, found=str(error)))
        report.is_unaccounted = isinstance(error, Unaccounted)
    return report


def _check_log(
    public: Path, root: TrustedRoot, seen: Seen | None, report: Report, now: datetime, signatures: SignatureChecks
) -> None:
    """Steps 1 to 6."""
    found = report.found
    log = public / "log"
    cosigned = (log / COSIGNED_NAME).read_bytes() if (log / COSIGNED_NAME).exists() else b""  # before what it is about
    report.checkpoint = read_required(log / CHECKPOINT_NAME, hint=_HINT)
    head = check_checkpoint(root, report.checkpoint)
    report.cosigned = parse_cosigned(cosigned, root)
    found(1, f"{head.size} entries at {root.origin}, key {root.log.key_id}")
    earlier = None if seen is None else seen.checkpoint
    entries = _entries(log, head)
    try:
        check_entries(
            entries, head, last_seen=earlier, others=(check_checkpoint(root, each) for each in report.cosigned)
        )
    except ConcordError as error:
        raise failed_at(3, error) from error
    found(2, "nothing was seen before" if earlier is None else f"from {earlier.size} to {head.size} entries")
    found(3, f"root hash {head.root.hex()}")
    history = fold_history(root, entries, signatures=signatures, at=now, seen=seen)
    report.history, report.entries = history, entries
    before = f", {signatures.checked} of them audited before" if signatures.checked else ""
    found(4, f"{history.size} statements of {len(history.parties)} parties{before}")
    report.releases = {name: _owners(history, release) for name, release in history.releases.items()}
    found(5, _released(report.releases))
    found(6, f"{check_revocations(history, at=now)} revocations, {len(history.withdrawals)} releases withdrawn")


def _seen(root: TrustedRoot, last_seen: bytes, witnesses: Sequence[Witness] | None, quorum: int) -> Seen:
    """The auditor's own checkpoint: one that is damaged or another log's says nothing about this log."""
    try:
        return Seen(check_checkpoint(root, last_seen), Note.parse(last_seen), witnesses, quorum)
    except StepFailed as error:
        raise MalformedError(
            f"the checkpoint that you last saw is none of {root.origin}: {error.__cause__}. Name the right file, or "
            "begin anew with another name"
        ) from error


def _check_quorum(report: Report, quorum: int, witnesses: Sequence[Witness] | None, now: datetime) -> None:
    """The rest of step 1; who the owners' witnesses are is known once the log is replayed."""
    known, head = report.history.witnesses if witnesses is None else witnesses, report.history.size
    found = find_quorum((report.checkpoint, *report.cosigned), known, quorum=quorum, head=head)
    count = f"{len(found.names)} of {len(known)} witnesses"
    if quorum and found.size < head:
        waits = parse_time(parse_note(report.entries[found.size])[1].issued_at)
        if now > waits + MOST_BEHIND:
            raise StepFailed(
                1,
                f"{count} cosigned {found.size} of {head} entries; entry {found.size} of {waits:%Y-%m-%dT%H:%M:%SZ} "
                f"waits for {quorum} of them for longer than {MOST_BEHIND}",
            )
    part = "" if found.size == head else f" up to {found.size} entries"
    who = f"cosigned{part} by {', '.join(found.names)}" if found.names else "not cosigned"
    report.findings[0] = replace(report.findings[0], found=f"{report.findings[0].found}; {who} ({count})")


def _check_receipts(
    report: Report, receipts: Mapping[str, bytes], witnesses: Sequence[Witness] | None, now: datetime
) -> None:
    """The rest of step 6: what owners handed to witnesses is in the log."""
    if not receipts:
        return
    known = report.history.witnesses if witnesses is None else witnesses
    given = {name: _receipt(name, data, known, report.history) for name, data in receipts.items()}
    logged = logged_texts(given.values(), report.entries)
    missing = {name: receipt for name, receipt in given.items() if receipt.note.text not in logged}
    hasten(report.history, [receipt for receipt in given.values() if receipt.note.text in logged])
    check_revocations(report.history, at=now)
    not_owed = [_check_missing(name, receipt, report.history, now) for name, receipt in missing.items()]
    index = next(place for place, finding in enumerate(report.findings) if finding.step == 6)
    count = f"{len(given) - len(missing)} of {len(given)} revocations with a receipt are in the log"
    text = "; ".join([report.findings[index].found, count, *not_owed])
    report.findings[index] = replace(report.findings[index], found=text)


def _receipt(name: str, data: bytes, witnesses: Sequence[Witness], history: History) -> Receipt:
    try:
        return parse_receipt_of_owner(data, witnesses, history)
    except VerificationError as error:
        raise MalformedError(
            f"{name} is no receipt that counts here: {error}. Name the witnesses that you know, outside ones too, with "
            "--witnesses FILE (a key line each)"
        ) from error
    except ConcordError as error:
        raise MalformedError(f"{name} is no receipt that counts here: {error}") from error


def _check_missing(name: str, receipt: Receipt, history: History, now: datetime) -> str:
    """Why the log may be without this revocation for now."""
    try:
        why = why_not_owed(receipt, history)
    except MalformedError as error:
        raise MalformedError(f"{name} is no receipt that counts here: {error}") from error
    if why is not None:
        return f"{name} is not owed: {why}"
    witness, taken = min(receipt.taken.items(), key=lambda pair: pair[1])
    said = receipt.statement
    if not is_overdue(receipt, at=now):
        return f"{name} is owed from {taken + GRACE:%Y-%m-%dT%H:%M:%SZ} on"
    raise StepFailed(
        6,
        f"{said.type} {said.record_id} of {said.party} is not in the log, although {witness} took it on "
        f"{taken:%Y-%m-%dT%H:%M:%SZ}",
    )


def _check_models(public: Path, report: Report, now: datetime) -> None:
    """Steps 7 and 8."""
    found, history, digest_of = report.found, report.history, FileDigests()
    found(7, f"{check_files(public, history, report.entries, now, digest_of)} directories, every file as signed")
    standing = [release for release in history.releases.values() if release.withdrawn_index is None]
    tensors = sum(check_placed(public, history, release, digest_of) for release in standing)
    found(8, f"{tensors} tensors compared byte for byte")


def _released(releases: Mapping[str, Sequence[str]]) -> str:
    """Releases and who is in them as a line that a person can read: the latest ones, where they are many."""
    shown = list(releases.items())[-_SHOWN:]
    earlier = [f"{len(releases) - _SHOWN} earlier releases"] if len(releases) > _SHOWN else []
    return "; ".join([*earlier, *(f"{name}: {_few(who) or 'nobody'}" for name, who in shown)]) or "none yet"


def _few(names: Sequence[str]) -> str:
    more = [f"{len(names) - _NAMED} more"] if len(names) > _NAMED else []
    return ", ".join([*names[:_NAMED], *more])


def _owners(history: History, release: Release) -> list[str]:
    """Whose experts are in a release, by slot."""
    grants = history.grants_at(expert.grant_index for expert in release.statement.experts)
    return [grant.party for grant in grants]


def _entries(log: Path, head: Checkpoint) -> LogEntries:
    def read(path: PurePosixPath) -> bytes:
        return read_required(log / path, hint=_HINT)

    return LogEntries(read, size=head.size)
