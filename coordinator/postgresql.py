"""PostgreSQL: one registry for several coordinators. Tables are made by an administrator's role, through migrations;
the coordinators' own role may add to the log and read it, and nothing else.

An advisory lock at the start of each write transaction gives entries one order, whoever writes them; at READ COMMITTED,
whatever the server's default, what it reads then is what the holder before it wrote. A password is never part of the
URL: PostgreSQL's clients read it from a file (`PGPASSFILE`), or need none.
"""

from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, DatabaseError
from sqlalchemy.pool import ConnectionPoolEntry

from common.errors import ConflictError, MalformedError, UnavailableError
from coordinator.config import check_database_url
from coordinator.tables import APPEND_ONLY, CHANGING

_SEQUENCER: Final = 0x636F6E636F7264  # "concord": the advisory lock of whoever appends
_MIGRATIONS: Final = Path(__file__).with_name("migrations")


def _url(text: str) -> URL:
    try:
        return make_url(check_database_url(text)).set(drivername="postgresql+psycopg")
    except (ValueError, ArgumentError) as error:
        raise MalformedError(str(error)) from error


def engine(text: str) -> Engine:
    """Connections to it, for coordinators."""
    made = create_engine(_url(text), pool_pre_ping=True, isolation_level="READ COMMITTED")

    @event.listens_for(made, "connect")
    def connect(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
        cursor = connection.cursor()
        cursor.execute("SET synchronous_commit = on")  # what was acknowledged is on disk, whatever the server's default
        cursor.close()
        connection.commit()

    @event.listens_for(made, "begin")
    def begin(connection: Connection) -> None:
        if connection.get_execution_options().get("isolation_level") != "AUTOCOMMIT":
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_SEQUENCER})")

    return made


def check_migrated(made: Engine) -> None:
    """Check that the tables are there in this version.

    Raises:
        ConflictError: they are not.
    """
    newest = ScriptDirectory(str(_MIGRATIONS)).get_current_head()
    with made.connect() as connection:
        found = MigrationContext.configure(connection).get_current_revision()
    if found != newest:
        raise ConflictError(
            f"the database is at version {found or 'none'}, not {newest}; run, as its owner: "
            "concord coordinator migrate --database URL"
        )


def migrate(text: str, *, writer: str | None) -> str:
    """Make or change the tables, as the role that owns them; returns the version they are at.

    `writer` is an existing role that may add to and read the log from then on, and cannot change or remove any of it.

    Raises:
        UnavailableError: the database refuses.
    """
    made = create_engine(_url(text))
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    try:
        with made.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            if writer is not None:
                _grant(connection, writer)
            return str(MigrationContext.configure(connection).get_current_revision())
    except DatabaseError as error:
        raise UnavailableError(f"the database refuses: {error.orig}") from error
    finally:
        made.dispose()


def _grant(connection: Connection, writer: str) -> None:
    role = connection.dialect.identifier_preparer.quote_identifier(writer)
    names = ", ".join(table.name for table in (*APPEND_ONLY, *CHANGING))
    connection.exec_driver_sql(f"REVOKE ALL ON {names}, alembic_version FROM {role}")
    connection.exec_driver_sql(f"GRANT SELECT, INSERT ON {names} TO {role}")
    connection.exec_driver_sql(f"GRANT SELECT ON alembic_version TO {role}")
    for table, columns in CHANGING.items():
        if not columns:
            continue
        connection.exec_driver_sql(f"GRANT UPDATE ({', '.join(columns)}) ON {table.name} TO {role}")
