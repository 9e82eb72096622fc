"""A public model in miniature, pretrained once by the real job, and text for owners."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from small_jobs import WORDS, StartJob, pretrain_config, write_text


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the corpora `public` and `own`."""
    folder = tmp_path_factory.mktemp("text")
    for kind in WORDS:
        write_text(folder / kind, kind)
    return folder


@pytest.fixture
def start_job(tmp_path: Path) -> StartJob:
    def start(module: str, config: dict[str, object]) -> "subprocess.Popen[str]":
        path = tmp_path / "job.json"
        path.write_text(json.dumps(config, default=str))
        command = [sys.executable, "-m", module, str(path)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return start


@pytest.fixture(scope="session")
def base(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base directory that the pretraining job makes."""
    from common.job import StopSignal
    from coordinator import pretrain

    output = tmp_path_factory.mktemp("base") / "base"
    pretrain.run(pretrain.PretrainJob.model_validate(pretrain_config(text, output, steps=100)), StopSignal())
    return output
