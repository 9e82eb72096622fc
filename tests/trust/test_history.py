"""The registry's rules, each on its own: who may say what, when, and what it changes."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import (
    ConcordError,
    ConflictError,
    ConsentError,
    MalformedError,
    NotFoundError,
    NotPermittedError,
    VerificationError,
)
from common.trust.history import left_out, releasable_experts, replay
from common.trust.state import RecordIds
from common.trust.statements import COORDINATOR
from common.trust.verify import StepFailed, check_history, check_revocations
from tests.trust.telling import (
    BASE,
    BASE_2,
    CONFIG,
    COORDINATOR_KEY,
    NOW,
    RELEASE_NAMES,
    ROOT,
    Telling,
    expert_of,
    key_of,
    manifest_digest,
    refused,
)


def test_a_whole_life_replays_to_the_same_history(contributed: Telling) -> None:
    contributed.releases()
    contributed.revokes("archive", next(iter(contributed.history.grants)))
    contributed.releases(release="release-2")
    assert replay(ROOT, contributed.entries) == contributed.history
    assert check_history(ROOT, contributed.entries) == contributed.history
    assert check_revocations(contributed.history) == 1


def test_checking_changes_nothing(log: Telling) -> None:
    note = log.note("archive", "consent.revoke", grant_id="0190c0a0-0000-7000-8000-0000000000ff", effect="future",
                    deadline_s=0)  # fmt: skip
    refused(log, ConsentError, "has no consent", lambda: log.history.check(note))


# Everybody.


@pytest.mark.parametrize(
    ("fields", "error", "match"),
    [
        ({"seq": 2}, ConflictError, "breaks its sequence: 1 after"),
        ({"seq": 0}, ConflictError, "breaks its sequence: 1 after"),
        ({"prev": None}, ConflictError, "breaks its sequence"),
        ({"prev": BASE}, ConflictError, "breaks its sequence"),
        ({"federation": "other.example"}, NotPermittedError, "not here"),
        ({"origin": "other"}, NotPermittedError, "not here"),
        ({"key_id": "00000000"}, NotPermittedError, "key 00000000 does not sign for archive"),
        ({"record_id": "0190c0a0-0000-7000-8000-000000000000"}, ConflictError, "is in the log already"),
        ({"signers": [key_of("archive")]}, VerificationError, "0 signatures by"),
    ],
)
def test_a_statement_must_be_its_party_s_next(
    fields: dict[str, Any], error: type[ConcordError], match: str, log: Telling
) -> None:
    refused(log, error, match, lambda: log.consents("archive", **fields))


def test_who_has_not_joined_says_nothing(log: Telling) -> None:
    refused(log, NotPermittedError, "hospital has not joined", lambda: log.consents("hospital"))


def test_signatures_nobody_asked_for_arerefused(log: Telling) -> None:
    signers = [log.keys["archive"], COORDINATOR_KEY]
    refused(log, MalformedError, "carries 2 signatures; 1 belong", lambda: log.consents("archive", signers=signers))


# Joining.


@pytest.mark.parametrize("missing", [0, 1])
def test_an_enrolment_needs_the_owner_s_and_the_coordinator_s_signature(missing: int, log: Telling) -> None:
    log.keys["hospital"] = key_of("hospital")
    signers = [log.keys["hospital"], COORDINATOR_KEY]
    del signers[missing]
    refused(log, VerificationError, "0 signatures by", lambda: log.joins("hospital", signers=signers))


def test_nobody_joins_twice(log: Telling) -> None:
    refused(log, ConflictError, "archive has joined already", lambda: log.joins("archive"))


def test_nobody_joins_as_the_coordinator(log: Telling) -> None:
    act = lambda: log.joins(COORDINATOR, signers=[COORDINATOR_KEY])  # noqa: E731
    refused(log, ConflictError, "coordinator has joined already", act)


def test_a_key_is_called_after_its_owner(log: Telling) -> None:
    log.keys["hospital"] = key_of("archive")
    refused(log, MalformedError, "may not be called", lambda: log.joins("hospital"))


def test_a_key_that_is_none_isrefused(log: Telling) -> None:
    refused(log, MalformedError, "verifier key", lambda: log.joins("hospital", public_key="none"))


# Bases.


def test_an_owner_publishes_no_base(log: Telling) -> None:
    act = lambda: log.says("archive", "base.publish", base_digest=BASE_2, config_digest=CONFIG, round=1)  # noqa: E731
    refused(log, NotPermittedError, "only the coordinator may say", act)


def test_a_base_is_published_once(log: Telling) -> None:
    refused(log, ConflictError, "is published already", log.publishes)


@pytest.mark.parametrize("round_number", [0, 2])
def test_bases_are_counted(round_number: int, log: Telling) -> None:
    act = lambda: log.publishes(base_digest=BASE_2, round=round_number)  # noqa: E731
    refused(log, ConflictError, f"round {round_number} where round 1 is next", act)


# Consents.


def test_the_coordinator_consents_to_nothing(log: Telling) -> None:
    refused(log, NotPermittedError, "only a data owner may say", lambda: log.consents(COORDINATOR))


def test_a_consent_is_to_a_logged_base(log: Telling) -> None:
    refused(log, NotFoundError, "consent only to a logged base", lambda: log.consents("archive", base=BASE_2))


@pytest.mark.parametrize("not_after", ["2026-11-23T00:00:00Z", "2026-11-22T00:00:00Z"])
def test_a_consent_is_in_force_at_some_time(not_after: str, log: Telling) -> None:
    refused(log, MalformedError, "is never in force", lambda: log.consents("archive", not_after=not_after))


def test_a_consent_is_revoked_once(log: Telling) -> None:
    grant_id = log.consents("archive")
    log.revokes("archive", grant_id)
    assert log.history.grants[grant_id].revoked_index == 3
    refused(log, ConflictError, "was revoked by entry 3 already", lambda: log.revokes("archive", grant_id))


def test_a_consent_is_revoked_by_its_owner_alone(log: Telling) -> None:
    grant_id = log.consents("archive")
    log.joins("hospital")
    for party in ("hospital", COORDINATOR):
        refused(log, ConsentError, f"{party} has no consent", lambda party=party: log.revokes(party, grant_id))


# Contributions.


def test_an_expert_comes_under_its_owner_s_consent(log: Telling) -> None:
    grant_id = log.consents("archive")
    log.joins("hospital")
    refused(log, ConsentError, "hospital has no consent", lambda: log.contributes("hospital", grant_id))
    unknown = grant_id[:-1] + "f"
    refused(log, ConsentError, "archive has no consent", lambda: log.contributes("archive", unknown))


def test_no_expert_comes_under_a_revoked_consent(log: Telling) -> None:
    grant_id = log.consents("archive")
    log.revokes("archive", grant_id)
    refused(log, ConsentError, "was revoked by entry 3", lambda: log.contributes("archive", grant_id))


@pytest.mark.parametrize(
    ("issued_at", "allowed"),
    [
        ("2026-11-22T23:59:59Z", False),
        ("2026-11-23T00:00:00Z", True),
        ("2027-11-22T23:59:59Z", True),
        ("2027-11-23T00:00:00Z", False),
    ],
)
def test_an_expert_comes_while_the_consent_is_in_force(issued_at: str, allowed: bool, log: Telling) -> None:
    grant_id = log.consents("archive")
    if allowed:
        log.contributes("archive", grant_id, issued_at=issued_at)
        return
    act = lambda: log.contributes("archive", grant_id, issued_at=issued_at)  # noqa: E731
    refused(log, ConsentError, "is in force from 2026-11-23T00:00:00Z until 2027-11-23T00:00:00Z, not at", act)


def test_a_consent_to_one_expert_covers_no_other(log: Telling) -> None:
    grant_id = log.consents("archive", expert={"manifest_digest": manifest_digest(expert_of("1"))})
    refused(log, ConsentError, "covers expert", lambda: log.contributes("archive", grant_id, digit="2"))
    log.contributes("archive", grant_id, digit="1")


# Releases.


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"log_size": 3}, ConflictError, "was made from 3 entries; the log has 4"),
        ({"log_size": 5}, ConflictError, "was made from 5 entries; the log has 4"),
        ({"base_digest": BASE_2}, NotFoundError, "is not in the log"),
    ],
)
def test_a_release_is_made_from_the_log_as_it_is(
    changes: dict[str, Any], error: type[ConcordError], match: str, contributed: Telling
) -> None:
    refused(contributed, error, match, lambda: contributed.releases(**changes))


def test_an_expert_stays_with_who_contributed_it_first_whatever_they_revoke(contributed: Telling) -> None:
    archive = next(iter(contributed.history.grants))
    contributed.joins("hospital")
    grant_id = contributed.consents("hospital")
    copy = lambda: contributed.contributes("hospital", grant_id, digit="1")  # noqa: E731
    refused(contributed, ConflictError, "byte for byte what another owner contributed", copy)
    contributed.revokes("archive", archive)
    refused(contributed, ConflictError, "byte for byte what another owner contributed", copy)
    contributed.contributes("hospital", grant_id, digit="2")
    again = contributed.consents("archive")
    contributed.contributes("archive", again, digit="1")  # it is theirs to give once more


def test_an_owner_makes_no_release(contributed: Telling) -> None:
    fields = {**RELEASE_NAMES, "manifest_digest": CONFIG, "log_size": 4, "experts": [], "num_experts_per_tok": 1,
              "not_after": None}  # fmt: skip
    act = lambda: contributed.says("archive", "release.publish", **fields)  # noqa: E731
    refused(contributed, NotPermittedError, "only the coordinator may say", act)


def test_a_release_is_made_once(contributed: Telling) -> None:
    contributed.releases()
    refused(contributed, ConflictError, "release-1 is published already", contributed.releases)


SLOT = {"digest": manifest_digest(expert_of("1")), "grant_index": 2, "contribute_index": 3, "slot": 1}


@pytest.mark.parametrize(
    ("experts", "error", "match"),
    [
        ([{**SLOT, "slot": 2}], MalformedError, "do not take slots 1 to 1"),
        ([SLOT, SLOT], MalformedError, "do not take slots 1 to 2"),
        ([SLOT, {**SLOT, "slot": 2}], MalformedError, "holds an expert of archive twice"),
        ([{**SLOT, "grant_index": 1}], ConsentError, "names entry 1, which is no consent"),
        ([{**SLOT, "grant_index": 99}], ConsentError, "names entry 99, which is no consent"),
        ([{**SLOT, "contribute_index": 2}], ConsentError, "is not what archive contributed"),
        ([{**SLOT, "digest": BASE}], ConsentError, "is not what archive contributed"),
    ],
)
def test_a_release_holds_experts_that_were_contributed(
    experts: list[dict[str, Any]], error: type[ConcordError], match: str, contributed: Telling
) -> None:
    refused(contributed, error, match, lambda: contributed.releases(experts=experts))


def test_a_release_holds_no_revoked_expert(contributed: Telling) -> None:
    contributed.revokes("archive", next(iter(contributed.history.grants)))
    refused(contributed, ConsentError, "was revoked by entry 4", lambda: contributed.releases(experts=[SLOT]))
    contributed.releases()
    assert not contributed.history.releases["release-1"].statement.experts


def test_a_release_holds_no_expert_whose_consent_has_lapsed(contributed: Telling) -> None:
    act = lambda: contributed.releases(experts=[SLOT], issued_at="2027-11-23T00:00:00Z")  # noqa: E731
    refused(contributed, ConsentError, "not at 2027-11-23", act)


def test_a_release_holds_the_latest_contribution_under_a_consent(contributed: Telling) -> None:
    contributed.contributes("archive", next(iter(contributed.history.grants)), digit="2")
    refused(contributed, ConsentError, "is not what archive contributed", lambda: contributed.releases(experts=[SLOT]))
    contributed.releases()
    assert contributed.history.releases["release-1"].statement.experts[0].contribute_index == 4


@pytest.mark.parametrize("digit", ["1", "2"])
def test_an_owner_has_one_expert_in_a_release_whatever_it_consented_to(digit: str, contributed: Telling) -> None:
    """The same bytes in two slots would count twice; the latest consent that allows it is the one."""
    second = contributed.consents("archive", scope={"release": "release-1"})
    contributed.contributes("archive", second, digit=digit)
    other = {"digest": manifest_digest(expert_of(digit)), "grant_index": 4, "contribute_index": 5, "slot": 2}
    act = lambda: contributed.releases(experts=[SLOT, other])  # noqa: E731
    refused(contributed, MalformedError, "holds an expert of archive twice", act)
    contributed.releases()
    (expert,) = contributed.history.releases["release-1"].statement.experts
    assert (expert.grant_index, expert.slot) == (4, 1)
    contributed.releases(release="release-2")
    (expert,) = contributed.history.releases["release-2"].statement.experts
    assert expert.grant_index == 2  # the other consent is for release-1
    place = {"line": "main", "base_digest": BASE, "at": NOW}
    assert left_out(contributed.history, release="release-2", **place) == {}
    assert list(left_out(contributed.history, release="release-3", **(place | {"line": "trial"}))) == ["archive"]


@pytest.mark.parametrize(("number", "allowed"), [(1, True), (2, True), (3, False)])
def test_a_token_has_no_more_experts_than_there_are(number: int, allowed: bool, contributed: Telling) -> None:
    act = lambda: contributed.releases(num_experts_per_tok=number)  # noqa: E731
    if allowed:
        act()
    else:
        refused(contributed, MalformedError, "gives a token 3 experts; it has 2 with the public one", act)


def test_a_release_keeps_to_its_base(contributed: Telling) -> None:
    contributed.publishes(base_digest=BASE_2)
    act = lambda: contributed.releases(base_digest=BASE_2, experts=[SLOT])  # noqa: E731
    refused(contributed, ConsentError, "is for base", act)


@pytest.mark.parametrize(
    ("scope", "release", "line", "covered"),
    [
        ({"line": "main"}, "release-1", "main", True),
        ({"line": "main"}, "release-9", "main", True),
        ({"line": "main"}, "release-1", "trial", False),
        ({"release": "release-1"}, "release-1", "main", True),
        ({"release": "release-1"}, "release-1", "trial", True),
        ({"release": "release-1"}, "release-2", "main", False),
    ],
)
def test_a_release_keeps_to_the_scope(
    scope: dict[str, str], release: str, line: str, covered: bool, log: Telling
) -> None:
    log.contributes("archive", log.consents("archive", scope=scope))
    if covered:
        log.releases(release=release, line=line)
        assert len(log.history.releases[release].statement.experts) == 1
        return
    act = lambda: log.releases(release=release, line=line, experts=[SLOT])  # noqa: E731
    refused(log, ConsentError, f"does not cover {release} of line {line}", act)


def test_experts_stand_in_the_order_of_their_consents(log: Telling) -> None:
    log.joins("hospital")
    later = log.consents("hospital")
    latest = log.consents("archive")
    log.contributes("archive", latest, digit="2")
    log.contributes("hospital", later, digit="1")
    chosen = releasable_experts(log.history, release="r", line="main", base_digest=BASE, at=NOW)
    assert [grant.statement.party for grant, _ in chosen] == ["hospital", "archive"]


# What an auditor says of it.


def test_a_broken_entry_is_named_with_its_step(contributed: Telling) -> None:
    entries = [*contributed.entries, contributed.entries[-1]]
    with pytest.raises(ConflictError, match=r"entry 4 \(sha256:[0-9a-f]{64}\): .* breaks its sequence"):
        replay(ROOT, entries)
    with pytest.raises(StepFailed, match=r"step 4 .*: entry 4: "):
        check_history(ROOT, entries)


def test_a_release_that_may_not_be_is_step_5(contributed: Telling) -> None:
    contributed.revokes("archive", next(iter(contributed.history.grants)))
    forged = contributed.note(
        COORDINATOR, "release.publish", **RELEASE_NAMES, manifest_digest=CONFIG, log_size=5, experts=[SLOT],
        num_experts_per_tok=1, not_after="2027-11-23T00:00:00Z",
    )  # fmt: skip
    with pytest.raises(StepFailed, match=r"step 5 .*: entry 5: .* was revoked by entry 4") as caught:
        check_history(ROOT, [*contributed.entries, forged])
    assert caught.value.step == 5


def test_a_release_after_a_revocation_is_step_6(contributed: Telling) -> None:
    """Step 5 finds it first; step 6 does not rely on that."""
    contributed.releases()
    grant_id, grant = next(iter(contributed.history.grants.items()))
    contributed.history.grants[grant_id] = replace(grant, revoked_index=3)
    with pytest.raises(StepFailed, match=r"release-1 \(entry 4\) holds the expert of consent 2, revoked by entry 3"):
        check_revocations(contributed.history)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2**64 - 1)), max_size=60))
def test_record_ids_are_a_set(ids: list[tuple[int, int]]) -> None:
    kept, known = RecordIds(), set()
    for high, low in ids:
        number = (high << 64) | low
        text = f"{number:032x}"
        record_id = "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))
        assert (record_id in kept) == (record_id in known)
        if record_id not in known:
            kept.add(record_id)
            known.add(record_id)
    assert all(record_id in kept for record_id in known)
