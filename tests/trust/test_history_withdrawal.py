"""Taking back what is published: who may ask, what is due, until when, and what an auditor says of it."""

from datetime import UTC, datetime, timedelta

import pytest

from common.errors import ConflictError, ConsentError, NotFoundError, NotPermittedError
from common.trust.history import replay, taken_back, withdrawals_due
from common.trust.note import Note
from common.trust.receipts import Receipt, hasten
from common.trust.statements import COORDINATOR, ConsentRevoke
from common.trust.verify import StepFailed, check_history, check_revocations
from tests.trust.telling import RELEASE_NAMES, ROOT, Telling, refused

HOUR = 3600
TAKEN_BACK = {"effect": "withdraw_published", "deadline_s": HOUR}


def withdraws(log: Telling, cause_index: int, *, release: str = "release-1", **fields: object) -> None:
    """The coordinator withdraws a release."""
    log.says(COORDINATOR, "release.withdraw", release=release, cause_index=cause_index, **fields)


@pytest.fixture
def taken(contributed: Telling) -> Telling:
    """Entries 4 and 5: a release, and the revocation that asks to withdraw it within an hour."""
    contributed.releases()
    contributed.revokes("archive", next(iter(contributed.history.grants)), **TAKEN_BACK)
    return contributed


def test_a_release_is_withdrawn_for_a_revocation_that_asks_for_it(taken: Telling) -> None:
    assert [(r.statement.release, cause) for r, cause in withdrawals_due(taken.history)] == [("release-1", 5)]
    assert list(taken_back(taken.history)) == ["sha256:" + "1" * 64]
    withdraws(taken, 5)
    assert taken.history.releases["release-1"].withdrawn_index == 6
    assert not withdrawals_due(taken.history)
    assert replay(ROOT, taken.entries) == taken.history
    assert check_revocations(check_history(ROOT, taken.entries), at=datetime.max.replace(tzinfo=UTC)) == 1


def test_a_release_is_withdrawn_once(taken: Telling) -> None:
    withdraws(taken, 5)
    refused(taken, ConflictError, "was withdrawn by entry 6 already", lambda: withdraws(taken, 5))


@pytest.mark.parametrize("cause", [0, 2, 4, 99])
def test_a_release_is_withdrawn_for_no_other_entry(cause: int, taken: Telling) -> None:
    refused(taken, NotPermittedError, f"entry {cause} is no revocation that asks", lambda: withdraws(taken, cause))


def test_a_release_is_withdrawn_for_no_owner_who_is_not_in_it(taken: Telling) -> None:
    taken.joins("hospital")
    taken.revokes("hospital", taken.consents("hospital"), **TAKEN_BACK)
    refused(taken, NotPermittedError, "entry 8 is no revocation that asks", lambda: withdraws(taken, 8))


def test_a_revocation_for_the_future_takes_nothing_back(contributed: Telling) -> None:
    contributed.releases()
    contributed.revokes("archive", next(iter(contributed.history.grants)))
    assert not withdrawals_due(contributed.history)
    assert not taken_back(contributed.history)
    refused(contributed, NotPermittedError, "entry 5 is no revocation that asks", lambda: withdraws(contributed, 5))


def test_what_was_revoked_for_the_future_may_be_taken_back_once(contributed: Telling) -> None:
    contributed.releases()
    grant_id = next(iter(contributed.history.grants))
    contributed.revokes("archive", grant_id)
    contributed.revokes("archive", grant_id, **TAKEN_BACK)
    assert contributed.history.grants[grant_id].revoked_index == 5
    assert [(r.statement.release, cause) for r, cause in withdrawals_due(contributed.history)] == [("release-1", 6)]
    for again in ({}, TAKEN_BACK):
        act = lambda again=again: contributed.revokes("archive", grant_id, **again)  # noqa: E731
        refused(contributed, ConflictError, "was revoked by entry 5 already", act)
    withdraws(contributed, 6)
    assert check_revocations(check_history(ROOT, contributed.entries), at=datetime.max.replace(tzinfo=UTC)) == 1


def test_an_owner_withdraws_no_release(taken: Telling) -> None:
    act = lambda: taken.says("archive", "release.withdraw", release="release-1", cause_index=5)  # noqa: E731
    refused(taken, NotPermittedError, "only the coordinator may say", act)


def test_what_is_not_released_is_not_withdrawn(taken: Telling) -> None:
    act = lambda: withdraws(taken, 5, release="release-9")  # noqa: E731
    refused(taken, NotFoundError, "release-9 is not in the log", act)


def test_a_release_of_which_two_owners_want_out_is_withdrawn_for_the_first(contributed: Telling) -> None:
    contributed.joins("hospital")
    second = contributed.consents("hospital")
    contributed.contributes("hospital", second, digit="2")
    contributed.releases()
    contributed.revokes("hospital", second, **TAKEN_BACK)
    contributed.revokes("archive", next(iter(contributed.history.grants)), **TAKEN_BACK)
    assert [cause for _, cause in withdrawals_due(contributed.history)] == [8]
    withdraws(contributed, 9)  # either will do
    assert not withdrawals_due(contributed.history)


# Until when. Clocks of the parties may differ by 20 minutes.

ASKED = datetime(2026, 11, 23, 9, tzinfo=UTC)
LAST = ASKED + timedelta(hours=1, minutes=20)


def test_what_is_not_withdrawn_in_time_is_step_6(taken: Telling) -> None:
    check_revocations(taken.history, at=LAST)
    with pytest.raises(StepFailed, match=r"step 6 .*release-1 is not withdrawn; entry 5 of archive .*2026-11-23T10:00"):
        check_revocations(taken.history, at=LAST + timedelta(seconds=1))


def test_later_entries_tell_the_time_too(taken: Telling) -> None:
    taken.joins("hospital", issued_at="2026-11-23T10:20:01Z")
    with pytest.raises(StepFailed, match="release-1 is not withdrawn"):
        check_revocations(taken.history)


@pytest.mark.parametrize(("issued_at", "late"), [("2026-11-23T10:20:00Z", False), ("2026-11-23T10:20:01Z", True)])
def test_what_is_withdrawn_late_is_step_6(issued_at: str, late: bool, taken: Telling) -> None:
    withdraws(taken, 5, issued_at=issued_at)
    if late:
        with pytest.raises(StepFailed, match=r"by entry 6 on 2026-11-23T10:20:01Z; entry 5 asks for it until"):
            check_revocations(taken.history)
    else:
        assert check_revocations(taken.history) == 1


@pytest.mark.parametrize(("hour", "late"), [(11, False), (12, True)])
def test_the_hours_count_from_when_the_log_can_have_known(hour: int, late: bool, contributed: Telling) -> None:
    """The key is on another machine: what was signed on one day comes on another, or the coordinator was not there."""
    contributed.releases()
    contributed.joins("hospital", issued_at="2026-11-26T10:30:00Z")
    contributed.revokes("archive", next(iter(contributed.history.grants)), **TAKEN_BACK)
    withdraws(contributed, 6, issued_at=f"2026-11-26T{hour}:00:00Z")
    history = check_history(ROOT, contributed.entries)
    if late:
        with pytest.raises(StepFailed, match="entry 6 asks for it until 2026-11-26T11:30:00Z"):
            check_revocations(history)
    else:
        assert check_revocations(history) == 1


def test_a_witness_tells_the_log_when_a_revocation_was_there_to_be_had(taken: Telling) -> None:
    """Recorded a week after a witness took it, it is due as if it had been recorded a day after."""
    entries = [*taken.entries[:5]]
    late = Telling(replay(ROOT, entries), entries, taken.keys)
    late.joins("hospital", issued_at="2026-11-30T09:00:00Z")
    revocation = late.revokes("archive", next(iter(late.history.grants)), **TAKEN_BACK)
    assert isinstance(revocation, ConsentRevoke)
    note = Note.parse(late.entries[-1])
    withdraws(late, 6, issued_at="2026-11-30T09:00:00Z")
    history = check_history(ROOT, late.entries)
    assert check_revocations(history) == 1
    receipt = Receipt(note, revocation, {"w": ASKED, "slow": ASKED + timedelta(days=7)})
    hasten(history, [receipt])
    with pytest.raises(StepFailed, match="entry 6 asks for it until 2026-11-24T10:00:00Z"):
        check_revocations(history)
    later = Receipt(note, revocation, {"w": ASKED + timedelta(days=9)})
    for receipts in ([later], [later, receipt], [receipt, later]):
        hasten(again := check_history(ROOT, late.entries), receipts)
        assert (again.taking_back == history.taking_back) == (receipt in receipts)


def test_a_receipt_for_the_future_hastens_no_later_withdrawal(contributed: Telling) -> None:
    contributed.releases()
    grant_id = next(iter(contributed.history.grants))
    first = contributed.revokes("archive", grant_id)
    assert isinstance(first, ConsentRevoke)
    receipt = Receipt(Note.parse(contributed.entries[-1]), first, {"w": ASKED})
    contributed.revokes("archive", grant_id, **TAKEN_BACK, issued_at="2026-12-23T09:00:00Z")
    withdraws(contributed, 6, issued_at="2026-12-23T09:30:00Z")
    hasten(history := check_history(ROOT, contributed.entries), [receipt])
    assert check_revocations(history) == 1


# Until when a release may be used.


@pytest.mark.parametrize("not_after", [None, "2027-11-22T23:59:59Z", "2027-11-23T00:00:01Z"])
def test_a_release_says_when_its_first_consent_lapses(not_after: str | None, contributed: Telling) -> None:
    contributed.joins("hospital")
    later = contributed.consents("hospital", not_after="2028-01-01T00:00:00Z")
    contributed.contributes("hospital", later, digit="2")
    act = lambda: contributed.releases(not_after=not_after)  # noqa: E731
    refused(contributed, ConsentError, "its consents say 2027-11-23T00:00:00Z", act)
    contributed.releases(not_after="2027-11-23T00:00:00Z")


def test_a_release_without_experts_lapses_never(log: Telling) -> None:
    refused(log, ConsentError, "its consents say None", lambda: log.releases(not_after="2027-11-23T00:00:00Z"))
    log.releases(**RELEASE_NAMES, not_after=None)
