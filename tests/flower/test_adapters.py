"""What is used of Flower, and how: an upgrade that changes any of it fails here first, and is refused until it passes."""

import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Final

import pytest

from common import flower
from common.errors import ConflictError, NotFoundError
from coordinator.config import CoordinatorSettings, FlowerSettings
from coordinator.flower import FlowerEngine
from coordinator.flower_gate import _KEY as NODE_KEY_HEADER
from owner_client.flower import FlowerNode
from owner_client.flower_apps import GET_FAB, AllowedApps
from tests.campaigns.asking import Quiet
from tests.federation import Federation
from tests.flower.over_flower import NEEDS_FLOWER

needs_flower = NEEDS_FLOWER
COMMANDS: Final = {
    "flower-superlink": "--isolation --host --port --database --ssl-certfile --ssl-keyfile --ssl-ca-certfile "
    "--enable-supernode-auth --disable-runtime-dependency-installation",
    "flower-superexec": "--runtime-api-address --root-certificates",
    "flower-supernode": "--superlink --root-certificates --auth-supernode-private-key --trusted-entities --host --port",
}


@needs_flower
def test_the_version_is_the_one_that_is_pinned() -> None:
    assert metadata.version("flwr") == flower.VERSION
    flower.check_version()
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert f'"flwr=={flower.VERSION}"' in project


@needs_flower
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_takes_what_it_is_given(command: str, tmp_path: Path) -> None:
    shown = subprocess.run(
        [sys.executable, flower.program(command), "--help"], env=flower.environment(tmp_path), capture_output=True,
        text=True, check=True,
    ).stdout  # fmt: skip
    assert set(COMMANDS[command].split()) <= set(shown.replace(",", " ").split())


@needs_flower
def test_what_is_named_of_its_insides_is_as_it_was() -> None:
    from flwr.app import ConfigRecord, Message, RecordDict
    from flwr.common import constant
    from flwr.proto.control_pb2 import StartRunRequest
    from flwr.proto.fab_pb2 import GetFabResponse
    from flwr.proto.node_pb2 import NodeInfo
    from flwr.serverapp import Grid
    from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER
    from flwr.supercore.control import ControlHttpClient
    from flwr.superlink.routers.fleet.router import router

    from coordinator.flower_control import FINISHED

    assert callable(RecordDict)
    assert callable(Message)
    assert ConfigRecord({"json": b"x"})["json"] == b"x"
    assert FLEET_HTTP_PUBLIC_KEY_HEADER == NODE_KEY_HEADER
    assert constant.Status.FINISHED == FINISHED
    assert {"fab"} <= set(StartRunRequest.DESCRIPTOR.fields_by_name)
    assert {"node_id", "status"} <= set(NodeInfo.DESCRIPTOR.fields_by_name)
    assert {"content", "verifications"} <= set(
        GetFabResponse.DESCRIPTOR.fields_by_name["fab"].message_type.fields_by_name
    )
    for name in ("RegisterNode", "UnregisterNode", "ListNodes", "ListRuns", "StartRun"):
        assert callable(getattr(ControlHttpClient, name))
    for name in ("get_node_ids", "push_messages", "pull_messages"):
        assert callable(getattr(Grid, name))
    assert GET_FAB in {route.path for route in router.routes}


@needs_flower
def test_flower_takes_the_app_and_the_app_is_a_shim(tmp_path: Path) -> None:
    from flwr.cli.install import install_from_fab
    from flwr.client.client_app import ClientApp as Known  # noqa: F401
