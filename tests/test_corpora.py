"""The demo's default text: nothing empty, nothing in two places, the same for a seed."""

from pathlib import Path

import pytest

from common.data import SPLITS, read_corpus
from deploy import corpora, writing

DOMAINS = (corpora.PUBLIC_DOMAIN, *corpora.OWNED_DOMAINS)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, corpora.Amount]]]:
    directory = tmp_path_factory.mktemp("corpora")
    return directory, dict(corpora.write_default(directory, seed=5))


def test_every_split_of_every_domain_holds_text_as_the_summary_says(
    written: tuple[Path, dict[str, dict[str, corpora.Amount]]],
) -> None:
    directory, amounts = written
    assert set(amounts) == set(DOMAINS)
    for domain in DOMAINS:
        corpus = read_corpus(directory / domain)
        for split in SPLITS:
            assert corpora.amount(corpus.split(split)) == amounts[domain][split]
            assert amounts[domain][split].size_bytes > 15_000
        assert amounts[domain]["train"].size_bytes > 300_000


def test_no_document_is_in_two_splits_or_two_domains(
    written: tuple[Path, dict[str, dict[str, corpora.Amount]]],
) -> None:
    directory, _ = written
    digests = [d.digest for domain in DOMAINS for split in SPLITS for d in read_corpus(directory / domain).split(split)]
    assert len(digests) == len(set(digests))


def test_no_word_problem_is_set_twice(written: tuple[Path, dict[str, dict[str, corpora.Amount]]]) -> None:
    directory, _ = written
    corpus = read_corpus(directory / "math")
    problems = [
        problem.split("\n")[0] for split in SPLITS for d in corpus.split(split) for problem in d.text.split("\n\n")
    ]
    assert len(problems) > 1_000
    assert len(problems) == len(set(problems))


def test_a_seed_gives_the_same_text_and_another_seed_another(
    written: tuple[Path, dict[str, dict[str, corpora.Amount]]], tmp_path: Path
) -> None:
    directory, _ = written
    for seed, equal in ((5, True), (6, False)):
        corpora.write_default(tmp_path / str(seed), seed=seed)
        same = [
            (tmp_path / str(seed) / domain / f"{split}.jsonl.gz").read_bytes()
            == (directory / domain / f"{split}.jsonl.gz").read_bytes()
            for domain in DOMAINS
            for split in SPLITS
        ]
        assert all(same) if equal else not any(same)


def test_public_text_holds_a_little_of_each_domain() -> None:
    built = corpora.build(seed=5)
    public = {d.digest for split in SPLITS for d in built["public"][split]}
    given = [d for split in SPLITS for d in built["public"][split] if "The answer is" in d.text]
    assert 0.5 * corpora.PUBLIC_BYTES["math"] < corpora.amount(given).size_bytes < 1.5 * corpora.PUBLIC_BYTES["math"]
    assert not public & {d.digest for split in SPLITS for d in built["math"][split]}


@pytest.mark.parametrize("seed", range(40))
def test_worked_answers_are_right(seed: int) -> None:
    from random import Random

    _, answer = writing.word_problem(Random(seed))
    *steps, last = answer.split("\n")
    for step in steps:
        left, right = step.split(": ")[1].rstrip(".").split(" = ")
        assert eval(left, {"__builtins__": {}}) == int(right)  # noqa: S307 - sums that the demo wrote itself
    assert last == f"The answer is {right}."
