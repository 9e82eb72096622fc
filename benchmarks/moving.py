"""What the benchmarks of transfer have in common: a consortium on loopback, and its processes.

Every part of a measurement is a stage: a function that runs in a process of its own (`run_stage`), so that memory and
kills are one process's. A stage's last line is a JSON object with what it found and the most memory that it had.
"""

import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Timer
from typing import Any, Final

from common.model import checkpoint
from common.model.checkpoint import ByteRange, Placed
from common.model.config import ModelConfig
from common.model.expert import EXPERT_NAME, ROUTER_NAME, base_tensors, expected_tensors, router_tensors

CHUNK: Final = 1024 * 1024
HIDDEN: Final = 1024
LAYERS: Final = 4
_LARGEST_DELAY_S: Final = 0.05


@dataclass(frozen=True)
class Plan:
    """What is measured, and where."""

    work: Path
    size_mib: int
    num_owners: int = 0
    certificate_hours: float = 24.0
    host: str = "127.0.0.1"
    """Where the coordinator listens and owners dial."""
    within: tuple[str, ...] = ()
    """What to put before the command of a stage or a coordinator, so that it runs in another place."""

    @property
    def config(self) -> ModelConfig:
        """A model whose expert has about the size that is asked for."""
        layers = LAYERS * -(-self.size_mib // 1024)  # deeper, not wider: a configuration's width has a limit
        width = max(1, self.size_mib * CHUNK // (3 * HIDDEN * layers * 2))
        return ModelConfig(
            vocab_size=1024, hidden_size=HIDDEN, intermediate_size=width, num_hidden_layers=layers,
            num_attention_heads=8, num_key_value_heads=8, max_position_embeddings=512, dtype="bfloat16",
        )  # fmt: skip

    @property
    def owners(self) -> list[str]:
        """Their names."""
        return [f"owner-{number}" for number in range(self.num_owners)]

    @property
    def home(self) -> Path:
        """The coordinator's."""
        return self.work / "coordinator"

    def owner(self, name: str) -> Path:
        """An owner's home."""
        return self.work / name

    def expert(self, name: str) -> Path:
        """The expert that an owner, or the ceiling, sends."""
        return self.work / "experts" / name / EXPERT_NAME

    @property
    def base_file(self) -> Path:
        """What comes down."""
        return self.work / "base" / "model.safetensors"

    def sent(self, name: str) -> Path:
        """Grows by a byte with every chunk that an owner reads to send it, through kills."""
        return self.work / f"{name}.sent"


# What is moved


def write_base(plan: Plan) -> None:
    """A public checkpoint of finite values that do not compress."""
    base = plan.work / "base"
    base.mkdir(parents=True)
    block = _block(plan.work / "block", seed=0)
    (base / "config.json").write_bytes(plan.config.format())
    _write(plan.base_file, base_tensors(plan.config), block)
    _write(base / ROUTER_NAME, router_tensors(plan.config), block)


def write_expert(plan: Plan, name: str) -> Path:
    """An expert unlike every other one: no upload finds its bytes there already."""
    path = plan.expert(name)
    path.parent.mkdir(parents=True)
    _write(path, expected_tensors(plan.config), _block(plan.work / "block", seed=int.from_bytes(name.encode())))
    (path.parent / "training.json").write_text(json.dumps({"tokens": 1}))
    return path


def drop_from_page_cache(*paths: Path) -> None:
    """Put files on the disk alone: what is measured then reads them from there, whatever was read or written before."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


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


# A consortium


def found(plan: Plan) -> None:
    """Write the base, and make a coordinator that has published it."""
    write_base(plan)
    run_stage(plan, join)


def join(plan: Plan) -> None:
    """A coordinator that has published the base."""
    from coordinator import home as coordinator_home
    from coordinator.config import CoordinatorSettings
    from coordinator.releases import publish_base
    from tests.federation import free_ports

    ports = free_ports(2)
    settings = CoordinatorSettings(
        federation="bench.example", origin="bench.example/log", port=ports[0], enrolment_port=ports[1],
        host=plan.host, certificate_hours=plan.certificate_hours, threads=256,
    )  # fmt: skip
    coordinator_home.create(plan.home, settings)
    with coordinator_home.open_home(plan.home) as coordinator:
        publish_base(coordinator, plan.work / "base")
    (plan.work / "terms").write_text("For the benchmark.\n")


def enrol(plan: Plan, *names: str) -> None:
    """Owners join, while the coordinator serves."""
    from common.trust.invitation import Invitation
    from owner_client import membership
    from owner_client.config import OwnerHome
    from owner_client.retry import Retry

    for name in names:
        invitation = plan.work / f"{name}.invitation"
        concord("coordinator", "invite", name, "--home", str(plan.home), "--output", str(invitation))
        given = Invitation.parse(invitation.read_bytes())
        membership.enrol(OwnerHome(plan.owner(name)), given, data=None, public=None, retry=Retry(patience_s=30))


def concord(*arguments: str) -> None:
    """Run a command."""
    subprocess.run([sys.executable, "-m", "concord", *arguments], check=True, stdout=subprocess.DEVNULL)


@contextmanager
def serving(plan: Plan) -> Iterator["subprocess.Popen[str]"]:
    """The coordinator's daemon, which may be killed within the block."""
    command = [*plan.within, sys.executable, "-m", "concord", "coordinator", "serve", "--home", str(plan.home)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "serving" in line:
                break
        try:
            yield process
        finally:
            process.terminate()


# What owners do


@contextmanager
def member_of(plan: Plan, name: str) -> Iterator[Any]:
    """An owner's connection, which waits long for its coordinator."""
    from owner_client.config import OwnerHome
    from owner_client.membership import open_membership

    with open_membership(OwnerHome(plan.owner(name)), patience_s=300) as member:
        yield member


def down(plan: Plan, name: str) -> dict[str, Any]:
    """An owner fetches the base, every file of it checked."""
    from owner_client import participation

    with member_of(plan, name) as member:
        begun = time.perf_counter()
        participation.fetch_base(member, on_bytes=quiet)
        return rate(plan.base_file.stat().st_size, time.perf_counter() - begun)


def up(plan: Plan, name: str, at_chunk: str = "", *victims: str) -> dict[str, Any]:
    """An owner's expert is checked, leaves and is recorded; `check_s` is what it takes before, and not in the rate.

    Once the owner reads its chunk number `at_chunk`, the processes `victims` are killed: ids, or `self`.
    """
    with member_of(plan, name) as member:
        begun = time.perf_counter()
        planned = prepare(plan, member, name)
        check_s = round(time.perf_counter() - begun, 2)
        _count_chunks(plan.sent(name), int(at_chunk or -1), victims)
        seconds = submit(member, planned)
    return {**rate(planned.entry.size, seconds), "check_s": check_s, "seconds": round(seconds, 1)}


def prepare(plan: Plan, member: Any, name: str) -> Any:
    """Fetch the base, consent, have the expert where training would leave it, and check it."""
    from owner_client import egress, participation
    from owner_client.config import ConsentSettings

    base = participation.fetch_base(member, on_bytes=quiet)
    if participation.grant_in_force(member.chain, base_digest=base.digest) is None:
        settings = ConsentSettings(purposes=["research"], terms=plan.work / "terms")
        participation.consent(member, settings, base=base)
    directory = participation.expert_directory(member, base)
    if not directory.exists():
        directory.parent.mkdir(parents=True, exist_ok=True)
        directory.symlink_to(plan.expert(name).parent)
    return egress.plan(directory, base=base.directory)


def submit(member: Any, planned: Any) -> float:
    """Release and upload what was planned; the seconds of the upload with its receipt."""
    from common.trust.manifest import digest_of_file
    from owner_client import egress, participation

    base_digest = participation.fetch_base(member, on_bytes=quiet).digest
    grant = participation.grant_in_force(member.chain, base_digest=base_digest)
    assert grant is not None, "consented when it was prepared"
    with member.chain.turn():
        outbound = egress.release(
            planned, grant_id=grant.record_id, tokens_seen=1, chain=member.chain, reviews=member.reviews,
            ledger=member.home.ledger, to=member.settings.target,
            config_digest=digest_of_file(planned.path.parent / egress.TRAINING_NAME),
        )  # fmt: skip
        begun = time.perf_counter()
        receipt = member.client.submit(outbound, on_bytes=quiet)
        seconds = time.perf_counter() - begun
        member.chain.acknowledge(outbound.said, receipt=receipt)
    return seconds


def _count_chunks(path: Path, at_chunk: int, victims: tuple[str, ...]) -> None:
    """Write a byte for every chunk that is read to be sent; at the given one begin to kill."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    count = os.fstat(descriptor).st_size

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event == "open" and str(arguments[0]).endswith(EXPERT_NAME):
            os.write(descriptor, b".")
            count += 1
            if count == at_chunk:
                Timer(random.uniform(0, _LARGEST_DELAY_S), kill, victims).start()

    sys.addaudithook(hook)


def kill(*victims: str) -> None:
    """Kill processes by id, this one last."""
    for victim in sorted(victims, key=lambda each: each == "self"):
        with suppress(ProcessLookupError):
            os.kill(os.getpid() if victim == "self" else int(victim), signal.SIGKILL)


Process = subprocess.Popen[str]


def quiet(done: int, total: int) -> None:
    """Say nothing."""


def rate(size: int, seconds: float) -> dict[str, float]:
    """A figure."""
    return {"mb_per_s": round(size / seconds / 1e6, 1)}


# Processes


def start_stage(plan: Plan, stage: Callable[..., Any], *arguments: str) -> "subprocess.Popen[str]":
    """Begin a stage in a process of its own."""
    fields = {**asdict(plan), "work": str(plan.work)}
    module = stage.__module__
    if module == "__main__":  # the script that is running
        module = sys.modules["__main__"].__spec__.name  # type: ignore[union-attr]
    command = [
        *plan.within,
        sys.executable,
        "-m",
        "benchmarks.moving",
        module,
        stage.__name__,
        json.dumps(fields),
        *arguments,
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def finish_stage(process: "subprocess.Popen[str]") -> dict[str, Any]:
    """Wait for a stage and return what it found; `CalledProcessError` where it failed or was killed."""
    out, _ = process.communicate()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, process.args)
    found_there: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found_there


def run_stage(plan: Plan, stage: Callable[..., Any], *arguments: str) -> dict[str, Any]:
    """Run a stage in a process of its own, and return what it found."""
    return finish_stage(start_stage(plan, stage, *arguments))


def peak_mb(pid: int | str) -> int:
    """The most memory that a process ever had."""
    return memory_mb(pid, "VmHWM")


def memory_mb(pid: int | str, field: str) -> int:
    """A figure of a process's memory."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) // 1024


@contextmanager
def folder(keep: Path | None, *, needs_gb: float) -> Iterator[Path]:
    """Where to work; a folder that is gone afterwards unless one is given. Ends the program where there is no room."""
    where = keep or Path(tempfile.gettempdir())
    where.mkdir(parents=True, exist_ok=True)
    free_gb = shutil.disk_usage(where).free / 1e9
    if free_gb < needs_gb:
        sys.exit(f"{where} has {free_gb:.0f} GB free and this needs {needs_gb:.0f}; give another folder with --work")
    if keep is not None:
        yield keep
        return
    with tempfile.TemporaryDirectory(prefix="concord-transfer-") as made:
        yield Path(made)


def _main() -> None:
    """Run one stage; called by `start_stage` alone."""
    module, name, fields, *arguments = sys.argv[1:]
    values = json.loads(fields)
    plan = Plan(**{**values, "work": Path(values["work"])})
    result = getattr(importlib.import_module(module), name)(plan, *arguments) or {}
    print(json.dumps({**result, "peak_mb": peak_mb("self")}))


if __name__ == "__main__":
    _main()
