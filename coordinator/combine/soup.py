"""Model soups: the average of dense models that started from one (arXiv 2203.05482), to measure releases against."""

import math
from collections.abc import Sequence

import torch

from common.errors import MalformedError
from common.model.transformer import CausalLM


def soup(models: Sequence[CausalLM], *, weights: Sequence[float] | None = None) -> CausalLM:
    """A model whose every parameter is the weighted mean of those of `models`.

    Args:
        models: Of one configuration, dense.
        weights: One a model, summing to 1; equal by default.

    Raises:
        MalformedError: there are none, they differ in shape, or the weights do not belong to them.
    """
    if not models or any(model.config != models[0].config for model in models):
        raise MalformedError("a soup needs models of one configuration; these differ, or there are none")
    shares = list(weights) if weights is not None else [1 / len(models)] * len(models)
    if len(shares) != len(models) or abs(math.fsum(shares) - 1) > 1e-6:
        raise MalformedError(f"{len(shares)} weights that sum to {math.fsum(shares):.6f} for {len(models)} models")
    states = [model.state_dict() for model in models]
    mean = CausalLM(models[0].config)
    with torch.no_grad():
        for name, parameter in mean.state_dict().items():
            # In float64, so that the mean of equal models is that model to the bit.
            total = sum(share * state[name].double() for share, state in zip(shares, states, strict=True))
            parameter.copy_(total)
    return mean


def likelihood_weights(bits_per_byte: Sequence[float], *, temperature: float) -> list[float]:
    """softmax(-loss / temperature) over models (arXiv 2507.07024, section A.1)."""
    return torch.softmax(-torch.tensor(bits_per_byte, dtype=torch.float64) / temperature, dim=0).tolist()
