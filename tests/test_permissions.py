"""Every call of every service with every kind of caller: the one table decides; a call without a rule is nobody's."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import product

import grpc
import pytest

from common.errors import ConcordError, NotPermittedError
from common.rpc.channel import call, error_of, open_channel
from common.rpc.identity import TlsIdentity
from common.trust.identity import INVITED, Identity
from common.trust.pki import make_csr, new_key
from coordinator.permissions import OPEN, PERMISSIONS, check_permitted
from protos import campaign_pb2, enrolment_pb2, registry_pb2, transfer_pb2
from tests.federation import FEDERATION, Federation
from tests.raw_calls import calling, tls_of

FILES = (campaign_pb2, enrolment_pb2, registry_pb2, transfer_pb2)
METHODS = {
    f"/{service.full_name}/{method.name}": method
    for file in FILES
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
CALLERS = (*INVITED, "nobody", "lapsed", "revoked", "not ours")


def test_every_call_has_a_rule_and_every_rule_a_call() -> None:
    assert METHODS.keys() == PERMISSIONS.keys()
    assert PERMISSIONS.keys() >= OPEN


def test_what_is_in_no_rule_is_nobodys() -> None:
    for role in INVITED:
        with pytest.raises(NotPermittedError, match="is for nobody"):
            check_permitted(Identity(FEDERATION, role, "kim"), "/concord.v1.Registry/Erase")


def _invited(federation: Federation, role: str, *, name: str = "kim") -> TlsIdentity:
    """A certificate in another role than an owner's, by an invitation."""
    party, key = f"{role}/{name}", new_key()
    token = federation.coordinator.enrolment.invite(party, lifetime=timedelta(minutes=5))
    authority = federation.coordinator.authority.certificate_pem
    with calling(f"127.0.0.1:{federation.ports[1]}", authority=authority, tls=None) as calls:
        certificate = calls.redeem(token, csr=make_csr(key), note=b"").certificate
    return TlsIdentity(key, certificate, authority)


def _lapsed(federation: Federation) -> TlsIdentity:
    """Good at the handshake as far as gRPC looks; its time is over for us."""
    key, now = new_key(), datetime.now(UTC)
    authority = federation.coordinator.authority
    certificate = authority.issue(
        make_csr(key), identity=Identity.owner(FEDERATION, party="archive"), not_before=now - timedelta(minutes=50),
        not_after=now - timedelta(minutes=1),
    )  # fmt: skip
    return TlsIdentity(key, certificate, authority.certificate_pem)


@pytest.fixture(scope="module")
def callers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Federation, dict[str, TlsIdentity | None]]]:
    """Somebody of every kind."""
    from tests.federation import running_federation

    with running_federation(tmp_path_factory.mktemp("here")) as here:
        here.publish_base()
        with running_federation(tmp_path_factory.mktemp("there")) as there:
            stranger = tls_of(there.enrol("archive"))
        found: dict[str, TlsIdentity | None] = {"owner": tls_of(here.enrol("archive")), "nobody": None}
        found |= {role: _invited(here, role) for role in INVITED if role != "owner"}
        found["revoked"] = _invited(here, "admin", name="gone")
        here.coordinator.enrolment.revoke("admin/gone")
        found["lapsed"] = _lapsed(here)
        authority = here.coordinator.authority.certificate_pem
        found["not ours"] = TlsIdentity(stranger.key, stranger.certificate, authority)
        yield here, found


@pytest.mark.parametrize(("who", "method"), list(product(CALLERS, METHODS)))
def test_the_table_decides(who: str, method: str, callers: tuple[Federation, dict[str, TlsIdentity | None]]) -> None:
    here, identities = callers
    tls = identities[who]
    port = here.ports[1] if method in OPEN or who == "nobody" else here.ports[0]
    with open_channel(f"127.0.0.1:{port}", authority=here.coordinator.authority.certificate_pem, tls=tls) as channel:
        failed = _failure(channel, method)
    permitted = method in OPEN or who in PERMISSIONS[method]
    if who in ("lapsed", "not ours") and method not in OPEN:  # refused at the handshake, before there is a call
        assert failed is not None
        assert failed.code() == grpc.StatusCode.UNAVAILABLE
    elif not permitted:
        assert isinstance(error_of(failed), NotPermittedError) if failed is not None else False
    elif failed is not None:
        assert failed.code() not in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNIMPLEMENTED)
        assert "is for" not in str(failed.details())


def _failure(channel: grpc.Channel, name: str) -> grpc.RpcError | None:
    """How an empty request to this method fails, if it does."""
    method = METHODS[name]
    kind = "_".join("stream" if each else "unary" for each in (method.client_streaming, method.server_streaming))
    stub = getattr(channel, kind)(name, request_serializer=None, response_deserializer=None)
    request = iter([b""]) if method.client_streaming else b""
    try:
        found = stub(request, timeout=30)
        if method.server_streaming:
            list(found)
    except grpc.RpcError as error:
        return error
    return None


def test_an_auditor_called_as_an_owner_is_not_that_owner(
    callers: tuple[Federation, dict[str, TlsIdentity | None]],
) -> None:
    here, _ = callers
    tls = _invited(here, "auditor", name="archive")
    assert here.coordinator.enrolment.authenticate(tls.certificate, "/concord.v1.Registry/GetBase") == "auditor/archive"
    here.coordinator.enrolment.revoke("auditor/archive")
    with pytest.raises(ConcordError, match="revoked"):
        here.coordinator.enrolment.authenticate(tls.certificate, "/concord.v1.Registry/GetBase")


def test_what_auditors_read_is_counted(callers: tuple[Federation, dict[str, TlsIdentity | None]]) -> None:
    here, identities = callers
    reads, tls = here.coordinator.enrolment.reads, identities["auditor"]
    reads.write()
    before = reads.by_party().get("auditor/kim", 0)
    target = f"127.0.0.1:{here.ports[0]}"
    with calling(target, authority=here.coordinator.authority.certificate_pem, tls=tls) as calls:
        for _ in range(3):
            call(calls.registry.GetCheckpoint, registry_pb2.GetCheckpointRequest(), timeout_s=30)
    reads.write()
    assert reads.by_party()["auditor/kim"] == before + 3
    assert "archive" not in reads.by_party()


def test_an_invitation_in_one_role_is_good_in_no_other(federation: Federation) -> None:
    token = federation.coordinator.enrolment.invite("auditor/kim", lifetime=timedelta(minutes=5))
    authority = federation.coordinator.authority.certificate_pem
    with calling(f"127.0.0.1:{federation.ports[1]}", authority=authority, tls=None) as calls:
        owners = federation.coordinator.enrolment.invite("kim", lifetime=timedelta(minutes=5))
        with pytest.raises(NotPermittedError, match="or is an owner's"):
            calls.redeem(owners, csr=make_csr(new_key()), note=b"")
        with pytest.raises(NotPermittedError, match="not from this coordinator"):
            calls.redeem("x" * 43, csr=make_csr(new_key()), note=b"")
        csr = make_csr(new_key())
        first, again = (calls.redeem(token, csr=csr, note=b"").certificate for _ in range(2))
        with pytest.raises(NotPermittedError, match="used already"):
            calls.redeem(token, csr=make_csr(new_key()), note=b"")
    for certificate in (first, again):
        method = "/concord.v1.Registry/GetCheckpoint"
        assert federation.coordinator.enrolment.authenticate(certificate, method) == "auditor/kim"
