"""A disk in memory whose power can be cut, under the coordinator's own registry.

SQLite reaches it through an APSW VFS. What was written and not synced when the power went is there in part: a random
choice of its sectors of 512 bytes. Names of files are durable at once, as SQLite's own VFS syncs directories.
"""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from random import Random
from typing import Any, Final

import apsw
from sqlalchemy import create_engine, event
from sqlalchemy.pool import StaticPool

from coordinator.store import Store, configure_embedded, make_tables

_SECTOR: Final = 512
_NAME: Final = "/registry.sqlite"


class PowerCut(Exception):
    """There is no power."""


class _File:
    """What a file holds, and what of it would be there after a cut."""

    def __init__(self) -> None:
        self.current, self.durable = bytearray(), bytearray()
        self.pending: list[tuple[int, bytes] | int] = []

    def write(self, offset: int, data: bytes) -> None:
        _write(self.current, offset, data)
        for start in range(0, len(data), _SECTOR):
            self.pending.append((offset + start, data[start : start + _SECTOR]))

    def truncate(self, size: int) -> None:
        del self.current[size:]
        self.pending.append(size)

    def sync(self) -> None:
        _apply(self.durable, self.pending)
        self.pending = []

    def cut(self, random: Random) -> None:
        kept = [each for each in self.pending if random.random() < 0.5]
        random.shuffle(kept)
        _apply(self.durable, kept)
        self.current, self.pending = bytearray(self.durable), []


def _write(data: bytearray, offset: int, new: bytes) -> None:
    if len(data) < offset:
        data.extend(bytes(offset - len(data)))
    data[offset : offset + len(new)] = new


def _apply(data: bytearray, operations: Sequence[tuple[int, bytes] | int]) -> None:
    for operation in operations:
        if isinstance(operation, int):
            del data[operation:]
        else:
            _write(data, *operation)


class Disk:
    """All files. `cut_after` is the number of writes and syncs at which the power goes."""

    def __init__(self, seed: int) -> None:
        self.files: dict[str, _File] = {}
        self.events, self.cut_after = 0, -1
        self._random = Random(seed)

    @property
    def is_cut(self) -> bool:
        """Whether the power is gone."""
        return 0 <= self.cut_after <= self.events

    def event(self) -> None:
        """One more write or sync; `PowerCut` from the fatal one on."""
        if not self.is_cut:
            self.events += 1
        if self.is_cut:
            raise PowerCut

    def restore_power(self) -> None:
        """Afterwards: what was not synced is there in part."""
        for file in self.files.values():
            file.cut(self._random)
        self.cut_after = -1


class _OpenFile:
    """One open file, as APSW asks of it."""

    def __init__(self, disk: Disk, name: str) -> None:
        self._disk, self._file = disk, disk.files.setdefault(name, _File())

    def xRead(self, amount: int, offset: int) -> bytes:
        return bytes(self._file.current[offset : offset + amount])

    def xWrite(self, data: bytes, offset: int) -> None:
        self._disk.event()
        self._file.write(offset, bytes(data))

    def xTruncate(self, size: int) -> None:
        self._disk.event()
        self._file.truncate(size)

    def xSync(self, flags: int) -> None:
        self._disk.event()
        self._file.sync()

    def xFileSize(self) -> int:
        return len(self._file.current)

    def xFileControl(self, operation: int, pointer: int) -> bool:
        return False

    def xLock(self, level: int) -> None: ...

    def xUnlock(self, level: int) -> None: ...

    def xCheckReservedLock(self) -> bool:
        return False

    def xSectorSize(self) -> int:
        return _SECTOR

    def xDeviceCharacteristics(self) -> int:
        return 0

    def xClose(self) -> None: ...


class _Vfs(apsw.VFS):
    """The disk as a file system."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self.name = f"cut-{id(disk)}"
        super().__init__(self.name, "")

    def xOpen(self, name: Any, flags: Any) -> _OpenFile:  # type: ignore[override]
        text = name.filename() if isinstance(name, apsw.URIFilename) else name or f"/temporary-{len(self._disk.files)}"
        return _OpenFile(self._disk, text)

    def xDelete(self, name: str, sync: bool) -> None:
        self._disk.event()
        self._disk.files.pop(name, None)

    def xAccess(self, name: str, flags: int) -> bool:
        return name in self._disk.files

    def xFullPathname(self, name: str) -> str:
        return name


class _Cursor:
    """A DB-API cursor over APSW's."""

    arraysize, rowcount, lastrowid = 1, -1, None

    def __init__(self, connection: apsw.Connection) -> None:
        self._cursor = connection.cursor()
        self._cursor.exec_trace = self._describe
        self.description: object = None

    def _describe(self, cursor: apsw.Cursor, sql: str, bindings: object) -> bool:
        """Asked before a statement runs: afterwards one without rows says nothing of its columns."""
        self.description = tuple((name, *[None] * 6) for name, *_ in cursor.get_description()) or None
        return True

    def _run(self, run: Callable[[], object]) -> None:
        self.description = None
        try:
            run()
        except apsw.ConstraintError as error:
            raise sqlite3.IntegrityError(str(error)) from error
        except apsw.Error as error:
            raise sqlite3.OperationalError(str(error)) from error

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> None:
        self._run(lambda: self._cursor.execute(sql, tuple(parameters)))

    def executemany(self, sql: str, parameters: Sequence[Sequence[Any]]) -> None:
        self._run(lambda: self._cursor.executemany(sql, [tuple(each) for each in parameters]))

    def fetchone(self) -> Any:
        return self._cursor.fetchone()

    def fetchall(self) -> list[Any]:
        return list(self._cursor)

    def fetchmany(self, size: int = 1) -> list[Any]:
        return [row for row, _ in zip(self._cursor, range(size), strict=False)]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._cursor)

    def close(self) -> None:
        self._cursor.close()


class _Connection:
    """A DB-API connection over APSW's: as much of one as SQLAlchemy's SQLite dialect uses."""

    isolation_level: object = None

    def __init__(self, disk: Disk) -> None:
        self._vfs = _Vfs(disk)
        self._connection = apsw.Connection(_NAME, vfs=self._vfs.name)
        self._connection.execute("PRAGMA locking_mode=EXCLUSIVE")  # WAL without shared memory

    def cursor(self) -> _Cursor:
        return _Cursor(self._connection)

    def create_function(self, *arguments: object, **options: object) -> None: ...

    def commit(self) -> None:
        self._end("COMMIT")

    def rollback(self) -> None:
        self._end("ROLLBACK")

    def _end(self, sql: str) -> None:
        if self._connection.in_transaction:
            _Cursor(self._connection).execute(sql)

    def close(self) -> None:
        with suppress(apsw.Error, PowerCut):
            self._connection.close()


def store_on(disk: Disk, *, synchronous: str) -> Store:
    """The coordinator's store on that disk, with its own settings but for `synchronous`."""
    engine = create_engine("sqlite://", creator=lambda: _Connection(disk), poolclass=StaticPool)
    configure_embedded(engine)

    @event.listens_for(engine, "connect")
    def connect(connection: Any, _: object) -> None:
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA synchronous={synchronous}")
        cursor.close()

    store = Store(engine, check=make_tables)
    store.prepare()
    return store
