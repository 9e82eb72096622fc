"""What a command shows while it works: rich text for people, JSON lines for machines. One interface for both."""

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol, TextIO

from rich import box
from rich.console import Console, ConsoleOptions
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from common.jobs import JobEvent

_UNSEEN: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
"""What moves a terminal's cursor or turns the order of letters: others' text must not."""


def visible(text: str) -> str:
    """Text as a terminal may show it: what would not be seen but done is spelt out."""
    return _UNSEEN.sub(lambda found: ascii(found[0])[1:-1], text)


class Reporter(Protocol):
    """Where a command says what it does."""

    def step(self, text: str) -> None:
        """A finished step, as one line."""

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """What is best read in columns; machines get it with the result."""

    def warning(self, text: str) -> None:
        """What a person should look at, as one line."""

    def progress(self, task: str, *, done: float, total: float, note: str = "") -> None:
        """How far a task is, in any unit."""

    def result(self, fields: Mapping[str, object]) -> None:
        """What the command found; machines read exactly this."""


class JsonReporter:
    """JSON lines: events while working, `{"event": "result", ...}` last."""

    def __init__(self, stream: TextIO = sys.stdout) -> None:
        self._stream = stream

    def step(self, text: str) -> None:
        self._write({"event": "step", "text": text})

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        pass

    def warning(self, text: str) -> None:
        self._write({"event": "warning", "text": text})

    def progress(self, task: str, *, done: float, total: float, note: str = "") -> None:
        self._write({"event": "progress", "task": task, "done": done, "total": total, "note": note})

    def result(self, fields: Mapping[str, object]) -> None:
        self._write({"event": "result", **fields})

    def _write(self, fields: Mapping[str, object]) -> None:
        self._stream.write(json.dumps(fields) + "\n")
        self._stream.flush()


class RichReporter:
    """A line a step and a bar a task, for people."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("  {task.description:<34}"),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            transient=not console.is_terminal,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> "RichReporter":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def step(self, text: str) -> None:
        self._console.print(f"[green]✓[/green] {escape(visible(text))}", highlight=False, soft_wrap=True)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        drawn = Table(*columns, title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
        rows = [[visible(cell) for cell in row] for row in rows]
        for row in rows:
            drawn.add_row(*map(escape, row))
        if not rows:
            self._console.print(f"[bold]{escape(title)}[/bold]: none yet", highlight=False)
        elif self._console.measure(drawn, options=self._unbounded()).maximum <= self._console.width:
            self._console.print(drawn, highlight=False)
        else:  # in columns that are too narrow nobody can read it
            self._console.print(f"[bold]{escape(title)}[/bold]", highlight=False)
            for row in rows:
                said = ", ".join(f"{name} {cell}" for name, cell in zip(columns[1:], row[1:], strict=True) if cell)
                self._console.print(f"  {columns[0]} {row[0]}: {said}", highlight=False, markup=False, soft_wrap=True)

    def _unbounded(self) -> ConsoleOptions:
        return self._console.options.update(max_width=10_000)

    def warning(self, text: str) -> None:
        self._console.print(f"[yellow]![/yellow] {escape(visible(text))}", highlight=False, soft_wrap=True)

    def progress(self, task: str, *, done: float, total: float, note: str = "") -> None:
        if task not in self._tasks:
            self._tasks[task] = self._progress.add_task(task, total=total, note=note)
        self._progress.update(self._tasks[task], completed=done, total=total, note=note)

    def result(self, fields: Mapping[str, object]) -> None:
        for name, value in fields.items():
            self._console.print(f"  {name}: {visible(_plain(value))}", highlight=False, markup=False, soft_wrap=True)


def _plain(value: object) -> str:
    """A value as a person writes it."""
    if isinstance(value, Mapping):
        return _plain([f"{key} {_plain(item)}" for key, item in value.items()])
    if isinstance(value, list | tuple | set):
        return ", ".join(map(_plain, value)) or "none"
    return {None: "none", True: "yes", False: "no"}[value] if value is None or isinstance(value, bool) else str(value)


def job_progress(reporter: Reporter, task: str) -> Callable[[JobEvent], None]:
    """Show the progress events of a job (`common/jobs.py`) as `task`."""

    def show(event: JobEvent) -> None:
        if event.get("event") != "progress":
            return
        done, total = event.get("step", event.get("done", 0)), event.get("steps", event.get("total", 1))
        loss, speed = event.get("loss"), event.get("tokens_per_s")
        known = isinstance(loss, int | float) and isinstance(speed, int | float)
        note = f"loss {loss:.3f}, {speed:,.0f} tokens/s" if known else ""
        reporter.progress(task, done=float(str(done)), total=float(str(total)), note=note)

    return show


def size(num_bytes: float) -> str:
    """Bytes as people read them."""
    for unit in ("B", "kB", "MB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} GB"


def bytes_progress(reporter: Reporter, task: str) -> Callable[[int, int], None]:
    """Show bytes done of bytes in all as `task`."""

    def show(done: int, total: int) -> None:
        reporter.progress(task, done=done, total=max(total, 1), note=f"{size(done)} of {size(total)}")

    return show
