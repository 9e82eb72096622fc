"""What is used of Flower, and how: an upgrade that changes any of it fails here first, and is refused at start."""

import hashlib
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Final

import pytest

from common import flower
from common.errors import ConcordError, ConflictError, MalformedError, NotFoundError
from common.flower_messages import Answer, Ask, Told
from coordinator.flower import FlowerEngine
from coordinator.flower_gate import NODE_KEY
from owner_client.flower import FlowerNode
from owner_client.flower_apps import GET_FAB, AllowedApps
from tests.campaigns.asking import Quiet
from tests.federation import Federation
from tests.flower.over_flower import NEEDS_FLOWER

COMMANDS: Final = {
    "flower-superlink": "--isolation --host --port --database --ssl-certfile --ssl-keyfile --ssl-ca-certfile "
    "--enable-supernode-auth --disable-runtime-dependency-installation",
    "flower-superexec": "--runtime-api-address --root-certificates",
    "flower-supernode": "--superlink --root-certificates --auth-supernode-private-key --trusted-entities --host --port",
}


@NEEDS_FLOWER
def test_the_version_is_the_one_that_is_pinned() -> None:
    assert metadata.version("flwr") == flower.VERSION
    flower.check_version()
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert f'"flwr=={flower.VERSION}"' in project


@NEEDS_FLOWER
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_takes_what_it_is_given(command: str, tmp_path: Path) -> None:
    line = [sys.executable, flower.program(command), "--help"]
    environment = flower.environment(tmp_path)
    shown = subprocess.run(line, env=environment, capture_output=True, text=True, check=True).stdout
    assert set(COMMANDS[command].split()) <= set(shown.replace(",", " ").split())


@NEEDS_FLOWER
def test_what_is_named_of_its_insides_is_as_it_was() -> None:
    from flwr.app import ConfigRecord
    from flwr.common import constant
    from flwr.proto.control_pb2 import StartRunRequest
    from flwr.proto.fab_pb2 import GetFabResponse
    from flwr.proto.node_pb2 import NodeInfo
    from flwr.serverapp import Grid
    from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, NodeStatus
    from flwr.supercore.control import ControlHttpClient
    from flwr.superlink.routers.fleet.router import router

    from coordinator.flower_control import FINISHED, ONLINE

    assert ConfigRecord({"json": b"x"})["json"] == b"x"
    assert FLEET_HTTP_PUBLIC_KEY_HEADER == NODE_KEY
    assert (constant.Status.FINISHED, NodeStatus.ONLINE) == (FINISHED, ONLINE)
    fab = GetFabResponse.DESCRIPTOR.fields_by_name["fab"].message_type
    assert {"fab"} <= set(StartRunRequest.DESCRIPTOR.fields_by_name)
    assert {"node_id", "status"} <= set(NodeInfo.DESCRIPTOR.fields_by_name)
    assert {"content", "verifications"} <= set(fab.fields_by_name)
    for name in ("RegisterNode", "UnregisterNode", "ListNodes", "ListRuns", "StartRun"):
        assert callable(getattr(ControlHttpClient, name))
    for name in ("get_node_ids", "push_messages", "pull_messages"):
        assert callable(getattr(Grid, name))
    assert GET_FAB in {getattr(route, "path", "") for route in router.routes}


@NEEDS_FLOWER
def test_flower_takes_the_app_and_it_holds_no_code(tmp_path: Path) -> None:
    from flwr.cli.install import install_from_fab

    placed = install_from_fab(flower.app(), tmp_path)
    assert sorted(path.name for path in placed.iterdir()) == ["LICENSE", "pyproject.toml"]


def test_every_machine_makes_the_same_app() -> None:
    assert flower.app_hash(flower.app()) == "76a0afc14ec5b2557de777dfb6af2a3e16774ef391092d815123bde9a0fef12d"


@NEEDS_FLOWER
def test_only_what_is_allowed_is_vouched_for() -> None:
    import yaml
    from flwr.proto.fab_pb2 import Fab, GetFabResponse
    from flwr.supercore.fab import Fab as Received
    from flwr.supernode.start_client_internal import _verify_fab

    refused: list[str] = []
    apps = AllowedApps((hashlib.sha256(b"theirs").hexdigest(),), refused=refused.append)
    trusted = yaml.safe_load(apps.entities)

    def runs(content: bytes) -> bool:
        forged = Fab(hash_str=flower.app_hash(flower.app()), content=content, verifications={"fpk_concord": "{}"})
        fab = GetFabResponse.FromString(apps.vouch(GetFabResponse(fab=forged).SerializeToString())).fab
        assert fab.verifications["valid_license"]
        return bool(_verify_fab(Received(fab.hash_str, fab.content, dict(fab.verifications)), trusted))

    assert runs(flower.app())
    assert runs(b"theirs")
    assert not runs(b"somebody's")
    assert refused == [hashlib.sha256(b"somebody's").hexdigest()]


@pytest.mark.parametrize(
    ("found", "error", "match"),
    [("1.42.0", ConflictError, "flwr 1.42.0 is installed; .* flwr 1.41.0 and no other"),
     (None, NotFoundError, "not installed; pip install 'concord-moe.flower.'")],
)  # fmt: skip
def test_another_version_is_refused_at_start(
    consortium: Federation, found: str | None, error: type[ConcordError], match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> str:
        if found is None:
            raise metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(flower.metadata, "version", version)
    owner = consortium.enrol("archive")
    with pytest.raises(error, match=match):
        FlowerNode(owner.home, reporter=Quiet())
    with pytest.raises(error, match=match):
        FlowerEngine(consortium.coordinator, reporter=Quiet())


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"offers": [{"note": "?", "receipt": ""}]}', b'{"more": 1}'])
def test_a_message_that_is_none_is_refused(data: bytes) -> None:
    for kind in (Ask, Told):
        with pytest.raises(MalformedError, match="a message of Flower's"):
            kind.parse(data)


def test_a_message_is_what_was_sent() -> None:
    told = Told(states={}, answers=(Answer(campaign_id="0" * 36, note=b"\x00\xff", attachment=b""),))
    assert Told.parse(bytes(told)) == told
