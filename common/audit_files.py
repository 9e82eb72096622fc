"""Steps 7 and 8 of an audit: published files are those that the log names, and each release is its inputs.

What every byte of every tensor must be is derived from the log and compared; no code is shared with the assembler whose
work is checked.
"""

import re
from collections.abc import Iterable, Mapping, Sequence, Set
from datetime import datetime
from pathlib import Path
from typing import Final

from common.audit_log_files import check_log_files
from common.audit_router_training import check_trained, rows_that_stay
from common.errors import ConcordError, MalformedError
from common.files import read_required
from common.model import checkpoint
from common.model.checkpoint import INDEX_NAME, ByteRange, Placed, TensorEntry
from common.model.expert import (
    CONFIG_NAME,
    EVALUATION_NAME,
    EXPERT_NAME,
    ROUTER_NAME,
    ROUTER_TRAINING_NAME,
    expected_tensors,
    read_config,
)
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
from common.trust.history import History, taken_back
from common.trust.manifest import MANIFEST_NAME, FileDigests, Manifest, check_directory
from common.trust.root import TrustedRoot
from common.trust.state import Release
from common.trust.verify import StepFailed, Unaccounted, failed_at, is_overdue

ROOT_NAME: Final = "trusted_root.json"
_TOP: Final = frozenset({ROOT_NAME, "log", "base", "releases", "objects"})
_WRITTEN: Final = re.compile(r"\.([^.].*)\.[0-9]+-[0-9]+\.partial")
"""What files are called while they are written (`common/files.py`)."""
_PASSING: Final = ("partial", "hidden")
"""What directories are called while they are made or taken away."""
_DIGITS: Final = 64
_COMPARE_BYTES: Final = 16 * 1024 * 1024
_ALONGSIDE: Final = ("generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def check_files(public: Path, history: History, entries: Sequence[bytes], now: datetime, digest_of: FileDigests) -> int:
    """Step 7: every base and release directory holds exactly the files of the manifest that the log names, and nothing
    else is there.

    Raises:
        Unaccounted: something else is; it may be younger than the log that these entries are.
        StepFailed: what the log names is not as it says.
    """
    _check_gone(public, history, now)
    try:
        _check_root(public, history)
        logged = check_manifests(public, history)
        withdrawn = _withdrawn_manifests(public, history, digest_of)
        if unknown := _not_named(public, logged.keys() | withdrawn_directories(public, history)):
            raise Unaccounted(7, f"{unknown[0]} is published but the log does not name it")
        check_log_files(public / "log", entries)
        for directory, manifest in logged.items():
            check_directory(directory, manifest=manifest, digests=digest_of)
        _check_passing(logged, withdrawn, digest_of)
        _check_objects(public / "objects", digest_of)
        _check_named(public, history, logged, withdrawn, now)
    except (ConcordError, OSError) as error:
        raise failed_at(7, error) from error
    return len(logged)


def _check_root(public: Path, history: History) -> None:
    """The published root is the one that the log is judged by."""
    published = TrustedRoot.parse(read_required(public / ROOT_NAME, hint="it must be published"))
    if published != history.root:
        raise StepFailed(7, f"{public / ROOT_NAME} is not the trusted root that you gave")


def _withdrawn_manifests(public: Path, history: History, digest_of: FileDigests) -> dict[Path, Manifest]:
    """Of withdrawn releases, by where they were published: as far as they are still among the objects."""
    found = {}
    for withdrawal in history.withdrawals.values():
        digest = history.releases[withdrawal.release].statement.manifest_digest
        path = object_path(public, digest)
        if path.is_file() and digest_of(path) == digest:
            found[public / "releases" / withdrawal.release] = Manifest.parse(path.read_bytes())
    return found


def _check_passing(logged: Mapping[Path, Manifest], withdrawn: Mapping[Path, Manifest], digest_of: FileDigests) -> None:
    """What is made or taken away just now holds nothing but files of its manifest, as far as it is there."""
    for directory, manifest in {**logged, **withdrawn}.items():
        for place in (directory, *_passing(directory)) if directory in withdrawn else _passing(directory):
            for path in _inside(place):
                if not _is_listed(path, manifest, digest_of):
                    raise StepFailed(7, f"{path} is published but its manifest does not list it")


def _is_listed(path: Path, manifest: Manifest, digest_of: FileDigests) -> bool:
    if path.is_symlink() or path.is_dir():
        return False
    written = _WRITTEN.fullmatch(path.name)
    if (written[1] if written else path.name) not in {MANIFEST_NAME, *manifest.files}:
        return False
    try:
        digest = manifest.digest if path.name == MANIFEST_NAME else manifest.files[path.name].digest
        return written is not None or digest_of(path) == digest
    except FileNotFoundError:  # gone since
        return True


def _check_named(
    public: Path, history: History, logged: Mapping[Path, Manifest], withdrawn: Mapping[Path, Manifest], now: datetime
) -> None:
    """Every object is a file that a base, a release or a contribution in the log names, or the manifest of one."""
    late = {
        public / "releases" / each.release
        for each in history.withdrawals.values()
        if is_overdue(history, each.cause_index, at=now)
    }
    manifests = [*logged.values(), *(manifest for place, manifest in withdrawn.items() if place not in late)]
    named = {release.statement.manifest_digest for release in history.releases.values()} | history.bases.keys()
    named |= {file.digest for manifest in manifests for file in manifest.files.values()}
    named |= {file.digest for each in history.contributions_by_index.values() for file in each.files.values()}
    for path in sorted(_inside(public / "objects")):
        if f"sha256:{path.name}" not in named and not _WRITTEN.fullmatch(path.name):
            raise Unaccounted(7, f"{path} is published but the log does not name it; take it away")


def _not_named(public: Path, named: Set[Path]) -> list[Path]:
    """What is published beside these directories, however it is called. What is being made or taken away just now has
    a name that says so and what it is.
    """
    passing = {place for path in named for place in _passing(path)}
    shown = {path for parent in ("base", "releases") for path in _inside(public / parent)}
    strange = shown - {path for path in named | passing if path.is_dir()}
    strange |= {path for path in _inside(public) if path.name not in _TOP and not _is_written(path, ROOT_NAME)}
    return sorted(strange)


def _passing(directory: Path) -> list[Path]:
    return [directory.with_name(f".{directory.name}.{state}") for state in _PASSING]


def _is_written(path: Path, name: str) -> bool:
    """Whether a file of this name is written just now, by the name it has until then."""
    written = _WRITTEN.fullmatch(path.name)
    return written is not None and re.fullmatch(name, written[1]) is not None and path.is_file()


def _check_gone(public: Path, history: History, now: datetime) -> None:
    """What was withdrawn is not published any more, once it had to be gone."""
    overdue = {i for i in history.taking_back if is_overdue(history, i, at=now)}
    for index, withdrawal in history.withdrawals.items():
        directory = public / "releases" / withdrawal.release
        places = (directory, *_passing(directory))
        if withdrawal.cause_index in overdue and (there := [place for place in places if place.exists()]):
            raise StepFailed(7, f"{there[0]} is still published; entry {index} withdrew it")
    causes = {history.taking_back[index].grant_id: index for index in overdue}
    published = {path.name.removeprefix(".")[:_DIGITS]: path.name for path in _inside(public / "objects")}
    for digest, grant_id in taken_back(history).items():
        name = published.get(digest.removeprefix("sha256:"))
        if grant_id in causes and name is not None:
            raise StepFailed(7, f"objects/{name} is still published; entry {causes[grant_id]} takes it back")


def withdrawn_directories(public: Path, history: History) -> set[Path]:
    """Where withdrawn releases were published: there for a while yet."""
    return {public / "releases" / statement.release for statement in history.withdrawals.values()}


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
    path = directory / MANIFEST_NAME
    try:
        manifest = Manifest.parse(read_required(path, hint="the log names it; it must be published"))
    except MalformedError as error:
        raise StepFailed(7, f"{path}: {error}") from error
    if manifest.digest != digest:
        raise StepFailed(7, f"{directory} has manifest {manifest.digest}; the log names {digest}")
    return manifest


def check_manifests(public: Path, history: History) -> dict[Path, Manifest]:
    """The manifests of all directories that the log says are published; each base's lists the configuration that the
    log names.

    Raises:
        NotFoundError: a manifest is not there.
        StepFailed: one is another one, or lists another configuration.
    """
    logged = {path: check_manifest(path, digest) for path, digest in logged_manifests(public, history).items()}
    for base in history.bases.values():
        config = logged[public / "base" / str(base.round)].files.get(CONFIG_NAME)
        if config is None or config.digest != base.config_digest:
            found = "none" if config is None else config.digest
            raise StepFailed(7, f"base/{base.round} has configuration {found}; the log names {base.config_digest}")
    return logged


def _check_objects(objects: Path, digest_of: FileDigests) -> None:
    """Every published object is what its name says."""
    for path in sorted(_inside(objects)):
        if _is_written(path, "[0-9a-f]{64}"):
            continue
        if path.is_symlink() or not path.is_file() or digest_of(path) != f"sha256:{path.name}":
            raise StepFailed(7, f"objects/{path.name} does not hold the bytes that its name is the SHA-256 of")


def _inside(directory: Path) -> Iterable[Path]:
    try:
        return list(directory.iterdir()) if directory.is_dir() else ()
    except FileNotFoundError:  # taken away since
        return ()


def check_placed(public: Path, history: History, release: Release, digest_of: FileDigests) -> int:
    """Step 8 for one release: the number of tensors, each made of exactly the bytes that it must be made of; where
    router rows were trained, all but those rows."""
    name = release.statement.release
    try:
        base = public / "base" / str(history.bases[release.statement.base_digest].round)
        directory = public / "releases" / name
        experts = [
            _expert(public, base, history, release, slot, digest_of)
            for slot in range(1, len(release.statement.experts) + 1)
        ]
        expected = _expected(base, experts)
        held = checkpoint.read_checkpoint(directory)
        _check_config(base, directory, release)
        _check_alongside(base, directory, held.values(), digest_of)
        check_trained(public, history, release)
    except (ConcordError, OSError) as error:
        raise failed_at(8, error, of=f"{name}: ") from error
    if held.keys() != expected.keys():
        odd = sorted(held.keys() ^ expected.keys())[0]
        raise StepFailed(8, f"{name}: tensor {odd} is in the release or in its inputs, but not in both")
    _check_tensors(held, expected, release)
    return len(held)


def _check_tensors(held: Mapping[str, TensorEntry], expected: Mapping[str, Placed], release: Release) -> None:
    trained = release.statement.trained_slots
    routers = {name for name, placed in expected.items() if trained and len(placed.pieces) > 1}
    for tensor, entry in held.items():
        wanted = expected[tensor]
        if entry.spec != wanted.spec or (tensor not in routers and not _same_bytes(entry, wanted.pieces)):
            raise StepFailed(8, f"{release.statement.release}: tensor {tensor} is not what its inputs make it")
        if tensor in routers and not all(
            _same_bytes(TensorEntry(entry.spec, own), (row,))
            for own, row in rows_that_stay(entry, wanted.pieces, trained=trained)
        ):
            raise StepFailed(
                8,
                f"{release.statement.release}: {tensor} has another row than its inputs make it, of somebody whose row "
                "was not trained",
            )


def _expert(
    public: Path, base: Path, history: History, release: Release, slot: int, digest_of: FileDigests
) -> Mapping[str, TensorEntry]:
    """The tensors of the contribution in a slot, from the file that the log names."""
    released = release.statement.experts[slot - 1]
    (grant,) = history.grants_at([released.grant_index])
    contribution = history.contributions_by_index[released.contribute_index]
    digest = contribution.files[EXPERT_NAME].digest
    path = object_path(public, digest)
    read_required_file(path)
    if digest_of(path) != digest:
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


def _check_alongside(base: Path, directory: Path, tensors: Iterable[TensorEntry], digest_of: FileDigests) -> None:
    """The tokenizer and what else goes alongside the weights must be the base's; nothing else may be there."""
    shards = {entry.location.path.name for entry in tensors}
    copied = {name for name in _ALONGSIDE if (base / name).exists()}
    for name in sorted(copied):
        if digest_of(base / name) != digest_of(directory / name):
            raise StepFailed(8, f"{directory / name} is not the base's")
    made = {MANIFEST_NAME, CONFIG_NAME, INDEX_NAME, EVALUATION_NAME, ROUTER_TRAINING_NAME}
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
