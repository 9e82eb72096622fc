"""The transparency log: it only grows, what it publishes is what it holds, and owners notice when it forgets."""

import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from sqlalchemy import insert, select

from common.errors import ConflictError, MalformedError, NotFoundError, UnavailableError, VerificationError
from common.trust import merkle
from common.trust.evidence import Evidence
from common.trust.note import Checkpoint, Note, SigningKey, open_checkpoint, sign
from common.trust.root import TrustedRoot
from common.trust.statements import ConsentRevoke, Statement, sign_statement
from common.trust.tiles import read_entries, tile_path
from common.trust.verify import check_receipt
from coordinator.home import open_home
from coordinator.log import Log
from coordinator.store import Store
from coordinator.tables import checkpoints, entries, hashes
from owner_client.pins import Pins
from tests.federation import Federation, Owner, running_federation

ORIGIN = "test.concord/log"
KEY = SigningKey.generate(ORIGIN)
OWN_KEY = SigningKey.generate("test.concord/owner/archive")
ROOT = TrustedRoot("test.concord", ORIGIN, KEY.verifier, OWN_KEY.verifier)


@contextmanager
def _opened(path: Path, *, key: SigningKey = KEY) -> Iterator[tuple[Store, Log]]:
    path.mkdir(exist_ok=True)
    store = Store.embedded(path / "registry.sqlite")
    try:
        store.prepare()
        yield store, Log(store, key=key, origin=ORIGIN, directory=path / "log")
    finally:
        store.close()


@pytest.fixture
def store_and_log(tmp_path: Path) -> Iterator[tuple[Store, Log]]:
    """An empty log."""
    with _opened(tmp_path) as opened:
        yield opened


def _statement(number: int) -> Statement:
    return ConsentRevoke(
        federation="test.concord",
        origin=ORIGIN,
        party="archive",
        key_id=OWN_KEY.verifier.key_id,
        record_id=f"0190c0a0-0000-7000-8000-{number:012d}",
        seq=number,
        prev=None,
        issued_at="2026-11-23T09:00:00Z",
        grant_id="0190c0a0-0000-7000-8000-000000000000",
        effect="future",
        deadline_s=0,
    )


def _append(store: Store, log: Log, numbers: range) -> list[bytes]:
    notes = [sign_statement(_statement(number), OWN_KEY) for number in numbers]
    with store.transaction() as connection:
        appender = log.appender(connection)
        for number, note in zip(numbers, notes, strict=True):
            assert appender.append(note, statement=_statement(number)) == number
        appender.seal()
    log.committed(appender)
    return notes


def _published(path: Path) -> tuple[Checkpoint, list[bytes]]:
    """The log as a reader of the static files has it."""
    head = open_checkpoint((path / "checkpoint").read_bytes(), log=KEY.verifier, origin=ORIGIN)
    return head, read_entries(lambda name: (path / name).read_bytes(), size=head.size)


def _root_of(notes: list[bytes]) -> bytes:
    running = merkle.RunningRoot()
    for note in notes:
        running.append(merkle.leaf_hash(note))
    return running.root


@pytest.mark.parametrize("sizes", [[0], [1], [2, 3], [255, 256, 257], [10, 600]])
def test_what_is_published_is_what_is_held(sizes: list[int], store_and_log: tuple[Store, Log], tmp_path: Path) -> None:
    store, log = store_and_log
    notes: list[bytes] = []
    for size in sizes:
        notes += _append(store, log, range(len(notes), size))
        signed = log.sign_head()
        head, read = _published(tmp_path / "log")
        assert read == notes
        assert (head.size, head.root) == (size, _root_of(notes))
        assert (tmp_path / "log" / "checkpoint").read_bytes() == signed == log.checkpoint()


@pytest.mark.parametrize("sizes", [[1], [256], [255, 256, 257], [3, 700], [70_000]])
def test_hash_tiles_hold_the_tree(sizes: list[int], store_and_log: tuple[Store, Log], tmp_path: Path) -> None:
    """Level 0 is the leaves' hashes, and every hash above is that of a whole tile below."""
    store, log = store_and_log
    done = 0
    for size in sizes:
        _append_many(store, done, size)
        done = size
        log.sign_head()
    path, size = tmp_path / "log", sizes[-1]
    below = _tile_hashes(path, 0, size)
    assert _running(below) == open_checkpoint((path / "checkpoint").read_bytes(), log=KEY.verifier, origin=ORIGIN).root
    for level in range(1, 4):
        hashes_there = _tile_hashes(path, level, size)
        whole = [_running(below[i : i + 256]) for i in range(0, len(below) - len(below) % 256, 256)]
        assert hashes_there == whole
        below = hashes_there


def _tile_hashes(path: Path, level: int, size: int) -> list[bytes]:
    """All hashes of a level, read from its tiles."""
    count = size >> (8 * level)
    data = b"".join(
        (path / tile_path(level, index, width=min(256, count - 256 * index))).read_bytes()
        for index in range(-(-count // 256))
    )
    return [data[i : i + 32] for i in range(0, len(data), 32)]


def _running(leaf_hashes: list[bytes]) -> bytes:
    running = merkle.RunningRoot()
    for leaf_hash in leaf_hashes:
        running.append(leaf_hash)
    return running.root


def _append_many(store: Store, start: int, end: int) -> None:
    """Entries without a meaning, written as the log's own tables hold them."""
    stored: list[bytes] = []
    with store.transaction() as connection:
        known = connection.execute(select(hashes.c.hash).order_by(hashes.c.position)).scalars()
        stored += [bytes(value) for value in known]

        def read(positions: Sequence[int]) -> list[bytes]:
            return [stored[position] for position in positions]

        for number in range(start, end):
            stored += merkle.hashes_to_append(number, merkle.leaf_hash(b"%d" % number), read)
            row = {"leaf_index": number, "note": b"%d" % number, "digest": f"{number}", "record_id": f"{number}"}
            connection.execute(insert(entries).values(**row, type="none", party="archive", seq=number))
        first = merkle.stored_hash_count(start)
        rows = [{"position": position, "hash": stored[position]} for position in range(first, len(stored))]
        connection.execute(insert(hashes), rows)


def test_every_receipt_verifies(store_and_log: tuple[Store, Log]) -> None:
    store, log = store_and_log
    notes = _append(store, log, range(40))
    for index, note in enumerate(notes):
        proof, head = check_receipt(ROOT, log.receipt(index), entry=note)
        assert (proof.index, head.size) == (index, 40)
        assert log.entry(index) == note
    with pytest.raises(VerificationError, match="step 3"):
        check_receipt(ROOT, log.receipt(3), entry=notes[4])


def test_consistency_is_proven_between_all_sizes(store_and_log: tuple[Store, Log]) -> None:
    store, log = store_and_log
    notes = _append(store, log, range(24))
    roots = [_root_of(notes[:size]) for size in range(25)]
    for new in range(25):
        for old in range(new + 1):
            merkle.verify_consistency(
                old_size=old, old_root=roots[old], new_size=new, new_root=roots[new], proof=log.consistency(old, new)
            )


@pytest.mark.parametrize(("old", "new"), [(3, 2), (0, 6), (6, 6), (6, 7), (0, 2**63)])
def test_no_proof_is_made_for_sizes_there_never_were(old: int, new: int, store_and_log: tuple[Store, Log]) -> None:
    store, log = store_and_log
    _append(store, log, range(5))
    with pytest.raises(MalformedError, match="the log has 5"):
        log.consistency(old, new)


def test_an_entry_there_is_none_of_is_not_found(store_and_log: tuple[Store, Log]) -> None:
    with pytest.raises(NotFoundError, match="no entry 0"):
        store_and_log[1].entry(0)


def test_a_receipt_waits_for_a_checkpoint_that_covers_it(store_and_log: tuple[Store, Log]) -> None:
    store, log = store_and_log
    _append(store, log, range(2))
    log.sign_head()
    notes = _append(store, log, range(2, 5))
    _, head = check_receipt(ROOT, log.receipt(3), entry=notes[1])
    assert head.size == 5


# Append-only.

_KEYS = {"entries": "leaf_index", "hashes": "position", "checkpoints": "tree_size"}


@pytest.mark.parametrize("table", _KEYS)
@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE {table} SET {key} = {key} + 100",
        "UPDATE OR REPLACE {table} SET {key} = 0 WHERE {key} = 1",
        "DELETE FROM {table}",
        "DELETE FROM {table} WHERE {key} = 1",
        "REPLACE INTO {table} SELECT * FROM {table} LIMIT 1",
        "INSERT OR REPLACE INTO {table} SELECT * FROM {table} LIMIT 1",
    ],
)
def test_nothing_in_the_log_is_changed_or_removed(sql: str, table: str, store_and_log: tuple[Store, Log]) -> None:
    store, log = store_and_log
    for number in range(3):
        _append(store, log, range(number, number + 1))
        log.sign_head()
    before = _rows(store)
    with pytest.raises(UnavailableError, match=f"{table} is append-only"), store.transaction() as connection:
        connection.exec_driver_sql(sql.format(table=table, key=_KEYS[table]))
    assert _rows(store) == before


def _rows(store: Store) -> list[object]:
    with store.reading() as connection:
        return [list(connection.execute(select(table))) for table in (entries, hashes, checkpoints)]


def test_another_program_cannot_change_the_log_either(store_and_log: tuple[Store, Log], tmp_path: Path) -> None:
    store, log = store_and_log
    _append(store, log, range(2))
    with closing(sqlite3.connect(tmp_path / "registry.sqlite")) as connection:
        for sql in ("UPDATE entries SET note = x'00'", "DELETE FROM hashes", "DELETE FROM entries"):
            with pytest.raises(sqlite3.DatabaseError, match="is append-only"):
                connection.execute(sql)


def test_what_fails_half_way_leaves_nothing(store_and_log: tuple[Store, Log]) -> None:
    store, log = store_and_log
    _append(store, log, range(3))
    before = _rows(store)
    with pytest.raises(UnavailableError, match="UNIQUE"):
        _append_then_repeat(store, log)
    assert _rows(store) == before
    assert len(_append(store, log, range(3, 4))) == 1


def _append_then_repeat(store: Store, log: Log) -> None:
    with store.transaction() as connection:
        appender = log.appender(connection)
        for number in (3, 4, 0):
            appender.append(b"note", statement=_statement(number))
        appender.seal()


@pytest.mark.parametrize("number", [0, 2])
def test_the_same_statement_is_not_appended_twice(number: int, store_and_log: tuple[Store, Log]) -> None:
    store, log = store_and_log
    _append(store, log, range(3))
    before = _rows(store)
    with pytest.raises(UnavailableError, match="UNIQUE"):
        _append_as(store, log, number)
    assert _rows(store) == before


def _append_as(store: Store, log: Log, number: int) -> None:
    with store.transaction() as connection:
        appender = log.appender(connection)
        appender.append(b"another note", statement=_statement(number))
        appender.seal()


def test_one_checkpoint_is_signed_for_a_size(store_and_log: tuple[Store, Log]) -> None:
    store, log = store_and_log
    _append(store, log, range(3))
    assert log.sign_head() == log.sign_head()
    with store.reading() as connection:
        assert [row.tree_size for row in connection.execute(select(checkpoints))] == [3]


def test_a_database_older_than_what_was_published_is_refused(tmp_path: Path) -> None:
    with _opened(tmp_path / "new") as (store, log):
        _append(store, log, range(3))
        log.sign_head()
    with _opened(tmp_path / "old") as (store, log):
        _append(store, log, range(2))
    shutil.copyfile(tmp_path / "new" / "log" / "checkpoint", tmp_path / "old" / "log" / "checkpoint")
    with _opened(tmp_path / "old") as (_, log), pytest.raises(ConflictError, match=r"holds 2 entries .* of 3 was"):
        log.check_not_rolled_back()


def test_a_database_that_differs_from_what_was_published_is_refused(tmp_path: Path) -> None:
    for name, numbers in (("one", range(3)), ("two", range(1))):
        with _opened(tmp_path / name) as (store, log):
            _append(store, log, numbers)
            log.sign_head()
    with _opened(tmp_path / "two") as (store, log):
        with store.transaction() as connection:
            appender = log.appender(connection)
            for number in (1, 2, 3):
                appender.append(b"another", statement=_statement(number))
            appender.seal()
        shutil.copyfile(tmp_path / "one" / "log" / "checkpoint", tmp_path / "two" / "log" / "checkpoint")
        with pytest.raises(ConflictError, match="would fork the log"):
            log.check_not_rolled_back()


# Who watches.


def _checkpoint(notes: list[bytes], *, key: SigningKey = KEY) -> bytes:
    return bytes(sign(str(Checkpoint(ORIGIN, len(notes), _root_of(notes))), key))


NOTES = [bytes([number]) for number in range(8)]
FORK = [*NOTES[:3], b"other", *NOTES[4:]]


@pytest.fixture
def pins(tmp_path: Path) -> Pins:
    """An owner that has seen five entries."""
    pins = Pins(tmp_path / "checkpoint", evidence=tmp_path / "evidence", root=ROOT)
    pins.observe(_checkpoint(NOTES[:5]), fetch_proof=_proof)
    return pins


def _proof(old: int, new: int, *, notes: list[bytes] = NOTES) -> tuple[bytes, ...]:
    stored: list[bytes] = []

    def read(indexes: Sequence[int]) -> list[bytes]:
        return [stored[index] for index in indexes]

    for index, note in enumerate(notes):
        stored.extend(merkle.hashes_to_append(index, merkle.leaf_hash(note), read))
    return merkle.consistency_proof(old, new, read)


def test_a_log_that_grew_is_pinned(pins: Pins) -> None:
    pins.observe(_checkpoint(NOTES[:7]), fetch_proof=_proof)
    assert pins.pinned() == Checkpoint(ORIGIN, 7, _root_of(NOTES[:7]))


def test_an_older_checkpoint_of_the_same_log_is_true_and_not_pinned(pins: Pins) -> None:
    assert pins.observe(_checkpoint(NOTES[:2]), fetch_proof=_proof).size == 2
    pinned = pins.pinned()
    assert pinned is not None
    assert pinned.size == 5


def _refuses(pins: Pins, note: bytes, tmp_path: Path, **arguments: object) -> None:
    before = (tmp_path / "checkpoint").read_bytes()
    with pytest.raises(VerificationError, match="both checkpoints are kept in"):
        pins.observe(note, **{"fetch_proof": _proof, **arguments})  # type: ignore[arg-type]
    assert (tmp_path / "checkpoint").read_bytes() == before
    kept = [Evidence.parse(path.read_bytes()).checkpoints for path in (tmp_path / "evidence").iterdir()]
    assert (before, note) in kept


@pytest.mark.parametrize("size", [4, 5, 7])
def test_a_fork_is_refused_and_kept(size: int, pins: Pins, tmp_path: Path) -> None:
    for prover in (NOTES, FORK):
        _refuses(
            pins, _checkpoint(FORK[:size]), tmp_path,
            fetch_proof=lambda old, new, notes=prover: _proof(old, new, notes=notes),
        )  # fmt: skip


@pytest.mark.parametrize("proof", [(), (bytes(32),), (bytes(32),) * 9, (b"",)])
def test_growth_without_a_proof_is_refused_and_kept(proof: tuple[bytes, ...], pins: Pins, tmp_path: Path) -> None:
    _refuses(pins, _checkpoint(NOTES[:7]), tmp_path, fetch_proof=lambda *_: proof)


def test_a_log_that_will_not_prove_is_refused_and_kept(pins: Pins, tmp_path: Path) -> None:
    def unwilling(old: int, new: int) -> tuple[bytes, ...]:
        raise MalformedError(f"no proof from {old} to {new} entries: the log has {old}")

    _refuses(pins, _checkpoint(NOTES[:3]), tmp_path, fetch_proof=unwilling)


def test_a_log_that_cannot_be_asked_is_asked_again_later(pins: Pins, tmp_path: Path) -> None:
    def away(old: int, new: int) -> tuple[bytes, ...]:
        raise UnavailableError("the coordinator does not answer")

    with pytest.raises(UnavailableError):
        pins.observe(_checkpoint(NOTES[:7]), fetch_proof=away)
    assert not (tmp_path / "evidence").exists()
    pins.observe(_checkpoint(NOTES[:7]), fetch_proof=_proof)


def test_a_checkpoint_of_another_key_is_refused(pins: Pins, tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match="step 1"):
        pins.observe(_checkpoint(NOTES[:7], key=SigningKey.generate(ORIGIN)), fetch_proof=_proof)
    assert not (tmp_path / "evidence").exists()


@contextmanager
def _restored(tmp_path: Path, ports: list[int]) -> Iterator[Federation]:
    """The coordinator again, from the backup of its database and its published log."""
    home = tmp_path / "coordinator"
    for name in ("registry.sqlite", "registry.sqlite-wal", "registry.sqlite-shm"):
        (home / name).unlink(missing_ok=True)
    shutil.rmtree(home / "public" / "log")
    shutil.copyfile(tmp_path / "backup.sqlite", home / "registry.sqlite")
    shutil.copytree(tmp_path / "backup.log", home / "public" / "log")
    with open_home(home) as coordinator:
        federation = Federation(tmp_path, ports, coordinator)
        federation.start()
        try:
            yield federation
        finally:
            federation.stop()


@pytest.fixture
def forgotten(tmp_path: Path) -> tuple[Owner, list[int]]:
    """An owner whose consent is in the log, and a backup from before."""
    with running_federation(tmp_path) as federation:
        federation.publish_base()
        owner = federation.enrol("archive")
        with closing(sqlite3.connect(federation.coordinator.home.database)) as connection:
            connection.execute("VACUUM INTO ?", (str(tmp_path / "backup.sqlite"),))
        shutil.copytree(federation.public / "log", tmp_path / "backup.log")
        owner.consent()
        return owner, federation.ports


def test_an_owner_notices_a_log_that_shrank(forgotten: tuple[Owner, list[int]], tmp_path: Path) -> None:
    owner, ports = forgotten
    with (
        _restored(tmp_path, ports),
        owner.member() as member,
        pytest.raises(VerificationError, match="both checkpoints are kept"),
    ):
        member.client.watch()
    assert _sizes_of(owner) == [2, 3]


def _sizes_of(owner: Owner) -> list[int]:
    """What the one evidence that an owner kept is about."""
    (kept,) = owner.home.evidence.iterdir()
    return sorted(
        Checkpoint.parse(Note.parse(each).text).size for each in Evidence.parse(kept.read_bytes()).checkpoints
    )


@pytest.mark.parametrize("size", [3, 4])
def test_an_owner_notices_a_log_that_forked(size: int, forgotten: tuple[Owner, list[int]], tmp_path: Path) -> None:
    owner, ports = forgotten
    with _restored(tmp_path, ports) as federation:
        for seed in range(1, size - 1):
            federation.publish_base(seed=seed)
        with owner.member() as member, pytest.raises(VerificationError, match=r"step 2 .* both checkpoints are kept"):
            member.client.watch()
    assert _sizes_of(owner) == [3, size]
    assert Checkpoint.parse(Note.parse(owner.home.pinned.read_bytes()).text).size == 3
