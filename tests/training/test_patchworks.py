"""Patchworks: nothing of a text is lost, and subjects take turns."""

from collections import Counter
from itertools import pairwise

import pytest

from common.data import document
from coordinator.patchworks import patchworks

WORDS = {name: " ".join(f"{name}{index}" for index in range(2000)) for name in "abcdefg"}
DOCUMENTS = [document(text) for text in WORDS.values()]


def _subjects(part: str) -> set[str]:
    return {word[0] for word in part.split()}


def test_every_word_is_in_one_part_in_order_and_parts_take_turns() -> None:
    made = patchworks(DOCUMENTS, seed=0)
    for parts in made:
        assert all(len(_subjects(part)) == 1 for part in parts)
        subjects = [next(iter(_subjects(part))) for part in parts]
        assert len(set(subjects)) in {1, 2, 3}
        assert all(before != after for before, after in pairwise(subjects))
        assert [part.startswith("\n\n") for part in parts] == [False] + [True] * (len(parts) - 1)
    words = Counter(word for parts in made for word in "".join(parts).split())
    assert words == Counter(word for text in WORDS.values() for word in text.split())
    for name, text in WORDS.items():
        together = " ".join("".join(parts) for parts in made)
        assert [word for word in together.split() if word[0] == name] == text.split()


@pytest.mark.parametrize("number", [0, 1, 2])
def test_few_documents_are_cut_up_as_far_as_they_go(number: int) -> None:
    made = patchworks([document(f"short text {i}") for i in range(number)], seed=0)
    assert sorted(part.strip() for parts in made for part in parts) == [
        f"short text {index}" for index in range(number)
    ]


def test_a_seed_decides() -> None:
    first, again, other = (patchworks(DOCUMENTS, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
