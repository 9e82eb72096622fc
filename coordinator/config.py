"""Where a coordinator keeps its things, and its settings (`coordinator.toml`)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from common.config import Settings, load_toml
from common.trust.pki import check_server_name


def check_database_url(text: str) -> str:
    """`text` if it is the URL of a PostgreSQL database without a password; a `ValueError` does not repeat it."""
    parts = urlsplit(text)
    if parts.scheme != "postgresql" or not parts.path.strip("/"):
        raise ValueError("the database is not given like postgresql://USER@HOST/NAME")
    if parts.password is not None or "password" in parts.query:
        raise ValueError("the database's URL holds a password; put it into a file that PGPASSFILE names")
    return text


class FlowerSettings(Settings):
    """Flower as an engine for campaigns, beside the daemon's own; see docs/campaigns.md."""

    enabled: bool = False
    port: Annotated[int, Field(ge=1, le=65535)] = 7445
    """Where owners' nodes come to, at `host`; only members get in."""
    local_port: Annotated[int, Field(ge=1, le=65535)] = 7446
    """Where the SuperLink listens, on this machine alone."""
    start_runs: bool = True
    """Whether a run is started wherever a campaign is open; turn it off to start runs of your own."""
    every_s: Annotated[float, Field(gt=0, le=3600)] = 10.0
    """How often a run asks an owner how far it is."""


def check_host(text: str) -> str:
    """`text` if a server can listen there: an IP address or a host's name."""
    return text if text == "localhost" else check_server_name(text)


class CoordinatorSettings(Settings):
    """What an admin decides. `origin` names the log for good."""

    federation: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{0,62}$")]
    origin: Annotated[str, Field(min_length=1, max_length=255)]
    host: Annotated[str, AfterValidator(check_host)] = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65535)] = 7443
    enrolment_port: Annotated[int, Field(ge=1, le=65535)] = 7444
    database: Annotated[str, AfterValidator(check_database_url)] | None = None
    """URL of a PostgreSQL database that was migrated, without a password; by default SQLite in the home."""
    advertise: Annotated[str, AfterValidator(check_server_name)] | None = None
    """Host name or address that owners use to reach this coordinator, where it is not `host`."""
    line: str = "main"
    num_experts_per_tok: Annotated[int, Field(ge=1, le=64)] = 2
    certificate_hours: Annotated[float, Field(gt=0, le=24 * 90)] = 24
    """A daemon renews between half and two thirds of it; one that was away for longer needs an invitation."""
    invitation_minutes: Annotated[float, Field(gt=0, le=7 * 24 * 60)] = 15
    threads: Annotated[int, Field(ge=2, le=1024)] = 64
    """Of each port. An upload or download holds one while it lasts."""
    files_port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """Port where `public` is served over HTTP; by default another file server does that, or nobody."""
    outside_witnesses: tuple[str, ...] = ()
    """Witnesses that are no owner's (C2SP tlog-witness): a key line, a space and an address each."""
    witness_poll_s: Annotated[float, Field(gt=0, le=3600)] = 5
    """How often a new checkpoint is looked for and brought to them."""
    flower: FlowerSettings = Field(default_factory=FlowerSettings)

    @model_validator(mode="after")
    def _check_ports(self) -> Self:
        """A port serves one thing."""
        flower = {"flower.port": self.flower.port, "flower.local_port": self.flower.local_port}
        ports = {"port": self.port, "enrolment_port": self.enrolment_port, "files_port": self.files_port,
                 **(flower if self.flower.enabled else {})}  # fmt: skip
        taken: dict[int, str] = {}
        for name, number in ports.items():
            if number is not None and taken.setdefault(number, name) != name:
                raise ValueError(f"{taken[number]} and {name} are both {number}; give each a port of its own")
        return self

    @property
    def reachable_at(self) -> str:
        """The host that owners dial and that the server's certificate names."""
        return self.advertise or self.host


@dataclass(frozen=True, slots=True)
class CoordinatorHome:
    """The directory of one coordinator. `public` alone is meant for others: a file server may serve it as it is."""

    path: Path

    @property
    def settings_file(self) -> Path:
        return self.path / "coordinator.toml"

    @property
    def keys(self) -> Path:
        return self.path / "keys"

    @property
    def database(self) -> Path:
        return self.path / "registry.sqlite"

    @property
    def incoming(self) -> Path:
        return self.path / "incoming"

    @property
    def quarantine(self) -> Path:
        """By owner: the upload of theirs that was refused last, and why."""
        return self.path / "quarantine"

    @property
    def state(self) -> Path:
        """What the daemon is doing."""
        return self.path / "state.json"

    @property
    def campaigns(self) -> Path:
        """What owners fetch for campaigns and is published nowhere, and what came beside their answers."""
        return self.path / "campaigns"

    @property
    def flower(self) -> Path:
        """What Flower's processes keep, disposable all of it."""
        return self.path / "flower"

    @property
    def work(self) -> Path:
        return self.path / "work"

    @property
    def router_training(self) -> Path:
        """Trainings of router rows that are under way, by the release that they go on from."""
        return self.path / "router-training"

    @property
    def release_lock(self) -> Path:
        """Held by whoever makes a release, publishes a base, or removes published files."""
        return self.path / "release.lock"

    @property
    def public(self) -> Path:
        return self.path / "public"

    def settings(self) -> CoordinatorSettings:
        """The settings; `NotFoundError` where this directory is no coordinator's home."""
        return load_toml(
            self.settings_file,
            CoordinatorSettings,
            hint=f"make a coordinator there with: concord coordinator init --home {self.path} --federation NAME",
        )
