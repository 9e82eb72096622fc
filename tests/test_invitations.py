"""Invitations in every role, over the port where strangers redeem them: one winner whoever races, and nothing for
whoever comes late, comes from elsewhere or has stolen one that was used.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Barrier

import pytest

from common.errors import ConflictError, NotPermittedError, UnavailableError
from common.rpc.channel import call
from common.rpc.identity import TlsIdentity
from common.trust.note import SigningKey
from common.trust.pki import identity_of, make_csr, new_key
from common.trust.rules import owner_key_name
from common.trust.statements import CertRevoke, format_time, new_record_id
from protos import registry_pb2
from tests.federation import FEDERATION, Federation, running_federation
from tests.raw_calls import TIMEOUT_S, RawCalls, calling, note_of, refused

ROLES = ("owner", "admin", "auditor", "witness")
INVITATIONS, RACERS, CONNECTIONS = 20, 50, 5


@dataclass(frozen=True)
class Newcomer:
    """Somebody with keys who would join as `caller`."""

    caller: str
    key: bytes
    csr: bytes
    note: bytes

    @classmethod
    def of(cls, caller: str) -> "Newcomer":
        """With keys of its own."""
        key = new_key()
        return cls(caller, key, make_csr(key), b"" if "/" in caller else _enrolment(caller))

    def redeem(self, calls: RawCalls, token: str) -> bytes:
        """The certificate for an invitation; while the coordinator is busy it is asked again, as a client does."""
        for _ in range(100):
            try:
                return bytes(calls.redeem(token, csr=self.csr, note=self.note).certificate)
            except UnavailableError:
                continue
        raise AssertionError("it stayed busy")


def _enrolment(name: str) -> bytes:
    key, now = SigningKey.generate(owner_key_name(FEDERATION, name)), datetime.now(UTC)
    fields = {
        "federation": FEDERATION, "origin": f"{FEDERATION}/log", "party": name, "key_id": key.verifier.key_id,
        "record_id": new_record_id(now), "seq": 0, "prev": None, "issued_at": format_time(now),
        "public_key": str(key.verifier),
    }  # fmt: skip
    return note_of("owner.enrol", fields, key)


def _caller(role: str, name: str) -> str:
    return name if role == "owner" else f"{role}/{name}"


def _invite(federation: Federation, caller: str, *, lifetime: timedelta = timedelta(minutes=5)) -> str:
    return federation.coordinator.enrolment.invite(caller, lifetime=lifetime)


@pytest.fixture
def redeeming(federation: Federation) -> Iterator[list[RawCalls]]:
    """Several connections of strangers."""
    authority = federation.coordinator.authority.certificate_pem
    target = f"127.0.0.1:{federation.ports[1]}"
    with ExitStack() as stack:
        yield [stack.enter_context(calling(target, authority=authority, tls=None)) for _ in range(CONNECTIONS)]


@pytest.mark.parametrize("role", ROLES)
def test_of_fifty_racers_for_each_invitation_one_wins(
    role: str, federation: Federation, redeeming: list[RawCalls]
) -> None:
    with ThreadPoolExecutor(RACERS) as pool:
        for number in range(INVITATIONS // len(ROLES)):
            caller = _caller(role, f"kim-{number}")
            token, begin = _invite(federation, caller), Barrier(RACERS)

            def race(place: int, caller: str = caller, token: str = token, begin: Barrier = begin) -> bytes | None:
                racer = Newcomer.of(caller)
                begin.wait(60)
                try:
                    return racer.redeem(redeeming[place % CONNECTIONS], token)
                except (NotPermittedError, ConflictError):
                    return None

            won = [each for each in pool.map(race, range(RACERS)) if each is not None]
            assert len(won) == 1
            assert identity_of(won[0]).identity.caller == caller
    issued = federation.coordinator.enrolment.latest_certificates()
    assert len(issued) == INVITATIONS // len(ROLES)
    assert federation.coordinator.registry.size() == (len(issued) if role == "owner" else 0)


@pytest.mark.parametrize("role", ROLES)
def test_one_that_has_expired_is_refused(role: str, federation: Federation, redeeming: list[RawCalls]) -> None:
    caller = _caller(role, "kim")
    late = _invite(federation, caller, lifetime=timedelta(seconds=-1))
    with refused(federation, NotPermittedError, "has expired; ask the admin for a new one"):
        Newcomer.of(caller).redeem(redeeming[0], late)
    assert Newcomer.of(caller).redeem(redeeming[0], _invite(federation, caller))


@pytest.mark.parametrize("role", ROLES)
def test_one_of_another_coordinator_is_refused(
    role: str, federation: Federation, redeeming: list[RawCalls], tmp_path: Path
) -> None:
    caller = _caller(role, "kim")
    with running_federation(tmp_path / "other") as other:
        foreign = _invite(other, caller)
    with refused(federation, NotPermittedError, "not from this coordinator"):
        Newcomer.of(caller).redeem(redeeming[0], foreign)
    assert federation.coordinator.enrolment.latest_certificates() == {}


@pytest.mark.parametrize("role", ROLES)
def test_one_that_was_stolen_is_good_once_and_what_it_bought_can_be_ended(
    role: str, federation: Federation, redeeming: list[RawCalls]
) -> None:
    caller = _caller(role, "kim")
    token, thief, kim = _invite(federation, caller), Newcomer.of(caller), Newcomer.of(caller)
    stolen = thief.redeem(redeeming[0], token)
    with refused(federation, NotPermittedError, "was used already; ask the admin for a new one"):
        kim.redeem(redeeming[0], token)  # so Kim knows, and tells the admin
    _call(federation, thief, stolen)
    if role == "owner":
        federation.coordinator.registry.issue(CertRevoke, owner=caller)
    else:
        federation.coordinator.enrolment.revoke(caller)
    with pytest.raises(NotPermittedError, match="is revoked"):
        _call(federation, thief, stolen)
    with refused(federation, NotPermittedError, "were revoked since this invitation was used"):
        thief.redeem(redeeming[0], token)


@pytest.mark.parametrize("role", ROLES)
def test_a_request_that_was_overheard_gives_a_certificate_for_its_own_key_alone(
    role: str, federation: Federation, redeeming: list[RawCalls]
) -> None:
    caller = _caller(role, "kim")
    token, kim, thief = _invite(federation, caller), Newcomer.of(caller), Newcomer.of(caller)
    certificate = kim.redeem(redeeming[0], token)
    again = kim.redeem(redeeming[1], token)  # as sent before, by whoever has it
    _call(federation, kim, again)
    with pytest.raises(UnavailableError):
        _call(federation, thief, certificate)
    with refused(federation, NotPermittedError, "was used already"):
        thief.redeem(redeeming[0], token)


def _call(federation: Federation, who: Newcomer, certificate: bytes) -> None:
    """A call that everybody may make who has joined, with this certificate and that one's key."""
    authority = federation.coordinator.authority.certificate_pem
    tls = TlsIdentity(who.key, certificate, authority)
    with calling(f"127.0.0.1:{federation.ports[0]}", authority=authority, tls=tls) as calls:
        call(calls.registry.GetCheckpoint, registry_pb2.GetCheckpointRequest(), timeout_s=TIMEOUT_S)
