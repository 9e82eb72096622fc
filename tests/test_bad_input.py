"""Bases that are not the logged one, full disks, ports in use, text that is none: a clear word, nothing lost."""

import json
import re
import resource
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from common.audit import audit
from common.errors import NotFoundError, UnavailableError, VerificationError
from common.job import StopSignal
from common.rpc.channel import listen, make_server
from common.trust.manifest import digest_of
from common.trust.note import SigningKey
from common.trust.statements import BasePublish, sign_statement
from coordinator import home as coordinator_home
from coordinator import pretrain
from coordinator.config import CoordinatorSettings
from coordinator.home import Coordinator
from coordinator.releases import latest_base
from coordinator.server_identity import server_identity
from coordinator.servicers import RegistryServicer, TransferServicer
from coordinator.streams import Streams
from owner_client import participation
from protos import registry_pb2, registry_pb2_grpc, transfer_pb2_grpc
from tests.federation import FEDERATION, Federation, expert_weights, free_ports
from tests.raw_calls import calling_as, chunk, contribution, refused
from tests.training.small_jobs import expert_config, pretrain_config, write_text

# A coordinator that lies about the base.

Change = Callable[[registry_pb2.GetBaseReply, Coordinator], None]


class _Liar(RegistryServicer):
    """Answers as the real one does, but for what it says of the base."""

    def __init__(self, coordinator: Coordinator, change: Change) -> None:
        super().__init__(coordinator)
        self._coordinator = coordinator
        self._change = change

    def GetBase(self, request, context):  # type: ignore[no-untyped-def]
        reply = super().GetBase(request, context)
        self._change(reply, self._coordinator)
        return reply


@contextmanager
def _lying(federation: Federation, change: Change) -> Iterator[None]:
    federation.stop()
    coordinator = federation.coordinator
    server = make_server(coordinator.enrolment.authenticate, threads=4, anonymous=False)
    registry_pb2_grpc.add_RegistryServicer_to_server(_Liar(coordinator, change), server)
    transfer = TransferServicer(
        coordinator.intake, coordinator.publication, coordinator.campaigns.files, Streams(threads=8)
    )
    transfer_pb2_grpc.add_TransferServicer_to_server(transfer, server)
    listen(server, f"127.0.0.1:{federation.ports[0]}", tls=server_identity(coordinator), require_client=True)
    server.start()
    try:
        yield
    finally:
        server.stop(None).wait()
        federation.start()


def _unlogged(coordinator: Coordinator, *, key: SigningKey | None = None) -> bytes:
    """A base that a coordinator signed and did not log."""
    logged = latest_base(coordinator.registry.head())
    own = SigningKey.from_pem(
        (coordinator.home.keys / "coordinator.key").read_bytes(), name=coordinator.registry.root.coordinator.name
    )
    other = BasePublish.model_validate({**logged.model_dump(exclude_unset=True), "seq": 7})
    return sign_statement(other, key or own)


def _other_manifest(reply: registry_pb2.GetBaseReply, _: Coordinator) -> None:
    fields = json.loads(reply.manifest)
    fields["files"]["config.json"]["digest"] = digest_of(b"another")
    reply.manifest = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()


def _not_logged(reply: registry_pb2.GetBaseReply, coordinator: Coordinator) -> None:
    reply.note = _unlogged(coordinator)


def _signed_by_another(reply: registry_pb2.GetBaseReply, coordinator: Coordinator) -> None:
    reply.note = _unlogged(coordinator, key=SigningKey.generate(coordinator.registry.root.coordinator.name))


def _another_statement(reply: registry_pb2.GetBaseReply, coordinator: Coordinator) -> None:
    reply.note, reply.receipt = coordinator.log.entry(1), coordinator.log.receipt(1)


def _no_receipt(reply: registry_pb2.GetBaseReply, _: Coordinator) -> None:
    reply.receipt = b""


def _receipt_of_another(reply: registry_pb2.GetBaseReply, coordinator: Coordinator) -> None:
    reply.receipt = coordinator.log.receipt(1)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (_other_manifest, "the base shown has digest .* the log names"),
        (_not_logged, "step 3"),
        (_signed_by_another, "0 signatures by"),
        (_another_statement, r"showed owner\.enrol as its base"),
        (_no_receipt, "step 3"),
        (_receipt_of_another, "step 3"),
    ],
)
def test_a_base_that_is_not_the_logged_one_is_refused(change: Change, match: str, consortium: Federation) -> None:
    owner = consortium.enrol("archive")
    with _lying(consortium, change):
        with pytest.raises(VerificationError, match=match):
            owner.base()
        assert not owner.home.bases.exists()
    owner.take_part(1)


# A base that is damaged.


def _object(federation: Federation, name: str) -> Path:
    manifest = federation.coordinator.publication.manifest(
        latest_base(federation.coordinator.registry.head()).base_digest
    )
    return federation.coordinator.publication.find(manifest.files[name].digest)


def _flipped(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (_flipped, "was dropped, fetch it again"),
        (lambda data: data[:-1], "dropped"),
        (lambda data: data + b"x", "more"),
    ],
    ids=["a byte changed", "cut off", "longer"],
)
def test_a_base_damaged_on_the_way_is_dropped_and_fetched_again(
    damage: Callable[[bytes], bytes], match: str, consortium: Federation
) -> None:
    owner = consortium.enrol("archive")
    path = _object(consortium, "model.safetensors")
    good = path.read_bytes()
    path.write_bytes(damage(good))
    with pytest.raises(VerificationError, match=match):
        owner.base()
    path.write_bytes(good)
    assert (owner.base().directory / "model.safetensors").read_bytes() == good


def test_a_base_that_the_coordinator_lost_is_said_to_be_missing(consortium: Federation) -> None:
    owner = consortium.enrol("archive")
    path = _object(consortium, "model.safetensors")
    aside = path.rename(path.with_name("aside"))
    with pytest.raises(NotFoundError, match="no published file has digest"):
        owner.base()
    aside.rename(path)
    owner.base()


def test_a_base_damaged_at_rest_is_refused(consortium: Federation) -> None:
    owner = consortium.enrol("archive")
    weights = owner.base().directory / "model.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(_flipped(good))
    with pytest.raises(VerificationError, match=r"model\.safetensors is not the file that its manifest lists"):
        owner.consent()
    assert owner.home.statements.joinpath("00001.note").exists() is False
    weights.write_bytes(good)
    owner.take_part(1)


def test_a_fetch_takes_up_where_it_was(consortium: Federation) -> None:
    owner = consortium.enrol("archive")
    good = _object(consortium, "model.safetensors").read_bytes()
    base = owner.home.bases / latest_base(consortium.coordinator.registry.head()).base_digest.removeprefix("sha256:")
    base.mkdir(parents=True)
    (base / "model.safetensors.part").write_bytes(good[:1000])
    seen = []
    with owner.member() as member:
        participation.fetch_base(member, on_bytes=lambda done, total: seen.append((done, total)))
    assert (base / "model.safetensors").read_bytes() == good


# A disk that is full: a real limit on the size of files, on a real process.


@contextmanager
def _coordinator_process(path: Path) -> Iterator[tuple[Federation, "subprocess.Popen[str]"]]:
    """A consortium whose coordinator serves as the process it is in production."""
    ports = free_ports(2)
    settings = CoordinatorSettings(
        federation=FEDERATION, origin=f"{FEDERATION}/log", port=ports[0], enrolment_port=ports[1]
    )
    home = coordinator_home.create(path / "coordinator", settings).path
    with coordinator_home.open_home(home) as coordinator:
        federation = Federation(path, ports, coordinator)
        federation.publish_base()
        process = _serve(home)
        try:
            assert process.stdout is not None
            assert "serving" in process.stdout.readline()
            yield federation, process
        finally:
            process.terminate()
            process.communicate(timeout=60)


def _serve(home: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "concord", "coordinator", "serve", "--json", "--home", str(home)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@contextmanager
def _largest_file(process: "subprocess.Popen[str]", size_bytes: int) -> Iterator[None]:
    """No file of that process may grow over this size meanwhile."""
    before = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, before)


def test_a_coordinator_whose_disk_is_full_takes_the_upload_later(tmp_path: Path) -> None:
    with _coordinator_process(tmp_path) as (federation, process):
        owner = federation.enrol("archive")
        owner.consent()
        owner.put_expert(expert_weights(1))
        with _largest_file(process, 4096), refused(federation, UnavailableError, "no space left for this upload; free"):
            owner.submit()
        owner.submit()
        federation.release()
        assert audit(federation.public).releases == {"release-1": ["archive"]}


def test_a_coordinator_whose_disk_is_full_records_later(tmp_path: Path) -> None:
    with _coordinator_process(tmp_path) as (federation, process):
        owner = federation.enrol("archive")
        with _largest_file(process, 4096), refused(federation, UnavailableError, "cannot be written.*try again"):
            owner.consent()
        grant = owner.consent()
        assert grant.seq == 1
        data = owner.put_expert(expert_weights(1)).joinpath("expert.safetensors").read_bytes()
        with calling_as(owner) as calls:
            upload_id = calls.open(contribution(owner, grant.record_id, data)).upload_id
            calls.put(chunk(upload_id, digest_of(data), index=0, data=data))
            with _largest_file(process, 4096), refused(federation, UnavailableError, "cannot be written.*try again"):
                calls.finish(upload_id)
            calls.finish(upload_id)
        assert federation.release().owners == {1: "archive"}


_LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
import concord
concord.main()
"""


def test_an_owner_whose_disk_is_full_goes_on_later(consortium: Federation) -> None:
    owner = consortium.enrol("archive")
    command = [sys.executable, "-c", _LIMITED, "owner", "submit", "--dry-run", "--home", str(owner.home.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    assert re.search(r"no space left for \S*model\.safetensors; free some and go on: what is stored stays", done.stderr)
    assert not list(owner.home.bases.glob("*/*model.safetensors*")), "a small file is there whole or not at all"
    owner.take_part(1)


# A port that is in use.


@pytest.mark.parametrize("which", [0, 1])
def test_a_port_in_use_is_said_to_be(which: int, tmp_path: Path) -> None:
    ports = free_ports(2)
    settings = CoordinatorSettings(federation=FEDERATION, origin="log", port=ports[0], enrolment_port=ports[1])
    home = coordinator_home.create(tmp_path / "coordinator", settings).path
    with socket.create_server(("127.0.0.1", ports[which])):
        _, errors = _serve(home).communicate(timeout=60)
    assert f"127.0.0.1:{ports[which]} cannot be opened" in errors
    assert "choose another port" in errors
    assert "Traceback" not in errors


# Text that is none.


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with public text in `public` and a base made of it in `base`."""
    folder = tmp_path_factory.mktemp("places")
    write_text(folder / "public", "public")
    job = pretrain_config(folder, folder / "base", steps=1, warmup_steps=0)
    pretrain.run(pretrain.PretrainJob.model_validate(job), StopSignal())
    return folder


def _train(places: Path, own: Path, output: Path) -> "subprocess.CompletedProcess[str]":
    job = {**expert_config(places, places / "base", output / "expert", steps=1, warmup_steps=0), "data": str(own)}
    (output / "job.json").write_text(json.dumps(job))
    command = [sys.executable, "-m", "owner_client.train", str(output / "job.json")]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)


TEXTS: dict[str, tuple[dict[str, bytes], str]] = {
    "an empty folder": ({}, "no documents in this folder (it is empty); give a .jsonl"),
    "an empty file": ({"train.txt": b""}, "every document is empty"),
    "bytes that are no text": ({"train.txt": bytes(range(256)) * 40}, "not UTF-8 text at byte 128; convert it"),
    "lines that are no JSON": ({"train.jsonl": b"\x00\x01\x02\n" * 40}, "looks like a binary file; give a .jsonl"),
    "too little for one sequence": (
        {"train.txt": b"a\n\n\nb\n\n\nc\n\n\nd\n\n\ne\n"},
        "tokens are too few; one sequence needs 33",
    ),
}


@pytest.mark.parametrize("case", TEXTS)
def test_text_that_cannot_be_trained_on_is_said_to_be(case: str, places: Path, tmp_path: Path) -> None:
    files, match = TEXTS[case]
    own = tmp_path / "own"
    own.mkdir()
    for name, data in files.items():
        (own / name).write_bytes(data)
    done = _train(places, own, tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert match in done.stderr
    assert str(own) in done.stderr
    assert not (tmp_path / "expert").exists()
