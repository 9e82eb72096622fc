"""What does a campaign cost beside the work itself, natively and over Flower, and with how many owners?

    python -m benchmarks.campaigns [--demo DIR]        # the last line is one JSON object

The demo's consortium is brought to its first release, whose quality three owners are asked for, in rounds: natively,
then over Flower. Figures of both must be those of an evaluation with all text in one place. What a round takes is from
the moment that it is asked to the log's word that it is closed; beside it, in turn, the owners' same jobs run at once
with nothing around them. Owners ask every second, and so does Flower. A simulation of 200 owners follows.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from threading import Event
from typing import Any, Final

from benchmarks.machine import describe
from common.console import JsonReporter
from common.evaluate import EvaluationConfig, evaluate
from common.model.expert import read_config
from common.trust.campaign_statements import Evaluate
from coordinator.campaign_subjects import model_of
from coordinator.home import Coordinator, open_home
from deploy import corpora, demo
from deploy.demo import Plan, Stage
from deploy.processes import free_ports

RELEASE: Final = "release-1"
LIMIT_S: Final = 300.0
MIN_DOCUMENTS: Final = 2
MAX_BYTES: Final = 50_000


def consortium(directory: Path, *, text: Path, owners: list[str], seed: int, **recipe: Mapping[str, float]) -> Stage:
    """The demo's consortium, with its first release and nothing running; an earlier one in the same place goes on."""
    directory.mkdir(parents=True, exist_ok=True)
    plan = Plan(directory, data=text, num_owners=len(owners), seed=seed, keep=True, **recipe)
    stage = Stage(plan, text, owners, JsonReporter(sys.stderr), Event())
    if not (stage.public / "releases" / RELEASE).exists():
        with ExitStack() as running:
            demo.bring_together(stage, running, lambda _: nullcontext())
            demo.make_release(stage, RELEASE)
    return stage


def demo_text(directory: Path, seed: int) -> Path:
    """The demo's own text."""
    text = directory / "text"
    if not (text / ".complete").exists():
        corpora.write_default(text, seed=seed)
        (text / ".complete").touch()
    return text


def set_owner(stage: Stage, owner: str, *, accept: str, flower: bool) -> None:
    """What this owner's person writes for campaigns."""
    settings = stage.owner_home(owner) / "owner.toml"
    written = settings.read_text().partition("\n[campaigns]")[0]
    more = f"\n[campaigns]\naccept = {json.dumps([accept])}\nmin_documents = {MIN_DOCUMENTS}\nthreads = 1\n"
    settings.write_text(f"{written}{more}\n[flower]\nenabled = {json.dumps(flower)}\n")


def set_flower(stage: Stage) -> None:
    """What the admin writes for Flower."""
    settings = stage.home / "coordinator.toml"
    written = settings.read_text().partition("\n[flower]")[0]
    port, local_port = free_ports(2)
    more = f"\n[flower]\nenabled = true\nport = {port}\nlocal_port = {local_port}\nevery_s = 1\n"
    settings.write_text(f"{written}{more}")


@contextmanager
def daemons(stage: Stage, *, flower: bool) -> Iterator[None]:
    """The coordinator and all owners, up and idle."""
    with ExitStack() as running:
        serving = stage.start("serving", "coordinator", "serve", "--home", stage.home)
        running.callback(serving.stop)
        serving.wait_for_step("serving", stage.stop)
        owners = {each: stage.start(each, "owner", "run", "--home", stage.owner_home(each)) for each in stage.owners}
        for daemon in owners.values():
            running.callback(daemon.stop)
        for daemon in owners.values():
            daemon.wait_for_step("the expert is submitted", stage.stop)
        if flower:
            serving.wait_for_step(f"{len(owners)} of the owners' nodes are there over Flower", stage.stop)
        yield


def ask(coordinator: Coordinator, parameters: Any) -> tuple[str, float]:
    """Ask all owners and wait for the log's word that it is over; the campaign's id, and the seconds that took."""
    begun = time.monotonic()
    campaign_id = coordinator.campaigns.define(parameters, min_documents=MIN_DOCUMENTS).statement.record_id
    while coordinator.campaigns.find(campaign_id).closed_index is None:
        if time.monotonic() - begun > LIMIT_S:
            raise TimeoutError(f"campaign {campaign_id}: {coordinator.campaigns.table(campaign_id)}")
        time.sleep(0.02)
    return campaign_id, time.monotonic() - begun


def figures(coordinator: Coordinator, campaign_id: str) -> dict[str, float]:
    """Bits per byte by owner."""
    results = coordinator.campaigns.results(campaign_id)
    return {owner: result.figures[0].value for owner, result in results.items()}


def locally(stage: Stage) -> float:
    """The owners' jobs, all at once, with everything they need at hand; the seconds that took."""
    release, started = stage.public / "releases" / RELEASE, time.monotonic()
    jobs = []
    with tempfile.TemporaryDirectory() as scratch:
        key = Path(scratch) / "key"
        key.write_bytes(bytes(32))
        for owner in stage.owners:
            job = {"model": release, "held_out": {owner: stage.text / owner}, "threads": 1, "key": key,
                   "max_bytes": MAX_BYTES, "output": Path(scratch) / f"{owner}.found"}  # fmt: skip
            path = Path(scratch) / f"{owner}.json"
            path.write_text(json.dumps(job, default=str))
            command = [sys.executable, "-m", "owner_client.campaign_evaluation", str(path)]
            jobs.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
        statuses = [job.wait() for job in jobs]
        if any(statuses):
            raise RuntimeError("a job failed")
    return time.monotonic() - started


def in_one_place(stage: Stage) -> dict[str, float]:
    """Bits per byte of the release on every owner's text, evaluated together."""
    release, output = stage.public / "releases" / RELEASE, stage.plan.workdir / "in-one-place.json"
    evaluate(
        EvaluationConfig(
            models={"release": release}, domains={owner: stage.text / owner for owner in stage.owners}, output=output,
            sequence_length=read_config(release).max_position_embeddings, max_bytes=MAX_BYTES, threads=2,
        )
    )  # fmt: skip
    found: dict[str, float] = json.loads(output.read_text())["models"]["release"]["bits_per_byte"]
    return found


def rounds(stage: Stage, *, count: int, flower: bool) -> tuple[dict[str, float], list[float], list[float]]:
    """Figures of the last round, and the seconds of each round and of the same work alone."""
    for owner in stage.owners:
        set_owner(stage, owner, accept="evaluate", flower=flower)
    if flower:
        set_flower(stage)
    took, alone = [], []
    with daemons(stage, flower=flower), open_home(stage.home) as coordinator:
        parameters = Evaluate(kind="evaluate", model=model_of(coordinator, RELEASE), max_bytes=MAX_BYTES)
        campaign_id, _ = ask(coordinator, parameters)  # brings the release to owners, once
        for _ in range(count):
            alone.append(locally(stage))
            campaign_id, seconds = ask(coordinator, parameters)
            took.append(seconds)
            print(f"{'flower' if flower else 'native'}: {seconds:.2f} s, alone {alone[-1]:.2f} s", flush=True)
        return figures(coordinator, campaign_id), took, alone


def measure(stage: Stage, *, count: int) -> dict[str, Any]:
    """Both dispatchers."""
    native, native_s, alone = rounds(stage, count=count, flower=False)
    flower, flower_s, more = rounds(stage, count=count, flower=True)
    together, work_s = in_one_place(stage), statistics.median(alone + more)
    differences = [abs(found[owner] - together[owner]) for found in (native, flower) for owner in stage.owners]
    return {
        "owners_asked": len(stage.owners),
        "max_abs_difference": max(differences),
        "same_through_both": native == flower,
        "work_alone_s": round(work_s, 2),
        "round_s": {"native": _rounded(native_s), "flower": _rounded(flower_s), "alone": _rounded(alone + more)},
        "round_overhead_s": {
            "native": round(statistics.median(native_s) - statistics.median(alone), 2),
            "flower": round(statistics.median(flower_s) - statistics.median(more), 2),
        },
    }


def _rounded(values: list[float]) -> list[float]:
    return [round(value, 2) for value in values]


def simulation(owners: int) -> Mapping[str, Any]:
    """`concord simulate`, with its last line."""
    command = [sys.executable, "-m", "concord", "simulate", "--owners", str(owners), "--json"]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout  # why it fails is shown
    found: Mapping[str, Any] = json.loads(output.splitlines()[-1])
    return {name: value for name, value in found.items() if name != "event"}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, help="where the demo's consortium is or will be; by default nowhere after")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--owners", type=int, default=200, help="of the simulation; 0 for none")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        directory = (asked.demo or Path(scratch) / "demo").absolute()
        text = demo_text(directory, asked.seed)
        owners = sorted(path.name for path in text.iterdir() if path.is_dir() and path.name != demo.PUBLIC)[:3]
        stage = consortium(directory, text=text, owners=owners, seed=asked.seed)
        found = measure(stage, count=asked.rounds)
    if asked.owners:
        lived = simulation(asked.owners)
        found |= {name: lived[name] for name in ("owners_simulated", "seconds_per_owner", "mb_per_owner")}
        found["simulation"] = lived
    print(json.dumps({"benchmark": "campaigns", "machine": describe(), **found}))


if __name__ == "__main__":
    main()
