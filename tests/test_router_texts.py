"""The texts that router rows are trained on: what is mixed, what is held out, and in which shares they are read."""

import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from common.data import Document, document, read_split, write_documents
from coordinator import router_texts
from coordinator.router_sources import MIXED, PROXIES, PUBLIC, sources
from coordinator.router_texts import RouterTexts

OWNERS = ("archive", "hospital")


def _long(name: str, *, count: int = 12) -> list[Document]:
    """Documents whose every word says which one it is."""
    return [document(" ".join(f"{name}{index}w{word}" for word in range(300))) for index in range(count)]


def _short(name: str, *, count: int) -> list[Document]:
    """Too short to be mixed, and all as long."""
    return [document(f"{name} {index:02}") for index in range(count)]


def _texts(folder: Path, chosen: Mapping[str, list[Document]], public: list[Document], **options: bool) -> Path:
    (folder / "pool").mkdir(parents=True)
    write_documents(folder / "pool" / "train.jsonl", [*public, *(d for each in chosen.values() for d in each)])
    for split, name in (("validation", "held"), ("test", "unread")):
        write_documents(folder / "pool" / f"{split}.jsonl", _long(name, count=4))
    names = {owner: [each.digest for each in documents] for owner, documents in chosen.items()}
    job = RouterTexts(pool=folder / "pool", chosen=names, held_bytes=20_000, output=folder / "texts", **options)
    router_texts.run(job)
    return folder / "texts"


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _texts(tmp_path_factory.mktemp("long"), {owner: _long(owner) for owner in OWNERS}, _long("public"))


def _documents_in(text: str) -> set[str]:
    """Paragraphs are cut anywhere, so the words at their ends say nothing."""
    return set(re.findall(r"(?<!\S)((?:archive|hospital|public|held)\d+)w\d", text))


def test_paragraphs_of_chosen_and_public_documents_are_mixed(texts: Path) -> None:
    mixed = read_split(texts / MIXED, "train")
    kinds = [{name.rstrip("0123456789") for name in _documents_in(each.text)} for each in mixed]
    assert set().union(*kinds) >= {*OWNERS, "public"}
    assert {len(kind) for kind in kinds} >= {2, 3}


def test_nothing_that_is_held_out_is_trained_on_mixed_or_not(texts: Path) -> None:
    held = {document.text for document in read_split(texts / PROXIES, "validation")}
    names = set().union(*map(_documents_in, held))
    assert any(len(_documents_in(text)) > 1 for text in held), "mixed documents are held out, too"
    assert {name.rstrip("0123456789") for name in names} == {*OWNERS, "held"}
    for part in (PROXIES, PUBLIC, MIXED):
        trained = set().union(*(_documents_in(each.text) for each in read_split(texts / part, "train")))
        assert not trained & names


def test_shares_are_those_asked_for(texts: Path) -> None:
    shares = {name: each["share"] for name, each in sources(texts, public_share=0.25, mixed_share=0.6).items()}
    assert shares == pytest.approx({PROXIES: 0.3, PUBLIC: 0.1, MIXED: 0.6})
    assert MIXED not in sources(texts, public_share=0.5, mixed_share=0.0)


def test_documents_that_are_too_short_are_not_mixed_and_take_the_whole(tmp_path: Path) -> None:
    short = {owner: _short(owner, count=8) for owner in OWNERS}
    texts = _texts(tmp_path, short, _long("public"))
    assert not (texts / MIXED).exists()
    shares = sources(texts, public_share=0.5, mixed_share=0.7)
    assert {name: each["share"] for name, each in shares.items()} == {PROXIES: 0.5, PUBLIC: 0.5}


def test_who_has_few_documents_counts_as_much_in_what_is_held_out_only_where_that_is_asked(tmp_path: Path) -> None:
    chosen = {"archive": _short("archive", count=80), "hospital": _short("hospital", count=4)}
    for alike in (True, False):
        texts = _texts(tmp_path / str(alike), chosen, _long("public"), held_alike=alike)
        held = [each.text.split()[0] for each in read_split(texts / PROXIES, "validation")]
        of_owners = {owner: sum(text == owner for text in held) for owner in OWNERS}
        assert of_owners == ({"archive": 1, "hospital": 1} if alike else {"archive": 20, "hospital": 1})
