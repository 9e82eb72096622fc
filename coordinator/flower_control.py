"""What the coordinator says to its SuperLink (Flower's Control API), on this machine alone."""

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Final, TypeVar

import httpx
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    UnregisterNodeRequest,
)
from flwr.proto.fab_pb2 import Fab
from flwr.supercore.control import ControlHttpClient

from common.errors import UnavailableError
from common.flower import app_hash

logging.getLogger("httpx").setLevel(logging.WARNING)  # it has a line for each request

ONLINE: Final = "online"
FINISHED: Final = "finished"
_Request = TypeVar("_Request")
_Reply = TypeVar("_Reply")


class Control:
    """Calls to the SuperLink that listens on a port of this machine.

    Every call raises `UnavailableError` where it does not answer, or not as it should.
    """

    def __init__(self, port: int, *, authority: bytes) -> None:
        self._client = ControlHttpClient.from_server_address(
            server_address=f"127.0.0.1:{port}", insecure=False, root_certificates=authority, interceptors=()
        )

    def __enter__(self) -> "Control":
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def register_node(self, public_key: bytes, *, name: str) -> int:
        """Let a node with this key in; its number."""
        return int(self._call(self._client.RegisterNode, RegisterNodeRequest(public_key=public_key, name=name)).node_id)

    def forget_node(self, node_id: int) -> None:
        """Let it in no more; whether it was known or not."""
        with suppress(UnavailableError):
            self._call(self._client.UnregisterNode, UnregisterNodeRequest(node_id=node_id))

    def online(self) -> set[int]:
        """The nodes that are there now, by their heartbeats."""
        nodes = self._call(self._client.ListNodes, ListNodesRequest()).nodes_info
        return {int(node.node_id) for node in nodes if node.status == ONLINE}

    def is_running(self) -> bool:
        """Whether a run of any app has not ended."""
        runs = self._call(self._client.ListRuns, ListRunsRequest()).run_dict.values()
        return any(run.status.status != FINISHED for run in runs)

    def start(self, bundle: bytes) -> int:
        """Start a run of this app; its number."""
        fab = Fab(hash_str=app_hash(bundle), content=bundle)
        started = self._call(self._client.StartRun, StartRunRequest(fab=fab))
        if not started.run_id:
            raise UnavailableError("the SuperLink does not start a run")
        return int(started.run_id)

    def _call(self, method: Callable[[_Request], _Reply], request: _Request) -> _Reply:
        try:
            return method(request)
        except (httpx.HTTPError, ValueError) as error:
            detail = error.response.text[:300] if isinstance(error, httpx.HTTPStatusError) else ""
            raise UnavailableError(f"the SuperLink does not answer as it should: {error} {detail}".strip()) from error
