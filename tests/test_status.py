"""What `status` says of owners, and how results read for people."""

import io
import json
from datetime import UTC, datetime, timedelta

import pytest
from rich.console import Console

from common.console import RichReporter
from common.trust.statements import format_time
from coordinator import cli
from owner_client import participation
from owner_client.config import ConsentSettings
from tests.commands import concord
from tests.federation import Federation, expert_weights


class _NextYears(datetime):
    """Two years from now."""

    @classmethod
    def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
        return datetime.now(UTC) + timedelta(days=730)


def test_every_owner_is_named_once_where_it_stands(consortium: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed, name in enumerate(("archive", "hospital", "press")):
        consortium.enrol(name).take_part(seed)
    consortium.owner("press").opt_out()
    hospital = consortium.owner("hospital")
    hospital.opt_out()
    hospital.consent()  # and came back
    archive = consortium.owner("archive")
    archive.put_expert(expert_weights(9))
    archive.submit()
    status = cli._status(consortium.coordinator)
    assert status["owners"] == ["archive", "hospital", "press"]
    assert status["consents_in_force"] == ["archive", "hospital"]
    assert status["opted_out"] == ["press"]
    assert status["consents_lapsed"] == []
    assert status["experts"] == ["archive", "hospital", "press"]
    monkeypatch.setattr(cli, "datetime", _NextYears)
    status = cli._status(consortium.coordinator)
    assert (status["consents_in_force"], status["consents_lapsed"]) == ([], ["archive"])
    assert status["opted_out"] == ["hospital", "press"]


def test_a_consent_that_begins_later_is_to_come(consortium: Federation) -> None:
    owner, begins = consortium.enrol("archive"), format_time(datetime.now(UTC) + timedelta(days=30))
    with owner.member() as member:
        settings = ConsentSettings(purposes=["research"], terms=owner.terms, not_before=begins)
        base = participation.fetch_base(member, on_bytes=lambda *_: None)
        grant = participation.consent(member, settings, base=base)
    said = cli._status(consortium.coordinator)
    assert said["consents_to_come"] == ["archive"]
    assert said["consents_in_force"] == said["consents_lapsed"] == said["opted_out"] == []
    shown = json.loads(concord("owner", "status", "--home", owner.home.path, "--json").stdout)
    assert (shown["consent_in_force"], shown["consent_until"]) == (None, None)
    assert (shown["consent_to_come"], shown["consent_from"]) == (grant.record_id, begins)


def test_results_are_written_for_people() -> None:
    output = io.StringIO()
    reporter = RichReporter(Console(file=output, width=200))
    reporter.result({"a": ["x", "y"], "b": [], "c": None, "d": True, "e": {"k": [1, 2]}, "f": 0})
    assert output.getvalue().split("\n")[:-1] == [
        "  a: x, y",
        "  b: none",
        "  c: none",
        "  d: yes",
        "  e: k 1, 2",
        "  f: 0",
    ]
