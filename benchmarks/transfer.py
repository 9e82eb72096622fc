"""How fast does an expert travel, each way, beside the plainest thing that gRPC with mutual TLS can do?

    python -m benchmarks.transfer --size-mib 1024        # the last line is one JSON object

Over loopback, a coordinator's daemon and an owner's client: the base comes down, an expert of about the size that is
asked for goes up, checked value by value and recorded. Beside both, in turn with them, runs the ceiling: a bare gRPC
stream of 1 MiB messages over the same TLS, SHA-256 on both ends, written and fsynced. Then the coordinator is killed
(SIGKILL) at nine tenths of an upload, and what was sent twice is counted. Memory is the peak of each process (VmHWM).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from benchmarks.machine import describe
from common.model import checkpoint
from common.model.checkpoint import ByteRange, Placed
from common.model.config import ModelConfig
from common.model.expert import EXPERT_NAME, ROUTER_NAME, base_tensors, expected_tensors, router_tensors
from common.trust.identity import Identity
from common.trust.pki import CertificateAuthority, make_csr, new_key

ROUNDS: Final = 3
CHUNK: Final = 1024 * 1024
HIDDEN: Final = 1024
LAYERS: Final = 4
KILL_AT: Final = 0.9
OWNERS: Final = ("ceiling", *(f"owner-{number}" for number in range(ROUNDS + 1)))


@dataclass(frozen=True)
class Plan:
    """What is measured, and where."""

    work: Path
    size_mib: int

    @property
    def config(self) -> ModelConfig:
        """A model whose expert has about the size that is asked for."""
        width = self.size_mib * CHUNK // (3 * HIDDEN * LAYERS * 2)
        return ModelConfig(
            vocab_size=1024, hidden_size=HIDDEN, intermediate_size=width, num_hidden_layers=LAYERS,
            num_attention_heads=8, num_key_value_heads=8, max_position_embeddings=512, dtype="bfloat16",
        )  # fmt: skip

    @property
    def home(self) -> Path:
        """The coordinator's."""
        return self.work / "coordinator"

    def owner(self, name: str) -> Path:
        """An owner's home."""
        return self.work / name

    @property
    def base_file(self) -> Path:
        """What comes down."""
        return self.work / "base" / "model.safetensors"


# What is moved


def write_model(plan: Plan) -> None:
    """A public checkpoint and an expert for every upload; finite values that do not compress, a few of them per expert
    its own, so that no upload finds its bytes there already.
    """
    base = plan.work / "base"
    base.mkdir(parents=True)
    block = _block(plan.work / "block", seed=0)
    (base / "config.json").write_bytes(plan.config.format())
    _write(base / "model.safetensors", base_tensors(plan.config), block)
    _write(base / ROUTER_NAME, router_tensors(plan.config), block)
    for number, name in enumerate(OWNERS):
        directory = plan.work / "experts" / name
        directory.mkdir(parents=True)
        _write(directory / EXPERT_NAME, expected_tensors(plan.config), _block(plan.work / "block", seed=number + 1))
        (directory / "training.json").write_text(json.dumps({"tokens": 1}))


def _block(path: Path, *, seed: int) -> Path:
    import numpy as np

    values = np.random.default_rng(seed).integers(0, 2**16, 16 * CHUNK // 2, dtype=np.uint16)
    values[(values & 0x7F80) == 0x7F80] = 0
    path.write_bytes(values.tobytes())
    return path


def _write(path: Path, specs: dict[str, Any], block: Path) -> None:
    length = block.stat().st_size

    def pieces(size: int) -> tuple[ByteRange, ...]:
        return tuple(ByteRange(block, 0, min(length, size - start)) for start in range(0, size, length))

    checkpoint.write(path, {name: Placed(spec, pieces(checkpoint.size_bytes(spec))) for name, spec in specs.items()})


# Concord


def join(plan: Plan) -> None:
    """A coordinator that has published the base, and owners that have joined and hold their experts."""
    from coordinator import home as coordinator_home
    from coordinator.config import CoordinatorSettings
    from coordinator.releases import publish_base
    from tests.federation import free_ports

    ports = free_ports(2)
    settings = CoordinatorSettings(
        federation="bench.example", origin="bench.example/log", port=ports[0], enrolment_port=ports[1]
    )
    coordinator_home.create(plan.home, settings)
    with coordinator_home.open_home(plan.home) as coordinator:
        publish_base(coordinator, plan.work / "base")
    (plan.work / "terms").write_text("For the benchmark.\n")


def enrol(plan: Plan) -> dict[str, Any]:
    """Owners join; what they hold is linked to where training would leave it."""
    from common.trust.invitation import Invitation
    from owner_client import membership
    from owner_client.config import OwnerHome
    from owner_client.retry import Retry

    for name in OWNERS[1:]:
        invitation = plan.work / f"{name}.invitation"
        _concord("coordinator", "invite", name, "--home", str(plan.home), "--output", str(invitation))
        home, given = OwnerHome(plan.owner(name)), Invitation.parse(invitation.read_bytes())
        membership.enrol(home, given, data=None, public=None, retry=Retry(patience_s=30))
    return {}


def down(plan: Plan, name: str) -> dict[str, Any]:
    """An owner fetches the base, every file of it checked."""
    from owner_client import participation

    with _member(plan, name) as member:
        begun = time.perf_counter()
        participation.fetch_base(member, on_bytes=_quiet)
        return _rate(plan.base_file.stat().st_size, time.perf_counter() - begun)


def up(plan: Plan, name: str) -> dict[str, Any]:
    """An owner's expert is checked, leaves, and is recorded; `sent_twice` is what left more than once."""
    from common.trust.manifest import digest_of_file
    from owner_client import egress, participation
    from owner_client.config import ConsentSettings

    settings = ConsentSettings(purposes=["research"], terms=plan.work / "terms")
    reads = _count_reads()
    with _member(plan, name) as member:
        base = participation.fetch_base(member, on_bytes=_quiet)
        grant = participation.consent(member, settings, base=base)
        directory = participation.expert_directory(member, base)
        directory.parent.mkdir(parents=True, exist_ok=True)
        directory.symlink_to(plan.work / "experts" / name)
        begun = time.perf_counter()
        planned = egress.plan(directory, base=base.directory)
        planned_at = time.perf_counter()
        with member.chain.turn():
            outbound = egress.release(
                planned, grant_id=grant.record_id, tokens_seen=1, chain=member.chain, reviews=member.reviews,
                ledger=member.home.ledger, to=member.settings.target,
                config_digest=digest_of_file(directory / egress.TRAINING_NAME),
            )  # fmt: skip
            reads.clear()
            sending = time.perf_counter()
            receipt = member.client.submit(outbound, on_bytes=_progress(plan))
            seconds = time.perf_counter() - sending
            member.chain.acknowledge(outbound.said, receipt=receipt)
    size = planned.entry.size
    again = max(0, len(reads) * CHUNK - size) / size
    return {**_rate(size, seconds), "check_s": round(planned_at - begun, 2), "sent_twice": round(again, 4)}


def _count_reads() -> list[str]:
    """Grows with every chunk that is read to be sent."""
    reads: list[str] = []

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and str(arguments[0]).endswith(EXPERT_NAME):
            reads.append(str(arguments[0]))

    sys.addaudithook(hook)
    return reads


def _progress(plan: Plan) -> Any:
    """Tells the parent once that the coordinator is to be killed now."""
    told: list[int] = []

    def report(done: int, total: int) -> None:
        if done >= KILL_AT * total and not told:
            told.append(done)
            (plan.work / "nearly").touch()

    return report


@contextmanager
def _member(plan: Plan, name: str) -> Iterator[Any]:
    from owner_client.config import OwnerHome
    from owner_client.membership import open_membership

    with open_membership(OwnerHome(plan.owner(name)), patience_s=120) as member:
        yield member


def _quiet(done: int, total: int) -> None:
    pass


# The ceiling


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


def ceiling(plan: Plan) -> dict[str, Any]:
    """Both ways over the bare stream; server and client are processes of their own, as Concord's are."""
    server_tls, client_tls = _identities(plan)
    (plan.work / "ceiling.pem").write_bytes(bytes(server_tls))
    (plan.work / "ceiling.ca").write_bytes(server_tls.authority)
    (plan.work / "client.pem").write_bytes(bytes(client_tls))
    port_file = plan.work / "ceiling.port"
    port_file.unlink(missing_ok=True)
    with subprocess.Popen(_stage_command(plan, "ceiling_serve", "")) as server:
        while not port_file.exists():
            time.sleep(0.05)
        try:
            return _run_stage(plan, "ceiling_client")
        finally:
            server.terminate()


def ceiling_serve(plan: Plan) -> dict[str, Any]:
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


def ceiling_client(plan: Plan) -> dict[str, Any]:
    """The other end of the ceiling."""
    from common.rpc.channel import open_channel
    from common.rpc.identity import TlsIdentity

    authority = (plan.work / "ceiling.ca").read_bytes()
    tls = TlsIdentity.parse((plan.work / "client.pem").read_bytes(), authority=authority)
    target = f"127.0.0.1:{(plan.work / 'ceiling.port').read_text()}"
    expert, found = plan.work / "experts" / "ceiling" / EXPERT_NAME, {}
    with open_channel(target, authority=authority, tls=tls) as channel:
        digest = sha256()

        def messages() -> Iterator[bytes]:
            with expert.open("rb") as file:
                while data := file.read(CHUNK):
                    digest.update(data)
                    yield data

        begun = time.perf_counter()
        reply = channel.stream_unary("/Ceiling/Up")(messages())
        found["up"] = _rate(expert.stat().st_size, time.perf_counter() - begun)
        assert reply == digest.digest(), "the bare stream lost something"
        begun, digest = time.perf_counter(), sha256()
        with (plan.work / "ceiling.down").open("wb") as file:
            for data in channel.unary_stream("/Ceiling/Down")(b""):
                digest.update(data)
                file.write(data)
            file.flush()
            os.fsync(file.fileno())
        found["down"] = _rate(plan.base_file.stat().st_size, time.perf_counter() - begun)
    for name in ("up", "down"):
        (plan.work / f"ceiling.{name}").unlink()
    return found


def _rate(size: int, seconds: float) -> dict[str, float]:
    return {"mb_per_s": round(size / seconds / 1e6, 1)}


# What orchestrates

STAGES: Final = {
    stage.__name__: stage for stage in (enrol, down, up, ceiling, ceiling_serve, ceiling_client, write_model, join)
}


def _stage_command(plan: Plan, stage: str, argument: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks.transfer", "--size-mib", str(plan.size_mib),
            "--work", str(plan.work), "--stage", stage, *([argument] if argument else [])]  # fmt: skip


def _run_stage(plan: Plan, stage: str, argument: str = "") -> dict[str, Any]:
    done = subprocess.run(_stage_command(plan, stage, argument), stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _concord(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "concord", *arguments], check=True, stdout=subprocess.DEVNULL)


@contextmanager
def _coordinator(plan: Plan) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-m", "concord", "coordinator", "serve", "--home", str(plan.home)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "serving" in line:
                break
        try:
            yield process
        finally:
            process.terminate()


def _peak_mb(pid: int | str) -> int:
    """The most memory that a process ever had."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // 1024


def _measure(plan: Plan) -> dict[str, Any]:
    for stage in ("write_model", "join"):
        print(stage, flush=True)
        _run_stage(plan, stage)
    ups, downs, ceilings, peaks = [], [], [], []
    with _coordinator(plan) as server:
        _run_stage(plan, "enrol")
        for number in range(ROUNDS):
            name = f"owner-{number}"
            print("round", number, flush=True)
            ceilings.append(_run_stage(plan, "ceiling"))
            downs.append(_run_stage(plan, "down", name))
            ceilings.append(_run_stage(plan, "ceiling"))
            ups.append(_run_stage(plan, "up", name))
        peaks.append(_peak_mb(server.pid))
    print("killed at", KILL_AT, flush=True)
    twice = _killed(plan, OWNERS[-1])
    found = {}
    for way, measured in (("up", ups), ("down", downs)):
        limit = statistics.median(each[way]["mb_per_s"] for each in ceilings)
        rate = statistics.median(each["mb_per_s"] for each in measured)
        found[way] = {
            "mb_per_s": rate,
            "ceiling_mb_per_s": limit,
            "ratio_to_ceiling": round(rate / limit, 2),
            "client_peak_rss_mb": max(each["peak_mb"] for each in measured),
            "server_peak_rss_mb": max(peaks),
        }
    found["up"]["check_s"] = statistics.median(each["check_s"] for each in ups)
    return {**found, "resent_fraction_after_kill": twice}


def _killed(plan: Plan, name: str) -> float:
    """The coordinator is killed near the end of an upload and started again: what was sent twice."""
    nearly = plan.work / "nearly"
    nearly.unlink(missing_ok=True)
    with _coordinator(plan) as first:
        _run_stage(plan, "down", name)
        sending = subprocess.Popen(_stage_command(plan, "up", name), stdout=subprocess.PIPE, text=True)
        while not nearly.exists() and sending.poll() is None:
            time.sleep(0.01)
        first.kill()
        first.wait()
    with _coordinator(plan), sending:
        out, _ = sending.communicate()
    return float(json.loads(out.splitlines()[-1])["sent_twice"])


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep
        return
    with tempfile.TemporaryDirectory(prefix="concord-transfer-") as folder:
        yield Path(folder)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size-mib", type=int, default=1024)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--stage", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stage:
        name, *rest = arguments.stage
        found = STAGES[name](Plan(arguments.work, arguments.size_mib), *rest) or {}
        print(json.dumps({**found, "peak_mb": _peak_mb("self")}))
        return
    with _folder(arguments.work) as work:
        result = _measure(Plan(work, arguments.size_mib))
    print(json.dumps({"benchmark": "transfer", "machine": describe(), "size_mib": arguments.size_mib, **result}))


if __name__ == "__main__":
    main()
