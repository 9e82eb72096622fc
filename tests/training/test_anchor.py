"""The distance to the public expert: zero where both agree, blind to the owner's own rows, felt by the owner alone."""

from pathlib import Path

import pytest
import torch
from small_jobs import expert_config

from common.loss import TensorBatch
from common.model import hf
from common.model.transformer import CausalLM
from owner_client import train
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


def test_over_a_run_the_distance_weighs_the_same_however_public_rows_fall(base: Path, text: Path) -> None:
    """One of four rows public in every batch, or all four in one batch of four: the same in sum."""
    sums = []
    for rows in ([[1, 0, 0, 0]] * 4, [[1, 1, 1, 1], *([[0, 0, 0, 0]] * 3)]):
        losses = [_anchored(base, text, sources) for sources in rows]
        sums.append(sum(losses))
    assert sums[0] == pytest.approx(sums[1], rel=1e-5)
    assert sums[0] > 0.01


def _anchored(base: Path, text: Path, sources: list[int]) -> float:
    """What the distance adds to the loss of a batch of four equal rows, of which these are public."""
    model, totals = hf.two_expert(hf.load(base)), []
    _disturb(model)
    anchor = PublicAnchor(model)
    ids_BT = torch.arange(8).repeat(4, 1)
    batch = TensorBatch(ids_BT, ids_BT, torch.zeros_like(ids_BT), torch.zeros_like(ids_BT), torch.tensor(sources))
    output = model(ids_BT)
    for weight in (0.0, 0.5):
        options = {"negative_share": 0.25, "public_anchor": weight}
        config = train.ExpertJob.model_validate(expert_config(text, base, base / "expert", **options))
        totals.append(float(train.expert_loss(output, batch, config=config, anchor=anchor).total.detach()))
    return totals[1] - totals[0]
