"""The frame of a training job: one process an output at a time, progress as events, a result that is there or not.

What a job makes appears complete, by a rename, with `training.json` in it: the resolved configuration, its fingerprint
and what came of it. The same job run again finds its result done.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Literal, TypeVar

from common import job
from common.errors import ConflictError, MalformedError
from common.files import sync, taking_turns
from common.job import StopSignal
from common.training import Progress, TrainingConfig

RESULT_FILE: Final = "training.json"

Config = TypeVar("Config", bound=TrainingConfig)


def run(
    arguments: list[str], config_class: type[Config], train: Callable[[Config, StopSignal], dict[str, object]]
) -> int:
    """Run a training as a process (`common.job.run`): one at a time for an output, stopped by SIGTERM between steps."""

    def work(config: Config) -> dict[str, object]:
        job.use_cpu(threads=config.threads)
        config.output.parent.mkdir(parents=True, exist_ok=True)
        # One that lost its parent ends at its next report; until then the next one waits.
        with taking_turns(config.output.with_name(config.output.name + ".lock")):
            return train(config, StopSignal().listen())

    return job.run(arguments, config_class, work)


def reporter(task: Literal["pretrain", "train", "tune"]) -> Callable[[Progress], None]:
    """What prints progress events of a task."""

    def report(progress: Progress) -> None:
        job.emit(
            "progress",
            {
                "task": task,
                "step": progress.step,
                "steps": progress.steps,
                "loss": round(progress.loss, 4),
                "tokens_per_s": round(progress.tokens_per_s),
                "seconds_left": round(progress.seconds_left, 1),
            },
        )

    return report


def finished(config: TrainingConfig, fingerprint: str) -> dict[str, object] | None:
    """What an earlier run of the same job recorded in a complete output; None when there is no output yet.

    Raises:
        ConflictError: something else is there.
    """
    output = config.output
    if not output.exists():
        return None
    try:
        record: dict[str, object] = json.loads((output / RESULT_FILE).read_text())
        if record["fingerprint"] == fingerprint:
            shutil.rmtree(config.checkpoint_folder, ignore_errors=True)  # in case a crash left it
            return record
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise ConflictError(f"{output} is there already and is not this job's; choose another output or remove it")


def unseen_share(base: Path) -> float:
    """Share of the public documents that the model in `base` was not trained on; 0 where its record says none."""
    path = base / RESULT_FILE
    if not path.exists():
        return 0.0
    try:
        share = float(json.loads(path.read_text()).get("config", {}).get("unseen_share", 0.0))
    except (ValueError, AttributeError, TypeError) as error:
        raise MalformedError(f"{path}: cannot be read ({error}); is this a public model's directory?") from error
    if not 0 <= share < 1:
        raise MalformedError(f"{path}: an unseen share of {share} is none")
    return share


def write_record(directory: Path, record: Mapping[str, object]) -> None:
    """Write `training.json`: the resolved configuration and what came of it."""
    (directory / RESULT_FILE).write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")


def publish(output: Path, write: Callable[[Path], None], *, checkpoint: Path) -> None:
    """Let `write` fill a folder beside `output` and rename it into place; then the checkpoints may go."""
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    write(partial)
    for file in partial.iterdir():
        sync(file)
    partial.rename(output)
    sync(output.parent)
    shutil.rmtree(checkpoint, ignore_errors=True)
