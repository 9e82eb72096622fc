"""From an owner's documents to the starting router row of its expert (arXiv 2507.07024, section 3.3.2).

The paper starts a row as the mean embedding of about 1,000 documents by an off-the-shelf embedder of the model's width.
Here the embedding is the public model's own: the hidden states that each layer's feed-forward sees, for the owner's
documents and for public ones. Their means are compared under the shared covariance, so that the row starts as an
estimate of how much likelier a hidden state is in the owner's text than in public text. Ratios against the same public
text compare across owners who never meet. Nothing but rows comes out.

Beside that (`ratio`), three starts are there to measure it against: `mean`, the paper's rows made of the public model's
own mean hidden states; `embedder`, the paper's rows as they are; and `random`. All but `ratio` need training.
"""

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Final, Literal

import torch
from torch import Tensor

from common.model import partition
from common.model.router_rows import Moments, PublicRouter, log_ratio_row, logistic_row, mean_row, measure
from common.model.transformer import CausalLM
from common.packing import Batch, PackedText, batches

RouterStart = Literal["ratio", "logistic", "mean", "random", "embedder"]

MakeRow = Callable[[Moments, Moments, Tensor, Tensor], Tensor]
"""From moments of own and of public text, the public row and the bias direction of a layer to the owner's row, [D]."""

_KEPT_STATES: Final = 32_768
"""Hidden states of each text that rows are fitted to, at most."""

_RANDOM_STD: Final = 0.02
"""Of the rows that start at random, as every other parameter of the model does."""


def row_maker(start: RouterStart, *, prior: float, seed: int, embedded_difference_D: Tensor | None = None) -> MakeRow:
    """The way to make rows that `start` names.

    Args:
        start: What the owner's rows start from.
        prior: How likely own text is taken to be, in (0, 1); for `ratio`.
        seed: Of what is drawn; for `random`.
        embedded_difference_D: How the owner's mean embedding differs from the public one; for `embedder`. Rows are the
            mean embeddings in the paper; probabilities only depend on how rows differ, so the difference added to the
            public row is the same router.
    """
    if start == "ratio":
        return lambda own, public, row_D, direction_D: log_ratio_row(own, public, row_D, direction_D, prior=prior)
    if start == "logistic":
        return lambda own, public, row_D, direction_D: logistic_row(own, public, row_D, direction_D, prior=prior)
    if start == "mean":
        return lambda own, public, row_D, direction_D: mean_row(own, public, row_D)
    if start == "random":
        generator = torch.Generator().manual_seed(seed)
        return lambda own, public, row_D, direction_D: (
            row_D + (torch.randn(len(row_D), generator=generator) * _RANDOM_STD).to(row_D.device)
        )
    if embedded_difference_D is None:
        raise ValueError("rows from an embedder need what it made of the texts")
    return lambda own, public, row_D, direction_D: row_D + embedded_difference_D.to(row_D.device)


def initialise_routers(
    model: CausalLM,
    public_model: CausalLM,
    router: PublicRouter,
    *,
    own: PackedText,
    public: PackedText,
    make_row: MakeRow,
    num_sequences: int,
    batch_size: int,
    device: torch.device | str,
) -> None:
    """Set the rows and bias directions of a two-expert `model` from hidden states of `public_model`.

    Args:
        model: What the owner trains.
        public_model: The dense public model it was made from.
        router: The public rows and bias directions, which every owner takes over unchanged.
        own: The owner's text.
        public: Public text.
        make_row: What the owner's rows start from (`row_maker`).
        num_sequences: How many sequences of each are measured.
        batch_size: How many at a time.
        device: Where both models are.
    """
    own_moments, public_moments = (
        measure(
            public_model,
            _sample(text, num_sequences, batch_size),
            device=device,
            keep_every=-(-min(num_sequences, text.num_sequences) * text.sequence_length // _KEPT_STATES),
        )
        for text in (own, public)
    )
    for layer, gate in enumerate(model.routers):
        row_D, direction_D = router.rows[layer].to(device), router.bias_directions[layer].to(device)
        gate.add_bias(partition.OWNED_EXPERT, direction_D)
        owned_D = make_row(own_moments[layer], public_moments[layer], row_D, direction_D)
        with torch.no_grad():
            gate.rows[partition.PUBLIC_EXPERT].copy_(row_D)
            gate.rows[partition.OWNED_EXPERT].copy_(owned_D)


def _sample(text: PackedText, num_sequences: int, batch_size: int) -> Iterable[Batch]:
    count = max(1, min(num_sequences, text.num_sequences) // batch_size)
    return (batch for batch, _ in islice(batches([text], shares=[1.0], batch_size=batch_size), count))
