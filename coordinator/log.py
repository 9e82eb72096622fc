"""The transparency log in SQL: append, sign, prove, and the same content as static files.

RFC 6962 tree in Go's stored-hash layout, C2SP checkpoints. A checkpoint is signed only for entries that are on disk
already, and is itself on disk before anybody sees it. The static files follow C2SP `tlog-tiles` (hash tiles, entry
bundles and the checkpoint), so any file server can carry them.
"""

import sys
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Final

from sqlalchemy import Connection, func, insert, select

from common.errors import ConflictError, MalformedError, NotFoundError
from common.files import full_disk_is_unavailable, write_atomic
from common.trust import merkle
from common.trust.note import MAX_SIGNATURES, Checkpoint, Note, Proof, Signature, SigningKey, open_checkpoint, sign
from common.trust.statements import Statement
from common.trust.tiles import (
    BUNDLE_ENTRIES,
    CHECKPOINT_NAME,
    TILE_HASHES,
    TILE_HEIGHT,
    bundle_path,
    format_bundle,
    tile_path,
    tiles_between,
)
from coordinator.store import Store, checkpoints, cosignatures, entries, hashes

_READ_BATCH: Final = 500


class Log:
    """One log. `directory` is where its static files go."""

    def __init__(self, store: Store, *, key: SigningKey, origin: str, directory: Path) -> None:
        self._store = store
        self._key = key
        self._origin = origin
        self._directory = directory

    def append(self, connection: Connection, note: bytes, *, statement: Statement) -> int:
        """Add an entry within the caller's write transaction and return its leaf index."""
        index = _size(connection)
        new = merkle.hashes_to_append(index, merkle.leaf_hash(note), _reader(connection))
        first = merkle.stored_hash_count(index)
        connection.execute(insert(hashes), [{"position": first + i, "hash": new[i]} for i in range(len(new))])
        connection.execute(
            insert(entries).values(
                leaf_index=index,
                note=note,
                digest=statement.digest,
                record_id=statement.record_id,
                type=statement.type,
                party=statement.party,
                seq=statement.seq,
            )
        )
        sys.audit("concord.point", f"appended {statement.type}")
        return index

    def sign_head(self) -> bytes:
        """The signed checkpoint of all entries on disk, made if there is none yet, and published with them."""
        with self._store.transaction() as connection:
            size = _size(connection)
            note = connection.execute(select(checkpoints.c.note).where(checkpoints.c.tree_size == size)).scalar()
            if note is None:
                root = merkle.tree_hash(size, _reader(connection))
                note = bytes(sign(str(Checkpoint(self._origin, size, root)), self._key))
                connection.execute(insert(checkpoints).values(tree_size=size, root=root, note=note))
            with full_disk_is_unavailable("the log's published files"):
                self._publish(connection, size, note)
        return bytes(note)

    def _publish(self, connection: Connection, size: int, note: bytes) -> None:
        """Bring the static files up to `size`; the checkpoint last, so that it never names what is not there."""
        published = self.published()
        if published is not None and published.size == size:
            return
        before = published.size if published else 0
        for level, index, width in tiles_between(before, size):
            self._publish_tile(connection, level, index, width)
        for bundle in range(before // BUNDLE_ENTRIES, -(-size // BUNDLE_ENTRIES)):
            start, end = bundle * BUNDLE_ENTRIES, min(size, (bundle + 1) * BUNDLE_ENTRIES)
            path = bundle_path(bundle, width=end - start)
            self._write(path, format_bundle(_read_entries(connection, start, end)))
        self._directory.mkdir(parents=True, exist_ok=True)
        write_atomic(self._directory / CHECKPOINT_NAME, note)

    def _publish_tile(self, connection: Connection, level: int, index: int, width: int) -> None:
        first = index * TILE_HASHES
        positions = [merkle.stored_hash_index(TILE_HEIGHT * level, first + i) for i in range(width)]
        self._write(tile_path(level, index, width=width), b"".join(_reader(connection)(positions)))

    def _write(self, path: PurePosixPath, data: bytes) -> None:
        target = self._directory / path
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(target, data)

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
            same = (cosignatures.c.tree_size == size, cosignatures.c.name == signature.name)
            if connection.execute(select(cosignatures.c.line).where(*same)).first() is not None:
                return
            row = {"tree_size": size, "name": signature.name, "line": str(signature)}
            connection.execute(insert(cosignatures).values(row))
            published = self.published()
            if published is not None and published.size == size:
                write_atomic(self._directory / CHECKPOINT_NAME, _with_cosignatures(connection, size, bytes(ours)))

    def published(self) -> Checkpoint | None:
        """The checkpoint among the static files."""
        path = self._directory / CHECKPOINT_NAME
        if not path.exists():
            return None
        return open_checkpoint(path.read_bytes(), log=self._key.verifier, origin=self._origin)

    def check_not_rolled_back(self) -> None:
        """Refuse to go on from a database that is older than, or differs from, what was published.

        Raises:
            ConflictError: going on would fork the log.
        """
        published = self.published()
        if published is None:
            return
        with self._store.reading() as connection:
            size = _size(connection)
            if size >= published.size and merkle.tree_hash(published.size, _reader(connection)) == published.root:
                return
        raise ConflictError(
            f"the registry holds {size} entries but a checkpoint of {published.size} was published: it was restored "
            "from an older backup or damaged. Going on would fork the log. Restore the newest copy of registry.sqlite, "
            "or start a new log with `concord coordinator init` under another origin"
        )

    def checkpoint(self) -> bytes:
        """The latest signed checkpoint, and what witnesses have cosigned of it."""
        with self._store.reading() as connection:
            latest = connection.execute(
                select(checkpoints.c.tree_size, checkpoints.c.note).order_by(checkpoints.c.tree_size.desc()).limit(1)
            ).first()
            if latest is not None:
                return _with_cosignatures(connection, latest.tree_size, bytes(latest.note))
        return self.sign_head()

    def receipt(self, leaf_index: int) -> bytes:
        """The C2SP tlog-proof of an entry, up to the latest checkpoint that covers it."""
        note = self.checkpoint()
        size = open_checkpoint(note, log=self._key.verifier, origin=self._origin).size
        if leaf_index >= size:
            note = self.sign_head()
            size = open_checkpoint(note, log=self._key.verifier, origin=self._origin).size
        with self._store.reading() as connection:
            proof = merkle.inclusion_proof(leaf_index, size, _reader(connection))
        return bytes(Proof(leaf_index, tuple(proof), note))

    def consistency(self, old_size: int, new_size: int) -> tuple[bytes, ...]:
        """The RFC 6962 consistency proof between two sizes.

        Raises:
            MalformedError: the log never had these sizes in this order.
        """
        with self._store.reading() as connection:
            size = _size(connection)
            if not 0 <= old_size <= new_size <= size:
                raise MalformedError(f"no proof from {old_size} to {new_size} entries: the log has {size}")
            return tuple(merkle.consistency_proof(old_size, new_size, _reader(connection)))

    def entry(self, leaf_index: int) -> bytes:
        """The signed note at `leaf_index`."""
        with self._store.reading() as connection:
            found = _read_entries(connection, leaf_index, leaf_index + 1)
        if not found:
            raise NotFoundError(f"the log has no entry {leaf_index}")
        return found[0]


def index_of(connection: Connection, statement: Statement) -> int | None:
    """Where exactly this statement is in the log, if it is."""
    found = connection.execute(select(entries.c.leaf_index).where(entries.c.digest == statement.digest)).scalar()
    return None if found is None else int(found)


def entries_from(connection: Connection, start: int) -> list[bytes]:
    """All entries from `start` on."""
    return _read_entries(connection, start, _size(connection))


def _with_cosignatures(connection: Connection, size: int, note: bytes) -> bytes:
    lines = connection.execute(
        select(cosignatures.c.line)
        .where(cosignatures.c.tree_size == size)
        .order_by(cosignatures.c.name)
        .limit(MAX_SIGNATURES - 1)
    )
    return note + "".join(f"{line}\n" for (line,) in lines).encode()


def _size(connection: Connection) -> int:
    last = connection.execute(select(func.max(entries.c.leaf_index))).scalar()
    return 0 if last is None else int(last) + 1


def _read_entries(connection: Connection, start: int, end: int) -> list[bytes]:
    rows = connection.execute(
        select(entries.c.note)
        .where(entries.c.leaf_index >= start, entries.c.leaf_index < end)
        .order_by(entries.c.leaf_index)
    )
    return [bytes(note) for (note,) in rows]


def _reader(connection: Connection) -> merkle.ReadHashes:
    def read(positions: Sequence[int]) -> Sequence[bytes]:
        found: dict[int, bytes] = {}
        for start in range(0, len(positions), _READ_BATCH):
            batch = positions[start : start + _READ_BATCH]
            rows = connection.execute(select(hashes.c.position, hashes.c.hash).where(hashes.c.position.in_(batch)))
            found.update((position, bytes(value)) for position, value in rows)
        return [found[position] for position in positions]

    return read
