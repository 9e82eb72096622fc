"""When an entry may say that it was made: not before what the log held already, and not in the future."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from common.errors import ConflictError
from common.trust.cosignature import Witness, cosign
from common.trust.note import Checkpoint, Note, SigningKey, sign
from common.trust.statements import COORDINATOR, format_time
from common.trust.verify import Seen, StepFailed, check_history
from tests.trust.telling import BASE_2, ORIGIN, RELEASE_NAMES, ROOT, Telling, refused

EARLIER = "2026-11-23T10:00:00Z"
TAKEN_BACK = {"effect": "withdraw_published", "deadline_s": 3600}
KEYS = [SigningKey.generate(f"witness.example/{number}") for number in range(3)]
WITNESSES = [Witness.of(key) for key in KEYS]

SAYINGS: dict[str, Callable[[Telling], object]] = {
    "base.publish": lambda log: log.publishes(base_digest=BASE_2, issued_at=EARLIER),
    "cert.revoke": lambda log: log.says(COORDINATOR, "cert.revoke", owner="archive", issued_at=EARLIER),
    "release.publish": lambda log: log.releases(release="release-2", issued_at=EARLIER),
    "release.withdraw": lambda log: log.says(
        COORDINATOR, "release.withdraw", release="release-1", cause_index=5, issued_at=EARLIER
    ),
}


@pytest.mark.parametrize("kind", SAYINGS)
@pytest.mark.parametrize(("minutes", "allowed"), [(20, True), (21, False)])
def test_the_coordinator_dates_nothing_back(kind: str, minutes: int, allowed: bool, contributed: Telling) -> None:
    contributed.releases()
    contributed.revokes("archive", next(iter(contributed.history.grants)), **TAKEN_BACK)
    contributed.joins("hospital", issued_at=f"2026-11-23T10:{minutes}:00Z")
    if allowed:
        SAYINGS[kind](contributed)
    else:
        refused(contributed, ConflictError, "may not be dated back", lambda: SAYINGS[kind](contributed))


def test_an_owners_word_may_have_been_carried_for_days(contributed: Telling) -> None:
    contributed.joins("hospital", issued_at="2026-11-30T10:00:00Z")
    contributed.revokes("archive", next(iter(contributed.history.grants)), issued_at="2026-11-24T10:00:00Z")
    check_history(ROOT, contributed.entries)


# By the auditor's clock.


@pytest.mark.parametrize(("minutes", "allowed"), [(20, True), (21, False)])
def test_nothing_is_dated_in_the_future(minutes: int, allowed: bool, log: Telling) -> None:
    log.joins("hospital", issued_at=f"2026-11-23T10:{minutes}:00Z")
    log.joins("library", issued_at=EARLIER)
    at = datetime(2026, 11, 23, 10, tzinfo=UTC)
    if allowed:
        check_history(ROOT, log.entries, at=at)
        return
    with pytest.raises(StepFailed, match=r"step 4 .*: entry 2 is dated 2026-11-23T10:21:00Z, which is yet to come"):
        check_history(ROOT, log.entries, at=at)
    check_history(ROOT, log.entries)


def test_a_release_dated_to_when_a_consent_will_be_in_force_is_found(log: Telling) -> None:
    dates = {"not_before": "2030-01-01T00:00:00Z", "not_after": "2031-01-01T00:00:00Z"}
    grant_id, then = log.consents("archive", **dates), "2030-02-01T00:00:00Z"
    contribution = log.contributes("archive", grant_id, issued_at=then)
    slot = {"digest": contribution.manifest_digest, "grant_index": 2, "contribute_index": 3, "slot": 1}
    log.releases(experts=[slot], not_after=dates["not_after"], issued_at=then)
    check_history(ROOT, log.entries)
    with pytest.raises(StepFailed, match=r"step 4 .* which is yet to come"):
        check_history(ROOT, log.entries, at=datetime(2026, 12, 1, tzinfo=UTC))


# By the word of witnesses.

SEEN_AT = datetime(2026, 12, 10, tzinfo=UTC)


def _seen(log: Telling, *times: datetime | None, quorum: int = 0, witnesses: list[Witness] | None = WITNESSES) -> Seen:
    """The log's head as these witnesses cosigned it, each at its time."""
    checkpoint = Checkpoint(ORIGIN, log.history.size, bytes(32))
    text = str(checkpoint)
    lines = [cosign(text, key, at=at) for key, at in zip(KEYS, times, strict=False) if at is not None]
    note = sign(text, SigningKey.generate(ORIGIN))
    return Seen(checkpoint, Note(text, (*note.signatures, *lines)), witnesses, quorum)


def _released_late(log: Telling, *, issued_at: str = "2026-11-23T09:00:00Z") -> None:
    """A release that is dated to when the consent that lapsed since was in force."""
    log.releases(**RELEASE_NAMES, not_after="2026-11-24T00:00:00Z", issued_at=issued_at)


@pytest.fixture
def lapsing(log: Telling) -> Telling:
    """A consent until 24 November, and an expert under it."""
    log.contributes("archive", log.consents("archive", not_after="2026-11-24T00:00:00Z"))
    return log


def test_what_follows_what_a_witness_saw_is_not_dated_before_that(lapsing: Telling) -> None:
    seen, unseen = _seen(lapsing, SEEN_AT), _seen(lapsing)
    _released_late(lapsing)
    check_history(ROOT, lapsing.entries, seen=unseen)
    with pytest.raises(StepFailed, match=r"step 5 .*: entry 4: .*by 2026-12-10T00:00:00Z: .*may not be dated back"):
        check_history(ROOT, lapsing.entries, seen=seen)


def test_what_a_witness_saw_already_stays_as_it_is(lapsing: Telling) -> None:
    _released_late(lapsing)
    check_history(ROOT, lapsing.entries, seen=_seen(lapsing, SEEN_AT))


@pytest.mark.parametrize(("quorum", "found"), [(0, True), (1, True), (2, False)])
def test_one_of_two_witnesses_alone_accuses_nobody(quorum: int, found: bool, lapsing: Telling) -> None:
    seen = _seen(lapsing, SEEN_AT, datetime(2026, 11, 23, 9, tzinfo=UTC), quorum=quorum)
    _released_late(lapsing)
    if found:
        with pytest.raises(StepFailed, match="may not be dated back"):
            check_history(ROOT, lapsing.entries, seen=seen)
    else:
        check_history(ROOT, lapsing.entries, seen=seen)


def test_a_witness_whose_clock_is_ahead_accuses_nobody(lapsing: Telling) -> None:
    now = datetime(2026, 11, 23, 9, 30, tzinfo=UTC)
    seen = _seen(lapsing, SEEN_AT)
    _released_late(lapsing, issued_at=format_time(now - timedelta(minutes=1)))
    check_history(ROOT, lapsing.entries, seen=seen, at=now)


def test_owners_that_joined_by_then_are_witnesses_too(log: Telling) -> None:
    key = SigningKey.generate("health.example/witness/hospital")
    log.joins("hospital", witness_key=str(Witness.of(key)))
    log.contributes("archive", log.consents("archive", not_after="2026-11-24T00:00:00Z"))
    text = str(checkpoint := Checkpoint(ORIGIN, log.history.size, bytes(32)))
    note = Note(text, (*sign(text, SigningKey.generate(ORIGIN)).signatures, cosign(text, key, at=SEEN_AT)))
    _released_late(log)
    with pytest.raises(StepFailed, match="may not be dated back"):
        check_history(ROOT, log.entries, seen=Seen(checkpoint, note))
