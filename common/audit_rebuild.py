"""A release made again from its inputs, and compared with what was published: the same bytes, file by file.

Of one whose router rows were trained, what it was trained from is made again; rows that were trained are not: training
again needs its texts and gives other bits on another machine. Every other row is compared.
"""

from dataclasses import dataclass
from pathlib import Path

from common.audit import Report
from common.audit_files import check_manifest, object_path, read_required_file
from common.audit_router_training import rows_that_stay
from common.errors import ConflictError, NotFoundError, VerificationError
from common.files import copy_whole
from common.model import checkpoint
from common.model.assembly import assemble, rows_of
from common.model.checkpoint import ByteRange
from common.model.expert import EVALUATION_NAME, EXPERT_NAME, ROUTER_SHARD, ROUTER_TRAINING_NAME
from common.trust.manifest import Manifest, digest_of_file
from common.trust.statements import ReleasePublish


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What was made again, and what was taken over because nobody can make it again."""

    made: tuple[str, ...]
    taken_over: tuple[str, ...]
    trained: tuple[int, ...] = ()
    """Slots whose rows were trained: they are the published ones, and nothing was made again of them."""


def rebuild(public: Path, report: Report, name: str, output: Path) -> Rebuilt:
    """Make the release called `name` again in the new directory `output`, from the base and the experts in the log.

    Raises:
        NotFoundError: the log names no such release, it was withdrawn, or an input is not published.
        ConflictError: there is something at `output`.
        VerificationError: a file is not the same bytes as the published one.
    """
    history = report.history
    release = history.releases.get(name)
    if release is None:
        raise NotFoundError(
            f"the log names no release {name!r}; there are: {', '.join(history.releases) or 'none yet'}"
        )
    if release.withdrawn_index is not None:
        raise NotFoundError(f"{name} was withdrawn by entry {release.withdrawn_index}; its inputs are gone")
    if output.exists():
        raise ConflictError(f"{output} is there already; name a directory that is not")
    statement, directory = release.statement, public / "releases" / name
    contributions = (history.contributions_by_index[each.contribute_index] for each in statement.experts)
    experts = [object_path(public, each.files[EXPERT_NAME].digest) for each in contributions]
    for path in experts:
        read_required_file(path)
    manifest = check_manifest(directory, statement.manifest_digest)
    base = public / "base" / str(history.bases[statement.base_digest].round)
    assemble(base, experts, num_experts_per_tok=statement.num_experts_per_tok, output=output)
    taken_over = {EVALUATION_NAME} & manifest.files.keys()  # measured, not made
    if statement.router_training is not None:
        taken_over |= _take_trained_rows(public, statement, manifest, output)
    made = {path.name for path in output.iterdir()} - taken_over
    if odd := sorted(made ^ (manifest.files.keys() - taken_over)):
        raise VerificationError(
            f"{name}: {odd[0]} is in the published release or in the one made again, but not in both"
        )
    for file in sorted(made):
        if digest_of_file(output / file) != manifest.files[file].digest:
            raise VerificationError(f"{name}: {file} made again is not the same bytes as the published one")
    for file in taken_over:
        (output / file).unlink(missing_ok=True)
        copy_whole(directory / file, output / file)
    return Rebuilt(tuple(sorted(made)), tuple(sorted(taken_over)), tuple(sorted(statement.trained_slots)))


def _take_trained_rows(public: Path, statement: ReleasePublish, manifest: Manifest, parent: Path) -> set[str]:
    """The files of a trained release that cannot be made again, once `parent`, which can, is the one that it names and
    every row that was not trained is the same in both.

    Raises:
        VerificationError: something else than trained rows is different.
    """
    training, published = statement.router_training, public / "releases" / statement.release
    assert training is not None, "asked of a release with trained rows"
    named = check_manifest(public / "releases" / training.parent, training.parent_digest)
    wanted = {name: entry.digest for name, entry in named.files.items() if name != EVALUATION_NAME}
    again = {path.name: digest_of_file(path) for path in parent.iterdir()}
    if odd := sorted(name for name in wanted.keys() | again.keys() if wanted.get(name) != again.get(name)):
        raise VerificationError(f"{training.parent}: {odd[0]} made again is not the same bytes as the published one")
    for name in (ROUTER_SHARD, ROUTER_TRAINING_NAME):
        read_required_file(published / name)
        if name not in manifest.files or digest_of_file(published / name) != manifest.files[name].digest:
            raise VerificationError(f"{published / name} is not the file that its manifest lists")
    ours, theirs = (checkpoint.read_header(place / ROUTER_SHARD) for place in (parent, published))
    if theirs.keys() != ours.keys():
        raise VerificationError(f"{statement.release} has other routers than {training.parent}")
    for name, entry in theirs.items():
        rows = rows_that_stay(entry, rows_of(ours[name]), trained=statement.trained_slots)
        if entry.spec != ours[name].spec or any(_bytes(own) != _bytes(row) for own, row in rows):
            raise VerificationError(
                f"{statement.release}: {name} has another row than {training.parent}, of somebody whose row was not "
                "trained"
            )
    return {ROUTER_SHARD, ROUTER_TRAINING_NAME}


def _bytes(row: ByteRange) -> bytes:
    with row.path.open("rb") as file:
        file.seek(row.offset)
        return file.read(row.size)
