"""Training on from a model: all of it or its routers, the best state kept, killed and gone on."""

import json
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_jobs import StartJob, write_text

from common import data, tune
from common.errors import MalformedError
from common.job import StopSignal
from common.model import hf, partition
from common.tokenizer import Tokenizer
from common.tune import TuneJob
from coordinator.combine.upcycle import upcycle


def _config(start: Path, output: Path, sources: dict[str, object], **changes: object) -> dict[str, object]:
    steps = {"steps": 20, "batch_size": 4, "sequence_length": 32, "learning_rate": 1e-2, "warmup_steps": 2}
    return {"start": str(start), "output": str(output), "sources": sources, **steps, **changes}


def _run(config: dict[str, object]) -> dict[str, object]:
    return tune.run(TuneJob.model_validate(config), StopSignal())


def _own(text: Path) -> dict[str, object]:
    return {"own": {"text": str(text / "own"), "share": 1.0}}


def _own_and_public(text: Path) -> dict[str, object]:
    return {name: {"text": str(text / name), "share": 0.5} for name in ("own", "public")}


@pytest.fixture
def mixture(base: Path, tmp_path: Path) -> Path:
    """A model of three experts, saved."""
    directory = tmp_path / "mixture"
    directory.mkdir()
    hf.save(upcycle([hf.load(base)] * 3, num_experts_per_tok=2, seed=0), directory)
    Tokenizer.load(base).save(directory)
    return directory


def test_a_dense_model_learns_the_text_it_is_trained_on(base: Path, text: Path, tmp_path: Path) -> None:
    record = _run(_config(base, tmp_path / "dense", _own(text)))
    assert record["final_loss"] < 0.8 * record["first_loss"]  # type: ignore[operator]
    before, after = (load_file(place / "model.safetensors") for place in (base, tmp_path / "dense"))
    assert before.keys() == after.keys()
    assert not any(torch.equal(before[name], after[name]) for name in before)
    assert _run(_config(base, tmp_path / "dense", _own(text))) == json.loads(json.dumps(record))


def test_router_training_moves_the_rows_alone(mixture: Path, text: Path, tmp_path: Path) -> None:
    _run(_config(mixture, tmp_path / "tuned", _own_and_public(text), trained="routers"))
    before, after = (load_file(place / "model.safetensors") for place in (mixture, tmp_path / "tuned"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {partition.joined_router(layer) for layer in range(2)}


def test_rows_of_owners_without_proxies_stay(mixture: Path, text: Path, tmp_path: Path) -> None:
    _run(_config(mixture, tmp_path / "tuned", _own(text), trained="routers", kept_rows=[1]))
    before, after = (load_file(place / "model.safetensors") for place in (mixture, tmp_path / "tuned"))
    for name in (partition.joined_router(layer) for layer in range(2)):
        same = [torch.equal(old, new) for old, new in zip(before[name], after[name], strict=True)]
        assert same == [False, True, False]
    for kept, message in (([3], "no expert 3 among the 3"), ([0, 1, 2], "nothing to train")):
        with pytest.raises(MalformedError, match=message):
            _run(_config(mixture, tmp_path / "other", _own(text), trained="routers", kept_rows=kept))
    with pytest.raises(ValueError, match="kept_rows are for training routers"):
        TuneJob.model_validate(_config(mixture, tmp_path / "other", _own(text), kept_rows=[1]))


def test_routing_of_a_held_text_stays_nearer_to_what_it_was(mixture: Path, text: Path, tmp_path: Path) -> None:
    moved = {}
    for weight in (None, 1000.0):
        held = weight and {"source": "public", "weight": weight}
        output = tmp_path / f"held {weight}"
        _run(_config(mixture, output, _own_and_public(text), trained="routers", held=held))
        moved[weight] = _moved(mixture, output, text / "public")
    assert moved[1000.0] < 0.1 * moved[None]


def _moved(before: Path, after: Path, text: Path) -> float:
    """Mean change of the routing of a text from one model to another."""
    documents = [document.text for document in data.read_split(text, "train")[:8]]
    tokens = Tokenizer.load(before).encode_all(documents)
    then, now = (
        [hf.load(path)(torch.tensor([ids])).router_logits[0].softmax(dim=-1) for ids in tokens]
        for path in (before, after)
    )
    return float(torch.cat([(new - old).abs().flatten() for old, new in zip(then, now, strict=True)]).mean().detach())


def test_what_is_held_is_a_text_of_those_that_routers_are_trained_on(text: Path, tmp_path: Path) -> None:
    held = {"source": "public", "weight": 1.0}
    with pytest.raises(ValueError, match="held: no source public among own"):
        TuneJob.model_validate(_config(tmp_path, tmp_path / "tuned", _own(text), trained="routers", held=held))
    with pytest.raises(ValueError, match="held is for training routers"):
        TuneJob.model_validate(_config(tmp_path, tmp_path / "tuned", _own_and_public(text), held=held))


def test_a_model_of_short_numbers_stays_one(mixture: Path, text: Path, tmp_path: Path) -> None:
    """Rows are placed beside others by their bytes, so they must be of the same kind; those that stay are the same."""
    model, short = hf.load(mixture, dtype=torch.bfloat16), tmp_path / "short"
    hf.save(model, short)
    config = short / "config.json"
    config.write_text(config.read_text().replace('"float32"', '"bfloat16"'))
    Tokenizer.load(mixture).save(short)
    _run(_config(short, tmp_path / "tuned", _own(text), trained="routers", kept_rows=[0]))
    before, after = (load_file(place / "model.safetensors") for place in (short, tmp_path / "tuned"))
    assert {tensor.dtype for tensor in after.values()} == {torch.bfloat16}
    for name in (partition.joined_router(layer) for layer in range(2)):
        assert [torch.equal(*rows) for rows in zip(before[name], after[name], strict=True)] == [True, False, False]


def test_a_dense_model_has_no_routers_to_train(base: Path, text: Path, tmp_path: Path) -> None:
    with pytest.raises(MalformedError, match="has no routers to train; give a release"):
        _run(_config(base, tmp_path / "tuned", _own(text), trained="routers"))


def test_router_rows_are_trained_without_a_loss_on_their_size_unless_asked_for(text: Path, tmp_path: Path) -> None:
    def z_loss(**changes: object) -> float:
        return TuneJob.model_validate(_config(tmp_path, tmp_path / "tuned", _own(text), **changes)).router_z_loss

    assert z_loss(trained="routers") == 0
    assert z_loss(trained="routers", router_z_loss=0.5) == 0.5
    assert z_loss() > 0


def test_shares_that_are_no_whole_are_refused(base: Path, text: Path, tmp_path: Path) -> None:
    sources = {"own": {"text": str(text / "own"), "share": 0.5}}
    with pytest.raises(ValueError, match="do not sum to 1"):
        TuneJob.model_validate(_config(base, tmp_path / "tuned", sources))


def test_what_validation_does_not_like_is_not_kept(base: Path, text: Path, tmp_path: Path) -> None:
    """Trained on other text, the model only gets worse on public text, so its first state is the best."""
    validation = {"text": str(text / "public"), "every_steps": 5}
    record = _run(_config(base, tmp_path / "tuned", _own(text), validation=validation))
    assert record["best"]["step"] == 0  # type: ignore[index, call-overload]
    for name, tensor in load_file(tmp_path / "tuned" / "model.safetensors").items():
        assert torch.equal(tensor, load_file(base / "model.safetensors")[name])


def test_the_best_step_is_kept_and_not_the_last(base: Path, text: Path, tmp_path: Path) -> None:
    """Of few documents, so that it overfits at a high rate: some step between is the best on held-out text."""
    few = write_text(tmp_path / "few", "own", num_documents=3)
    sources = {"few": {"text": str(few), "share": 1.0}}
    validation = {"text": str(text / "own"), "every_steps": 8}
    config = _config(base, tmp_path / "tuned", sources, validation=validation, steps=200, learning_rate=3e-2)
    best = _run(config)["best"]
    assert 0 < best["step"] < 200  # type: ignore[index, call-overload]


def test_training_ends_where_nothing_is_gained_any_more(base: Path, text: Path, tmp_path: Path) -> None:
    """Only the first state is good for public text, so two tries that are no better are enough."""
    validation = {"text": str(text / "public"), "every_steps": 3, "patience": 2}
    record = _run(_config(base, tmp_path / "tuned", _own(text), validation=validation))
    assert (record["steps"], record["best"]["step"]) == (6, 0)  # type: ignore[index, call-overload]


def test_killed_and_started_again_it_ends_with_the_same_bits(
    mixture: Path, text: Path, tmp_path: Path, start_job: StartJob
) -> None:
    """Held to the routing it started with, too, and not to that of a checkpoint."""
    validation = {"text": str(text / "own"), "every_steps": 3}
    options = {"validation": validation, "trained": "routers", "held": {"source": "public", "weight": 2.0}}
    whole = _config(mixture, tmp_path / "whole", _own_and_public(text), **options)
    uninterrupted, errors = start_job("common.tune", whole).communicate()
    assert uninterrupted, errors
    again = {**whole, "output": str(tmp_path / "again"), "checkpoint_every_steps": 1, "progress_every_s": 0}
    process = start_job("common.tune", again)
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line).get("step", 0) >= 8:
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    assert not (tmp_path / "again").exists()
    process = start_job("common.tune", again)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert json.loads(output.splitlines()[0])["step"] >= 8
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "again"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert json.loads(output.splitlines()[-1])["best"] == json.loads(uninterrupted.splitlines()[-1])["best"]


def test_a_damaged_start_is_refused(base: Path, text: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    Tokenizer.load(base).save(damaged)
    model = hf.load(base)
    hf.save(model, damaged)
    tensors = load_file(damaged / "model.safetensors")
    tensors.pop("lm_head.weight")
    save_file(tensors, damaged / "model.safetensors")
    with pytest.raises(MalformedError, match=r"missing, the first is lm_head\.weight"):
        _run(_config(damaged, tmp_path / "tuned", _own(text)))
