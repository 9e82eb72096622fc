"""The ledger: a line for everything that leaves an owner's building, each chained to the line before by its digest.

`ledger.jsonl` holds canonical JSON lines. A thing that leaves (a statement, an expert, a result) has its line before
its first byte goes; an upload has one for each try, with the bytes that it is about to send; small calls are added up
and written as `traffic`, by name and destination. Beside it `ledger.head` says how many lines there are and the last
one's digest, on disk after each line, so that it is a line behind at most: lines that were cut from the end are missed,
by the next command that would write as well. Whoever may write both files could write both anew; an export
that was signed and handed out cannot be taken back so.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from threading import RLock
from typing import Final

from common.errors import MalformedError, NoRoomError, VerificationError
from common.files import full_disk_is_unavailable, taking_turns, write_atomic
from common.trust import strict_json
from common.trust.manifest import digest_of
from common.trust.statements import format_time

Line = Mapping[str, object]
TRAFFIC: Final = "traffic"
UPLOAD: Final = "upload"
_THING: Final = ("kind", "name", "digest", "size_bytes", "to")
_FIELDS: Final = {"seq": int, "prev": str, "at": str, "kind": str, "name": str, "size_bytes": int, "to": str}
_OPTIONAL: Final = {"digest": str, "calls": int}
_OPEN_LEDGERS: Final = 256
START: Final = digest_of(b"concord/v1 ledger\n")
"""What the first line is chained to."""


@dataclass(frozen=True, slots=True)
class Head:
    """How many lines there are, and the last one's digest."""

    size: int = 0
    digest: str = START

    def __str__(self) -> str:
        return f"{self.size} {self.digest}\n"


@dataclass(frozen=True, slots=True)
class Copy:
    """The bytes of whole lines, and where they end."""

    data: bytes
    head: Head


class Ledger:
    """One owner's ledger, written by the daemon and by commands in turns. Made by `ledger_at`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = RLock()
        self._forget()

    def record(self, kind: str, *, name: str, digest: str, size_bytes: int, to: str) -> None:
        """Write that a thing leaves, on disk before this returns. The same thing sent again is not another line."""
        fields = {"kind": kind, "name": name, "digest": digest, "size_bytes": size_bytes, "to": to}
        with self._turn():
            if tuple(fields.values()) not in self._things:
                self._append(fields)

    def record_upload(self, *, name: str, digest: str, size_bytes: int, to: str) -> None:
        """Write that so many bytes of a thing are about to be sent: a line for each try."""
        with self._turn():
            self._append({"kind": UPLOAD, "name": name, "digest": digest, "size_bytes": size_bytes, "to": to})

    def record_traffic(self, sums: Mapping[str, tuple[int, int]], *, to: str) -> None:
        """Write what small calls have sent since the last such lines: by name, how many and their bytes."""
        with self._turn():
            for name, (calls, size_bytes) in sums.items():
                self._append({"kind": TRAFFIC, "name": name, "calls": calls, "size_bytes": size_bytes, "to": to})

    def lines(self) -> list[Line]:
        """Every line, oldest first. A line cut off by a crash is what never left.

        Raises:
            VerificationError: it was changed.
        """
        return verify_lines(_whole(self._path.read_bytes()) if self._path.exists() else b"")[0]

    def verify(self) -> Head:
        """Where the chain stands.

        Raises:
            VerificationError: a line was changed, added or taken away; the message says which.
        """
        return self.copy().head

    def copy(self) -> "Copy":
        """All lines, checked; errors as `verify`."""
        said = _read_head(self._head_path)  # first: lines may be added meanwhile
        data = _whole(self._path.read_bytes()) if self._path.exists() else b""
        lines, head = verify_lines(data)
        _check_head(said, lines, head)
        return Copy(data, head)

    @property
    def _head_path(self) -> Path:
        return self._path.with_suffix(".head")

    def _turn(self) -> "_Turn":
        return _Turn(self)

    def _forget(self) -> None:
        self._read, self._head = 0, Head()
        self._things: set[tuple[object, ...]] = set()

    def _catch_up(self, descriptor: int) -> None:
        """Take in what others have written since, and cut off what a crash left of a line."""
        size = os.fstat(descriptor).st_size
        if not size and not self._head_path.exists():
            self._forget()  # it was never begun, or put aside by somebody who knows of it
            self._write_head()
        try:
            said = _read_head(self._head_path)
            data = _whole(os.pread(descriptor, max(0, size - self._read), self._read))
            lines, head = verify_lines(data, after=self._head)
            if size < self._read:
                raise VerificationError(f"the ledger had {self._head.size} lines; the last ones are missing")
            if self._read == 0 or said is None or head.size < said.size:
                _check_head(said, lines, head)
        except VerificationError as error:
            raise VerificationError(
                f"{error}. Nothing leaves before that is understood: concord owner ledger verify; then put "
                f"{self._path.name} aside with {self._head_path.name}, and a new one is begun"
            ) from error
        self._head = head
        self._things.update(tuple(line.get(name) for name in _THING) for line in lines)
        self._read += len(data)
        os.ftruncate(descriptor, self._read)

    def _append(self, fields: dict[str, object]) -> None:
        line = {"seq": self._head.size, "prev": self._head.digest, "at": format_time(datetime.now(UTC)), **fields}
        data = strict_json.canonical(line)
        before = self._head
        try:
            with full_disk_is_unavailable(str(self._path)):
                _write_whole(self._path, data + b"\n")
            self._head = Head(before.size + 1, digest_of(data))
            self._write_head()
        except NoRoomError as error:
            os.truncate(self._path, self._read)
            self._head = before
            raise NoRoomError(
                "no space left for the ledger, and nothing leaves that is not in it; free some and go on: what is "
                "stored stays"
            ) from error
        self._read += len(data) + 1
        self._things.add(tuple(fields.get(name) for name in _THING))

    def _write_head(self) -> None:
        write_atomic(self._head_path, str(self._head).encode(), mode=0o600)


class _Turn:
    """The right to write, with everything read that others wrote before."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        path = ledger._path
        self._file = taking_turns(path.with_name(f".{path.name}.lock"))

    def __enter__(self) -> None:
        self._ledger._lock.acquire()
        try:
            self._file.__enter__()
            descriptor = os.open(self._ledger._path, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                self._ledger._catch_up(descriptor)
            finally:
                os.close(descriptor)
        except BaseException:
            self._ledger._lock.release()
            raise

    def __exit__(self, *error: object) -> None:
        try:
            self._file.__exit__(None, None, None)
        finally:
            self._ledger._lock.release()


@lru_cache(_OPEN_LEDGERS)
def ledger_at(path: Path) -> Ledger:
    """The ledger in a file, whether it is there yet or not; what was read of it is remembered."""
    return Ledger(path)


def verify_lines(data: bytes, *, after: Head = Head()) -> tuple[list[Line], Head]:
    """The lines in `data` that follow a head, and the head after them.

    Raises:
        VerificationError: one is not what the line after it, or its own number, says.
    """
    found: list[Line] = []
    size, digest = after.size, after.digest
    for raw in data.split(b"\n")[:-1]:
        line = _parse(raw, size)
        if (line["seq"], line["prev"]) != (size, digest):
            raise VerificationError(
                f"line {size} of the ledger does not follow line {size - 1}: one was changed, added or taken away"
            )
        found.append(line)
        size, digest = size + 1, digest_of(raw)
    return found, Head(size, digest)


def _parse(raw: bytes, number: int) -> Line:
    try:
        fields, is_canonical = strict_json.load_spelled(raw, what="it")
    except MalformedError as error:
        raise VerificationError(f"line {number} of the ledger is damaged: {error}") from error
    wanted = _FIELDS | {name: kind for name, kind in _OPTIONAL.items() if name in fields}
    if not is_canonical or {name: type(value) for name, value in fields.items()} != wanted:
        raise VerificationError(f"line {number} of the ledger is not one that is written here")
    return fields


def _whole(data: bytes) -> bytes:
    return data[: data.rfind(b"\n") + 1]


def _write_whole(path: Path, data: bytes) -> None:
    """Append all of `data`, on disk, or nothing of it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        before = os.fstat(descriptor).st_size
        try:
            written = 0
            while written < len(data):  # a full disk takes a part of it first
                written += os.write(descriptor, data[written:])
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, before)
            raise
    finally:
        os.close(descriptor)


def _check_head(said: Head | None, lines: list[Line], head: Head) -> None:
    """Whether lines end where the head says, or one line later, as a crash between the two leaves them."""
    if said is None:
        if head.size:
            raise VerificationError(f"{head.size} lines of the ledger are here, and the file that says so is not")
        return
    if said.size > head.size:
        raise VerificationError(f"the ledger has {head.size} lines; it had {said.size}: the last ones are missing")
    if said.digest != _digest_before(said.size, lines, head):
        raise VerificationError(f"line {said.size - 1} of the ledger is another than was written last")


def _digest_before(size: int, lines: list[Line], head: Head) -> object:
    """What the line of that number is chained to."""
    return head.digest if size == head.size else lines[size - head.size]["prev"]


def _read_head(path: Path) -> Head | None:
    """What is said of the last line; None where nothing is said."""
    try:
        size, _, digest = path.read_text().rstrip("\n").partition(" ")
        return Head(int(size), digest)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise VerificationError(
            f"{path} is damaged; look at the ledger itself, and write down what you find"
        ) from error
