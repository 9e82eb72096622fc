"""The loss, the schedule, and jobs that are killed, stopped, misconfigured or run twice."""

import json
import os
import signal
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from small_jobs import StartJob, expert_config, pretrain_config
from torch import Tensor

from common import tokenizer, training, training_job
from common.data import read_split
from common.errors import ConflictError, JobFailedError, MalformedError
from common.job import EXIT_STOPPED, StoppedError, StopSignal
from common.loss import TensorBatch, language_loss
from common.model.transformer import ModelOutput
from coordinator import pretrain
from owner_client import train


def _batch(targets_BT: torch.Tensor) -> TensorBatch:
    ids_BT = torch.zeros_like(targets_BT)
    return TensorBatch(targets_BT, targets_BT, ids_BT, ids_BT, torch.zeros(len(targets_BT)))


def test_the_loss_and_its_gradient_equal_the_textbook_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, routers = torch.randn(2, 5, 11, generator=generator) * 3, torch.randn(2, 5, 2, generator=generator)
    targets = torch.randint(11, (2, 5), generator=generator)
    ours, theirs = (logits.clone().requires_grad_() for _ in range(2))
    loss = language_loss(ModelOutput(ours, (routers,)), _batch(targets), z_loss=0.1, router_z_loss=0.2)
    loss.total.backward()
    cross_entropy = F.cross_entropy(theirs.flatten(0, 1), targets.flatten())
    z, router_z = (x.logsumexp(-1).square().mean() for x in (theirs, routers))
    expected = cross_entropy + 0.1 * z + 0.2 * router_z
    expected.backward()
    torch.testing.assert_close(loss.total, expected)
    torch.testing.assert_close(loss.cross_entropy, cross_entropy)
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_the_learning_rate_warms_up_and_falls_to_its_final_share() -> None:
    rates = [training.learning_rate_share(s, steps=100, warmup_steps=10, final_share=0.1) for s in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1.0
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert rates[100] == pytest.approx(0.1)


def test_annealing_goes_on_from_the_cosine_straight_to_zero() -> None:
    whole = {"steps": 120, "warmup_steps": 10, "final_share": 0.1, "anneal_steps": 20}
    rates = [training.learning_rate_share(step, **whole) for step in range(121)]  # type: ignore[arg-type]
    plain = [training.learning_rate_share(s, steps=100, warmup_steps=10, final_share=0.1) for s in range(100)]
    assert rates[:100] == plain
    assert rates[100] == pytest.approx(0.1)
    assert rates[110] == pytest.approx(0.05)
    assert rates[120] == 0


def _pretrained(config: dict[str, object], patch: pytest.MonkeyPatch, *, stop_after: int) -> dict[str, Tensor]:
    """The weights of a run that was asked to stop after so many steps, and went on."""
    stop = StopSignal()

    def report(progress: training.Progress) -> None:
        stop.requested = progress.step == stop_after - 1

    with patch.context() as patched:
        patched.setattr(training_job, "reporter", lambda task: report)
        with pytest.raises(StoppedError, match=f"after step {stop_after} of 20"):
            pretrain.run(pretrain.PretrainJob.model_validate({**config, "progress_every_s": 0.0}), stop)
    pretrain.run(pretrain.PretrainJob.model_validate(config), StopSignal())
    return load_file(Path(str(config["output"])) / "model.safetensors")


def test_annealing_reads_its_own_text_and_resumes_with_the_same_bits(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped while it anneals; and text that nothing anneals on changes nothing."""
    options = {"steps": 20, "anneal_steps": 8, "final_learning_rate_share": 0.2, "topic_weight": 0.0}
    results = {}
    for name, annealing in (("same", None), ("own", str(text / "own"))):
        config = pretrain_config(text, tmp_path / name, **options, annealing=annealing)
        pretrain.run(pretrain.PretrainJob.model_validate(config), StopSignal())
        results[name] = load_file(tmp_path / name / "model.safetensors")
    assert any(not torch.equal(results["same"][n], results["own"][n]) for n in results["own"])
    config = pretrain_config(text, tmp_path / "again", **options, annealing=str(text / "own"))
    again = _pretrained(config, monkeypatch, stop_after=15)
    assert all(torch.equal(again[n], results["own"][n]) for n in again)


@pytest.mark.parametrize("stop_after", [10, 17])
def test_the_last_steps_read_longer_sequences_and_resume_with_the_same_bits(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_after: int
) -> None:
    """Stopped before and after it reads long sequences and another text; what it reads is as many tokens as ever."""
    options = {"steps": 20, "long_steps": 8, "long_sequence_length": 64, "topic_weight": 0.3}
    later = {"anneal_steps": 5, "final_learning_rate_share": 0.2, "annealing": str(text / "own")}
    config = pretrain_config(text, tmp_path / "whole", **options, **later)
    record = pretrain.run(pretrain.PretrainJob.model_validate(config), StopSignal())
    assert record["tokens"] == 20 * 4 * 32
    assert json.loads((tmp_path / "whole" / "config.json").read_text())["max_position_embeddings"] == 64
    whole = load_file(tmp_path / "whole" / "model.safetensors")
    again = _pretrained({**config, "output": str(tmp_path / "again")}, monkeypatch, stop_after=stop_after)
    assert all(torch.equal(again[n], whole[n]) for n in whole)


def test_stages_read_what_they_say(text: Path, tmp_path: Path) -> None:
    options = {"steps": 20, "long_steps": 8, "long_sequence_length": 64, "anneal_steps": 5}
    config = pretrain.PretrainJob.model_validate(
        pretrain_config(
            text, tmp_path, **options, final_learning_rate_share=0.2, annealing=str(text / "own"), topic_weight=0.0
        )
    )
    public, own = (read_split(text / name, "train") for name in ("public", "own"))
    tokens = tokenizer.train(public, vocab_size=config.vocab_size)
    shapes, sources = [], []
    stages = pretrain._stages(config, tokens, public, own)
    for batch, state in pretrain._batches_of(stages):
        shapes.append(batch.input_ids_BT.shape)
        sources.append(tuple(count > 0 for count in state.consumed))
    assert shapes == [(4, 32)] * 12 + [(2, 64)] * 8
    assert sources == [(True, False, False)] * 12 + [(True, True, False)] * 3 + [(True, True, True)] * 5
    assert [stage.text.num_tokens for stage in stages[:2]] != [stage.text.num_tokens for stage in stages[1:]]


@pytest.mark.parametrize(
    "change",
    [
        {"long_steps": 5},
        {"long_sequence_length": 64},
        {"long_steps": 5, "long_sequence_length": 48},
        {"long_steps": 5, "long_sequence_length": 256},
        {"long_steps": 1_000_000, "long_sequence_length": 64},
    ],
)
def test_long_sequences_that_cannot_be_are_refused(text: Path, tmp_path: Path, change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="long_sequence_length"):
        pretrain.PretrainJob.model_validate(pretrain_config(text, tmp_path / "base", **change))


@pytest.mark.parametrize("change", [{"anneal_steps": 30}, {"anneal_steps": 5, "final_learning_rate_share": 0.0}])
def test_annealing_that_cannot_be_is_refused(text: Path, tmp_path: Path, change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="need a final_learning_rate_share above 0"):
        pretrain.PretrainJob.model_validate(pretrain_config(text, tmp_path / "base", **change))


def _weights(output: Path, name: str) -> bytes:
    return (output / name).read_bytes()


def _kill_at(process: "subprocess.Popen[str]", step: int) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line).get("step") == step:
            os.kill(process.pid, signal.SIGKILL)
            break
    process.communicate()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("kill_steps", [(11,), (7, 22)])
def test_pretraining_killed_and_restarted_ends_with_the_same_bits(
    kill_steps: tuple[int, ...], text: Path, tmp_path: Path, start_job: StartJob
) -> None:
    frequent = {"checkpoint_every_steps": 3, "progress_every_s": 0}
    undisturbed = pretrain.PretrainJob.model_validate(pretrain_config(text, tmp_path / "undisturbed"))
    pretrain.run(undisturbed, StopSignal())
    killed = pretrain_config(text, tmp_path / "killed", **frequent)
    for step in kill_steps:
        _kill_at(start_job("coordinator.pretrain", killed), step)
        assert not (tmp_path / "killed").exists()
        assert (tmp_path / "killed.checkpoint").exists()
    process = start_job("coordinator.pretrain", killed)
    out, _ = process.communicate()
    first = json.loads(out.splitlines()[0])
    assert first["step"] > kill_steps[-1] - 3
    for name in ("model.safetensors", "router.safetensors", "tokenizer.json", "config.json"):
        assert _weights(tmp_path / "killed", name) == _weights(tmp_path / "undisturbed", name)
    assert not (tmp_path / "killed.checkpoint").exists()


def test_an_expert_killed_and_restarted_ends_with_the_same_bits(
    text: Path, base: Path, tmp_path: Path, start_job: StartJob
) -> None:
    train.run(train.ExpertJob.model_validate(expert_config(text, base, tmp_path / "undisturbed")), StopSignal())
    killed = expert_config(text, base, tmp_path / "killed", checkpoint_every_steps=4, progress_every_s=0)
    _kill_at(start_job("owner_client.train", killed), 13)
    process = start_job("owner_client.train", killed)
    out, _ = process.communicate()
    assert json.loads(out.splitlines()[0])["step"] > 9
    name = train.EXPERT_FILE
    assert _weights(tmp_path / "killed", name) == _weights(tmp_path / "undisturbed", name)


def test_a_checkpoint_half_written_is_ignored(text: Path, tmp_path: Path) -> None:
    config = pretrain.PretrainJob.model_validate(pretrain_config(text, tmp_path / "base", steps=2))
    partial = config.checkpoint_folder / "partial"
    partial.mkdir(parents=True)
    (partial / "state.json").write_text('{"step": 1')
    assert pretrain.run(config, StopSignal())["steps"] == 2


def test_sigterm_saves_and_stops_and_the_next_run_goes_on(text: Path, tmp_path: Path, start_job: StartJob) -> None:
    config = pretrain_config(text, tmp_path / "base", steps=400, progress_every_s=0)
    process = start_job("coordinator.pretrain", config)
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line)["step"] >= 5:
            process.terminate()
            break
    _, errors = process.communicate()
    assert process.returncode == EXIT_STOPPED
    assert "run the job again to go on" in errors
    stopped = int(next((tmp_path / "base.checkpoint").glob("step-*")).name.removeprefix("step-"))
    process = start_job("coordinator.pretrain", config)
    out, _ = process.communicate()
    events = [json.loads(line) for line in out.splitlines()]
    assert events[0]["step"] == stopped + 1
    assert events[0].keys() == {"event", "task", "step", "steps", "loss", "tokens_per_s", "seconds_left"}
    assert events[-1]["event"] == "done"
    assert events[-1]["steps"] == 400


def _interrupted(config: pretrain.PretrainJob) -> None:
    stop = StopSignal()
    stop.requested = True
    with pytest.raises(StoppedError):
        pretrain.run(config, stop)


def test_a_checkpoint_of_another_job_is_refused(text: Path, tmp_path: Path) -> None:
    config = pretrain.PretrainJob.model_validate(pretrain_config(text, tmp_path / "base"))
    _interrupted(config)
    with pytest.raises(ConflictError, match="another job or other text"):
        pretrain.run(config.model_copy(update={"learning_rate": 5e-3}), StopSignal())


def test_a_broken_checkpoint_says_what_to_remove(text: Path, tmp_path: Path) -> None:
    config = pretrain.PretrainJob.model_validate(pretrain_config(text, tmp_path / "base"))
    _interrupted(config)
    tensors = config.checkpoint_folder / "step-000000001" / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-7])
    with pytest.raises(MalformedError, match=r"step-000000001: not a checkpoint .* remove it"):
        pretrain.run(config, StopSignal())


def test_a_finished_job_is_not_run_twice_and_its_output_not_overwritten(text: Path, tmp_path: Path) -> None:
    config = pretrain.PretrainJob.model_validate(pretrain_config(text, tmp_path / "base", steps=2))
    record = pretrain.run(config, StopSignal())
    before = (tmp_path / "base" / "model.safetensors").stat().st_mtime_ns
    assert pretrain.run(config, StopSignal()) == record
    assert (tmp_path / "base" / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(ConflictError, match="is not this job's"):
        pretrain.run(config.model_copy(update={"seed": 9}), StopSignal())


def test_a_loss_that_is_no_number_fails_the_job(text: Path, tmp_path: Path) -> None:
    config = pretrain.PretrainJob.model_validate(
        pretrain_config(text, tmp_path / "base", learning_rate=1e30, warmup_steps=0)
    )
    with pytest.raises(JobFailedError, match="choose a lower learning_rate"):
        pretrain.run(config, StopSignal())
    assert not (tmp_path / "base").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps: Input should be greater"),
        ({"step": 5}, "step: Extra inputs"),
        ({"public": "/nowhere"}, "/nowhere: no such file or folder"),
        ({"sequence_length": 100_000}, "tokens are too few; one sequence needs 100,001"),
        ({"vocab_size": 5_000}, "enough variety for"),
        ({"num_attention_heads": 3}, "hidden_size is 16"),
    ],
)
def test_a_job_that_cannot_run_prints_one_line_and_exits_1(
    changes: dict[str, object], message: str, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "job.json").write_text(json.dumps(pretrain_config(text, tmp_path / "base", **changes)))
    assert pretrain.main([str(tmp_path / "job.json")]) == 1
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1


def test_a_job_needs_its_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main([]) == 1
    assert train.main([str(tmp_path / "none.json")]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "one argument is expected, the job's JSON file; there are 0",
        f"{tmp_path / 'none.json'}: cannot be read (No such file or directory)",
    ]
