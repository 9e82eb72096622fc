"""Answers that must not count, handed in as an owner's daemon would: over gRPC, with its certificate."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.errors import (
    ConcordError,
    ConflictError,
    ConsentError,
    MalformedError,
    NotPermittedError,
    TooLargeError,
    VerificationError,
)
from common.rpc.channel import call, open_channel
from common.trust import strict_json
from common.trust.campaign_statements import CampaignDefine, CampaignResult
from common.trust.manifest import digest_of
from common.trust.statements import CertRevoke, parse_note
from protos import campaign_pb2, campaign_pb2_grpc
from tests.campaigns.asking import ask_evaluation, asking
from tests.federation import Federation, Owner
from tests.raw_calls import key_of, next_fields, note_of, tls_of

Asked = tuple[Federation, CampaignDefine]
SHARES = {"shares_per_layer": {"archive": [[1.0], [1.0]]}}


@pytest.fixture(scope="module")
def asked_once(tmp_path_factory: pytest.TempPathFactory, small_base: Path) -> Iterator[Asked]:
    """A consortium and a campaign that nobody answers well."""
    with asking(tmp_path_factory.mktemp("refusals"), small_base) as federation:
        yield federation, ask_evaluation(federation)


def answer(owner: Owner, campaign: CampaignDefine, beside: bytes, **changes: object) -> bytes:
    """A signed answer."""
    figure = {"name": "archive", "measure": "bits_per_byte", "value": 1.5, "documents": 9, "size_bytes": 900}
    fields = {
        **next_fields(owner), "campaign_id": campaign.record_id, "subject": campaign.subject, "figures": [figure],
        "attachment": {"digest": digest_of(beside), "size": len(beside)}, **changes,
    }  # fmt: skip
    return note_of("campaign.result", fields, key_of(owner))


def report(owner: Owner, note: bytes, beside: bytes) -> None:
    """Hand it in."""
    authority = owner.home.authority.read_bytes()
    with open_channel(owner.home.settings().target, authority=authority, tls=tls_of(owner)) as channel:
        stub = campaign_pb2_grpc.CampaignsStub(channel)
        call(stub.Report, campaign_pb2.ReportRequest(note=note, attachment=beside), timeout_s=60)


@pytest.mark.parametrize(
    ("case", "error", "match"),
    [
        ("another file beside it", VerificationError, "came beside an answer that names"),
        ("no file beside it", VerificationError, "came beside an answer that names"),
        ("text beside it", MalformedError, "router shares"),
        ("shares over one", MalformedError, "router shares"),
        ("more than a megabyte", TooLargeError, "at most"),
        ("about another model", ConflictError, "is about"),
        ("of another kind", MalformedError, "is no figure of a campaign of kind evaluate"),
        ("over one document", MalformedError, "are asked for at least"),
        ("no figure", MalformedError, "gives a figure at least"),
        ("a figure twice", MalformedError, "gives each figure once"),
    ],
)
def test_what_is_no_good_is_refused_and_not_kept(
    asked_once: Asked, case: str, error: type[ConcordError], match: str
) -> None:
    federation, campaign = asked_once
    owner, beside = federation.owners["archive"], strict_json.canonical(SHARES)
    figure = {"name": "archive", "measure": "bits_per_byte", "value": 1.5, "documents": 9, "size_bytes": 900}
    changes: dict[str, object] = {}
    match case:
        case "text beside it":
            beside = b"the first passage of a patient's file"
        case "shares over one":
            beside = strict_json.canonical({"shares_per_layer": {"archive": [[1.5]]}})
        case "more than a megabyte":
            beside = bytes(2**20 + 1)
        case "about another model":
            changes = {"subject": digest_of(b"another model")}
        case "of another kind":
            changes = {"figures": [{**figure, "measure": "told_apart", "value": 0.5}]}
        case "over one document":
            changes = {"figures": [{**figure, "documents": 1}]}
        case "no figure":
            changes = {"figures": []}
        case "a figure twice":
            changes = {"figures": [figure, figure]}
    note = answer(owner, campaign, beside, **changes)
    sent = {"another file beside it": beside + b" ", "no file beside it": b""}.get(case, beside)
    with pytest.raises(error, match=match):
        report(owner, note, sent)
    assert federation.coordinator.campaigns.results(campaign.record_id) == {}
    assert not (federation.coordinator.home.campaigns / "answers").exists()


def test_who_was_revoked_is_not_heard(asked_once: Asked) -> None:
    federation, campaign = asked_once
    owner, beside = federation.owners["library"], strict_json.canonical(SHARES)
    federation.coordinator.registry.issue(CertRevoke, owner="library")
    with pytest.raises(NotPermittedError, match="revoked"):
        report(owner, answer(owner, campaign, beside), beside)


def test_who_has_left_is_not_heard(asked_once: Asked) -> None:
    federation, campaign = asked_once
    owner, beside = federation.owners["hospital"], strict_json.canonical(SHARES)
    owner.consent()
    owner.opt_out()
    with pytest.raises(ConsentError, match="has left"):
        report(owner, answer(owner, campaign, beside), beside)


def test_an_answer_counts_once_and_not_after_the_end(asked_once: Asked) -> None:
    federation, _ = asked_once
    campaign = ask_evaluation(federation, owners=["archive"])
    owner, beside = federation.owners["archive"], strict_json.canonical(SHARES)
    note = answer(owner, campaign, beside)
    report(owner, note, beside)
    report(owner, note, beside)  # the same again is the same
    kept = federation.coordinator.campaigns.files.answer(campaign_id=campaign.record_id, party="archive")
    assert json.loads(kept) == SHARES
    said = parse_note(note)[1]
    assert isinstance(said, CampaignResult)
    with pytest.raises(ConflictError, match="was closed by entry"):
        report(owner, answer(owner, campaign, beside, seq=said.seq + 1, prev=said.digest), beside)
