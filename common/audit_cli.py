"""`concord audit`: what an auditor does. Needs no connection, no account and nobody's word."""

from pathlib import Path
from typing import Annotated

import typer

from common.audit import Report, audit
from common.cli import EXIT_FAILED, JsonOption, existing, new_app, reporting
from common.console import Reporter
from common.files import read_required, write_atomic
from common.trust.root import TrustedRoot
from common.trust.statements import Statement

app = new_app("Check a consortium's published files and log, trusting nobody.")


@app.callback()
def group() -> None:
    """Check a consortium's published files and log, trusting nobody."""


@app.command()
def verify(
    public: Annotated[Path, typer.Argument(help="The coordinator's public directory, or a copy of it.")],
    root: Annotated[Path | None, typer.Option(help="The trusted root you were given out of band.")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="File with the last checkpoint you saw; kept up to date.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Replay everything: signatures, proofs, consents, opt-outs, and every byte of every release. Exit 0 or 1."""
    trusted = _trusted(root)
    seen = checkpoint.read_bytes() if checkpoint and checkpoint.exists() else None
    report = audit(existing(public), root=trusted, last_seen=seen)
    with reporting(as_json) as reporter:
        for finding in report.findings:
            if finding.holds:
                reporter.step(f"{finding.step}. {finding.title}: {finding.found}")
        _conclude(reporter, report)
        if trusted is None:
            reporter.warning("the trusted root was taken from the published files; give --root to check whose they are")
        reporter.result(_fields(report))
    if report.holds and checkpoint:
        write_atomic(checkpoint, report.checkpoint)
    if not report.holds:
        raise typer.Exit(EXIT_FAILED)


@app.command()
def log(
    public: Annotated[Path, typer.Argument(help="The coordinator's public directory, or a copy of it.")],
    root: Annotated[Path | None, typer.Option(help="The trusted root you were given out of band.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Print the log: who said what and when, entry by entry, as far as every signature and rule holds."""
    report = audit(existing(public), root=_trusted(root))
    with reporting(as_json) as reporter:
        for line in report.log_lines:
            reporter.step(line)
        _conclude(reporter, report)
        entries = [_entry(index, statement) for index, statement in enumerate(report.statements)]
        reporter.result({"audit": report.holds, "entries": entries if as_json else len(entries)})
    if not report.holds:
        raise typer.Exit(EXIT_FAILED)


def _conclude(reporter: Reporter, report: Report) -> None:
    for finding in report.findings:
        if not finding.holds:
            reporter.warning(f"FAILS: {finding.found}")
    if not report.holds:
        reporter.warning("the audit FAILED; the steps after it were not taken")


def _trusted(root: Path | None) -> TrustedRoot | None:
    return TrustedRoot.parse(read_required(root, hint="ask for it out of band")) if root else None


def _entry(index: int, statement: Statement) -> dict[str, object]:
    return {"index": index, "type": statement.type, **statement.model_dump(mode="json", exclude_none=True)}


def _fields(report: Report) -> dict[str, object]:
    return {
        "audit": report.holds,
        "steps": {str(finding.step): finding.holds for finding in report.findings},
        "releases": report.releases,
    }
