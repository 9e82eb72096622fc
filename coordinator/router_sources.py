"""The texts that router rows are trained on: where they are in the folder of `router_texts`, their shares, and the one
whose routing stays as it was."""

from pathlib import Path
from typing import Final

PROXIES: Final = "proxies"
PUBLIC: Final = "public"
MIXED: Final = "mixed"
"""There only where enough was chosen to mix."""


def sources(folder: Path, *, public_share: float, mixed_share: float) -> dict[str, dict[str, object]]:
    """What `common.tune` is to read of the texts in `folder`, by name.

    Args:
        folder: The job's `output`.
        public_share: Of the whole documents; the others are owners'.
        mixed_share: Of all, where documents could be mixed.
    """
    mixed = mixed_share if (folder / MIXED).exists() else 0.0
    shares = {PROXIES: (1 - mixed) * (1 - public_share), PUBLIC: (1 - mixed) * public_share, MIXED: mixed}
    return {name: {"text": folder / name, "share": share} for name, share in shares.items() if share}


def held(weight: float) -> dict[str, object] | None:
    """What `common.tune` is to hold routing to: that of whole public documents; nothing with a `weight` of 0."""
    return {"source": PUBLIC, "weight": weight} if weight else None
