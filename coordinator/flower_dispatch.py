"""Campaigns as messages of Flower's carry them: what to say to an owner, what to do with what it says. It knows nothing
of Flower, and remembers nothing that the log does not hold but what an owner has not heard yet.
"""

import logging

from common.errors import ConcordError, NotFoundError, UnavailableError
from common.flower_messages import Answer, Ask, Offer, Outcome, Told
from common.trust.statements import parse_note
from coordinator.campaigns import Campaigns
from coordinator.registry import Registry

logger = logging.getLogger(__name__)


class FlowerDispatch:
    """One run's part in all campaigns that are open."""

    def __init__(self, campaigns: Campaigns, registry: Registry) -> None:
        self._campaigns, self._registry = campaigns, registry
        self._untold: dict[str, dict[str, Outcome]] = {}

    def is_open(self) -> bool:
        """Whether a campaign is."""
        return any(campaign.closed_index is None for campaign in self._campaigns.all())

    def has_untold(self) -> bool:
        """Whether an owner does not know yet what became of its answer."""
        return bool(self._untold)

    def ask(self, owner: str) -> bytes | None:
        """The next message to an owner; None where there is nothing to say."""
        offers = tuple(
            Offer(note=note, receipt=self._registry.find(parse_note(note)[1])[1])
            for note in self._campaigns.offers_for(owner)
        )
        outcomes = tuple(self._untold.get(owner, {}).values())
        if not offers and not outcomes:
            return None
        return bytes(Ask(offers=offers, outcomes=outcomes))

    def heard(self, owner: str, data: bytes) -> int:
        """Take what an owner says; how many answers came.

        Raises:
            MalformedError: it is no such message.
        """
        told = Told.parse(data)
        self._untold.pop(owner, None)  # what it could not take in it asks for by answering again
        for campaign_id, state in told.states.items():
            try:
                self._campaigns.heard(owner, campaign_id, state)
            except NotFoundError as error:
                logger.warning("%s: %s", owner, error)
        for answer in told.answers:
            self._untold.setdefault(owner, {})[answer.campaign_id] = self._receive(owner, answer)
        return len(told.answers)

    def _receive(self, owner: str, answer: Answer) -> Outcome:
        try:
            receipt = self._campaigns.receive(owner, answer.note, answer.attachment)
        except UnavailableError:
            raise
        except ConcordError as error:
            logger.info("an answer of %s is refused: %s", owner, error)
            return Outcome(campaign_id=answer.campaign_id, refused=str(error))
        return Outcome(campaign_id=answer.campaign_id, receipt=receipt)
