"""Flower beside the daemon: its SuperLink and SuperExec as processes of ours, the gate that owners' nodes come to, and
a run wherever a campaign is open. All of it may be killed and lost: what counts is in the log.

The SuperLink and its Control API listen on this machine's loopback address alone. Control has no authentication of its
own: whoever has an account on this machine could start apps there.
"""

import logging
import socket
import sys
from collections.abc import Callable
from contextlib import ExitStack
from threading import Event, Thread
from time import monotonic
from typing import TYPE_CHECKING, Final

from common.console import Reporter
from common.errors import ConcordError, UnavailableError
from common.files import make_private_directory, write_atomic, write_secret
from common.flower import IMPORTING, app, app_hash, check_version, environment, program
from common.forwarding import AnsweringServer
from common.pauses import Pauses
from common.rpc.identity import TlsIdentity
from common.rpc.tls_context import Contexts, loopback_identity, server_context, trusting
from common.supervised import Supervised
from coordinator.flower_gate import FlowerGate
from coordinator.flower_nodes import AUTHORITY_NAME, FlowerNodes
from coordinator.home import Coordinator
from coordinator.server_identity import ServerIdentity

if TYPE_CHECKING:
    from coordinator.flower_control import Control

logger = logging.getLogger(__name__)

_LOOK_EVERY_S: Final = 2.0
_ASK_EVERY_S: Final = 0.2
_START_S: Final = 30.0
_FIRST_PAUSE_S: Final = 2.0
_LONGEST_PAUSE_S: Final = 60.0
_UNHEALTHY_S: Final = 60.0
"""A SuperLink that runs and lists no nodes for so long is started again."""
_CONNECTION: Final = "concord"


class FlowerEngine:
    """Runs Flower while the block runs.

    Raises:
        NotFoundError, ConflictError: the version of Flower that this is made for is not installed.
        UnavailableError: the gate's port is in use.
    """

    def __init__(self, coordinator: Coordinator, *, reporter: Reporter) -> None:
        check_version()
        self._coordinator, self._reporter = coordinator, reporter
        self._home, self._settings = coordinator.home.flower.absolute(), coordinator.settings.flower
        self._stack, self._stop = ExitStack(), Event()
        self._online: int | None = None
        self.superlink: Supervised
        self._thread = Thread(target=self._run, name="flower", daemon=True)

    def __enter__(self) -> "FlowerEngine":
        tls = loopback_identity()
        self._prepare(tls)
        with ExitStack() as stack:
            stack.enter_context(self._gate(tls))
            self.superlink = stack.enter_context(self._child("superlink", self._superlink))
            stack.enter_context(self._child("superexec", self._superexec))
            self._stack = stack.pop_all()
        self._thread.start()
        self._reporter.step(f"campaigns run over Flower, too; nodes come to port {self._settings.port}; the app is "
                            f"{app_hash(app())}")  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._stack.close()

    def _prepare(self, tls: TlsIdentity) -> None:
        make_private_directory(self._home / "home")
        write_secret(self._home / "loopback.key", bytes(tls))
        write_atomic(self._home / AUTHORITY_NAME, tls.authority)
        connection = (
            f'[superlink]\ndefault = "{_CONNECTION}"\n[superlink.{_CONNECTION}]\naddress = "{self._link}"\n'
            f'root-certificates = "{self._home / AUTHORITY_NAME}"\n'
        )
        write_atomic(self._home / "home" / "config.toml", connection.encode())

    @property
    def _link(self) -> str:
        return f"127.0.0.1:{self._settings.local_port}"

    def _gate(self, tls: TlsIdentity) -> AnsweringServer:
        shown = Contexts(ServerIdentity(self._coordinator), lambda tls: server_context(tls, require_client=True))
        nodes = FlowerNodes(self._coordinator.home, self._coordinator.settings)
        port, context = self._settings.local_port, trusting(tls.authority)
        gate = FlowerGate(self._coordinator.enrolment, nodes, port=port, context=context)
        return AnsweringServer(
            self._coordinator.settings.host,
            self._settings.port,
            context=shown,
            answer=gate,
        )

    def _child(self, name: str, command: Callable[[], list[str]]) -> Supervised:
        also = {"CONCORD_HOME": str(self._coordinator.home.path.absolute())}
        return Supervised(
            name,
            command,
            environment=environment(self._home / "home", also),
            output=self._home / f"{name}.log",
        )

    def _superlink(self) -> list[str]:
        key, authority = str(self._home / "loopback.key"), str(self._home / AUTHORITY_NAME)
        return [
            sys.executable, program("flower-superlink"), "--isolation", "process", "--host", "127.0.0.1",
            "--port", str(self._settings.local_port), "--database", str(self._home / "superlink.sqlite"),
            "--ssl-certfile", key, "--ssl-keyfile", key, "--ssl-ca-certfile", authority, "--enable-supernode-auth",
            "--disable-runtime-dependency-installation",
        ]  # fmt: skip

    def _superexec(self) -> list[str]:
        authority = str(self._home / AUTHORITY_NAME)
        self._wait_for_superlink()
        return [sys.executable, program("flower-superexec"), "--runtime-api-address", self._link,
                "--root-certificates", authority]  # fmt: skip

    def _wait_for_superlink(self) -> None:
        """What starts before it waits long for its own next try."""
        end = monotonic() + _START_S
        while not self._stop.wait(_ASK_EVERY_S):
            try:
                socket.create_connection(("127.0.0.1", self._settings.local_port), timeout=_START_S).close()
            except OSError as error:
                if monotonic() > end:
                    raise UnavailableError("the SuperLink does not listen yet") from error
            else:
                return

    def _run(self) -> None:
        with IMPORTING:
            from coordinator.flower_control import Control

        with Control(self._settings.local_port, authority=(self._home / AUTHORITY_NAME).read_bytes()) as control:
            self._look_after(control)

    def _look_after(self, control: "Control") -> None:
        pauses, well_s, pause_s = Pauses(longest_s=_LONGEST_PAUSE_S), monotonic(), _LOOK_EVERY_S
        while not self._stop.wait(pause_s):
            pause_s = _LOOK_EVERY_S
            try:
                if self._look(control):
                    pause_s = pauses.next_s(_FIRST_PAUSE_S)
                well_s = monotonic()
            except ConcordError as error:
                logger.info("%s; looking again", error)
                if monotonic() - well_s > _UNHEALTHY_S:
                    self._reporter.warning(f"Flower is started again, since {error}")
                    self.superlink.restart()
                    well_s = monotonic()
            except Exception:  # a loop that ends would leave Flower without runs
                logger.exception("looking after Flower failed; looking again")
                pause_s = _LONGEST_PAUSE_S

    def _look(self, control: "Control") -> bool:
        """See who is there, and start a run where a campaign is open and none goes on; whether that was so."""
        online = len(control.online())
        if online != self._online:
            self._online = online
            self._reporter.step(f"{online} of the owners' nodes are there over Flower")
        if not self._settings.start_runs or not online or not self._is_open() or control.is_running():
            return False
        self._start(control)
        return True

    def _start(self, control: "Control") -> None:
        try:
            logger.info("run %d of Flower's carries campaigns", control.start(app()))
        except UnavailableError as error:
            self._reporter.warning(f"no run of Flower's can be started: {error}")

    def _is_open(self) -> bool:
        return any(campaign.closed_index is None for campaign in self._coordinator.campaigns.all())
