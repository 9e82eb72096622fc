"""`concord simulate`: many owners on this machine."""

import json
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from common.cli import JsonOption, existing, reporting
from common.console import Reporter
from common.errors import ConflictError, MalformedError
from common.files import write_atomic
from coordinator.home import open_home
from deploy.simulation import engine as flower
from deploy.simulation.engine import Engine
from deploy.simulation.life import Life, Plan, Wave, serving
from deploy.simulation.report import draw, figures, show

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def simulate(
    owners: Annotated[int, typer.Option(min=1, max=400, help="How many owners join, in waves.")] = 200,
    drop_outs: Annotated[
        float, typer.Option(min=0, max=1, help="Share that goes dark in the middle: half while sending, half asked.")
    ] = 0.1,
    stragglers: Annotated[float, typer.Option(min=0, max=1, help="Share that answers after the end.")] = 0.05,
    leavers: Annotated[float, typer.Option(min=0, max=1, help="Share that opts out at the end of its wave.")] = 0.05,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of who does what, of text and training.")] = 0,
    engine: Annotated[
        Engine,
        typer.Option(help="Flower in this process, or over Ray, which is an extra of Flower's."),
    ] = "in-process",
    workers: Annotated[int, typer.Option(min=1, max=256, help="Owners that act at once.")] = 2,
    workdir: Annotated[
        Path | None, typer.Option(help="An empty folder where everything is kept: homes, registry, figures, picture.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """A consortium's life with many owners and tiny experts: joining, consent, submission, campaigns, drop-outs,
    stragglers, opt-outs; on the real registry, transfer and releases, checked at every step."""
    if not drop_outs + stragglers + leavers <= 1:  # nor nan
        raise MalformedError("--drop-outs, --stragglers and --leavers are shares of all owners: together at most 1")
    if engine == "ray" and find_spec("ray") is None:
        raise MalformedError("Ray is not installed; run: pip install 'flwr[simulation]', or leave --engine out")
    with tempfile.TemporaryDirectory(prefix="concord-simulate-") as scratch, reporting(as_json) as reporter:
        directory = Path(scratch) if workdir is None else existing(workdir)
        if directory.exists() and any(directory.iterdir()):
            raise ConflictError(f"{directory} is not empty; choose an empty directory with --workdir")
        directory.mkdir(parents=True, exist_ok=True)
        plan = Plan(directory, owners, drop_outs, stragglers, leavers, seed)
        found = _run(plan, engine=engine, workers=workers, reporter=reporter)
        kept = {} if workdir is None else {"kept": str(directory)}
        reporter.result({**(found if as_json else _short(found)), **kept})


def _run(plan: Plan, *, engine: Engine, workers: int, reporter: Reporter) -> dict[str, object]:
    started, waves = time.monotonic(), list[Wave]()
    with serving(plan, reporter=reporter) as daemon, open_home(plan.workdir / "coordinator") as coordinator:
        flower.run(
            lambda ask: waves.extend(Life(plan, coordinator, daemon, ask, reporter).live()),
            num_owners=plan.num_owners,
            engine=engine,
            workers=workers,
        )
    found = figures(plan, waves, seconds=time.monotonic() - started, engine=engine)
    show(reporter, waves)
    write_atomic(plan.workdir / "figures.json", json.dumps(found, indent=1).encode())
    draw(plan.workdir / "growth.svg", waves)
    return found


def _short(found: dict[str, object]) -> dict[str, object]:
    """What a person reads under the table."""
    names = ("engine", "owners_simulated", "dropped_out", "seconds", "seconds_per_owner", "mb_per_owner")
    return {name.replace("_", " "): found[name] for name in names}
