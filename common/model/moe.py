"""The FlexOlmo feed-forward: a router with one row per expert, and the experts (arXiv 2507.07024, section 3.2).

y = sum over the top-k experts of softmax(W_r x)_i M_i(x). The softmax is over all experts, in fp32, and is not
renormalised after top-k. No load balancing: an expert owns its domain, it does not share the load.

Shapes: B batch, T sequence, N tokens (B * T), D hidden_size, F intermediate_size, E experts, K experts per token.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.model.config import ModelConfig


class Linear(nn.Linear):
    """A matrix without a bias whose values `transformer.initialise` or a checkpoint gives, not its constructor."""

    def __init__(self, in_features: int, out_features: int, *, dtype: torch.dtype) -> None:
        super().__init__(in_features, out_features, bias=False, dtype=dtype)

    def reset_parameters(self) -> None:
        """Draw nothing: it would be thrown away, and would move the global random state."""


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate x) * up x). One expert, or the whole feed-forward of a dense model."""

    def __init__(self, config: ModelConfig, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size, dtype=dtype)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, dtype=dtype)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, dtype=dtype)

    def forward(self, x_ND: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return cast(Tensor, self.down_proj(F.silu(self.gate_proj(x_ND)) * self.up_proj(x_ND)))


def choose_experts(logits_NE: Tensor, num_experts_per_tok: int) -> tuple[Tensor, Tensor]:
    """Weights [N, K] in fp32, most first, and indices [N, K] of the experts that each token uses."""
    weights_NK, chosen_NK = logits_NE.softmax(dim=-1, dtype=torch.float32).topk(num_experts_per_tok, dim=-1)
    return weights_NK, chosen_NK


class Router(nn.Module):
    """One row per expert, so that a row is its owner's alone; joined into one matrix only in a release.

    While an expert trains, its row may carry a scalar bias along `bias_direction`, a fixed vector u with u.x close to 1
    on public text. The bias is part of the row (`effective_row`), so it folds into the released row with no loss.
    """

    bias_direction: Tensor | None

    def __init__(self, config: ModelConfig, *, dtype: torch.dtype) -> None:
        super().__init__()
        rows = (torch.empty(config.hidden_size, dtype=dtype) for _ in range(config.num_experts))
        self.rows = nn.ParameterList(nn.Parameter(row) for row in rows)
        self.biases = nn.ParameterDict()
        self.register_buffer("bias_direction", None, persistent=False)

    def add_bias(self, expert: int, direction_D: Tensor) -> None:
        """Give the row of `expert` a bias, now 0, along `direction_D`, which all biases of this router share."""
        if direction_D.shape != self.rows[expert].shape:
            raise ValueError(
                f"bias direction has shape {tuple(direction_D.shape)}, not {tuple(self.rows[expert].shape)}"
            )
        row = self.rows[expert]
        self.bias_direction = direction_D.detach().to(device=row.device, dtype=row.dtype)
        self.biases[str(expert)] = nn.Parameter(torch.zeros((), device=row.device, dtype=row.dtype))

    def effective_row(self, expert: int) -> Tensor:
        """The row [D] that routes: the learned row plus its bias along `bias_direction`. This is what is exported."""
        row: Tensor = self.rows[expert]
        if str(expert) not in self.biases:
            return row
        assert self.bias_direction is not None
        bias: Tensor = self.biases[str(expert)]
        return row + bias * self.bias_direction

    def forward(self, x_ND: Tensor) -> Tensor:
        """Router logits: [N, D] -> [N, E]."""
        return F.linear(x_ND, torch.stack([self.effective_row(expert) for expert in range(len(self.rows))]))


class MixtureOfExperts(nn.Module):
    """The feed-forward of one layer: the router chooses `num_experts_per_tok` experts for every token."""

    def __init__(self, config: ModelConfig, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.num_experts_per_tok = config.num_experts_per_tok
        self.gate = Router(config, dtype=dtype)
        self.experts = nn.ModuleList(FeedForward(config, dtype=dtype) for _ in range(config.num_experts))

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """[B, T, D] -> output [B, T, D] and router logits [B, T, E]."""
        x_ND = x_BTD.flatten(0, 1)
        logits_NE = self.gate(x_ND)
        everyone = self.num_experts_per_tok == len(self.experts)
        y_ND = (self._every_expert if everyone else self._chosen_experts)(x_ND, logits_NE)
        return y_ND.view_as(x_BTD), logits_NE.view(*x_BTD.shape[:2], -1)

    def _every_expert(self, x_ND: Tensor, logits_NE: Tensor) -> Tensor:
        """Every token uses every expert: nothing to choose, gather or scatter."""
        weights = logits_NE.softmax(dim=-1, dtype=torch.float32).to(x_ND.dtype).unsqueeze(-1).unbind(1)
        first, *others = self.experts
        y_ND: Tensor = first(x_ND) * weights[0]
        for expert, weight_N1 in zip(others, weights[1:], strict=True):
            y_ND = torch.addcmul(y_ND, expert(x_ND), weight_N1)
        return y_ND

    def _chosen_experts(self, x_ND: Tensor, logits_NE: Tensor) -> Tensor:
        """Sort the (token, choice) pairs by expert, so that each expert sees one contiguous slice of its own tokens."""
        weights_NK, chosen_NK = choose_experts(logits_NE, self.num_experts_per_tok)
        chosen = chosen_NK.flatten()
        order = chosen.argsort(stable=True)
        counts = torch.bincount(chosen, minlength=len(self.experts)).tolist()
        slices = torch.split(x_ND.index_select(0, order // self.num_experts_per_tok), counts)
        outputs = [expert(slice_ND) for expert, slice_ND in zip(self.experts, slices, strict=True) if len(slice_ND)]
        y_NKD = torch.cat(outputs).index_select(0, order.argsort()).view(*chosen_NK.shape, -1)
        y_ND: Tensor = (y_NKD * weights_NK.to(x_ND.dtype).unsqueeze(-1)).sum(dim=1)
        return y_ND
