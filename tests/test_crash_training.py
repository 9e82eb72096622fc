"""kill -9 while an owner trains, of the training or of the command above it: the same command again ends with the same
bits, and the expert takes its place in a release."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from common.audit import audit
from common.job import StopSignal
from common.model.expert import EXPERT_NAME
from coordinator import pretrain
from coordinator.releases import publish_base
from owner_client import train
from tests.federation import Federation, Owner
from tests.training.small_jobs import WORDS, expert_config, pretrain_config, write_text

STEPS = {"steps": 60, "checkpoint_every_steps": 20, "progress_every_s": 0}
POINTS = {
    "before the first checkpoint takes its place": ("os.rename", r"checkpoint/partial "),
    "before the second checkpoint takes its place": ("os.rename", r"step-0+40$"),
    "before the expert takes its place": ("os.rename", r"/experts/[0-9a-f]{16}\.partial "),
    "before the checkpoints are cleared away": ("shutil.rmtree", r"/experts/[0-9a-f]{16}\.checkpoint$"),
}


@dataclass(frozen=True)
class Training:
    """Text, a base, and the expert that a training nobody disturbs makes of them."""

    text: Path
    base: Path
    expert: bytes


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Training:
    path = tmp_path_factory.mktemp("training")
    for kind in WORDS:
        write_text(path / kind, kind)
    base, expert = path / "base", path / "expert"
    pretrain.run(pretrain.PretrainJob.model_validate(pretrain_config(path, base, steps=5)), StopSignal())
    train.run(train.ExpertJob.model_validate(expert_config(path, base, expert, **STEPS)), StopSignal())
    return Training(path, base, (expert / EXPERT_NAME).read_bytes())


@pytest.fixture
def owner(federation: Federation, training: Training) -> Owner:
    """An owner that has given its consent over the base and has text to train on."""
    publish_base(federation.coordinator, training.base)
    owner = federation.enrol("archive")
    owner.consent()
    return owner


@pytest.mark.parametrize("when", POINTS.values(), ids=POINTS)
def test_a_killed_training_goes_on(
    when: tuple[str, str], federation: Federation, owner: Owner, training: Training, tmp_path: Path
) -> None:
    marker = tmp_path / "killed"
    crash = {
        "PYTHONPATH": str(Path(__file__).parent / "crash"),
        "CRASH_POINT": json.dumps([when]),
        "CRASH_MARKER": str(marker),
    }
    killed = start_training(owner, training, **crash)
    _, errors = killed.communicate()
    assert killed.returncode == 1
    assert "was stopped by SIGKILL; start it again and it goes on" in errors
    assert marker.exists()
    finish(federation, owner, training)


def test_a_training_whose_command_was_killed_goes_on(federation: Federation, owner: Owner, training: Training) -> None:
    command = start_training(owner, training)
    next(steps_of(command))
    jobs = psutil.Process(command.pid).children()
    command.kill()
    command.communicate()
    assert command.returncode == -signal.SIGKILL
    finish(federation, owner, training)
    assert [job for job in jobs if job.is_running()] == []


def start_training(owner: Owner, training: Training, **environment: str) -> "subprocess.Popen[str]":
    places = {"base", "data", "public", "output"}
    options = {**expert_config(training.text, training.base, training.text, **STEPS)}
    config = owner.home.path / "training.toml"
    config.write_text("".join(f"{name} = {value}\n" for name, value in options.items() if name not in places))
    arguments = [
        "owner", "train", "--home", owner.home.path, "--config", config,
        "--data", training.text / "own", "--public", training.text / "public", "--json",
    ]  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-m", "concord", *map(str, arguments)],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def steps_of(command: "subprocess.Popen[str]") -> Iterator[float]:
    """The steps of training that a command reports, as they come."""
    assert command.stdout is not None
    for line in command.stdout:
        event = json.loads(line)
        if event["event"] == "progress" and event["task"] == "training the expert":
            yield event["done"]


def finish(federation: Federation, owner: Owner, training: Training) -> None:
    """The same command again trains to the end; what it made is the undisturbed expert and goes into a release."""
    again = start_training(owner, training)
    _, errors = again.communicate()
    assert again.returncode == 0, errors
    (expert,) = owner.home.experts.glob(f"*/{EXPERT_NAME}")
    assert expert.read_bytes() == training.expert
    owner.submit()
    assert dict(federation.release().owners) == {1: owner.name}
    assert audit(federation.public).holds
