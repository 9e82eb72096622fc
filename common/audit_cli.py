"""`concord audit`: what an auditor does. Needs no connection, no account and nobody's word."""

from pathlib import Path
from typing import Annotated

import typer

from common.audit import Report, audit
from common.cli import EXIT_FAILED, JsonOption, existing, new_app, reporting
from common.files import read_required, write_atomic
from common.trust.root import TrustedRoot

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
    trusted = TrustedRoot.parse(read_required(root, hint="ask for it out of band")) if root else None
    seen = checkpoint.read_bytes() if checkpoint and checkpoint.exists() else None
    report = audit(existing(public), root=trusted, last_seen=seen)
    with reporting(as_json) as reporter:
        for finding in report.findings:
            mark = "holds" if finding.holds else "FAILS"
            reporter.step(f"{finding.step}. {finding.title}: {mark}: {finding.found}")
        if trusted is None:
            reporter.step("the trusted root was taken from the published files; give --root to check whose they are")
        reporter.result(_fields(report))
    if report.holds and checkpoint:
        write_atomic(checkpoint, report.checkpoint)
    if not report.holds:
        raise typer.Exit(EXIT_FAILED)


def _fields(report: Report) -> dict[str, object]:
    return {
        "audit": report.holds,
        "steps": {str(finding.step): finding.holds for finding in report.findings},
        "releases": report.releases,
    }
