"""`concord owner campaign`: what this owner is asked, and a person's word on it. Needs no connection."""

from typing import Annotated

import typer

from common.cli import JsonOption, existing, new_app, reporting
from common.errors import NotFoundError
from common.trust.describe import describe_asked
from owner_client.campaign_folder import CampaignFolder, folders
from owner_client.campaigns import decide
from owner_client.config import OwnerHome
from owner_client.options import HOME, HomeOption

campaign_app = new_app("What the consortium asks you. You decide; the daemon does what you accept.")
IdArgument = Annotated[str, typer.Argument(metavar="ID", help="As `campaign list` has it; its start will do.")]


def add_to(app: typer.Typer) -> None:
    """Put these commands among the owner's."""
    app.add_typer(campaign_app, name="campaign")


@campaign_app.command("list")
def list_all(home: HomeOption = HOME, as_json: JsonOption = False) -> None:
    """Everything you were asked, how far it is, and why something did not work."""
    owner = OwnerHome(existing(home))
    owner.settings()
    with reporting(as_json) as reporter:
        rows = [_row(folder) for folder in folders(owner)]
        columns = ("campaign", "asks", "state", "until", "why")
        reporter.table("campaigns", columns, [[row[name] for name in columns] for row in rows])
        reporter.result({"campaigns": rows if as_json else len(rows)})


def _row(folder: CampaignFolder) -> dict[str, str]:
    asked, state = folder.asked, folder.state
    why = (folder.read("failed") or b"").decode(errors="replace").strip() if state == "failed" else ""
    return {
        "campaign": folder.id,
        "asks": describe_asked(asked.parameters),
        "state": "waits for your word" if folder.waits else "over" if state == "offered" else state,
        "until": asked.closes_at,
        "why": why,
    }


@campaign_app.command()
def accept(campaign_id: IdArgument, home: HomeOption = HOME, as_json: JsonOption = False) -> None:
    """Have the daemon do what is asked and answer; again, what did not work before."""
    _decide(OwnerHome(existing(home)), campaign_id, accepting=True, reason=None, as_json=as_json)


@campaign_app.command()
def decline(
    campaign_id: IdArgument,
    reason: Annotated[str | None, typer.Option(help="Why, for the log; everybody can read it.")] = None,
    home: HomeOption = HOME,
    as_json: JsonOption = False,
) -> None:
    """Have the daemon say that you give no answer."""
    _decide(OwnerHome(existing(home)), campaign_id, accepting=False, reason=reason, as_json=as_json)


def _decide(home: OwnerHome, start: str, *, accepting: bool, reason: str | None, as_json: bool) -> None:
    home.settings()
    found = [folder.id for folder in folders(home) if folder.id.startswith(start)]
    if len(found) != 1:
        many = "several campaigns begin" if found else "no campaign begins"
        raise NotFoundError(f"{many} with {start[:80]!r}; see: concord owner campaign list")
    with reporting(as_json) as reporter:
        state = decide(home, found[0], accept=accepting, reason=reason)
        reporter.step(f"campaign {found[0]} is {state}; the daemon does the rest: concord owner run")
        reporter.result({"campaign_id": found[0], "state": state})
