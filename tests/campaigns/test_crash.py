"""kill -9 of an owner's daemon or the coordinator mid-campaign: it ends with each answer exactly once."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from common.audit import audit
from common.trust.campaign_statements import CampaignDefine
from common.trust.statements import parse_note
from coordinator import home as coordinator_home
from coordinator.config import CoordinatorSettings
from coordinator.releases import publish_base
from owner_client import egress
from owner_client.campaign_folder import folder_of
from tests.campaigns.asking import ask_evaluation, enrol, wait_until
from tests.commands import stop
from tests.federation import FEDERATION, Federation, Owner, free_ports
from tests.test_crash import PUBLISHED, Point, Victim, answered, appended, at, kept

OWNER, COORDINATOR = "owner run", "coordinator serve"
POINTS = [
    at(OWNER, "the offer is about to be kept", kept("offer.note")),
    at(OWNER, "it begins", kept("running")),
    at(OWNER, "the answer is found, not kept", kept("answer.json")),
    at(OWNER, "the answer is kept, not signed", kept("answer.json"), kept("00001.note")),
    at(OWNER, "signed, not noted", kept("answer.note")),
    at(OWNER, "noted, not in the ledger", kept("answer.note"), ("open", r"ledger\.jsonl$")),
    at(OWNER, "in the log, the checkpoint not pinned", kept("answer.note"), kept("checkpoint")),
    at(OWNER, "in the log, the chain does not know", kept("00001.receipt")),
    at(OWNER, "the chain knows, the campaign does not", kept("campaigns/.*/receipt")),
    at(COORDINATOR, "not committed", appended("campaign.result")),
    at(COORDINATOR, "committed, no checkpoint shows it", appended("campaign.result"), PUBLISHED),
    at(COORDINATOR, "the end is not committed", appended("campaign.close")),
    at(COORDINATOR, "all is done, not answered", appended("campaign.close"), answered("Report")),
]


@pytest.mark.parametrize("point", POINTS, ids=lambda point: f"{point.command}: {point.name}")
def test_a_campaign_ends_with_each_answer_once(point: Point, tmp_path: Path, small_base: Path) -> None:
    ports, home = free_ports(2), tmp_path / "coordinator"
    settings = CoordinatorSettings(
        federation=FEDERATION, origin=f"{FEDERATION}/log", port=ports[0], enrolment_port=ports[1]
    )
    coordinator_home.create(home, settings)
    victim = Victim(point, tmp_path)
    with coordinator_home.open_home(home) as coordinator:
        federation = Federation(tmp_path, ports, coordinator)
        federation.start()
        publish_base(coordinator, small_base)
        owner = enrol(federation, "archive", public=small_base.parent / "public")
        owner.patience_s = 60
        campaign = ask_evaluation(federation, max_bytes=1000)
        federation.stop()
        with victim.keep_serving(home) if point.command == COORDINATOR else _serving(federation):
            _answer(victim, federation, owner, campaign)
        victim.check_killed()
        _check_once(federation, owner, campaign)


@contextmanager
def _serving(federation: Federation) -> Iterator[None]:
    federation.start()
    try:
        yield
    finally:
        federation.stop()


def _answer(victim: Victim, federation: Federation, owner: Owner, campaign: CampaignDefine) -> None:
    """Run the owner's daemon, again where it is killed, until the answer is there on both sides."""
    if victim.point.command == OWNER:
        killed = victim.start(OWNER, "--home", owner.home.path)
        killed.communicate(timeout=120)
        assert killed.returncode == -signal.SIGKILL
    daemon = victim.start(OWNER, "--home", owner.home.path)
    try:
        folder = folder_of(owner.home, campaign.record_id)
        campaigns = federation.coordinator.campaigns
        wait_until(lambda: folder.has("receipt"), "the owner's receipt")
        wait_until(lambda: campaigns.find(campaign.record_id).closed_index is not None, "the campaign's end")
    finally:
        stop(daemon, signal.SIGTERM)


def _check_once(federation: Federation, owner: Owner, campaign: CampaignDefine) -> None:
    log, size = federation.coordinator.log, federation.coordinator.registry.size()
    types = [parse_note(log.entry(index))[1].type for index in range(size)]
    assert types.count("campaign.result") == types.count("campaign.close") == 1
    assert federation.coordinator.campaigns.table(campaign.record_id)[0].state == "reported"
    # The statement, and the router shares beside it.
    assert [line["name"] for line in egress.read_ledger(owner.home.ledger)].count("campaign.result") == 2
    assert list(owner.home.statements.glob("*.refused")) == []
    report = audit(federation.public, root=federation.coordinator.registry.root)
    assert report.holds, report.findings[-1]
