"""Joining and calling: invitations that are used, expired, foreign or another's, and parties that call as others."""

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Barrier

import pytest
from sqlalchemy import update

from common.errors import (
    ConcordError,
    ConflictError,
    MalformedError,
    NotFoundError,
    NotPermittedError,
    SignatureNeededError,
    UnavailableError,
    VerificationError,
)
from common.rpc.channel import call
from common.rpc.identity import TlsIdentity
from common.trust.certificate_request import CertificateRequest
from common.trust.identity import Identity
from common.trust.invitation import Invitation
from common.trust.note import Note, SigningKey, sign
from common.trust.pki import identity_of, make_csr, new_key
from common.trust.rules import owner_key_name
from common.trust.statements import new_record_id
from coordinator.enrolment import Enrolment
from coordinator.tables import certificates
from owner_client.membership import open_membership, renew_if_due, renewal_moment
from protos import enrolment_pb2, registry_pb2, transfer_pb2
from tests.commands import concord
from tests.federation import FEDERATION, Federation, running_federation
from tests.raw_calls import TIMEOUT_S, RawCalls, calling, calling_as, key_of, next_fields, note_of, refused, tls_of


@pytest.fixture
def enrolling(federation: Federation) -> Iterator[RawCalls]:
    """Anonymous calls to the port where invitations are redeemed."""
    authority = federation.coordinator.authority.certificate_pem
    with calling(f"127.0.0.1:{federation.ports[1]}", authority=authority, tls=None) as calls:
        yield calls


def _key(name: str) -> SigningKey:
    return SigningKey.generate(owner_key_name(FEDERATION, name))


def _fields(name: str, key: SigningKey) -> dict[str, object]:
    return {
        "federation": FEDERATION, "origin": f"{FEDERATION}/log", "party": name, "key_id": key.verifier.key_id,
        "record_id": new_record_id(datetime.now(UTC)), "seq": 0, "prev": None, "issued_at": "2026-01-01T00:00:00Z",
        "public_key": str(key.verifier),
    }  # fmt: skip


def _enrolment(name: str, key: SigningKey, *signers: SigningKey, **changes: object) -> bytes:
    return note_of("owner.enrol", {**_fields(name, key), **changes}, *(signers or (key,)))


def _csr() -> bytes:
    return make_csr(new_key())


def test_an_invitation_is_good_once(federation: Federation, enrolling: RawCalls) -> None:
    invitation = federation.invitation("archive")
    federation.enrol("archive", invitation=invitation)
    with refused(federation, NotPermittedError, "was used already; ask the admin for a new one"):
        enrolling.redeem(invitation.token, csr=_csr(), note=_enrolment("archive", _key("archive")))


def test_of_many_who_race_for_an_invitation_one_joins(federation: Federation, enrolling: RawCalls) -> None:
    token, start = federation.invitation("archive").token, Barrier(8)

    def race(_: int) -> bytes | None:
        csr, note = _csr(), _enrolment("archive", _key("archive"))
        start.wait(30)
        try:
            return bytes(enrolling.redeem(token, csr=csr, note=note).certificate)
        except (NotPermittedError, ConflictError):
            return None

    with ThreadPoolExecutor(8) as pool:
        certificates = [each for each in pool.map(race, range(8)) if each]
    assert len(certificates) == 1
    assert federation.coordinator.registry.head().size == 1


def test_the_same_request_again_is_answered_again(federation: Federation, enrolling: RawCalls) -> None:
    token, csr, note = federation.invitation("archive").token, _csr(), _enrolment("archive", _key("archive"))
    first, again = (enrolling.redeem(token, csr=csr, note=note) for _ in range(2))
    assert (first.note, first.receipt) == (again.note, again.receipt)
    assert federation.coordinator.registry.head().size == 1


def test_the_same_enrolment_with_another_certificate_request_is_refused(
    federation: Federation, enrolling: RawCalls
) -> None:
    token, note = federation.invitation("archive").token, _enrolment("archive", _key("archive"))
    enrolling.redeem(token, csr=_csr(), note=note)
    with refused(federation, NotPermittedError, "was used already"):
        enrolling.redeem(token, csr=_csr(), note=note)


def test_an_expired_invitation_is_refused_and_a_new_one_works(federation: Federation) -> None:
    late = federation.invitation("archive", lifetime=timedelta(seconds=-1))
    with refused(federation, NotPermittedError, "has expired; ask the admin for a new one for archive"):
        federation.enrol("archive", invitation=late)
    assert federation.enrol("archive").home.settings().owner == "archive"


def test_an_invitation_for_another_owner_is_refused(federation: Federation) -> None:
    of_hospital = federation.invitation("hospital")
    with refused(federation, NotPermittedError, "is for hospital, not for archive"):
        federation.enrol("archive", invitation=replace(of_hospital, owner="archive"))
    federation.enrol("hospital", invitation=of_hospital)
    federation.enrol("archive")


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Federation]:
    """Another coordinator."""
    with running_federation(tmp_path / "other") as running:
        yield running


def test_an_invitation_of_another_coordinator_is_refused(federation: Federation, other: Federation) -> None:
    foreign = replace(federation.invitation("archive"), token=other.invitation("archive").token)
    with refused(federation, NotPermittedError, "not from this coordinator; ask the admin"):
        federation.enrol("archive", invitation=foreign)
    federation.enrol("archive")


def test_a_coordinator_that_the_invitation_does_not_name_is_not_told_the_secret(
    federation: Federation, other: Federation
) -> None:
    astray = replace(other.invitation("archive"), enrolment_target=f"127.0.0.1:{federation.ports[1]}")
    with refused(federation, UnavailableError, "not issued by the pinned certificate authority"):
        federation.enrol("archive", invitation=astray)
    federation.enrol("archive")


def test_a_log_that_the_invitation_does_not_name_is_not_believed(federation: Federation, other: Federation) -> None:
    """The log's key is another's: the owner says so and has not joined."""
    theirs = other.coordinator.registry.root
    ours = federation.coordinator.registry.root
    forged = replace(federation.invitation("archive"), root=replace(ours, log=theirs.log))
    with pytest.raises(VerificationError, match="step 1"):
        federation.enrol("archive", invitation=forged)
    with pytest.raises(NotFoundError, match="join a consortium first"):
        federation.owner("archive").home.settings()


@pytest.mark.parametrize("cut", [1, 100, -2])
def test_an_invitation_file_that_was_changed_is_refused(cut: int, federation: Federation) -> None:
    data = bytes(federation.invitation("archive"))
    with pytest.raises(MalformedError, match=r"ask|invitation"):
        Invitation.parse(data[:cut])


def test_a_certificate_request_that_is_none_does_not_use_up_the_invitation(
    federation: Federation, enrolling: RawCalls
) -> None:
    invitation = federation.invitation("archive")
    with refused(federation, MalformedError, "CSR|request"):
        enrolling.redeem(invitation.token, csr=b"no request", note=_enrolment("archive", _key("archive")))
    federation.enrol("archive", invitation=invitation)


def _forged_admission(federation: Federation) -> bytes:
    key = _key("archive")
    note = Note.parse(_enrolment("archive", key))
    forged = SigningKey.generate(federation.coordinator.registry.root.coordinator.name)
    return bytes(Note(note.text, (*note.signatures, *sign(note.text, forged).signatures)))


def _many_signatures(federation: Federation) -> bytes:
    key = _key("archive")
    return _enrolment("archive", key, key, *(_key(f"x{i}") for i in range(15)))


def _changed(**changes: object) -> Callable[[Federation], bytes]:
    return lambda _: _enrolment("archive", _key("archive"), **changes)


NO_ENROLMENTS: dict[str, tuple[Callable[[Federation], bytes], type[ConcordError], str]] = {
    "signed by another key": (
        lambda _: _enrolment("archive", _key("archive"), _key("archive")),
        VerificationError,
        "0 signatures by",
    ),
    "a key of another name": (
        lambda _: _enrolment("archive", _key("hospital")),
        MalformedError,
        "may not be called",
    ),
    "another federation": (_changed(federation="other.example"), NotPermittedError, "not here"),
    "not the first statement": (_changed(seq=1), ConflictError, "breaks its sequence"),
    "another statement": (
        lambda _: note_of("consent.revoke", {}, _key("archive")),
        MalformedError,
        "Field required",
    ),
    "from the future": (_changed(issued_at="2999-01-01T00:00:00Z"), MalformedError, "set the clock right"),
    "a forged admission": (_forged_admission, MalformedError, "signed once, by its owner"),
    "sixteen signatures": (_many_signatures, MalformedError, "signed once, by its owner"),
}


@pytest.mark.parametrize("case", NO_ENROLMENTS)
def test_what_is_no_enrolment_does_not_use_up_the_invitation(
    case: str, federation: Federation, enrolling: RawCalls
) -> None:
    make, error, match = NO_ENROLMENTS[case]
    invitation = federation.invitation("archive")
    with refused(federation, error, match):
        enrolling.redeem(invitation.token, csr=_csr(), note=make(federation))
    federation.enrol("archive", invitation=invitation)


def test_a_home_joins_once(federation: Federation) -> None:
    federation.enrol("archive")
    with refused(federation, ConflictError, "has joined already, as archive; use another --home"):
        federation.enrol("archive", invitation=federation.invitation("hospital"))


def test_nobody_is_invited_under_a_name_that_is_taken(federation: Federation) -> None:
    federation.enrol("archive")
    taken = federation.invitation("archive")
    with refused(federation, ConflictError, "archive has joined already; choose another name"):
        federation.enrol("archive2", invitation=taken)
    for name in ("coordinator", "../x"):
        with pytest.raises(MalformedError):
            federation.invitation(name)


# Who calls.


def test_no_call_but_redeeming_works_without_a_certificate(federation: Federation, enrolling: RawCalls) -> None:
    fetch = lambda request, timeout: list(enrolling.transfer.Fetch(request, timeout=timeout))  # noqa: E731
    put = lambda request, timeout: list(enrolling.transfer.PutChunks(request, timeout=timeout))  # noqa: E731
    calls = [
        (enrolling.enrolment.Renew, enrolment_pb2.RenewRequest(csr=_csr())),
        (enrolling.registry.Record, registry_pb2.RecordRequest(note=b"")),
        (enrolling.registry.GetCheckpoint, registry_pb2.GetCheckpointRequest()),
        (enrolling.registry.GetConsistency, registry_pb2.GetConsistencyRequest()),
        (enrolling.registry.GetChain, registry_pb2.GetChainRequest()),
        (enrolling.registry.GetBase, registry_pb2.GetBaseRequest()),
        (enrolling.transfer.OpenUpload, transfer_pb2.OpenUploadRequest()),
        (put, iter([transfer_pb2.Chunk()])),
        (enrolling.transfer.FinishUpload, transfer_pb2.FinishUploadRequest()),
        (fetch, transfer_pb2.FetchRequest()),
    ]  # fmt: skip
    for method, request in calls:
        with refused(federation, NotPermittedError, "needs a client certificate; enrol first"):
            call(method, request, timeout_s=TIMEOUT_S)


def test_the_port_for_members_takes_nobody_without_a_certificate(federation: Federation) -> None:
    authority = federation.coordinator.authority.certificate_pem
    with (
        calling(f"127.0.0.1:{federation.ports[0]}", authority=authority, tls=None) as calls,
        refused(federation, UnavailableError, "does not answer"),
    ):
        calls.record(b"")


def test_a_certificate_of_another_authority_is_refused(federation: Federation, other: Federation) -> None:
    stranger = tls_of(other.enrol("archive"))
    authority = federation.coordinator.authority.certificate_pem
    tls = TlsIdentity(stranger.key, stranger.certificate, authority)
    with (
        calling(f"127.0.0.1:{federation.ports[0]}", authority=authority, tls=tls) as calls,
        refused(federation, UnavailableError, "does not answer"),
    ):
        calls.record(b"")


def _issued(federation: Federation, party: str) -> TlsIdentity:
    """A certificate that the authority made but the coordinator never wrote down."""
    key, now = new_key(), datetime.now(UTC)
    authority = federation.coordinator.authority
    certificate = authority.issue(
        make_csr(key),
        identity=Identity.owner(FEDERATION, party=party),
        not_before=now,
        not_after=now + timedelta(hours=1),
    )
    return TlsIdentity(key, certificate, authority.certificate_pem)


def test_a_certificate_that_was_never_handed_out_is_refused(federation: Federation) -> None:
    federation.enrol("archive")
    tls = _issued(federation, "archive")
    with (
        calling(f"127.0.0.1:{federation.ports[0]}", authority=tls.authority, tls=tls) as calls,
        refused(federation, NotPermittedError, "is revoked or was never issued here"),
    ):
        calls.record(b"")


def test_a_certificate_of_a_minute_is_renewed_in_the_middle_of_it_and_not_at_once(federation: Federation) -> None:
    """It is dated back for slow clocks, and renewed by a moment that counts from there."""
    coordinator, lifetime = federation.coordinator, timedelta(minutes=1)
    enrolment = Enrolment(
        coordinator.store, coordinator.registry, authority=coordinator.authority, certificate_lifetime=lifetime
    )
    token = enrolment.invite("auditor/kim", lifetime=timedelta(minutes=5))
    facts = identity_of(enrolment.certify(token, csr=make_csr(new_key())))
    assert lifetime / 3 < facts.not_after - renewal_moment(facts) < lifetime * 2 / 3
    assert facts.not_after - facts.not_before > lifetime


def test_a_certificate_that_lapsed_is_refused_on_the_next_call(federation: Federation) -> None:
    coordinator = federation.coordinator
    lifetime = timedelta(hours=coordinator.settings.certificate_hours)
    later = datetime.now(UTC) + lifetime + timedelta(seconds=1)
    tls = tls_of(federation.enrol("archive"))
    authenticate = Enrolment(
        coordinator.store,
        coordinator.registry,
        authority=coordinator.authority,
        certificate_lifetime=lifetime,
        now=lambda: later,
    ).authenticate
    with pytest.raises(NotPermittedError, match=r"lapsed at .*; ask the admin for an invitation"):
        authenticate(tls.certificate, "/concord.v1.Registry/Record")


# A new certificate for a member.


def _revoke_certificates(federation: Federation) -> None:
    with federation.coordinator.store.transaction() as connection:
        connection.execute(update(certificates).values(revoked_at=0.0))


def _request(federation: Federation, token: str, csr: bytes, key: SigningKey, *, party: str = "archive") -> bytes:
    return CertificateRequest.of(federation=FEDERATION, party=party, csr=csr, token=token).sign(key)


def test_a_member_without_a_valid_certificate_gets_one_and_can_leave(federation: Federation) -> None:
    federation.publish_base()
    owner = federation.enrol("archive")
    owner.consent()
    _revoke_certificates(federation)
    with pytest.raises(NotPermittedError, match=r"is revoked .* ask the admin for an invitation"):
        owner.opt_out()
    federation.enrol("archive", invitation=federation.invitation("archive"))
    assert not owner.home.recertifying.exists()
    owner.opt_out()
    assert all(grant.revoked_index is not None for grant in federation.coordinator.registry.head().grants.values())


def test_a_member_whose_key_is_elsewhere_gets_a_new_certificate(federation: Federation, tmp_path: Path) -> None:
    owner = federation.enrol("archive")
    key = owner.home.signing_key.rename(tmp_path / "signing.key")
    _revoke_certificates(federation)
    invitation, waiting = federation.invitation("archive"), owner.home.recertifying / "request.unsigned"
    for _ in range(2):
        with pytest.raises(
            SignatureNeededError, match=r"backup or, where it is kept elsewhere, carry .*request\.unsigned"
        ):
            federation.enrol("archive", invitation=invitation)
    signed = concord("owner", "sign", waiting, "--key", key, "--yes")
    assert "archive asks for a new TLS certificate" in " ".join(signed.stdout.split()), signed.stderr
    federation.enrol("archive", invitation=invitation)
    assert not owner.home.recertifying.exists()
    with owner.member() as member:
        member.client.watch()


def test_a_new_certificate_ends_the_earlier_ones(federation: Federation) -> None:
    owner = federation.enrol("archive")
    earlier = tls_of(owner).certificate
    federation.enrol("archive", invitation=federation.invitation("archive"))
    authenticate = federation.coordinator.enrolment.authenticate
    assert authenticate(tls_of(owner).certificate, "/concord.v1.Registry/Record") == "archive"
    with pytest.raises(NotPermittedError, match="is revoked"):
        authenticate(earlier, "/concord.v1.Registry/Record")


def test_a_request_whose_reply_was_lost_is_answered_again(federation: Federation, enrolling: RawCalls) -> None:
    owner = federation.enrol("archive")
    token, csr = federation.invitation("archive").token, _csr()
    note = _request(federation, token, csr, key_of(owner))
    first, again = (enrolling.redeem(token, csr=csr, note=note).certificate for _ in range(2))
    authenticate = federation.coordinator.enrolment.authenticate
    assert authenticate(again, "/concord.v1.Registry/Record") == "archive"
    with pytest.raises(NotPermittedError, match="is revoked"):
        authenticate(first, "/concord.v1.Registry/Record")


def test_an_invitation_alone_makes_nobody_a_member(federation: Federation, enrolling: RawCalls) -> None:
    """Neither another key, nor another's request for other keys, nor a name that never joined."""
    owner, thief = federation.enrol("archive"), federation.enrol("thief")
    invitation, csr = federation.invitation("archive"), _csr()
    token, good = invitation.token, _request(federation, invitation.token, csr, key_of(owner))
    forged = Note.parse(_request(federation, token, csr, _key("archive")))
    twice = bytes(Note(forged.text, (*Note.parse(good).signatures, *forged.signatures)))
    cases = [
        (csr, _request(federation, token, csr, _key("archive")), VerificationError, "not signed by a key of"),
        (csr, _request(federation, token, csr, key_of(thief)), VerificationError, "not signed by a key of"),
        (_csr(), good, MalformedError, "belongs to another key"),
        (csr, _request(federation, "x" * 43, csr, key_of(owner)), MalformedError, "belongs to another key"),
        (csr, _request(federation, token, csr, _key("nobody"), party="nobody"), NotPermittedError, "has not joined"),
        (csr, twice, MalformedError, "signed once"),
        (csr, good.replace(b'"party"', b'"patty"'), MalformedError, "no certificate request"),
        (b"no request", _request(federation, token, b"no request", key_of(owner)), MalformedError, "CSR|request"),
    ]
    for sent, note, error, match in cases:
        with refused(federation, error, match):
            enrolling.redeem(token, csr=sent, note=note)
    of_thief = federation.invitation("thief").token
    with refused(federation, NotPermittedError, "is for thief, not for archive"):
        enrolling.redeem(of_thief, csr=csr, note=_request(federation, of_thief, csr, key_of(owner)))
    assert enrolling.redeem(token, csr=csr, note=good).certificate  # and none of that used it up
    with refused(federation, NotPermittedError, "was used already"):
        enrolling.redeem(token, csr=(other := _csr()), note=_request(federation, token, other, key_of(owner)))


def test_a_home_takes_no_certificate_of_another_federation(federation: Federation, other: Federation) -> None:
    federation.enrol("archive")
    with refused(federation, ConflictError, "has joined already, as archive; use another --home"):
        federation.enrol("archive", invitation=other.invitation("archive"))


def test_nobody_records_a_statement_of_another(federation: Federation) -> None:
    federation.publish_base()
    archive, thief = federation.enrol("archive"), federation.enrol("thief")
    grant = archive.consent()
    fields = {**next_fields(archive), "grant_id": grant.record_id, "effect": "future", "deadline_s": 0}
    note = note_of("consent.revoke", fields, key_of(archive))
    with calling_as(thief) as calls, refused(federation, NotPermittedError, "thief may not record a statement of"):
        calls.record(note)
    archive.opt_out()


def test_a_certificate_is_renewed_for_the_caller_alone(federation: Federation) -> None:
    owner = federation.enrol("archive")
    with calling_as(owner) as calls:
        with pytest.raises(MalformedError):
            call(calls.enrolment.Renew, enrolment_pb2.RenewRequest(csr=b""), timeout_s=TIMEOUT_S)
        reply = call(calls.enrolment.Renew, enrolment_pb2.RenewRequest(csr=_csr()), timeout_s=TIMEOUT_S)
    assert federation.coordinator.enrolment.authenticate(reply.certificate, "/concord.v1.Registry/Record") == "archive"
    with open_membership(owner.home, patience_s=0) as member:
        assert not renew_if_due(member)


def test_an_error_message_shows_no_secret(federation: Federation) -> None:
    late = federation.invitation("archive", lifetime=timedelta(seconds=-1))
    with pytest.raises(ConcordError) as caught:
        federation.enrol("archive", invitation=late)
    assert not re.search(re.escape(late.token), f"{caught.value} {late!r}")
