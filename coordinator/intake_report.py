"""What an admin may want to know of an expert that came: how large its values are beside the public expert's, and whose
router rows its own are alike. Nothing here refuses anything: an odd expert is its owner's to explain.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

from common.model import checkpoint
from common.model.checkpoint import TensorEntry
from common.model.expert import EXPERT_NAME, ROUTER_NAME, read_config
from common.model.norms import cosine, root_mean_square
from common.model.partition import (
    OWNED_EXPERT,
    PROJECTIONS,
    PUBLIC_EXPERT,
    dense_feed_forward,
    feed_forward,
    router_row,
)
from common.trust.history import History
from common.trust.state import Contribution
from coordinator.publication import Publication

COLLISION: Final = 0.98
"""Rows as alike as that send both experts the same tokens."""
ODD_RATIO: Final = 10.0
"""Values so many times as large, or as small, as the public expert's are worth a question."""
_ROWS: Final = "router row"
_OTHERS: Final = "other experts'"
_PUBLIC: Final = "the public expert's"


@dataclass(frozen=True, slots=True)
class Collision:
    """In a layer an expert's row points where another's does; `other` is a party, or `public`."""

    layer: int
    other: str
    cosine: float


@dataclass(frozen=True, slots=True)
class IntakeReport:
    """Of one expert: by kind of tensor the root mean square of its values, and over the public expert's; of its router
    rows over the median of others', for the public row says nothing of how large a row is."""

    party: str
    size_bytes: int
    rms: Mapping[str, float]
    ratios: Mapping[str, float]
    collisions: tuple[Collision, ...]

    @property
    def warnings(self) -> list[str]:
        """What is worth a question to the owner."""
        odd = [
            f"{name}: values are {ratio:.2g} times {_OTHERS if name == _ROWS else _PUBLIC}"
            for name, ratio in self.ratios.items()
            if not 1 / ODD_RATIO <= ratio <= ODD_RATIO
        ]
        return odd + [
            f"layer {each.layer}: its router row is {each.other}'s (cosine {each.cosine:.4f})"
            for each in self.collisions
        ]


def standing_contributions(history: History) -> dict[str, Contribution]:
    """The expert of each owner that a release would hold, consent allowing."""
    found: dict[str, Contribution] = {}
    for contribution in history.contributions.values():
        if contribution.party not in found or found[contribution.party].index < contribution.index:
            found[contribution.party] = contribution
    return found


def intake_reports(publication: Publication, history: History) -> list[IntakeReport]:
    """Of every owner's expert, each over the base that it was made for and beside the others over the same base."""
    chosen = standing_contributions(history)
    bases = {party: _base_of(publication, history, each) for party, each in chosen.items()}
    experts = {
        party: checkpoint.read_header(publication.find(each.files[EXPERT_NAME].digest))
        for party, each in chosen.items()
    }
    return [
        _report(
            party, bases[party], expert, {o: e for o, e in experts.items() if o != party and bases[o] == bases[party]}
        )
        for party, expert in sorted(experts.items())
    ]


def _base_of(publication: Publication, history: History, contribution: Contribution) -> Path:
    grant = history.grants[contribution.grant_id]
    return publication.base(history.bases[grant.statement.expert.base_digest].round)


def _report(
    party: str, base: Path, expert: Mapping[str, TensorEntry], others: Mapping[str, Mapping[str, TensorEntry]]
) -> IntakeReport:
    layers = range(read_config(base).num_hidden_layers)
    public, rows = checkpoint.read_checkpoint(base), checkpoint.read_header(base / ROUTER_NAME)
    rms = {p: root_mean_square(expert[feed_forward(layer, OWNED_EXPERT, p)] for layer in layers) for p in PROJECTIONS}
    its = {p: root_mean_square(public[dense_feed_forward(layer, p)] for layer in layers) for p in PROJECTIONS}
    rms[_ROWS] = root_mean_square(expert[router_row(layer, OWNED_EXPERT)] for layer in layers)
    if others:
        its[_ROWS] = median(
            root_mean_square(theirs[router_row(layer, OWNED_EXPERT)] for layer in layers) for theirs in others.values()
        )
    ratios = {name: rms[name] / value if value else float("inf") for name, value in its.items()}
    collisions = [
        Collision(layer, other, alike)
        for layer in layers
        for other, row in (
            ("public", rows[router_row(layer, PUBLIC_EXPERT)]),
            *((name, theirs[router_row(layer, OWNED_EXPERT)]) for name, theirs in others.items()),
        )
        if (alike := cosine(expert[router_row(layer, OWNED_EXPERT)], row)) >= COLLISION
    ]
    size = sum(entry.location.size for entry in expert.values())
    return IntakeReport(party, size, rms, ratios, tuple(collisions))
