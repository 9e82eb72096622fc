"""Owners' figures together: what an evaluation with all texts in one place would have found."""

from collections.abc import Mapping
from dataclasses import dataclass

from common.trust.campaign_statements import CampaignResult, Figure


@dataclass(frozen=True, slots=True)
class Pooled:
    """A measure over all owners that gave it: weighted by bytes of text, or by documents where an owner does not say
    its bytes, or where the measure counts documents."""

    value: float
    documents: int
    owners: int
    weighted_by: str


def pooled(results: Mapping[str, CampaignResult]) -> dict[str, Pooled]:
    """By measure; of what is given apart for several names (a control) by both."""
    groups: dict[str, list[tuple[str, Figure]]] = {}
    controls = {figure.name for result in results.values() for figure in result.figures if figure.name == "control"}
    for owner, result in results.items():
        for figure in result.figures:
            name = f"{figure.measure} of {figure.name}" if figure.name in controls else figure.measure
            groups.setdefault(name, []).append((owner, figure))
    return {name: _pool(figures) for name, figures in groups.items()}


def _pool(figures: list[tuple[str, Figure]]) -> Pooled:
    by_bytes = figures[0][1].measure == "bits_per_byte" and all(figure.size_bytes for _, figure in figures)
    weights = [(figure.size_bytes or 0) if by_bytes else figure.documents for _, figure in figures]
    total = sum(weight * figure.value for weight, (_, figure) in zip(weights, figures, strict=True))
    return Pooled(
        total / (sum(weights) or 1),
        sum(figure.documents for _, figure in figures),
        len({owner for owner, _ in figures}),
        "bytes" if by_bytes else "documents",
    )
