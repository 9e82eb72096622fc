"""What all commands share: options, reporters, and how an error ends a command."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn

import click
import typer

from common.console import JsonReporter, Reporter, RichReporter
from common.errors import ConcordError

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


def run(command: Callable[[], object]) -> NoReturn:
    """Run a click command to its end and exit: 0, 1 with one line on what went wrong, 2 for wrong usage."""
    try:
        status = command()
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except ConcordError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(EXIT_FAILED)
    except (click.Abort, KeyboardInterrupt):
        print("Stopped. Everything done so far is kept; run the same command to go on.", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    sys.exit(status if isinstance(status, int) else 0)


def existing(path: Path) -> Path:
    """A path given on the command line, absolute, so that settings may keep it."""
    return path.expanduser().resolve()
