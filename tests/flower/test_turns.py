"""An owner whose campaigns come over Flower, without Flower: what waits for it, and what goes without it after all."""

from threading import Event

import pytest

from common.trust.campaign_statements import CampaignDefine
from coordinator.flower_dispatch import FlowerDispatch
from owner_client import campaigns
from owner_client.flower_exchange import exchange, touch
from tests.campaigns.asking import wait_until, working
from tests.campaigns.test_worker import ask, set_policy, state_in_log
from tests.federation import Federation, Owner


@pytest.fixture
def owner(consortium: Federation) -> Owner:
    """One owner, asked over Flower, which was there a moment ago; a person decides."""
    owner = consortium.enrol("archive")
    set_policy(owner, "[flower]\nenabled = true\npatience_s = 600")
    touch(owner.home)
    return owner


@pytest.fixture
def dispatch(consortium: Federation) -> FlowerDispatch:
    """A run's part."""
    return FlowerDispatch(consortium.coordinator.campaigns, consortium.coordinator.registry)


def message(dispatch: FlowerDispatch, owner: Owner) -> int:
    """One message to an owner and back; how many answers came."""
    data = dispatch.ask(owner.name)
    assert data is not None
    return dispatch.heard(owner.name, exchange(owner.home, data, stop=Event()))


def state_at_home(owner: Owner, campaign: CampaignDefine) -> str:
    """How far it is at the owner's."""
    return campaigns.state_of(owner.home, campaign.record_id)


def answer(dispatch: FlowerDispatch, owner: Owner, campaign: CampaignDefine) -> None:
    """Have it asked and answered, and not fetched yet."""
    message(dispatch, owner)
    campaigns.decide(owner.home, campaign.record_id, accept=True)
    wait_until(lambda: state_at_home(owner, campaign) == "signed", "the answer")


def test_an_answer_waits_for_flower_and_is_handed_over_until_it_is_in_the_log(
    consortium: Federation, owner: Owner, dispatch: FlowerDispatch
) -> None:
    campaign = ask(consortium)
    with working(owner):
        answer(dispatch, owner, campaign)
        lost = FlowerDispatch(consortium.coordinator.campaigns, consortium.coordinator.registry)
        assert message(lost, owner) == 1  # a run that ends here has told nobody
        assert state_in_log(consortium, campaign) == "reported"
        dispatch.heard(owner.name, exchange(owner.home, b"{}", stop=Event()))
        assert message(dispatch, owner) == 0
        assert state_at_home(owner, campaign) == "answered"
    assert not dispatch.has_untold()
    assert len(consortium.coordinator.campaigns.results(campaign.record_id)) == 1


def test_what_flower_does_not_bring_comes_without_it(consortium: Federation, owner: Owner) -> None:
    file = owner.home.settings_file
    file.write_text(file.read_text().replace("patience_s = 600", "patience_s = 0.1"))
    campaign = ask(consortium)
    with working(owner):
        wait_until(lambda: state_at_home(owner, campaign) == "offered", "the offer")
        campaigns.decide(owner.home, campaign.record_id, accept=True)
        wait_until(lambda: state_at_home(owner, campaign) == "answered", "the answer")
    assert state_in_log(consortium, campaign) == "reported"


def test_an_answer_that_is_refused_is_refused_in_the_usual_way(
    consortium: Federation, owner: Owner, dispatch: FlowerDispatch
) -> None:
    campaign = ask(consortium)
    with working(owner) as (reporter,):
        answer(dispatch, owner, campaign)
        consortium.coordinator.campaigns.close(campaign.record_id)
        assert dispatch.heard(owner.name, exchange(owner.home, b"{}", stop=Event())) == 1
        message(dispatch, owner)
        wait_until(lambda: state_at_home(owner, campaign) == "late", "the end of it")
    assert any("closed" in text for text in reporter.said)


def test_a_person_who_declines_is_heard_over_flower(
    consortium: Federation, owner: Owner, dispatch: FlowerDispatch
) -> None:
    campaign = ask(consortium)
    with working(owner):
        message(dispatch, owner)
        assert state_in_log(consortium, campaign) == "offered"
        campaigns.decide(owner.home, campaign.record_id, accept=False, reason="not this year")
        wait_until(lambda: state_at_home(owner, campaign) == "signed", "the refusal")
        message(dispatch, owner)
    assert state_in_log(consortium, campaign) == "declined"
