"""Who may say what, and dated when: what the rules of several kinds of statements share."""

from datetime import timedelta
from typing import TYPE_CHECKING, Final

from common.errors import ConflictError, NotPermittedError
from common.trust.statement_fields import COORDINATOR, Statement, format_time, parse_time

if TYPE_CHECKING:
    from common.trust.history import History

CLOCKS_DIFFER: Final = timedelta(minutes=20)
"""By how much clocks may: an entry of the coordinator is dated no earlier than an entry before it by more than this."""


def only_coordinator(statement: Statement, history: "History") -> None:
    """Raise unless the coordinator says it, and dates it rightly."""
    if statement.party != COORDINATOR:
        raise NotPermittedError(f"only the coordinator may say {statement.type}, not {statement.party}")
    check_not_dated_back(statement, history)


def only_owner(statement: Statement) -> None:
    """Raise unless a data owner says it."""
    if statement.party == COORDINATOR:
        raise NotPermittedError(f"only a data owner may say {statement.type}")


def check_not_dated_back(statement: Statement, history: "History") -> None:
    """The coordinator dates what it says when it is recorded; an owner's word may have been carried for days."""
    if parse_time(statement.issued_at) < history.latest - CLOCKS_DIFFER:
        raise ConflictError(
            f"{statement.type} {statement.record_id} is dated {statement.issued_at}; the log had its entries before it "
            f"by {format_time(history.latest)}: what the coordinator says may not be dated back; is its clock right?"
        )
