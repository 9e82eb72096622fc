"""Routing that training leaves as it was, on text that the routers are right about already.

Rows that are trained on proxies and mixed documents get better where owners' experts are missed, and take whole public
documents from experts whose rows stay. A divergence from the routing before training, on public text alone, keeps what
was learned there and lets rows learn the rest at higher rates.

Shapes: B batch, H of its rows that are held, T sequence, N tokens (B * T), D hidden_size, E experts.
"""

from functools import partial
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from common.loss import TensorBatch
from common.model.moe import Router
from common.model.transformer import CausalLM, ModelOutput


class HeldRouting:
    """What it costs to route a text unlike the rows did that `model` has now.

    Make it before a checkpoint puts later rows into the model: what is held to is where training started.
    """

    def __init__(self, model: CausalLM, *, source: int, share: float) -> None:
        """Take the rows of `model` as what is held to.

        Args:
            model: A model with routers; what they see is kept from now on while gradients are computed.
            source: Index of the text among a batch's sources.
            share: Of all sequences that are of this text.
        """
        self._source, self._share = source, share
        self._rows: Final = [torch.stack(list(router.rows)).detach().clone() for router in model.routers]
        self._seen_ND: dict[int, Tensor] = {}
        for layer, router in enumerate(model.routers):
            router.register_forward_pre_hook(partial(self._keep, layer))

    def divergence(self, output: ModelOutput, batch: TensorBatch) -> Tensor:
        """Kullback-Leibler divergence of the routing from what the first rows say of the same inputs, in nats: the mean
        over layers and tokens of the text. A batch that happens to hold more of it counts for more, so that each
        sequence counts the same."""
        held_H = (batch.sources_B == self._source).nonzero().flatten()
        rows = [self._of_layer(layer, logits_BTE, held_H) for layer, logits_BTE in enumerate(output.router_logits)]
        self._seen_ND.clear()
        return torch.stack(rows).mean() / (len(batch.sources_B) * self._share)

    def _keep(self, layer: int, router: Router, inputs: tuple[Tensor]) -> None:
        if torch.is_grad_enabled():
            self._seen_ND[layer] = inputs[0].detach()

    def _of_layer(self, layer: int, logits_BTE: Tensor, held_H: Tensor) -> Tensor:
        """Sum over held rows of the mean over their tokens."""
        seen_HTD = self._seen_ND[layer].view(*logits_BTE.shape[:2], -1)[held_H]
        then_HTE = F.linear(seen_HTD, self._rows[layer].to(seen_HTD.dtype)).float().log_softmax(dim=-1)
        now_HTE = logits_BTE[held_H].float().log_softmax(dim=-1)
        return F.kl_div(now_HTE, then_HTE, log_target=True, reduction="none").sum(dim=-1).mean(dim=-1).sum()
