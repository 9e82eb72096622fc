"""What auditors read, counted by party, call and day: whoever may look at everything is seen to look."""

from collections import Counter
from datetime import UTC, datetime
from threading import Lock

from sqlalchemy import func, insert, select

from coordinator.store import Store
from coordinator.tables import reads


class Reads:
    """Counts in memory, and writes now and then: a call does not wait for that."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._counted = Counter[tuple[str, str, str]]()
        self._lock = Lock()

    def count(self, party: str, method: str) -> None:
        """One more call."""
        with self._lock:
            self._counted[party, method.rpartition("/")[2], f"{datetime.now(UTC):%Y-%m-%d}"] += 1

    def write(self) -> None:
        """Write what was counted since the last time; a row each."""
        with self._lock:
            counted, self._counted = self._counted, Counter()
        if counted:
            rows = [
                {
                    "party": party,
                    "method": method,
                    "day": day,
                    "calls": calls,
                    "written_at": datetime.now(UTC).timestamp(),
                }
                for (party, method, day), calls in counted.items()
            ]
            with self._store.transaction() as connection:
                connection.execute(insert(reads), rows)

    def by_party(self) -> dict[str, int]:
        """How many calls each auditor has made, as far as they are written."""
        wanted = select(reads.c.party, func.sum(reads.c.calls)).group_by(reads.c.party)
        with self._store.reading() as connection:
            return {party: int(calls) for party, calls in connection.execute(wanted)}
