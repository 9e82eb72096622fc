"""The audit: everything a coordinator published, checked offline with nothing but the published files and the log.

The plan is `common/trust/verify.py`'s, steps 1 to 8; steps 7 and 8, which read files, are here. It needs neither torch
nor grpc, and shares no code with the assembler whose work it checks: step 8 derives from the log what every byte of
every tensor must be and compares.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Final

from common.errors import ConcordError, MalformedError
from common.files import read_required
from common.model import checkpoint
from common.model.checkpoint import INDEX_NAME, ByteRange, Placed, TensorEntry
from common.model.expert import CONFIG_NAME, EVALUATION_NAME, EXPERT_NAME, ROUTER_NAME, expected_tensors, read_config
from common.model.partition import (
    OWNED_EXPERT,
    PROJECTIONS,
    PUBLIC_EXPERT,
    TensorSpec,
    dense_feed_forward,
    feed_forward,
    joined_router,
    router_row,
)
from common.trust.cosignature import Witness
from common.trust.history import History, taken_back
from common.trust.manifest import MANIFEST_NAME, Manifest, check_directory, digest_of_file
from common.trust.note import Checkpoint
from common.trust.quorum import MOST_BEHIND, find_quorum, parse_cosigned
from common.trust.receipts import GRACE, Receipt, is_overdue, logged_texts, parse_receipt_of_owner, why_not_owed
from common.trust.root import TrustedRoot
from common.trust.state import Release
from common.trust.statements import Statement, parse_note, parse_time
from common.trust.tiles import CHECKPOINT_NAME, COSIGNED_NAME, LogEntries
from common.trust.verify import (
    STEPS,
    StepFailed,
    check_checkpoint,
    check_entries,
    check_history,
    check_revocations,
)
from common.trust.verify import is_overdue as is_revocation_overdue

ROOT_NAME: Final = "trusted_root.json"
_COMPARE_BYTES: Final = 16 * 1024 * 1024
_HINT: Final = "this is not a coordinator's public directory, or not a whole copy of one"
_SHOWN: Final = 5
_NAMED: Final = 12
"""Releases, and owners of each, that a finding names; `audit release` lists all."""
_ALONGSIDE: Final = ("generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


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
    7 and 8, which read every byte of every model. Deadlines are judged `now`, by the auditor's clock by default.
    Step 1 asks for `quorum` cosignatures by `witnesses`, or by the owners' that the log names. Step 6 asks for every
    revocation that such a witness gave one of the `receipts` for, by the name that it is known by.

    Raises:
        NotFoundError: it is no public directory.
        MalformedError: what was given beside it is no checkpoint of that log, or no receipt.
    """
    report = Report()
    root = root or TrustedRoot.parse(read_required(public / ROOT_NAME, hint=_HINT))
    now = now or datetime.now(UTC)
    try:
        _check_log(public, root, last_seen, report, now, was_audited=was_audited)
        _check_quorum(report, quorum, witnesses, now)
        _check_receipts(report, receipts, witnesses, now)
        if not log_alone:
            _check_models(public, report, now)
    except StepFailed as error:
        report.findings.append(Finding(error.step, holds=False, found=str(error)))
    return report


def _check_log(
    public: Path, root: TrustedRoot, last_seen: bytes | None, report: Report, now: datetime, *, was_audited: bool
) -> None:
    """Steps 1 to 6."""
    found = report.found
    log = public / "log"
    cosigned = (log / COSIGNED_NAME).read_bytes() if (log / COSIGNED_NAME).exists() else b""  # before what it is about
    report.checkpoint = read_required(log / CHECKPOINT_NAME, hint=_HINT)
    head = check_checkpoint(root, report.checkpoint)
    report.cosigned = parse_cosigned(cosigned, root)
    found(1, f"{head.size} entries at {root.origin}, key {root.log.key_id}")
    earlier = None if last_seen is None else _earlier(root, last_seen)
    entries = _entries(log, head)
    try:
        check_entries(
            entries, head, last_seen=earlier, others=(check_checkpoint(root, each) for each in report.cosigned)
        )
    except ConcordError as error:
        raise _failed(3, error) from error
    found(2, "nothing was seen before" if earlier is None else f"from {earlier.size} to {head.size} entries")
    found(3, f"root hash {head.root.hex()}")
    checked = earlier.size if earlier is not None and was_audited else 0
    history = check_history(root, entries, checked=checked)
    report.history, report.entries = history, entries
    before = f", {checked} of them audited before" if checked else ""
    found(4, f"{history.size} statements of {len(history.parties)} parties{before}")
    report.releases = {name: _owners(history, release) for name, release in history.releases.items()}
    found(5, _released(report.releases))
    found(6, f"{check_revocations(history, at=now)} revocations, {len(history.withdrawals)} releases withdrawn")


def _earlier(root: TrustedRoot, last_seen: bytes) -> Checkpoint:
    """The auditor's own checkpoint: one that is damaged or another log's says nothing about this log."""
    try:
        return check_checkpoint(root, last_seen)
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
    not_owed = [_check_missing(name, receipt, report.history, now) for name, receipt in missing.items()]
    index = next(place for place, finding in enumerate(report.findings) if finding.step == 6)
    count = f"{len(given) - len(missing)} of {len(given)} revocations with a receipt are in the log"
    text = "; ".join([report.findings[index].found, count, *not_owed])
    report.findings[index] = replace(report.findings[index], found=text)


def _receipt(name: str, data: bytes, witnesses: Sequence[Witness], history: History) -> Receipt:
    try:
        return parse_receipt_of_owner(data, witnesses, history)
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
    found, history = report.found, report.history
    found(7, f"{_check_files(public, history, now)} directories, every file as signed")
    standing = [release for release in history.releases.values() if release.withdrawn_index is None]
    tensors = sum(_check_placed(public, history, release) for release in standing)
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


def _check_files(public: Path, history: History, now: datetime) -> int:
    """Step 7: every base and release directory holds exactly the files of the manifest that the log names."""
    logged = logged_manifests(public, history)
    _check_gone(public, history, now)
    try:
        for directory, digest in logged.items():
            check_directory(directory, manifest=check_manifest(directory, digest))
        shown = [path for parent in ("base", "releases") for path in _subdirectories(public / parent)]
    except (ConcordError, OSError) as error:
        raise _failed(7, error) from error
    _check_objects(public / "objects")
    withdrawn = {public / "releases" / statement.release for statement in history.withdrawals.values()}
    if unknown := [str(path) for path in shown if path not in logged and path not in withdrawn]:
        raise StepFailed(7, f"{unknown[0]} is published but the log does not name it")
    return len(logged)


def _check_gone(public: Path, history: History, now: datetime) -> None:
    """What was withdrawn is not published any more, once it had to be gone."""
    overdue = {i for i in history.taking_back if is_revocation_overdue(history, i, at=now)}
    for index, withdrawal in history.withdrawals.items():
        directory = public / "releases" / withdrawal.release
        if withdrawal.cause_index in overdue and directory.exists():
            raise StepFailed(7, f"{directory} is still published; entry {index} withdrew it")
    causes = {history.taking_back[index].grant_id: index for index in overdue}
    for digest, grant_id in taken_back(history).items():
        path = object_path(public, digest)
        if grant_id in causes and path.exists():
            raise StepFailed(7, f"objects/{path.name} is still published; entry {causes[grant_id]} takes it back")


def logged_manifests(public: Path, history: History) -> dict[Path, str]:
    """The directories that the log says are published, and the digests of their manifests."""
    bases = {public / "base" / str(base.round): base.base_digest for base in history.bases.values()}
    return bases | {
        public / "releases" / name: release.statement.manifest_digest
        for name, release in history.releases.items()
        if release.withdrawn_index is None
    }


def object_path(public: Path, digest: str) -> Path:
    """Where a published file is, by its digest."""
    return public / "objects" / digest.removeprefix("sha256:")


def check_manifest(directory: Path, digest: str) -> Manifest:
    """The manifest in a directory, which must be the one that the log names by `digest`.

    Raises:
        StepFailed: it is another one.
    """
    manifest = Manifest.parse(read_required(directory / MANIFEST_NAME, hint="the log names it; it must be published"))
    if manifest.digest != digest:
        raise StepFailed(7, f"{directory} has manifest {manifest.digest}; the log names {digest}")
    return manifest


def _check_objects(objects: Path) -> None:
    """Every published object is what its name says."""
    for path in sorted(objects.iterdir()) if objects.is_dir() else ():
        if path.name.startswith("."):
            continue  # still being written
        if path.is_symlink() or not path.is_file() or digest_of_file(path) != f"sha256:{path.name}":
            raise StepFailed(7, f"objects/{path.name} does not hold the bytes that its name is the SHA-256 of")


def _failed(step: int, error: Exception, *, of: str = "") -> StepFailed:
    return error if isinstance(error, StepFailed) else StepFailed(step, f"{of}{error}")


def _subdirectories(parent: Path) -> Iterable[Path]:
    if not parent.is_dir():
        return ()
    return (path for path in sorted(parent.iterdir()) if path.is_dir() and not path.name.startswith("."))


def _check_placed(public: Path, history: History, release: Release) -> int:
    """Step 8 for one release: the number of tensors, each made of exactly the bytes that it must be made of."""
    name = release.statement.release
    try:
        base = public / "base" / str(history.bases[release.statement.base_digest].round)
        directory = public / "releases" / name
        experts = [
            _expert(public, base, history, release, slot) for slot in range(1, len(release.statement.experts) + 1)
        ]
        expected = _expected(base, experts)
        held = checkpoint.read_checkpoint(directory)
        _check_config(base, directory, release)
        _check_alongside(base, directory, held.values())
    except (ConcordError, OSError) as error:
        raise _failed(8, error, of=f"{name}: ") from error
    if held.keys() != expected.keys():
        odd = sorted(held.keys() ^ expected.keys())[0]
        raise StepFailed(8, f"{name}: tensor {odd} is in the release or in its inputs, but not in both")
    for tensor, entry in held.items():
        if entry.spec != expected[tensor].spec or not _same_bytes(entry, expected[tensor].pieces):
            raise StepFailed(8, f"{name}: tensor {tensor} is not what its inputs make it")
    return len(held)


def _expert(public: Path, base: Path, history: History, release: Release, slot: int) -> Mapping[str, TensorEntry]:
    """The tensors of the contribution in a slot, from the file that the log names."""
    released = release.statement.experts[slot - 1]
    (grant,) = history.grants_at([released.grant_index])
    contribution = history.contributions_by_index[released.contribute_index]
    digest = contribution.files[EXPERT_NAME].digest
    path = object_path(public, digest)
    read_required_file(path)
    if digest_of_file(path) != digest:
        raise StepFailed(8, f"the expert of {grant.party} is not {digest}")
    entries = checkpoint.read_header(path)
    checkpoint.check_tensors(entries, expected=expected_tensors(read_config(base)))
    checkpoint.check_nothing_beside(path)
    return entries


def read_required_file(path: Path) -> None:
    """Raise `NotFoundError` where a file that the log names is not published."""
    if not path.is_file():
        read_required(path, hint="the log names it; it must be published")


def _expected(base: Path, experts: list[Mapping[str, TensorEntry]]) -> dict[str, Placed]:
    """What every tensor of a release must be: its type, shape and bytes."""
    config = read_config(base)
    public, rows = checkpoint.read_checkpoint(base), checkpoint.read_header(base / ROUTER_NAME)
    renamed = {
        dense_feed_forward(layer, projection): feed_forward(layer, PUBLIC_EXPERT, projection)
        for layer in range(config.num_hidden_layers)
        for projection in PROJECTIONS
    }
    expected = {renamed.get(name, name): Placed(entry.spec, (entry.location,)) for name, entry in public.items()}
    for layer in range(config.num_hidden_layers):
        for slot, expert in enumerate(experts, start=1):
            for projection in PROJECTIONS:
                source = expert[feed_forward(layer, OWNED_EXPERT, projection)]
                expected[feed_forward(layer, slot, projection)] = Placed(source.spec, (source.location,))
        first = rows[router_row(layer, PUBLIC_EXPERT)]
        own = [expert[router_row(layer, OWNED_EXPERT)].location for expert in experts]
        joined = TensorSpec(first.spec.dtype, (1 + len(own), *first.spec.shape))
        expected[joined_router(layer)] = Placed(joined, (first.location, *own))
    return expected


def _check_config(base: Path, directory: Path, release: Release) -> None:
    """The configuration must be the base's, but for the number of experts and how many of them a token takes."""
    statement = release.statement
    try:
        wanted = read_config(base).with_experts(len(statement.experts) + 1, statement.num_experts_per_tok).format()
    except ValueError as error:
        raise StepFailed(8, f"{statement.release}: {error}") from error
    if (directory / CONFIG_NAME).read_bytes() != wanted:
        raise StepFailed(8, f"{directory / CONFIG_NAME} is not what base and statement make it")


def _check_alongside(base: Path, directory: Path, tensors: Iterable[TensorEntry]) -> None:
    """The tokenizer and what else goes alongside the weights must be the base's; nothing else may be there."""
    shards = {entry.location.path.name for entry in tensors}
    copied = {name for name in _ALONGSIDE if (base / name).exists()}
    for name in sorted(copied):
        if digest_of_file(base / name) != digest_of_file(directory / name):
            raise StepFailed(8, f"{directory / name} is not the base's")
    made = {MANIFEST_NAME, CONFIG_NAME, INDEX_NAME, EVALUATION_NAME}
    if odd := sorted({path.name for path in directory.iterdir()} - shards - copied - made):
        raise StepFailed(8, f"{directory / odd[0]} is no part of a release")


def same_tensor(entry: TensorEntry, other: TensorEntry) -> bool:
    """Whether two tensors have one type, one shape and the same bytes."""
    return entry.spec == other.spec and _same_bytes(entry, (other.location,))


def _same_bytes(entry: TensorEntry, pieces: tuple[ByteRange, ...]) -> bool:
    if entry.location.size != sum(piece.size for piece in pieces):
        return False
    with entry.location.path.open("rb") as ours:
        ours.seek(entry.location.offset)
        for piece in pieces:
            with piece.path.open("rb") as theirs:
                theirs.seek(piece.offset)
                for start in range(0, piece.size, _COMPARE_BYTES):
                    length = min(piece.size - start, _COMPARE_BYTES)
                    if ours.read(length) != theirs.read(length):
                        return False
    return True
