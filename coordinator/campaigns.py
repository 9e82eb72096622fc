"""Campaigns: what the coordinator asks owners, and what they answer.

The log has every campaign, answer and ending; the database has what owners said of themselves meanwhile; files that
came beside answers are in the home. Whoever carries messages (the daemon's own service, or another dispatcher) asks
`offers_for` and hands in what `receive` takes: both may be repeated without harm, after any crash.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from common.errors import ConflictError, MalformedError, NotFoundError
from common.trust.campaign_statements import CampaignClose, CampaignDecline, CampaignDefine, CampaignResult, Parameters
from common.trust.history import History
from common.trust.state import Campaign, CampaignAnswer
from common.trust.statements import COORDINATOR, format_time, parse_note, parse_time
from coordinator.attachments import check_attachment
from coordinator.campaign_files import CampaignFiles
from coordinator.campaign_states import STATES, CampaignStates
from coordinator.log import Log
from coordinator.registry import Recorded, Registry

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Standing:
    """How far one owner is with a campaign: its latest state, since when that is known, and the entry it answers by."""

    owner: str
    state: str
    since: datetime | None
    entry: int | None


class Campaigns:
    """One coordinator's campaigns. Thread-safe; several processes may share one registry."""

    def __init__(
        self,
        registry: Registry,
        log: Log,
        states: CampaignStates,
        files: CampaignFiles,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._registry, self._log, self._states, self._now = registry, log, states, now
        self.files = files

    def define(
        self,
        parameters: Parameters,
        *,
        owners: Sequence[str] = (),
        quorum: int | None = None,
        min_documents: int = 10,
        lifetime: timedelta = timedelta(days=1),
        opens_at: datetime | None = None,
    ) -> Recorded:
        """Ask these owners, or all that have joined and not left; a quorum is all of them where none is given.

        Raises:
            NotFoundError: nobody is there to be asked, or what is asked about is not in the log.
            MalformedError, ConflictError: as the rules say.
        """
        with self._registry.history() as history:
            asked = sorted(set(owners)) or _here(history)
        if not asked:
            raise NotFoundError("nobody has joined who could be asked")
        opens = opens_at or self._now()
        return self._registry.issue(
            CampaignDefine,
            parameters=parameters.model_dump(exclude_unset=True),
            owners=asked,
            quorum=len(asked) if quorum is None else quorum,
            min_documents=min_documents,
            opens_at=format_time(opens),
            closes_at=format_time(opens + lifetime),
        )

    def offers_for(self, party: str) -> list[bytes]:
        """The signed notes of campaigns that ask this owner now and that it has not answered."""
        now = self._now()
        with self._registry.history() as history:
            if history.standing.get(party) == 0:
                return []
            open_now = [
                campaign.index
                for campaign in history.campaigns.values()
                if campaign.closed_index is None
                and party in campaign.statement.owners
                and (campaign.statement.record_id, party) not in history.answers
                and parse_time(campaign.statement.opens_at) <= now < parse_time(campaign.statement.closes_at)
            ]
        return [self._log.entry(index) for index in open_now]

    def heard(self, party: str, campaign_id: str, state: str) -> None:
        """An owner says how far it is with what it was asked.

        Raises:
            NotFoundError: it was not asked that.
        """
        self._asked(campaign_id, party)
        self._states.said(campaign_id, party, state)

    def receive(self, party: str, note: bytes, attachment: bytes) -> bytes:
        """Take an owner's signed answer, and what comes beside it; returns its receipt, and again the same one.

        Raises:
            ConcordError: it is refused; the message says why. Nothing of it is kept then.
        """
        statement = parse_note(note)[1]
        if not isinstance(statement, CampaignResult | CampaignDecline):
            raise MalformedError(
                f"{statement.type} is no answer to a campaign; send campaign.result or campaign.decline"
            )
        asked = self._asked(statement.campaign_id, party)
        if isinstance(statement, CampaignDecline) and attachment:
            raise MalformedError("nothing goes beside a refusal; send it without")
        if isinstance(statement, CampaignResult):
            check_attachment(attachment, statement, asked)
        self._registry.check(note, caller=party)
        if attachment:
            self.files.keep(attachment, campaign_id=asked.record_id, party=party)
        receipt = self._registry.record(note, caller=party, arrived=True)
        self._close_if_due(asked.record_id)
        return receipt

    def close(self, campaign_id: str) -> CampaignClose:
        """Close a campaign before its time, because the admin says so.

        Raises:
            NotFoundError: there is none of that id.
            ConflictError: it is closed already.
        """
        return self._close(campaign_id, by="admin")

    def close_due(self) -> list[str]:
        """Close what has its quorum or is past its date; the ids of what was closed."""
        with self._registry.history() as history:
            open_ids = [name for name, campaign in history.campaigns.items() if campaign.closed_index is None]
        return [campaign_id for campaign_id in open_ids if self._close_if_due(campaign_id)]

    def find(self, campaign_id: str) -> Campaign:
        """A campaign in the log; `NotFoundError` where there is none of that id."""
        with self._registry.history() as history:
            campaign = history.campaigns.get(campaign_id)
        if campaign is None:
            raise NotFoundError(f"there is no campaign {campaign_id[:80]!r}; see: concord coordinator campaign list")
        return campaign

    def all(self) -> list[Campaign]:
        """Every campaign in the log, the oldest first."""
        with self._registry.history() as history:
            return list(history.campaigns.values())

    def results(self, campaign_id: str) -> dict[str, CampaignResult]:
        """What owners answered, by owner."""
        with self._registry.history() as history:
            indexes = [
                (party, answer.index)
                for (name, party), answer in history.answers.items()
                if name == campaign_id and answer.is_result
            ]
        found = {}
        for party, index in sorted(indexes):
            statement = parse_note(self._log.entry(index))[1]
            assert isinstance(statement, CampaignResult)
            found[party] = statement
        return found

    def table(self, campaign_id: str) -> list[Standing]:
        """How far each owner is that a campaign asks: what it answered in the log, else what it said last."""
        campaign = self.find(campaign_id)
        said = self._states.of(campaign_id)
        with self._registry.history() as history:
            answers = {owner: history.answers.get((campaign_id, owner)) for owner in campaign.statement.owners}
        is_over = campaign.closed_index is not None
        return [self._standing(owner, answer, said.get(owner, {}), is_over) for owner, answer in answers.items()]

    def _standing(
        self, owner: str, answer: CampaignAnswer | None, said: Mapping[str, datetime], is_over: bool
    ) -> Standing:
        if answer is not None:
            state = "reported" if answer.is_result else "declined"
            return Standing(owner, state, self._dated(answer.index), answer.index)
        reached = [state for state in STATES if state in said]
        if not reached:
            return Standing(owner, "absent, not reached" if is_over else "not reached", None, None)
        return Standing(owner, f"absent, {reached[-1]}" if is_over else reached[-1], said[reached[-1]], None)

    def _asked(self, campaign_id: str, party: str) -> CampaignDefine:
        with self._registry.history() as history:
            campaign = history.campaigns.get(campaign_id)
        if campaign is None or party not in campaign.statement.owners:
            raise NotFoundError(
                f"no campaign {campaign_id[:80]!r} asks {party}; see what does: concord owner campaign list"
            )
        return campaign.statement

    def _dated(self, index: int) -> datetime:
        return parse_time(parse_note(self._log.entry(index))[1].issued_at)

    def _close_if_due(self, campaign_id: str) -> bool:
        """Close a campaign that has its quorum or is past its date; where others were faster, it is closed all the
        same."""
        with self._registry.history() as history:
            campaign = history.campaigns[campaign_id]
            reported, _, absent = history.answered(campaign_id)
        if campaign.closed_index is not None:
            return False
        with suppress(ConflictError):
            if len(reported) >= campaign.statement.quorum:
                return bool(self._close(campaign_id, by="quorum"))
            if not absent:
                return bool(self._close(campaign_id, by="everybody"))
            if self._now() >= parse_time(campaign.statement.closes_at):
                return bool(self._close(campaign_id, by="date"))
        return False

    def _close(self, campaign_id: str, *, by: str) -> CampaignClose:
        self.find(campaign_id)
        with self._registry.history() as history:
            reported, declined, absent = history.answered(campaign_id)
        closed = self._registry.issue(
            CampaignClose, campaign_id=campaign_id, by=by, reported=reported, declined=declined, absent=absent
        )
        logger.info("campaign %s is closed by %s: %d reported", campaign_id, by, len(reported))
        assert isinstance(closed.statement, CampaignClose)
        return closed.statement


def _here(history: History) -> list[str]:
    """Who has joined and has not left."""
    return sorted(name for name in history.parties if name != COORDINATOR and history.standing.get(name) != 0)
