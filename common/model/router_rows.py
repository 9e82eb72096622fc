"""Directions in the space a router sees, from moments of hidden states: what public text looks like, and what sets text
apart from it.

A router logit is linear in the feed-forward's input x, which has no constant coordinate. `bias_direction` makes one: u
with u.x close to 1 on public text. The public expert's row is that same u, so its logit is close to 1 everywhere, and
every other expert's logit is read against it. Statistics are accumulated in float64.

Shapes: N tokens, D hidden_size, L layers.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from common.errors import MalformedError
from common.model import partition
from common.model.transformer import CausalLM, stretches
from common.packing import Batch

ROUTER_FILE: Final = "router.safetensors"
"""In the public model's directory: for each layer the public expert's row and the bias direction."""

_RIDGE: Final = 1e-3
"""Added to the diagonal of second moments, as a share of its mean: directions seen too little stay small."""

RATIO_RIDGE: Final = 0.03
"""Likewise for a log density ratio. More than its fit asks for: in a release a row sees hidden states that experts of
other owners made, and one that leans on directions of little variance takes those for its own."""

LOGISTIC_PENALTY: Final = 1e-3
"""Likewise for a fitted ratio: on the square of its weights, in units of the mean variance of a coordinate."""

_NEWTON_STEPS: Final = 12
_LEAST_CURVATURE: Final = 1e-4
"""Of a token that is told apart already: a step that is too long overshoots."""


@dataclass(frozen=True, slots=True)
class Moments:
    """Moments of hidden states at one layer, float64.

    `mean_D`, `second_DD` = E[x x^T], and `within_DD`, the covariance around the mean of each stretch of one document
    within one sequence: how tokens differ while the document does not.
    """

    mean_D: Tensor
    second_DD: Tensor
    within_DD: Tensor
    sample_ND: Tensor = field(default_factory=lambda: torch.empty(0, 0))
    """Some of the hidden states themselves, as evenly spread as can be; none unless asked for."""


@dataclass(frozen=True, slots=True)
class PublicRouter:
    """What every owner reads and none changes: each layer's public row and bias direction, both [D]."""

    rows: tuple[Tensor, ...]
    bias_directions: tuple[Tensor, ...]

    def save(self, directory: Path) -> None:
        """Write `router.safetensors`."""
        save_file({name: tensor.contiguous() for name, tensor in self._named().items()}, directory / ROUTER_FILE)

    @classmethod
    def load(cls, directory: Path, *, num_hidden_layers: int, hidden_size: int) -> Self:
        """Read `router.safetensors`; MalformedError when it is missing or does not fit the model."""
        path = directory / ROUTER_FILE
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise MalformedError(f"{path}: cannot be read ({error}); is this a public model's directory?") from error
        names = [(partition.router_row(i, 0), partition.bias_direction(i)) for i in range(num_hidden_layers)]
        if tensors.keys() != {name for pair in names for name in pair}:
            raise MalformedError(f"{path}: does not hold one row and one bias direction for {num_hidden_layers} layers")
        if wrong := next((name for name, tensor in tensors.items() if tensor.shape != (hidden_size,)), None):
            raise MalformedError(f"{path}: {wrong} has shape {tuple(tensors[wrong].shape)}, not ({hidden_size},)")
        return cls(tuple(tensors[row] for row, _ in names), tuple(tensors[direction] for _, direction in names))

    def _named(self) -> dict[str, Tensor]:
        rows = {partition.router_row(i, partition.PUBLIC_EXPERT): row for i, row in enumerate(self.rows)}
        return rows | {
            partition.bias_direction(i): direction.clone() for i, direction in enumerate(self.bias_directions)
        }


@torch.inference_mode()
def measure(
    model: CausalLM, batches: Iterable[Batch], *, device: torch.device | str, keep_every: int = 0
) -> tuple[Moments, ...]:
    """Moments of what each layer's feed-forward sees over `batches`, one a layer.

    Args:
        model: Dense.
        batches: What it reads.
        device: Where it is.
        keep_every: One hidden state in so many is kept as it is; none at 0.

    Raises:
        ValueError: there are no batches.
    """
    num_tokens = num_stretches = 0
    totals: list[list[Tensor]] = []
    kept: list[list[Tensor]] = [[] for _ in range(model.config.num_hidden_layers)]
    for batch in batches:
        input_ids_BT = torch.from_numpy(batch.input_ids_BT).to(device)
        document_ids_BT = torch.from_numpy(batch.document_ids_BT).to(device)
        stretches_N = stretches(document_ids_BT).flatten()
        inputs = model.feed_forward_inputs(input_ids_BT, document_ids_BT=document_ids_BT)
        sums = [_sums(x_BTD.flatten(0, 1).double(), stretches_N) for x_BTD in inputs]
        totals = (
            [[a + b for a, b in zip(*both, strict=True)] for both in zip(totals, sums, strict=True)] if totals else sums
        )
        for states, x_BTD in zip(kept, inputs, strict=True):
            states.append(_thinned(x_BTD.flatten(0, 1), keep_every, begin=num_tokens))
        num_tokens += len(stretches_N)
        num_stretches += int(stretches_N[-1]) + 1
    if not num_tokens:
        raise ValueError("no batches to measure")
    free = max(1, num_tokens - num_stretches)
    return tuple(
        Moments(first / num_tokens, second / num_tokens, within / free, torch.cat(states))
        for (first, second, within), states in zip(totals, kept, strict=True)
    )


def _thinned(x_ND: Tensor, keep_every: int, *, begin: int) -> Tensor:
    """One row in `keep_every`, counted over all batches, as float32; no row at 0."""
    return x_ND[-begin % keep_every :: keep_every].float().clone() if keep_every else x_ND[:0].float()


def _sums(x_ND: Tensor, stretches_N: Tensor) -> list[Tensor]:
    """Sums over hidden states: of x [D], of x x^T [D, D], and of that once each stretch's mean is taken off x."""
    sums_SD = x_ND.new_zeros(int(stretches_N[-1]) + 1, x_ND.shape[1]).index_add_(0, stretches_N, x_ND)
    means_SD = sums_SD / torch.bincount(stretches_N).unsqueeze(1)
    around_ND = x_ND - means_SD[stretches_N]
    return [sums_SD.sum(dim=0), x_ND.T @ x_ND, around_ND.T @ around_ND]


def public_router(moments: tuple[Moments, ...]) -> PublicRouter:
    """The public row and bias direction of each layer: u minimises E[(u.x - 1)^2] over public text, with a ridge."""
    directions = tuple(_solve(each.second_DD, each.mean_D).float() for each in moments)
    return PublicRouter(rows=directions, bias_directions=directions)


def log_ratio_row(
    own: Moments,
    public: Moments,
    router_row_D: Tensor,
    bias_direction_D: Tensor,
    *,
    prior: float = 0.5,
    ridge: float = RATIO_RIDGE,
) -> Tensor:
    """A row [D] whose logit exceeds the public row's by an estimate of log p(own | x) / p(public | x).

    Both are taken as Gaussian with a shared covariance (linear discriminant analysis), so the ratio is linear in x; its
    constant, and the log odds of `prior` (how likely own text is before x is seen), act along the bias direction. The
    covariance is that within documents: how documents differ is what a row should see, not noise to be divided by.
    """
    w_D = _solve((own.within_DD + public.within_DD) / 2, own.mean_D - public.mean_D, ridge=ridge)
    constant = math.log(prior / (1 - prior)) - 0.5 * torch.dot(own.mean_D + public.mean_D, w_D)
    return (router_row_D.double() + w_D + constant * bias_direction_D.double()).float()


def logistic_row(
    own: Moments,
    public: Moments,
    router_row_D: Tensor,
    bias_direction_D: Tensor,
    *,
    prior: float = 0.5,
    penalty: float = LOGISTIC_PENALTY,
) -> Tensor:
    """As `log_ratio_row`, but the ratio is fitted, by logistic regression on hidden states of both texts.

    Nothing is taken to be Gaussian, so the ratio is as sure as it is right: a token's context is the same for many
    tokens, and a density counts each of them. Both texts weigh the same, whatever there is of each. The constant needs
    no column of its own, since the bias direction is one of x's.

    Raises:
        ValueError: hidden states were not kept of both texts.
    """
    if not len(own.sample_ND) or not len(public.sample_ND):
        raise ValueError("a logistic row needs hidden states of both texts; measure with keep_every")
    x_ND = torch.cat([own.sample_ND, public.sample_ND]).double()
    is_own_N = torch.zeros(len(x_ND), dtype=torch.float64, device=x_ND.device)
    is_own_N[: len(own.sample_ND)] = 1
    weights_N = torch.where(is_own_N == 1, 0.5 / len(own.sample_ND), 0.5 / len(public.sample_ND)).double()
    w_D = _logistic(x_ND, is_own_N, weights_N, penalty=penalty)
    return (router_row_D.double() + w_D + math.log(prior / (1 - prior)) * bias_direction_D.double()).float()


def _logistic(x_ND: Tensor, is_one_N: Tensor, weights_N: Tensor, *, penalty: float) -> Tensor:
    """The w that minimises weighted log loss of sigmoid(w.x) plus `penalty` times |w|^2 of unit variance, by Newton."""
    scale = ((x_ND - x_ND.mean(dim=0)).square().mean()).item()
    penalty_DD = penalty * scale * torch.eye(x_ND.shape[1], dtype=x_ND.dtype, device=x_ND.device)
    w_D = x_ND.new_zeros(x_ND.shape[1])
    for _ in range(_NEWTON_STEPS):
        p_N = torch.sigmoid(x_ND @ w_D)
        gradient_D = x_ND.T @ (weights_N * (p_N - is_one_N)) + penalty_DD @ w_D
        curvature_N = weights_N * (p_N * (1 - p_N)).clamp(min=_LEAST_CURVATURE)
        step_D = torch.linalg.solve((x_ND * curvature_N.unsqueeze(1)).T @ x_ND + penalty_DD, gradient_D)
        w_D = w_D - step_D
    return w_D


def mean_row(own: Moments, public: Moments, router_row_D: Tensor) -> Tensor:
    """A row [D] that compares mean hidden states as the paper's rows do (arXiv 2507.07024, section 3.3.2).

    There the rows are the means themselves. Probabilities only depend on how rows differ, so the difference of the
    means stands on the public row here; it is divided by the mean square norm of public hidden states, which makes the
    logit of a state and its own mean about 1.
    """
    scale = public.second_DD.diagonal().sum()
    return (router_row_D.double() + (own.mean_D - public.mean_D) / scale).float()


def _solve(matrix_DD: Tensor, vector_D: Tensor, *, ridge: float = _RIDGE) -> Tensor:
    least = ridge * matrix_DD.diagonal().mean() + torch.finfo(torch.float32).tiny
    solved: Tensor = torch.linalg.solve(
        matrix_DD + least * torch.eye(len(vector_D), dtype=matrix_DD.dtype).to(matrix_DD.device), vector_D
    )
    return solved
