"""A consortium for tests: one coordinator and its owners over real gRPC, mutual TLS, SQLite and files, made small."""

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Final

import grpc
import torch
from safetensors.torch import save_file

from common.model import hf
from common.model.config import ModelConfig
from common.model.expert import EXPERT_NAME, ROUTER_NAME, expected_tensors, router_tensors
from common.model.transformer import CausalLM
from common.rpc.channel import listen, make_server
from common.trust.invitation import Invitation
from common.trust.statements import ConsentGrant, ConsentRevoke
from coordinator import home as coordinator_home
from coordinator.config import CoordinatorSettings
from coordinator.home import Coordinator
from coordinator.releases import PublishedBase, PublishedRelease, make_release, publish_base
from coordinator.server_identity import ServerIdentity
from coordinator.servicers import add_services
from owner_client import membership, participation
from owner_client.chain import Said
from owner_client.config import ConsentSettings, OwnerHome
from owner_client.membership import Membership, open_membership
from owner_client.participation import Base
from owner_client.retry import Retry

FEDERATION = "test.concord"
SIZES = ModelConfig(
    vocab_size=64,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    max_position_embeddings=32,
    eos_token_id=0,
)


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on now."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def write_base(directory: Path, *, seed: int = 0, sizes: ModelConfig = SIZES) -> Path:
    """A tiny public checkpoint."""
    directory.mkdir(parents=True)
    hf.save(CausalLM(sizes, seed=seed), directory)
    generator = torch.Generator().manual_seed(seed)
    rows = {name: torch.randn(*spec.shape, generator=generator) for name, spec in router_tensors(sizes).items()}
    save_file(rows, directory / ROUTER_NAME, metadata={"format": "pt"})
    return directory


def expert_weights(seed: int, *, sizes: ModelConfig = SIZES) -> dict[str, torch.Tensor]:
    """The tensors of a tiny expert."""
    generator = torch.Generator().manual_seed(seed)
    return {name: 0.1 * torch.randn(*spec.shape, generator=generator) for name, spec in expected_tensors(sizes).items()}


def write_expert(directory: Path, tensors: dict[str, torch.Tensor]) -> Path:
    """What training leaves: the expert and how it was made."""
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, directory / EXPERT_NAME, metadata={"format": "pt"})
    (directory / "training.json").write_text(json.dumps({"tokens": 1000}))
    return directory


@dataclass
class Owner:
    """One owner at home."""

    name: str
    home: OwnerHome
    terms: Path
    patience_s: float = 0

    @contextmanager
    def member(self) -> Iterator[Membership]:
        """Its connection."""
        with open_membership(self.home, patience_s=self.patience_s) as member:
            yield member

    def base(self) -> Base:
        """Fetch and check the base."""
        with self.member() as member:
            return participation.fetch_base(member, on_bytes=lambda *_: None)

    def consent(self) -> ConsentGrant:
        """Sign the usual consent."""
        with self.member() as member:
            settings = ConsentSettings(purposes=["research"], terms=self.terms)
            return participation.consent(member, settings, base=participation.fetch_base(member, on_bytes=_quiet))

    def put_expert(self, tensors: dict[str, torch.Tensor]) -> Path:
        """Have an expert at home, as if trained."""
        with self.member() as member:
            base = participation.fetch_base(member, on_bytes=_quiet)
            return write_expert(participation.expert_directory(member, base), tensors)

    def submit(self) -> Said:
        """Submit the expert at home."""
        with self.member() as member:
            return participation.submit(member, base=participation.fetch_base(member, on_bytes=_quiet), on_bytes=_quiet)

    def opt_out(self) -> ConsentRevoke:
        """Leave."""
        with self.member() as member:
            return participation.opt_out(member, reason=None)[-1]

    def take_part(self, seed: int) -> Said:
        """Consent, have an expert, submit it."""
        self.consent()
        self.put_expert(expert_weights(seed))
        return self.submit()


def _quiet(done: int, total: int) -> None:
    pass


@dataclass
class Federation:
    """A running consortium."""

    path: Path
    ports: list[int]
    coordinator: Coordinator
    owners: dict[str, Owner] = field(default_factory=dict)
    servers: list[grpc.Server] = field(default_factory=list)

    def start(self) -> None:
        """Serve on the federation's ports."""
        tls = ServerIdentity(self.coordinator)
        for port, anonymous in zip(self.ports, (False, True), strict=True):
            server = make_server(self.coordinator.enrolment.authenticate, threads=8, anonymous=anonymous)
            add_services(server, self.coordinator)
            listen(server, f"127.0.0.1:{port}", tls=tls, require_client=not anonymous)
            server.start()
            self.servers.append(server)

    def stop(self) -> None:
        """Stop serving."""
        while self.servers:
            self.servers.pop().stop(None).wait()

    def invitation(self, name: str, *, lifetime: timedelta = timedelta(minutes=5)) -> Invitation:
        """A one-time invitation for an owner."""
        return Invitation(
            owner=name,
            target=f"127.0.0.1:{self.ports[0]}",
            enrolment_target=f"127.0.0.1:{self.ports[1]}",
            authority=self.coordinator.authority.certificate_pem.decode(),
            root=self.coordinator.registry.root,
            token=self.coordinator.enrolment.invite(name, lifetime=lifetime),
        )

    def owner(self, name: str, *, patience_s: float = 0) -> Owner:
        """An owner, whether it has joined or not."""
        terms = self.path / "terms.txt"
        terms.write_text("The terms.\n")
        return self.owners.setdefault(name, Owner(name, OwnerHome(self.path / "owners" / name), terms, patience_s))

    def enrol(self, name: str, *, invitation: Invitation | None = None, patience_s: float = 0) -> Owner:
        """An owner that has joined."""
        owner = self.owner(name, patience_s=patience_s)
        retry = Retry(patience_s=patience_s)
        membership.enrol(owner.home, invitation or self.invitation(name), data=None, public=None, retry=retry)
        return owner

    def publish_base(self, *, seed: int = 0) -> PublishedBase:
        """Publish a tiny public checkpoint."""
        return publish_base(self.coordinator, write_base(self.path / f"base-{seed}", seed=seed))

    def release(self) -> PublishedRelease:
        """Make the next release."""
        return make_release(self.coordinator, evaluate=None)

    @property
    def public(self) -> Path:
        """What is published, up to date."""
        self.coordinator.log.sign_head()
        return self.coordinator.home.public


THREE: Final = ("archive", "hospital", "library")
"""Owners, where three are needed."""


@contextmanager
def running_federation(path: Path, *, database: str | None = None) -> Iterator[Federation]:
    """A consortium that serves while the block runs."""
    ports = free_ports(2)
    settings = CoordinatorSettings(
        federation=FEDERATION, origin=f"{FEDERATION}/log", port=ports[0], enrolment_port=ports[1], database=database
    )
    home = path / "coordinator"
    if not home.exists():
        coordinator_home.create(home, settings)
    with coordinator_home.open_home(home) as coordinator:
        federation = Federation(path, ports, coordinator)
        federation.start()
        try:
            yield federation
        finally:
            federation.stop()
