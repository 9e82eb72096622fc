"""Campaigns over Flower: asked and answered through real processes, with the figures that the daemon's own way has."""

from tests.campaigns.asking import ask_evaluation, is_closed, wait_until
from tests.flower.over_flower import TWO, Consortium


def test_an_evaluation_is_answered_over_flower_alone(consortium: Consortium) -> None:
    federation = consortium.federation
    campaign = ask_evaluation(federation)
    wait_until(lambda: is_closed(federation, campaign.record_id), "the campaign's end")
    assert list(federation.coordinator.campaigns.results(campaign.record_id)) == list(TWO)
