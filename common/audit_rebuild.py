"""A release made again from its inputs, and compared with what was published: the same bytes, file by file."""

from dataclasses import dataclass
from pathlib import Path

from common.audit import Report
from common.audit_files import check_manifest, object_path, read_required_file
from common.errors import ConflictError, NotFoundError, VerificationError
from common.files import copy_whole
from common.model.assembly import assemble
from common.model.expert import EVALUATION_NAME, EXPERT_NAME
from common.trust.manifest import digest_of_file


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What was made again, and what was taken over because nobody can make it again."""

    made: tuple[str, ...]
    taken_over: tuple[str, ...]


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
    made = {path.name for path in output.iterdir()}
    taken_over = {EVALUATION_NAME} & manifest.files.keys()  # measured, not made
    if odd := sorted(made ^ (manifest.files.keys() - taken_over)):
        raise VerificationError(
            f"{name}: {odd[0]} is in the published release or in the one made again, but not in both"
        )
    for file in sorted(made):
        if digest_of_file(output / file) != manifest.files[file].digest:
            raise VerificationError(f"{name}: {file} made again is not the same bytes as the published one")
    for file in taken_over:
        copy_whole(directory / file, output / file)
    return Rebuilt(tuple(sorted(made)), tuple(sorted(taken_over)))
