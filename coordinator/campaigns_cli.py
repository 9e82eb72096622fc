"""`concord coordinator campaign`: ask owners, see how far they are, read what they answered."""

import json
import math
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Final

import typer

from common.cli import JsonOption, existing, new_app, reporting
from common.console import Reporter
from common.errors import MalformedError, NotFoundError
from common.files import write_atomic
from common.trust.campaign_statements import (
    CampaignResult,
    Evaluate,
    Extraction,
    Parameters,
    SelectProxy,
    Train,
)
from common.trust.describe import describe_asked
from common.trust.statements import format_time
from coordinator.attachments import parse_proxies, parse_shares
from coordinator.campaign_figures import pooled
from coordinator.campaign_subjects import base_digest_of, model_of, pool_of
from coordinator.campaigns import Campaigns, Standing
from coordinator.home import Coordinator, open_home
from coordinator.options import HOME, HomeOption

Shares = Mapping[str, Sequence[Sequence[float]]]
_MOST_HOURS: Final = 10 * 365 * 24
_MOST_BYTES: Final = 2**53 - 1

campaign_app = new_app("Ask owners what only their own text can tell; each decides, and small answers come back.")
define_app = new_app("Ask owners something, signed and logged. Nobody is called: their daemons ask what there is.")
campaign_app.add_typer(define_app, name="define")

OwnerOption = Annotated[
    list[str] | None, typer.Option("--owner", help="Whom to ask; repeat. All, where none is named.")
]
QuorumOption = Annotated[int | None, typer.Option(min=1, help="So many reports are enough; all, by default.")]
HoursOption = Annotated[
    float, typer.Option(min=0.01, max=_MOST_HOURS, help="Hours until it is over, whoever reported.")
]
LeastOption = Annotated[int, typer.Option("--min-documents", min=1, help="Documents under every figure, at least.")]
IdArgument = Annotated[str, typer.Argument(metavar="ID", help="As `campaign list` has it; its start will do.")]


def add_to(app: typer.Typer) -> None:
    """Put these commands among the coordinator's."""
    app.add_typer(campaign_app, name="campaign")


@define_app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="A release, base-0, or the directory of a model that is in no log.")],
    max_bytes: Annotated[
        int | None, typer.Option(min=1, max=_MOST_BYTES, help="On so much of each text at most.")
    ] = None,
    owner: OwnerOption = None,
    quorum: QuorumOption = None,
    hours: HoursOption = 24,
    min_documents: LeastOption = 10,
    home: HomeOption = HOME,
    as_json: JsonOption = False,
) -> None:
    """How good is a model on each owner's held-out text: bits per byte, multiple choice, router shares."""
    with reporting(as_json) as reporter, open_home(existing(home)) as coordinator:
        optional = {} if max_bytes is None else {"max_bytes": max_bytes}
        asked = Evaluate(kind="evaluate", model=model_of(coordinator, model), **optional)
        _define(coordinator, asked, owner, quorum, hours, min_documents, reporter)


@define_app.command("select-proxy")
def select_proxy(
    pool: Annotated[Path, typer.Argument(help="Folder of public text (.jsonl, .jsonl.gz, .txt): every owner gets it.")],
    count: Annotated[int, typer.Option(min=1, max=10_000, help="How many documents each owner chooses at most.")],
    min_accuracy: Annotated[
        float,
        typer.Option(min=0, max=1, help="How well an owner's text must be told from the pool, or none is chosen."),
    ] = 0.95,
    owner: OwnerOption = None,
    quorum: QuorumOption = None,
    hours: HoursOption = 24,
    min_documents: LeastOption = 10,
    home: HomeOption = HOME,
    as_json: JsonOption = False,
) -> None:
    """Which public documents look like an owner's, for router training: ids and scores come back, and no text."""
    from common.data import read_split  # with numpy, which no other command here needs

    with reporting(as_json) as reporter, open_home(existing(home)) as coordinator:
        there = len(read_split(existing(pool), "train")) if existing(pool).is_dir() else 0
        if 0 < there < count:
            raise MalformedError(f"--count {count} of a pool of {there} documents: no owner could choose so many")
        named = pool_of(coordinator, existing(pool))
        asked = SelectProxy(kind="select-proxy", pool=named, count=count, min_accuracy=min_accuracy)
        _define(coordinator, asked, owner, quorum, hours, min_documents, reporter)


@define_app.command()
def train(
    owner: OwnerOption = None,
    quorum: QuorumOption = None,
    hours: HoursOption = 24,
    home: HomeOption = HOME,
    as_json: JsonOption = False,
) -> None:
    """Have owners' daemons train over the base as it is now and submit, as their settings say."""
    with reporting(as_json) as reporter, open_home(existing(home)) as coordinator:
        asked = Train(kind="train", base_digest=base_digest_of(coordinator))
        _define(coordinator, asked, owner, quorum, hours, 1, reporter)


@define_app.command()
def extraction(
    model: Annotated[str, typer.Argument(help="A release, base-0, or the directory of a model that is in no log.")],
    prefix_tokens: Annotated[int, typer.Option(min=4, max=512, help="Tokens that the model is given.")] = 32,
    continuation_tokens: Annotated[int, typer.Option(min=4, max=512, help="Tokens it must go on with.")] = 32,
    documents: Annotated[int, typer.Option(min=1, max=100_000, help="Of each owner, at most.")] = 1000,
    owner: OwnerOption = None,
    quorum: QuorumOption = None,
    hours: HoursOption = 24,
    min_documents: LeastOption = 10,
    home: HomeOption = HOME,
    as_json: JsonOption = False,
) -> None:
    """How often a model goes on with an owner's text word for word, beside a control of public text: rates alone."""
    with reporting(as_json) as reporter, open_home(existing(home)) as coordinator:
        asked = Extraction(
            kind="extraction",
            model=model_of(coordinator, model),
            prefix_tokens=prefix_tokens,
            continuation_tokens=continuation_tokens,
            documents=documents,
        )
        _define(coordinator, asked, owner, quorum, hours, min_documents, reporter)


def _define(
    coordinator: Coordinator,
    asked: Parameters,
    owners: list[str] | None,
    quorum: int | None,
    hours: float,
    min_documents: int,
    reporter: Reporter,
) -> None:
    if not math.isfinite(hours):  # nan is neither too small nor too large
        raise MalformedError(f"--hours {hours}: a number of hours is wanted")
    said = coordinator.campaigns.define(
        asked, owners=owners or (), quorum=quorum, min_documents=min_documents, lifetime=timedelta(hours=hours)
    )
    campaign = coordinator.campaigns.find(said.statement.record_id).statement
    reporter.step(f"campaign {campaign.record_id} asks {', '.join(campaign.owners)} until {campaign.closes_at}")
    reporter.result({"campaign_id": campaign.record_id, "owners": campaign.owners, "closes_at": campaign.closes_at})


@campaign_app.command("list")
def list_all(home: HomeOption = HOME, as_json: JsonOption = False) -> None:
    """Every campaign: what was asked, how many reported, whether it is open."""
    with reporting(as_json) as reporter, open_home(existing(home)) as coordinator:
        rows = [_row(coordinator.campaigns, each.statement.record_id) for each in coordinator.campaigns.all()]
        columns = ("campaign", "kind", "state", "reported", "quorum", "asked", "open until")
        reporter.table("campaigns", columns, [[str(row[name]) for name in columns] for row in rows])
        reporter.result({"campaigns": rows if as_json else len(rows)})


def _row(campaigns: Campaigns, campaign_id: str) -> dict[str, object]:
    campaign, asked = campaigns.find(campaign_id), campaigns.find(campaign_id).statement
    reported = sum(each.state == "reported" for each in campaigns.table(campaign_id))
    return {
        "campaign": campaign_id,
        "kind": asked.kind,
        "state": "open" if campaign.closed_index is None else f"closed by entry {campaign.closed_index}",
        "reported": reported,
        "asked": len(asked.owners),
        "quorum": asked.quorum,
        "open until": asked.closes_at,
    }


@campaign_app.command()
def show(campaign_id: IdArgument, home: HomeOption = HOME, as_json: JsonOption = False) -> None:
    """One campaign: how far each owner is, who is late or absent, every figure, and figures together."""
    with reporting(as_json) as reporter, open_home(existing(home)) as coordinator:
        campaigns, found = coordinator.campaigns, find_campaign(coordinator.campaigns, campaign_id)
        asked = campaigns.find(found).statement
        reporter.step(f"asks {describe_asked(asked.parameters)}")
        standings, results = campaigns.table(found), campaigns.results(found)
        reporter.table("owners", ("owner", "state", "since", "entry"), [_standing_row(each) for each in standings])
        if any(each.state == "failed" for each in standings):
            reporter.step("why something failed its owner alone sees, and may try again: concord owner campaign list")
        figures = _figures(results)
        columns = ("owner", "text", "measure", "value", "documents", "bytes")
        reporter.table("figures", columns, [[str(cell) for cell in row] for row in figures])
        shares = _shares(campaigns, found, results)
        reporter.table("router shares", ("owner", "text", "layer", "share of each expert"), _share_rows(shares))
        together = {
            name: {
                "value": each.value,
                "documents": each.documents,
                "owners": each.owners,
                "weighted by": each.weighted_by,
            }
            for name, each in pooled(results).items()
        }
        if as_json:
            rows = [dict(zip(columns, row, strict=True)) for row in figures]
            states = {each.owner: each.state for each in standings}
            more = {"figures": rows, "shares_per_layer": shares, "together": together}
            reporter.result({**_row(campaigns, found), "owners": states, **more})
        else:
            told = {f"{name}, together": f"{each['value']:.6g}" for name, each in together.items()}
            reporter.result({**_row(campaigns, found), **told})


def _shares(campaigns: Campaigns, found: str, results: Mapping[str, CampaignResult]) -> dict[str, Shares]:
    """By owner and text the share of each expert in each layer, of an evaluation whose owners gave them."""
    if campaigns.find(found).statement.kind != "evaluate":
        return {}
    return {
        owner: parse_shares(campaigns.files.answer(campaign_id=found, party=owner)).shares_per_layer
        for owner, result in results.items()
        if result.attachment is not None
    }


def _share_rows(shares: Mapping[str, Shares]) -> list[tuple[str, ...]]:
    return [
        (owner, text, str(number), ", ".join(f"{share:.3f}" for share in layer))
        for owner, texts in shares.items()
        for text, layers in texts.items()
        for number, layer in enumerate(layers)
    ]


def _standing_row(standing: Standing) -> tuple[str, ...]:
    since = format_time(standing.since) if standing.since else ""
    return standing.owner, standing.state, since, "" if standing.entry is None else str(standing.entry)


def _figures(results: Mapping[str, CampaignResult]) -> list[tuple[object, ...]]:
    return [
        (owner, each.name, each.measure, each.value, each.documents, each.size_bytes or "")
        for owner, result in results.items()
        for each in result.figures
    ]


@campaign_app.command()
def close(campaign_id: IdArgument, home: HomeOption = HOME, as_json: JsonOption = False) -> None:
    """End a campaign before its time. What was answered stays; who said nothing is named absent."""
    with reporting(as_json) as reporter, open_home(existing(home)) as coordinator:
        closed = coordinator.campaigns.close(find_campaign(coordinator.campaigns, campaign_id))
        reporter.step(f"campaign {closed.campaign_id} is closed; absent: {', '.join(closed.absent) or 'nobody'}")
        reporter.result({"reported": closed.reported, "declined": closed.declined, "absent": closed.absent})


@campaign_app.command()
def proxies(
    campaign_id: IdArgument,
    output: Annotated[Path, typer.Option(help="Folder for a file an owner: ids and scores of public documents.")],
    home: HomeOption = HOME,
    as_json: JsonOption = False,
) -> None:
    """Write what owners chose from the public pool, for router training."""
    with reporting(as_json) as reporter, open_home(existing(home)) as coordinator:
        campaigns, found = coordinator.campaigns, find_campaign(coordinator.campaigns, campaign_id)
        if campaigns.find(found).statement.kind != "select-proxy":
            raise MalformedError(
                f"campaign {found} is of kind {campaigns.find(found).statement.kind}, not select-proxy"
            )
        existing(output).mkdir(parents=True, exist_ok=True)
        counts = {}
        for owner in campaigns.results(found):
            chosen = parse_proxies(campaigns.files.answer(campaign_id=found, party=owner))
            fields = {"ids": chosen.ids, "scores": chosen.scores, "owner": owner, "campaign": found}
            write_atomic(existing(output) / f"{owner}.json", json.dumps(fields, indent=1).encode())
            counts[owner] = len(chosen.ids)
            reporter.step(f"{owner} chose {len(chosen.ids)} documents")
        reporter.result({"output": str(existing(output)), "chosen": counts})


def find_campaign(campaigns: Campaigns, start: str) -> str:
    """The id of the one campaign that begins so."""
    found = [name for each in campaigns.all() if (name := each.statement.record_id).startswith(start)]
    if len(found) != 1:
        many = "several campaigns begin" if found else "no campaign begins"
        raise NotFoundError(f"{many} with {start[:80]!r}; see: concord coordinator campaign list")
    return found[0]
