"""What a coordinator publishes: files by content, and directories of them that others can load as they are.

`objects/<hex>` holds every published file once; `base/<round>` and `releases/<name>` are Hugging Face directories whose
files are hard links to objects, each with the `manifest.json` that the log names by digest.
"""

import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Final

from common.errors import ConflictError, MalformedError, NotFoundError
from common.files import (
    copy_durably,
    link_or_copy,
    read_required,
    sync,
    taking_turns,
    temporary_name,
    write_atomic,
)
from common.trust.manifest import MANIFEST_NAME, FileEntry, Manifest, check_digest, digest_of, digest_of_file
from common.trust.tiles import CHECKPOINT_NAME

ROOT_NAME: Final = "trusted_root.json"
_LONGEST_NAME: Final = 1024


class Publication:
    """One coordinator's public directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._objects = path / "objects"
        self._objects.mkdir(parents=True, exist_ok=True)

    @property
    def log(self) -> Path:
        """Where the log's static files are."""
        return self.path / "log"

    def object_path(self, digest: str) -> Path:
        """Where a published file is or would be; `MalformedError` for what is no digest."""
        try:
            return self._objects / check_digest(digest).removeprefix("sha256:")
        except ValueError as error:
            raise MalformedError(str(error)) from error

    def find(self, digest: str) -> Path:
        """A published file by digest; `NotFoundError` where it is not published."""
        path = self.object_path(digest)
        if not path.is_file():
            raise NotFoundError(
                f"no published file has digest {digest}; what may be fetched is named by manifests and campaigns"
            )
        return path

    def base(self, round_number: int) -> Path:
        """Directory of the public checkpoint of a round."""
        return self.path / "base" / str(round_number)

    def release(self, name: str) -> Path:
        """Directory of a release."""
        return self.path / "releases" / name

    def manifest(self, digest: str) -> Manifest:
        """A published manifest by its digest."""
        return Manifest.parse(self.find(digest).read_bytes())

    def listed(self) -> Iterator[tuple[str, int]]:
        """Every published file, the log's checkpoint first: path and size. What is being written has no name yet."""
        paths = sorted(self.path.rglob("*"), key=lambda path: (path.name != CHECKPOINT_NAME, str(path)))
        for path in paths:
            if not any(part.startswith(".") for part in path.relative_to(self.path).parts):
                with suppress(FileNotFoundError):  # taken away since
                    if path.is_file() and not path.is_symlink():
                        yield str(path.relative_to(self.path)), path.stat().st_size

    def listed_path(self, name: str) -> Path:
        """Where one of these files is; `NotFoundError` for anything else, wherever it may be."""
        parts = PurePosixPath(name[:_LONGEST_NAME]).parts
        if not parts or str(PurePosixPath(*parts)) != name or any(part.startswith((".", "/")) for part in parts):
            raise NotFoundError(f"{name[:200]!r} is not published; read what the list of published files names")
        path = self.path.joinpath(*parts)
        if not path.is_file() or path.resolve() != self.path.resolve().joinpath(*parts):
            raise NotFoundError(f"{name[:200]!r} is not published; read what the list of published files names")
        return path

    def add_file(self, path: Path, *, entry: FileEntry) -> bool:
        """Publish a file whose digest the caller has checked, moving it in; False where it is there already.

        From then on everybody may read it, as whatever else is published: a file server often runs as somebody else.
        """
        target = self.object_path(entry.digest)
        if target.exists():
            return False
        path.chmod(0o644)
        path.replace(target)
        sync(self._objects)
        return True

    def take_back(self, entry: FileEntry, *, to: Path) -> None:
        """Undo `add_file`, for what the log does not name."""
        path = self.object_path(entry.digest)
        path.chmod(0o600)
        path.replace(to)

    def add_objects(self, directory: Path, *, ours: bool) -> Manifest:
        """Publish the files of `directory` and their manifest by content, without a name yet.

        Files are `ours` where nobody else ever writes to them: a second name will do. Others are copied and read again.

        Raises:
            ConflictError: a file that is not ours changed meanwhile.
        """
        manifest = Manifest.of_directory(directory)
        wanted = {directory / name: entry.digest for name, entry in manifest.files.items()}
        missing = {path: digest for path, digest in wanted.items() if not self.object_path(digest).exists()}
        (self._link if ours else self._copy)(missing)
        data = bytes(manifest)
        target = self.object_path(digest_of(data))
        if not target.exists():
            write_atomic(target, data)
        sync(self._objects)
        return manifest

    def _link(self, files: Mapping[Path, str]) -> None:
        for path in files:
            sync(path)
        for path, digest in files.items():  # all at once: an audit finds few that the log does not name yet
            if not self.object_path(digest).exists():
                link_or_copy(path, self.object_path(digest))

    def _copy(self, files: Mapping[Path, str]) -> None:
        copies = {temporary_name(self.object_path(digest)): self.object_path(digest) for digest in files.values()}
        try:
            for path, digest in files.items():
                copy = temporary_name(self.object_path(digest))
                copy_durably(path, copy)
                if digest_of_file(copy) != digest:
                    raise ConflictError(
                        f"{path} changed while it was published; publish again once nothing writes to it"
                    )
            for copy, target in copies.items():
                copy.replace(target)
        finally:
            for copy in copies:
                copy.unlink(missing_ok=True)

    def show(self, directory: Path, *, manifest_digest: str) -> None:
        """Make `directory` the named view of a published manifest; whole or not at all, and again without harm."""
        with taking_turns(self.path.parent / "publication.lock"):
            if not directory.exists():
                self._show(directory, manifest_digest)

    def _show(self, directory: Path, manifest_digest: str) -> None:
        manifest = self.manifest(manifest_digest)
        directory.parent.mkdir(parents=True, exist_ok=True)
        staging = directory.with_name(f".{directory.name}.partial")
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        for name, entry in manifest.files.items():
            link_or_copy(self.find(entry.digest), staging / name)
        link_or_copy(self.find(manifest_digest), staging / MANIFEST_NAME)
        staging.rename(directory)
        sync(directory.parent)

    def hide(self, directory: Path) -> None:
        """Take a shown directory away; the files stay as objects."""
        with taking_turns(self.path.parent / "publication.lock"):
            hidden = directory.with_name(f".{directory.name}.hidden")
            if directory.exists():
                shutil.rmtree(hidden, ignore_errors=True)
                directory.rename(hidden)  # at once: nobody finds half of it
                sync(directory.parent)
            shutil.rmtree(hidden, ignore_errors=True)

    def remove(self, digests: Iterable[str]) -> None:
        """Remove published files for good, those that are there."""
        for digest in sorted(digests):
            self.object_path(digest).unlink(missing_ok=True)
        sync(self._objects)

    def trusted_root(self) -> bytes:
        """The trusted root as published."""
        return read_required(self.path / ROOT_NAME, hint="this directory is not a coordinator's public directory")
