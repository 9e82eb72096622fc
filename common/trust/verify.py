"""The verification plan, step by step; every failure names its step. No I/O and no clock: both are arguments.

1. The checkpoint is signed by the log (C2SP tlog-checkpoint) and cosigned by as many witnesses as are asked for.
2. The log only grew since the last checkpoint seen (RFC 6962 section 2.1.2).
3. The entries replay to the checkpoint's root hash, none missing and none added.
4. Every statement parses, is signed by the key of its party at that point, and no party's sequence is broken. None
   is dated in the future, none of the coordinator's before what the log held already or witnesses saw it hold.
5. Every release holds only experts with a consent in force at that point: index, digest, base, scope, dates.
6. Every revocation is honoured: no later release holds the expert, and where it asks for that, releases that held it
   already are withdrawn in time.
7. The files of each base and release are those of its manifest, and the log names that manifest; what was withdrawn is
   gone.
8. Each release is its inputs placed side by side: shared parameters and public expert equal the base's, each expert
   equals its contribution, nothing else is there. One with trained router rows is its parent but for the rows of owners
   who chose documents for that.

Steps 7 and 8 read files and are in `common/audit_files.py`; a single receipt is steps 1 to 3 for one entry.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

from common.errors import ConcordError, VerificationError
from common.trust import merkle
from common.trust.cosignature import Witness, cosigned
from common.trust.history import History, withdrawals_due
from common.trust.note import Checkpoint, Note, Proof, open_checkpoint
from common.trust.root import TrustedRoot
from common.trust.signature_pool import SignatureChecks
from common.trust.speakers import CLOCKS_DIFFER
from common.trust.statements import TYPE_PREFIX, ReleasePublish, parse_time

STEPS: Final = {
    1: "checkpoint is signed by the log",
    2: "log only grew since the last checkpoint seen",
    3: "entries replay to the signed root hash",
    4: "every statement is signed, in sequence and allowed",
    5: "every release holds only experts with a consent in force",
    6: "every revocation is honoured",
    7: "published files are those that the log names",
    8: "each release is its inputs placed side by side",
}


_NEVER: Final = datetime.max.replace(tzinfo=UTC)
_RELEASE_LINE: Final = f"{TYPE_PREFIX}{ReleasePublish.type}\n".encode()


class StepFailed(VerificationError):
    """A step of the plan does not hold."""

    def __init__(self, step: int, problem: str) -> None:
        super().__init__(f"step {step} ({STEPS[step]}): {problem}")
        self.step = step


class Unaccounted(StepFailed):
    """Something is published that the log does not account for, or not yet."""


def failed_at(step: int, error: Exception, *, of: str = "") -> StepFailed:
    """What `error` says, as a failure of this step where it is none yet; `of` says what it is about."""
    return error if isinstance(error, StepFailed) else StepFailed(step, f"{of}{error}")


def check_checkpoint(root: TrustedRoot, data: bytes) -> Checkpoint:
    """Step 1: the checkpoint in the signed note `data`."""
    try:
        return open_checkpoint(data, log=root.log, origin=root.origin)
    except ConcordError as error:
        raise StepFailed(1, str(error)) from error


def check_growth(old: Checkpoint | None, new: Checkpoint, *, proof: Sequence[bytes]) -> None:
    """Step 2 by a consistency proof; `old` None means nothing was seen before."""
    if old is None:
        return
    try:
        merkle.verify_consistency(
            old_size=old.size, old_root=old.root, new_size=new.size, new_root=new.root, proof=tuple(proof)
        )
    except ConcordError as error:
        raise StepFailed(2, f"from {old.size} to {new.size} entries: {error}") from error


def check_entries(
    entries: Sequence[bytes],
    checkpoint: Checkpoint,
    *,
    last_seen: Checkpoint | None,
    others: Iterable[Checkpoint] = (),
) -> None:
    """Steps 2 and 3 by replaying: no proof is needed where all entries are at hand. `others` are checkpoints that the
    log signed as well; those of larger logs say nothing here."""
    if len(entries) != checkpoint.size:
        raise StepFailed(3, f"{len(entries)} entries where the checkpoint says {checkpoint.size}")
    if last_seen is not None and last_seen.size > checkpoint.size:
        raise StepFailed(2, f"the log shrank from {last_seen.size} to {checkpoint.size} entries")
    running, then = merkle.RunningRoot(), dict[int, bytes]()
    known = [each for each in (*others, last_seen) if each is not None]
    sizes = {each.size for each in known}
    for entry in entries:
        if running.size in sizes:
            then[running.size] = running.root
        running.append(merkle.leaf_hash(entry))
    then[running.size] = running.root
    _same_root(3, running.root, checkpoint)  # first: a copy that is damaged is no contradiction of the log
    for each in known:
        if each.size in then:
            _same_root(2, then[each.size], each)


def _same_root(step: int, found: bytes, wanted: Checkpoint) -> None:
    if found != wanted.root:
        raise StepFailed(step, f"root hash of {wanted.size} entries is {found.hex()}, not {wanted.root.hex()}")


@dataclass(frozen=True, slots=True)
class Seen:
    """The checkpoint that an auditor saw last, as it was cosigned, and whose word is taken for when that was.

    Without `witnesses`, that of the owners' that the log names by then; `quorum` of them must say so.
    """

    checkpoint: Checkpoint
    note: Note
    witnesses: Sequence[Witness] | None = None
    quorum: int = 0

    def at(self, history: History) -> datetime | None:
        """When the log had so many entries and no more by the word of the witnesses; None where they say nothing."""
        try:
            said = cosigned(self.note, history.witnesses if self.witnesses is None else self.witnesses)
        except VerificationError:
            return None
        times, enough = sorted(said.values(), reverse=True), max(self.quorum, 1)
        return times[enough - 1] if len(times) >= enough else None


def check_history(
    root: TrustedRoot,
    entries: Iterable[bytes],
    *,
    at: datetime | None = None,
    seen: Seen | None = None,
) -> History:
    """Steps 4 and 5: `fold_history`, and every signature holds."""
    with checking_signatures() as signatures:
        return fold_history(root, entries, signatures=signatures, at=at, seen=seen)


@contextmanager
def checking_signatures(*, checked: int = 0) -> Iterator[SignatureChecks]:
    """Signatures are checked while the block runs, and all were when it ends; one that does not hold fails step 4, and
    not what the block found after it.

    Those of the first `checked` entries are not checked again: an audit of them held, and step 2 says that they are the
    same.
    """
    with SignatureChecks(checked=checked) as signatures:
        try:
            yield signatures
        except StepFailed:
            _all_hold(signatures)
            raise
        _all_hold(signatures)


def _all_hold(signatures: SignatureChecks) -> None:
    signatures.finish()
    if signatures.failed is not None:
        raise StepFailed(4, "entry {}: {}".format(*signatures.failed))


def fold_history(
    root: TrustedRoot,
    entries: Iterable[bytes],
    *,
    signatures: SignatureChecks,
    at: datetime | None = None,
    seen: Seen | None = None,
) -> History:
    """Steps 4 and 5 but for the signatures, which are checked meanwhile: fold every entry with the registry's rules.

    No entry may be dated later than `at`, the auditor's clock, nor may the coordinator's after what was `seen` be dated
    before that.
    """
    latest = _NEVER if at is None else at + CLOCKS_DIFFER
    seen_size = -1 if seen is None else seen.checkpoint.size
    history = History(root, verify=signatures.verify)
    for index, entry in enumerate(entries):
        signatures.of_entry(index)
        if index == seen_size and seen is not None and (cosigned_at := seen.at(history)) is not None:
            history.seen(min(cosigned_at, latest - CLOCKS_DIFFER))
        try:
            statement = history.append(entry)
        except ConcordError as error:
            raise StepFailed(5 if entry.startswith(_RELEASE_LINE) else 4, f"entry {index}: {error}") from error
        if history.latest > latest:
            raise StepFailed(4, f"entry {index} is dated {statement.issued_at}, which is yet to come")
    return replace(history, verify=History(root).verify)


def check_revocations(history: History, *, at: datetime | None = None) -> int:
    """Step 6: the number of revocations, each honoured by every later release, and by withdrawals where it asks for
    them: those that are due at `at`, or else when the log's latest entry was made.
    """
    revoked = {grant.index: grant.revoked_index for grant in history.grants.values() if grant.revoked_index is not None}
    for release in history.releases.values():
        for expert in release.statement.experts:
            if expert.grant_index in revoked and revoked[expert.grant_index] < release.index:
                raise StepFailed(
                    6,
                    f"{release.statement.release} (entry {release.index}) holds the expert of consent "
                    f"{expert.grant_index}, revoked by entry {revoked[expert.grant_index]}",
                )
    _check_withdrawals(history, max(history.latest, at or history.latest))
    return len(revoked)


def _check_withdrawals(history: History, now: datetime) -> None:
    for release, cause_index in withdrawals_due(history):
        if is_overdue(history, cause_index, at=now):
            raise StepFailed(
                6,
                f"{release.statement.release} is not withdrawn; entry {cause_index} of "
                f"{history.taking_back[cause_index].party} asks for it until {_deadline(history, cause_index)}",
            )
    for index, withdrawal in history.withdrawals.items():
        if is_overdue(history, withdrawal.cause_index, at=parse_time(withdrawal.issued_at)):
            raise StepFailed(
                6,
                f"{withdrawal.release} was withdrawn by entry {index} on {withdrawal.issued_at}; entry "
                f"{withdrawal.cause_index} asks for it until {_deadline(history, withdrawal.cause_index)}",
            )


def is_overdue(history: History, cause_index: int, *, at: datetime) -> bool:
    """Whether what the revocation in an entry asks for had to be done by then; clocks may differ by CLOCKS_DIFFER."""
    deadline = history.taking_back[cause_index].deadline
    return at - CLOCKS_DIFFER > deadline


def _deadline(history: History, cause_index: int) -> str:
    return f"{history.taking_back[cause_index].deadline:%Y-%m-%dT%H:%M:%SZ}"


def check_receipt(root: TrustedRoot, receipt: bytes, *, entry: bytes) -> tuple[Proof, Checkpoint]:
    """That `entry` is in the log: its inclusion proof and the checkpoint it leads to (steps 1 and 3 for one entry)."""
    try:
        proof = Proof.parse(receipt)
    except ConcordError as error:
        raise StepFailed(3, f"receipt: {error}") from error
    checkpoint = check_checkpoint(root, proof.checkpoint)
    try:
        merkle.verify_inclusion(
            index=proof.index,
            size=checkpoint.size,
            leaf=merkle.leaf_hash(entry),
            proof=proof.hashes,
            root=checkpoint.root,
        )
    except ConcordError as error:
        raise StepFailed(3, f"receipt for entry {proof.index}: {error}") from error
    return proof, checkpoint
