"""The registry beside a database that fails, forgets, or is asked by many at once."""

import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Connection

from benchmarks.registry import FEDERATION, Party
from common.errors import UnavailableError
from common.trust import merkle
from common.trust.history import withdrawals_due
from common.trust.note import SigningKey
from common.trust.root import TrustedRoot
from common.trust.statements import COORDINATOR, BasePublish, CertRevoke, ConsentRevoke, Statement
from coordinator.log import Log
from coordinator.registry import Registry
from coordinator.store import Store
from tests.federation import Federation

DIGEST = f"sha256:{'b' * 64}"


@contextmanager
def _changing(federation: Federation) -> Iterator[sqlite3.Connection]:
    """The database, as somebody changes it who is not the registry."""
    with closing(sqlite3.connect(federation.coordinator.home.database)) as connection:
        yield connection
        connection.commit()


def _wait_for_files(federation: Federation) -> None:
    """Until what is published is what is in the log, without anything being asked for."""
    deadline = datetime.now(UTC) + timedelta(seconds=30)
    while (found := federation.coordinator.log.published()) is None or found.size < federation.coordinator.log.size():
        assert datetime.now(UTC) < deadline


def test_published_files_follow_again_once_the_database_can_be_read(
    consortium: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    consortium.enrol("archive")
    with _changing(consortium) as database:
        database.execute("ALTER TABLE cosignatures RENAME TO away")
    for name in ("hospital", "library"):
        with pytest.raises(UnavailableError):  # what is read for the answer is gone as well
            consortium.enrol(name)
    deadline = datetime.now(UTC) + timedelta(seconds=30)
    while "are not up to date" not in caplog.text:
        assert datetime.now(UTC) < deadline
    with _changing(consortium) as database:
        database.execute("ALTER TABLE away RENAME TO cosignatures")
    _wait_for_files(consortium)


def test_what_cannot_be_read_is_unavailable(consortium: Federation) -> None:
    registry = consortium.coordinator.registry
    for table in ("entries", "checkpoints"):
        with _changing(consortium) as database:
            database.execute(f"ALTER TABLE {table} RENAME TO away")
        for ask in (registry.head, registry.size) if table == "entries" else (registry.checkpoint,):
            with pytest.raises(UnavailableError, match="the registry cannot be read: no such table"):
                ask()
        with _changing(consortium) as database:
            database.execute(f"ALTER TABLE away RENAME TO {table}")
    assert registry.head().size == registry.size() == 1


def test_who_waits_for_a_commit_that_fails_is_told_to_try_again(tmp_path: Path) -> None:
    """Not that the log holds no such statement: an owner would take that for a refusal."""
    log_key, own_key = SigningKey.generate(f"{FEDERATION}/log"), SigningKey.generate(f"{FEDERATION}/{COORDINATOR}")
    root = TrustedRoot(FEDERATION, f"{FEDERATION}/log", log_key.verifier, own_key.verifier)
    held, go_on = threading.Event(), threading.Event()

    def effects(connection: Connection, statement: Statement) -> None:
        if statement.seq == 0:
            return
        if not held.is_set():
            held.set()
            assert go_on.wait(30)
            return
        raise RuntimeError("what nobody thought of")

    store = Store.embedded(tmp_path / "registry.sqlite")
    store.prepare()
    log = Log(store, key=log_key, origin=root.origin, directory=tmp_path / "public" / "log")
    registry = Registry(store, log, root=root, key=own_key, effects=effects)
    base = registry.issue  # the first statement of the coordinator has number 0
    base(BasePublish, base_digest=DIGEST, config_digest=DIGEST, round=0)
    parties = [Party(number, root=root, base_digest=DIGEST, files={}) for number in range(4)]
    for party in parties:
        registry.admit(party.joins(), claim=lambda connection: None)
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(registry.record, parties[0].next(), caller=parties[0].name)
        assert held.wait(30)
        rest = [pool.submit(registry.record, each.next(), caller=each.name) for each in parties[1:]]
        while len(registry._recording._waiting) < len(rest):
            assert not first.done()
        go_on.set()
        assert first.result(30)
        failures = [future.exception(30) for future in rest]
    assert sorted(type(each).__name__ for each in failures) == ["RuntimeError", "UnavailableError", "UnavailableError"]
    assert registry.size() == 6
    log.close()
    store.close()


def _forget(database: sqlite3.Connection, *, keep: int) -> None:
    """The database is what it was at `keep` entries, as on a copy that lags behind."""
    for table in ("entries", "hashes", "checkpoints"):
        database.execute(f"DROP TRIGGER {table}_no_delete")
        database.execute(f"CREATE TABLE kept_{table} AS SELECT * FROM {table}")  # noqa: S608 - our tables
    database.execute("DELETE FROM entries WHERE leaf_index >= ?", (keep,))
    database.execute("DELETE FROM checkpoints WHERE tree_size > ?", (keep,))
    database.execute("DELETE FROM hashes WHERE position >= ?", (merkle.stored_hash_count(keep),))


def test_a_database_that_lost_entries_is_not_gone_on_from(consortium: Federation) -> None:
    owner, registry = consortium.enrol("archive"), consortium.coordinator.registry
    owner.take_part(1)
    size = registry.size()
    with _changing(consortium) as database:
        _forget(database, keep=size - 2)
    for _ in range(2):
        for ask in (registry.head, lambda: registry.issue(CertRevoke, owner="archive"), lambda: registry.size()):
            with pytest.raises(UnavailableError, match=rf"lost entries: {size} were in it"):
                ask()
    with _changing(consortium) as database:
        assert database.execute("SELECT max(leaf_index) FROM entries").fetchone() == (size - 3,)
        assert database.execute("SELECT max(tree_size) FROM checkpoints").fetchone() == (size - 2,)
        for table in ("entries", "hashes", "checkpoints"):
            database.execute(f"INSERT OR IGNORE INTO {table} SELECT * FROM kept_{table}")  # noqa: S608
    assert registry.issue(CertRevoke, owner="archive").leaf_index == size


def test_a_transaction_that_fails_does_not_hide_what_was_lost(consortium: Federation) -> None:
    registry = consortium.coordinator.registry
    consortium.enrol("archive").take_part(1)
    with suppress(RuntimeError), registry._appending() as append:
        append.history.take(append.history.bases[next(iter(append.history.bases))])
        raise RuntimeError
    with _changing(consortium) as database:
        _forget(database, keep=2)
    with pytest.raises(UnavailableError, match="lost entries"):
        registry.issue(CertRevoke, owner="archive")


def test_what_somebody_reads_stays_while_the_log_grows(consortium: Federation) -> None:
    consortium.enrol("archive").take_part(1)
    consortium.release()
    registry = consortium.coordinator.registry
    head = registry.head()
    reading = [iter(head.contributions_by_index.values()), iter(head.parties), iter(head.grants), iter(head.releases)]
    for each in reading:
        next(each)
    size, records = head.size, head.records
    said = consortium.enrol("hospital").take_part(2).statement
    consortium.release()
    assert [list(each) for each in reading[2:]] == [[], []]
    assert len(list(reading[1])) == 1
    assert head.size == size
    assert said.record_id not in records
    assert said.record_id in registry.head().records


def test_nothing_is_appended_while_somebody_looks_at_the_history(consortium: Federation) -> None:
    owner = consortium.enrol("archive")
    owner.take_part(1)
    consortium.release()
    registry = consortium.coordinator.registry
    with ThreadPoolExecutor(1) as pool, registry.history() as history:
        revoking = pool.submit(owner.opt_out)
        assert withdrawals_due(history) == []
        with pytest.raises(TimeoutError):
            revoking.result(1)
        assert history.size == registry.size()
    assert isinstance(revoking.result(30), ConsentRevoke)
