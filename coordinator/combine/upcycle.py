"""Mixtures of experts made from dense models, to be trained further and measured against releases.

BTX (arXiv 2403.07816): feed-forwards of dense experts side by side, everything else averaged, routers new; then trained
on public text. An unrestricted mixture starts from one dense model's feed-forward many times and sees everybody's text.

Shapes: D hidden_size.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from common.errors import MalformedError
from common.model import partition
from common.model.transformer import CausalLM
from coordinator.combine.soup import soup


def upcycle(models: Sequence[CausalLM], *, num_experts_per_tok: int, seed: int) -> CausalLM:
    """A mixture whose expert `i` is the feed-forward of `models[i]`; the rest is their mean, router rows are drawn.

    Raises:
        MalformedError: they are not dense models of one configuration.
    """
    if any(model.config.num_experts for model in models):
        raise MalformedError("a mixture is made of dense models; one of these has experts already")
    shared: dict[str, Tensor] = dict(soup(models).state_dict())
    config = models[0].config.with_experts(len(models), num_experts_per_tok)
    mixture = CausalLM(config, seed=seed)  # draws the rows
    state = mixture.state_dict()
    with torch.no_grad():
        for name, parameter in state.items():
            if partition.owner_of(name) == "shared":
                parameter.copy_(shared[name])
        for layer in range(config.num_hidden_layers):
            for expert, model in enumerate(models):
                dense = model.state_dict()
                for projection in partition.PROJECTIONS:
                    state[partition.feed_forward(layer, expert, projection)].copy_(
                        dense[partition.dense_feed_forward(layer, projection)]
                    )
    return mixture
