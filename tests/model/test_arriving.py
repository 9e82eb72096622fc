"""Experts that are checked while they come: the verdict is that of a check of the whole file, however they are cut."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from common.errors import MalformedError
from common.model.arriving import ArrivingExpert
from common.model.expert import check_expert
from tests.federation import SIZES, expert_weights

TENSORS = expert_weights(1)
GOOD = bytes(save(TENSORS, metadata={"format": "pt"}))
HEADER_END = 8 + int.from_bytes(GOOD[:8], "little")


def _feed(data: bytes, cuts: list[int]) -> None:
    expert = ArrivingExpert(Path("expert.safetensors"), size=len(data), config=SIZES)
    for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
        expert.feed(data[start:end])


@given(st.data())
@settings(max_examples=150)
def test_a_good_expert_passes_however_it_is_cut(data: st.DataObject) -> None:
    _feed(GOOD, sorted(data.draw(st.lists(st.integers(0, len(GOOD)), max_size=6))))


@given(st.data())
@settings(max_examples=150)
def test_one_bad_value_is_found_wherever_it_is_and_however_it_is_cut(data: st.DataObject) -> None:
    values = (len(GOOD) - HEADER_END) // 4
    at = HEADER_END + 4 * data.draw(st.integers(0, values - 1))
    bad = GOOD[:at] + bytes.fromhex(data.draw(st.sampled_from(["0000807f", "000080ff", "0000c07f"]))) + GOOD[at + 4 :]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(GOOD)), max_size=6)))
    with pytest.raises(MalformedError, match="holds NaN or infinity"):
        _feed(bad, cuts)


@given(data=st.data())
@settings(max_examples=300)
def test_it_refuses_what_a_check_of_the_whole_file_refuses(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Any byte of the header, or of the start of the values, changed to any other."""
    at = data.draw(st.integers(0, HEADER_END + 64))
    changed = GOOD[:at] + bytes([data.draw(st.integers(0, 255))]) + GOOD[at + 1 :]
    path = tmp_path_factory.mktemp("whole") / "expert.safetensors"
    path.write_bytes(changed)
    verdicts = []
    checks: list[Callable[[], None]] = [
        lambda: check_expert(path, config=SIZES),
        lambda: _feed(changed, [HEADER_END // 2, HEADER_END + 3]),
    ]
    for check in checks:
        try:
            check()
            verdicts.append("good")
        except MalformedError as error:
            verdicts.append(str(error))
    assert verdicts[0] == verdicts[1]


def test_a_header_is_refused_before_what_follows_it_came() -> None:
    foreign = bytes(save({**TENSORS, "secret": torch.zeros(2)}, metadata={"format": "pt"}))
    expert = ArrivingExpert(Path("expert.safetensors"), size=len(foreign), config=SIZES)
    with pytest.raises(MalformedError, match="secret must not be in"):
        expert.feed(foreign[: 8 + int.from_bytes(foreign[:8], "little")])


def test_a_header_that_says_it_is_huge_is_refused_by_its_first_bytes() -> None:
    expert = ArrivingExpert(Path("expert.safetensors"), size=10**10, config=SIZES)
    with pytest.raises(MalformedError, match="header length 100000000"):
        expert.feed((100_000_000).to_bytes(8, "little"))


@pytest.mark.parametrize("position", [0, 3, 8, 20, HEADER_END - 1, HEADER_END, HEADER_END + 1, HEADER_END + 4097])
def test_it_goes_on_where_the_bytes_that_are_here_end(position: int, tmp_path: Path) -> None:
    path = tmp_path / "expert.part"
    at = HEADER_END + 4 * ((position - HEADER_END) // 4) if position > HEADER_END else HEADER_END
    bad = GOOD[:at] + bytes.fromhex("0000807f") + GOOD[at + 4 :]
    path.write_bytes(bad[:position])
    resumed = ArrivingExpert(path, size=len(bad), config=SIZES, position=position)
    with pytest.raises(MalformedError, match="holds NaN or infinity"):
        resumed.feed(bad[position:])
