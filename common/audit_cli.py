"""`concord audit`: what an auditor does. Needs no connection, no account and nobody's word."""

from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import click
import typer

from common import audit_online_cli
from common.audit import Report, audit
from common.audit_answers import ReleaseAnswer, about_owner, about_release, removal
from common.audit_bundle import export
from common.audit_inputs import (
    audit_place,
    audited_beside,
    holding,
    is_record,
    keep_evidence,
    own_file,
    receipt_in,
    record_of,
    trusted_root,
    with_weights,
    witnesses_in,
)
from common.audit_rebuild import rebuild
from common.cli import EXIT_FAILED, JsonOption, existing, new_app, reporting, show_tables
from common.console import Reporter
from common.errors import MalformedError, NotFoundError
from common.files import read_required, write_atomic
from common.model.expert import EVALUATION_NAME
from common.trust.describe import describe
from common.trust.evidence import Evidence, judge
from common.trust.root import TrustedRoot
from common.trust.statements import Statement, parse_note
from common.trust.tables import tables_of

PublicArgument = Annotated[
    str, typer.Argument(help="The coordinator's public directory or a copy, a bundle made by export, or an address.")
]
RootOption = Annotated[Path | None, typer.Option(help="The trusted root you were given out of band.")]

app = new_app("Check a consortium's published files and log, trusting nobody.")
audit_online_cli.add_to(app)


@app.callback()
def group() -> None:
    """Check a consortium's published files and log, trusting nobody."""


@app.command()
def verify(
    public: PublicArgument,
    root: RootOption = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="File with the last checkpoint you saw; kept up to date.")
    ] = None,
    quorum: Annotated[int, typer.Option(min=0, help="How many witnesses must have cosigned.")] = 0,
    witnesses: Annotated[
        Path | None, typer.Option(help="File with the key lines of the witnesses you trust; by default the owners'.")
    ] = None,
    receipt: Annotated[
        list[Path] | None, typer.Option(help="A witness's receipt for a revocation: it has to be in the log.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Replay everything: signatures, proofs, consents, opt-outs, and every byte of every release. Exit 0 or 1."""
    trusted = trusted_root(root)
    seen = own_file(checkpoint) if checkpoint and checkpoint.exists() else None
    audited = audited_beside(checkpoint) if checkpoint else None
    was_audited = seen is not None and audited is not None and is_record(audited, seen, trusted)
    known = None if witnesses is None else witnesses_in(existing(witnesses))
    receipts = {str(path): receipt_in(existing(path)) for path in receipt or ()}
    report = audit_place(public, trusted, last_seen=seen, quorum=quorum, witnesses=known, receipts=receipts,
                    was_audited=was_audited)  # fmt: skip
    with reporting(as_json) as reporter:
        for finding in report.findings:
            if finding.holds:
                reporter.step(f"{finding.step}. {finding.title}: {finding.found}")
        _conclude(reporter, report)
        kept = keep_evidence(checkpoint, seen, report) if checkpoint and seen else None
        if kept is not None:
            reporter.warning(
                f"both checkpoints are kept in {kept}; have it judged: concord audit evidence {kept} --root ROOT "
                f"--public {public}"
            )
        _warn_without(root, reporter)
        reporter.result(_fields(report, as_json) | ({} if kept is None else {"evidence": str(kept)}))
    if report.holds and checkpoint:
        write_atomic(checkpoint, report.checkpoint)
        if trusted is not None:
            write_atomic(audited_beside(checkpoint), record_of(report.checkpoint, trusted))
    if not report.holds:
        raise typer.Exit(EXIT_FAILED)


@app.command()
def log(
    public: PublicArgument,
    root: RootOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the log: who said what and when, entry by entry, as far as every signature and rule holds."""
    report = audit_place(public, trusted_root(root), log_alone=True)
    with reporting(as_json) as reporter:
        _warn_without(root, reporter)
        for line in report.log_lines:
            reporter.step(line)
        _conclude(reporter, report)
        entries = [_entry(index, statement) for index, statement in enumerate(report.statements)]
        reporter.result({"audit": report.holds, "entries": entries if as_json else len(entries)})
    if not report.holds:
        raise typer.Exit(EXIT_FAILED)


@app.command()
def show(
    index: Annotated[
        str | None,
        typer.Argument(metavar="[INDEX]", help="Number of an entry, as `audit log` lists it; all in tables without."),
    ] = None,
    public: Annotated[
        str | None,
        typer.Argument(metavar="PUBLIC", help="The public directory, a bundle made by export, or an address."),
    ] = None,
    root: RootOption = None,
    as_json: JsonOption = False,
) -> None:
    """Who joined, consented and was released, as tables; with an index, one entry as it was signed, and its digest."""
    if index is None:
        raise click.UsageError("Missing argument 'PUBLIC'.")
    with reporting(as_json) as reporter:
        _warn_without(root, reporter)
        report = holding(audit_place(index if public is None else public, trusted_root(root), log_alone=True))
        if public is not None:
            _show_entry(reporter, report, index)
            return
        tables = tables_of(report.history, at=datetime.now(UTC), entry=report.entries.__getitem__)
        reporter.result({"entries": report.history.size, **show_tables(reporter, tables, as_json=as_json)})


def _show_entry(reporter: Reporter, report: Report, number: str) -> None:
    if not number.isascii() or not number.isdigit():
        raise MalformedError(f"{number[:80]!r} is no number of an entry; `concord audit log` lists them")
    index = int(number)
    if index >= len(report.entries):
        raise NotFoundError(f"the log has {len(report.entries)} entries, 0 to {len(report.entries) - 1}")
    note, statement = parse_note(report.entries[index])
    reporter.step(f"entry {index}, {statement.issued_at}: {statement.party} {describe(statement)}")
    for line in note.text.splitlines():
        reporter.step(line)
    signers = [f"{signature.name}+{signature.key_id}" for signature in note.signatures]
    reporter.step(f"signed by {', '.join(signers)}")
    reporter.result({**_entry(index, statement), "digest": statement.digest, "signed_by": signers})


@app.command()
def release(
    name: Annotated[str, typer.Argument(help="Name of the release, such as release-1.")],
    public: PublicArgument,
    root: RootOption = None,
    as_json: JsonOption = False,
) -> None:
    """Who is in a release, by which consents, under which terms and until when; and why everybody else is not."""
    with reporting(as_json) as reporter:
        _warn_without(root, reporter)
        found = about_release(holding(audit_place(public, trusted_root(root), log_alone=True)), name)
        said = found.statement
        until = f", good until {said.not_after}" if said.not_after else ""
        reporter.step(
            f"{name} of line {said.line}, {said.issued_at} (entry {found.index}), over base {found.round}{until}"
        )
        if found.withdrawn is not None:
            when = found.withdrawn.statement.issued_at
            reporter.warning(f"{name} was withdrawn by entry {found.withdrawn.index}, {when}: its files are gone")
        if said.router_training is not None:
            trained = [member.owner for member in found.members if member.slot in said.trained_slots]
            reporter.step(
                f"it is {said.router_training.parent}, but for the router rows of {', '.join(trained)}: trained on "
                f"documents that they chose in campaign {said.router_training.campaign_id}"
            )
        for member in found.members:
            reporter.step(f"slot {member.slot}: {member.owner} {describe(member.grant)}")
            if member.revoked is not None:
                when, said_since = member.revoked.statement.issued_at, member.revoked.said
                reporter.warning(f"since then, {when} (entry {member.revoked.index}): {member.owner} {said_since}")
        for owner, reason in found.others.items():
            reporter.step(f"not in it: {owner}, {reason}")
        reporter.result(_release_fields(found) if as_json else {"release": name, "experts": len(found.members)})


def _release_fields(found: ReleaseAnswer) -> dict[str, object]:
    experts = [
        {
            "slot": member.slot,
            "owner": member.owner,
            "expert_digest": member.expert_digest,
            "grant_index": member.grant_index,
            "revoked_index": None if member.revoked is None else member.revoked.index,
            "grant": member.grant.model_dump(mode="json", exclude_none=True),
        }
        for member in found.members
    ]
    said = found.statement
    return {
        "release": said.release,
        "index": found.index,
        "manifest_digest": said.manifest_digest,
        "not_after": said.not_after,
        "withdrawn_index": None if found.withdrawn is None else found.withdrawn.index,
        "experts": experts,
        "others": found.others,
        "router_training": said.router_training.model_dump(mode="json") if said.router_training else None,
    }


@app.command()
def owner(
    name: Annotated[str, typer.Argument(help="Name of the owner.")],
    public: PublicArgument,
    root: RootOption = None,
    as_json: JsonOption = False,
) -> None:
    """All that an owner ever said, and the releases that hold its expert."""
    with reporting(as_json) as reporter:
        _warn_without(root, reporter)
        events, slots = about_owner(holding(audit_place(public, trusted_root(root), log_alone=True)), name)
        for event in events:
            reporter.step(f"{event.index:>4}  {event.statement.issued_at}  {event.said}")
        for held, slot in slots.items():
            reporter.step(f"in {held}, slot {slot}")
        entries = [_entry(event.index, event.statement) for event in events]
        reporter.result(
            {
                "owner": name,
                "entries": entries if as_json else len(entries),
                "releases": slots if as_json else len(slots),
            }
        )


@app.command("removal")
def show_removal(
    before: Annotated[str, typer.Argument(help="The release with the owner.")],
    after: Annotated[str, typer.Argument(help="The release without.")],
    public: Annotated[str, typer.Argument(help="The coordinator's public directory, or a copy of it.")],
    root: RootOption = None,
    as_json: JsonOption = False,
) -> None:
    """Prove that a release is another one without somebody's expert, and in nothing else different, byte by byte."""
    with reporting(as_json) as reporter:
        _warn_without(root, reporter)
        place = with_weights(public)
        found = removal(place, holding(audit(place, root=trusted_root(root))), before, after)
        for left, digest in found.left.items():
            reporter.step(f"gone: {left}, expert {digest}")
        reporter.step(f"as before: {', '.join(found.kept) or 'nobody else'}; {found.num_tensors} tensors compared")
        reporter.result({"left": found.left, "kept": list(found.kept), "tensors": found.num_tensors})


@app.command("rebuild")
def rebuild_release(
    name: Annotated[str, typer.Argument(help="Name of the release, such as release-1.")],
    public: Annotated[str, typer.Argument(help="The coordinator's public directory, or a copy of it.")],
    root: RootOption = None,
    output: Annotated[Path | None, typer.Option(help="Keep what is made in this new directory.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a release again from its inputs and compare: the same bytes, file by file. Keep it with --output."""
    with reporting(as_json) as reporter, TemporaryDirectory(prefix="concord-rebuild-") as folder:
        _warn_without(root, reporter)
        place = with_weights(public)
        report = holding(audit_place(place, trusted_root(root), log_alone=True))
        target = existing(output) if output else Path(folder) / name
        found = rebuild(place, report, name, target)
        reporter.step(f"{name} made again from its inputs: {len(found.made)} files, the same bytes as published")
        if found.trained:
            reporter.warning(
                f"router rows of slots {', '.join(map(str, found.trained))} were trained and are not made again: they "
                "are the published ones; every other row is what its owner contributed"
            )
        for file in found.taken_over:
            why = "what the coordinator measured" if file == EVALUATION_NAME else "of the training of rows"
            reporter.step(f"{file} is {why}; it was taken over as it is")
        reporter.result(
            {
                "release": name,
                "files": list(found.made),
                "taken_over": list(found.taken_over),
                "trained_slots": list(found.trained),
            }
        )


@app.command("evidence")
def evidence(
    file: Annotated[Path, typer.Argument(help="What an owner or a witness kept when two checkpoints contradicted.")],
    root: Annotated[Path, typer.Option(help="The trusted root that you know the log by.")],
    public: Annotated[
        str | None, typer.Option(help="The published log, where the checkpoints are of different sizes.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Judge evidence against a log as a third person. Exit 0 if it proves that the log contradicts itself, else 1."""
    with reporting(as_json) as reporter:
        found = Evidence.parse(read_required(existing(file), hint="name a file of evidence"))
        trusted = TrustedRoot.parse(read_required(existing(root), hint="ask for it out of band"))
        report = None if public is None else holding(audit_place(public, trusted, log_alone=True))
        proven = judge(found, trusted, entries=None if report is None else report.entries)
        reporter.step(f"proven: {proven}")
        reporter.result({"proven": proven})


@app.command("export")
def export_bundle(
    public: Annotated[str, typer.Argument(help="The coordinator's public directory, or a copy of it.")],
    output: Annotated[Path, typer.Option(help="The bundle to write.")] = Path("concord-audit.zip"),
    as_json: JsonOption = False,
) -> None:
    """Put the log, the trusted root and all manifests into one file, for an audit without a connection."""
    with reporting(as_json) as reporter:
        target = existing(output)
        size = export(with_weights(public), target)
        reporter.step(
            f"{size} entries and every manifest are in {target}; check it with: concord audit verify {output}"
        )
        reporter.result({"bundle": str(target), "entries": size})


def _warn_without(root: Path | None, reporter: Reporter) -> None:
    if root is None:
        reporter.warning("the trusted root was taken from the published files; give --root to check whose they are")


def _conclude(reporter: Reporter, report: Report) -> None:
    for finding in report.findings:
        if not finding.holds:
            reporter.warning(f"FAILS: {finding.found}")
    if not report.holds:
        reporter.warning("the audit FAILED; the steps after it were not taken")


def _entry(index: int, statement: Statement) -> dict[str, object]:
    return {"index": index, "type": statement.type, **statement.model_dump(mode="json", exclude_none=True)}


def _fields(report: Report, as_json: bool) -> dict[str, object]:
    return {
        "audit": report.holds,
        "steps": {str(finding.step): finding.holds for finding in report.findings},
        "releases": report.releases if as_json else len(report.releases),  # step 5 says which
    }
