"""A release at an owner's: proven to be in the log, every file of it checked."""

from dataclasses import dataclass
from pathlib import Path

from common.errors import ConflictError, NotFoundError, VerificationError
from common.files import make_private_directory
from common.trust.manifest import MANIFEST_NAME, Manifest, check_directory
from common.trust.statements import ReleasePublish
from owner_client.fetching import OnBytes
from owner_client.manifests import fetch_files, held_files
from owner_client.membership import Membership


@dataclass(frozen=True, slots=True)
class FetchedRelease:
    """A release that is here."""

    statement: ReleasePublish
    directory: Path


def fetch_release(member: Membership, name: str, output: Path | None, *, on_bytes: OnBytes) -> FetchedRelease:
    """Fetch a release, or the latest where `name` is empty, into `output` (by default `releases/<name>` in the home).
    Interrupted, it goes on; files of a base, a release or an expert that are here already are taken from there.

    Raises:
        NotFoundError: there is no such release, or it was withdrawn.
        ConflictError: something else is in `output`.
        VerificationError: the coordinator shows something that the log does not name.
    """
    statement, manifest = member.client.release(name)
    directory = output or member.home.path / "releases" / statement.release
    make_private_directory(directory)
    strange = {path.name for path in directory.iterdir()} - set(manifest.files) - {MANIFEST_NAME}
    strange = {name for name in strange if not name.endswith((".part", ".part.state", ".partial"))}
    if strange:
        raise ConflictError(f"{directory} holds {sorted(strange)[0]}, which is no part of it; choose another directory")
    if (directory / MANIFEST_NAME).exists():
        _check(directory, manifest)
    else:
        fetch_files(member.client, manifest, directory, on_bytes=on_bytes, held=files_here(member))
    return FetchedRelease(statement, directory)


def _check(directory: Path, manifest: Manifest) -> None:
    try:
        check_directory(directory, manifest=manifest)
    except (NotFoundError, VerificationError) as error:
        raise VerificationError(
            f"{directory} was changed since it was fetched: {error}. Find out how; remove it and fetch it anew"
        ) from error


def files_here(member: Membership) -> dict[str, Path]:
    """Files that need not be fetched, by digest: of bases, releases and other models that are here."""
    home = member.home
    parents = [path for path in (home.bases, home.models, home.path / "releases") if path.is_dir()]
    return held_files(path for parent in parents for path in parent.iterdir())
