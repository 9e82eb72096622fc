"""Statements that must not be recorded: out of sequence, replayed, forged, or more than a statement may be."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
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
    UnavailableError,
    VerificationError,
)
from common.trust.note import SigningKey
from common.trust.rules import owner_key_name
from common.trust.statements import (
    ConsentRevoke,
    ExpertContribute,
    format_time,
    new_record_id,
    parse_time,
)
from owner_client import chain, participation
from owner_client.chain import Said
from owner_client.membership import send
from tests.federation import FEDERATION, Federation, Owner
from tests.raw_calls import calling_as, key_of, next_fields, note_of, refused

DIGEST = "sha256:" + "0" * 64


@pytest.fixture
def owner(consortium: Federation) -> Owner:
    """An owner that has joined."""
    return consortium.enrol("archive")


def _grant(federation: Federation, owner: Owner, /, *signers: SigningKey, **changes: Any) -> bytes:
    base = next(iter(federation.coordinator.registry.head().bases))
    fields = {
        **next_fields(owner),
        "expert": {"name": "expert", "base_digest": base, "kind": "full"},
        "scope": {"line": "main"},
        "purposes": ["research"],
        "terms": {"uri": "terms.txt", "digest": DIGEST},
        "not_before": "2026-01-01T00:00:00Z",
        "not_after": "2999-01-01T00:00:00Z",
        **changes,
    }
    return note_of("consent.grant", fields, *(signers or (key_of(owner),)))


BAD_GRANTS: dict[str, tuple[dict[str, Any], type[ConcordError], str]] = {
    "a gap in the sequence": ({"seq": 2}, ConflictError, "breaks its sequence: 1 after sha256:"),
    "a number used before": ({"seq": 0}, ConflictError, "breaks its sequence: 1 after sha256:"),
    "another predecessor": ({"prev": DIGEST}, ConflictError, "breaks its sequence"),
    "no predecessor": ({"prev": None}, ConflictError, "breaks its sequence"),
    "another federation": ({"federation": "other.example"}, NotPermittedError, "not here"),
    "another log": ({"origin": "other.example/log"}, NotPermittedError, "not here"),
    "another key id": ({"key_id": "00000000"}, NotPermittedError, "key 00000000 does not sign for archive"),
    "the future": ({"issued_at": "2999-01-01T00:00:00Z"}, MalformedError, "in the future; set the clock right"),
    "a base that is not logged": (
        {"expert": {"name": "expert", "base_digest": DIGEST, "kind": "full"}},
        NotFoundError,
        "not in the log; consent only to a logged base",
    ),
    "dates the wrong way round": ({"not_after": "2025-01-01T00:00:00Z"}, MalformedError, "never in force"),
    "an unknown field": ({"extra": 1}, MalformedError, "extra"),
    "a list too long": ({"purposes": ["x"] * 17}, MalformedError, "purposes"),
}


@pytest.mark.parametrize("case", BAD_GRANTS)
def test_a_consent_that_may_not_stand_is_refused(case: str, consortium: Federation, owner: Owner) -> None:
    changes, error, match = BAD_GRANTS[case]
    with calling_as(owner) as calls, refused(consortium, error, match):
        calls.record(_grant(consortium, owner, **changes))
    assert owner.consent().seq == 1


def test_a_second_consent_out_of_sequence_is_refused(consortium: Federation, owner: Owner) -> None:
    first = _grant(consortium, owner)
    with calling_as(owner) as calls:
        calls.record(first)
        with refused(consortium, ConflictError, "statement 1 of archive .* breaks its sequence: 2 after"):
            calls.record(_grant(consortium, owner))  # the home does not know the first, so it counts on from 0 too


def test_a_statement_signed_by_another_key_is_refused(consortium: Federation, owner: Owner) -> None:
    stranger = SigningKey.generate(owner_key_name(FEDERATION, "archive"))
    with calling_as(owner) as calls, refused(consortium, VerificationError, "0 signatures by"):
        calls.record(_grant(consortium, owner, stranger))
    owner.consent()


def test_a_signature_over_other_words_is_refused(consortium: Federation, owner: Owner) -> None:
    note = _grant(consortium, owner).replace(b'"research"', b'"anything"')
    with calling_as(owner) as calls, refused(consortium, VerificationError, "does not hold"):
        calls.record(note)
    owner.consent()


def test_signatures_by_strangers_are_refused(consortium: Federation, owner: Owner) -> None:
    """Nobody's unchecked bytes come into the log under a statement."""
    note = _grant(consortium, owner, key_of(owner), SigningKey.generate("stranger.example"))
    with calling_as(owner) as calls, refused(consortium, MalformedError, "carries 2 signatures; 1 belong"):
        calls.record(note)
    owner.consent()


def test_a_replayed_statement_gives_its_receipt_and_no_entry(consortium: Federation, owner: Owner) -> None:
    owner.consent()
    owner.opt_out()
    size = consortium.coordinator.registry.head().size
    with calling_as(owner) as calls, owner.member() as member:
        for said in member.chain.statements()[1:]:
            member.client.believe(calls.record(said.note), entry=said.note)
    assert consortium.coordinator.registry.head().size == size
    assert not consortium.release().owners


def test_a_record_id_is_used_once(consortium: Federation, owner: Owner) -> None:
    other = consortium.enrol("hospital")
    taken = owner.consent().record_id
    with calling_as(other) as calls, refused(consortium, ConflictError, "is in the log already"):
        calls.record(_grant(consortium, other, record_id=taken))
    other.consent()


def test_an_owner_may_not_speak_as_the_coordinator(consortium: Federation, owner: Owner) -> None:
    base = {**next_fields(owner), "base_digest": DIGEST, "config_digest": DIGEST, "round": 1}
    release = {
        **next_fields(owner), "release": "release-1", "line": "main", "manifest_digest": DIGEST, "base_digest": DIGEST,
        "log_size": 2, "experts": [], "num_experts_per_tok": 1, "not_after": None,
    }  # fmt: skip
    with calling_as(owner) as calls:
        for kind, fields in (("base.publish", base), ("release.publish", release)):
            with refused(consortium, NotPermittedError, "only the coordinator may say"):
                calls.record(note_of(kind, fields, key_of(owner)))
            with refused(consortium, NotPermittedError, "archive may not record a statement of coordinator"):
                calls.record(note_of(kind, {**fields, "party": "coordinator"}, key_of(owner)))


def test_a_consent_of_another_cannot_be_revoked(consortium: Federation, owner: Owner) -> None:
    thief = consortium.enrol("thief")
    grant = owner.consent()
    fields = {**next_fields(thief), "grant_id": grant.record_id, "effect": "future", "deadline_s": 0}
    with calling_as(thief) as calls, refused(consortium, ConsentError, "thief has no consent"):
        calls.record(note_of("consent.revoke", fields, key_of(thief)))


@pytest.mark.parametrize(
    ("note", "error"),
    [
        (b"", MalformedError),
        (b"\x80\x02}q\x00.", MalformedError),
        (b"hello\n\n\xe2\x80\x94 x AAAA\n", MalformedError),
        (b"x" * 70_000, TooLargeError),
        (b"x" * 3_000_000, TooLargeError),
    ],
    ids=["nothing", "a pickle", "no statement", "too long", "far too long"],
)
def test_what_is_no_statement_is_refused(
    note: bytes, error: type[ConcordError], consortium: Federation, owner: Owner
) -> None:
    with calling_as(owner) as calls, refused(consortium, error, "note"):
        calls.record(note)


def test_a_statement_over_16_kib_is_refused(consortium: Federation, owner: Owner) -> None:
    note = _grant(consortium, owner, terms={"uri": "x" * 17_000, "digest": DIGEST})
    with calling_as(owner) as calls, refused(consortium, MalformedError, "at most 16384 are allowed"):
        calls.record(note)


# What the owner makes of it.


@pytest.mark.parametrize(("late", "recorded"), [(timedelta(minutes=5), True), (timedelta(minutes=15), False)])
def test_what_cannot_be_withdrawn_in_time_any_more_is_refused(
    late: timedelta, recorded: bool, consortium: Federation, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    grant = owner.consent()
    now, grown = datetime.now(UTC), consortium.coordinator.registry.head().size
    asked = {"grant_id": grant.record_id, "effect": "withdraw_published", "deadline_s": 0}

    def note(issued_at: datetime) -> bytes:
        return note_of(
            "consent.revoke", next_fields(owner) | asked | {"issued_at": format_time(issued_at)}, key_of(owner)
        )

    with calling_as(owner) as calls:
        if recorded:
            calls.record(note(now - late))
            return
        # What the log holds is dated now; a coordinator whose clock says later has had its chance.
        monkeypatch.setattr(consortium.coordinator.registry, "_now", lambda: now + late)
        with refused(consortium, ConflictError, "that had passed when this came; sign it anew: concord owner opt-out"):
            calls.record(note(now - late))
        assert consortium.coordinator.registry.head().size == grown
        calls.record(note(now + late))


def test_a_refused_statement_is_set_aside_and_its_number_used_again(consortium: Federation, owner: Owner) -> None:
    with owner.member() as member, member.chain.turn():
        unknown = new_record_id(parse_time("2026-01-01T00:00:00Z"))
        said = member.chain.say(ExpertContribute, grant_id=unknown, files={"x": {"digest": DIGEST, "size": 1}},
                                tokens_seen=1, training_config_digest=DIGEST)  # fmt: skip
        with pytest.raises(ConflictError, match="was not uploaded"):
            send(member, said)
        assert member.chain.pending() == []
    assert owner.consent().seq == said.statement.seq


def test_a_refused_revocation_stays_said_and_nothing_takes_its_number(consortium: Federation, owner: Owner) -> None:
    said = _say_revocation(owner)
    for act in (owner.opt_out, owner.consent, owner.opt_out):
        with pytest.raises(ConsentError, match=r"has no consent .* stays signed and is sent again; .* owner hand-over"):
            act()
    with owner.member() as member:
        assert member.chain.pending() == [said]


def test_a_revocation_whose_hours_were_over_when_it_came_is_signed_anew(
    consortium: Federation, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner.consent()
    long_ago = datetime.now(UTC) - timedelta(hours=3)
    hours = timedelta(hours=2)
    consortium.stop()
    with owner.member() as member, monkeypatch.context() as patched:
        patched.setattr(chain, "datetime", _Clock(long_ago))
        with pytest.raises(UnavailableError):
            participation.opt_out(member, reason=None, withdraw_within=hours)
    consortium.start()
    with owner.member() as member:
        # No entry tells that time has passed.
        monkeypatch.setattr(consortium.coordinator.registry, "_now", lambda: datetime.now(UTC) + timedelta(hours=3))
        (late,) = member.chain.pending()
        with member.chain.turn(), pytest.raises(ConflictError, match="sign it anew: concord owner opt-out"):
            send(member, late)
        (anew,) = participation.opt_out(member, reason=None, withdraw_within=timedelta(hours=9))
        assert (anew.seq, anew.record_id != late.statement.record_id) == (late.statement.seq, True)
        assert member.chain.pending() == []


@dataclass(frozen=True)
class _Clock:
    """A clock that stands still."""

    at: datetime

    def now(self, _: object) -> datetime:
        return self.at


def _say_revocation(owner: Owner) -> Said:
    with owner.member() as member, member.chain.turn():
        unknown = new_record_id(parse_time("2026-01-01T00:00:00Z"))
        return member.chain.say(ConsentRevoke, grant_id=unknown, effect="future", deadline_s=0)


def test_a_statement_that_may_be_in_the_log_is_not_said_twice(
    consortium: Federation, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The coordinator fails after it has recorded: the owner waits, and sends the very same statement again."""

    def fail(_: object) -> None:
        raise OSError("the disk is gone")

    with monkeypatch.context() as patched:
        patched.setattr(consortium.coordinator.log, "committed", fail)
        with pytest.raises(ConcordError, match="the coordinator failed"):
            owner.consent()
    assert consortium.coordinator.registry.head().size == 3
    assert owner.consent().seq == 1
    assert consortium.coordinator.registry.head().size == 3


def test_what_was_recorded_is_answered_and_published_later_where_files_cannot_be_written(
    consortium: Federation, owner: Owner
) -> None:
    consortium.coordinator.log.sign_head()
    tiles = consortium.public / "log" / "tile" / "entries" / "000.p"
    tiles.rename(tiles.with_name("aside"))
    tiles.write_bytes(b"in the way of the next bundle")
    assert owner.consent().seq == 1
    published = consortium.coordinator.log.published()
    assert published is not None
    assert published.size == 2
    tiles.unlink()
    tiles.with_name("aside").rename(tiles)
    consortium.coordinator.log.close()
    published = consortium.coordinator.log.published()
    assert published is not None
    assert published.size == 3
