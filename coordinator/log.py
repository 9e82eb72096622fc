"""The transparency log in SQL: append, sign, prove.

RFC 6962 tree in Go's stored-hash layout, C2SP checkpoints. A checkpoint goes to disk in the transaction of the entries
that it covers, and nobody sees it before that ended: what is signed is on disk, and a crash leaves both or neither. The
same content as static files is `log_files.py`.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, func, insert, select

from common.errors import ConflictError, MalformedError, NotFoundError
from common.trust import merkle
from common.trust.note import Checkpoint, Note, Proof, Signature, SigningKey, sign
from common.trust.statements import Statement, parse_note
from coordinator.cosigned import cosigned_checkpoints, keep, latest_checkpoint
from coordinator.log_files import LogFiles, Publisher
from coordinator.store import Store, read_hashes, read_notes
from coordinator.tables import checkpoints, entries, hashes


class Appender:
    """Entries added within one write transaction. `seal` ends it: entries, hashes and the checkpoint over them."""

    def __init__(self, connection: Connection, *, running: merkle.RunningRoot, key: SigningKey, origin: str) -> None:
        self._connection = connection
        self._key, self._origin = key, origin
        self._entries: list[dict[str, Any]] = []
        self._hashes: list[dict[str, Any]] = []
        self._stored = running.stored()
        self.running = running
        self.last = b""
        """Leaf hash of the last entry that was added."""
        self.checkpoint = b""

    def append(self, note: bytes, *, statement: Statement) -> int:
        """Add an entry; returns its leaf index."""
        index, first = self.running.size, merkle.stored_hash_count(self.running.size)
        self.last = merkle.leaf_hash(note)
        for place, each in enumerate(self.running.append(self.last), start=first):
            self._hashes.append({"position": place, "hash": each})
            self._stored[place] = each
        self._entries.append(
            {
                "leaf_index": index,
                "note": note,
                "digest": statement.digest,
                "record_id": statement.record_id,
                "type": statement.type,
                "party": statement.party,
                "seq": statement.seq,
            }
        )
        return index

    def seal(self) -> None:
        """Write everything that was appended, and the signed checkpoint of what the log holds then."""
        if not self._entries:
            return
        self._connection.execute(_ADD_ENTRIES, self._entries)
        self._connection.execute(_ADD_HASHES, self._hashes)
        self.checkpoint = _sign(self._connection, self.running.size, self.running.root, self._key, self._origin)
        for entry in self._entries:
            sys.audit("concord.point", f"appended {entry['type']}")

    def receipt(self, index: int) -> bytes:
        """The receipt of an entry that was appended and sealed; nothing is read for it."""
        proof = merkle.inclusion_proof(index, self.running.size, lambda places: [self._stored[p] for p in places])
        return bytes(Proof(index, proof, self.checkpoint))


_OLDER: Final = (
    "the registry holds {size} entries but {what}: it was restored from an older backup or damaged. Going on would "
    "fork the log. Restore the newest backup, or roll it forward from what was published (concord coordinator "
    "recover, with --from DIR where a copy is newer than the home's own files); where neither is to be had, start a "
    "new log under another name (concord coordinator init --origin NAME)"
)
_ADD_ENTRIES: Final = insert(entries)
_ADD_HASHES: Final = insert(hashes)
_ADD_CHECKPOINT: Final = insert(checkpoints)


def _sign(connection: Connection, size: int, root: bytes, key: SigningKey, origin: str) -> bytes:
    note = bytes(sign(str(Checkpoint(origin, size, root)), key))
    connection.execute(_ADD_CHECKPOINT, {"tree_size": size, "root": root, "note": note})
    return note


class Log:
    """One log. `directory` is where its static files go."""

    def __init__(self, store: Store, *, key: SigningKey, origin: str, directory: Path) -> None:
        self._store = store
        self._key = key
        self._origin = origin
        self._running = merkle.RunningRoot()
        self._files = LogFiles(store, log=key.verifier, directory=directory)
        self._publisher = Publisher(self._files)

    def appender(self, connection: Connection, *, size: int | None = None) -> Appender:
        """What appends within the caller's write transaction, to the log's `size` entries where the caller knows."""
        size = log_size(connection) if size is None else size
        known = self._running
        running = known.copy() if known.size == size else merkle.RunningRoot.load(size, read_hashes(connection))
        return Appender(connection, running=running, key=self._key, origin=self._origin)

    def committed(self, appender: Appender) -> None:
        """The transaction of `appender` is on disk."""
        self._running = appender.running
        self._publisher.soon()

    def sign_head(self) -> bytes:
        """The signed checkpoint of all entries on disk, made if there is none yet, and published with them.

        Raises:
            UnavailableError: the disk is full.
        """
        with self._store.transaction() as connection:
            size = log_size(connection)
            note = connection.execute(select(checkpoints.c.note).where(checkpoints.c.tree_size == size)).scalar()
            if note is None:
                root = merkle.tree_hash(size, read_hashes(connection))
                note = _sign(connection, size, root, self._key, self._origin)
        self._files.update()
        return bytes(note)

    def close(self) -> None:
        """Bring the static files up to date."""
        self._publisher.close()

    def follow(self) -> None:
        """Bring the static files up to what others may have appended or cosigned."""
        self._publisher.soon()

    def cosign(self, note: Note, signature: Signature) -> None:
        """Keep a witness's verified cosignature under the checkpoint in `note`, and publish it under the latest.

        Raises:
            ConflictError: this log never signed that checkpoint.
        """
        size = Checkpoint.parse(note.text).size
        with self._store.transaction() as connection:
            ours = connection.execute(select(checkpoints.c.note).where(checkpoints.c.tree_size == size)).scalar()
            if ours is None or Note.parse(bytes(ours)).text != note.text:
                raise ConflictError(f"the checkpoint of {size} entries that was cosigned is not this log's; keep it")
            is_new = keep(connection, size, signature)
        if is_new:
            self._publisher.soon()

    def cosigned(self) -> list[bytes]:
        """For every witness the largest checkpoint that it cosigned, the largest first."""
        with self._store.reading() as connection:
            return cosigned_checkpoints(connection)

    def size(self) -> int:
        """How many entries are on disk."""
        with self._store.reading() as connection:
            return log_size(connection)

    def published(self) -> Checkpoint | None:
        """The checkpoint among the static files."""
        return self._files.checkpoint()

    def check_not_rolled_back(self) -> None:
        """Refuse to go on from a database that is older than, or differs from, what was signed and published.

        Raises:
            ConflictError: going on would fork the log.
        """
        published = self.published()
        with self._store.reading() as connection:
            size = log_size(connection)
            signed = [each for each in (_newest_signed(connection), published) if each is not None]
            for each in signed:
                if size < each.size or merkle.tree_hash(each.size, read_hashes(connection)) != each.root:
                    raise ConflictError(_OLDER.format(size=size, what=f"a checkpoint of {each.size} was signed"))
        if (entries := self._files.entries_beyond(size)) is not None:
            raise ConflictError(_OLDER.format(size=size, what=f"{entries} holds more"))

    def head(self) -> Checkpoint:
        """What is on disk, signed or not."""
        with self._store.reading() as connection:
            size = log_size(connection)
            return Checkpoint(self._origin, size, merkle.tree_hash(size, read_hashes(connection)))

    def holds(self, checkpoint: Checkpoint) -> bool:
        """Whether what is on disk continues a checkpoint, or is what it says."""
        with self._store.reading() as connection:
            if log_size(connection) < checkpoint.size:
                return False
            return merkle.tree_hash(checkpoint.size, read_hashes(connection)) == checkpoint.root

    def roll_forward(
        self, notes: Sequence[bytes], *, start: int, effects: Callable[[Connection, Statement], None]
    ) -> None:
        """Add entries that this log had already, from leaf index `start` on; the caller has checked that they are.

        Raises:
            ConflictError: the log does not end there.
        """
        with self._store.transaction() as connection:
            if (size := log_size(connection)) != start:
                raise ConflictError(f"somebody else appends to this log: it has {size} entries, not {start}; stop that")
            appender = self.appender(connection, size=start)
            for note in notes:
                statement = parse_note(note)[1]
                appender.append(note, statement=statement)
                effects(connection, statement)
            appender.seal()
        self.committed(appender)

    def checkpoint(self) -> bytes:
        """The latest signed checkpoint, and what witnesses have cosigned of it."""
        with self._store.reading() as connection:
            note = latest_checkpoint(connection)
        return self.sign_head() if note is None else note

    def receipt(self, leaf_index: int) -> bytes:
        """The C2SP tlog-proof of an entry, up to the latest checkpoint that covers it."""
        note = self.checkpoint()
        size = Checkpoint.parse(Note.parse(note).text).size
        if leaf_index >= size:
            raise NotFoundError(f"no checkpoint covers entry {leaf_index}: the latest is of {size} entries")
        with self._store.reading() as connection:
            proof = merkle.inclusion_proof(leaf_index, size, read_hashes(connection))
        return bytes(Proof(leaf_index, tuple(proof), note))

    def consistency(self, old_size: int, new_size: int) -> tuple[bytes, ...]:
        """The RFC 6962 consistency proof between two sizes.

        Raises:
            MalformedError: the log never had these sizes in this order.
        """
        with self._store.reading() as connection:
            size = log_size(connection)
            if not 0 <= old_size <= new_size <= size:
                raise MalformedError(f"no proof from {old_size} to {new_size} entries: the log has {size}")
            return tuple(merkle.consistency_proof(old_size, new_size, read_hashes(connection)))

    def entry(self, leaf_index: int) -> bytes:
        """The signed note at `leaf_index`."""
        with self._store.reading() as connection:
            found = read_notes(connection, leaf_index, leaf_index + 1)
        if not found:
            raise NotFoundError(f"the log has no entry {leaf_index}")
        return found[0]


def index_of(connection: Connection, statement: Statement) -> int | None:
    """Where exactly this statement is in the log, if it is."""
    found = connection.execute(select(entries.c.leaf_index).where(entries.c.digest == statement.digest)).scalar()
    return None if found is None else int(found)


def _newest_signed(connection: Connection) -> Checkpoint | None:
    newest = select(checkpoints.c.note).order_by(checkpoints.c.tree_size.desc()).limit(1)
    note = connection.execute(newest).scalar()
    return None if note is None else Checkpoint.parse(Note.parse(bytes(note)).text)


def log_size(connection: Connection) -> int:
    """How many entries are in the log."""
    last = connection.execute(select(func.max(entries.c.leaf_index))).scalar()
    return 0 if last is None else int(last) + 1
