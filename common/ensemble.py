"""Ensembles of models that answer side by side, each document weighing them by how well they know it.

Branch-train-merge (arXiv 2208.03306; baseline of arXiv 2507.07024, section A.1): the probability of a token is the mean
of the models' probabilities, weighted by softmax(-loss / temperature) of the document, over the `top_k` best models.
The loss of the whole document knows the very text that is to be predicted; that of what was read so far does not, as in
the first paper, and as it is when a model writes. Routing by document is the case of one model, chosen by a classifier
instead.

Shapes: M models, W rows of windows, T sequence_length, F documents, N scored tokens.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from common.evaluate import Domain

Nats = NDArray[np.float64]
"""Negative log-likelihood of every position of a domain's windows [W, T]; 0 where there is nothing to predict."""


def document_losses(domain: Domain, nats_MWT: Sequence[Nats]) -> NDArray[np.float64]:
    """Mean loss of each model on each document, in nats a token: [M, F]."""
    documents_N, scored_WT = _documents(domain)
    counts_F = np.bincount(documents_N, minlength=domain.num_documents)
    sums = [np.bincount(documents_N, nats[scored_WT], minlength=domain.num_documents) for nats in nats_MWT]
    return np.stack(sums) / np.maximum(counts_F, 1)


def losses_so_far(domain: Domain, nats_MWT: Sequence[Nats]) -> NDArray[np.float64]:
    """Mean loss of each model on what a document has before each scored token, in nats a token: [M, N].

    It is 0 at a document's first token.
    """
    documents_N, scored_WT = _documents(domain)
    # A document's windows are numbered in the order of its text, and each lies in one row.
    order_N = np.lexsort((domain.windows.document_ids_WT[scored_WT], documents_N))
    nats_MN = np.stack([nats[scored_WT] for nats in nats_MWT])[:, order_N]
    counts_F = np.bincount(documents_N, minlength=domain.num_documents)
    first_N = np.repeat(counts_F.cumsum() - counts_F, counts_F)
    before_MN = nats_MN.cumsum(axis=1) - nats_MN
    means_MN = (before_MN - before_MN[:, first_N]) / np.maximum(np.arange(len(order_N)) - first_N, 1)
    losses_MN: NDArray[np.float64] = np.empty_like(means_MN)
    losses_MN[:, order_N] = means_MN
    return losses_MN


def weigh(losses_MF: NDArray[np.float64], *, temperature: float, top_k: int) -> NDArray[np.float64]:
    """Weights [M, F] of the models for each document: softmax(-loss / temperature) over its `top_k` best; others 0.

    Likewise [M, N] for each token.

    Raises:
        ValueError: `top_k` is not between 1 and M, or `temperature` is not above 0.
    """
    if not 1 <= top_k <= len(losses_MF) or temperature <= 0:
        raise ValueError(f"top_k {top_k} of {len(losses_MF)} models at temperature {temperature}")
    ranks_MF = losses_MF.argsort(axis=0, kind="stable").argsort(axis=0, kind="stable")
    best_F = losses_MF.min(axis=0)
    weights_MF = np.where(ranks_MF < top_k, np.exp((best_F - losses_MF) / temperature), 0.0)
    return np.asarray(weights_MF / weights_MF.sum(axis=0))


def mixture_bits_per_byte(domain: Domain, nats_MWT: Sequence[Nats], weights_MF: NDArray[np.float64]) -> float:
    """Bits per byte of the mixture of the models' probabilities with each document's weights."""
    documents_N, _ = _documents(domain)
    return mixture_by_token(domain, nats_MWT, weights_MF[:, documents_N])


def mixture_by_token(domain: Domain, nats_MWT: Sequence[Nats], weights_MN: NDArray[np.float64]) -> float:
    """The same with each scored token's weights."""
    scored_WT = domain.windows.scored_WT
    with np.errstate(divide="ignore"):
        logs_MN = np.log(weights_MN) - np.stack([nats[scored_WT] for nats in nats_MWT])
    return float(-np.logaddexp.reduce(logs_MN, axis=0).sum() / math.log(2) / domain.num_bytes)


def _documents(domain: Domain) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The document of each scored token [N], and which positions are scored [W, T]."""
    windows = domain.windows
    scored_WT = windows.scored_WT
    return windows.document_of_window[windows.document_ids_WT[scored_WT]], scored_WT
