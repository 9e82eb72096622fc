"""Durable files: what is written is whole and on disk before anybody is told, and secrets are readable by us alone."""

import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import get_ident
from typing import BinaryIO, Final

from common.errors import ConflictError, MalformedError, NoRoomError, NotFoundError

NO_SPACE: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a system says where a disk, or somebody's part of it, is full."""


def write_atomic(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Replace `path` by `data`: readers see the old bytes or the new ones, and a crash loses neither.

    Raises:
        NoRoomError: the disk is full; the old bytes are there still.
    """
    temporary = temporary_name(path)
    try:
        with full_disk_is_unavailable(str(path)):
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(file.fileno(), mode)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def write_into(directory: Path, name: str, data: bytes) -> Path:
    """Like `write_atomic`, in a directory that is made where it is missing; returns the file."""
    directory.mkdir(parents=True, exist_ok=True)
    write_atomic(directory / name, data)
    return directory / name


def write_secret(path: Path, data: bytes) -> None:
    """Like `write_atomic`, readable by the owner of the process alone."""
    make_private_directory(path.parent)
    write_atomic(path, data, mode=0o600)


def make_private_directory(path: Path) -> None:
    """A directory only we may enter."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)


def sync(path: Path) -> None:
    """Make the bytes of a file, or the names in a directory, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_required(path: Path, *, hint: str, max_bytes: int | None = None) -> bytes:
    """The bytes of `path`.

    Raises:
        NotFoundError: it is absent, with a hint at what to do.
        MalformedError: it is no file, or larger than `max_bytes`.
    """
    try:
        with path.open("rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise MalformedError(f"{path} is not a file; {hint}")
            return read_at_most(file, max_bytes, what=str(path))
    except FileNotFoundError as error:
        raise NotFoundError(f"{path} is not there; {hint}") from error
    except IsADirectoryError as error:
        raise MalformedError(f"{path} is a folder; {hint}") from error


def read_at_most(file: BinaryIO, max_bytes: int | None, *, what: str) -> bytes:
    """All that a file has; `MalformedError` where that is more than `max_bytes`."""
    if max_bytes is None:
        return file.read()
    data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise MalformedError(f"{what} is larger than the {max_bytes} bytes that it may have")
    return data


def link_or_copy(source: Path, target: Path) -> None:
    """Give `source` a second name; where the file system cannot, copy it: whole, or not at all."""
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:
        copy_whole(source, target)


def copy_whole(source: Path, target: Path) -> None:
    """Copy a file: `target` is there whole and durable, or not at all."""
    temporary = temporary_name(target)
    copy_durably(source, temporary)
    temporary.replace(target)


def copy_durably(source: Path, target: Path) -> None:
    """Copy a file; `target` is durable then, and may be there in part before."""
    shutil.copyfile(source, target)
    with target.open("rb") as file:
        os.fsync(file.fileno())


def temporary_name(path: Path) -> Path:
    """What a file is called while this thread writes it."""
    return path.with_name(f".{path.name}.{os.getpid()}-{get_ident()}.partial")


@contextmanager
def full_disk_is_unavailable(what: str) -> Iterator[None]:
    """Turn "no space left" into a `NoRoomError` that says what could not be stored."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        raise NoRoomError(f"no space left for {what}; free some and go on: what is stored stays") from error


def check_room(directory: Path, *, needed: int, what: str) -> None:
    """Before anything is written: raise `NoRoomError` where `what` takes more bytes than are free."""
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise NoRoomError(
            f"{what} needs {needed} bytes and {directory} has {free} free; free {needed - free} bytes there and go on"
        )


@contextmanager
def exclusive(path: Path, *, what: str) -> Iterator[None]:
    """Hold the lock file `path` while the block runs.

    Raises:
        ConflictError: another process holds it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConflictError(f"{what} is already in use by another process; stop that one first") from error
        yield
    finally:
        os.close(descriptor)


@contextmanager
def taking_turns(path: Path) -> Iterator[None]:
    """Like `exclusive`, for short work: wait for the turn."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
