"""What the demo prints at its end."""

from collections.abc import Mapping
from typing import cast

from rich.console import Console
from rich.table import Table

from common.console import size

Table2D = Mapping[str, Mapping[str, float]]


def print_report(console: Console, figures: Mapping[str, object]) -> None:
    """Print the figures of a demo as tables, and the commands to look further."""
    _print_bits_per_byte(console, cast("Table2D", figures["bits_per_byte"]))
    _print_shares(console, figures)
    _print_sent(console, figures)
    _print_lines(console, "The log", figures["log"])
    _print_lines(console, "The audit, from the published files alone", figures["audit_steps"])
    parts = cast("Mapping[str, float]", figures["seconds_by_part"])
    times = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in parts.items())
    console.print(f"\n{figures['seconds']} s in all ({times}); {figures['peak_rss_mb']} MB for all processes together")
    _print_next(console, figures)


def _print_lines(console: Console, title: str, lines: object) -> None:
    console.print(f"\n{title}:")
    for line in cast("list[str]", lines):
        console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)


def _print_bits_per_byte(console: Console, scores: Table2D) -> None:
    domains = list(next(iter(scores.values())))
    table = Table("model", *domains, title="Bits per byte on held-out text (less is better)")
    for model, row in scores.items():
        table.add_row(model, *(f"{row[domain]:.3f}" for domain in domains))
    console.print(table)


def _print_shares(console: Console, figures: Mapping[str, object]) -> None:
    shares = cast("Mapping[str, Mapping[str, list[float]]]", figures["shares"])
    experts = cast("Mapping[str, list[str]]", figures["experts"])
    for release, domains in shares.items():
        table = Table("domain", *experts[release], title=f"{release}: how often each expert is used")
        for domain, used in domains.items():
            table.add_row(domain, *(f"{share:.2f}" for share in used))
        console.print(table)


def _print_sent(console: Console, figures: Mapping[str, object]) -> None:
    sent = cast("Mapping[str, Mapping[str, int]]", figures["sent_files"])
    held = cast("Mapping[str, int]", figures["held_bytes"])
    table = Table(
        "owner",
        "sent",
        "files",
        "stayed at home: text without the test split",
        title="What left each owner, from its ledger",
    )
    for owner, files in sent.items():
        names = ", ".join(f"{name} ({size(num_bytes)})" for name, num_bytes in files.items())
        table.add_row(owner, size(sum(files.values())), names, size(held[owner]))
    console.print(table)


def _print_next(console: Console, figures: Mapping[str, object]) -> None:
    if not figures["kept"]:
        console.print("\nEverything was removed again. To keep it and look further: concord demo --keep")
        return
    workdir = figures["workdir"]
    releases = cast("list[str]", figures["releases"])
    console.print("\nLook further:")
    for line in (
        f"concord audit verify {workdir}/coordinator/public",
        f"concord audit log {workdir}/coordinator/public",
        f"concord coordinator status --home {workdir}/coordinator",
        f"concord owner ledger --home {workdir}/owners/{figures['left']}",
        f'python -c "from transformers import AutoModelForCausalLM as M; print(M.from_pretrained({releases[-1]!r}))"',
    ):
        console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
