"""The bias of an expert's router rows, chosen where it counts: on held-out text of the owner and of the public.

Training cannot choose it. A batch holds far more of the owner's text than of others', so a bias that is trained says
"mine" too readily; and how much a wrong choice costs depends on the finished expert, which is not there while rows are
made. So once the expert is trained the biases of all layers are moved together, in steps, as long as held-out text is
predicted better, most of it public: it stands for everybody else's. They stay at most 0, as in training: an expert may
be made more reluctant than its rows are, never more eager, whatever is best beside the public expert alone; in a
release others are there, whom more eager rows would cost. A bias folds into its row (DECISIONS).
"""

from collections.abc import Callable
from typing import Final

import torch

from common.evaluate import Domain, score
from common.model.partition import OWNED_EXPERT
from common.model.transformer import CausalLM

MOST_EAGER: Final = 0.0
"""No bias is above it, in training or after (arXiv 2507.07024, section 3.3.2)."""
STEP: Final = 0.5
"""In logits: of a step, e^0.5 = 1.6 times as likely to be chosen, or as much less."""
MOST: Final = 3.0
"""Biases are moved no further."""
LEAST: Final = 2e-4
"""Bits per byte, on average over both texts, that a step has to win: less is hardly told from chance (DECISIONS)."""


def choose_bias(
    model: CausalLM,
    own: Domain,
    public: Domain,
    *,
    public_share: float,
    batch_size: int,
    advance: Callable[[int], None] = lambda rows: None,
) -> None:
    """Move the biases of the two-expert `model` to where held-out text is predicted best.

    Args:
        model: The public expert and the owner's, whose rows have biases; on the device where it is to run.
        own: Held-out text of the owner.
        public: Held-out public text.
        public_share: Weight of its bits per byte, whatever there is of each; the rest is the owner's.
        batch_size: Rows at a time.
        advance: Called with the number of rows just done; what it raises ends the search.

    Raises:
        JobFailedError: the model's likelihoods are not numbers.
    """
    biases = [router.biases[str(OWNED_EXPERT)] for router in model.routers]
    trained = [bias.item() for bias in biases]
    losses: dict[float, float] = {}

    def move(by: float) -> None:
        with torch.no_grad():
            for bias, start in zip(biases, trained, strict=True):
                bias.fill_(min(MOST_EAGER, start + by))

    def loss(by: float) -> float:
        if by not in losses:
            move(by)
            losses[by] = sum(
                share * score(model, text, batch_size=batch_size, advance=advance).bits_per_byte
                for text, share in ((own, 1 - public_share), (public, public_share))
            )
        return losses[by]

    best = 0.0
    for step in (STEP, -STEP):
        while abs(best + step) <= MOST and loss(best + step) < loss(best) - LEAST:
            best += step
    move(best)
