"""What a serving coordinator does and who is there, for `concord coordinator status`."""

import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from time import monotonic
from typing import Any

from common.errors import ConflictError
from common.files import exclusive
from common.state_file import StateFile, read_state
from common.trust.history import History
from common.trust.statements import COORDINATOR, format_time
from coordinator.config import CoordinatorHome
from coordinator.home import Coordinator

_MEGABYTE = 1_000_000


class Serving:
    """Writes it now and then while the daemon serves."""

    def __init__(self, coordinator: Coordinator, state: StateFile) -> None:
        self._coordinator, self._state = coordinator, state
        self._before: tuple[float, dict[str, int]] = monotonic(), {}

    def write(self) -> None:
        """Say who called when, which uploads are under way and how fast they were since the last time."""
        coordinator, now = self._coordinator, monotonic()
        uploads = coordinator.intake.under_way()
        since, before = self._before
        rates = {
            party: round((stored - before[party]) / (now - since) / _MEGABYTE, 2)
            for party, (stored, _) in uploads.items()
            if party in before and now > since
        }
        self._before = now, {party: stored for party, (stored, _) in uploads.items()}
        self._state.set(
            last_calls={party: format_time(at) for party, at in dict(coordinator.enrolment.last_calls).items()},
            mb_per_s=rates,
            disk_free_bytes=shutil.disk_usage(coordinator.home.path).free,
        )


def state_of_daemon(home: CoordinatorHome) -> dict[str, Any]:
    """What the daemon said last, and whether it runs; what is under way elsewhere."""
    return {
        "running": _is_held(home.path / "daemon.lock"),
        "releasing": _is_held(home.release_lock),
        **read_state(home.state),
    }


def _is_held(lock: Any) -> bool:
    if not lock.exists():
        return False
    try:
        with exclusive(lock, what=str(lock)):
            return False
    except ConflictError:
        return True


def owners_table(coordinator: Coordinator, history: History, daemon: Mapping[str, Any]) -> list[dict[str, object]]:
    """A row for every owner: when it called, by which certificate, what it consented to and sent, how far it is."""
    now, latest, uploads = (
        datetime.now(UTC),
        coordinator.enrolment.latest_certificates(),
        coordinator.intake.under_way(),
    )
    calls, rates = daemon.get("last_calls", {}), daemon.get("mb_per_s", {})
    rows = []
    for party in sorted(history.parties.keys() - {COORDINATOR}):
        stored, total = uploads.get(party, (0, 0))
        rate = f" at {rates[party]} MB/s" if rates.get(party) else ""
        rows.append(
            {
                "owner": party,
                "last call": calls.get(party, "not since it serves"),
                "certificate": latest[party].describe(at=now) if party in latest else "none",
                "consent": _consent(history, party, now),
                "expert": any(each.party == party for each in history.contributions_by_index.values()),
                "upload": f"{100 * stored / total:.0f}% of {total} bytes{rate}" if total else "",
            }
        )
    return rows


def _consent(history: History, party: str, now: datetime) -> str:
    from common.trust.rules import is_in_force

    grants = [grant for grant in history.grants.values() if grant.party == party]
    standing = [grant for grant in grants if is_in_force(grant, at=now)]
    if standing:
        return f"until {max(grant.statement.not_after for grant in standing)}"
    return "opted out or lapsed" if grants else "none"
