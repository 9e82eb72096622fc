"""Fetching a directory of published files: each is what the manifest says; what is here already is not sent again."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from common.files import check_room, link_or_copy, write_atomic
from common.part_file import PartFile
from common.trust.manifest import MANIFEST_NAME, FileEntry, Manifest, digest_of_file
from owner_client.client import Client
from owner_client.fetching import OnBytes, part_of


def fetch_files(
    client: Client, manifest: Manifest, directory: Path, *, on_bytes: OnBytes, held: Mapping[str, Path] | None = None
) -> None:
    """Fetch all files of a manifest into a directory, and then the manifest itself. Files that are there are whole.

    `held` says where files are, by digest, that need not be fetched; their bytes are looked at before that is believed.
    """
    done, here = 0, held or {}
    to_come = {name: entry for name, entry in manifest.files.items() if entry.digest not in here}
    needed = sum(_missing(directory / name, entry) for name, entry in to_come.items())
    check_room(directory, needed=needed, what="what is to be fetched")
    for name, entry in manifest.files.items():
        target = directory / name
        if not target.exists() and not _taken(here.get(entry.digest), entry.digest, target):
            report = _shifted(on_bytes, by=done, total=manifest.size_bytes)
            client.fetch(entry, to=target, on_bytes=report)
        done += entry.size
        on_bytes(done, manifest.size_bytes)
    for cut_off in directory.glob(".*.partial"):  # a manifest that a crash kept from its place
        cut_off.unlink()
    write_atomic(directory / MANIFEST_NAME, bytes(manifest))


def held_files(directories: Iterable[Path]) -> dict[str, Path]:
    """Files that manifests in these directories name, by digest; what they hold now is not looked at."""
    found = {}
    for directory in directories:
        path = directory / MANIFEST_NAME
        if path.is_file():
            for name, entry in Manifest.parse(path.read_bytes()).files.items():
                found[entry.digest] = directory / name
    return found


def _missing(target: Path, entry: FileEntry) -> int:
    """How many bytes are to come; what an earlier try left counts as here."""
    return 0 if target.exists() else entry.size - PartFile.received(part_of(target), size=entry.size)


def _taken(source: Path | None, digest: str, target: Path) -> bool:
    """Whether a file that was here serves; one that was changed since does not."""
    if source is None or not source.is_file() or digest_of_file(source) != digest:
        return False
    link_or_copy(source, target)
    return True


def _shifted(on_bytes: OnBytes, *, by: int, total: int) -> OnBytes:
    return lambda done, _: on_bytes(by + done, total)
