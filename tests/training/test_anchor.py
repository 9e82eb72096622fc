"""The distance to the public expert: zero where both agree, blind to the owner's own rows, felt by the owner alone."""

from pathlib import Path

import pytest
import torch

from common.model import hf
from common.model.transformer import CausalLM
from owner_client.anchor import PublicAnchor


@pytest.fixture
def model(base: Path) -> CausalLM:
    return hf.two_expert(hf.load(base))


def _run(model: CausalLM) -> None:
    model(torch.arange(24).view(3, 8))


def _disturb(model: CausalLM) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".mlp.experts.1." in name:
                parameter.mul_(1.5)


def test_two_copies_of_one_expert_are_at_no_distance(model: CausalLM) -> None:
    anchor = PublicAnchor(model)
    _run(model)
    assert float(anchor.distance(torch.tensor([True, True, False])).detach()) == 0


def test_the_distance_is_in_units_of_the_public_output(model: CausalLM) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("experts.1.down_proj.weight"):
                parameter.mul_(3.0)
    anchor = PublicAnchor(model)
    _run(model)
    assert float(anchor.distance(torch.ones(3, dtype=torch.bool)).detach()) == pytest.approx(4.0, rel=1e-5)


def test_only_public_rows_count(model: CausalLM) -> None:
    _disturb(model)
    anchor = PublicAnchor(model)
    _run(model)
    assert float(anchor.distance(torch.zeros(3, dtype=torch.bool))) == 0
    of_one, of_other = (anchor.distance(torch.arange(3) == row).detach() for row in (0, 1))
    assert of_one > 0
    assert of_one != of_other


def test_the_public_expert_feels_nothing(model: CausalLM) -> None:
    _disturb(model)
    anchor = PublicAnchor(model)
    model.requires_grad_(True)
    _run(model)
    anchor.distance(torch.ones(3, dtype=torch.bool)).backward()
    last = len(model.routers) - 1
    named = dict(model.named_parameters())
    assert named[f"model.layers.{last}.mlp.experts.1.down_proj.weight"].grad is not None
    assert named[f"model.layers.{last}.mlp.experts.0.down_proj.weight"].grad is None
