"""Rows of a release made more or less eager together, on text that everybody has: two numbers, nothing else is fitted.

Owners' rows are learned in pairs with the public row and first meet in a release. If they were all too reluctant there,
or all too sure, one shift and one scale for all rows would say so. A release is never changed like this: its rows are
what owners signed. It is here to measure what there would be to gain.
"""

from collections.abc import Callable, Sequence
from itertools import product
from typing import Final

import torch

from common.model import partition
from common.model.router_rows import PublicRouter
from common.model.transformer import CausalLM

SHIFTS: Final = (0.0, 0.5, 1.0)
"""Added to owners' logits, along the bias direction."""
SCALES: Final = (0.7, 1.0, 1.4)
"""What an owner's row differs by from the public row, times this."""


def shift_and_scale(model: CausalLM, router: PublicRouter, *, shift: float, scale: float) -> None:
    """Change the rows of all owners in place; the public row stays."""
    with torch.no_grad():
        for gate, direction_D in zip(model.routers, router.bias_directions, strict=True):
            public_D = gate.rows[partition.PUBLIC_EXPERT]
            for row_D in list(gate.rows)[partition.PUBLIC_EXPERT + 1 :]:
                row_D.copy_(public_D + scale * (row_D - public_D) + shift * direction_D.to(row_D.device))


def calibrate(
    load: Callable[[], CausalLM],
    router: PublicRouter,
    loss: Callable[[CausalLM], float],
    *,
    shifts: Sequence[float] = SHIFTS,
    scales: Sequence[float] = SCALES,
) -> tuple[CausalLM, float, float]:
    """The release with the shift and scale that are best by `loss`, and the two; as it is where nothing is better.

    Args:
        load: Makes the release afresh.
        router: The public model's rows and bias directions.
        loss: What is to be small, on text that everybody has.
        shifts: Tried with every scale.
        scales: Tried with every shift.
    """
    best, chosen = loss(load()), (0.0, 1.0)
    for shift, scale in product(shifts, scales):
        model = load()
        shift_and_scale(model, router, shift=shift, scale=scale)
        if (found := loss(model)) < best:
            best, chosen = found, (shift, scale)
    model = load()
    shift_and_scale(model, router, shift=chosen[0], scale=chosen[1])
    return model, *chosen
