"""How much of a log a quorum of witnesses has cosigned.

While a log grows, witnesses cosign checkpoints of different sizes, and the newest may have no line yet. Whoever has all
entries knows of each checkpoint that the others continue it: who cosigned a larger one has seen the smaller one's
entries too. So a quorum of K has cosigned the K-th largest size, and what came after it waits for them, for a while.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from common.errors import ConcordError
from common.trust.cosignature import Witness, cosigned
from common.trust.note import Checkpoint, Note
from common.trust.root import TrustedRoot
from common.trust.tiles import parse_bundle
from common.trust.verify import StepFailed, check_checkpoint

MAX_COSIGNED_BYTES: Final = 2**24
MOST_BEHIND: Final = timedelta(hours=1)
"""An entry may be without a quorum for so long: witnesses look again within it."""


@dataclass(frozen=True, slots=True)
class Quorum:
    """The size that was cosigned, and by whom."""

    size: int
    names: list[str]


def parse_cosigned(data: bytes, root: TrustedRoot) -> list[bytes]:
    """The checkpoints in what is published as `cosigned`; each signed by the log, which is step 1."""
    try:
        notes = parse_bundle(data)
    except ConcordError as error:
        raise StepFailed(1, f"cosigned checkpoints: {error}") from error
    for note in notes:
        check_checkpoint(root, note)
    return notes


def find_quorum(notes: Iterable[bytes], witnesses: Sequence[Witness], *, quorum: int, head: int) -> Quorum:
    """What `quorum` of `witnesses` have cosigned in checkpoints of one log; without one, the largest that any did.

    Raises:
        StepFailed: fewer of them cosigned any; or a line under a checkpoint is not what it says.
    """
    sizes: dict[str, int] = {}
    for data in notes:
        note = _parsed(data)
        size = Checkpoint.parse(note.text).size
        for name in _names(note, witnesses) if size <= head else ():
            sizes[name] = max(size, sizes.get(name, 0))
    if len(sizes) < quorum:
        raise StepFailed(1, f"{len(sizes)} of {len(witnesses)} witnesses cosigned; {quorum} are asked for")
    ordered = sorted(sizes.values(), reverse=True)
    size = ordered[max(quorum, 1) - 1] if ordered else 0
    return Quorum(size, [witness.name for witness in witnesses if sizes.get(witness.name, -1) >= size])


def _parsed(data: bytes) -> Note:
    try:
        return Note.parse(data)
    except ConcordError as error:
        raise StepFailed(1, str(error)) from error


def _names(note: Note, witnesses: Sequence[Witness]) -> Iterable[str]:
    try:
        return cosigned(note, witnesses)
    except ConcordError as error:
        raise StepFailed(1, str(error)) from error
