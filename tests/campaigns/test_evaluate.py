"""Federated evaluation: owners' figures are those of an evaluation with the data in one place; nothing else leaves."""

import json
from pathlib import Path

from common.audit import audit
from common.evaluate import EvaluationConfig, evaluate
from coordinator.campaign_figures import pooled
from owner_client import egress
from tests.campaigns.asking import ask_evaluation, is_closed, wait_until, working
from tests.federation import THREE, Federation


def test_figures_are_those_of_the_data_in_one_place(asked: Federation, small_base: Path) -> None:
    campaign = ask_evaluation(asked)
    with working(*asked.owners.values()):
        wait_until(lambda: is_closed(asked, campaign.record_id), "the campaign's end")
    results = asked.coordinator.campaigns.results(campaign.record_id)
    assert list(results) == list(THREE)
    texts = {name: asked.path / "text" / name for name in THREE}
    output = asked.path / "central.json"
    config = {"models": {"base": small_base}, "domains": texts, "output": output, "sequence_length": 32}
    evaluate(EvaluationConfig.model_validate(config))
    central = json.loads(output.read_text())
    for name, result in results.items():
        (figure,) = result.figures
        assert abs(figure.value - central["models"]["base"]["bits_per_byte"][name]) < 1e-6
        assert (figure.documents, figure.size_bytes) == (
            central["domains"][name]["documents"],
            central["domains"][name]["bytes"],
        )
    sizes = {name: central["domains"][name]["bytes"] for name in THREE}
    together = sum(central["models"]["base"]["bits_per_byte"][name] * size for name, size in sizes.items())
    assert abs(pooled(results)["bits_per_byte"].value - together / sum(sizes.values())) < 1e-6
    report = audit(asked.public, root=asked.coordinator.registry.root)
    assert report.holds, report.findings[-1]


def test_what_left_is_in_the_ledger(asked: Federation) -> None:
    owner = asked.owners["archive"]
    campaign = ask_evaluation(asked, owners=["archive"])
    with working(owner):
        wait_until(lambda: is_closed(asked, campaign.record_id), "the campaign's end")
    lines = [(line["kind"], line["name"]) for line in egress.read_ledger(owner.home.ledger)]
    assert lines[-2:] == [("statement", "campaign.result"), ("result", "campaign.result")]
    (result,) = asked.coordinator.campaigns.results(campaign.record_id).values()
    assert result.attachment is not None
    kept = asked.coordinator.campaigns.files.answer(campaign_id=campaign.record_id, party="archive")
    assert json.loads(kept) == {"shares_per_layer": {"archive": [[1.0], [1.0]]}}
