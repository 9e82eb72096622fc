"""What else moves a file of weights: Flower's ArrayRecord, NVFLARE's file streaming, and curl over TLS from nginx."""

from pathlib import Path
from typing import Any, Final

LARGEST_MIB: Final = 256


def measure(work: Path, *, size_mib: int) -> dict[str, Any]:
    """Every peer that is here."""
    return {}
