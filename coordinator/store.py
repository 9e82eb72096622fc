"""Tables and transactions. SQLAlchemy Core; SQLite in WAL mode with every commit on disk (`synchronous=FULL`).

The log's tables only grow: triggers refuse UPDATE and DELETE, also the hidden ones of REPLACE. A write transaction
takes the database's one write lock at its start, so what it reads cannot change before it commits, in this process or
another.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from sqlalchemy import (
    URL,
    Column,
    Connection,
    Engine,
    Float,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    create_engine,
    event,
    select,
)
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DatabaseError, OperationalError
from sqlalchemy.pool import ConnectionPoolEntry

from common.errors import UnavailableError
from common.trust import merkle

metadata = MetaData()

entries = Table(
    "entries",
    metadata,
    Column("leaf_index", Integer, primary_key=True, autoincrement=False),
    Column("note", LargeBinary, nullable=False),
    Column("digest", Text, nullable=False, unique=True),
    Column("record_id", Text, nullable=False, unique=True),
    Column("type", Text, nullable=False),
    Column("party", Text, nullable=False),
    Column("seq", Integer, nullable=False),
    UniqueConstraint("party", "seq"),
)
hashes = Table(
    "hashes",
    metadata,
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("hash", LargeBinary, nullable=False),
)
checkpoints = Table(
    "checkpoints",
    metadata,
    Column("tree_size", Integer, primary_key=True, autoincrement=False),
    Column("root", LargeBinary, nullable=False),
    Column("note", LargeBinary, nullable=False),
)
cosignatures = Table(
    "cosignatures",
    metadata,
    Column("tree_size", Integer, primary_key=True, autoincrement=False),
    Column("name", Text, primary_key=True),
    Column("line", Text, nullable=False),
)
invitations = Table(
    "invitations",
    metadata,
    Column("token_hash", Text, primary_key=True),
    Column("owner", Text, nullable=False),
    Column("expires_at", Float, nullable=False),
    Column("used_at", Float),
    Column("used_by", Text),
)
certificates = Table(
    "certificates",
    metadata,
    Column("serial", Text, primary_key=True),
    Column("party", Text, nullable=False),
    Column("not_after", Float, nullable=False),
    Column("revoked_at", Float),
)

_APPEND_ONLY: Final = (entries, hashes, checkpoints, cosignatures)
_BUSY_TIMEOUT_MS: Final = 30_000
_READ_BATCH: Final = 500


class Store:
    """One coordinator's database. Safe to use from several threads and processes."""

    def __init__(self, path: Path) -> None:
        self._engine = create_engine(URL.create("sqlite", database=str(path)))
        _configure(self._engine)

    def create(self) -> None:
        """Make the tables and triggers that are not there yet."""
        with self.transaction() as connection:
            metadata.create_all(connection)
            for table in _APPEND_ONLY:
                for action in ("UPDATE", "DELETE"):
                    connection.exec_driver_sql(
                        f"CREATE TRIGGER IF NOT EXISTS {table.name}_no_{action.lower()} "
                        f"BEFORE {action} ON {table.name} BEGIN SELECT RAISE(ABORT, '{table.name} is append-only'); END"
                    )

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A write transaction: all of the block or nothing; on disk when it ends.

        Raises:
            UnavailableError: the disk is full or the database stayed busy.
        """
        try:
            with self._engine.begin() as connection:
                yield connection
        except OperationalError as error:
            raise UnavailableError(f"the registry cannot be written: {error.orig}; try again") from error

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Single reads, each of the latest committed state; takes no lock."""
        with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            yield connection

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()


def read_notes(connection: Connection, start: int, end: int) -> list[bytes]:
    """The log's entries from leaf index `start` up to `end`."""
    rows = connection.execute(
        select(entries.c.note)
        .where(entries.c.leaf_index >= start, entries.c.leaf_index < end)
        .order_by(entries.c.leaf_index)
    )
    return [bytes(note) for (note,) in rows]


def read_hashes(connection: Connection) -> merkle.ReadHashes:
    """How the log's arithmetic reads stored hashes."""

    def read(positions: Sequence[int]) -> Sequence[bytes]:
        found: dict[int, bytes] = {}
        for start in range(0, len(positions), _READ_BATCH):
            batch = positions[start : start + _READ_BATCH]
            rows = connection.execute(select(hashes.c.position, hashes.c.hash).where(hashes.c.position.in_(batch)))
            found.update((position, bytes(value)) for position, value in rows)
        return [found[position] for position in positions]

    return read


def is_healthy(store: Store) -> bool:
    """Whether SQLite finds its own file intact."""
    try:
        with store.reading() as connection:
            return connection.exec_driver_sql("PRAGMA quick_check").scalar() == "ok"
    except DatabaseError:
        return False


def _configure(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def connect(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
        connection.isolation_level = None  # the driver must not begin transactions of its own
        cursor = connection.cursor()
        for pragma in (
            "journal_mode=WAL",
            "synchronous=FULL",
            "recursive_triggers=ON",
            f"busy_timeout={_BUSY_TIMEOUT_MS}",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        if connection.get_execution_options().get("isolation_level") != "AUTOCOMMIT":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
