"""The registry in PostgreSQL: the same log, several coordinators, and a role that can only add to it."""

import shutil
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, func, select

from benchmarks.registry import FEDERATION, Party
from common.errors import ConflictError, MalformedError, NotPermittedError, UnavailableError
from common.trust.statements import ContributedFile
from common.trust.verify import check_receipt
from coordinator import postgresql
from coordinator.config import CoordinatorSettings
from coordinator.home import create, open_home
from coordinator.releases import publish_base
from coordinator.store import Store
from coordinator.tables import APPEND_ONLY, checkpoints, entries, metadata
from tests.commands import concord
from tests.federation import running_federation, write_base
from tests.postgres import ADMIN, WRITER, Server, is_installed, running_server


def _files(number: int) -> dict[str, ContributedFile]:
    return {"expert.safetensors": ContributedFile(digest=f"sha256:{number:064x}", size=1)}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    if not is_installed():
        pytest.skip("PostgreSQL is not installed (Debian: postgresql)")
    with running_server() as server:
        yield server


@pytest.fixture
def database(server: Server, request: pytest.FixtureRequest) -> str:
    """Name of a migrated database."""
    name = f"registry_{zlib.crc32(request.node.name.encode())}"
    server.new_database(name)
    assert postgresql.migrate(server.url(ADMIN, name), writer=WRITER) == "0004"
    return name


def _settings(url: str) -> CoordinatorSettings:
    return CoordinatorSettings(
        federation=FEDERATION, origin=f"{FEDERATION}/log", port=1, enrolment_port=2, database=url
    )


def test_a_whole_consortium_lives_in_it(server: Server, database: str, tmp_path: Path) -> None:
    with running_federation(tmp_path, database=server.url(WRITER, database)) as federation:
        federation.publish_base()
        for number, name in enumerate(("archive", "hospital")):
            federation.enrol(name).take_part(seed=number)
        assert federation.release().owners == {1: "archive", 2: "hospital"}
        federation.owner("archive").opt_out()
        assert federation.release().owners == {1: "hospital"}
        assert not federation.coordinator.home.database.exists()
        audited = concord("audit", "verify", str(federation.public))
        assert audited.returncode == 0, audited.stderr


def test_the_migrated_tables_are_those_that_the_code_has(server: Server, database: str) -> None:
    engine = create_engine(server.url(ADMIN, database).replace("postgresql:", "postgresql+psycopg:"))
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    engine.dispose()
    assert postgresql.migrate(server.url(ADMIN, database), writer=WRITER) == "0004"  # again changes nothing


@pytest.mark.parametrize("user", [ADMIN, WRITER])
@pytest.mark.parametrize("table", [table.name for table in APPEND_ONLY])
@pytest.mark.parametrize("sql", ["UPDATE {0} SET {1} = {1}", "DELETE FROM {0}", "TRUNCATE {0}"])
def test_nobody_changes_the_log(server: Server, user: str, table: str, sql: str) -> None:
    name = "append_only"
    with psycopg.connect(host=str(server.socket), user=ADMIN, dbname="postgres") as connection:
        is_new = not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone()
    if is_new:
        server.new_database(name)
        postgresql.migrate(server.url(ADMIN, name), writer=WRITER)
    column = next(iter(metadata.tables[table].columns)).name
    with (
        psycopg.connect(host=str(server.socket), user=user, dbname=name) as connection,
        pytest.raises(psycopg.Error, match="append-only" if user == ADMIN else "permission denied"),
    ):
        connection.execute(sql.format(table, column))


@pytest.mark.parametrize("sql", ["DROP TABLE entries", "ALTER TABLE entries DISABLE TRIGGER ALL", "CREATE TABLE x ()",
                                 "DELETE FROM invitations", "UPDATE invitations SET owner = 'mallory'"])  # fmt: skip
def test_the_coordinators_role_changes_nothing_else_either(server: Server, database: str, sql: str) -> None:
    with (
        psycopg.connect(host=str(server.socket), user=WRITER, dbname=database) as connection,
        pytest.raises(psycopg.Error, match=r"permission denied|must be owner"),
    ):
        connection.execute(sql)


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read", "serializable"])
def test_several_coordinators_append_at_once_to_one_log(
    server: Server, database: str, tmp_path: Path, isolation: str
) -> None:
    """Two homes with the same keys, four callers each; every receipt holds, and the log is one, whatever isolation the
    server's administrator made the default."""
    with psycopg.connect(host=str(server.socket), user=ADMIN, dbname="postgres", autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {database} SET default_transaction_isolation = '{isolation}'")
    first = create(tmp_path / "one", _settings(server.url(WRITER, database)))
    shutil.copytree(first.path, tmp_path / "two")
    with ExitStack() as opened:
        both = [opened.enter_context(open_home(tmp_path / name)) for name in ("one", "two")]
        base = publish_base(both[0], write_base(tmp_path / "base")).statement.base_digest
        root = both[0].registry.root
        parties = [Party(number, root=root, base_digest=base, files=_files(number)) for number in range(8)]

        def live(party: Party) -> list[tuple[bytes, bytes]]:
            said = []
            registry = both[int(party.name[-1]) % 2].registry
            registry.admit(party.joins(), claim=lambda connection: None)
            for _ in range(25):
                note = party.next()
                said.append((note, registry.record(note, caller=party.name, arrived=True)))
            return said

        with ThreadPoolExecutor(8) as pool:
            said = [pair for pairs in pool.map(live, parties) for pair in pairs]
        heads = [each.registry.head() for each in both]
        assert heads[0].size == heads[1].size == 1 + 8 * 26
        assert heads[0] == heads[1]
        for entry, receipt in said:
            check_receipt(root, receipt, entry=entry)
        assert both[0].log.checkpoint() == both[1].log.checkpoint()
        with both[0].store.reading() as connection:
            assert connection.execute(select(func.count()).select_from(entries)).scalar() == heads[0].size
            sizes = list(
                connection.execute(select(checkpoints.c.tree_size).order_by(checkpoints.c.tree_size)).scalars()
            )
            assert len(sizes) == len(set(sizes))
    audited = concord("audit", "log", str(first.public))
    assert audited.returncode == 0, audited.stderr


def test_a_restored_older_database_is_refused(server: Server, tmp_path: Path) -> None:
    """The newest state is in another database; the coordinator is pointed to an older copy of it."""
    for name in ("newest", "restored"):
        server.new_database(name)
        postgresql.migrate(server.url(ADMIN, name), writer=WRITER)
    home = create(tmp_path / "home", _settings(server.url(WRITER, "newest")))
    with open_home(home.path) as coordinator:
        publish_base(coordinator, write_base(tmp_path / "base"))
    home.settings_file.write_text(home.settings_file.read_text().replace("/newest", "/restored"))
    with pytest.raises(ConflictError, match="would fork the log"), open_home(home.path):
        pass


def test_what_is_not_migrated_or_not_there_is_refused_with_the_way_out(server: Server, tmp_path: Path) -> None:
    server.new_database("empty")
    with pytest.raises(ConflictError, match="at version none, not 0004; run, as its owner: concord coordinator migrat"):
        create(tmp_path / "empty", _settings(server.url(WRITER, "empty")))
    with pytest.raises(UnavailableError, match="cannot be used"):
        create(tmp_path / "none", _settings(server.url(WRITER, "nothing_there")))
    with pytest.raises(UnavailableError, match="the database refuses"):
        postgresql.migrate(server.url(WRITER, "empty"), writer=None)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("postgresql://me:" + "secret@host/name", "holds a password"),
        ("postgresql://me@host/name?password=secret", "holds a password"),
        ("mysql://me@host/name", "not given like"),
        ("postgresql://me@host", "not given like"),
        ("nonsense", "not given like"),
    ],
)
def test_a_url_that_is_none_or_holds_a_password_is_refused_and_not_repeated(url: str, why: str, tmp_path: Path) -> None:
    for arguments in (
        ["init", "--federation", "test.concord", "--home", str(tmp_path / "home"), "--database", url],
        ["migrate", "--database", url],
    ):
        refused = concord("coordinator", *arguments)
        assert refused.returncode != 0
        assert why in refused.stderr
        assert "secret" not in refused.stderr + refused.stdout
    with pytest.raises(MalformedError, match=why):
        Store.postgresql(url)


def test_an_owner_joins_once_whichever_coordinator_it_asks(server: Server, database: str, tmp_path: Path) -> None:
    with running_federation(tmp_path, database=server.url(WRITER, database)) as federation:
        invitation = federation.invitation("archive", lifetime=timedelta(minutes=5))
        federation.enrol("archive", invitation=invitation)
        with pytest.raises(NotPermittedError, match="used already"):
            federation.enrol("archive", invitation=invitation)
