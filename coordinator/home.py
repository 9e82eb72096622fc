"""Making and opening a coordinator's home: keys, settings, registry, log and publication, put together."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

from common.errors import ConflictError, MalformedError
from common.files import make_private_directory, read_required, write_atomic, write_secret
from common.trust.note import SigningKey
from common.trust.root import TrustedRoot
from common.trust.statements import COORDINATOR
from common.trust.tiles import CHECKPOINT_NAME
from coordinator.authority import Authority, create_authorities
from coordinator.campaign_files import CampaignFiles
from coordinator.campaign_states import CampaignStates
from coordinator.campaigns import Campaigns
from coordinator.config import CoordinatorHome, CoordinatorSettings, FlowerSettings
from coordinator.enrolment import Enrolment, revoke_certificates
from coordinator.intake import Intake
from coordinator.log import Log
from coordinator.outside_witnesses import ask
from coordinator.publication import ROOT_NAME, Publication
from coordinator.registry import Registry
from coordinator.store import Store

_SERVER_LIFETIME: Final = timedelta(days=30)
_BACKDATED: Final = timedelta(minutes=5)
_HINT: Final = "this home is not complete; restore it from a backup or make a new one"


@dataclass(frozen=True, slots=True)
class Coordinator:
    """Everything of one coordinator that needs neither torch nor grpc."""

    home: CoordinatorHome
    settings: CoordinatorSettings
    store: Store
    log: Log
    registry: Registry
    publication: Publication
    enrolment: Enrolment
    intake: Intake
    authority: Authority
    campaigns: Campaigns


def create(path: Path, settings: CoordinatorSettings) -> CoordinatorHome:
    """Make a new home: certificate authority, log key, coordinator's signing key, registry, first checkpoint.

    Raises:
        ConflictError: there is a coordinator's home already; nothing is changed.
        MalformedError: the federation's name cannot stand in certificates.
    """
    home = CoordinatorHome(path)
    if not home.settings_file.exists():
        if strange := _strange(path):
            raise ConflictError(f"{path} holds other files ({strange}); choose an empty directory with --home")
        _write_keys(home, settings)
    elif home.settings() != settings or (home.public / "log" / CHECKPOINT_NAME).exists():
        raise ConflictError(f"{path} is a coordinator's home already; choose another directory with --home")
    with open_home(path) as coordinator:
        coordinator.registry.publish()
    return home


def _strange(path: Path) -> str | None:
    """What is in a directory that no unfinished `create` leaves there."""
    ours = {"keys", "public"}
    names = sorted(each.name for each in path.iterdir() if each.name not in ours) if path.is_dir() else []
    if not names and (path / "keys").is_dir() and (path / "keys" / "signing.key").exists():
        names = ["keys/signing.key"]
    return next((name for name in names if not name.endswith(".partial")), None)


def _write_keys(home: CoordinatorHome, settings: CoordinatorSettings) -> None:
    make_private_directory(home.path)
    try:
        create_authorities(home.keys, settings.federation)
    except ValueError as error:
        raise MalformedError(str(error)) from error
    log_key = SigningKey.generate(settings.origin)
    own_key = SigningKey.generate(f"{settings.federation}/{COORDINATOR}")
    write_secret(home.keys / "log.key", log_key.to_pem())
    write_secret(home.keys / "coordinator.key", own_key.to_pem())
    root = TrustedRoot(settings.federation, settings.origin, log_key.verifier, own_key.verifier)
    publication = Publication(home.public)
    write_atomic(publication.path / ROOT_NAME, bytes(root))
    # The settings come last: a home without them is not one, and `create` may be called again.
    write_atomic(home.settings_file, _toml(settings).encode())


def _toml(settings: CoordinatorSettings) -> str:
    lines = []
    tables = {"flower": settings.flower} if settings.flower != FlowerSettings() else {}
    for name, value in settings.model_dump(exclude_none=True, exclude={"flower"}, mode="json").items():
        # A JSON string, number, truth value or list of strings is TOML as well.
        lines.append(f"{name} = {json.dumps(value, ensure_ascii=False)}")
    if settings.files_port is None:
        lines.append("# files_port = 8080  # serves public/ over plain HTTP, for auditors")
    for table, fields in tables.items():
        lines.append(f"[{table}]")
        lines += [f"{name} = {json.dumps(value)}" for name, value in fields.model_dump(mode="json").items()]
    return "\n".join(lines) + "\n"


@contextmanager
def open_home(path: Path, *, may_be_older: bool = False) -> Iterator[Coordinator]:
    """The coordinator whose home is `path`. `may_be_older` is for whoever rolls its registry forward.

    Raises:
        NotFoundError: it is no coordinator's home.
        ConflictError: its registry is damaged or older than what was published from it.
    """
    home = CoordinatorHome(path)
    settings = home.settings()
    store = Store.postgresql(settings.database) if settings.database else Store.embedded(home.database)
    try:
        store.prepare()
        coordinator = _put_together(home, settings, store)
        if not may_be_older:
            coordinator.log.check_not_rolled_back()
        try:
            yield coordinator
        finally:
            coordinator.log.close()
    finally:
        store.close()


def _put_together(home: CoordinatorHome, settings: CoordinatorSettings, store: Store) -> Coordinator:
    publication = Publication(home.public)
    root = TrustedRoot.parse(publication.trusted_root())
    if (settings.federation, settings.origin) != (root.federation, root.origin):
        raise ConflictError(
            f"{home.settings_file} is of {settings.federation!r} at {settings.origin!r}, the log of "
            f"{root.federation!r} at {root.origin!r}; they are named once and for all: put the log's names back"
        )
    log_key = SigningKey.from_pem(read_required(home.keys / "log.key", hint=_HINT), name=root.log.name)
    own_key = SigningKey.from_pem(read_required(home.keys / "coordinator.key", hint=_HINT), name=root.coordinator.name)
    authority = Authority(home.keys)
    authority.now  # noqa: B018 (what is missing is said before anything is opened)
    log = Log(store, key=log_key, origin=root.origin, directory=publication.log)
    registry = Registry(
        store,
        log,
        root=root,
        key=own_key,
        effects=revoke_certificates,
        contradicted=lambda registry: ask(registry, settings.outside_witnesses),
    )
    lifetime = timedelta(hours=settings.certificate_hours)
    enrolment = Enrolment(store, registry, authority=authority, certificate_lifetime=lifetime)
    intake = Intake(home.incoming, home.quarantine, registry, publication)
    campaigns = Campaigns(registry, log, CampaignStates(store), CampaignFiles(home.campaigns))
    return Coordinator(home, settings, store, log, registry, publication, enrolment, intake, authority, campaigns)
