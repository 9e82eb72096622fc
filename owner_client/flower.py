"""Flower at an owner's: a SuperNode as a process of the daemon's, and the one thing that it can reach.

It talks to this daemon on this machine's loopback address, and to nobody else: what is for the coordinator's SuperLink
is carried over the owner's own TLS identity to the coordinator's gate, and messages are handed to the daemon. Each
start has a new key, which the coordinator hears of over the owner's connection.
"""

import hmac
import logging
import re
import secrets
import socket
import sys
from contextlib import ExitStack
from threading import Event
from typing import Final

from common.console import Reporter
from common.errors import ConcordError, ConflictError, UnavailableError
from common.files import make_private_directory, read_required, write_atomic, write_secret
from common.flower import DAEMON, DAEMON_AUTHORITY, DAEMON_WORD, EXCHANGE, check_version, environment, program
from common.forwarding import AnsweringServer, Asked, Reply, forward
from common.rpc.identity import TlsIdentity
from common.rpc.tls_context import Contexts, client_context, loopback_identity, server_context
from common.supervised import Supervised
from common.trust.pki import new_key, openssh_key, public_key
from owner_client import egress
from owner_client.config import OwnerHome
from owner_client.flower_apps import GET_FAB, AllowedApps
from owner_client.flower_exchange import exchange, fall_silent, touch
from owner_client.ledger import ledger_at
from owner_client.membership import open_membership
from owner_client.traffic import Traffic

logger = logging.getLogger(__name__)

_HOST: Final = "127.0.0.1"
_FLEET: Final = re.compile(r"/v1/fleet/([a-z]+(?:-[a-z]+)*)")
_MOST_SAID: Final = 100
_REFUSED: Final = "concord-refused"


class FlowerNode:
    """This owner's node while the block runs.

    Raises:
        NotFoundError, ConflictError: the version of Flower that this is made for is not installed.
    """

    def __init__(self, home: OwnerHome, *, reporter: Reporter) -> None:
        check_version()
        self._home, self._reporter, self._settings = home, reporter, home.settings()
        self._here = home.flower.absolute()
        self._token, self._tls = secrets.token_urlsafe(32), loopback_identity()
        self._stack, self._stop = ExitStack(), Event()
        self._gate_port = 0
        self._traffic = Traffic(ledger_at(home.ledger), to=self._settings.target)
        self._apps = AllowedApps(self._settings.flower.apps, refused=self._refuse_app)
        self._said: set[str] = set()
        self._shown = Contexts(self._identity, client_context)
        self._server: AnsweringServer
        self.supernode: Supervised

    def __enter__(self) -> "FlowerNode":
        make_private_directory(self._here / "home")
        touch(self._home)  # its silence counts from now on
        write_atomic(self._here / "loopback.pem", self._tls.authority)
        write_atomic(self._here / "apps.yaml", self._apps.entities.encode())
        context = server_context(self._tls, require_client=False)
        with ExitStack() as stack:
            self._server = stack.enter_context(AnsweringServer(_HOST, 0, context=lambda: context, answer=self._answer))
            self.supernode = stack.enter_context(self._supernode())
            self._stack = stack.pop_all()
        self._reporter.step("campaigns come over Flower, too")
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._stack.close()
        self._traffic.write()

    def _supernode(self) -> Supervised:
        daemon = {
            DAEMON: f"https://{_HOST}:{self._server.port}{EXCHANGE}",
            DAEMON_WORD: self._token,
            DAEMON_AUTHORITY: str(self._here / "loopback.pem"),
        }
        return Supervised(
            "supernode",
            self._command,
            environment=environment(self._here / "home", daemon),
            output=self._here / "supernode.log",
        )

    def _command(self) -> list[str]:
        """A new key, which the coordinator knows then, and the SuperNode that has it."""
        key, to = new_key(), self._settings.target
        write_secret(self._here / "node.key", openssh_key(key))
        shown = egress.message(self._home.ledger, "request", name="node key", data=public_key(key), to=to)
        with open_membership(self._home, patience_s=0, stop=self._stop) as member:
            try:
                self._gate_port = member.client.register_node(shown)
            except ConflictError:  # it does not run there
                fall_silent(self._home)
                raise
        touch(self._home)
        return [
            sys.executable, program("flower-supernode"), "--superlink", f"{_HOST}:{self._server.port}",
            "--root-certificates", str(self._here / "loopback.pem"),
            "--auth-supernode-private-key", str(self._here / "node.key"),
            "--trusted-entities", str(self._here / "apps.yaml"),
            "--host", _HOST, "--port", str(_free_port()),
        ]  # fmt: skip

    def _answer(self, asked: Asked) -> Reply:
        try:
            if asked.path == EXCHANGE:
                return self._exchange(asked)
            if call := _FLEET.fullmatch(asked.path):
                return self._carry(asked, call[1])
        except ConcordError as error:
            self._say_once(f"over Flower: {error}")
            return Reply(503 if isinstance(error, UnavailableError) else 400, str(error).encode())
        return Reply(404, b"nothing of that name is here")

    def _exchange(self, asked: Asked) -> Reply:
        if not hmac.compare_digest(asked.headers.get("authorization", ""), f"Bearer {self._token}"):
            return Reply(401, b"who is this?")
        return Reply(200, exchange(self._home, asked.body, stop=self._stop))

    def _carry(self, asked: Asked, call: str) -> Reply:
        """To the coordinator's gate and back; an app gets our word, or none."""
        host = self._settings.target.rpartition(":")[0]
        self._traffic.sent(f"Flower {call[:40]}", len(asked.body))
        reply = forward(asked, host=host, port=self._gate_port, context=self._shown())
        if _REFUSED in reply.headers:
            self._say_once(f"the coordinator's gate to Flower says: {reply.body.decode(errors='replace')[:500]}")
        if asked.path == GET_FAB and reply.status == 200:
            reply = Reply(reply.status, self._apps.vouch(reply.body), reply.headers)
        return let_in(reply)

    def _identity(self) -> TlsIdentity:
        """Our certificate as it is now."""
        authority = read_required(self._home.authority, hint="restore it or enrol again")
        return TlsIdentity.parse(read_required(self._home.tls, hint="restore it or enrol again"), authority=authority)

    def _refuse_app(self, found: str) -> None:
        self._say_once(
            f"an app that came over Flower is not run: {found} is neither Concord's own nor in [flower] apps of "
            f"{self._home.settings_file}"
        )

    def _say_once(self, text: str) -> None:
        if text not in self._said:
            if len(self._said) >= _MOST_SAID:
                self._said.clear()
            self._said.add(text)
            self._reporter.warning(text)


def let_in(reply: Reply) -> Reply:
    """A reply as the SuperNode is to see it: nothing in it sends that elsewhere, where it would go."""
    if 300 <= reply.status < 400:
        return Reply(503, b"the coordinator sends a node elsewhere, which is not followed")
    headers = {name: value for name, value in reply.headers.items() if name == "content-type" or name[:5] == "flwr-"}
    return Reply(reply.status, reply.body, headers)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind((_HOST, 0))
        return int(found.getsockname()[1])
