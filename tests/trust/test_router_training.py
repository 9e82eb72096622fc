"""Releases with trained router rows, in the log: what they may be made from, and that every lie in one is told."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from common.errors import ConcordError, ConflictError, ConsentError, MalformedError, NotFoundError
from common.trust import strict_json
from common.trust.history import replay, withdrawals_due
from common.trust.manifest import digest_of
from common.trust.note import Note, sign
from common.trust.statements import COORDINATOR, ReleasePublish, parse_note
from tests.trust.telling import (
    BASE,
    BASE_2,
    CONFIG,
    COORDINATOR_KEY,
    ROOT,
    Telling,
    expert_of,
    manifest_digest,
    refused,
)
from tests.trust.test_campaign_rules import FIGURE, POOL

LISTS = {"archive": digest_of(b"archive"), "hospital": digest_of(b"hospital")}
TOLD_APART = [{**FIGURE, "measure": "told_apart", "value": 0.97}]
SETTINGS = digest_of(b"settings")


@pytest.fixture
def told() -> Telling:
    """Three owners in a release; two of them chose documents."""
    return _told()


def _told() -> Telling:
    log = Telling()
    log.publishes()
    for digit, owner in zip("123", ("archive", "hospital", "library"), strict=True):
        log.joins(owner)
        log.contributes(owner, log.consents(owner), digit=digit)
    log.releases(num_experts_per_tok=2)
    campaign_id = asks(log)
    for owner in LISTS:
        answers(log, campaign_id, owner)
    return log


def asks(log: Telling, **changes: Any) -> str:
    """Ask everybody which documents look like theirs."""
    fields = {
        "parameters": POOL,
        "owners": ["archive", "hospital", "library"],
        "quorum": 3,
        "min_documents": 10,
        "opens_at": "2026-11-23T09:00:00Z",
        "closes_at": "2026-11-24T09:00:00Z",
        **changes,
    }
    return log.says(COORDINATOR, "campaign.define", **fields).record_id


def answers(log: Telling, campaign_id: str, owner: str) -> None:
    """An owner chooses."""
    attached = {"digest": LISTS[owner], "size": 9}
    fields = {"campaign_id": campaign_id, "subject": BASE_2, "figures": TOLD_APART, "attachment": attached}
    log.says(owner, "campaign.result", **fields)


def campaign_of(log: Telling) -> str:
    """The first campaign."""
    return next(iter(log.history.campaigns))


def chosen(log: Telling, slot: int, owner: str, **changes: Any) -> dict[str, Any]:
    """An owner's documents as a release names them."""
    answer = log.history.answers[campaign_of(log), owner]
    return {"slot": slot, "answer_index": answer.index, "digest": LISTS[owner], **changes}


def trains(log: Telling, *, release: str = "release-2", fields: dict[str, Any] | None = None, **changes: Any) -> None:
    """Publish the first release with the rows of those who chose trained, but for what is changed."""
    training = {
        "version": 1,
        "parent": "release-1",
        "parent_digest": CONFIG,
        "campaign_id": campaign_of(log),
        "proxies": [chosen(log, 1, "archive"), chosen(log, 2, "hospital")],
        "settings_digest": SETTINGS,
        **changes,
    }
    parts = {"num_experts_per_tok": 2, "manifest_digest": BASE_2, **(fields or {})}
    log.releases(release=release, router_training=training, **parts)


def test_a_release_is_its_parent_with_rows_trained(told: Telling) -> None:
    trains(told)
    said = told.history.releases["release-2"].statement
    assert said.trained_slots == {1, 2}
    assert said.experts == told.history.releases["release-1"].statement.experts
    assert told.history.releases["release-1"].statement.trained_slots == frozenset()
    trains(told, release="release-3", settings_digest=CONFIG)  # of one parent there may be several
    assert replay(ROOT, told.entries) == told.history


def _newer(log: Telling) -> None:
    log.releases(release="release-2", num_experts_per_tok=2)
    trains(log, release="release-3")


def _twice(log: Telling) -> None:
    trains(log)
    trains(log, release="release-3", parent="release-2", parent_digest=BASE_2)


def _withdrawn(log: Telling) -> None:
    grant = next(grant for grant in log.history.grants.values() if grant.party == "library")
    log.revokes("library", grant.record_id, effect="withdraw_published", deadline_s=3600)
    log.says(COORDINATOR, "release.withdraw", release="release-1", cause_index=log.history.size - 1)
    trains(log)


def _left(log: Telling) -> None:
    experts = log.history.releases["release-1"].statement.model_dump(mode="json")["experts"]
    grant = next(grant for grant in log.history.grants.values() if grant.party == "library")
    log.revokes("library", grant.record_id)
    trains(log, fields={"experts": experts})


def _left_out(log: Telling) -> None:
    grant = next(grant for grant in log.history.grants.values() if grant.party == "library")
    log.revokes("library", grant.record_id)
    trains(log)


def _joined(log: Telling) -> None:
    log.joins("museum")
    log.contributes("museum", log.consents("museum"), digit="4")
    trains(log)


def _better(log: Telling) -> None:
    grant = next(grant for grant in log.history.grants.values() if grant.party == "library")
    log.contributes("library", grant.record_id, digit="5")
    trains(log)


def _declined(log: Telling) -> None:
    log.says("library", "campaign.decline", campaign_id=campaign_of(log))
    trains(log, proxies=[{"slot": 3, "answer_index": log.history.size - 1, "digest": CONFIG}])


def _lapsed(log: Telling) -> None:
    trains(log, fields={"issued_at": "2027-11-23T00:00:00Z"})


def _other_kind(log: Telling) -> None:
    train = asks(log, parameters={"kind": "train", "base_digest": BASE})
    trains(log, campaign_id=train)


def _another_base(log: Telling) -> None:
    log.publishes(base_digest=BASE_2)
    trains(log, fields={"base_digest": BASE_2, "num_experts_per_tok": 1})


REFUSED: dict[str, tuple[Any, type[ConcordError], str]] = {
    "of no parent": (lambda log: trains(log, parent="release-9"), NotFoundError, "no release 'release-9'"),
    "of a parent of other bytes": (
        lambda log: trains(log, parent_digest=BASE_2), ConflictError, "release-2 names release-1 as"
    ),
    "of a parent with a newer one": (_newer, ConflictError, "is not the newest release; train the rows of release-2"),
    "of a trained one": (_twice, ConflictError, "trained already; train those of release-1"),
    "of one that was withdrawn": (_withdrawn, ConflictError, "release-1 was withdrawn by entry"),
    "with one who left": (_left, ConsentError, "was revoked by entry"),
    "without one who left": (_left_out, ConflictError, "does not hold the same experts"),
    "with one who joined": (_joined, ConflictError, "does not hold the same experts"),
    "with another expert": (_better, ConflictError, "does not hold the same experts"),
    "once a consent lapsed": (_lapsed, ConsentError, "is in force from"),
    "over another base": (_another_base, ConflictError, "has base_digest"),
    "of another line": (
        lambda log: trains(log, fields={"line": "side", "num_experts_per_tok": 1}), ConflictError, "has line side"
    ),
    "with another top-k": (
        lambda log: trains(log, fields={"num_experts_per_tok": 1}), ConflictError, "has num_experts_per_tok 1"
    ),
    "by no campaign": (
        lambda log: trains(log, campaign_id="0190c0a0-0000-7000-8000-999999999999"), NotFoundError, "is not in the log"
    ),
    "by another kind of campaign": (_other_kind, ConflictError, "of kind train, not select-proxy"),
    "by another campaign": (lambda log: trains(log, campaign_id=asks(log)), ConsentError, "chose no documents"),
    "for one who declined": (_declined, ConsentError, "library chose no documents in campaign"),
    "for one who said nothing": (
        lambda log: trains(log, proxies=[chosen(log, 1, "archive"), chosen(log, 3, "hospital")]),
        ConsentError, "library chose no documents",
    ),
    "on another's documents": (
        lambda log: trains(log, proxies=[chosen(log, 1, "hospital")]), ConsentError, "is not what archive chose"
    ),
    "on other documents": (
        lambda log: trains(log, proxies=[chosen(log, 1, "archive", digest=CONFIG)]), ConsentError, "what archive chose"
    ),
    "out of order": (
        lambda log: trains(log, proxies=[chosen(log, 2, "hospital"), chosen(log, 1, "archive")]),
        MalformedError, "out of order, or one twice",
    ),
    "twice for one": (lambda log: trains(log, proxies=[chosen(log, 1, "archive")] * 2), MalformedError, "or one twice"),
    "for no expert": (
        lambda log: trains(log, proxies=[chosen(log, 4, "archive")]), MalformedError, "slot 4, where no expert is"
    ),
    "for the public expert": (
        lambda log: trains(log, proxies=[chosen(log, 0, "archive")]), MalformedError, "greater than or equal to 1"
    ),
    "for nobody": (lambda log: trains(log, proxies=[]), MalformedError, "at least 1 item"),
    "of a version to come": (lambda log: trains(log, version=2), MalformedError, "version"),
    "with more than is known": (lambda log: trains(log, mode="best"), MalformedError, "mode: Extra inputs"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_release_that_may_not_be_is_refused(told: Telling, case: str) -> None:
    act, error, match = REFUSED[case]
    with pytest.raises(error, match=match):
        act(told)
    assert not any(each.statement.release == "release-3" for each in told.history.releases.values())


def test_what_is_refused_changes_nothing(told: Telling) -> None:
    refused(told, ConflictError, "names release-1 as", lambda: trains(told, parent_digest=BASE_2))


def test_a_release_that_holds_a_trained_one_s_expert_is_withdrawn_with_it(told: Telling) -> None:
    """A trained release holds what its parent holds: whoever takes one back takes back the other."""
    trains(told)
    grant = next(grant for grant in told.history.grants.values() if grant.party == "library")
    told.revokes("library", grant.record_id, effect="withdraw_published", deadline_s=3600)
    assert [release.statement.release for release, _ in withdrawals_due(told.history)] == ["release-1", "release-2"]


def test_the_newest_is_the_newest_that_stands(told: Telling) -> None:
    told.joins("museum")
    grant_id = told.consents("museum")
    told.contributes("museum", grant_id, digit="4")
    told.releases(release="release-2", num_experts_per_tok=2)
    told.revokes("museum", grant_id, effect="withdraw_published", deadline_s=3600)
    told.says(COORDINATOR, "release.withdraw", release="release-2", cause_index=told.history.size - 1)
    trains(told, release="release-3")


def _leaves(value: object, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if pairs is None:
        yield path
    else:
        for key, item in pairs:
            yield from _leaves(item, (*path, key))


def _other(value: object) -> object:
    if isinstance(value, int):
        return value + 1
    assert isinstance(value, str)
    return value[:-1] + ("9" if value[-1] != "9" else "8")


HARMLESS = {("manifest_digest",), ("record_id",), ("release",), ("router_training", "settings_digest")}
"""What the log cannot tell: files do, and an audit compares them."""


def test_every_field_that_is_changed_and_signed_again_is_refused_or_told_by_files(told: Telling) -> None:
    trains(told)
    kind, body, _ = Note.parse(told.entries.pop()).text.split("\n")
    before, untold = replay(ROOT, told.entries), set()
    for path in _leaves(json.loads(body)):
        changed = json.loads(body)
        place = changed
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = _other(place[path[-1]])
        entry = bytes(sign(f"{kind}\n{strict_json.canonical(changed).decode()}\n", COORDINATOR_KEY))
        try:
            before.check(entry)
        except ConcordError:
            continue
        untold.add(path)
    assert untold == HARMLESS


def test_experts_are_named_as_always(told: Telling) -> None:
    trains(told)
    _, said = parse_note(told.entries[-1])
    assert isinstance(said, ReleasePublish)
    assert [each.digest for each in said.experts] == [manifest_digest(expert_of(digit)) for digit in "123"]
