"""Documents of several domains: what they hold, and what cannot be mixed."""

import re

import pytest

from common.data import document
from common.errors import MalformedError
from common.mixed import mixed_documents, mixed_rounds

DOMAINS = {
    name: [document(f"{name}{i} ".join(["", *[letter * 5] * 400])) for i in range(10)]
    for name, letter in (("code", "c"), ("law", "l"), ("math", "m"))
}


def test_every_document_has_paragraphs_of_two_or_three_domains_in_turn() -> None:
    mixed = mixed_documents(DOMAINS, total_bytes=20_000, seed=0)
    kinds = set()
    for each in mixed:
        paragraphs = [paragraph.strip() for paragraph in each.text.split("\n\n")]
        order = [next(name for name in DOMAINS if name in paragraph) for paragraph in paragraphs]
        half = len(order) // 2
        assert order[:half] == order[half:]
        assert len(set(order)) == half
        kinds.add(half)
    assert kinds == {2, 3}
    assert 20_000 <= sum(len(d.text.encode()) for d in mixed) < 25_000


def test_the_same_seed_gives_the_same_documents_and_nothing_is_used_twice() -> None:
    first, again, other = (mixed_documents(DOMAINS, total_bytes=20_000, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    long = {name: [document(" ".join(f"<{name}{i:04d}>" for i in range(3000)))] for name in "ab"}
    words = re.findall(r"<[ab]\d{4}>", "".join(d.text for d in mixed_documents(long, total_bytes=8_000, seed=0)))
    assert len(words) > 500
    assert len(set(words)) == len(words)


def test_text_that_cannot_be_mixed_is_refused() -> None:
    with pytest.raises(MalformedError, match="give two or more"):
        mixed_documents({"code": DOMAINS["code"]}, total_bytes=100, seed=0)
    with pytest.raises(MalformedError, match="law: too little text"):
        mixed_documents({"code": DOMAINS["code"], "law": [document("short")]}, total_bytes=10_000, seed=0)
    with pytest.raises(MalformedError, match="ask for fewer bytes"):
        mixed_documents(DOMAINS, total_bytes=10_000_000, seed=0)


def test_rounds_put_all_text_together_in_other_ways_until_one_domain_has_none_left() -> None:
    two, again = (mixed_rounds(DOMAINS, rounds=2, seed=0) for _ in range(2))
    assert two == again
    one = mixed_rounds(DOMAINS, rounds=1, seed=0)
    assert two[: len(one)] == one
    assert not {d.text for d in one} & {d.text for d in two[len(one) :]}
    smallest = min(sum(len(d.text) for d in documents) for documents in DOMAINS.values())
    assert sum(len(d.text) for d in one) > smallest


def test_domains_that_are_too_short_are_left_out_of_rounds() -> None:
    mixed = mixed_rounds({**DOMAINS, "short": [document("short")]}, rounds=1, seed=0)
    assert mixed == mixed_rounds(DOMAINS, rounds=1, seed=0)
    assert mixed_rounds({"code": DOMAINS["code"], "short": [document("short")]}, rounds=3, seed=0) == []
    assert mixed_rounds({}, rounds=1, seed=0) == []
