"""Which bit patterns are finite: every one of 16 bits, and the borders of 32."""

import math
import struct

import numpy as np
import pytest

from common.model.checkpoint import are_finite


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_every_pattern_of_sixteen_bits(dtype: str) -> None:
    patterns = np.arange(1 << 16, dtype="<u2")
    values = (patterns.astype("<u4") << 16).view("<f4") if dtype == "BF16" else patterns.view("<f2")
    for pattern, finite in zip(patterns, np.isfinite(values), strict=True):
        assert are_finite(pattern.tobytes(), dtype) == finite, hex(pattern)
    assert are_finite(patterns[np.isfinite(values)].tobytes(), dtype)


@pytest.mark.parametrize("value", [0.0, -0.0, 3.4e38, -3.4e38, 1e-45, -1e-45, math.inf, -math.inf, math.nan, -math.nan])
def test_the_borders_of_thirty_two_bits(value: float) -> None:
    assert are_finite(struct.pack("<2f", 1.0, value), "F32") == math.isfinite(value)


def test_no_value_is_finite() -> None:
    assert are_finite(b"", "BF16")
