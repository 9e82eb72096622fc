"""Digests and manifests: what a published directory holds, as one canonical JSON that can be signed by its digest.

A manifest lists plain file names only: no directories, nothing hidden, no path in a name. Files not listed are refused
by whoever checks a directory, not ignored.
"""

import hashlib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from common.errors import MalformedError, NotFoundError, VerificationError
from common.trust import strict_json

MANIFEST_NAME: Final = "manifest.json"
MAX_MANIFEST_BYTES: Final = 1024 * 1024
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_READ_BYTES = 4 * 1024 * 1024


def digest_of(data: bytes) -> str:
    """`sha256:<hex>` of `data`."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def digest_of_file(path: Path) -> str:
    """`sha256:<hex>` of a file, read in pieces."""
    with path.open("rb") as file:
        return _digest_of(file)


def _digest_of(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while block := file.read(_READ_BYTES):
        digest.update(block)
    return f"sha256:{digest.hexdigest()}"


class FileDigests:
    """As `digest_of_file`, but a file that has several names, as published ones have, is read once; again where it was
    written to, moved or linked since."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, ...], str] = {}

    def __call__(self, path: Path) -> str:
        """`sha256:<hex>`."""
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            file_id = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
            if file_id not in self._known:
                self._known[file_id] = _digest_of(file)
            return self._known[file_id]


def check_digest(text: str) -> str:
    """`text` if it is spelt as a digest, else `ValueError`."""
    if not _DIGEST.fullmatch(text):
        raise ValueError(f"{text[:80]!r} is not a digest (sha256: and 64 hex digits)")
    return text


def check_file_name(name: str) -> str:
    """`name` if it is a plain file name that a manifest may list, without any path in it, else `ValueError`."""
    if not _FILE_NAME.fullmatch(name):
        raise ValueError(f"{name[:80]!r} is not a plain file name (letters, digits, '.', '_' and '-')")
    if name == MANIFEST_NAME:
        raise ValueError("a manifest does not list itself")
    return name


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file by content: its digest and its size in bytes."""

    digest: str
    size: int

    def __post_init__(self) -> None:
        check_digest(self.digest)
        if not 0 <= self.size <= strict_json.MAX_SAFE_INTEGER:
            raise ValueError(f"file size {self.size} is out of range")


@dataclass(frozen=True, slots=True)
class Manifest:
    """The files of a directory, by name."""

    files: Mapping[str, FileEntry]

    def __post_init__(self) -> None:
        for name in self.files:
            check_file_name(name)

    @classmethod
    def of_directory(cls, directory: Path) -> "Manifest":
        """What `directory` holds now, by hashing it; its own `manifest.json` is left out.

        Raises:
            MalformedError: it holds a subdirectory, a link or a name that no manifest may list.
        """
        files = {}
        for path in sorted(directory.iterdir()):
            if path.name == MANIFEST_NAME:
                continue
            if path.is_symlink() or not path.is_file():
                raise MalformedError(f"{path} is not a plain file; a published directory holds plain files only")
            files[path.name] = FileEntry(digest_of_file(path), path.stat().st_size)
        try:
            return cls(files)
        except ValueError as error:
            raise MalformedError(f"{directory}: {error}") from error

    @classmethod
    def parse(cls, data: bytes) -> "Manifest":
        """The inverse of `bytes(manifest)`; anything else is a `MalformedError`."""
        if len(data) > MAX_MANIFEST_BYTES:
            raise MalformedError(f"manifest of {len(data)} bytes; at most {MAX_MANIFEST_BYTES} are allowed")
        fields = strict_json.load_object(data, what="manifest")
        try:
            match fields:
                case {"files": dict(files)}:
                    manifest = cls({name: _parse_entry(entry) for name, entry in files.items()})
                case _:
                    raise ValueError("it has no files")
        except ValueError as error:
            raise MalformedError(f"manifest: {error}") from error
        if bytes(manifest) != data:
            raise MalformedError("manifest is not canonical JSON")
        return manifest

    def __bytes__(self) -> bytes:
        files = {name: {"digest": entry.digest, "size": entry.size} for name, entry in self.files.items()}
        return strict_json.canonical({"files": files})

    @property
    def digest(self) -> str:
        """Digest of the canonical bytes: the name by which statements refer to the directory."""
        return digest_of(bytes(self))

    @property
    def size_bytes(self) -> int:
        """Bytes of all files together."""
        return sum(entry.size for entry in self.files.values())


def _parse_entry(field: strict_json.JsonValue) -> FileEntry:
    match field:
        case {"digest": str(digest), "size": int(size)} if type(size) is int:
            return FileEntry(digest, size)
        case _:
            raise ValueError(f"a file entry needs digest and size, not {str(field)[:80]}")


def check_directory(directory: Path, *, manifest: Manifest, digests: Callable[[Path], str] = digest_of_file) -> None:
    """Raise unless `directory` holds exactly the files of `manifest`, byte for byte, as `digests` says.

    Raises:
        NotFoundError: a file is missing.
        VerificationError: a file has other bytes, or one is there that the manifest does not list.
    """
    present = {path.name for path in directory.iterdir()} - {MANIFEST_NAME}
    if absent := sorted(manifest.files.keys() - present):
        raise NotFoundError(f"{directory} lacks {', '.join(absent[:3])}")
    if extra := sorted(present - manifest.files.keys()):
        raise VerificationError(f"{directory} holds {', '.join(extra[:3])}, which its manifest does not list")
    for name, entry in manifest.files.items():
        path = directory / name
        if path.is_symlink() or not path.is_file():
            raise VerificationError(f"{path} is not a plain file; a published directory holds plain files only")
        if path.stat().st_size != entry.size or digests(path) != entry.digest:
            raise VerificationError(
                f"{path} is not the file that its manifest lists ({entry.digest}, {entry.size} bytes)"
            )
