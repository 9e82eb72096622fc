"""`concord owner ledger`, `review`, `approve` and `reject`: what left, and what may."""

from pathlib import Path
from typing import Annotated

import typer

from common.cli import EXIT_FAILED, JsonOption, existing, reporting
from common.console import size
from common.errors import ConflictError, VerificationError
from common.files import read_required, write_atomic
from common.trust.note import SigningKey, Verifier
from common.trust.root import TrustedRoot
from common.trust.rules import owner_key_name
from owner_client.config import OwnerHome
from owner_client.ledger import TRAFFIC, UPLOAD, Line, ledger_at
from owner_client.ledger_export import export, read_export
from owner_client.options import HOME, HomeOption
from owner_client.review import Review, Reviews

_COLUMNS = ("when", "what", "name", "bytes", "calls", "to", "digest")
_DIGEST_SHOWN = 23

ledger_app = typer.Typer(help="Everything that has left this building.", pretty_exceptions_enable=False)


def add_to(app: typer.Typer) -> None:
    """Put these commands among the owner's."""
    app.add_typer(ledger_app, name="ledger")
    app.command()(review)
    app.command()(approve)
    app.command()(reject)


@ledger_app.callback(invoke_without_command=True)
def ledger(context: typer.Context, home: HomeOption = HOME, as_json: JsonOption = False) -> None:
    """Everything that has left this building, from the first byte on. Without a command: show it."""
    if context.invoked_subcommand is None:
        show(home, as_json)


@ledger_app.command()
def show(home: HomeOption = HOME, as_json: JsonOption = False) -> None:
    """Show every line: things that left, tries of uploads, sums of small calls."""
    owner = OwnerHome(existing(home))
    owner.settings()
    lines = ledger_at(owner.ledger).lines()
    sent = sum(int(str(line["size_bytes"])) for line in lines if line["kind"] in (TRAFFIC, UPLOAD))
    with reporting(as_json) as reporter:
        reporter.table("what left", _COLUMNS, [_row(line) for line in lines])
        reporter.result({"sent": lines} if as_json else {"in all": f"{len(lines)} lines; {size(sent)} went by calls"})


def _row(line: Line) -> tuple[str, ...]:
    fields = (line["at"], line["kind"], line["name"], line["size_bytes"], line.get("calls", ""), line["to"])
    return (*map(str, fields), str(line.get("digest", ""))[:_DIGEST_SHOWN])


@ledger_app.command()
def verify(
    file: Annotated[Path | None, typer.Argument(help="An exported ledger; by default this home's own.")] = None,
    key: Annotated[str | None, typer.Option(help="The owner's key line, for an export that it signed.")] = None,
    home: HomeOption = HOME,
    as_json: JsonOption = False,
) -> None:
    """Check that no line was changed, added or taken away. Exit 0 or 1."""
    with reporting(as_json) as reporter:
        try:
            if file is None:
                owner = OwnerHome(existing(home))
                owner.settings()
                head, by = ledger_at(owner.ledger).verify(), "it is your own, so nobody signed it"
            else:
                data = read_required(existing(file), hint="name a file that `concord owner ledger export` made")
                found = read_export(data, None if key is None else Verifier.parse(key))
                head, by = found.head, found.describe_signature()
        except VerificationError as error:
            reporter.warning(str(error))
            reporter.result({"holds": False, "problem": str(error)})
            raise typer.Exit(EXIT_FAILED) from error
        reporter.step(f"{head.size} lines, each chained to the one before; {by}")
        reporter.result({"holds": True, "lines": head.size, "head": head.digest})


@ledger_app.command("export")
def export_command(
    file: Annotated[Path, typer.Argument(help="Where the copy goes; it must not exist.")],
    home: HomeOption = HOME,
    as_json: JsonOption = False,
) -> None:
    """Write a copy that somebody else can check, signed where your signing key is here."""
    owner, target = OwnerHome(existing(home)), existing(file)
    settings = owner.settings()
    if target.exists():
        raise ConflictError(f"{target} exists already; choose another name")
    root = TrustedRoot.parse(read_required(owner.trusted_root, hint="restore it or enrol again"))
    name = owner_key_name(root.federation, settings.owner)
    key = SigningKey.from_pem(owner.signing_key.read_bytes(), name=name) if owner.signing_key.exists() else None
    with reporting(as_json) as reporter:
        found = ledger_at(owner.ledger).copy()
        write_atomic(target, export(found.data, found.head, name=name, key=key), mode=0o600)
        signed = "signed by your key" if key else "not signed, for your key is elsewhere"
        reporter.step(f"{found.head.size} lines are in {target}, {signed}")
        line = f" --key '{key.verifier}'" if key else ""
        reporter.step(f"whoever has it checks it with: concord owner ledger verify {target.name}{line}")
        if key:
            reporter.step("that this is your key, the log says: concord audit owner")
        reporter.result({"file": str(target), "lines": found.head.size, "head": found.head.digest})


def review(
    review_id: Annotated[str | None, typer.Argument(metavar="[ID]", help="One of them, with all that is said.")] = None,
    home: HomeOption = HOME,
    as_json: JsonOption = False,
) -> None:
    """What waits for your word before it leaves, and what was said before ([egress] mode = "review")."""
    reviews = _reviews(home)
    with reporting(as_json) as reporter:
        found = reviews.all() if review_id is None else [reviews.find(review_id)]
        if review_id is None:
            rows = [tuple(str(value) for value in list(_fields(each).values())[:7]) for each in found]
            reporter.table("reviews", ("id", "answer", "what", "name", "bytes", "to", "asked"), rows)
        else:
            for name, value in _fields(found[0]).items():
                reporter.step(f"{name}: {value}")
        reporter.result({"reviews": [_fields(each) for each in found] if as_json else len(found)})


def approve(
    review_id: Annotated[str, typer.Argument(metavar="ID", help="As `concord owner review` shows it.")],
    home: HomeOption = HOME,
    as_json: JsonOption = False,
) -> None:
    """Let exactly these bytes leave. The daemon sends them then: an answer, and an expert that it trained; else run the
    command again that asked."""
    _answer(home, review_id, as_json, approved=True)


def reject(
    review_id: Annotated[str, typer.Argument(metavar="ID", help="As `concord owner review` shows it.")],
    reason: Annotated[str | None, typer.Option(help="Why, for your own records.")] = None,
    home: HomeOption = HOME,
    as_json: JsonOption = False,
) -> None:
    """Never let these bytes leave. Others, such as of another training, ask again."""
    _answer(home, review_id, as_json, approved=False, reason=reason)


def _answer(home: Path, review_id: str, as_json: bool, *, approved: bool, reason: str | None = None) -> None:
    with reporting(as_json) as reporter:
        said = _reviews(home).answer(review_id, approved=approved, reason=reason)
        reporter.step(f"{said.wanted.name} ({said.wanted.digest}) is {said.answer}")
        reporter.result({"id": review_id, "answer": said.answer})


def _reviews(home: Path) -> Reviews:
    owner = OwnerHome(existing(home))
    return Reviews(owner.reviews, settings=owner.settings().egress, ledger=owner.ledger)


def _fields(said: Review) -> dict[str, object]:
    wanted = said.wanted
    return {
        "id": wanted.id, "answer": said.answer, "what": wanted.kind, "name": wanted.name,
        "size_bytes": wanted.size_bytes, "to": wanted.to, "asked_at": said.asked_at, "digest": wanted.digest,
        **wanted.summary, **({"reason": said.reason} if said.reason else {}),
    }  # fmt: skip
