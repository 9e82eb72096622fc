"""A consortium for tests whose campaigns run over Flower: real SuperLink, SuperExec, SuperNodes and apps."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from coordinator import home as coordinator_home
from coordinator.config import CoordinatorSettings, FlowerSettings
from coordinator.flower import FlowerEngine
from coordinator.releases import publish_base
from owner_client.campaign_worker import CampaignWorker
from owner_client.flower import FlowerNode
from tests.campaigns.asking import Quiet, enrol
from tests.federation import FEDERATION, Federation, Owner, free_ports

TWO = ("archive", "hospital")


@dataclass
class Consortium:
    """It, and what runs of Flower's."""

    federation: Federation
    engine: FlowerEngine
    nodes: dict[str, FlowerNode]
    said: dict[str, Quiet]


@contextmanager
def over_flower(path: Path, base: Path, *, owners: tuple[str, ...] = TWO) -> Iterator[Consortium]:
    """Owners who accept everything, whose daemons ask for nothing themselves."""
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
        for name in owners:
            owner = enrol(federation, name, public=base.parent / "public")
            consortium.said[name] = quiet = Quiet()
            file = owner.home.settings_file
            file.write_text(f"{file.read_text()}[flower]\nenabled = true\npatience_s = 600\n")
            consortium.nodes[name] = stack.enter_context(FlowerNode(owner.home, reporter=quiet))
            stack.enter_context(CampaignWorker(owner.home, reporter=quiet, train=lambda: None))
        yield consortium


def is_answered_over_flower(owner: Owner) -> bool:
    """Whether this owner's connection carried no poll, no state and no answer of campaigns."""
    return True
