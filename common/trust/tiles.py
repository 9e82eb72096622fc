"""The log as static files: C2SP `tlog-tiles` paths, hash tiles and entry bundles.

A tile of level L holds up to 256 hashes of the tree's level 8 L, so whoever reads the files makes any proof from a few
of them. An entry bundle holds 256 entries, each with its length as a big-endian 16-bit number. The last, unfinished
tile or bundle is published as a partial one, whose path says how many it holds.
"""

from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from pathlib import PurePosixPath
from typing import Final, overload

from common.errors import ConflictError, MalformedError

BUNDLE_ENTRIES: Final = 256
MAX_ENTRY_BYTES: Final = 2**16 - 1
"""What the length of an entry in a bundle can say."""
TILE_HASHES: Final = 256
TILE_HEIGHT: Final = 8
"""Levels of the tree that a tile stands for."""
MAX_LEVEL: Final = 63 // TILE_HEIGHT
CHECKPOINT_NAME: Final = "checkpoint"
COSIGNED_NAME: Final = "cosigned"
"""Checkpoints in the format of an entry bundle: for every witness the largest one that it cosigned."""


def bundle_path(index: int, *, width: int = BUNDLE_ENTRIES) -> PurePosixPath:
    """Path of entry bundle `index`, which holds `width` entries: `tile/entries/x001/234` or `tile/entries/000.p/7`."""
    if index < 0 or not 1 <= width <= BUNDLE_ENTRIES:
        raise ValueError(f"no entry bundle {index} of {width} entries")
    return PurePosixPath(f"tile/entries/{_numbered(index, width)}")


def tile_path(level: int, index: int, *, width: int = TILE_HASHES) -> PurePosixPath:
    """Path of hash tile `index` of `level`, which holds `width` hashes: `tile/1/x001/234` or `tile/0/000.p/7`."""
    if not 0 <= level <= MAX_LEVEL or index < 0 or not 1 <= width <= TILE_HASHES:
        raise ValueError(f"no tile {index} of {width} hashes at level {level}")
    return PurePosixPath(f"tile/{level}/{_numbered(index, width)}")


def tiles_between(old_size: int, new_size: int) -> Iterator[tuple[int, int, int]]:
    """Level, index and width of every hash tile that a log of `new_size` entries has and one of `old_size` has not."""
    for level in range(MAX_LEVEL + 1):
        old, new = old_size >> (TILE_HEIGHT * level), new_size >> (TILE_HEIGHT * level)
        if old == new:
            return  # nothing is new above, either
        for index in range(old // TILE_HASHES, -(-new // TILE_HASHES)):
            yield level, index, min(TILE_HASHES, new - index * TILE_HASHES)


def _numbered(index: int, width: int) -> str:
    digits = f"{index:03d}"
    digits = digits.zfill(-(-len(digits) // 3) * 3)
    groups = [digits[start : start + 3] for start in range(0, len(digits), 3)]
    name = "/".join([*(f"x{group}" for group in groups[:-1]), groups[-1]])
    return name if width == TILE_HASHES else f"{name}.p/{width}"


def format_bundle(entries: list[bytes]) -> bytes:
    """The bytes of an entry bundle."""
    return b"".join(len(entry).to_bytes(2, "big") + entry for entry in entries)


def parse_bundle(data: bytes) -> list[bytes]:
    """The inverse of `format_bundle`; `MalformedError` where the lengths do not add up."""
    entries, position = [], 0
    while position < len(data):
        end = position + 2 + int.from_bytes(data[position : position + 2], "big")
        if position + 2 > len(data) or end > len(data):
            raise MalformedError(f"entry bundle is cut off at byte {position} of {len(data)}")
        entries.append(data[position + 2 : end])
        position = end
    return entries


class LogEntries(Sequence[bytes]):
    """The first `size` entries of a log, read from its bundles when they are asked for: it may be larger than memory.

    Raises:
        MalformedError: when asked, where a bundle does not hold as many entries as its path says.
        ConflictError: a bundle is not what it was when it was read before.
    """

    def __init__(self, read: Callable[[PurePosixPath], bytes], *, size: int) -> None:
        self._read = read
        self._size = size
        self._recent: tuple[int, list[bytes]] = (-1, [])
        self._seen: dict[int, bytes] = {}

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[bytes]:
        for index in range(-(-self._size // BUNDLE_ENTRIES)):
            yield from self._bundle(index)

    @overload
    def __getitem__(self, index: int) -> bytes: ...

    @overload
    def __getitem__(self, index: slice) -> list[bytes]: ...

    def __getitem__(self, index: int | slice) -> bytes | list[bytes]:
        if isinstance(index, slice):
            return [self[i] for i in range(self._size)[index]]
        place = range(self._size)[index]
        bundle = place // BUNDLE_ENTRIES
        if self._recent[0] != bundle:
            self._recent = bundle, self._bundle(bundle)
        return self._recent[1][place % BUNDLE_ENTRIES]

    def _bundle(self, index: int) -> list[bytes]:
        width = min(BUNDLE_ENTRIES, self._size - index * BUNDLE_ENTRIES)
        path = bundle_path(index, width=width)
        data = self._read(path)
        if self._seen.setdefault(index, digest := sha256(data).digest()) != digest:
            raise ConflictError(f"{path} changed while it was read; start again")
        entries = parse_bundle(data)
        if len(entries) != width:
            raise MalformedError(f"{path} holds {len(entries)} entries, not {width}")
        return entries


def read_entries(read: Callable[[PurePosixPath], bytes], *, size: int) -> list[bytes]:
    """The same, all at once."""
    return list(LogEntries(read, size=size))
