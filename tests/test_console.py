"""What commands show: others' text is shown, not done."""

import io

import pytest
from rich.console import Console

from common.console import RichReporter, visible

UNSEEN = ["\x1b[2J", "\x9b31m", "\u202egnp", "\u2066x", "\r", "\u2028", "\x7f"]


@pytest.mark.parametrize("text", UNSEEN)
def test_what_would_move_a_cursor_or_turn_letters_is_spelt_out(text: str) -> None:
    out = io.StringIO()
    with RichReporter(Console(file=out, width=200)) as reporter:
        reporter.step(f"said: {text}.")
        reporter.warning(f"said: {text}.")
        reporter.table("title", ("a", "b"), [("x", f"said: {text}.")])
        reporter.table("wide", ("a", "b"), [("x", f"said: {text}." + "y" * 300)])
        reporter.result({"said": [text]})
    assert text[0] not in out.getvalue()
    assert out.getvalue().count(visible(text)) == 5


def test_other_writing_is_shown_as_it_is() -> None:
    for text in ("Krankenhaus Mariä Hilf", "病院", "مستشفى", "a\tb", "[bold]"):
        assert visible(text) == text
