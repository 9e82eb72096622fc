"""Proxies: public documents that look like the owner's are found, and nothing else comes out."""

import json
from pathlib import Path
from random import Random

import pytest

from common.data import document, read_split, set_unseen_aside, write_documents
from common.errors import MalformedError, NotFoundError
from common.text_classifier import TextClassifier
from owner_client import proxies
from owner_client.proxies import ProxyJob
from tests.encoders import write_encoder

WORDS = {
    "prose": ["the", "old", "river", "house", "road", "people", "walked", "slowly", "over", "green", "hills"],
    "proof": ["lemma", "theorem", "epsilon", "delta", "converge", "compact", "bounded", "sequence", "limit"],
}


def _texts(kind: str, count: int, seed: int) -> list[str]:
    random = Random(f"{kind} {seed}")
    return [" ".join(random.choice(WORDS[kind]) for _ in range(40)) + f" {i}" for i in range(count)]


@pytest.fixture
def corpora(tmp_path: Path) -> Path:
    """An owner of proofs, and public prose of which one in ten documents is a proof."""
    for name, texts in (
        ("own", _texts("proof", 80, 0)),
        ("public", [*_texts("prose", 90, 0), *_texts("proof", 10, 1)]),
    ):
        (tmp_path / name).mkdir()
        write_documents(tmp_path / name / "train.jsonl", [document(text) for text in texts])
    return tmp_path


def _job(corpora: Path, **changes: object) -> ProxyJob:
    places = {"data": corpora / "own", "public": corpora / "public", "output": corpora / "proxies.json"}
    return ProxyJob.model_validate({**places, "count": 5, **changes})


def test_the_chosen_are_the_public_documents_of_the_owners_kind(corpora: Path) -> None:
    found = proxies.select(_job(corpora))
    public = list(read_split(corpora / "public", "train"))
    chosen = proxies.chosen_documents(public, found)
    assert len(chosen) == 5
    assert all("lemma" in each.text or "theorem" in each.text for each in chosen)
    assert found.scores == sorted(found.scores, reverse=True)
    assert found.accuracy > 0.8


def test_what_is_not_likely_enough_is_not_chosen(corpora: Path) -> None:
    """Although the public documents that look like proofs were all learned as public."""
    found = proxies.select(_job(corpora, count=50, min_score=0.5))
    chosen = proxies.chosen_documents(list(read_split(corpora / "public", "train")), found)
    assert 5 < len(chosen) <= 10
    assert all("lemma" in each.text or "theorem" in each.text for each in chosen)
    write_documents(corpora / "public" / "train.jsonl", [document(text) for text in _texts("prose", 90, 0)])
    with pytest.raises(NotFoundError, match=r"no public document reaches a score of 0\.9"):
        proxies.select(_job(corpora, min_score=0.9))


def test_what_is_written_names_public_documents_alone(corpora: Path) -> None:
    proxies.run(_job(corpora))
    written = json.loads((corpora / "proxies.json").read_text())
    assert set(written) == {"ids", "scores", "accuracy"}
    assert set(written["ids"]) <= {each.digest for each in read_split(corpora / "public", "train")}


def test_more_proxies_than_public_documents_are_refused(corpora: Path) -> None:
    with pytest.raises(MalformedError, match="1000 proxies are asked for; ask for fewer or add public documents"):
        proxies.select(_job(corpora, count=1000))


def test_a_proxy_that_is_no_public_document_is_refused(corpora: Path) -> None:
    found = proxies.Proxies(ids=["0" * 64], scores=[1.0], accuracy=1.0)
    with pytest.raises(MalformedError, match="no public documents here"):
        proxies.chosen_documents(list(read_split(corpora / "public", "train")), found)


def test_a_classifier_names_the_kind_of_text_it_never_saw() -> None:
    classifier = TextClassifier({kind: _texts(kind, 40, 0) for kind in WORDS}, seed=0)
    for index, kind in enumerate(classifier.kinds):
        assert (classifier.probabilities(_texts(kind, 20, 9)).argmax(axis=1) == index).all()
    with pytest.raises(MalformedError, match="two kinds or more"):
        TextClassifier({"prose": ["a"], "proof": []}, seed=0)
    with pytest.raises(MalformedError, match="all documents are blank in their first 4000 characters"):
        TextClassifier({"prose": [" "], "proof": [" " * 5000 + "a"]}, seed=0)


def test_a_small_encoder_can_choose_instead(corpora: Path, tmp_path: Path) -> None:
    encoder = write_encoder(tmp_path / "encoder", [*_texts("proof", 80, 0), *_texts("prose", 90, 0)])
    found = proxies.select(_job(corpora, encoder=encoder, seed=1))
    chosen = proxies.chosen_documents(list(read_split(corpora / "public", "train")), found)
    assert all("lemma" in each.text or "theorem" in each.text for each in chosen)
    (encoder / "model.safetensors").rename(encoder / "model.bin")
    with pytest.raises(MalformedError, match="pickled"):
        proxies.select(_job(corpora, encoder=encoder))


def test_proxies_come_from_what_the_public_model_has_not_seen(corpora: Path) -> None:
    public = read_split(corpora / "public", "train")
    unseen, seen = set_unseen_aside(public, share=0.5)
    assert {each.digest for each in unseen} | {each.digest for each in seen} == {each.digest for each in public}
    assert 30 < len(unseen) < 70
    found = proxies.select(_job(corpora, count=len(unseen), unseen_share=0.5))
    assert set(found.ids) == {each.digest for each in unseen}
    with pytest.raises(MalformedError, match=f"{len(unseen)} public documents, and {len(unseen) + 1} proxies"):
        proxies.select(_job(corpora, count=len(unseen) + 1, unseen_share=0.5))


def test_text_that_is_not_told_apart_well_enough_gives_no_proxies(corpora: Path) -> None:
    with pytest.raises(NotFoundError, match=r"told apart in \d+% of cases, under the 100% asked"):
        proxies.select(_job(corpora, min_accuracy=1.0))


def test_public_text_of_the_owners_kind_does_not_make_the_classifier_look_worse(corpora: Path) -> None:
    """A third of all public documents are proofs: called the owner's, they would be mistakes in one case of six."""
    for split, size in (("train", 60), ("validation", 30)):
        texts = [*_texts("prose", 2 * size, size), *_texts("proof", size, size)]
        write_documents(corpora / "public" / f"{split}.jsonl", [document(text) for text in texts])
        write_documents(corpora / "own" / f"{split}.jsonl", [document(text) for text in _texts("proof", 80, size + 1)])
    assert proxies.select(_job(corpora)).accuracy > 0.95
