"""What training minimises: cross-entropy with z-losses on logits and router logits (arXiv 2507.07024, section 3.3.1).

Shapes: B batch, T sequence, V vocab_size, E experts.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from common.model.transformer import ModelOutput
from common.packing import Batch


@dataclass(frozen=True, slots=True)
class TensorBatch:
    """`common.data.Batch` on the device."""

    input_ids_BT: Tensor
    targets_BT: Tensor
    document_ids_BT: Tensor
    part_ids_BT: Tensor
    sources_B: Tensor

    @classmethod
    def place(cls, batch: Batch, device: torch.device | str) -> "TensorBatch":
        """Copy a batch to `device`."""
        ids = (batch.document_ids_BT, batch.part_ids_BT, batch.sources_B)
        arrays = (batch.input_ids_BT, batch.targets_BT, *ids)
        return cls(*(torch.from_numpy(array).to(device, non_blocking=True) for array in arrays))


@dataclass(frozen=True, slots=True)
class Loss:
    """`total` is what is minimised; `cross_entropy` (nats a token) is what is reported."""

    total: Tensor
    cross_entropy: Tensor


LossFunction = Callable[[ModelOutput, TensorBatch], Loss]


class _TokenLosses(torch.autograd.Function):
    """Cross-entropy and log-partition of each token, with one pass over the vocabulary backwards instead of three."""

    @staticmethod
    def forward(ctx: FunctionCtx, logits_BTV: Tensor, targets_BT: Tensor) -> tuple[Tensor, Tensor]:
        partition_BT = logits_BTV.logsumexp(dim=-1)
        ctx.save_for_backward(logits_BTV, partition_BT, targets_BT)
        return partition_BT - logits_BTV.gather(-1, targets_BT.unsqueeze(-1)).squeeze(-1), partition_BT

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None]:
        logits_BTV, partition_BT, targets_BT = ctx.saved_tensors  # type: ignore[attr-defined]
        of_cross_entropy_BT, of_partition_BT = gradients
        probabilities_BTV = (logits_BTV - partition_BT.unsqueeze(-1)).exp_()
        gradient_BTV = probabilities_BTV.mul_((of_cross_entropy_BT + of_partition_BT).unsqueeze(-1))
        return gradient_BTV.scatter_add_(-1, targets_BT.unsqueeze(-1), -of_cross_entropy_BT.unsqueeze(-1)), None


def language_loss(output: ModelOutput, batch: TensorBatch, *, z_loss: float, router_z_loss: float) -> Loss:
    """Mean cross-entropy, plus `z_loss` times the mean squared log-partition of logits, likewise of router logits."""
    losses: tuple[Tensor, Tensor] = _TokenLosses.apply(output.logits_BTV.float(), batch.targets_BT)  # type: ignore[no-untyped-call]
    cross_entropy_BT, partition_BT = losses
    cross_entropy = cross_entropy_BT.mean()
    total = cross_entropy + z_loss * partition_BT.square().mean()
    if output.router_logits:
        squares = [logits_BTE.float().logsumexp(dim=-1).square().mean() for logits_BTE in output.router_logits]
        total = total + router_z_loss * torch.stack(squares).mean()
    return Loss(total, cross_entropy.detach())
