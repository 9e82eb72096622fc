"""Packed sequences: what an epoch holds, resuming, and the shares of mixtures."""

from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from common.errors import MalformedError
from common.packing import MixtureState, PackedText, batches

EOS = 0


def _packed(lengths: list[int], *, sequence_length: int = 8, seed: int = 0, first: int = 1) -> PackedText:
    tokens = [[first + i] * length for i, length in enumerate(lengths)]
    return PackedText(tokens, sequence_length=sequence_length, eos_token_id=EOS, seed=seed)


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=2, max_size=12),
    sequence_length=st.integers(2, 9),
    seed=st.integers(0, 3),
)
def test_an_epoch_predicts_each_token_once_and_never_across_documents(
    lengths: list[int], sequence_length: int, seed: int
) -> None:
    assume(sum(length + 1 for length in lengths) > sequence_length)  # else it is refused
    text = _packed(lengths, sequence_length=sequence_length, seed=seed)
    targets, inside = [], []
    for index in range(text.num_sequences):
        tokens, ids, part_ids = text.sequence(index)
        np.testing.assert_array_equal(np.diff(part_ids) != 0, np.diff(ids) != 0)
        targets += tokens[1:].tolist()
        for position, (token, following) in enumerate(pairwise(tokens)):
            same = position + 1 < len(ids) and ids[position + 1] == ids[position]
            inside.append(token == EOS or following in (EOS, token))
            assert (position + 1 == len(ids)) or same == (following != EOS)
    assert all(inside)
    dropped = sum(length + 1 for length in lengths) - len(targets)
    assert 0 <= dropped < sequence_length
    for i, length in enumerate(lengths, 1):
        assert length - dropped <= targets.count(i) <= length


def test_epochs_differ_and_seeds_decide(tmp_path: Path) -> None:
    def order(seed: int, epoch: int) -> list[int]:
        text = _packed([5] * 20, seed=seed)
        return [int(text.sequence(epoch * text.num_sequences + i)[0][1]) for i in range(text.num_sequences)]

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


def test_a_patchwork_is_one_document_of_many_parts() -> None:
    text = PackedText([[1] * 3], patchworks=[[[2, 2], [3], [4, 4, 4]]], sequence_length=10, eos_token_id=EOS, seed=0)
    tokens, document_ids, part_ids = text.sequence(0)
    begins = {
        name: [int(token) for token, new in zip(tokens[1:], np.diff(ids) != 0, strict=False) if new]
        for name, ids in (("document", document_ids), ("part", part_ids))
    }
    assert begins["document"] == [EOS]
    assert sorted(begins["part"]) == [EOS, 3, 4]


def test_resuming_from_a_state_gives_what_would_have_come() -> None:
    def sources() -> list[PackedText]:
        return [_packed([9] * 7, seed=3), _packed([4] * 5, seed=3, first=100)]

    whole = list(islice(batches(sources(), shares=[0.7, 0.3], batch_size=4), 30))
    for stop in (1, 7, 19):
        state = MixtureState(tuple(whole[stop - 1][1].consumed))
        rest = islice(batches(sources(), shares=[0.7, 0.3], batch_size=4, state=state), 30 - stop)
        for (batch, after), (expected, expected_after) in zip(rest, whole[stop:], strict=True):
            assert after == expected_after
            np.testing.assert_array_equal(batch.input_ids_BT, expected.input_ids_BT)
            np.testing.assert_array_equal(batch.document_ids_BT, expected.document_ids_BT)


def test_a_mixture_keeps_its_shares_in_the_long_run_and_in_each_batch() -> None:
    sources = [_packed([9] * 7), _packed([9] * 7, first=100)]
    mixed = list(islice(batches(sources, shares=[0.7, 0.3], batch_size=5), 40))
    assert mixed[-1][1] == MixtureState((140, 60))
    assert {int(batch.sources_B.sum()) for batch, _ in mixed} == {1, 2}
    for batch, _ in mixed:
        np.testing.assert_array_equal((batch.targets_BT >= 100).any(axis=1), batch.sources_B == 1)


def test_too_little_text_says_how_much_there_is_and_is_needed() -> None:
    with pytest.raises(MalformedError, match=r"17 tokens are too few; one sequence needs 33"):
        _packed([16], sequence_length=32)


def test_shares_must_fit_the_sources() -> None:
    with pytest.raises(ValueError, match="shares"):
        next(batches([_packed([20])], shares=[0.5], batch_size=1))
