"""Campaigns over Flower: asked and answered through real processes, with the figures that the daemon's own way has."""

import hashlib
import os
import signal

from common.audit import audit
from common.trust.campaign_statements import CampaignDefine, CampaignResult, Train
from common.trust.statements import parse_note
from coordinator.campaign_subjects import base_digest_of
from owner_client import campaigns
from owner_client.campaign_folder import folder_of
from tests.campaigns.asking import ask_evaluation, is_closed, wait_until
from tests.federation import Federation
from tests.flower.over_flower import CALLS, NEEDS_FLOWER, TWO, Consortium, example

pytestmark = NEEDS_FLOWER
NATIVE = [f"answer /concord.v1.Campaigns/{name}" for name in ("Poll", "Acknowledge", "Report")]


def figures(flowing: Consortium, campaign: CampaignDefine) -> dict[str, object]:
    """What owners answered, by owner."""
    results = flowing.federation.coordinator.campaigns.results(campaign.record_id)
    return {owner: (result.subject, result.figures, result.attachment) for owner, result in results.items()}


def answers_in_log(flowing: Consortium, campaign: CampaignDefine) -> list[str]:
    """By whom a campaign's answers are, in the log's order."""
    registry, log = flowing.federation.coordinator.registry, flowing.federation.coordinator.log
    statements = [parse_note(log.entry(index))[1] for index in range(registry.size())]
    found = [each for each in statements if isinstance(each, CampaignResult)]
    return [each.party for each in found if each.campaign_id == campaign.record_id]


def is_told(flowing: Consortium, campaign: CampaignDefine) -> bool:
    """Whether every owner has the receipt of its answer."""
    owners = flowing.federation.owners.values()
    return all(folder_of(owner.home, campaign.record_id).state == "answered" for owner in owners)


def ask_to_train(federation: Federation) -> CampaignDefine:
    """Ask for what waits for a person, and needs no model."""
    parameters = Train(kind="train", base_digest=base_digest_of(federation.coordinator))
    statement = federation.coordinator.campaigns.define(parameters).statement
    assert isinstance(statement, CampaignDefine)
    return statement


def states(flowing: Consortium, campaign: CampaignDefine) -> dict[str, str]:
    """How far a campaign is at owners who know of it."""
    found = {name: folder_of(owner.home, campaign.record_id).state for name, owner in flowing.federation.owners.items()}
    return {name: state for name, state in found.items() if state != "unknown"}


def decide(flowing: Consortium, campaign: CampaignDefine, owner: str) -> None:
    """A person's word."""
    campaigns.decide(flowing.federation.owners[owner].home, campaign.record_id, accept=True)


def test_it_is_answered_over_flower_alone_with_the_figures_of_the_other_way(flowing: Consortium) -> None:
    federation = flowing.federation
    over_flower = ask_evaluation(federation)
    wait_until(lambda: is_closed(federation, over_flower.record_id), "the campaign's end")
    wait_until(lambda: is_told(flowing, over_flower), "receipts")
    assert not [each for each in CALLS if each in NATIVE]
    assert list(figures(flowing, over_flower)) == list(TWO)
    files = {owner.home.settings_file: owner.home.settings_file.read_text() for owner in federation.owners.values()}
    try:
        for file, text in files.items():
            file.write_text(text.replace("enabled = true", "enabled = false"))
        natively = ask_evaluation(federation, owners=["archive"])
        wait_until(lambda: NATIVE[-1] in CALLS, "the answer without Flower")
    finally:
        for file, text in files.items():
            file.write_text(text)
    assert figures(flowing, natively)["archive"] == figures(flowing, over_flower)["archive"]


def test_killed_superlink_and_supernode_cost_nothing_but_time(flowing: Consortium) -> None:
    federation, node, engine = flowing.federation, flowing.nodes["archive"], flowing.engine
    campaign = ask_to_train(federation)
    wait_until(lambda: states(flowing, campaign) == {"archive": "offered", "hospital": "offered"}, "offers")
    decide(flowing, campaign, "hospital")
    before = node.supernode.starts, engine.superlink.starts
    for child in (node.supernode, engine.superlink):
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
    decide(flowing, campaign, "archive")
    wait_until(lambda: is_closed(federation, campaign.record_id), "the campaign's end")
    wait_until(lambda: is_told(flowing, campaign), "receipts")
    now = node.supernode.starts, engine.superlink.starts
    assert all(later > earlier for later, earlier in zip(now, before, strict=True))
    assert sorted(answers_in_log(flowing, campaign)) == list(TWO)
    report = audit(federation.public, root=federation.coordinator.registry.root)
    assert report.holds, report.findings[-1]


def test_an_app_of_another_s_runs_where_it_is_allowed_and_nowhere_else(flowing: Consortium) -> None:
    federation, bundle = flowing.federation, example()
    wait_until(lambda: not flowing.is_running(), "the end of earlier runs")
    flowing.start(bundle)
    campaign = ask_to_train(federation)
    wait_until(lambda: states(flowing, campaign) == {"hospital": "offered"}, "the offer to the first")
    decide(flowing, campaign, "hospital")
    wait_until(lambda: answers_in_log(flowing, campaign) == ["hospital"], "the answer of who allows it")
    refusal = f"{hashlib.sha256(bundle).hexdigest()} is neither Concord's own nor in [flower] apps"
    wait_until(lambda: any(refusal in text for text in flowing.said["archive"].said), "the refusal")
    reason = "the node of archive answers: The FAB could not be verified"
    wait_until(lambda: reason in flowing.logging(), "the reason at the coordinator's")
    assert states(flowing, campaign)["hospital"] in ("signed", "answered")
    assert "archive" not in states(flowing, campaign)
    federation.coordinator.campaigns.close(campaign.record_id)
