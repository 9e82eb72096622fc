"""The gate to Flower: who gets through to the SuperLink, and to what of it; and what a node may hand to a daemon."""

from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import pytest

from common.errors import ConcordError, ConflictError, MalformedError, UnavailableError
from common.flower_messages import Ask, Offer
from common.forwarding import AnsweringServer, Asked, Reply, forward
from common.rpc.identity import TlsIdentity
from common.rpc.tls_context import client_context, loopback_identity, server_context, trusting
from common.trust.pki import new_key, public_key
from coordinator.flower_dispatch import FlowerDispatch
from coordinator.flower_gate import NODE_KEY, REFUSED, FlowerGate
from coordinator.flower_nodes import FlowerNodes, Node
from coordinator.server_identity import ServerIdentity
from owner_client import campaigns
from owner_client.campaign_folder import folders
from owner_client.flower import let_in
from owner_client.flower_exchange import exchange
from tests.campaigns.test_worker import ask
from tests.federation import Federation
from tests.raw_calls import tls_of

PATH = "/v1/fleet/pull-messages"
HOST = "127.0.0.1"


class Nodes(FlowerNodes):
    """What is registered, without a SuperLink."""

    def __init__(self, known: dict[str, bytes]) -> None:
        self._known = known

    def by_owner(self) -> dict[str, Node]:
        return {owner: Node(number, key.decode()) for number, (owner, key) in enumerate(self._known.items())}


@contextmanager
def gate_of(federation: Federation, known: dict[str, bytes]) -> Iterator[tuple[int, list[Asked]]]:
    """A gate before something that answers all; its port, and what came through."""
    inside, came = loopback_identity(), list[Asked]()

    def answer(asked: Asked) -> Reply:
        came.append(asked)
        return Reply(200, b"inside")

    here = server_context(inside, require_client=False)
    with AnsweringServer(HOST, 0, context=lambda: here, answer=answer) as superlink:
        context = trusting(inside.authority)
        enrolment = federation.coordinator.enrolment
        gate = FlowerGate(enrolment, Nodes(known), port=superlink.port, context=context)
        shown = server_context(ServerIdentity(federation.coordinator)(), require_client=True)
        with AnsweringServer(HOST, 0, context=lambda: shown, answer=gate) as server:
            yield server.port, came


def knock(port: int, tls: TlsIdentity, *, path: str = PATH, key: bytes) -> Reply:
    """Come to the gate."""
    headers = {NODE_KEY: b64encode(key).decode()}
    return forward(Asked(path, headers, b"body"), host=HOST, port=port, context=client_context(tls))


def test_an_owner_gets_through_with_its_own_key_to_the_fleet_alone(consortium: Federation) -> None:
    owners = {name: consortium.enrol(name) for name in ("archive", "hospital")}
    keys = {name: public_key(new_key()) for name in owners}
    ours = tls_of(owners["archive"])
    with gate_of(consortium, keys) as (port, came):
        assert knock(port, ours, key=keys["archive"]).body == b"inside"
        assert [asked.body for asked in came] == [b"body"]
        for path in ("/v1/control/start-run", "/v1/runtime/x", "/v1/fleet/../control/list-runs", "/v1/fleet/", "//x"):
            reply = knock(port, ours, path=path, key=keys["archive"])
            assert (reply.status, reply.headers["concord-refused"]) == (503, REFUSED["concord-refused"])
            assert b"is not for nodes" in reply.body
        for other in (keys["hospital"], public_key(new_key())):
            assert b"does not speak for its own node" in knock(port, ours, key=other).body
        consortium.coordinator.enrolment.revoke("archive")
        assert b"revoked" in knock(port, ours, key=keys["archive"]).body
    assert len(came) == 1


def test_strangers_do_not_get_a_word_in(consortium: Federation, tmp_path: Path) -> None:
    from tests.federation import running_federation

    key = public_key(new_key())
    authority = consortium.coordinator.authority.certificate_pem
    with running_federation(tmp_path / "there") as there:
        stranger = tls_of(there.enrol("archive"))
    consortium.enrol("archive")
    with gate_of(consortium, {"archive": key}) as (port, came):
        with pytest.raises(UnavailableError):
            knock(port, TlsIdentity(stranger.key, stranger.certificate, authority), key=key)
        with pytest.raises(UnavailableError):
            forward(Asked(PATH, {}, b""), host=HOST, port=port, context=trusting(authority))
    assert came == []


def test_a_node_is_not_registered_where_flower_is_off_or_by_another_kind_of_key(consortium: Federation) -> None:
    nodes = FlowerNodes(consortium.coordinator.home, consortium.coordinator.settings)
    with pytest.raises(ConflictError, match="do not run over Flower here"):
        nodes.register("archive", public_key(new_key()))
    for bad in (b"", b"x", public_key(new_key()) + b"\n"):
        with pytest.raises(MalformedError, match="a node's key is a P-256 public key"):
            nodes.register("archive", bad)


def test_a_node_is_not_sent_elsewhere() -> None:
    away = {"location": "http://elsewhere.example/", "content-type": "application/protobuf", "flwr-version": "1"}
    assert let_in(Reply(307, b"", away)).status == 503
    assert let_in(Reply(200, b"x", away)) == Reply(200, b"x", {name: away[name] for name in list(away)[1:]})


def test_offers_are_verified_as_those_that_the_daemon_asks_for(consortium: Federation) -> None:
    owner, coordinator = consortium.enrol("archive"), consortium.coordinator
    dispatch = FlowerDispatch(coordinator.campaigns, coordinator.registry)
    assert dispatch.ask("archive") is None
    campaign = ask(consortium)
    good = dispatch.ask("archive")
    assert good is not None
    kept = sorted(owner.home.statements.glob("*.receipt"))[0].read_bytes()
    offer = Ask.parse(good).offers[0]
    changed = offer.note.replace(b'"quorum":1', b'"quorum":2')
    assert changed != offer.note
    for bad in (Offer(note=changed, receipt=offer.receipt), Offer(note=offer.note, receipt=kept)):
        with pytest.raises(ConcordError):
            exchange(owner.home, bytes(Ask(offers=(bad,))), stop=Event())
        assert folders(owner.home) == []
    for _ in range(2):
        dispatch.heard("archive", exchange(owner.home, good, stop=Event()))
    assert campaigns.state_of(owner.home, campaign.record_id) == "offered"
    assert coordinator.campaigns.table(campaign.record_id)[0].state == "offered"
