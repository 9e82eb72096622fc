"""A release with trained router rows, beside the release that it was made from: only the rows of those who chose
documents, and what is said of them, may be others.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Final

from common.errors import VerificationError
from common.files import read_required
from common.model.checkpoint import ByteRange, TensorEntry
from common.model.expert import EVALUATION_NAME, ROUTER_SHARD, ROUTER_TRAINING_NAME
from common.trust.history import History
from common.trust.manifest import MANIFEST_NAME, Manifest, digest_of_file
from common.trust.state import Release

_OF_ITS_OWN: Final = frozenset({ROUTER_SHARD, EVALUATION_NAME, ROUTER_TRAINING_NAME})


def check_trained(public: Path, history: History, release: Release) -> None:
    """A trained release has its parent's files but for routers, evaluation and settings, and the settings are those
    that the log names; any other has no settings.

    Raises:
        VerificationError: it is not so.
    """
    training, name = release.statement.router_training, release.statement.release
    settings = public / "releases" / name / ROUTER_TRAINING_NAME
    if training is None:
        if settings.exists():
            raise VerificationError(f"{settings} is there; the log says nothing of trained rows")
        return
    if not settings.is_file() or digest_of_file(settings) != training.settings_digest:
        raise VerificationError(f"{settings} is not {training.settings_digest}, which the log names")
    own = _files(public, name, release.statement.manifest_digest)
    parent = _files(public, training.parent, training.parent_digest)
    if changed := sorted(file for file in parent.keys() | own.keys() if parent.get(file) != own.get(file)):
        raise VerificationError(
            f"{changed[0]} is not the same file as in {training.parent}, which {name} is but for router rows"
        )


def _files(public: Path, name: str, digest: str) -> dict[str, str]:
    """Digests of the files of a release that must be the same in both, by name. Of one that was withdrawn just now the
    manifest is still among the objects."""
    shown = public / "releases" / name / MANIFEST_NAME
    path = shown if shown.exists() else public / "objects" / digest.removeprefix("sha256:")
    manifest = Manifest.parse(read_required(path, hint="the log names it; it must be published"))
    if manifest.digest != digest:
        raise VerificationError(f"{path} is not the manifest {digest}")
    return {name: entry.digest for name, entry in manifest.files.items() if name not in _OF_ITS_OWN}


def rows_that_stay(
    entry: TensorEntry, pieces: tuple[ByteRange, ...], *, trained: Collection[int]
) -> list[tuple[ByteRange, ByteRange]]:
    """Each row of a joined router that was not trained, and what it must be; `pieces` are all of them, by slot."""
    size = entry.location.size // len(pieces)
    return [
        (ByteRange(entry.location.path, entry.location.offset + slot * size, size), piece)
        for slot, piece in enumerate(pieces)
        if slot not in trained
    ]
