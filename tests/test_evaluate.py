import json
import math
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from common import evaluate, tokenizer
from common.data import Document, document, write_documents
from common.errors import JobFailedError, MalformedError, NotFoundError
from common.evaluate import PADDING, EvaluationConfig
from common.model import hf
from common.model.config import ModelConfig
from common.model.transformer import CausalLM
from common.tokenizer import Tokenizer

LENGTH = 32
CONFIG = ModelConfig(
    vocab_size=300,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=LENGTH,
    eos_token_id=0,
)
TEXTS = ["Grüße, 世界. " * 9, "x", "def f(n):\n    return n + 1\n", "Permission is hereby granted. " * 30, "1 + 1 = 2"]
DOCUMENTS = tuple(document(text) for text in TEXTS)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A dense model and a release of four experts with one tokenizer; weights large enough to have opinions."""
    trained = tokenizer.train(DOCUMENTS, vocab_size=CONFIG.vocab_size)
    directories = {}
    for name, config in (("public", CONFIG), ("release", CONFIG.with_experts(4, 2))):
        model = CausalLM(config, seed=3)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.std() > 0:
                    parameter.mul_(8)
        directories[name] = tmp_path_factory.mktemp(name)
        hf.save(model, directories[name])
        trained.save(directories[name])
    return directories


def domain_of(directory: Path, documents: Sequence[Document] = DOCUMENTS) -> evaluate.Domain:
    return evaluate.prepare(documents, Tokenizer.load(directory), sequence_length=LENGTH)


def slow_bits_per_byte(directory: Path) -> float:
    """One window of one document at a time, by the reference implementation and its tokenizer."""
    model, encoder = AutoModelForCausalLM.from_pretrained(directory).eval(), AutoTokenizer.from_pretrained(directory)
    nats = 0.0
    for text in TEXTS:
        ids = encoder(text, add_special_tokens=False).input_ids
        inputs = [encoder.eos_token_id, *ids[:-1]]
        for start in range(0, len(ids), LENGTH):
            window = torch.tensor([inputs[start : start + LENGTH]])
            targets = torch.tensor(ids[start : start + LENGTH])
            with torch.no_grad():
                nats += float(torch.nn.functional.cross_entropy(model(window).logits[0], targets, reduction="sum"))
    return nats / math.log(2) / sum(len(text.encode()) for text in TEXTS)


# ---- Windows ---------------------------------------------------------------------------------------------------------

documents_of_tokens = st.lists(st.lists(st.integers(1, 9), max_size=40), max_size=12)


@given(documents_of_tokens, st.integers(1, 12))
def test_every_token_is_scored_once_after_what_precedes_it(documents: list[list[int]], length: int) -> None:
    windows = evaluate.pack(documents, sequence_length=length, eos_token_id=0)
    scored = windows.targets_WT != PADDING
    pairs = zip(windows.input_ids_WT[scored].tolist(), windows.targets_WT[scored].tolist(), strict=True)
    expected = [pair for tokens in documents for pair in zip([0, *tokens], tokens, strict=False)]
    assert Counter(pairs) == Counter(expected)
    assert windows.num_tokens == len(expected)


@given(documents_of_tokens, st.integers(1, 12))
def test_a_window_is_one_unbroken_stretch_of_one_document(documents: list[list[int]], length: int) -> None:
    windows = evaluate.pack(documents, sequence_length=length, eos_token_id=0)
    ids = windows.document_ids_WT
    assert ((ids == PADDING) == (windows.targets_WT == PADDING)).all()
    for window in np.unique(ids[ids != PADDING]):
        rows, columns = np.nonzero(ids == window)
        assert len(set(rows)) == 1
        assert (np.diff(columns) == 1).all()
        inputs, targets = windows.input_ids_WT[rows, columns], windows.targets_WT[rows, columns]
        assert (inputs[1:] == targets[:-1]).all()


def test_little_is_padding() -> None:
    lengths = np.random.default_rng(0).integers(1, 400, 300)
    windows = evaluate.pack([[1] * n for n in lengths], sequence_length=128, eos_token_id=0)
    assert windows.num_tokens == lengths.sum() > 0.99 * windows.targets_WT.size


# ---- Scores ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["public", "release"])
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_bits_per_byte_equal_a_slow_computation(models: dict[str, Path], name: str, batch_size: int) -> None:
    scores = evaluate.score(hf.load(models[name]), domain_of(models[name]), batch_size=batch_size)
    assert scores.bits_per_byte == pytest.approx(slow_bits_per_byte(models[name]), abs=1e-4)


def test_shares_are_those_of_the_models_own_choices(models: dict[str, Path]) -> None:
    model, encoder = hf.load(models["release"]), Tokenizer.load(models["release"])
    domain = domain_of(models["release"])
    assert domain.windows.num_tokens < domain.windows.targets_WT.size, "without padding this would test less"
    scores = evaluate.score(model, domain, batch_size=100)
    counts = torch.zeros(2, 4)
    for text in TEXTS:
        ids = encoder.encode(text)
        inputs = [encoder.eos_token_id, *ids[:-1]]
        for start in range(0, len(ids), LENGTH):
            with torch.no_grad():
                logits = model(torch.tensor([inputs[start : start + LENGTH]])).router_logits
            for layer in range(2):
                counts[layer] += torch.bincount(logits[layer][0].topk(2).indices.flatten(), minlength=4)
    expected = counts / counts.sum(dim=1, keepdim=True)
    torch.testing.assert_close(torch.tensor(scores.shares_per_layer), expected)
    torch.testing.assert_close(torch.tensor(scores.shares), expected.mean(dim=0))
    assert sum(scores.shares) == pytest.approx(1)
    assert max(scores.shares) < 0.5, "top-2 of 4: no expert has more than half of the choices"


def test_a_dense_model_is_one_expert_that_is_always_chosen(models: dict[str, Path]) -> None:
    scores = evaluate.score(hf.load(models["public"]), domain_of(models["public"]), batch_size=2)
    assert scores.shares == (1.0,)


def test_damaged_weights_are_no_score(models: dict[str, Path]) -> None:
    model = hf.load(models["public"])
    with torch.no_grad():
        model.model.norm.weight.fill_(math.nan)
    with pytest.raises(JobFailedError, match="the log-likelihood is nan"):
        evaluate.score(model, domain_of(models["public"]), batch_size=2)


# ---- Text ------------------------------------------------------------------------------------------------------------


def test_a_folder_means_its_test_split_and_files_mean_themselves(tmp_path: Path) -> None:
    for split, text in (("train", "a"), ("validation", "b"), ("test", "c")):
        write_documents(tmp_path / f"{split}.jsonl", [document(text)])
    files = (tmp_path / "train.jsonl", tmp_path / "test.jsonl")
    assert [d.text for d in evaluate.read_domain(tmp_path)] == ["c"]
    assert [d.text for d in evaluate.read_domain(files[0])] == ["a"]
    assert [d.text for d in evaluate.read_domain(files)] == ["a", "c"]


@pytest.mark.parametrize("max_bytes", [1, 7, 100, 500, 10_000])
def test_max_bytes_is_kept_and_used_and_cuts_no_character(tmp_path: Path, max_bytes: int) -> None:
    file = tmp_path / "texts.jsonl"
    write_documents(file, [document(f"{i} " + "ü" * 60) for i in range(20)])
    sizes = [len(d.text.encode()) for d in evaluate.read_domain(file, max_bytes=max_bytes)]
    whole = sum(len(d.text.encode()) for d in evaluate.read_domain(file))
    assert min(max_bytes, whole) - 1 <= sum(sizes) <= max_bytes


# ---- The job ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def job_config(models: dict[str, Path], tmp_path: Path) -> EvaluationConfig:
    write_documents(tmp_path / "text.jsonl", DOCUMENTS)
    write_documents(tmp_path / "more.jsonl", [document("Something else entirely, for a second domain. " * 5)])
    return EvaluationConfig(
        models=models,
        domains={"text": (tmp_path / "text.jsonl",), "more": tmp_path / "more.jsonl"},
        output=tmp_path / "results" / "scores.json",
        sequence_length=LENGTH,
        batch_size=2,
    )


def run_job(config: EvaluationConfig, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    (tmp_path / "job.json").write_text(config.model_dump_json())
    return subprocess.run(
        [sys.executable, "-m", "common.evaluate", str(tmp_path / "job.json")],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def test_the_job_writes_scores_and_reports_progress(job_config: EvaluationConfig, tmp_path: Path) -> None:
    done = run_job(job_config, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    *progress, last = [json.loads(line) for line in done.stdout.splitlines()]
    assert {event["event"] for event in progress} == {"progress"}
    assert progress[-1]["task"] == "evaluate"
    assert progress[-1]["done"] == progress[-1]["total"] > 0
    assert (last["event"], last["task"], last["output"]) == ("done", "evaluate", str(job_config.output))

    result = json.loads(job_config.output.read_text())
    assert result.keys() == {"models", "domains", "seconds"}
    assert result["domains"]["text"]["bytes"] == sum(len(text.encode()) for text in TEXTS)
    assert result["models"].keys() == {"public", "release"}
    for name, model in result["models"].items():
        expected = slow_bits_per_byte(job_config.models[name])
        assert model["bits_per_byte"]["text"] == pytest.approx(expected, abs=1e-4)
        for domain in ("text", "more"):
            assert sum(model["shares"][domain]) == pytest.approx(1)
            assert [sum(layer) for layer in model["shares_per_layer"][domain]] == pytest.approx([1, 1])
    assert [file.name for file in job_config.output.parent.iterdir()] == ["scores.json"]


def test_a_failing_job_says_why_in_one_line_and_writes_nothing(job_config: EvaluationConfig, tmp_path: Path) -> None:
    (tmp_path / "text.jsonl").write_text("not JSON\n")
    failed = run_job(job_config, tmp_path)
    assert failed.returncode == 1
    assert "text.jsonl, line 1: not JSON" in failed.stderr
    assert failed.stderr.count("\n") == 1
    assert not job_config.output.exists()


def test_a_field_nobody_knows_is_refused(job_config: EvaluationConfig, tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text(json.dumps(job_config.model_dump(mode="json") | {"temperature": 1}))
    with pytest.raises(MalformedError, match="temperature: Extra inputs are not permitted"):
        evaluate.job.read(tmp_path / "job.json", EvaluationConfig)


def copied(config: EvaluationConfig, tmp_path: Path) -> tuple[EvaluationConfig, Path]:
    """The job with a copy of the release, to be damaged."""
    directory = Path(shutil.copytree(config.models["release"], tmp_path / "copy"))
    return config.model_copy(update={"models": {**config.models, "release": directory}}), directory


def test_models_with_different_tokenizers_are_refused(job_config: EvaluationConfig, tmp_path: Path) -> None:
    config, directory = copied(job_config, tmp_path)
    tokenizer.train([document("other text, other tokens " * 99)], vocab_size=270).save(directory)
    with pytest.raises(MalformedError, match="'public' and 'release' have different tokenizers"):
        evaluate.evaluate(config)


def test_a_model_without_a_tokenizer_is_refused(job_config: EvaluationConfig, tmp_path: Path) -> None:
    config, directory = copied(job_config, tmp_path)
    (directory / "tokenizer.json").unlink()
    with pytest.raises(NotFoundError, match=r"copy: no tokenizer\.json"):
        evaluate.evaluate(config)


def test_a_tokenizer_larger_than_the_model_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    hf.save(CausalLM(replace(CONFIG, vocab_size=299)), tmp_path / "small")
    shutil.copy(models["public"] / "tokenizer.json", tmp_path / "small")
    write_documents(tmp_path / "text.jsonl", DOCUMENTS)
    config = EvaluationConfig(
        models={"small": tmp_path / "small"},
        domains={"text": tmp_path / "text.jsonl"},
        output=tmp_path / "scores.json",
        sequence_length=LENGTH,
    )
    with pytest.raises(MalformedError, match="the tokenizer has 300 tokens but the model 299"):
        evaluate.evaluate(config)


def test_sequences_longer_than_the_model_takes_are_refused(job_config: EvaluationConfig) -> None:
    with pytest.raises(MalformedError, match=r"sequence_length is 33; .* takes at most 32"):
        evaluate.evaluate(job_config.model_copy(update={"sequence_length": 33}))
