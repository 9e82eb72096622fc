"""How large values are, and how alike rows: from the bytes of tensors, with numpy and without torch.

Of large tensors one page in sixteen is read: the root of their mean square is known to a few thousandths then, and an
expert of nine gigabytes is looked at in a second.
"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

from common.model.checkpoint import DTYPE_BYTES, TensorEntry

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Values = NDArray[np.float32]

_PAGE_BYTES: Final = 4096
_ONE_IN: Final = 16
_WHOLE_BYTES: Final = 1024 * 1024
"""Smaller tensors are read whole."""


def root_mean_square(entries: Iterable[TensorEntry]) -> float:
    """Of all values of some tensors, or of a sample of them; 0 where there are none."""
    total, count = 0.0, 0
    for entry in entries:
        for values in _sampled(entry):
            total += float(values @ values)
            count += len(values)
    return (total / count) ** 0.5 if count else 0.0


def cosine(entry: TensorEntry, other: TensorEntry) -> float:
    """Of two vectors of the same length; 0 where one of them is zero."""
    ours, theirs = values_of(_read(entry), entry.spec.dtype), values_of(_read(other), other.spec.dtype)
    scale = float(ours @ ours) ** 0.5 * float(theirs @ theirs) ** 0.5
    return float(ours @ theirs) / scale if scale else 0.0


def values_of(data: bytes, dtype: str) -> "Values":
    """Little-endian values of F32, BF16 or F16 as float32."""
    import numpy as np

    if dtype == "BF16":  # the upper half of a float32
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
    return np.frombuffer(data, {"F32": "<f4", "F16": "<f2"}[dtype]).astype(np.float32)


def _read(entry: TensorEntry) -> bytes:
    place = entry.location
    with place.path.open("rb") as file:
        file.seek(place.offset)
        return file.read(place.size)


def _sampled(entry: TensorEntry) -> Iterator["Values"]:
    place, width = entry.location, DTYPE_BYTES[entry.spec.dtype]
    if place.size <= _WHOLE_BYTES:
        yield values_of(_read(entry), entry.spec.dtype)
        return
    with place.path.open("rb", buffering=0) as file:
        for start in range(0, place.size, _PAGE_BYTES * _ONE_IN):
            file.seek(place.offset + start)
            data = file.read(min(_PAGE_BYTES, place.size - start))
            yield values_of(data[: len(data) - len(data) % width], entry.spec.dtype)
