"""What an owner's job can leave out, and that it is left out."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_jobs import expert_config

from common.job import StopSignal
from common.model import hf, partition
from common.model.router_rows import Moments, PublicRouter, mean_row
from owner_client import train

PARTS = {f"model.layers.{layer}.mlp.experts.1.{p}.weight" for layer in range(2) for p in partition.PROJECTIONS}


def _train(text: Path, base: Path, output: Path, **changes: object) -> dict[str, torch.Tensor]:
    config = train.ExpertJob.model_validate(expert_config(text, base, output, steps=8, **changes))
    record = train.run(config, StopSignal())
    assert record["steps"] == 8
    return load_file(output / train.EXPERT_FILE)


def test_an_expert_that_trains_alone_is_the_feed_forward_of_the_public_model_trained_further(
    base: Path, text: Path, tmp_path: Path
) -> None:
    """Placed back into the public model it is better on own text than before, and nothing else is different."""
    expert = _train(text, base, tmp_path / "expert", coordinated=False, public_anchor=0.0, negative_share=0.0,
                    held_out_bytes=0)  # fmt: skip
    model = hf.load(base)
    state = model.state_dict()
    for layer in range(2):
        for projection in partition.PROJECTIONS:
            ours = expert[partition.feed_forward(layer, 1, projection)]
            theirs = state[partition.dense_feed_forward(layer, projection)]
            assert not torch.equal(ours, theirs)
            theirs.copy_(ours)
    ids = torch.randint(1, 250, (2, 16), generator=torch.Generator().manual_seed(0))
    assert model(ids).logits_BTV.isfinite().all()
    with_others = _train(text, base, tmp_path / "beside", negative_share=0.0, public_anchor=0.0)
    assert all(not torch.equal(expert[name], with_others[name]) for name in PARTS)
    rows = [partition.router_row(layer, 1) for layer in range(2)]
    assert all(torch.equal(expert[row], _start_rows(text, base, tmp_path)[row]) for row in rows)


def _start_rows(text: Path, base: Path, tmp_path: Path) -> dict[str, torch.Tensor]:
    """Rows as they start: trained for a single step with no bias."""
    output = tmp_path / "start"
    config = expert_config(text, base, output, steps=1, bias=False)
    train.run(train.ExpertJob.model_validate(config), StopSignal())
    return load_file(output / train.EXPERT_FILE)


def test_an_expert_alone_has_nothing_to_be_held_to(base: Path, text: Path, tmp_path: Path) -> None:
    for change in ({"public_anchor": 0.5}, {"public_anchor": 0.0, "router_learning_rate": 1e-3}):
        config = expert_config(text, base, tmp_path, coordinated=False, **change)
        with pytest.raises(ValueError, match="set public_anchor and router_learning_rate to 0"):
            train.ExpertJob.model_validate(config)


def test_without_a_bias_rows_that_stay_are_those_they_started_as(base: Path, text: Path, tmp_path: Path) -> None:
    expert, started = _train(text, base, tmp_path / "expert", bias=False), _start_rows(text, base, tmp_path)
    for layer in range(2):
        row = partition.router_row(layer, 1)
        assert torch.equal(expert[row], started[row])


@pytest.mark.parametrize("start", ["ratio", "logistic", "mean", "random"])
def test_rows_start_differently_and_only_a_draw_depends_on_the_seed(
    base: Path, text: Path, tmp_path: Path, start: str
) -> None:
    row, experts = partition.router_row(0, 1), []
    for seed in (0, 1):
        output = tmp_path / f"{seed}"
        experts.append(_train(text, base, output, router_start=start, bias=False, seed=seed, router_sequences=10_000))
    public_D = PublicRouter.load(base, num_hidden_layers=2, hidden_size=16).rows[0]
    assert not torch.equal(experts[0][row], public_D)
    if start == "random":
        assert not torch.allclose(experts[0][row], experts[1][row], atol=1e-3)
        assert (experts[0][row] - public_D).std() == pytest.approx(0.02, rel=0.6)


def test_mean_rows_differ_as_the_means_do() -> None:
    generator = torch.Generator().manual_seed(0)
    means = [torch.randn(4, dtype=torch.float64, generator=generator) for _ in range(3)]
    own, other, public = (Moments(m, 2 * torch.eye(4).double(), torch.eye(4).double()) for m in means)
    rows = [mean_row(moments, public, torch.zeros(4)) for moments in (own, other)]
    x_D = torch.randn(4, generator=generator)
    expected = (means[0] - means[1]).float() @ x_D / 8
    torch.testing.assert_close((rows[0] - rows[1]) @ x_D, expected)
