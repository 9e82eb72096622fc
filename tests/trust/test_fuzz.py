"""The parsers under inputs that are nearly right; many more of them with `make fuzz`."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.targets import SEEDS, TARGETS, mutated


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_nearly_right_is_refused_or_the_same(name: str) -> None:
    chance = Random(0)
    for seed in SEEDS[name]:
        TARGETS[name](seed)
    for _ in range(400):
        TARGETS[name](mutated(chance.choice(SEEDS[name]), chance))


@pytest.mark.parametrize("name", TARGETS)
@given(data=st.binary(max_size=400))
def test_anything_is_refused_or_the_same(name: str, data: bytes) -> None:
    TARGETS[name](data)
