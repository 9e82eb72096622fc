"""The part of step 7 that is about `log/`: the log's own files (C2SP `tlog-tiles`) as its entries make them, no others.

Earlier, partial tiles and bundles may remain; they hold the beginning of what came after.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Final

from common.trust import merkle
from common.trust.tiles import (
    BUNDLE_ENTRIES,
    CHECKPOINT_NAME,
    COSIGNED_NAME,
    TILE_HASHES,
    bundle_path,
    format_bundle,
    tile_path,
)
from common.trust.verify import StepFailed, Unaccounted

_TILE: Final = re.compile(r"tile/(entries|[0-7])/((?:x[0-9]{3}/)*[0-9]{3})(?:\.p/([1-9][0-9]{0,2}))?")
_WRITTEN: Final = re.compile(r"\.([^.].*)\.[0-9]+-[0-9]+\.partial")

_Tile = tuple[int | None, int]
"""Level of a hash tile, or None for entries, and its number."""


def check_log_files(log: Path, entries: Sequence[bytes]) -> None:
    """Every file in `log` is what these entries make it, and every one that they make is there.

    Raises:
        Unaccounted: a file is there that this log has not.
        StepFailed: a file is missing or another one.
    """
    found, strange = _listed(log)
    if strange:
        raise Unaccounted(7, f"{strange[0]} is published but is no file of the log")
    for tile, pieces in _tiles(entries):
        widths = found.pop(tile, {})
        if len(pieces) not in widths:
            raise StepFailed(7, f"{log / _path(tile, len(pieces))} is not there; it must be published")
        for width, path in widths.items():
            if width > len(pieces):
                raise Unaccounted(7, f"{path} is published but goes beyond the log's {len(entries)} entries")
            if path.read_bytes() != b"".join(pieces[:width]):
                raise StepFailed(7, f"{path} is not what the log's entries make it")
    for widths in found.values():
        beyond = next(iter(widths.values()))
        raise Unaccounted(7, f"{beyond} is published but goes beyond the log's {len(entries)} entries")


def _listed(log: Path) -> tuple[dict[_Tile, dict[int, Path]], list[Path]]:
    """The files there: tiles with their widths, and what is no file of any log."""
    found, strange = dict[_Tile, dict[int, Path]](), list[Path]()
    for path in sorted(log.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            continue
        name = path.relative_to(log)
        written = _WRITTEN.fullmatch(path.name)
        read = _parsed(PurePosixPath(name.with_name(written[1]) if written else name))
        if path.is_symlink() or read is None:
            strange.append(path)
        elif read[0] is not None and not written:
            found.setdefault(read[0], {})[read[1]] = path
    return found, strange


def _parsed(path: PurePosixPath) -> tuple[_Tile | None, int] | None:
    """Which tile a path is, and its width; no tile for the checkpoints, None for what is no path of a log."""
    if str(path) in (CHECKPOINT_NAME, COSIGNED_NAME):
        return None, 0
    match = _TILE.fullmatch(str(path))
    if match is None:
        return None
    level = None if match[1] == "entries" else int(match[1])
    tile, width = (level, int(re.sub("[x/]", "", match[2]))), int(match[3] or TILE_HASHES)
    return (tile, width) if width <= TILE_HASHES and _path(tile, width) == path else None


def _path(tile: _Tile, width: int) -> PurePosixPath:
    level, index = tile
    return bundle_path(index, width=width) if level is None else tile_path(level, index, width=width)


def _tiles(entries: Sequence[bytes]) -> Iterator[tuple[_Tile, Sequence[bytes]]]:
    """Every tile and bundle of a log of these entries, in pieces of which a partial one holds the first."""
    level, hashes = 0, list[bytes]()
    for index, start in enumerate(range(0, len(entries), BUNDLE_ENTRIES)):
        bundle = entries[start : start + BUNDLE_ENTRIES]
        leaves = [merkle.leaf_hash(entry) for entry in bundle]
        yield (None, index), [format_bundle([entry]) for entry in bundle]
        yield (0, index), leaves
        hashes += _root(leaves)
    while hashes:
        level, above = level + 1, list[bytes]()
        for index, start in enumerate(range(0, len(hashes), TILE_HASHES)):
            tile = hashes[start : start + TILE_HASHES]
            yield (level, index), tile
            above += _root(tile)
        hashes = above


def _root(tile: Sequence[bytes]) -> list[bytes]:
    """The hash of a whole tile on the level above; none of an unfinished one."""
    running = merkle.RunningRoot()
    for each in tile:
        running.append(each)
    return [running.root] if len(tile) == TILE_HASHES else []
