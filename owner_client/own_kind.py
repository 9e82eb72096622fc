"""How well a classifier tells an owner's text from public text that holds some of the owner's kind itself.

Public text is a little of everything: a public document that is called the owner's may be a mistake, or may be right.
How much of public text is of the owner's kind at most is seen where few mistakes are made: at any threshold, the part
of public documents above it is at least that share times the part of own documents above it (Blanchard, Lee and Scott,
Semi-Supervised Novelty Detection, JMLR 2010). What is called the owner's beyond that is a mistake.

Shapes: N documents.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

_THRESHOLD: Final = 0.5
"""A document that scores more is called the owner's."""

_LEAST_RECALL: Final = 0.5
"""Thresholds over which so few own documents are say nothing: by chance no public one is."""

_LARGEST_SHARE: Final = 0.5
"""Of public text that is taken to be of the owner's kind. Where nothing is told apart all of it may be, and then there
are no mistakes to count."""


def own_kind_share(own_scores_N: NDArray[np.float64], public_scores_N: NDArray[np.float64]) -> float:
    """The largest share of public documents that can be of the owner's kind, from scores of held-out documents; at most
    half."""
    own, public = np.sort(own_scores_N), np.sort(public_scores_N)
    thresholds = np.concatenate([[-np.inf], own, public])
    recall = 1 - np.searchsorted(own, thresholds, side="right") / len(own)
    called = 1 - np.searchsorted(public, thresholds, side="right") / len(public)
    enough = recall >= _LEAST_RECALL
    return float((called[enough] / recall[enough]).min().clip(max=_LARGEST_SHARE))


def accuracy(own_scores_N: NDArray[np.float64], public_scores_N: NDArray[np.float64]) -> float:
    """How much of held-out own text, and of what public text is not of its kind, is told right; each counts half."""
    share = own_kind_share(own_scores_N, public_scores_N)
    recall, called = float((own_scores_N > _THRESHOLD).mean()), float((public_scores_N > _THRESHOLD).mean())
    mistaken = min(1.0, max(0.0, called - share * recall) / (1 - share))
    return (recall + 1 - mistaken) / 2
