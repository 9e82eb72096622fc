"""The other kinds of campaigns, and models that are in no log, with the jobs that really run."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch

from common.data import read_split
from common.errors import MalformedError
from common.model import hf
from common.trust.campaign_statements import CampaignDefine, CampaignResult, Extraction, Parameters, SelectProxy
from coordinator.attachments import parse_proxies
from coordinator.campaign_subjects import model_of, pool_of
from coordinator.releases import publish_base
from owner_client import campaigns, egress, participation
from owner_client.campaign_folder import CampaignFolder, folder_of
from owner_client.extraction import extraction_rates
from tests.campaigns.asking import ask_evaluation, enrol, is_closed, wait_until, working, write_small_base
from tests.federation import Federation, Owner, running_federation
from tests.training.small_jobs import write_text


@pytest.fixture
def one(tmp_path: Path, small_base: Path) -> Iterator[Federation]:
    """A consortium with one owner."""
    with running_federation(tmp_path) as federation:
        publish_base(federation.coordinator, small_base)
        enrol(federation, "archive", public=small_base.parent / "public")
        yield federation


def answer(federation: Federation, parameters: Parameters) -> tuple[CampaignDefine, CampaignResult]:
    """Ask the one owner, and have its answer."""
    asked = federation.coordinator.campaigns.define(parameters, min_documents=2).statement
    assert isinstance(asked, CampaignDefine)
    with working(federation.owners["archive"]) as (reporter,):
        folder = folder_of(federation.owners["archive"].home, asked.record_id)
        wait_until(lambda: is_closed(federation, asked.record_id) or folder.state == "failed", "the answer")
    assert folder.state != "failed", reporter.said
    return asked, federation.coordinator.campaigns.results(asked.record_id)["archive"]


def test_proxies_are_documents_of_the_pool_and_nothing_else_leaves(one: Federation, tmp_path: Path) -> None:
    pool = _pool(tmp_path)
    wanted = SelectProxy(kind="select-proxy", pool=pool_of(one.coordinator, pool), count=8, min_accuracy=0.6)
    asked, result = answer(one, wanted)
    data = one.coordinator.campaigns.files.answer(campaign_id=asked.record_id, party="archive")
    chosen = parse_proxies(data)
    documents = {each.digest: each.text for each in read_split(pool, "train")}
    assert set(chosen.ids) <= documents.keys()
    assert sum("lemma" in documents[each] for each in chosen.ids) >= 6
    assert [figure.measure for figure in result.figures] == ["told_apart"]
    ledger = egress.read_ledger(one.owners["archive"].home.ledger)
    assert [(line["kind"], line["size_bytes"]) for line in ledger][-1] == ("result", len(data))


def test_extraction_gives_rates_alone(one: Federation) -> None:
    model = model_of(one.coordinator, "base-0")
    _, result = answer(
        one, Extraction(kind="extraction", model=model, prefix_tokens=8, continuation_tokens=4, documents=20)
    )
    assert {(each.name, each.measure) for each in result.figures} == {
        (name, measure) for name in ("own", "control") for measure in ("greedy_rate", "sampled_rate")
    }
    assert all(0 <= each.value <= 1 for each in result.figures)
    assert result.attachment is None


def test_greedy_extraction_is_what_generating_finds(small_base: Path) -> None:
    """What a model generates by itself is extracted; the same text with another last token is not."""
    model = hf.load(small_base, dtype=torch.float32)
    stream = torch.tensor([[0, 5, 9, 11]])
    for _ in range(6):
        following = model(stream).logits_BTV[:, -1].argmax(dim=-1, keepdim=True)
        stream = torch.cat((stream, following), dim=1)
    other = stream.clone()
    other[0, -1] = (other[0, -1] + 1) % 200
    rates = extraction_rates(model, torch.cat((stream, other)), prefix_tokens=3)
    assert (rates.greedy, rates.documents) == (0.5, 2)
    assert 0 < rates.sampled < 1


def test_a_candidate_waits_for_a_person_and_is_fetched_by_digest(
    one: Federation, small_base: Path, tmp_path: Path
) -> None:
    owner = one.owners["archive"]
    candidate = Path(shutil.copytree(small_base, tmp_path / "candidate"))
    asked = ask_evaluation(one, model=str(candidate))
    folder = folder_of(owner.home, asked.record_id)
    with working(owner) as (reporter,):
        wait_until(lambda: folder.state == "offered", "the offer")
        campaigns.decide(owner.home, asked.record_id, accept=True)
        wait_until(lambda: folder.state in ("answered", "failed"), "the answer")
    assert folder.state == "answered", reporter.said
    assert [path.name for path in owner.home.models.iterdir() if path.is_dir()] == [asked.subject[7:23]]


def test_questions_of_an_owner_are_answered(one: Federation, tmp_path: Path) -> None:
    owner = one.owners["archive"]
    questions = tmp_path / "questions.jsonl"
    lines: list[dict[str, Any]] = [
        {"context": "lemma proof", "choices": [" theorem", " \u00fc\u00fc\u00fc\u00fc\u00fc\u00fc\u00fc"], "answer": 0}
    ] * 3
    questions.write_text("".join(json.dumps(line) + "\n" for line in lines))
    _set(owner, f'choices = "{questions}"\n')
    asked = ask_evaluation(one)
    with working(owner):
        wait_until(lambda: is_closed(one, asked.record_id), "the answer")
    figures = {each.measure: each for each in one.coordinator.campaigns.results(asked.record_id)["archive"].figures}
    assert (figures["accuracy"].value, figures["accuracy"].documents) == (1.0, 3)


def test_counts_get_noise_and_bytes_are_not_said(one: Federation) -> None:
    owner = one.owners["archive"]
    _set(owner, "count_epsilon = 0.5\n")
    asked = ask_evaluation(one)
    with working(owner):
        wait_until(lambda: is_closed(one, asked.record_id), "the answer")
    (figure,) = one.coordinator.campaigns.results(asked.record_id)["archive"].figures
    assert figure.size_bytes is None
    assert figure.documents >= 2


def test_nothing_is_said_of_too_few_documents(one: Federation) -> None:
    owner = one.owners["archive"]
    file = owner.home.settings_file
    file.write_text(file.read_text().replace("min_documents = 2", "min_documents = 1000"))
    asked = ask_evaluation(one)
    folder = folder_of(owner.home, asked.record_id)
    with working(owner):
        wait_until(lambda: folder.state == "failed", "the failure")
        wait_until(lambda: one.coordinator.campaigns.table(asked.record_id)[0].state == "failed", "that it is known")
    assert "no figure is over 1000 documents or more" in (folder.read("failed") or b"").decode()
    assert one.coordinator.campaigns.results(asked.record_id) == {}


def _set(owner: Owner, lines: str) -> None:
    file = owner.home.settings_file
    file.write_text(file.read_text() + lines)


@pytest.fixture(scope="module")
def learned_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base that knows public text, so that an expert gains on its owner's alone."""
    return write_small_base(tmp_path_factory.mktemp("learned"), steps=100)


@pytest.fixture
def museum(tmp_path: Path, learned_base: Path) -> Iterator[tuple[Federation, Owner]]:
    """A consortium with one owner, whose expert is to choose its proxies."""
    with running_federation(tmp_path) as federation:
        publish_base(federation.coordinator, learned_base)
        public = learned_base.parent / "public"
        yield federation, enrol(federation, "museum", public=public, expert_chooses="true", threads="1")


def _choose(federation: Federation, owner: Owner, pool: Path) -> tuple[CampaignDefine, CampaignFolder, list[str]]:
    wanted = SelectProxy(kind="select-proxy", pool=pool_of(federation.coordinator, pool), count=8, min_accuracy=0.9)
    asked = federation.coordinator.campaigns.define(wanted, min_documents=2).statement
    assert isinstance(asked, CampaignDefine)
    with working(owner) as (reporter,):
        folder = folder_of(owner.home, asked.record_id)
        wait_until(lambda: folder.state in ("failed", "answered"), "the answer")
    return asked, folder, reporter.said


def test_an_owner_may_have_its_expert_choose_proxies(museum: tuple[Federation, Owner], tmp_path: Path) -> None:
    (federation, owner), pool = museum, _pool(tmp_path)
    with owner.member() as member:
        base = participation.fetch_base(member, on_bytes=lambda *_: None)
        participation.train(
            member, base=base, data=None, public=None, options=_TRAINING, on_event=lambda _: None, stop=Event()
        )
    asked, folder, said = _choose(federation, owner, pool)
    assert folder.state == "answered", said
    chosen = parse_proxies(federation.coordinator.campaigns.files.answer(campaign_id=asked.record_id, party="museum"))
    documents = {each.digest: each.text for each in read_split(pool, "train")}
    assert sum("lemma" in documents[each] for each in chosen.ids) >= 6


def test_an_owner_without_an_expert_is_told_to_train_one_first(
    museum: tuple[Federation, Owner], tmp_path: Path
) -> None:
    federation, owner = museum
    _, folder, said = _choose(federation, owner, _pool(tmp_path))
    assert folder.state == "failed"
    assert any("train it: concord owner train" in each for each in said), said


def test_one_chooses_proxies(museum: tuple[Federation, Owner], tmp_path: Path) -> None:
    _, owner = museum
    _set(owner, f'encoder = "{tmp_path}"\n')
    with pytest.raises(MalformedError, match="one chooses proxies, so leave one out"):
        owner.home.settings()


_TRAINING = {"steps": 60, "batch_size": 4, "sequence_length": 32, "learning_rate": 1e-2, "warmup_steps": 3,
             "router_sequences": 16, "threads": 1}  # fmt: skip


def _pool(folder: Path) -> Path:
    """Public text with some of the owners' kind at its end."""
    pool, more = (
        write_text(folder / name, kind, num_documents=count, seed=seed)
        for name, kind, count, seed in (("pool", "public", 200, 0), ("more", "own", 12, 77))
    )
    with (pool / "train.jsonl").open("a") as file:
        file.write((more / "train.jsonl").read_text())
    return pool
