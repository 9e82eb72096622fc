"""Soups and mixtures made of dense models."""

import pytest
import torch

from common.errors import MalformedError
from common.model import partition
from common.model.config import ModelConfig
from common.model.transformer import CausalLM
from coordinator.combine.soup import likelihood_weights, soup
from coordinator.combine.upcycle import upcycle


def _config(**changes: int) -> ModelConfig:
    sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 16, "eos_token_id": 0}
    return ModelConfig(**{**sizes, **heads, "rope_theta": 1e4, **changes})  # type: ignore[arg-type]


def _models(count: int) -> list[CausalLM]:
    return [CausalLM(_config(), seed=seed) for seed in range(count)]


def test_a_soup_is_the_weighted_mean_of_every_parameter() -> None:
    first, second = _models(2)
    mean = soup([first, second], weights=[0.25, 0.75])
    for name, parameter in mean.state_dict().items():
        expected = 0.25 * first.state_dict()[name] + 0.75 * second.state_dict()[name]
        torch.testing.assert_close(parameter, expected)


def test_a_soup_of_one_model_three_times_is_that_model_to_the_bit() -> None:
    model = _models(1)[0]
    for name, parameter in soup([model] * 3).state_dict().items():
        assert torch.equal(parameter, model.state_dict()[name])


def test_a_soup_needs_models_of_one_shape_and_weights_for_them() -> None:
    with pytest.raises(MalformedError, match="one configuration"):
        soup([CausalLM(_config()), CausalLM(_config(intermediate_size=32))])
    with pytest.raises(MalformedError, match="one configuration"):
        soup([])
    with pytest.raises(MalformedError, match=r"sum to 0\.9"):
        soup(_models(2), weights=[0.5, 0.4])


def test_likelier_models_weigh_more_and_a_low_temperature_leaves_one() -> None:
    weights = likelihood_weights([1.0, 1.2, 2.0], temperature=0.5)
    assert sum(weights) == pytest.approx(1)
    assert weights == sorted(weights, reverse=True)
    assert likelihood_weights([1.0, 1.2, 2.0], temperature=0.001)[0] == pytest.approx(1)


def test_an_upcycled_mixture_holds_every_feed_forward_and_the_mean_of_the_rest() -> None:
    models = _models(3)
    mixture = upcycle(models, num_experts_per_tok=2, seed=7)
    state, mean = mixture.state_dict(), soup(models).state_dict()
    assert mixture.config.num_experts == 3
    for expert, model in enumerate(models):
        ours = state[partition.feed_forward(1, expert, "up_proj")]
        assert torch.equal(ours, model.state_dict()[partition.dense_feed_forward(1, "up_proj")])
    for name in ("model.embed_tokens.weight", "lm_head.weight", "model.layers.0.self_attn.q_proj.weight"):
        assert torch.equal(state[name], mean[name])


def test_a_mixture_of_one_model_many_times_computes_what_the_model_does() -> None:
    model = _models(1)[0]
    ids = torch.arange(12).view(1, 12)
    mixture = upcycle([model] * 3, num_experts_per_tok=3, seed=0)
    torch.testing.assert_close(mixture(ids).logits_BTV, model(ids).logits_BTV, atol=1e-5, rtol=1e-4)
    with pytest.raises(MalformedError, match="experts already"):
        upcycle([mixture], num_experts_per_tok=1, seed=0)
