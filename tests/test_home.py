"""A coordinator's home, wherever it is and whatever is published into it."""

import multiprocessing
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from common.errors import MalformedError
from common.model.expert import ROUTER_NAME, check_base
from coordinator import home as coordinator_home
from coordinator.config import CoordinatorSettings
from coordinator.publication import Publication
from tests.federation import free_ports, write_base


@pytest.mark.parametrize("name", ["with space", "h?x#y=1&z", "per%20cent", "[b]"])
def test_a_home_may_have_any_name(name: str, tmp_path: Path) -> None:
    ports = free_ports(2)
    settings = CoordinatorSettings(federation="a.b", origin="a.b/log", port=ports[0], enrolment_port=ports[1])
    coordinator_home.create(tmp_path / name, settings)
    assert (tmp_path / name / "registry.sqlite").is_file()
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_base_with_values_that_are_no_numbers_is_refused(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    weights["lm_head.weight"][0, 0] = float("nan")
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MalformedError, match=r"lm_head.weight holds NaN or infinity"):
        check_base(base)


def test_a_base_whose_rows_have_another_type_is_refused(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    rows = {name: row.to(torch.bfloat16) for name, row in load_file(base / ROUTER_NAME).items()}
    save_file(rows, base / ROUTER_NAME, metadata={"format": "pt"})
    with pytest.raises(MalformedError, match=r"dtype='BF16'.*router\.safetensors needs .*dtype='F32'"):
        check_base(base)


def _show(public: Path, source: Path, names: list[str]) -> None:
    publication = Publication(public)
    manifest = publication.add_objects(source, ours=True)
    for name in names:
        publication.show(public / "releases" / name, manifest_digest=manifest.digest)


def test_two_processes_that_show_the_same_directories_agree(tmp_path: Path) -> None:
    source, names = write_base(tmp_path / "base"), [f"release-{i}" for i in range(40)]
    Publication(tmp_path / "public").add_objects(source, ours=True)
    context = multiprocessing.get_context("spawn")
    both = [context.Process(target=_show, args=(tmp_path / "public", source, names)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    wanted = {path.name for path in source.iterdir()} | {"manifest.json"}
    for name in names:
        assert {path.name for path in (tmp_path / "public" / "releases" / name).iterdir()} == wanted


def test_new_settings_name_the_port_for_published_files(tmp_path: Path) -> None:
    settings = CoordinatorSettings(federation="test.concord", origin="test.concord/log")
    home = coordinator_home.create(tmp_path / "home", settings)
    assert "# files_port = " in home.settings_file.read_text()
    assert home.settings() == settings
