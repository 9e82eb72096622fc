"""How far owners are with what they were asked, as they said; what they answer is in the log."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from sqlalchemy import insert, select

from common.errors import MalformedError
from coordinator.store import Store
from coordinator.tables import campaign_states

STATES: Final = ("offered", "accepted", "running", "failed")
"""In this order they come; `failed` is said of a try, which may be made again."""


class CampaignStates:
    """When each owner first said each state; the first time stays."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._written: set[tuple[str, str, str]] = set()

    def said(self, campaign_id: str, party: str, state: str) -> None:
        """Keep that an owner is in a state; once is enough.

        Raises:
            MalformedError: there is no such state.
        """
        if state not in STATES:
            raise MalformedError(f"{state[:40]!r} is no state of a campaign; there are {', '.join(STATES)}")
        key = (campaign_id, party, state)
        if key in self._written:
            return
        with self._store.transaction() as connection:
            where = (
                (campaign_states.c.campaign_id == campaign_id)
                & (campaign_states.c.party == party)
                & (campaign_states.c.state == state)
            )
            if connection.execute(select(campaign_states.c.at).where(where)).first() is None:
                row = dict(zip(("campaign_id", "party", "state"), key, strict=True))
                connection.execute(insert(campaign_states).values(**row, at=datetime.now(UTC).timestamp()))
        self._written.add(key)

    def of(self, campaign_id: str) -> Mapping[str, Mapping[str, datetime]]:
        """By owner: since when it is or was in each state that it said."""
        wanted = select(campaign_states).where(campaign_states.c.campaign_id == campaign_id)
        found: dict[str, dict[str, datetime]] = {}
        with self._store.reading() as connection:
            for row in connection.execute(wanted):
                found.setdefault(row.party, {})[row.state] = datetime.fromtimestamp(row.at, UTC)
        return found
