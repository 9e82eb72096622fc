"""Digests and manifests: strict names, canonical bytes, and directories that hold exactly what is listed."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ConcordError, MalformedError, NotFoundError, VerificationError
from common.trust import strict_json
from common.trust.manifest import (
    MAX_MANIFEST_BYTES,
    FileDigests,
    FileEntry,
    Manifest,
    check_digest,
    check_directory,
    check_file_name,
    digest_of,
    digest_of_file,
)

EMPTY = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Two files."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.txt").write_bytes(b"first")
    (folder / "B_2.bin").write_bytes(bytes(5_000_000))
    return folder


def test_digests_are_sha256_in_hex(directory: Path) -> None:
    assert digest_of(b"") == EMPTY
    assert digest_of_file(directory / "B_2.bin") == digest_of(bytes(5_000_000))


def test_a_file_of_several_names_is_read_once_and_again_once_it_was_written_to(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []

    def counted(file: BinaryIO) -> str:
        read.append(file.fileno())
        return digest_of(file.read())

    monkeypatch.setattr("common.trust.manifest._digest_of", counted)
    digests = FileDigests()
    (directory / "again.txt").hardlink_to(directory / "a.txt")
    assert digests(directory / "a.txt") == digests(directory / "again.txt") == digest_of(b"first")
    assert len(read) == 1
    (directory / "again.txt").write_bytes(b"other")
    assert digests(directory / "a.txt") == digest_of(b"other")
    (directory / "same.txt").write_bytes(b"other")
    assert digests(directory / "same.txt") == digest_of(b"other")
    assert len(read) == 3, "another file is read, whatever it holds"


def test_a_manifest_lists_the_files_of_a_directory(directory: Path) -> None:
    manifest = Manifest.of_directory(directory)
    assert manifest.files["a.txt"] == FileEntry(digest_of(b"first"), 5)
    assert manifest.size_bytes == 5_000_005
    assert Manifest.parse(bytes(manifest)) == manifest
    (directory / "manifest.json").write_bytes(bytes(manifest))
    assert Manifest.of_directory(directory) == manifest
    check_directory(directory, manifest=manifest)


def test_a_manifest_is_the_same_whatever_the_order() -> None:
    one, two = FileEntry(EMPTY, 0), FileEntry(digest_of(b"x"), 1)
    assert bytes(Manifest({"a": one, "b": two})) == bytes(Manifest({"b": two, "a": one}))


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".x", "..", "a\n", "a b", "é", "x" * 129, "-x", "manifest.json"])
def test_a_name_that_is_more_than_a_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"plain file name|list itself"):
        check_file_name(name)
    with pytest.raises(ValueError, match=r"plain file name|list itself"):
        Manifest({name: FileEntry(EMPTY, 0)})


@pytest.mark.parametrize(
    "text", ["", "sha256:", EMPTY[:-1], EMPTY + "0", EMPTY.upper(), EMPTY + "\n", "md5:" + "0" * 64]
)
def test_what_is_no_digest_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a digest"):
        check_digest(text)


def _json(files: object) -> bytes:
    return strict_json.canonical({"files": files})


BAD = {
    "no object": b"[]",
    "no files": b"{}",
    "files in a list": _json([]),
    "an extra field": strict_json.canonical({"files": {}, "x": 1}),
    "a path": _json({"../x": {"digest": EMPTY, "size": 0}}),
    "itself": _json({"manifest.json": {"digest": EMPTY, "size": 0}}),
    "no size": _json({"x": {"digest": EMPTY}}),
    "a size that is true": _json({"x": {"digest": EMPTY, "size": True}}),
    "a negative size": _json({"x": {"digest": EMPTY, "size": -1}}),
    "a size as text": _json({"x": {"digest": EMPTY, "size": "0"}}),
    "no digest": _json({"x": {"digest": "sha256:0", "size": 0}}),
    "an extra field within": _json({"x": {"digest": EMPTY, "size": 0, "y": 1}}),
    "white space": b'{"files": {}}',
    "a newline": b'{"files":{}}\n',
    "a name twice": b'{"files":{"x":{"digest":"%b","size":0},"x":{"digest":"%b","size":0}}}' % ((EMPTY.encode(),) * 2),
    "not UTF-8": b'{"files":{"\xff":0}}',
    "too long": b" " * (MAX_MANIFEST_BYTES + 1),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_manifest_is_refused(case: str) -> None:
    with pytest.raises(MalformedError):
        Manifest.parse(BAD[case])


@given(st.binary() | st.text().map(lambda text: _json({text: {"digest": EMPTY, "size": 0}})))
def test_parsing_gives_a_manifest_or_a_malformed_error(data: bytes) -> None:
    with suppress(MalformedError):
        assert bytes(Manifest.parse(data)) == data


def _replace_by_link(directory: Path) -> None:
    (directory / "a.txt").rename(directory.parent / "a.txt")
    (directory / "a.txt").symlink_to(directory.parent / "a.txt")


def _replace_by_folder(directory: Path) -> None:
    (directory / "a.txt").unlink()
    (directory / "a.txt").mkdir()


def _replace_by_pipe(directory: Path) -> None:
    (directory / "a.txt").unlink()
    os.mkfifo(directory / "a.txt")


CHANGES: dict[str, tuple[Callable[[Path], object], type[ConcordError], str]] = {
    "a byte": (lambda path: (path / "a.txt").write_bytes(b"First"), VerificationError, "is not the file"),
    "a byte more": (lambda path: (path / "a.txt").write_bytes(b"first!"), VerificationError, "is not the file"),
    "a missing file": (lambda path: (path / "a.txt").unlink(), NotFoundError, r"lacks a\.txt"),
    "a file more": (lambda path: (path / "c").write_bytes(b""), VerificationError, "holds c, which its manifest"),
    "a hidden file": (lambda path: (path / ".c").write_bytes(b""), VerificationError, r"holds \.c, which its"),
    "a folder more": (lambda path: (path / "d").mkdir(), VerificationError, "holds d, which its manifest"),
    "a link": (_replace_by_link, VerificationError, "is not a plain file"),
    "a folder for a file": (_replace_by_folder, VerificationError, "is not a plain file"),
    "a pipe for a file": (_replace_by_pipe, VerificationError, "is not a plain file"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_directory_with_a_change_is_refused(case: str, directory: Path) -> None:
    manifest = Manifest.of_directory(directory)
    change, error, match = CHANGES[case]
    change(directory)
    with pytest.raises(error, match=match):
        check_directory(directory, manifest=manifest)


@pytest.mark.parametrize("make", [_replace_by_link, _replace_by_folder, lambda path: (path / ".x").write_bytes(b"")])
def test_a_directory_that_no_manifest_can_list_is_refused(make: Callable[[Path], object], directory: Path) -> None:
    make(directory)
    with pytest.raises(MalformedError, match="plain file"):
        Manifest.of_directory(directory)
