"""`concord demo`: a whole consortium on this machine."""

import json
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from common.cli import existing
from common.console import JsonReporter, RichReporter
from common.errors import ConflictError
from common.signals import stop_on_signals
from deploy.demo import Plan, run
from deploy.demo_report import print_report

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def demo(
    data: Annotated[
        Path | None, typer.Option(help="Your own text: a folder an owner, and one called public. Default: made here.")
    ] = None,
    owners: Annotated[int, typer.Option(min=1, max=8, help="How many owners take part.")] = 3,
    workdir: Annotated[
        Path | None, typer.Option(help="Where everything is kept; a demo that was stopped there goes on.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep everything, to look at it afterwards.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of text and training.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines, the figures last.")] = False,
) -> None:
    """One coordinator and three owners as separate processes: train at home, assemble, opt out, audit."""
    kept = workdir is not None or keep
    if workdir is None:
        directory = Path("concord-demo").resolve() if keep else Path(tempfile.mkdtemp(prefix="concord-demo-"))
    else:
        directory = existing(workdir)
    if directory.exists() and any(directory.iterdir()) and not (directory / "demo.json").exists():
        raise ConflictError(f"{directory} holds other files; choose an empty directory with --workdir")
    plan = Plan(directory, data=existing(data) if data else None, num_owners=owners, seed=seed, keep=kept)
    with stop_on_signals() as stop:
        if as_json:
            figures = run(plan, reporter=JsonReporter(), stop=stop)
            print(json.dumps({"event": "result", **figures}))
            return
        console = Console()
        with RichReporter(console) as reporter:
            figures = run(plan, reporter=reporter, stop=stop)
        print_report(console, figures)
