"""The log as static files: the paths and bundles of C2SP tlog-tiles."""

from contextlib import suppress
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import MalformedError
from common.trust.tiles import (
    BUNDLE_ENTRIES,
    bundle_path,
    format_bundle,
    parse_bundle,
    read_entries,
    tile_path,
    tiles_between,
)


@pytest.mark.parametrize(
    ("index", "width", "path"),
    [
        (0, 256, "tile/entries/000"),
        (5, 256, "tile/entries/005"),
        (999, 256, "tile/entries/999"),
        (1000, 256, "tile/entries/x001/000"),
        (1234067, 256, "tile/entries/x001/x234/067"),
        (0, 1, "tile/entries/000.p/1"),
        (1234067, 8, "tile/entries/x001/x234/067.p/8"),
    ],
)
def test_paths_are_those_of_the_specification(index: int, width: int, path: str) -> None:
    assert bundle_path(index, width=width) == PurePosixPath(path)


@pytest.mark.parametrize(
    ("level", "index", "width", "path"),
    [
        (0, 0, 256, "tile/0/000"),
        (0, 0, 1, "tile/0/000.p/1"),
        (1, 1234067, 256, "tile/1/x001/x234/067"),
        (2, 7, 255, "tile/2/007.p/255"),
    ],
)
def test_paths_of_hash_tiles_are_those_of_the_specification(level: int, index: int, width: int, path: str) -> None:
    assert tile_path(level, index, width=width) == PurePosixPath(path)


@pytest.mark.parametrize(("level", "index", "width"), [(-1, 0, 1), (8, 0, 1), (0, -1, 1), (0, 0, 0), (0, 0, 257)])
def test_a_tile_that_cannot_be_has_no_path(level: int, index: int, width: int) -> None:
    with pytest.raises(ValueError, match="no tile"):
        tile_path(level, index, width=width)


def _tiles(size: int) -> set[tuple[int, int, int]]:
    """All tiles of a log of `size` entries, counted level by level."""
    found, level, count = set(), 0, size
    while count:
        full, rest = divmod(count, 256)
        found |= {(level, index, 256) for index in range(full)} | ({(level, full, rest)} if rest else set())
        level, count = level + 1, count // 256
    return found


@given(st.integers(0, 70_000), st.integers(0, 70_000))
def test_what_is_new_is_what_was_not_there(one: int, other: int) -> None:
    old, new = sorted((one, other))
    assert _tiles(new) - _tiles(old) == set(tiles_between(old, new)) - _tiles(old)
    assert set(tiles_between(old, new)) <= _tiles(new)
    assert list(tiles_between(new, new)) == []


@pytest.mark.parametrize(("index", "width"), [(-1, 1), (0, 0), (0, 257)])
def test_a_bundle_that_cannot_be_has_no_path(index: int, width: int) -> None:
    with pytest.raises(ValueError, match="no entry bundle"):
        bundle_path(index, width=width)


@given(st.lists(st.binary(max_size=300), max_size=20))
def test_bundles_come_back_as_they_went(entries: list[bytes]) -> None:
    assert parse_bundle(format_bundle(entries)) == entries


def test_a_bundle_is_lengths_and_entries() -> None:
    assert format_bundle([b"ab", b"", b"x" * 300]) == b"\x00\x02ab\x00\x00\x01\x2c" + b"x" * 300
    assert parse_bundle(format_bundle([b"x" * 65535])) == [b"x" * 65535]


@pytest.mark.parametrize("cut", [1, 2, 3, 4, 6, 7, 8])
def test_a_bundle_that_is_cut_off_is_refused(cut: int) -> None:
    with pytest.raises(MalformedError, match=f"is cut off at byte . of {cut}"):
        parse_bundle(format_bundle([b"abc", b"de"])[:cut])


@given(st.binary())
def test_parsing_gives_entries_or_a_malformed_error(data: bytes) -> None:
    with suppress(MalformedError):
        assert format_bundle(parse_bundle(data)) == data


@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 512, 600])
def test_entries_are_read_from_full_and_partial_bundles(size: int) -> None:
    entries = [str(i).encode() for i in range(size)]
    files = {}
    for start in range(0, size, BUNDLE_ENTRIES):
        bundle = entries[start : start + BUNDLE_ENTRIES]
        files[bundle_path(start // BUNDLE_ENTRIES, width=len(bundle))] = format_bundle(bundle)
    assert read_entries(files.__getitem__, size=size) == entries


@pytest.mark.parametrize("held", [2, 4])
def test_a_bundle_of_another_size_than_its_path_says_is_refused(held: int) -> None:
    with pytest.raises(MalformedError, match=rf"000\.p/3 holds {held} entries, not 3"):
        read_entries(lambda _: format_bundle([b"x"] * held), size=3)
