"""`concord audit enrol`, `look` and `fetch`: for an auditor whom the consortium has invited. They need grpc; no other
command of the audit does.
"""

from pathlib import Path
from typing import Annotated

import typer

from common.cli import JsonOption, existing, read_invitation, reporting
from common.console import bytes_progress
from common.trust.invitation import Invitation

HomeOption = Annotated[Path, typer.Option(envvar="CONCORD_HOME", help="This auditor's directory.")]
_HOME = Path("auditor")
_GIGABYTE = 1_000_000_000


def add_to(app: typer.Typer) -> None:
    """Put these commands among the auditor's."""
    app.command()(enrol)
    app.command()(look)
    app.command()(fetch)


def enrol(
    invitation: Annotated[
        Path | None, typer.Option(help="The invitation file from the consortium's admin; without it, standard input.")
    ] = None,
    home: HomeOption = _HOME,
    as_json: JsonOption = False,
) -> None:
    """Join as an auditor: a certificate with which you may read everything, and nothing else. Reads are counted."""
    from common.audit_online import AuditorHome
    from common.audit_online import enrol as join

    raw = read_invitation(invitation)
    with reporting(as_json) as reporter:
        party = join(AuditorHome(existing(home)), Invitation.parse(raw))
        reporter.step(f"joined as {party}; what you trust is in {existing(home) / 'trusted_root.json'}")
        reporter.result({"party": party, "home": str(existing(home))})


def look(home: HomeOption = _HOME, as_json: JsonOption = False) -> None:
    """Ask the coordinator for the log's head, and check that it continues what you saw last."""
    from common.audit_online import AuditorHome
    from common.audit_online import look as look_at

    with reporting(as_json) as reporter:
        head, seen = look_at(AuditorHome(existing(home)))
        before = "nothing was seen before" if seen is None else f"it continues the {seen.size} that you saw"
        reporter.step(f"the log has {head.size} entries; {before}")
        reporter.result(
            {"entries": head.size, "seen": None if seen is None else seen.size, "root_hash": head.root.hex()}
        )


def fetch(
    directory: Annotated[Path, typer.Argument(help="Where everything goes; what is there already is used.")],
    most_gigabytes: Annotated[float, typer.Option(min=0, help="Refuse where more than so much is published.")] = 100,
    home: HomeOption = _HOME,
    as_json: JsonOption = False,
) -> None:
    """Copy everything that is published, for `concord audit verify` at home. Interrupted, the same command goes on."""
    from common.audit_online import AuditorHome
    from common.audit_online import fetch as fetch_all

    auditor, target = AuditorHome(existing(home)), existing(directory)
    with reporting(as_json) as reporter:
        on_bytes = bytes_progress(reporter, "fetching what is published")
        count = fetch_all(auditor, target, most_bytes=int(most_gigabytes * _GIGABYTE), on_bytes=on_bytes)
        reporter.step(f"{count} files are in {target}; check them: concord audit verify {target} "
                      f"--root {auditor.trusted_root}")  # fmt: skip
        reporter.result({"files": count, "directory": str(target)})
