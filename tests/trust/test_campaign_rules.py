"""Campaigns in the log: who may be asked for what, which answers count, and when a campaign is over."""

from typing import Any

import pytest

from common.errors import (
    ConcordError,
    ConflictError,
    ConsentError,
    MalformedError,
    NotFoundError,
    NotPermittedError,
    TooLargeError,
)
from common.trust.statements import COORDINATOR
from tests.trust.telling import BASE, BASE_2, Telling

MODEL = {"manifest": {"digest": BASE, "size": 9}, "stands": "base", "name": "base-0"}
EVALUATE = {"kind": "evaluate", "model": MODEL}
TRAIN_2 = {"kind": "train", "base_digest": BASE_2}
POOL = {"kind": "select-proxy", "pool": {"digest": BASE_2, "size": 9}, "count": 5, "min_accuracy": 0.9}
FIGURE = {"name": "own", "measure": "bits_per_byte", "value": 1.5, "documents": 10}
ATTACHED = {"digest": BASE_2, "size": 9}


@pytest.fixture
def telling() -> Telling:
    """A base, and two owners."""
    told = Telling()
    told.publishes()
    for owner in ("archive", "hospital", "library"):
        told.joins(owner)
    return told


def asks(telling: Telling, **changes: Any) -> str:
    """Ask two of the three owners; the campaign's id."""
    fields = {
        "parameters": EVALUATE,
        "owners": ["archive", "hospital"],
        "quorum": 1,
        "min_documents": 10,
        "opens_at": "2026-11-23T09:00:00Z",
        "closes_at": "2026-11-24T09:00:00Z",
        **changes,
    }
    return telling.says(COORDINATOR, "campaign.define", **fields).record_id


def answers(telling: Telling, campaign_id: str, party: str = "archive", **changes: Any) -> None:
    """Answer it."""
    fields = {"campaign_id": campaign_id, "subject": BASE, "figures": [FIGURE], **changes}
    telling.says(party, "campaign.result", **fields)


def closes(telling: Telling, campaign_id: str, **changes: Any) -> None:
    """Close it, as the log has it but for what is changed."""
    reported, declined, absent = telling.history.answered(campaign_id)
    fields = {"by": "admin", "reported": reported, "declined": declined, "absent": absent, **changes}
    telling.says(COORDINATOR, "campaign.close", campaign_id=campaign_id, **fields)


def test_a_campaign_is_asked_answered_and_closed(telling: Telling) -> None:
    campaign_id = asks(telling)
    answers(telling, campaign_id)
    telling.says("hospital", "campaign.decline", campaign_id=campaign_id, reason="not this year")
    assert telling.history.answered(campaign_id) == (["archive"], ["hospital"], [])
    closes(telling, campaign_id, by="quorum")
    assert telling.history.campaigns[campaign_id].closed_index == telling.history.size - 1


BAD_QUESTIONS: dict[str, tuple[dict[str, Any], type[ConcordError], str]] = {
    "owners out of order": ({"owners": ["hospital", "archive"]}, MalformedError, "in order, each once"),
    "an owner twice": ({"owners": ["archive", "archive"]}, MalformedError, "in order, each once"),
    "a stranger": ({"owners": ["nobody"]}, NotFoundError, "asks nobody, who has not joined"),
    "the coordinator": ({"owners": ["coordinator"]}, NotFoundError, "has not joined"),
    "too large a quorum": ({"quorum": 3}, MalformedError, "a quorum of 3 of 2"),
    "over before it begins": ({"closes_at": "2026-11-23T09:00:00Z"}, MalformedError, "is never open"),
    "a base that is not there": (
        {"parameters": {**EVALUATE, "model": {**MODEL, "manifest": ATTACHED}}}, NotFoundError, "is not in the log",
    ),
    "a release that is not there": (
        {"parameters": {**EVALUATE, "model": {**MODEL, "stands": "release"}}}, NotFoundError, "log names base-0",
    ),
    "training over another base": ({"parameters": TRAIN_2}, NotFoundError, "logged base"),
    "an unknown kind": ({"parameters": {"kind": "spy"}}, MalformedError, "parameters"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_QUESTIONS)
def test_a_question_that_cannot_be_asked_is_refused(telling: Telling, case: str) -> None:
    changes, error, match = BAD_QUESTIONS[case]
    with pytest.raises(error, match=match):
        asks(telling, **changes)


def test_an_owner_may_not_ask(telling: Telling) -> None:
    with pytest.raises(NotPermittedError, match=r"only the coordinator may say campaign.define"):
        telling.says(
            "archive", "campaign.define", parameters=EVALUATE, owners=["archive"], quorum=1, min_documents=1,
            opens_at="2026-11-23T09:00:00Z", closes_at="2026-11-24T09:00:00Z",
        )  # fmt: skip


BAD_ANSWERS: dict[str, tuple[dict[str, Any], type[ConcordError], str]] = {
    "about another model": ({"subject": BASE_2}, ConflictError, "this answer is about"),
    "another campaign": ({"campaign_id": "0190c0a0-0000-7000-8000-999999999999"}, NotFoundError, "is not in the log"),
    "of one who was not asked": ({"party": "library"}, NotPermittedError, "did not ask library"),
    "late": ({"issued_at": "2026-11-24T09:00:01Z"}, ConflictError, "too early or late"),
    "over too few documents": ({"figures": [{**FIGURE, "documents": 9}]}, MalformedError, "over 9 documents; 10 are"),
    "a figure twice": ({"figures": [FIGURE, FIGURE]}, MalformedError, "each figure once"),
    "a figure of another kind": (
        {"figures": [{**FIGURE, "measure": "greedy_rate"}]}, MalformedError, "no figure of a campaign of kind evaluate",
    ),
    "no figure": ({"figures": []}, MalformedError, "a figure at least"),
    "an unknown measure": ({"figures": [{**FIGURE, "measure": "text"}]}, MalformedError, "measure"),
    "text where a number is": ({"figures": [{**FIGURE, "value": "1"}]}, MalformedError, "value"),
    "a file too large": ({"attachment": {**ATTACHED, "size": 2**20 + 1}}, TooLargeError, "at most 1048576"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_ANSWERS)
def test_an_answer_that_does_not_count_is_refused(telling: Telling, case: str) -> None:
    changes, error, match = BAD_ANSWERS[case]
    campaign_id = asks(telling)
    with pytest.raises(error, match=match):
        answers(telling, **{"campaign_id": campaign_id, **changes})


def test_an_answer_is_given_once(telling: Telling) -> None:
    campaign_id = asks(telling)
    answers(telling, campaign_id)
    with pytest.raises(ConflictError, match=r"answered campaign .* already, by entry"):
        answers(telling, campaign_id)
    with pytest.raises(ConflictError, match=r"answered campaign .* already, by entry"):
        telling.says("archive", "campaign.decline", campaign_id=campaign_id)


def test_after_the_end_nothing_counts(telling: Telling) -> None:
    campaign_id = asks(telling)
    closes(telling, campaign_id)
    with pytest.raises(ConflictError, match=r"was closed by entry .*: this is late"):
        answers(telling, campaign_id)
    with pytest.raises(ConflictError, match=r"closed by entry .* already"):
        closes(telling, campaign_id)


def test_one_who_left_may_decline_and_not_answer(telling: Telling) -> None:
    grant_id = telling.consents("archive")
    telling.revokes("archive", grant_id)
    campaign_id = asks(telling)
    with pytest.raises(ConsentError, match="archive has left"):
        answers(telling, campaign_id)
    telling.consents("archive")
    answers(telling, campaign_id)  # back again


def test_a_list_of_documents_is_named_where_one_is_asked_for_and_only_there(telling: Telling) -> None:
    proxies, train = asks(telling, parameters=POOL), asks(telling, parameters={"kind": "train", "base_digest": BASE})
    told_apart = [{**FIGURE, "measure": "told_apart", "value": 0.97}]
    with pytest.raises(MalformedError, match="names the file with the documents' ids"):
        answers(telling, proxies, subject=BASE_2, figures=told_apart)
    answers(telling, proxies, subject=BASE_2, figures=told_apart, attachment=ATTACHED)
    with pytest.raises(MalformedError, match="nothing goes beside"):
        answers(telling, train, figures=[], attachment=ATTACHED)


BAD_ENDINGS: dict[str, tuple[dict[str, Any], type[ConcordError], str]] = {
    "of no campaign": ({"campaign_id": "0190c0a0-0000-7000-8000-999999999999"}, NotFoundError, "is not in the log"),
    "that leaves one out": ({"absent": ["archive"]}, ConflictError, "another than the log has"),
    "that makes up a report": ({"reported": ["archive"], "absent": ["hospital"]}, ConflictError, "than the log has"),
    "by a quorum that is not there": ({"by": "quorum"}, ConflictError, "0 owners reported, under the quorum of 1"),
    "by a date to come": ({"by": "date"}, ConflictError, "is open until"),
}


@pytest.mark.parametrize("case", BAD_ENDINGS)
def test_an_ending_that_is_not_as_the_log_has_it_is_refused(telling: Telling, case: str) -> None:
    changes, error, match = BAD_ENDINGS[case]
    campaign_id = asks(telling)
    fields = {"campaign_id": campaign_id, "by": "admin", "reported": [], "declined": [],
              "absent": ["archive", "hospital"], **changes}  # fmt: skip
    with pytest.raises(error, match=match):
        telling.says(COORDINATOR, "campaign.close", **fields)
