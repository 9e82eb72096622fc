"""What an owner's daemon does with what it is asked, without a model: decide, answer, be late, be told no."""

from pathlib import Path

import pytest

from common.errors import (
    ConcordError,
    ConflictError,
    MalformedError,
    NotFoundError,
    NotPermittedError,
    TooLargeError,
    VerificationError,
)
from common.trust.campaign_statements import CampaignClose, CampaignDefine, CampaignResult, Train
from common.trust.note import SigningKey
from common.trust.statements import OwnerKeyRevoke, parse_note
from coordinator.campaign_subjects import base_digest_of
from coordinator.upkeep import Upkeep
from owner_client import campaigns
from owner_client.campaign_folder import folder_of
from owner_client.client import Client
from tests.campaigns.asking import is_closed, wait_until, working
from tests.federation import Federation, Owner
from tests.raw_calls import key_of, next_fields, note_of


def ask(federation: Federation, *owners: str) -> CampaignDefine:
    """Ask to train."""
    parameters = Train(kind="train", base_digest=base_digest_of(federation.coordinator))
    statement = federation.coordinator.campaigns.define(parameters, owners=owners).statement
    assert isinstance(statement, CampaignDefine)
    return statement


def set_policy(owner: Owner, policy: str = "") -> None:
    """Ask often; what is accepted by itself. Its daemon would train."""
    file = owner.home.settings_file
    text = f'data = "{owner.home.path}"\npublic = "{owner.home.path}"\npoll_s = 0.1\n'
    consent = f'[consent]\npurposes = ["research"]\nterms = "{owner.terms}"\n'
    file.write_text(f"{file.read_text()}{text}[campaigns]\n{policy}\n{consent}")


@pytest.fixture
def owner(consortium: Federation) -> Owner:
    """One owner who is asked for everything."""
    owner = consortium.enrol("archive")
    set_policy(owner)
    return owner


def state_in_log(federation: Federation, campaign: CampaignDefine) -> str:
    """How far the one owner is, as the coordinator has it."""
    return federation.coordinator.campaigns.table(campaign.record_id)[0].state


def test_what_is_not_accepted_by_the_settings_waits_for_a_person(consortium: Federation, owner: Owner) -> None:
    campaign = ask(consortium)
    with working(owner):
        wait_until(lambda: state_in_log(consortium, campaign) == "offered", "the offer")
        assert campaigns.decide(owner.home, campaign.record_id, accept=True) == "accepted"
        wait_until(lambda: state_in_log(consortium, campaign) == "reported", "the answer")
    with pytest.raises(ConflictError, match="what was decided stands"):
        campaigns.decide(owner.home, campaign.record_id, accept=False)


def test_nobody_says_that_training_was_begun_where_it_was_not(consortium: Federation, owner: Owner) -> None:
    file = owner.home.settings_file
    file.write_text(file.read_text().partition("[consent]")[0])
    campaign = ask(consortium)
    campaigns.take_offer(owner.home, consortium.coordinator.campaigns.offers_for("archive")[0])
    campaigns.decide(owner.home, campaign.record_id, accept=True)
    with working(owner):
        wait_until(lambda: campaigns.state_of(owner.home, campaign.record_id) == "failed", "the failure")
    assert b"set [consent]" in (folder_of(owner.home, campaign.record_id).read("failed") or b"")
    assert state_in_log(consortium, campaign) != "reported"


def test_a_campaign_is_over_once_everybody_has_answered(consortium: Federation, owner: Owner) -> None:
    """Its quorum cannot be had any more."""
    campaign = ask(consortium, "archive")
    campaigns.take_offer(owner.home, consortium.coordinator.campaigns.offers_for("archive")[0])
    campaigns.decide(owner.home, campaign.record_id, accept=False)
    with working(owner):
        wait_until(lambda: is_closed(consortium, campaign.record_id), "the end of it")
    closed = parse_note(consortium.coordinator.log.entry(consortium.coordinator.registry.size() - 1))[1]
    assert isinstance(closed, CampaignClose)
    assert (closed.by, closed.declined) == ("everybody", ["archive"])


def test_a_person_declines_with_a_reason(consortium: Federation, owner: Owner) -> None:
    campaign = ask(consortium)
    with working(owner):
        wait_until(lambda: state_in_log(consortium, campaign) == "offered", "the offer")
        campaigns.decide(owner.home, campaign.record_id, accept=False, reason="not this year")
        wait_until(lambda: state_in_log(consortium, campaign) == "declined", "the refusal")
    size = consortium.coordinator.registry.size()
    assert any(b"not this year" in consortium.coordinator.log.entry(index) for index in range(size))


def test_what_is_closed_before_anybody_decided_waits_no_longer(consortium: Federation, owner: Owner) -> None:
    campaign = ask(consortium)
    folder = folder_of(owner.home, campaign.record_id)
    with working(owner):
        wait_until(lambda: folder.waits, "the offer")
        consortium.coordinator.campaigns.close(campaign.record_id)
        wait_until(lambda: folder.state == "over", "the end of it")
    assert not folder.waits
    campaigns.take_offer(owner.home, folder.offer)
    assert folder.waits, "a coordinator that asks again is heard"


def test_an_offer_that_this_version_cannot_read_keeps_no_other_one_waiting(
    consortium: Federation, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a newer coordinator's may be."""
    unknown = note_of("campaign.later", next_fields(owner), key_of(owner))
    offers = Client.offers
    monkeypatch.setattr(Client, "offers", lambda client: [unknown, *offers(client)])
    campaign = ask(consortium)
    with working(owner) as (reporter,):
        wait_until(lambda: state_in_log(consortium, campaign) == "offered", "the offer")
    assert any("a campaign is not taken: unknown statement type" in text for text in reporter.said)


def test_a_refusal_that_comes_after_the_end_is_said_once_and_let_be(consortium: Federation, owner: Owner) -> None:
    campaign = ask(consortium)
    campaigns.take_offer(owner.home, consortium.coordinator.campaigns.offers_for("archive")[0])
    consortium.coordinator.campaigns.close(campaign.record_id)
    campaigns.decide(owner.home, campaign.record_id, accept=False)
    with working(owner):
        wait_until(lambda: campaigns.state_of(owner.home, campaign.record_id) == "late", "the end of it")
    assert len(list(owner.home.statements.glob("*.refused"))) == 1


def test_a_refusal_that_cannot_be_signed_is_not_tried_for_ever(consortium: Federation, owner: Owner) -> None:
    campaign = ask(consortium)
    campaigns.take_offer(owner.home, consortium.coordinator.campaigns.offers_for("archive")[0])
    campaigns.decide(owner.home, campaign.record_id, accept=False, reason="two\nlines")
    with working(owner) as (reporter,):
        wait_until(lambda: campaigns.state_of(owner.home, campaign.record_id) == "failed", "the end of it")
    assert len([text for text in reporter.said if "reason" in text]) == 1


def test_the_refusal_of_another_statement_is_not_the_campaign_s(consortium: Federation, owner: Owner) -> None:
    """What waits to be sent goes before the answer; the log does not take this one."""
    campaign = ask(consortium)
    campaigns.take_offer(owner.home, consortium.coordinator.campaigns.offers_for("archive")[0])
    campaigns.decide(owner.home, campaign.record_id, accept=True)
    with owner.member() as member, member.chain.turn():
        member.chain.say(OwnerKeyRevoke, revoked_key_id="00000000")  # a revocation stays and is sent again and again
    with working(owner), owner.member() as member:
        wait_until(lambda: folder_of(owner.home, campaign.record_id).has("answer.json"), "the answer")
        with member.chain.turn():
            member.chain.set_aside(member.chain.pending()[0])
        wait_until(lambda: state_in_log(consortium, campaign) == "reported", "the answer in the log")


def test_upkeep_takes_down_what_was_withdrawn_although_a_campaign_cannot_be_closed(
    consortium: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> list[str]:
        raise ConflictError("not now")

    seen = []
    monkeypatch.setattr(consortium.coordinator.campaigns, "close_due", fail)
    monkeypatch.setattr("coordinator.upkeep.carry_out", lambda *_, **__: seen.append("carried out"))
    with pytest.raises(ConflictError, match="not now"):
        Upkeep(consortium.coordinator).look()
    assert seen == ["carried out"]


@pytest.mark.parametrize(
    ("case", "error", "match"),
    [
        ("bytes beside nothing", VerificationError, "names no file"),
        ("another's statement", NotPermittedError, "may not record a statement of"),
        ("no answer", MalformedError, "is no answer to a campaign"),
        ("unsigned", ConcordError, "signature"),
        ("too large", TooLargeError, "at most"),
        ("a campaign that is not there", NotFoundError, "no campaign"),
        ("by the other door", ConflictError, "is reported with what goes beside it"),
    ],
)
def test_what_is_no_good_answer_is_refused_with_the_reason(
    consortium: Federation, owner: Owner, case: str, error: type[ConcordError], match: str
) -> None:
    campaign = ask(consortium)
    fields = {**next_fields(owner), "campaign_id": campaign.record_id, "subject": campaign.subject, "figures": []}
    if case == "a campaign that is not there":
        fields["campaign_id"] = fields["record_id"]
    note = note_of("campaign.result", fields, key_of(owner))
    coordinator, before = consortium.coordinator, len(consortium.coordinator.campaigns.results(campaign.record_id))
    with pytest.raises(error, match=match):
        hand_in(case, consortium, note, fields, owner)
    assert len(coordinator.campaigns.results(campaign.record_id)) == before == 0
    assert not (coordinator.home.campaigns / "answers").exists()


def hand_in(case: str, federation: Federation, note: bytes, fields: dict[str, object], owner: Owner) -> None:
    """Hand in what is no good."""
    campaigns_of, registry = federation.coordinator.campaigns, federation.coordinator.registry
    if case == "bytes beside nothing":
        campaigns_of.receive("archive", note, b"x")
    elif case == "too large":
        campaigns_of.receive("archive", note, bytes(2**20 + 1))
    elif case == "another's statement":
        federation.enrol("hospital")
        other = ask(federation, "archive", "hospital")
        said = note_of("campaign.result", {**fields, "campaign_id": other.record_id}, key_of(owner))
        campaigns_of.receive("hospital", said, b"")
    elif case == "no answer":
        kept = sorted(owner.home.statements.glob("*.note"))[0].read_bytes()
        campaigns_of.receive("archive", kept, b"")
    elif case == "unsigned":
        forged = note_of("campaign.result", fields, SigningKey.generate(key_of(owner).verifier.name))
        campaigns_of.receive("archive", forged, b"")
    elif case == "by the other door":
        registry.record(note, caller="archive")
    else:
        campaigns_of.receive("archive", note, b"")


def test_an_answer_may_be_handed_in_again(consortium: Federation, owner: Owner) -> None:
    campaign = ask(consortium)
    fields = {**next_fields(owner), "campaign_id": campaign.record_id, "subject": campaign.subject, "figures": []}
    note = note_of("campaign.result", fields, key_of(owner))
    first = consortium.coordinator.campaigns.receive("archive", note, b"")
    assert consortium.coordinator.campaigns.receive("archive", note, b"")[:40] == first[:40]
    assert isinstance(consortium.coordinator.campaigns.results(campaign.record_id)["archive"], CampaignResult)


def test_an_offer_that_nobody_signed_is_not_taken(consortium: Federation, owner: Owner, tmp_path: Path) -> None:
    campaign = ask(consortium)
    note = consortium.coordinator.campaigns.offers_for("archive")[0]
    with pytest.raises(ConcordError):
        campaigns.take_offer(owner.home, note.replace(b'"quorum":1', b'"quorum":2').replace(b"train", b"trail"))
    assert not folder_of(owner.home, campaign.record_id).path.exists()
