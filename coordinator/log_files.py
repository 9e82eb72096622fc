"""The log as static files (C2SP `tlog-tiles`): hash tiles, entry bundles and the checkpoint, for any file server.

What is recorded is answered from the database; the files follow. After a quiet time they follow before the answer goes
out, so whoever opts out finds it published when told; under load a thread of its own brings them up to date with many
entries at once. The checkpoint is written after them, so it never names what is not there; beside it lies for every
witness the largest checkpoint that it cosigned.
"""

import logging
import time
from pathlib import Path, PurePosixPath
from threading import Condition, Thread
from typing import Final

from sqlalchemy import Connection

from common.errors import ConcordError
from common.files import full_disk_is_unavailable, taking_turns, write_atomic
from common.trust import merkle
from common.trust.note import Checkpoint, Verifier, open_checkpoint
from common.trust.tiles import (
    BUNDLE_ENTRIES,
    CHECKPOINT_NAME,
    COSIGNED_NAME,
    TILE_HASHES,
    TILE_HEIGHT,
    bundle_path,
    format_bundle,
    tile_path,
    tiles_between,
)
from coordinator.cosigned import cosigned_checkpoints, latest_checkpoint
from coordinator.store import Store, read_hashes, read_notes

logger = logging.getLogger(__name__)

_QUIET_S: Final = 0.25
"""Files that were brought up to date less than this ago are left to the thread."""
_RETRY_S: Final = 1.0


class LogFiles:
    """The static files of one log, in `directory`. Safe to use from several threads and processes."""

    def __init__(self, store: Store, *, log: Verifier, directory: Path) -> None:
        self._store = store
        self._log = log
        self._directory = directory

    def checkpoint(self) -> Checkpoint | None:
        """The checkpoint among the static files."""
        path = self._directory / CHECKPOINT_NAME
        return open_checkpoint(path.read_bytes(), log=self._log) if path.exists() else None

    def entries_beyond(self, size: int) -> PurePosixPath | None:
        """A published entry bundle that holds more than a log of `size` entries has, if there is one."""
        index, width = size // BUNDLE_ENTRIES, size % BUNDLE_ENTRIES
        wider = (bundle_path(index, width=each) for each in range(width + 1, BUNDLE_ENTRIES + 1))
        return next((path for path in wider if (self._directory / path).is_file()), None)

    def update(self) -> None:
        """Bring the files up to the latest signed checkpoint and its cosignatures.

        Raises:
            UnavailableError: the disk is full, or the database cannot be read.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        with (
            full_disk_is_unavailable("the log's published files"),
            taking_turns(self._directory.parent.parent / "log.lock"),
            self._store.reading() as connection,
        ):
            # Read after the cosignatures, written before them: who reads them first finds what they are about.
            cosigned = format_bundle(cosigned_checkpoints(connection))
            note = latest_checkpoint(connection)
            path = self._directory / CHECKPOINT_NAME
            if note is None:
                return
            if path.exists() and path.read_bytes() == note:
                self._write_cosigned(cosigned)
                return
            published = self.checkpoint()
            before, size = published.size if published else 0, open_checkpoint(note, log=self._log).size
            for level, index, width in tiles_between(before, size):
                self._write_tile(connection, level, index, width)
            for bundle in range(before // BUNDLE_ENTRIES, -(-size // BUNDLE_ENTRIES) if size > before else 0):
                start, end = bundle * BUNDLE_ENTRIES, min(size, (bundle + 1) * BUNDLE_ENTRIES)
                self._write(bundle_path(bundle, width=end - start), format_bundle(read_notes(connection, start, end)))
            write_atomic(path, note)
            self._write_cosigned(cosigned)

    def _write_cosigned(self, data: bytes) -> None:
        path = self._directory / COSIGNED_NAME
        if data and not (path.exists() and path.read_bytes() == data):
            write_atomic(path, data)

    def _write_tile(self, connection: Connection, level: int, index: int, width: int) -> None:
        first = index * TILE_HASHES
        positions = [merkle.stored_hash_index(TILE_HEIGHT * level, first + i) for i in range(width)]
        self._write(tile_path(level, index, width=width), b"".join(read_hashes(connection)(positions)))

    def _write(self, path: PurePosixPath, data: bytes) -> None:
        target = self._directory / path
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(target, data)


class Publisher:
    """Keeps the static files up to date: at once where it is quiet, else from a thread that starts when needed."""

    def __init__(self, files: LogFiles) -> None:
        self._files = files
        self._changed = Condition()
        self._is_due = self._is_closed = False
        self._done_at = -_QUIET_S
        self._thread: Thread | None = None

    def soon(self) -> None:
        """The log has changed: its files follow, at the latest when this is closed."""
        with self._changed:
            if self._is_due or time.monotonic() - self._done_at < _QUIET_S:
                self._is_due = True
                self._start_thread()
                self._changed.notify()
                return
        self._update()

    def close(self) -> None:
        """Bring the files up to date and stop."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()
        elif self._is_due:
            self._update()

    def _start_thread(self) -> None:
        if self._thread is None and not self._is_closed:
            self._thread = Thread(target=self._run, name="log-files", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_due or self._is_closed)
                rest = self._done_at + _QUIET_S - time.monotonic()
                self._changed.wait_for(lambda: self._is_closed, timeout=max(0.0, rest))
                if self._is_closed and not self._is_due:
                    return
                self._is_due = False
            try:
                self._update()
            except Exception:  # a loop that ends would leave published files behind the log for good
                logger.exception("the log's files are not up to date")
                self._again()

    def _update(self) -> None:
        """What was recorded stays recorded where its files cannot be written; they are written later."""
        try:
            self._files.update()
        except (ConcordError, OSError) as error:
            logger.warning("the log's files are not up to date: %s", error)
            self._again()
        else:
            with self._changed:
                self._done_at = time.monotonic()

    def _again(self) -> None:
        with self._changed:
            self._is_due = not self._is_closed
            self._done_at = time.monotonic() + _RETRY_S
            self._start_thread()
