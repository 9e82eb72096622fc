"""`concord coordinator train-routers`: router rows trained on what owners chose, as a release of their own."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from common.cli import JsonOption, existing, reporting
from common.config import describe
from common.errors import MalformedError
from coordinator.campaigns_cli import find_campaign
from coordinator.evaluation import evaluation_job
from coordinator.home import open_home
from coordinator.options import HOME, HomeOption
from coordinator.router_plan import RouterSettings, plan_training
from coordinator.router_training import TrainedRelease, train_routers


def add_to(app: typer.Typer) -> None:
    """Put the command among the coordinator's."""
    app.command("train-routers")(train_routers_command)


def train_routers_command(
    release: Annotated[str, typer.Argument(help="The newest release: its rows are trained, all else stays.")],
    campaign: Annotated[str, typer.Option(help="Of kind select-proxy; its id, or the start of it.")],
    public: Annotated[
        Path | None, typer.Option(help="Folder of public text to mix in; by default the campaign's pool.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Training steps, at most.")] = 200,
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 2e-2,
    batch_size: Annotated[int, typer.Option(help="Sequences a step.")] = 16,
    sequence_length: Annotated[int, typer.Option(help="Tokens of a sequence.")] = 256,
    mixed_share: Annotated[
        float, typer.Option(help="Share of documents made of paragraphs of chosen and public ones.")
    ] = 0.7,
    public_share: Annotated[float, typer.Option(help="Share of public text in what is left.")] = 0.5,
    hold_public: Annotated[
        float, typer.Option(help="How firmly the routing of whole public documents stays as it is; 0: not at all.")
    ] = 0.1,
    max_documents: Annotated[int | None, typer.Option(help="Of each owner, the likeliest; all by default.")] = None,
    every_steps: Annotated[int, typer.Option(help="How often rows are tried on held-out public text.")] = 20,
    patience: Annotated[int, typer.Option(help="Training ends after so many tries that were no better.")] = 5,
    seed: Annotated[int, typer.Option(help="Order of the text.")] = 0,
    threads: Annotated[int, typer.Option(help="Processor threads.")] = 2,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    evaluate: Annotated[
        Path | None, typer.Option(help="Folder of held-out text to evaluate on, one folder a domain.")
    ] = None,
    max_bytes: Annotated[
        int | None, typer.Option(min=1, help="Evaluate on so much text of each domain at most.")
    ] = None,
    home: HomeOption = HOME,
    as_json: JsonOption = False,
) -> None:
    """Train the newest release's router rows on public documents that its owners chose, as a signed release of its own.

    Owners who chose none keep their rows, and everything but rows is the earlier release's bytes. Interrupted, the same
    command goes on.
    """
    fields = {"steps": steps, "learning_rate": lr, "batch_size": batch_size, "sequence_length": sequence_length,
              "mixed_share": mixed_share, "public_share": public_share, "hold_public": hold_public,
              "max_documents": max_documents, "every_steps": every_steps, "patience": patience, "seed": seed,
              "threads": threads, "device": device}  # fmt: skip
    settings = _settings(fields)
    with reporting(as_json) as reporter, open_home(existing(home)) as coordinator:
        job = None
        if evaluate is not None:
            job = evaluation_job(existing(evaluate), threads=threads, max_bytes=max_bytes, reporter=reporter)
        plan = plan_training(
            coordinator,
            release=release,
            campaign_id=find_campaign(coordinator.campaigns, campaign),
            settings=settings,
            public=existing(public) if public else None,
        )
        made = train_routers(coordinator, plan, evaluate=job, reporter=reporter)
        for owner, count in made.missing.items():
            reporter.warning(f"{owner} named {count} documents that are not in the pool; they were left out")
        reporter.step(_said(made))
        reporter.result(_fields(made))


def _settings(fields: Mapping[str, object]) -> RouterSettings:
    try:
        return RouterSettings.model_validate(fields)
    except ValidationError as error:
        raise MalformedError(describe(error)) from error


def _said(made: TrainedRelease) -> str:
    said = made.published.statement
    assert said.router_training is not None, "rows were trained"
    trained = ", ".join(f"{owner} ({count} documents)" for owner, count in made.documents.items())
    kept = f"; as they were: {', '.join(made.kept)}" if made.kept else ""
    if not made.published.is_new:
        return f"{said.release} is there already, with the rows of: {trained}{kept}"
    return f"{said.release} is {said.router_training.parent} with trained rows of: {trained}{kept}"


def _fields(made: TrainedRelease) -> dict[str, object]:
    said = made.published.statement
    assert said.router_training is not None, "rows were trained"
    return {
        "release": said.release,
        "parent": said.router_training.parent,
        "is_new": made.published.is_new,
        "directory": str(made.published.directory),
        "trained": dict(made.documents),
        "kept": list(made.kept),
        "missing": dict(made.missing),
        "manifest_digest": said.manifest_digest,
    }
