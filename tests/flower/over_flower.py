"""A consortium for tests whose campaigns run over Flower: real SuperLink, SuperExec, SuperNodes and apps."""

import hashlib
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import pytest

from common.errors import UnavailableError
from common.flower import IMPORTING
from coordinator import home as coordinator_home
from coordinator.config import CoordinatorSettings, FlowerSettings
from coordinator.flower import FlowerEngine
from coordinator.flower_nodes import AUTHORITY_NAME
from coordinator.releases import publish_base
from owner_client.campaign_worker import CampaignWorker
from owner_client.flower import FlowerNode
from tests.campaigns.asking import Quiet, enrol
from tests.federation import FEDERATION, Federation, free_ports

NEEDS_FLOWER = pytest.mark.skipif(find_spec("flwr") is None, reason="Flower is not installed (extra: flower)")
EXAMPLE: Final = Path(__file__).parents[2] / "deploy" / "examples" / "flower"
TWO: Final = ("archive", "hospital")
CALLS: list[str] = []
"""Every call that this process has answered."""


def _hear(event: str, arguments: tuple[object, ...]) -> None:
    if event == "concord.point":
        CALLS.append(str(arguments[0]))


sys.addaudithook(_hear)


@dataclass
class Consortium:
    """It, and what runs of Flower's."""

    federation: Federation
    engine: FlowerEngine
    nodes: dict[str, FlowerNode]
    said: dict[str, Quiet]

    def start(self, bundle: bytes) -> int:
        """Start a run of an app."""
        from coordinator.flower_control import Control

        coordinator = self.federation.coordinator
        authority = (coordinator.home.flower / AUTHORITY_NAME).read_bytes()
        with Control(coordinator.settings.flower.local_port, authority=authority) as control:
            return control.start(bundle)

    def is_running(self) -> bool:
        """Whether a run goes on."""
        from coordinator.flower_control import Control

        coordinator = self.federation.coordinator
        authority = (coordinator.home.flower / AUTHORITY_NAME).read_bytes()
        try:
            with Control(coordinator.settings.flower.local_port, authority=authority) as control:
                return control.is_running()
        except UnavailableError:
            return True

    def logging(self) -> str:
        """What runs wrote at the coordinator's."""
        file = self.federation.coordinator.home.flower / "campaigns.log"
        return file.read_text() if file.exists() else ""


@contextmanager
def over_flower(path: Path, base: Path) -> Iterator[Consortium]:
    """Two owners who accept everything, whose daemons ask for nothing themselves. One allows the example app."""
    ports, home, heard = free_ports(4), path / "coordinator", Quiet()
    flower = FlowerSettings(enabled=True, port=ports[2], local_port=ports[3], every_s=0.2)
    settings = CoordinatorSettings(
        federation=FEDERATION, origin=f"{FEDERATION}/log", port=ports[0], enrolment_port=ports[1], flower=flower
    )
    coordinator_home.create(home, settings)
    with coordinator_home.open_home(home) as coordinator, ExitStack() as stack:
        federation = Federation(path, ports[:2], coordinator)
        federation.start()
        stack.callback(federation.stop)
        publish_base(coordinator, base)
        engine = stack.enter_context(FlowerEngine(coordinator, reporter=heard))
        consortium = Consortium(federation, engine, {}, {"coordinator": heard})
        for name, apps in zip(TWO, ("", hashlib.sha256(example()).hexdigest()), strict=True):
            owner = enrol(federation, name, public=base.parent / "public", accept='["evaluate"]')
            consortium.said[name] = quiet = Quiet()
            file = owner.home.settings_file
            consent = f'[consent]\npurposes = ["research"]\nterms = "{owner.terms}"\n'  # or it would not train
            flower_on = f"[flower]\nenabled = true\napps = {[apps] if apps else []}\n"
            file.write_text(file.read_text() + consent + flower_on)
            consortium.nodes[name] = stack.enter_context(FlowerNode(owner.home, reporter=quiet))
            stack.enter_context(CampaignWorker(owner.home, reporter=quiet, train=lambda: None))
        CALLS.clear()  # of tests before
        yield consortium


def example() -> bytes:
    """The app that a user of Flower would make, built as Flower does."""
    with IMPORTING:
        from flwr.cli.build import build_fab_from_disk

    return build_fab_from_disk(EXAMPLE)
