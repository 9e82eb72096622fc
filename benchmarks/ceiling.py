"""The ceiling: the plainest thing that gRPC with mutual TLS can do with a file.

A bare stream of 1 MiB messages over the same TLS as Concord's, SHA-256 on both ends, written and fsynced before it is
answered. No resume, no checks of values, no record: what Concord does beside is what a ratio to this measures.
"""

import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

from benchmarks.moving import CHUNK, Plan, rate, run_stage, start_stage
from common.trust.identity import Identity
from common.trust.pki import CertificateAuthority, make_csr, new_key


def _identities(plan: Plan) -> tuple[Any, Any]:
    """A server's and a client's TLS identity, of the same kind as Concord's."""
    from common.rpc.identity import TlsIdentity

    now = datetime.now(UTC)
    authority = CertificateAuthority.create("bench.example", now=now)

    def issue(identity: Identity, names: tuple[str, ...]) -> TlsIdentity:
        key = new_key()
        certificate = authority.issue(
            make_csr(key), identity=identity, not_before=now, not_after=now + timedelta(hours=3), server_names=names
        )
        return TlsIdentity(key, certificate, authority.certificate_pem)

    server = issue(Identity.coordinator("bench.example"), ("127.0.0.1",))
    return server, issue(Identity.owner("bench.example", party="ceiling"), ())


def measure(plan: Plan) -> dict[str, Any]:
    """Both ways over the bare stream; server and client are processes of their own, as Concord's are."""
    server_tls, client_tls = _identities(plan)
    (plan.work / "ceiling.pem").write_bytes(bytes(server_tls))
    (plan.work / "ceiling.ca").write_bytes(server_tls.authority)
    (plan.work / "client.pem").write_bytes(bytes(client_tls))
    port_file = plan.work / "ceiling.port"
    port_file.unlink(missing_ok=True)
    with start_stage(plan, serve) as server:
        while not port_file.exists():
            time.sleep(0.05)
        try:
            return run_stage(plan, send_and_fetch)
        finally:
            server.terminate()


def serve(plan: Plan) -> dict[str, Any]:
    """Receive and send files with nothing but TLS, SHA-256 and fsync."""
    from concurrent import futures

    import grpc

    from common.rpc import channel
    from common.rpc.identity import TlsIdentity

    def receive(messages: Iterator[bytes], context: Any) -> bytes:
        digest = sha256()
        with (plan.work / "ceiling.up").open("wb") as file:
            for message in messages:
                digest.update(message)
                file.write(message)
            file.flush()
            os.fsync(file.fileno())
        return digest.digest()

    def send(request: bytes, context: Any) -> Iterator[bytes]:
        with plan.base_file.open("rb") as file:
            while data := file.read(CHUNK):
                yield data

    handlers = {
        "Up": grpc.stream_unary_rpc_method_handler(receive),
        "Down": grpc.unary_stream_rpc_method_handler(send),
    }
    server = grpc.server(futures.ThreadPoolExecutor(4), options=[("grpc.max_receive_message_length", 4 * CHUNK)])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Ceiling", handlers),))
    tls = TlsIdentity.parse((plan.work / "ceiling.pem").read_bytes(), authority=(plan.work / "ceiling.ca").read_bytes())
    port = channel.listen(server, "127.0.0.1:0", tls=tls, require_client=True)
    server.start()
    (plan.work / "ceiling.port.new").write_text(str(port))
    (plan.work / "ceiling.port.new").replace(plan.work / "ceiling.port")
    server.wait_for_termination()
    return {}


def send_and_fetch(plan: Plan) -> dict[str, Any]:
    """The other end of the ceiling."""
    from common.rpc.channel import open_channel
    from common.rpc.identity import TlsIdentity

    authority = (plan.work / "ceiling.ca").read_bytes()
    tls = TlsIdentity.parse((plan.work / "client.pem").read_bytes(), authority=authority)
    target = f"127.0.0.1:{(plan.work / 'ceiling.port').read_text()}"
    expert, found = plan.expert("ceiling"), {}
    with open_channel(target, authority=authority, tls=tls) as channel:
        digest = sha256()

        def messages() -> Iterator[bytes]:
            with expert.open("rb") as file:
                while data := file.read(CHUNK):
                    digest.update(data)
                    yield data

        begun = time.perf_counter()
        reply = channel.stream_unary("/Ceiling/Up")(messages())
        found["up"] = rate(expert.stat().st_size, time.perf_counter() - begun)
        assert reply == digest.digest(), "the bare stream lost something"
        begun, digest = time.perf_counter(), sha256()
        with (plan.work / "ceiling.down").open("wb") as file:
            for data in channel.unary_stream("/Ceiling/Down")(b""):
                digest.update(data)
                file.write(data)
            file.flush()
            os.fsync(file.fileno())
        found["down"] = rate(plan.base_file.stat().st_size, time.perf_counter() - begun)
    for name in ("up", "down"):
        (plan.work / f"ceiling.{name}").unlink()
    return found
