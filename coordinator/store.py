"""The database: SQLite beside the coordinator (`embedded`), or PostgreSQL by a URL (`postgresql`). SQLAlchemy Core.

Either way a write transaction takes the one right to write at its start, so what it reads cannot change before it
commits, in this process or another; and a commit is on disk when it returns.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from sqlalchemy import URL, Connection, Engine, create_engine, event, select
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DatabaseError, DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as NoConnectionError
from sqlalchemy.pool import ConnectionPoolEntry

from common.errors import ConflictError, MalformedError, UnavailableError
from common.trust import merkle
from coordinator.tables import APPEND_ONLY, entries, hashes, metadata

_BUSY_TIMEOUT_MS: Final = 30_000
_READ_BATCH: Final = 500


class Store:
    """One coordinator's database. Safe to use from several threads and processes."""

    def __init__(self, engine: Engine, *, check: Callable[[Engine], None]) -> None:
        self._engine = engine
        self._check = check

    @classmethod
    def embedded(cls, path: Path) -> "Store":
        """SQLite in WAL mode with every commit on disk (`synchronous=FULL`)."""
        engine = create_engine(URL.create("sqlite", database=str(path)))
        configure_embedded(engine)
        return cls(engine, check=make_tables)

    @classmethod
    def postgresql(cls, url: str) -> "Store":
        """A PostgreSQL database, shared by any number of coordinators."""
        try:
            from coordinator import postgresql  # its libraries are installed where it is used
        except ModuleNotFoundError as error:
            raise MalformedError("PostgreSQL needs more libraries: pip install 'concord-moe[postgresql]'") from error
        return cls(postgresql.engine(url), check=postgresql.check_migrated)

    def prepare(self) -> None:
        """Check that the database is sound and has its tables; an embedded one is given those that are missing.

        Raises:
            ConflictError: it is damaged, or not migrated to this version.
            UnavailableError: it cannot be reached.
        """
        with _unavailable("used"):
            self._check(self._engine)

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A write transaction: all of the block or nothing; on disk when it ends.

        Raises:
            UnavailableError: the disk is full, the database refuses, stayed busy or cannot be reached.
        """
        with _unavailable("written"), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Single reads, each of the latest committed state; takes no lock.

        Raises:
            UnavailableError: the database refuses, stayed busy or cannot be reached.
        """
        with (
            _unavailable("read"),
            self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection,
        ):
            yield connection

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()


@contextmanager
def _unavailable(what: str) -> Iterator[None]:
    """Whatever a database says, the caller's statement is not refused by a rule: it may come again."""
    try:
        yield
    except (DBAPIError, NoConnectionError) as error:
        why = error.orig if isinstance(error, DBAPIError) else error
        raise UnavailableError(
            f"the registry cannot be {what}: {why}; see that its database runs and its disk has room; try again"
        ) from error


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


def make_tables(engine: Engine) -> None:
    """Make what is missing in an embedded database that SQLite finds intact."""
    try:
        with engine.connect() as connection:
            is_sound = connection.exec_driver_sql("PRAGMA quick_check").scalar() == "ok"
    except OperationalError:
        raise
    except DatabaseError:
        is_sound = False
    if not is_sound:
        raise ConflictError(f"{engine.url.database} is damaged; restore the newest backup")
    with engine.begin() as connection:
        metadata.create_all(connection)
        for table in APPEND_ONLY:
            for action in ("UPDATE", "DELETE"):
                connection.exec_driver_sql(
                    f"CREATE TRIGGER IF NOT EXISTS {table.name}_no_{action.lower()} "
                    f"BEFORE {action} ON {table.name} BEGIN SELECT RAISE(ABORT, '{table.name} is append-only'); END"
                )


def configure_embedded(engine: Engine) -> None:
    """Have SQLite connections sync every commit, and take the write lock where a transaction begins."""

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
