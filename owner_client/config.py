"""Where an owner keeps its things, and its settings (`owner.toml`)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from common.config import Settings, load_toml
from common.errors import MalformedError
from common.trust.campaign_statements import CampaignKind
from common.trust.cosignature import Witness
from common.trust.statements import parse_time
from owner_client.pace import parse_hours


def _check_hours(text: str) -> str:
    try:
        parse_hours(text)
    except MalformedError as error:
        raise ValueError(str(error)) from error
    return text


def _check_target(text: str) -> str:
    host, colon, port = text.rpartition(":")
    is_port = port.isascii() and port.isdigit() and 0 < int(port) < 65536
    if not (host and colon and is_port) or any(letter in host for letter in "/ \t\n"):
        raise ValueError(f"{text[:80]!r} is not HOST:PORT")
    return text


def _check_moment(text: str) -> str:
    parse_time(text)
    return text


class ConsentSettings(Settings):
    """What this owner agrees to when it signs: written by a person, never by default."""

    purposes: Annotated[list[str], Field(min_length=1)]
    terms: Path
    """File with the terms; the consent names it by digest."""
    line: str = "main"
    release: str | None = None
    """One release by name instead of a whole line."""
    days: Annotated[int, Field(ge=1, le=3650)] = 365
    """So many days from `not_before`, or from now."""
    not_before: Annotated[str, AfterValidator(_check_moment)] | None = None
    """From when on it is in force, such as `2027-01-01T00:00:00Z`; from now where nothing is set."""
    jurisdiction: str | None = None
    """Whose law applies, in the consortium's own words, such as `eu`."""


class TransferSettings(Settings):
    """How this owner's line may be used for experts and models, both ways; statements are small and go at once."""

    megabytes_per_s: Annotated[float, Field(ge=0.1, le=1e6)] | None = None
    """At most so many million bytes a second; as fast as it goes where nothing is set."""
    hours: Annotated[str, AfterValidator(_check_hours)] | None = None
    """Local time, such as `22:00-06:00`; at any time where nothing is set."""


class EgressSettings(Settings):
    """What may leave by itself. Statements and certificate requests are the owner's own word and need no approval."""

    mode: Literal["policy", "review"] = "policy"
    """With `review` a person approves every expert and every result, byte for byte, before it leaves."""
    kinds: tuple[Literal["expert", "result"], ...] = ("expert", "result")
    """What may leave at all beside statements."""
    max_megabytes_a_day: Annotated[float, Field(gt=0)] | None = None
    """Of experts and results together, in any 24 hours, counted as they are sent."""


class CampaignSettings(Settings):
    """What this owner does when it is asked by a campaign. Whatever is not accepted here waits for a person."""

    accept: tuple[CampaignKind, ...] = ()
    """Kinds that are answered without asking a person; of models, releases and bases alone."""
    candidates: bool = False
    """Whether that goes for models, too, that are in no log: one may be made to say more of a text than a release."""
    min_documents: Annotated[int, Field(ge=1)] = 10
    """A figure over fewer documents does not leave, whatever a campaign asks for."""
    count_epsilon: Annotated[float, Field(gt=0)] | None = None
    """Noise for numbers of documents (discrete Laplace with this epsilon); exact where nothing is set."""
    held_out: dict[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")], Path] = Field(default_factory=dict)
    """Folders of text that models are evaluated on (their test split), by the names that figures have; by default
    `data` under this owner's name."""
    choices: Path | None = None
    """File of multiple-choice questions for evaluations."""
    encoder: Path | None = None
    """Folder of a small encoder to fine-tune for choosing proxies; by default a light linear classifier chooses."""
    expert_chooses: bool = False
    """Whether this owner's own expert chooses proxies instead: surer, where it has been trained."""
    max_model_megabytes: Annotated[float, Field(gt=0)] = 200_000
    """Larger models are not fetched."""
    threads: Annotated[int, Field(ge=1, le=1024)] = 2

    @model_validator(mode="after")
    def _one_chooses(self) -> "CampaignSettings":
        if self.encoder is not None and self.expert_chooses:
            raise ValueError("encoder and expert_chooses: one chooses proxies, so leave one out")
        return self


class FlowerSettings(Settings):
    """Whether campaigns come and are answered over Flower; see docs/campaigns.md."""

    enabled: bool = False
    apps: tuple[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")], ...] = ()
    """Hashes (SHA-256) of apps that may run here beside Concord's own. An app is code: read it first."""
    patience_s: Annotated[float, Field(ge=0, le=7 * 24 * 3600)] = 600.0
    """What Flower did not bring for so long is asked for, and answered, without it."""


class OwnerSettings(Settings):
    """What an owner decides. `training` holds options of `owner_client/train.py`'s job, checked when it starts."""

    owner: str
    target: Annotated[str, AfterValidator(_check_target)]
    data: Path | None = None
    """Folder of this owner's own text. It is read here and never leaves."""
    public: Path | None = None
    """Folder of public text, which serves as negatives in training."""
    expert: str = "expert"
    poll_s: Annotated[float, Field(gt=0, le=3600)] = 10.0
    witnesses: list[str] = Field(default_factory=list)
    """Lines of the witnesses that this owner trusts, got out of band."""
    quorum: Annotated[int, Field(ge=0)] = 0
    """How many of them must have cosigned what the coordinator shows, before this owner signs anything over it."""
    transfer: TransferSettings = Field(default_factory=TransferSettings)
    egress: EgressSettings = Field(default_factory=EgressSettings)
    campaigns: CampaignSettings = Field(default_factory=CampaignSettings)
    flower: FlowerSettings = Field(default_factory=FlowerSettings)
    consent: ConsentSettings | None = None
    training: dict[str, int | float | str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check_quorum(self) -> Self:
        """A quorum that can be had, and of which two cannot be had for two logs without a witness in both."""
        try:
            known = {Witness.parse(line).name for line in self.witnesses}
        except MalformedError as error:
            raise ValueError(str(error)) from error
        if len(known) < len(self.witnesses):
            raise ValueError("a witness is named twice")
        if self.quorum and not len(known) / 2 < self.quorum <= len(known):
            raise ValueError(
                f"a quorum of {self.quorum} of {len(known)} witnesses; more than half of them and at most all may be "
                "asked for, or none at all (0)"
            )
        return self


@dataclass(frozen=True, slots=True)
class OwnerHome:
    """The directory of one owner."""

    path: Path

    @property
    def settings_file(self) -> Path:
        return self.path / "owner.toml"

    @property
    def signing_key(self) -> Path:
        return self.path / "keys" / "signing.key"

    @property
    def witness_key(self) -> Path:
        """What the daemon cosigns checkpoints with; it stays where the daemon is."""
        return self.path / "keys" / "witness.key"

    @property
    def commitment_key(self) -> Path:
        """What this owner's word about its text is blinded with: others cannot try texts out against it."""
        return self.path / "keys" / "commitment.key"

    @property
    def next_signing_key(self) -> Path:
        """The key that is to take the place of `signing_key`, until the log has it."""
        return self.path / "keys" / "signing.key.next"

    @property
    def tls(self) -> Path:
        return self.path / "keys" / "tls.pem"

    @property
    def enrolling(self) -> Path:
        """What an unfinished enrolment must repeat: invitation, TLS key, request."""
        return self.path / "enrolling"

    @property
    def recertifying(self) -> Path:
        """Likewise of an unfinished request for a new certificate."""
        return self.path / "recertifying"

    @property
    def authority(self) -> Path:
        return self.path / "authority.pem"

    @property
    def trusted_root(self) -> Path:
        return self.path / "trusted_root.json"

    @property
    def pinned(self) -> Path:
        """The latest checkpoint this owner has verified."""
        return self.path / "checkpoint"

    @property
    def evidence(self) -> Path:
        """Where two checkpoints that contradict each other are kept."""
        return self.path / "evidence"

    @property
    def statements(self) -> Path:
        return self.path / "statements"

    @property
    def bases(self) -> Path:
        return self.path / "bases"

    @property
    def experts(self) -> Path:
        return self.path / "experts"

    @property
    def campaigns(self) -> Path:
        """What this owner was asked, and what it answers: a folder each."""
        return self.path / "campaigns"

    @property
    def flower(self) -> Path:
        """What Flower's processes keep, disposable all of it."""
        return self.path / "flower"

    @property
    def models(self) -> Path:
        """Models that were fetched for campaigns, by digest."""
        return self.path / "models"

    @property
    def pools(self) -> Path:
        """Public text that was fetched for campaigns, by digest."""
        return self.path / "pools"

    @property
    def state(self) -> Path:
        """What the daemon is doing."""
        return self.path / "state.json"

    @property
    def reviews(self) -> Path:
        """What waits for a person's word, and what was said."""
        return self.path / "reviews"

    @property
    def ledger(self) -> Path:
        """What has left this building, a line each."""
        return self.path / "ledger.jsonl"

    def settings(self) -> OwnerSettings:
        """The settings; `NotFoundError` where this directory is no owner's home."""
        return load_toml(
            self.settings_file,
            OwnerSettings,
            hint=f"join a consortium first: concord owner enrol --home {self.path} --invitation FILE",
        )
