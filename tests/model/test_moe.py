import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from common.model.config import ModelConfig
from common.model.moe import FeedForward, MixtureOfExperts
from common.model.transformer import initialise

CONFIG = ModelConfig(
    vocab_size=16,
    hidden_size=8,
    intermediate_size=12,
    num_hidden_layers=1,
    num_attention_heads=1,
    num_key_value_heads=1,
    max_position_embeddings=16,
)


def make(num_experts: int, num_experts_per_tok: int) -> MixtureOfExperts:
    layer = MixtureOfExperts(CONFIG.with_experts(num_experts, num_experts_per_tok), dtype=torch.float32)
    initialise(layer, seed=0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(20)
    return layer


def inputs() -> Tensor:
    return torch.randn(2, 50, 8, generator=torch.Generator().manual_seed(0))


def by_the_formula(layer: MixtureOfExperts, x_BTD: Tensor) -> Tensor:
    """The paper's sum, token by token."""
    y_BTD = torch.zeros_like(x_BTD)
    for place in torch.cartesian_prod(*(torch.arange(size) for size in x_BTD.shape[:2])).tolist():
        x = x_BTD[*place]
        probabilities = torch.stack([row @ x for row in layer.gate.rows]).softmax(dim=0)
        for expert in probabilities.argsort(descending=True)[: layer.num_experts_per_tok].tolist():
            y_BTD[*place] += probabilities[expert] * layer.experts[expert](x)
    return y_BTD


@pytest.mark.parametrize(("num_experts", "num_experts_per_tok"), [(1, 1), (2, 1), (2, 2), (5, 2), (5, 4), (5, 5)])
def test_output_and_gradients_are_those_of_the_formula(num_experts: int, num_experts_per_tok: int) -> None:
    layer, x, expected_x = make(num_experts, num_experts_per_tok), inputs().requires_grad_(), inputs().requires_grad_()
    y, expected = layer(x)[0], by_the_formula(layer, expected_x)
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)
    weights = torch.linspace(-1, 1, y.numel()).view_as(y)
    parameters = tuple(layer.parameters())
    gradients = torch.autograd.grad((y * weights).sum(), (x, *parameters))
    expected_gradients = torch.autograd.grad((expected * weights).sum(), (expected_x, *parameters))
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, atol=1e-4, rtol=1e-4)


def test_an_expert_is_computed_only_on_the_tokens_routed_to_it() -> None:
    layer = make(4, 2)
    seen: list[int] = []
    for expert in layer.experts:
        expert.register_forward_hook(lambda _module, args, _output: seen.append(len(args[0])))
    _, logits = layer(inputs())
    chosen = logits.flatten(0, 1).topk(2).indices.flatten()
    assert seen == torch.bincount(chosen, minlength=4).tolist()


def test_experts_nobody_chooses_are_left_out() -> None:
    layer = make(3, 1)
    with torch.no_grad():
        for expert, row in enumerate(layer.gate.rows):
            row.copy_(torch.full((8,), float(expert == 1)))
    x = inputs().abs()
    probabilities = layer(x)[1].softmax(dim=-1)
    torch.testing.assert_close(layer(x)[0], layer.experts[1](x) * probabilities[..., 1:2])


def test_one_expert_is_a_dense_feed_forward() -> None:
    layer = make(1, 1)
    dense = FeedForward(CONFIG, dtype=torch.float32)
    dense.load_state_dict(layer.experts[0].state_dict())
    torch.testing.assert_close(layer(inputs())[0], dense(inputs()))


def test_a_bias_shifts_only_its_own_logit_and_folds_into_the_row_exactly() -> None:
    layer, direction = make(2, 2), torch.randn(8, generator=torch.Generator().manual_seed(3))
    before = layer.gate(inputs().flatten(0, 1))
    layer.gate.add_bias(1, direction)
    assert torch.equal(layer.gate(inputs().flatten(0, 1)), before)
    with torch.no_grad():
        layer.gate.biases["1"].fill_(-0.7)
    after = layer.gate(inputs().flatten(0, 1))
    torch.testing.assert_close(after[:, 0], before[:, 0])
    torch.testing.assert_close(after[:, 1], before[:, 1] - 0.7 * (inputs().flatten(0, 1) @ direction))
    rows = torch.stack([layer.gate.effective_row(expert) for expert in range(2)])
    assert torch.equal(F.linear(inputs().flatten(0, 1), rows), after)


def test_a_bias_learns_along_its_direction_and_its_direction_does_not() -> None:
    layer = make(2, 2)
    layer.gate.add_bias(1, torch.ones(8))
    layer.gate(inputs().flatten(0, 1))[:, 1].sum().backward()
    torch.testing.assert_close(layer.gate.biases["1"].grad, inputs().sum())
    assert "bias_direction" not in layer.gate.state_dict()


def test_a_direction_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(7,\), not \(8,\)"):
        make(2, 2).gate.add_bias(1, torch.ones(7))
