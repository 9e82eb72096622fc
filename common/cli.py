"""What all commands share: options, reporters, and how an error ends a command."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import click
import typer

from common.console import JsonReporter, Reporter, RichReporter, visible
from common.errors import ConcordError
from common.files import NO_SPACE, read_at_most, read_required
from common.signals import interrupt_on_term
from common.trust.invitation import MAX_BYTES

if TYPE_CHECKING:
    from common.trust.tables import RegistryTable

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON lines, the result last, instead of text.")]

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


def new_app(help_text: str) -> typer.Typer:
    """An empty group of commands."""
    return typer.Typer(help=help_text, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@contextmanager
def reporting(as_json: bool) -> Iterator[Reporter]:
    """Where a command says what it does."""
    if as_json:
        yield JsonReporter()
        return
    from rich.console import Console

    with RichReporter(Console()) as reporter:
        yield reporter


def show_tables(reporter: Reporter, tables: "Iterable[RegistryTable]", *, as_json: bool) -> dict[str, object]:
    """Draw tables; what the result says of them: each row for machines, how many for people."""
    fields: dict[str, object] = {}
    for table in tables:
        reporter.table(table.title, table.columns, table.rows)
        rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
        fields[table.title] = rows if as_json else len(rows)
    return fields


def run(command: Callable[[], object]) -> NoReturn:
    """Run a click command to its end and exit: 0, 1 with one line on what went wrong, 2 for wrong usage.

    SIGTERM is what ctrl-C is: what the command started is stopped, then it ends with 130.
    """
    interrupt_on_term()
    try:
        status = command()
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except ConcordError as error:
        print(f"Error: {visible(str(error))}", file=sys.stderr)
        sys.exit(EXIT_FAILED)
    except OSError as error:  # a path from the command line or in a home that is not what it should be
        place = f"{error.filename}: " if error.filename else ""
        remedy = "; free some and run the same command again" if error.errno in NO_SPACE else ""
        print(f"Error: {visible(f'{place}{error.strerror or error}{remedy}')}", file=sys.stderr)
        sys.exit(EXIT_FAILED)
    except (click.Abort, KeyboardInterrupt):
        status = EXIT_INTERRUPTED
    if status == EXIT_INTERRUPTED:  # typer, too, makes this of a KeyboardInterrupt
        print("Stopped. Everything done so far is kept; run the same command to go on.", file=sys.stderr)
    sys.exit(status if isinstance(status, int) else 0)


def read_invitation(path: Path | None) -> bytes:
    """An invitation's bytes from a file, or from standard input where none is named."""
    if path is None:
        return read_at_most(sys.stdin.buffer, MAX_BYTES, what="what standard input gives as an invitation")
    return read_required(path, hint="ask the admin for one", max_bytes=MAX_BYTES)


def existing(path: Path) -> Path:
    """A path given on the command line, absolute, so that settings may keep it."""
    return path.expanduser().resolve()
