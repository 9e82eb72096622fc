"""Fetching what a campaign is about by its digest: a model or a pool of public text, each file checked as it comes."""

from pathlib import Path
from typing import Final

from common.errors import NotFoundError, TooLargeError, VerificationError
from common.files import make_private_directory
from common.trust.manifest import MANIFEST_NAME, FileEntry, Manifest, check_directory
from common.trust.statement_fields import FileDigest
from owner_client.fetching import OnBytes
from owner_client.manifests import fetch_files
from owner_client.membership import Membership
from owner_client.releases import files_here

_MEGABYTE: Final = 1_000_000
_SHORT: Final = 16


def fetch_named(
    member: Membership, named: FileDigest, parent: Path, *, max_megabytes: float, on_bytes: OnBytes
) -> Path:
    """The directory whose manifest is `named`, fetched into `parent` unless it is here; interrupted, it goes on.

    Raises:
        NotFoundError: it is not handed out any more.
        TooLargeError: it is larger than this owner fetches.
        VerificationError: what came, or what is here, is not it.
    """
    directory = parent / named.digest.removeprefix("sha256:")[:_SHORT]
    make_private_directory(directory)
    if (directory / MANIFEST_NAME).exists():
        _check(directory, named)
        return directory
    manifest = _manifest(member, named, directory)
    if manifest.size_bytes > max_megabytes * _MEGABYTE:
        raise TooLargeError(
            f"{manifest.size_bytes} bytes would be fetched; [campaigns] max_model_megabytes in owner.toml allows "
            f"{max_megabytes:g} MB"
        )
    fetch_files(member.client, manifest, directory, on_bytes=on_bytes, held=files_here(member))
    return directory


def _manifest(member: Membership, named: FileDigest, directory: Path) -> Manifest:
    path = directory.with_name(f"{directory.name}.manifest")
    if not path.exists():
        member.client.fetch(FileEntry(named.digest, named.size), to=path, on_bytes=lambda done, total: None)
    manifest = Manifest.parse(path.read_bytes())
    if manifest.digest != named.digest:
        raise VerificationError(f"{path} was changed since it was fetched; remove it")
    return manifest


def _check(directory: Path, named: FileDigest) -> None:
    manifest = Manifest.parse((directory / MANIFEST_NAME).read_bytes())
    try:
        if manifest.digest != named.digest:
            raise VerificationError(f"{directory} has another manifest than {named.digest}")
        check_directory(directory, manifest=manifest)
    except (NotFoundError, VerificationError) as error:
        raise VerificationError(
            f"{directory} was changed since it was fetched: {error}. Find out how; remove it, and it is fetched anew"
        ) from error
