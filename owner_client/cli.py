"""`concord owner`: what a data owner does.

What needs a connection is imported by the commands that do: signing works on a machine without grpc.
"""

import json
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import ValidationError

from common.cli import JsonOption, existing, new_app, read_invitation, reporting
from common.config import describe, load_options
from common.console import Reporter, bytes_progress, job_progress, size
from common.errors import MalformedError, NotFoundError, NotPermittedError
from common.files import write_atomic
from common.jobs import run_job
from common.signals import stop_on_signals
from common.telemetry import set_up_logging
from common.trust.cosignature import Witness
from common.trust.invitation import Invitation
from common.trust.manifest import digest_of
from owner_client import campaigns_cli, egress, egress_cli, offline, revocations, status_cli
from owner_client.config import ConsentSettings, OwnerHome
from owner_client.options import HOME as _HOME
from owner_client.options import HomeOption

if TYPE_CHECKING:
    from owner_client.membership import Membership

app = new_app("Take part with your own data: enrol, consent, train at home, submit, opt out.")

_PATIENCE_S = 60.0
egress_cli.add_to(app)
campaigns_cli.add_to(app)
status_cli.add_to(app)


@app.command()
def enrol(
    invitation: Annotated[
        Path | None, typer.Option(help="The invitation file from the consortium's admin; without it, standard input.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of your own text; it never leaves.")] = None,
    public: Annotated[Path | None, typer.Option(help="Folder of public text, for training.")] = None,
    home: HomeOption = _HOME,
    as_json: JsonOption = False,
) -> None:
    """Join a consortium: make your keys here, redeem the invitation, take your place in the log."""
    from owner_client import membership
    from owner_client.retry import Retry

    for folder in (data, public):
        if folder is not None and not existing(folder).exists():
            raise NotFoundError(f"{folder} is not there; nothing was redeemed, the invitation is still good")
    raw = read_invitation(invitation)
    with reporting(as_json) as reporter:
        settings = membership.enrol(
            OwnerHome(existing(home)),
            Invitation.parse(raw),
            data=existing(data) if data else None,
            public=existing(public) if public else None,
            retry=Retry(patience_s=_PATIENCE_S),
        )
        reporter.step(f"joined as {settings.owner}; your keys are in {existing(home) / 'keys'}: back them up")
        reporter.result({"owner": settings.owner, "home": str(existing(home))})


@app.command()
def consent(
    terms: Annotated[Path, typer.Option(help="File with the terms you agree to; the consent names it by digest.")],
    purpose: Annotated[list[str], typer.Option(help="What the expert may be used for; repeat for several.")],
    line: Annotated[str, typer.Option(help="Line of releases that may hold your expert.")] = "main",
    release: Annotated[
        str | None, typer.Option(help="One release alone, by the name it will have, instead of a line.")
    ] = None,
    days: Annotated[int, typer.Option(help="Days until the consent lapses by itself.")] = 365,
    not_before: Annotated[
        str | None,
        typer.Option(help="From when on it is in force, such as 2027-01-01T00:00:00Z; days count from then."),
    ] = None,
    jurisdiction: Annotated[str | None, typer.Option(help="Whose law applies, in the consortium's words: eu.")] = None,
    home: HomeOption = _HOME,
    as_json: JsonOption = False,
) -> None:
    """Sign your consent: which expert, for what, under which terms, until when. You can revoke it at any time."""
    from owner_client import participation

    try:
        settings = ConsentSettings(purposes=purpose, terms=existing(terms), line=line, release=release, days=days,
                                   not_before=not_before, jurisdiction=jurisdiction)  # fmt: skip
    except ValidationError as error:
        raise MalformedError(describe(error)) from error
    with reporting(as_json) as reporter, _member(home) as member:
        base = participation.fetch_base(member, on_bytes=bytes_progress(reporter, "fetching the public model"))
        grant = participation.consent(member, settings, base=base)
        where = f"in line {line}" if release is None else f"in {release} alone"
        what = f"for {', '.join(grant.purposes)} {where} under terms {grant.terms.digest}"
        since = "in force" if not_before is None else f"in force from {grant.not_before}"
        reporter.step(f"consent {grant.record_id} {what} is in the log, {since} until {grant.not_after}")
        reporter.result({"grant_id": grant.record_id, "not_before": grant.not_before, "not_after": grant.not_after})


@app.command()
def train(
    data: Annotated[Path | None, typer.Option(help="Folder of your own text; it never leaves.")] = None,
    public: Annotated[Path | None, typer.Option(help="Folder of public text, as negatives.")] = None,
    options: Annotated[Path | None, typer.Option("--config", help="TOML with the training's options.")] = None,
    home: HomeOption = _HOME,
    as_json: JsonOption = False,
) -> None:
    """Train your expert at home, on your own text, against the frozen public model. Interrupted, it goes on."""
    from owner_client import participation

    with reporting(as_json) as reporter, stop_on_signals() as stop, _member(home, stop) as member:
        base = participation.fetch_base(member, on_bytes=bytes_progress(reporter, "fetching the public model"))
        expert = participation.train(
            member,
            base=base,
            data=existing(data) if data else None,
            public=existing(public) if public else None,
            options=load_options(options) if options else member.settings.training,
            on_event=job_progress(reporter, "training the expert"),
            stop=stop,
        )
        reporter.step(f"expert trained; it is in {expert} and has not left")
        reporter.result({"expert": str(expert)})


@app.command()
def submit(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would leave; send nothing.")] = False,
    home: HomeOption = _HOME,
    as_json: JsonOption = False,
) -> None:
    """Send your expert's weights and router rows, and nothing else. Interrupted, the same command goes on."""
    from owner_client import participation

    with reporting(as_json) as reporter, _member(home) as member:
        base = participation.fetch_base(member, on_bytes=bytes_progress(reporter, "fetching the public model"))
        if dry_run:
            _show_plan(reporter, participation.plan_submission(member, base=base))
            return
        said = participation.submit(member, base=base, on_bytes=bytes_progress(reporter, "sending the expert"))
        reporter.step(f"expert submitted: contribution {said.statement.record_id} is in the log")
        reporter.result({"record_id": said.statement.record_id})


def _show_plan(reporter: Reporter, planned: egress.EgressPlan) -> None:
    for line in egress.spec_lines(planned):
        reporter.step(line)
    reporter.step(f"would leave: {planned.path.name}, {size(planned.entry.size)}; nothing was sent")
    reporter.result(
        {
            "file": planned.path.name,
            "digest": planned.entry.digest,
            "size_bytes": planned.entry.size,
            "tensors": {name: [spec.dtype, *spec.shape] for name, spec in planned.tensors.items()},
        }
    )


@app.command()
def proxies(
    count: Annotated[int, typer.Option(min=1, help="How many public documents to choose.")],
    output: Annotated[Path, typer.Option(help="File for their digests and scores.")],
    data: Annotated[Path | None, typer.Option(help="Folder of your own text; it never leaves.")] = None,
    public: Annotated[Path | None, typer.Option(help="Folder of the public text they are chosen from.")] = None,
    encoder: Annotated[Path | None, typer.Option(help="Folder of a small encoder to fine-tune for the choice.")] = None,
    by_expert: Annotated[
        bool, typer.Option("--by-expert", help="Have your trained expert choose what it knows: surer, and slower.")
    ] = False,
    unseen_share: Annotated[
        float, typer.Option(min=0, max=0.99, help="Share of public text that the public model was not trained on.")
    ] = 0.0,
    min_accuracy: Annotated[
        float, typer.Option(min=0, max=1, help="How well your text must be told from public text, or none is chosen.")
    ] = 0.95,
    home: HomeOption = _HOME,
    as_json: JsonOption = False,
) -> None:
    """Choose public documents that look like yours, for router training. Nothing is sent; look at the file first."""
    if by_expert and encoder is not None:
        raise MalformedError("an encoder or your expert chooses: give --encoder or --by-expert, not both")
    settings = OwnerHome(existing(home)).settings()
    own, common_text = (existing(data) if data else settings.data), (existing(public) if public else settings.public)
    if own is None or common_text is None:
        raise NotFoundError("your text and public text are needed: give --data and --public, or set them in owner.toml")
    target = existing(output)
    job = {"data": own, "public": common_text, "count": count, "output": target, "unseen_share": unseen_share,
           "min_accuracy": min_accuracy}  # fmt: skip
    if encoder is not None:
        job["encoder"] = existing(encoder)
    with reporting(as_json) as reporter:
        if by_expert:
            job |= _own_expert(home, reporter)
        config_path = target.with_name(f"{target.name}.job.json")
        try:
            run_job("owner_client.proxies", job, config_path=config_path, on_event=lambda event: None)
        finally:
            config_path.unlink(missing_ok=True)
        chosen = json.loads(target.read_text())
        reporter.step(
            f"{count} public documents chosen; held-out text is told apart in {100 * chosen['accuracy']:.0f}% of cases"
        )
        reporter.result({"proxies": str(target), "accuracy": chosen["accuracy"]})


def _own_expert(home: Path, reporter: Reporter) -> dict[str, Path]:
    """The base that the log names now and this owner's expert over it, as a job of `owner_client.proxies` has them."""
    from owner_client import participation

    with _member(home) as member:
        base = participation.fetch_base(member, on_bytes=bytes_progress(reporter, "fetching the public model"))
        return {"base": base.directory, "expert": participation.trained_expert(member, base=base)}


@app.command("fetch-release")
def fetch_release(
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="Such as release-2; by default the latest.")] = "",
    output: Annotated[Path | None, typer.Option(help="Where it goes; by default releases/NAME in the home.")] = None,
    home: HomeOption = _HOME,
    as_json: JsonOption = False,
) -> None:
    """Fetch a release, proven to be in the log, every file checked. Interrupted, the same command goes on."""
    from owner_client import releases

    with reporting(as_json) as reporter, stop_on_signals() as stop, _member(home, stop) as member:
        on_bytes = bytes_progress(reporter, "fetching the release")
        found = releases.fetch_release(member, name, existing(output) if output else None, on_bytes=on_bytes)
        reporter.step(f"{found.statement.release} is in {found.directory}, every file as signed and logged")
        reporter.result({"release": found.statement.release, "directory": str(found.directory)})


@app.command("opt-out")
def opt_out(
    reason: Annotated[str | None, typer.Option(help="Why, for the log; everybody can read it.")] = None,
    withdraw_within_hours: Annotated[
        int | None, typer.Option(min=0, help="Have releases that hold your expert already taken back within so long.")
    ] = None,
    home: HomeOption = _HOME,
    as_json: JsonOption = False,
) -> None:
    """Withdraw your consent: no later release may hold your expert, and everybody can check that."""
    from owner_client import participation

    within = None if withdraw_within_hours is None else timedelta(hours=withdraw_within_hours)
    with reporting(as_json) as reporter, _member(home) as member:
        said = participation.opt_out(member, reason=reason, withdraw_within=within)
        for revocation in said:
            reporter.step(f"consent {revocation.grant_id} is revoked: {revocation.record_id} is in the log")
        reporter.step("opted out: no later release holds your expert")
        asked = [revocation for revocation in said if revocation.effect == "withdraw_published"]
        if asked:
            last = max(revocation.deadline for revocation in asked)
            reporter.step(f"releases that hold it are to be withdrawn by {last:%Y-%m-%dT%H:%M:%SZ}")
            if within is not None and any(revocation.deadline_s != within.total_seconds() for revocation in asked):
                reporter.warning(
                    "not within the hours you ask for now: an earlier request was signed already, and stands"
                )
        else:
            reporter.step("releases that hold it already stay; to have them back: concord owner opt-out "
                          "--withdraw-within-hours HOURS")  # fmt: skip
        reporter.result({"record_id": revocation.record_id, "grant_id": revocation.grant_id})


@app.command("hand-over")
def hand_over(
    address: Annotated[str, typer.Option(help="The witness's address, such as https://witness.example.")],
    witness_key: Annotated[str, typer.Option(help="The witness's key line, got from it and not from the coordinator.")],
    home: HomeOption = _HOME,
    as_json: JsonOption = False,
) -> None:
    """Hand your revocations to a witness, for a timed receipt; auditors ask the log for it. Needs no coordinator."""
    with reporting(as_json) as reporter:
        receipts = revocations.hand_over(OwnerHome(existing(home)), Witness.parse(witness_key), address)
        for path, taken in receipts:
            reporter.step(f"taken on {taken:%Y-%m-%dT%H:%M:%SZ}; the receipt is {path}")
        reporter.result({"receipts": [str(path) for path, _ in receipts]})


@app.command("revoke-certificates")
def revoke_certificates(
    reason: Annotated[str | None, typer.Option(help="Why, for the log; everybody can read it.")] = None,
    home: HomeOption = _HOME,
    as_json: JsonOption = False,
) -> None:
    """End your TLS certificates at once, as after a theft. Consents stay; an invitation and your key bring you back."""
    from owner_client import participation

    with reporting(as_json) as reporter, _member(home) as member:
        said = participation.revoke_certificates(member, reason=reason)
        reporter.step(f"your certificates are revoked: {said.record_id} is in the log; this connection was the last")
        reporter.step("to come back, ask the admin for an invitation and run: concord owner enrol --invitation FILE")
        reporter.result({"record_id": said.record_id})


@app.command("rotate-key")
def rotate_key(
    public_key: Annotated[
        str | None, typer.Option(help="The new key's line, where both keys are on another machine (owner new-key).")
    ] = None,
    reason: Annotated[str | None, typer.Option(help="Why, for the log; everybody can read it.")] = None,
    home: HomeOption = _HOME,
    as_json: JsonOption = False,
) -> None:
    """Sign with a new key from now on, and with the old one no longer. What was said stays said."""
    from owner_client import keys

    with reporting(as_json) as reporter, _member(home) as member:
        rotated = keys.rotate(member, public_key=public_key, reason=reason)
        others = ", ".join(rotated.revoked)
        reporter.step(
            f"key {rotated.added} signs for you now" + (f"; {others} no longer does" if others else ", alone")
        )
        reporter.result({"key_id": rotated.added, "revoked_key_ids": rotated.revoked})


@app.command("new-key")
def new_key(
    name: Annotated[str, typer.Option(help="Your key's name: FEDERATION/owner/YOU.")],
    output: Annotated[Path, typer.Option(help="Where the private key goes; it must not exist.")],
    as_json: JsonOption = False,
) -> None:
    """Make a signing key on a machine of its own. Prints the public line that `rotate-key` takes."""
    with reporting(as_json) as reporter:
        line = offline.make(existing(output), name=name)
        reporter.step(f"the private key is in {output}; keep it here")
        reporter.result({"public_key": line})


@app.command()
def sign(
    statement: Annotated[Path, typer.Argument(help="The .unsigned file of the statement or request.")],
    key: Annotated[list[Path], typer.Option(help="Your signing key; for a new key, the old one and the new one.")],
    output: Annotated[Path | None, typer.Option(help="Default: beside the statement, as .note.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Sign without asking.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Sign a statement on the machine where your key is. Needs no connection and no home."""
    source = existing(statement)
    with reporting(as_json) as reporter:
        wanted = offline.read_unsigned(source)
        signing = offline.keys_for(wanted, [existing(path) for path in key])
        for line in wanted.text.splitlines():
            reporter.step(line)
        reporter.step(f"{wanted.party} {offline.describe(wanted)}")
        for doubt in offline.doubts(wanted, now=datetime.now(UTC)):
            reporter.warning(doubt)
        if not yes and not typer.confirm(f"Sign this {wanted.type} as {wanted.party}?", err=True):
            raise NotPermittedError("nothing was signed")
        target = existing(output) if output else source.with_suffix(".note")
        write_atomic(target, offline.sign_all(wanted, signing))
        reporter.step(f"signed; carry {target.name} back and put it where {source.name} came from")
        reporter.result({"note": str(target), "digest": digest_of(wanted.text.encode())})


@app.command()
def run(home: HomeOption = _HOME, as_json: JsonOption = False) -> None:
    """Run as a daemon: take every step that owner.toml agrees to, then keep watch over the log. Stop with ctrl-C."""
    from owner_client.daemon import run as run_daemon

    set_up_logging(as_json)
    with reporting(as_json) as reporter, stop_on_signals() as stop:
        run_daemon(OwnerHome(existing(home)), reporter=reporter, stop=stop)


def _member(home: Path, stop: Event | None = None) -> "AbstractContextManager[Membership]":
    from owner_client.membership import open_membership

    return open_membership(OwnerHome(existing(home)), patience_s=_PATIENCE_S, stop=stop)
