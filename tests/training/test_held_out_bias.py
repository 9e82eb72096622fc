"""The bias of an expert's rows is moved to where held-out text is predicted best."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_jobs import WORDS, expert_config

from common.data import document, read_corpus
from common.evaluate import Domain, prepare, score
from common.job import StoppedError, StopSignal
from common.model import hf, partition
from common.model.router_rows import PublicRouter
from common.model.transformer import CausalLM
from common.tokenizer import Tokenizer
from owner_client import train
from owner_client.held_out_bias import LEAST, MOST, STEP, choose_bias


@pytest.fixture
def model(base: Path) -> CausalLM:
    """Two experts that are alike, as their rows are; the owner's is a little reluctant."""
    model, router = hf.two_expert(hf.load(base)), PublicRouter.load(base, num_hidden_layers=2, hidden_size=16)
    with torch.no_grad():
        for gate, row_D, direction_D in zip(model.routers, router.rows, router.bias_directions, strict=True):
            gate.add_bias(1, direction_D)
            for row in gate.rows:
                row.copy_(row_D)
            gate.biases["1"].fill_(-0.25)
    return model


def _held_out(base: Path, kind: str) -> Domain:
    words = WORDS[kind].split()
    texts = [" ".join(words[i:] + words[:i]) for i in range(4)]
    return prepare([document(text) for text in texts], Tokenizer.load(base), sequence_length=16)


def _turn_round(model: CausalLM, expert: int) -> None:
    """What that expert puts out has its coordinates in another order."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if f".experts.{expert}.down_proj." in name:
                parameter.copy_(parameter.flip(0).clone())


def _biases(model: CausalLM) -> list[float]:
    return [gate.biases["1"].item() for gate in model.routers]


def test_an_expert_that_harms_is_made_as_reluctant_as_may_be(model: CausalLM, base: Path) -> None:
    _turn_round(model, 1)
    known = _held_out(base, "public")
    choose_bias(model, known, known, public_share=0.8, batch_size=2)
    assert _biases(model) == pytest.approx([-0.25 - MOST] * 2)


def test_where_both_experts_are_alike_nothing_is_moved(model: CausalLM, base: Path) -> None:
    choose_bias(model, _held_out(base, "own"), _held_out(base, "public"), public_share=0.8, batch_size=2)
    assert _biases(model) == [-0.25] * 2


def test_a_step_that_wins_hardly_anything_is_not_taken(model: CausalLM, base: Path) -> None:
    own, public = _held_out(base, "own"), _held_out(base, "public")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".experts.1.down_proj." in name:
                parameter.lerp_(parameter.flip(0).clone(), 0.02)

    def loss() -> float:
        own_bits, public_bits = (score(model, text, batch_size=2).bits_per_byte for text in (own, public))
        return 0.2 * own_bits + 0.8 * public_bits

    before = loss()
    choose_bias(model, own, public, public_share=0.8, batch_size=2)
    assert _biases(model) == [-0.25] * 2
    with torch.no_grad():
        for gate in model.routers:
            gate.biases["1"].sub_(STEP)
    assert 0 < before - loss() < LEAST


def test_an_expert_that_helps_everywhere_is_made_no_more_eager_than_its_rows(model: CausalLM, base: Path) -> None:
    known = _held_out(base, "public")
    _turn_round(model, 0)
    choose_bias(model, known, known, public_share=0.8, batch_size=2)
    assert _biases(model) == [0.0] * 2


def test_a_job_whose_expert_claims_too_much_makes_it_reluctant_and_better(
    base: Path, text: Path, tmp_path: Path
) -> None:
    job = expert_config(text, base, tmp_path / "moved", steps=60, router_prior=0.99, negative_share=0.0)
    moved = train.run(train.ExpertJob.model_validate(job), StopSignal())["biases"]
    kept = train.ExpertJob.model_validate({**job, "output": tmp_path / "kept", "held_out_bytes": 0})
    trained = train.run(kept, StopSignal())["biases"]
    assert isinstance(moved, list)
    assert isinstance(trained, list)
    steps = [(after - before) / STEP for after, before in zip(moved, trained, strict=True)]
    assert steps[0] < -0.9
    assert steps == pytest.approx([round(steps[0])] * 2)
    corpora = (read_corpus(text / kind).validation for kind in ("own", "public"))
    domains = [prepare(documents, Tokenizer.load(base), sequence_length=32) for documents in corpora]
    assert _loss(base, tmp_path / "moved", domains) < _loss(base, tmp_path / "kept", domains) - LEAST


def _loss(base: Path, expert: Path, domains: Sequence[Domain]) -> float:
    model, router = hf.two_expert(hf.load(base)), PublicRouter.load(base, num_hidden_layers=2, hidden_size=16)
    rows = {partition.router_row(layer, 0): row for layer, row in enumerate(router.rows)}
    model.load_state_dict({**load_file(expert / train.EXPERT_FILE), **rows}, strict=False)
    own, public = (score(model, domain, batch_size=4).bits_per_byte for domain in domains)
    return 0.2 * own + 0.8 * public


def test_the_more_public_text_counts_the_more_reluctant_an_expert_is_that_harms_it(
    base: Path, text: Path, tmp_path: Path
) -> None:
    job = expert_config(text, base, tmp_path / "one", steps=60, router_prior=0.9, negative_share=0.0)
    biases = []
    for name, share in (("own alone", 0.0), ("public alone", 1.0)):
        config = {**job, "output": tmp_path / name, "held_out_public_share": share}
        found = train.run(train.ExpertJob.model_validate(config), StopSignal())["biases"]
        assert isinstance(found, list)
        biases.append(found)
    assert all(public < own - STEP / 2 for own, public in zip(*biases, strict=True))


def test_it_stops_when_asked_and_nothing_is_published(
    base: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = train.ExpertJob.model_validate(expert_config(text, base, tmp_path / "expert", steps=2))
    stop, choose = StopSignal(), train.choose_bias

    def ask_first(*arguments: Any, **options: Any) -> None:
        stop.requested = True
        choose(*arguments, **options)

    monkeypatch.setattr(train, "choose_bias", ask_first)
    with pytest.raises(StoppedError, match="while the bias was chosen; run the job again"):
        train.run(job, stop)
    assert not job.output.exists()
    monkeypatch.undo()
    train.run(job, StopSignal())
    assert job.output.exists()
