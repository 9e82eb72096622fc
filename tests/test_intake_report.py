"""What an admin sees of what came in: sizes of values, rows that are alike, refusals and their reasons."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from common.errors import ConcordError
from common.model import checkpoint
from common.model.expert import ROUTER_NAME
from common.model.norms import cosine, root_mean_square, values_of
from common.model.partition import PUBLIC_EXPERT, router_row
from coordinator.intake_report import intake_reports
from tests.commands import concord, serving
from tests.federation import Federation, expert_weights, write_expert
from tests.raw_calls import calling_as, contribution

ROW = "model.layers.1.mlp.gate.rows.1"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_values_are_read_as_torch_reads_them(dtype: torch.dtype) -> None:
    values = torch.randn(1000).to(dtype)
    name = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}[dtype]
    data = values.view(torch.uint8).numpy().tobytes()
    assert np.array_equal(values_of(data, name), values.float().numpy())


def test_a_sample_of_a_large_tensor_says_how_large_its_values_are(tmp_path: Path) -> None:
    tensors = {"large": 0.02 * torch.randn(3000, 1000), "small": torch.full((10,), 3.0), "none": torch.zeros(0)}
    save_file(tensors, tmp_path / "t.safetensors", metadata={"format": "pt"})
    entries = checkpoint.read_header(tmp_path / "t.safetensors")
    assert root_mean_square([entries["large"]]) == pytest.approx(0.02, rel=0.01)
    assert root_mean_square([entries["small"]]) == pytest.approx(3.0)
    assert root_mean_square([entries["none"]]) == 0.0
    assert cosine(entries["small"], entries["small"]) == pytest.approx(1.0)


def _reports(federation: Federation) -> dict[str, Any]:
    home = federation.coordinator.home.path
    done = concord("coordinator", "intake", "--home", home, "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _take_part(federation: Federation, name: str, seed: int, **changed: torch.Tensor) -> None:
    owner = federation.enrol(name)
    owner.consent()
    owner.put_expert({**expert_weights(seed), **changed})
    owner.submit()


def test_an_expert_like_others_is_reported_without_a_word(consortium: Federation) -> None:
    _take_part(consortium, "archive", 1)
    _take_part(consortium, "hospital", 2)
    found = _reports(consortium)["experts"]
    assert [each["owner"] for each in found] == ["archive", "hospital"]
    assert [each["collisions"] for each in found] == [[], []]
    for each in found:
        assert each["rms"]["up_proj"] == pytest.approx(0.1, rel=0.2)


def test_rows_that_are_anothers_and_odd_values_are_pointed_out(consortium: Federation) -> None:
    public = load_file(consortium.coordinator.publication.base(0) / ROUTER_NAME)[router_row(1, PUBLIC_EXPERT)]
    up = "model.layers.0.mlp.experts.1.up_proj.weight"
    _take_part(consortium, "archive", 1, **{ROW: expert_weights(1)[ROW]})
    _take_part(consortium, "copycat", 2, **{ROW: 3 * expert_weights(1)[ROW]})
    _take_part(consortium, "loud", 3, **{ROW: public, up: 1e4 * expert_weights(3)[up]})
    found = {each["owner"]: each for each in _reports(consortium)["experts"]}
    assert [(c["layer"], c["with"]) for c in found["copycat"]["collisions"]] == [(1, "archive")]
    assert [(c["layer"], c["with"]) for c in found["loud"]["collisions"]] == [(1, "public")]
    assert any("times the public expert's" in text for text in found["loud"]["warnings"])
    shown = concord("coordinator", "intake", "--home", consortium.coordinator.home.path).stdout
    assert "archive's (cosine 1.0000)" in shown


def test_what_was_refused_is_shown_with_its_reason_until_it_is_cleared(consortium: Federation) -> None:
    owner = consortium.enrol("archive")
    grant, data = owner.consent(), b"no safetensors" * 100
    with calling_as(owner) as calls, pytest.raises(ConcordError):
        calls.upload(contribution(owner, grant.record_id, data), data)
    assert "not a safetensors file" in _reports(consortium)["refused"]["archive"]
    home = ("--home", consortium.coordinator.home.path)
    assert concord("coordinator", "intake", "--clear", "archive", *home).returncode == 0
    assert _reports(consortium)["refused"] == {}
    assert concord("coordinator", "intake", "--clear", "archive", *home).returncode == 1


def test_an_upload_under_way_is_shown(consortium: Federation) -> None:
    owner = consortium.enrol("archive")
    grant = owner.consent()
    data = (write_expert(consortium.path / "expert", expert_weights(1)) / "expert.safetensors").read_bytes()
    with calling_as(owner) as calls:
        calls.open(contribution(owner, grant.record_id, data))
    (upload,) = _reports(consortium)["uploads"]
    assert (upload["owner"], upload["stored_bytes"], upload["size_bytes"]) == ("archive", "0", str(len(data)))


def test_what_a_crash_left_among_the_published_files_is_put_back(consortium: Federation) -> None:
    """Killed after the file had its place and before its entry was in the log: an audit would refuse it."""
    owner = consortium.enrol("archive")
    grant = owner.consent()
    data = (write_expert(consortium.path / "expert", expert_weights(1)) / "expert.safetensors").read_bytes()
    coordinator, note = consortium.coordinator, contribution(owner, grant.record_id, data)
    from common.trust.manifest import digest_of
    from tests.raw_calls import chunk

    with calling_as(owner) as calls:
        upload_id = calls.open(note).upload_id
        calls.put(chunk(upload_id, digest_of(data), index=0, data=data))
    (part,) = coordinator.home.incoming.glob("*/*.part")
    placed = coordinator.publication.object_path(digest_of(data))
    part.replace(placed)
    consortium.stop()
    settings = coordinator.home.settings_file
    with serving(coordinator.home.path):
        assert not placed.exists()
        assert part.exists()
        assert settings.exists()
        with calling_as(owner) as calls:
            assert calls.finish(upload_id)
    assert placed.exists()
    assert intake_reports(coordinator.publication, coordinator.registry.head())
