"""A release made again from its inputs: the same bytes, or the file that differs."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from common.audit import audit
from common.audit_rebuild import rebuild
from common.errors import ConflictError, NotFoundError, VerificationError
from common.trust.manifest import Manifest
from tests.commands import concord
from tests.published import Published, publish


@pytest.fixture
def original(tmp_path: Path) -> Published:
    """Two releases."""
    return publish(tmp_path / "published")


@pytest.mark.parametrize("name", ["release-1", "release-2"])
def test_a_release_is_made_again(name: str, original: Published, tmp_path: Path) -> None:
    found = rebuild(original.path, original.audit(), name, tmp_path / "again")
    published = Manifest.of_directory(original.path / "releases" / name).files
    assert Manifest.of_directory(tmp_path / "again").files == published
    assert {*found.made, *found.taken_over} == set(published)


def test_it_needs_neither_torch_nor_the_release_s_weights(original: Published, tmp_path: Path) -> None:
    """All but the manifest comes from base and experts."""
    directory = original.path / "releases" / "release-1"
    for path in directory.iterdir():
        if path.suffix == ".safetensors":
            path.unlink()
    assert rebuild(original.path, audit(original.path, log_alone=True), "release-1", tmp_path / "again").made


def test_an_input_that_was_changed_is_found(original: Published, tmp_path: Path) -> None:
    report = original.audit()
    base = original.path / "base" / "0" / "model.safetensors"
    tensors = load_file(base)
    tensors["lm_head.weight"][3, 3] = torch.nextafter(tensors["lm_head.weight"][3, 3], torch.tensor(9.0))
    os.unlink(base)  # noqa: PTH108 - not the object that it is a second name of
    save_file(tensors, base, metadata={"format": "pt"})
    with pytest.raises(VerificationError, match=r"model-shared.safetensors made again is not the same bytes"):
        rebuild(original.path, report, "release-1", tmp_path / "again")


def test_nothing_is_written_over_and_nothing_made_up(original: Published, tmp_path: Path) -> None:
    report = original.audit()
    with pytest.raises(ConflictError, match="is there already"):
        rebuild(original.path, report, "release-1", tmp_path)
    with pytest.raises(NotFoundError, match="names no release 'release-9'; there are: release-1, release-2"):
        rebuild(original.path, report, "release-9", tmp_path / "again")
    digest = report.history.contributions_by_index
    for contribution in digest.values():
        for file in contribution.files.values():
            (original.path / "objects" / file.digest.removeprefix("sha256:")).unlink(missing_ok=True)
    with pytest.raises(NotFoundError, match="the log names it; it must be published"):
        rebuild(original.path, report, "release-1", tmp_path / "again")


def test_the_command_keeps_what_it_made_where_it_is_told(original: Published, tmp_path: Path) -> None:
    done = concord("audit", "rebuild", "release-1", str(original.path), "--output", str(tmp_path / "again"))
    assert done.returncode == 0, done.stderr
    assert "the same bytes as published" in done.stdout
    assert (tmp_path / "again" / "config.json").exists()
