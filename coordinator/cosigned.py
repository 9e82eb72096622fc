"""What witnesses have cosigned of the log, and the checkpoints that show it.

The newest checkpoint carries the lines that came for it. While the log grows there may be none yet, and each witness
may have looked at another moment; so there is also, for every witness, the largest checkpoint that it cosigned. Of one
checkpoint the newest line of a witness counts: it says that nothing else was shown to it until then.
"""

from base64 import b64decode
from collections import defaultdict
from collections.abc import Iterable
from typing import Final

from sqlalchemy import Connection, func, insert, select

from common.trust.note import MAX_SIGNATURES, Signature
from coordinator.tables import checkpoints, cosignatures, later_cosignatures

_APART_S: Final = 600
"""A witness's next line for the same checkpoint is kept once it is so much later."""
_RECENT: Final = 4096
_MOST: Final = 256
"""How many cosignatures, the largest checkpoints' first, are looked through, and how many checkpoints are shown."""
_KEY_ID_BYTES, _TIME_BYTES = 4, 8


def keep(connection: Connection, size: int, signature: Signature) -> bool:
    """Keep a witness's verified cosignature of the checkpoint of `size` entries; False where one that is hardly older
    is there."""
    at = int.from_bytes(signature.data[:_TIME_BYTES], "big")
    row = {"tree_size": size, "name": signature.name, "line": str(signature)}
    first = connection.execute(
        select(cosignatures.c.line).where(cosignatures.c.tree_size == size, cosignatures.c.name == signature.name)
    ).scalar()
    if first is None:
        connection.execute(insert(cosignatures).values(row))
        return True
    latest = connection.execute(
        select(func.max(later_cosignatures.c.cosigned_at)).where(
            later_cosignatures.c.tree_size == size, later_cosignatures.c.name == signature.name
        )
    ).scalar()
    if at < max(_time_of(first), latest or 0) + _APART_S:
        return False
    connection.execute(insert(later_cosignatures).values(row | {"cosigned_at": at}))
    return True


def _time_of(line: str) -> int:
    data = b64decode(line.rpartition(" ")[2])
    return int.from_bytes(data[_KEY_ID_BYTES : _KEY_ID_BYTES + _TIME_BYTES], "big")


def latest_checkpoint(connection: Connection) -> bytes | None:
    """The latest signed checkpoint, and what witnesses have cosigned of it."""
    latest = connection.execute(
        select(checkpoints.c.tree_size, checkpoints.c.note).order_by(checkpoints.c.tree_size.desc()).limit(1)
    ).first()
    if latest is None:
        return None
    lines = _lines(connection, [latest.tree_size]).get(latest.tree_size, {})
    return _with_lines(latest.note, sorted(lines.items())[: MAX_SIGNATURES - 1])


def cosigned_checkpoints(connection: Connection) -> list[bytes]:
    """For every witness the largest checkpoint that it cosigned: each checkpoint once, the largest first; more than
    once where it has more lines than a note may."""
    rows = connection.execute(
        select(cosignatures.c.tree_size, cosignatures.c.name).order_by(cosignatures.c.tree_size.desc()).limit(_RECENT)
    )
    largest: dict[str, int] = {}
    for size, name in rows:
        largest.setdefault(name, size)
    sizes = sorted(set(largest.values()), reverse=True)[:_MOST]
    lines = _lines(connection, sizes)
    wanted = select(checkpoints.c.tree_size, checkpoints.c.note).where(checkpoints.c.tree_size.in_(sizes))
    notes = connection.execute(wanted.order_by(checkpoints.c.tree_size.desc()))
    return [each for size, note in notes for each in _shown(note, sorted(lines[size].items()))]


def _shown(note: bytes, lines: list[tuple[str, str]]) -> Iterable[bytes]:
    together = MAX_SIGNATURES - 1
    return (_with_lines(note, lines[start : start + together]) for start in range(0, len(lines), together))


def _lines(connection: Connection, sizes: list[int]) -> dict[int, dict[str, str]]:
    """By size and name: the newest line of each witness."""
    found: dict[int, dict[str, str]] = defaultdict(dict)
    first = select(cosignatures.c.tree_size, cosignatures.c.name, cosignatures.c.line)
    later = select(later_cosignatures.c.tree_size, later_cosignatures.c.name, later_cosignatures.c.line)
    for wanted in (
        first.where(cosignatures.c.tree_size.in_(sizes)),
        later.where(later_cosignatures.c.tree_size.in_(sizes)).order_by(later_cosignatures.c.cosigned_at),
    ):
        for size, name, line in connection.execute(wanted):
            found[size][name] = line
    return found


def _with_lines(note: bytes, lines: list[tuple[str, str]]) -> bytes:
    return bytes(note) + "".join(f"{line}\n" for _, line in lines).encode()
