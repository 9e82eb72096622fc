"""The bias of an expert's router rows, chosen where it counts: on held-out text of the owner and of the public.

Training cannot choose it. A batch holds far more of the owner's text than of others', so a bias that is trained says
"mine" too readily; and how much a wrong choice costs depends on the finished expert, which is not there while rows are
made. So once the expert is trained one number, added to the bias of every layer, is moved in steps from where it is as
long as held-out text is predicted better, half of it the owner's and half public. It folds into the rows as any bias
does (DECISIONS).
"""

from collections.abc import Callable
from typing import Final

import torch

from common.evaluate import Domain, score
from common.model.partition import OWNED_EXPERT
from common.model.transformer import CausalLM

STEP: Final = 0.5
"""In logits: of a step, e^0.5 = 1.6 times as likely to be chosen, or as much less."""
MOST: Final = 3.0
"""No bias is moved further."""
LEAST: Final = 1e-4
"""Bits per byte, of both texts together, that a step has to win."""


def choose_bias(
    model: CausalLM,
    own: Domain,
    public: Domain,
    *,
    batch_size: int,
    advance: Callable[[int], None] = lambda rows: None,
) -> float:
    """Move the biases of the two-expert `model` to where held-out text is predicted best; returns by how much.

    Args:
        model: The public expert and the owner's, whose rows have biases; on the device where it is to run.
        own: Held-out text of the owner.
        public: Held-out public text; both count the same, whatever there is of each.
        batch_size: Rows at a time.
        advance: Called with the number of rows just done; what it raises ends the search.

    Raises:
        JobFailedError: the model's likelihoods are not numbers.
    """
    biases = [router.biases[str(OWNED_EXPERT)] for router in model.routers]
    trained = [bias.item() for bias in biases]
    known: dict[float, float] = {}

    def loss(moved: float) -> float:
        if moved not in known:
            with torch.no_grad():
                for bias, start in zip(biases, trained, strict=True):
                    bias.fill_(start + moved)
            known[moved] = sum(
                score(model, text, batch_size=batch_size, advance=advance).bits_per_byte for text in (own, public)
            )
        return known[moved]

    best = 0.0
    for step in (STEP, -STEP):
        while abs(best + step) <= MOST and loss(best + step) < loss(best) - LEAST:
            best += step
    with torch.no_grad():
        for bias, start in zip(biases, trained, strict=True):
            bias.fill_(start + best)
    return best
