"""One message of Flower's at the owner's daemon: takes in what is asked, hands over what is signed.

What is asked is verified as what the daemon asks for itself: the coordinator's signature, its place in the log that
this owner watches. Work is the daemon's (`owner_client/campaign_worker.py`), and so is signing; nothing leaves here
that did not pass egress. Messages may come again, or not at all: what waited too long goes without Flower.
"""

import logging
from datetime import UTC, datetime
from threading import Event
from time import monotonic
from typing import Final

from common.errors import ConcordError, UnavailableError, VerificationError
from common.files import make_private_directory
from common.flower_messages import TOLD_STATES, Answer, Ask, Outcome, Told
from owner_client.campaign_folder import OPEN_STATES, CampaignFolder, folder_of, folders
from owner_client.campaign_reports import said_before
from owner_client.campaigns import take_offer
from owner_client.config import OwnerHome, OwnerSettings
from owner_client.membership import Membership, answer_messages, open_membership

logger = logging.getLogger(__name__)

_HEARD: Final = "heard"
_WAIT_S: Final = 5.0
"""How long a message waits for an answer that may be ready soon: the next one costs a process at both ends."""
_LOOK_EVERY_S: Final = 0.1


def exchange(home: OwnerHome, data: bytes, *, stop: Event) -> bytes:
    """Take in a message; what this owner says.

    Raises:
        ConcordError: it is no such message, or what it says does not hold.
    """
    asked = Ask.parse(data)
    with open_membership(home, patience_s=0, stop=stop) as member:
        for offer in asked.offers:
            member.client.believe(offer.receipt, entry=offer.note)
            _take(home, offer.note)
        for outcome in asked.outcomes:
            _settle(member, outcome)
        touch(home)
        if asked.offers:
            _wait(home, stop)
        return bytes(_told(member))


def touch(home: OwnerHome) -> None:
    """Note that Flower brings messages."""
    make_private_directory(home.flower)
    (home.flower / _HEARD).touch()


def fall_silent(home: OwnerHome) -> None:
    """Note that Flower brings nothing: nobody need wait for it."""
    (home.flower / _HEARD).unlink(missing_ok=True)


def is_silent(home: OwnerHome, settings: OwnerSettings) -> bool:
    """Whether Flower has brought nothing for longer than this owner waits for it."""
    try:
        since_s = datetime.now(UTC).timestamp() - (home.flower / _HEARD).stat().st_mtime
    except FileNotFoundError:
        return True
    return since_s > settings.flower.patience_s


def _take(home: OwnerHome, note: bytes) -> None:
    try:
        take_offer(home, note)
    except VerificationError:
        raise
    except ConcordError as error:
        logger.info("a campaign is not taken: %s", error)


def _settle(member: Membership, outcome: Outcome) -> None:
    """Keep the receipt of an answer. One that was refused is sent without Flower, to be told why in the usual way."""
    folder = folder_of(member.home, outcome.campaign_id)
    if folder.state != "signed":
        return
    if not outcome.receipt:
        logger.info("the answer to campaign %s was refused: %s", folder.id, outcome.refused[:500])
        folder.write("native")
        return
    with member.chain.turn_if_free() as is_free:
        said = said_before(member, folder) if is_free else None
        if said is None:
            return
        member.client.believe(outcome.receipt, entry=said.note)
        if said.receipt is None:
            member.chain.acknowledge(said, receipt=outcome.receipt)
        folder.write("receipt", outcome.receipt)
        logger.info("the answer to campaign %s is in the log", folder.id)


def _wait(home: OwnerHome, stop: Event) -> None:
    """Wait a little while something goes on and nothing is ready."""
    end = monotonic() + _WAIT_S
    while monotonic() < end and not stop.wait(_LOOK_EVERY_S):
        states = {folder.state for folder in folders(home)}
        if "signed" in states or not states & set(OPEN_STATES):
            return


def _told(member: Membership) -> Told:
    found = folders(member.home)
    states = {folder.id: state for folder in found if (state := folder.state) in TOLD_STATES}
    answers = [answer for folder in found if folder.state == "signed" and (answer := _answer(member, folder))]
    return Told.model_validate({"states": states, "answers": tuple(answers)})


def _answer(member: Membership, folder: CampaignFolder) -> Answer | None:
    """An answer that was signed, by the door that all leave by; None where it is just being settled."""
    said = said_before(member, folder)
    if said is None or folder.has("native"):
        return None
    try:
        note, attachment = answer_messages(member, said)
    except UnavailableError:
        raise
    except ConcordError as error:
        logger.warning("the answer to campaign %s stays: %s", folder.id, error)
        return None
    return Answer(campaign_id=folder.id, note=note.data, attachment=attachment.data if attachment else b"")
