"""The history of a log that grows on disk: brought up to what is there before anything is judged by it.

Entries were checked when they were appended; that they are the same ones is what the root hash over them says. A log
that lost entries which were seen in it, as where a copy that lags behind takes over a database, is not gone on from.
"""

from copy import copy, deepcopy
from dataclasses import fields, replace
from typing import Final

from sqlalchemy import Connection

from common.errors import ConflictError, UnavailableError
from common.trust import merkle
from common.trust.history import History
from common.trust.root import TrustedRoot
from common.trust.statements import parse_note
from coordinator.log import Appender
from coordinator.store import read_hashes, read_notes

_READ_ENTRIES: Final = 4096


class LiveHistory:
    """What one process knows of a log. Not safe to use from several threads: the caller holds a lock."""

    def __init__(self, root: TrustedRoot) -> None:
        self._root = root
        self._history = History(root)
        self._running = merkle.RunningRoot()
        self._seen, self._last = 0, b""
        """How many entries were seen on disk, and the leaf hash of the last of them."""

    def catch_up(self, connection: Connection) -> History:
        """The history of all entries on disk.

        Raises:
            UnavailableError: entries that were there are gone.
            ConflictError: the entries are not those that were signed.
        """
        before, seen, last = self._history.size, self._seen, self._last
        entries = self._new(connection)
        while entries:
            for entry in entries:
                self._take(entry)
            entries = read_notes(connection, self._history.size, self._history.size + _READ_ENTRIES)
        size = self._history.size
        if size > before and self._running.root != merkle.tree_hash(size, read_hashes(connection)):
            self._begin_anew()
            self._seen, self._last = seen, last
            raise ConflictError(f"the {size} entries here are not those that were signed; restore the newest backup")
        return self._history

    def _new(self, connection: Connection) -> list[bytes]:
        """The first entries that were not taken yet, if the last one that was seen is still there."""
        start = max(0, self._seen - 1)
        entries = read_notes(connection, start, start + _READ_ENTRIES)
        if self._seen and (not entries or merkle.leaf_hash(entries[0]) != self._last):
            raise UnavailableError(
                f"the database lost entries: {self._seen} were in it, and number {start} is not there or another one. "
                "Nothing is appended until they are back: let the newest copy of the database take over, or stop, "
                "restore it and run: concord coordinator recover"
            )
        if self._history.size < self._seen:  # begun anew
            return read_notes(connection, self._history.size, self._history.size + _READ_ENTRIES)
        return entries[1:] if self._seen else entries

    def _take(self, entry: bytes) -> None:
        leaf = merkle.leaf_hash(entry)
        self._history.take(parse_note(entry)[1])
        self._running.append(leaf)
        if self._history.size > self._seen:
            self._seen, self._last = self._history.size, leaf

    def committed(self, appender: Appender) -> None:
        """What `appender` added, and the history took, is on disk."""
        self._running = appender.running.copy()
        self._seen, self._last = self._history.size, appender.last

    def undone(self) -> None:
        """A write transaction failed: what the history took of it is not on disk."""
        if self._history.size > self._running.size:
            self._begin_anew()

    def _begin_anew(self) -> None:
        self._history, self._running = History(self._root), merkle.RunningRoot()


def snapshot(history: History) -> History:
    """The same history, which stays as it is now while the log grows."""
    kept = {each.name: copy(getattr(history, each.name)) for each in fields(history) if each.name != "root"}
    return replace(history, **(kept | {"records": deepcopy(history.records)}))
