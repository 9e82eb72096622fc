"""`concord coordinator intake`: what is coming in, what came, and what was refused."""

import shutil
from pathlib import Path
from typing import Annotated

import typer

from common.cli import JsonOption, existing, reporting
from common.errors import NotFoundError
from common.trust.statements import PARTY_PATTERN
from coordinator.home import Coordinator, open_home
from coordinator.intake import REASON_NAME
from coordinator.intake_report import IntakeReport, intake_reports
from coordinator.options import HOME, HomeOption
from coordinator.state import state_of_daemon


def add_to(app: typer.Typer) -> None:
    """Put this command among the coordinator's."""
    app.command()(intake)


def intake(
    clear: Annotated[
        str | None, typer.Option(metavar="OWNER", help="Remove what is in quarantine of this owner.")
    ] = None,
    home: HomeOption = HOME,
    as_json: JsonOption = False,
) -> None:
    """Uploads under way, experts that came with how they compare, and uploads that were refused, with the reason."""
    with reporting(as_json) as reporter, open_home(existing(home)) as coordinator:
        if clear is not None:
            _clear(coordinator.home.quarantine, clear)
            reporter.step(f"what was kept of the refused upload of {clear} is gone")
        uploads, reports, refused = _uploads(coordinator), _reports(coordinator), _refused(coordinator.home.quarantine)
        reporter.table("uploads under way", ("owner", "stored", "of", "MB/s"), uploads)
        columns = ("owner", "bytes", "over the public expert's, rows over others'", "to look at")
        reporter.table("experts", columns, [_row(r) for r in reports])
        reporter.table("refused", ("owner", "reason"), refused)
        for report in reports:
            for text in report.warnings:
                reporter.warning(f"{report.party}: {text}")
        reporter.result(
            {
                "uploads": [
                    dict(zip(("owner", "stored_bytes", "size_bytes", "mb_per_s"), row, strict=True)) for row in uploads
                ],
                "experts": [_fields(report) for report in reports],
                "refused": dict(refused),
            }
            if as_json
            else {"uploads": len(uploads), "experts": len(reports), "refused": len(refused)}
        )


def _uploads(coordinator: Coordinator) -> list[tuple[str, ...]]:
    rates = state_of_daemon(coordinator.home).get("mb_per_s", {})
    return [
        (party, str(stored), str(total), str(rates.get(party, "")))
        for party, (stored, total) in sorted(coordinator.intake.under_way().items())
    ]


def _reports(coordinator: Coordinator) -> list[IntakeReport]:
    return intake_reports(coordinator.publication, coordinator.registry.head())


def _refused(quarantine: Path) -> list[tuple[str, str]]:
    paths = sorted(quarantine.glob(f"*/{REASON_NAME}"))
    return [(path.parent.name, path.read_text(errors="replace").strip()) for path in paths]


def _clear(quarantine: Path, owner: str) -> None:
    place = quarantine / owner
    if not PARTY_PATTERN.fullmatch(owner) or not place.is_dir():
        raise NotFoundError(f"nothing of {owner[:80]!r} is in quarantine")
    shutil.rmtree(place)


def _row(report: IntakeReport) -> tuple[str, ...]:
    ratios = ", ".join(f"{name} {ratio:.2f}" for name, ratio in report.ratios.items())
    return report.party, str(report.size_bytes), ratios, str(len(report.warnings) or "")


def _fields(report: IntakeReport) -> dict[str, object]:
    return {
        "owner": report.party,
        "size_bytes": report.size_bytes,
        "rms": dict(report.rms),
        "over_public": dict(report.ratios),
        "collisions": [
            {"layer": each.layer, "with": each.other, "cosine": round(each.cosine, 6)} for each in report.collisions
        ],
        "warnings": report.warnings,
    }
