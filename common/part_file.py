"""A file that arrives in order, through kills and restarts: what is committed is on disk and in its digest, for good.

Beside `<name>.part` lies `<name>.part.state` (`common/part_state.py`): how many bytes are committed, and the digest's
state after them. What is past that was on its way when the process died and is sent again. A commit is made beside the
writing that goes on.
"""

import os
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Final

from common.errors import VerificationError
from common.files import sync
from common.part_state import PartState, read_state
from common.resumable_sha256 import ResumableSha256
from common.trust.manifest import FileEntry

_READ_BYTES: Final = 1024 * 1024
_LEAST_COMMIT_BYTES: Final = 1024 * 1024
_MOST_COMMIT_BYTES: Final = 16 * 1024 * 1024
_COMMITS_A_FILE: Final = 512
"""What is lost in a kill is about two commits' bytes: less than a hundredth of a large file."""


class PartFile:
    """The part of a file that is here, open for what comes next."""

    def __init__(self, path: Path, entry: FileEntry) -> None:
        self.path, self._entry = path, entry
        committed, digest = _read_state(path, size=entry.size)
        self._digest = digest if digest is not None else _digest_of_start(path, committed)
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(self._descriptor, committed)
        self._state = PartState(state_path(path), anew=committed == 0)
        sync(path.parent)
        self.position, self.committed = committed, committed
        self._commit_bytes = commit_bytes(entry.size)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="commit")
        self._commit: Future[int] | None = None

    @staticmethod
    def received(path: Path, *, size: int) -> int:
        """How many bytes of a file of `size` are committed in `path`, without opening it."""
        return _read_state(path, size=size)[0]

    @property
    def is_whole(self) -> bool:
        """Whether every byte is committed."""
        return self.committed == self._entry.size

    def digest_with(self, data: bytes | memoryview) -> ResumableSha256:
        """The digest of all that is here and `data`, which is not written."""
        digest = self._digest.copy()
        digest.update(data)
        return digest

    def append(self, data: bytes | memoryview, *, digest: ResumableSha256 | None = None) -> None:
        """Write the next bytes; they are committed a little later. `digest` is what `digest_with` said of them."""
        written = 0
        while written < len(data):
            written += os.pwrite(self._descriptor, memoryview(data)[written:], self.position + written)
        self._digest = digest or self.digest_with(data)
        self.position += len(data)
        self._take()
        if self._commit is not None and self.position - self.committed >= 2 * self._commit_bytes:
            self._commit.exception()  # the disk is slower than the sender: wait for it
            self._take()
        due = self.position - self.committed >= self._commit_bytes or self.position == self._entry.size
        if due and self._commit is None:
            self._begin()

    def commit(self) -> None:
        """Return when all that was written is committed."""
        while self._commit is not None or self.committed < self.position:
            if self._commit is None:
                self._begin()
            assert self._commit is not None, "begun just now"
            self._commit.exception()
            self._take()

    def check(self, *, remedy: str) -> None:
        """Raise `VerificationError` unless the whole file is here and is what it is called; drop it then."""
        self.commit()
        found = f"sha256:{self._digest.hexdigest()}"
        if not self.is_whole or found != self._entry.digest:
            self.close()
            drop(self.path)
            raise VerificationError(f"what arrived is not {self._entry.digest}; it was dropped, {remedy}")

    def close(self) -> None:
        """Commit what was written, where the disk lets us, and let go of the file."""
        if self._descriptor >= 0:
            with suppress(OSError):
                self.commit()
        self._thread.shutdown()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._state.close()
            self._descriptor = -1

    def _begin(self) -> None:
        self._commit = self._thread.submit(self._make_durable, self.position, self._digest.state())

    def _take(self) -> None:
        if self._commit is not None and self._commit.done():
            commit, self._commit = self._commit, None
            self.committed = commit.result()

    def _make_durable(self, position: int, state: bytes | None) -> int:
        os.fdatasync(self._descriptor)
        _let_go(self._descriptor, self.committed, position)
        self._state.save(position, state)
        return position


def _let_go(descriptor: int, start: int, end: int) -> None:
    """Keep what is on disk out of memory: nobody reads it soon, and what comes next is written into warm pages."""
    os.posix_fadvise(descriptor, start, end - start, os.POSIX_FADV_DONTNEED)


def commit_bytes(size: int) -> int:
    """How much of a file of `size` bytes is committed together."""
    return max(_LEAST_COMMIT_BYTES, min(_MOST_COMMIT_BYTES, size // _COMMITS_A_FILE))


def state_path(path: Path) -> Path:
    """Where a part's state is kept."""
    return path.with_name(path.name + ".state")


def drop(path: Path) -> None:
    """Forget a part."""
    path.unlink(missing_ok=True)
    state_path(path).unlink(missing_ok=True)


def _read_state(path: Path, *, size: int) -> tuple[int, ResumableSha256 | None]:
    """Bytes that are committed, and the digest after them where it can be taken up."""
    try:
        there = path.stat().st_size
    except FileNotFoundError:
        return 0, None
    return read_state(state_path(path), most=min(there, size))


def _digest_of_start(path: Path, size: int) -> ResumableSha256:
    digest = ResumableSha256()
    if size:
        with path.open("rb") as file:
            for start in range(0, size, _READ_BYTES):
                digest.update(file.read(min(_READ_BYTES, size - start)))
    return digest
