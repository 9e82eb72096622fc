"""Which node of Flower's is whose: an owner names its node's key over its own connection, the SuperLink hears it from
us. A node is as disposable as a run: each SuperNode that is started has a new key, and the one before is forgotten, so
that nobody waits for its heartbeat to be missed.
"""

import json
from dataclasses import dataclass
from typing import Final

from common.errors import ConflictError
from common.files import make_private_directory, read_required, taking_turns, write_atomic
from common.flower import IMPORTING
from common.trust.pki import check_public_key
from coordinator.config import CoordinatorHome, CoordinatorSettings

AUTHORITY_NAME: Final = "loopback.pem"
"""What whoever calls the SuperLink trusts; the file is in Flower's directory."""
_NAME: Final = "nodes.json"


@dataclass(frozen=True, slots=True)
class Node:
    """An owner's node: its number at the SuperLink, and its key, PEM."""

    id: int
    public_key: str


class FlowerNodes:
    """The nodes of one coordinator's owners, by owner; kept in a file that every process may read."""

    def __init__(self, home: CoordinatorHome, settings: CoordinatorSettings) -> None:
        self._home, self._settings = home.flower, settings.flower

    def by_owner(self) -> dict[str, Node]:
        """Everybody's latest node."""
        try:
            raw = json.loads((self._home / _NAME).read_bytes())
        except FileNotFoundError:
            return {}
        return {owner: Node(**fields) for owner, fields in raw.items()}

    def register(self, owner: str, public_key: bytes) -> int:
        """Make this the key of the owner's node; the port where the node is let in.

        Raises:
            MalformedError: it is no such key.
            ConflictError: campaigns do not run over Flower here.
            UnavailableError: Flower is not running now.
        """
        check_public_key(public_key)
        if not self._settings.enabled:
            raise ConflictError("campaigns do not run over Flower here; leave [flower] off in owner.toml")
        with IMPORTING:
            from coordinator.flower_control import Control

        make_private_directory(self._home)
        with taking_turns(self._home / "nodes.lock"):
            known = self.by_owner()
            before = known.get(owner)
            if before is not None and before.public_key.encode() == public_key:
                return self._settings.port
            authority = read_required(self._home / AUTHORITY_NAME, hint="the daemon makes it when it starts Flower")
            with Control(self._settings.local_port, authority=authority) as control:
                if before is not None:
                    control.forget_node(before.id)
                known[owner] = Node(control.register_node(public_key, name=owner), public_key.decode())
            fields = {name: {"id": node.id, "public_key": node.public_key} for name, node in known.items()}
            write_atomic(self._home / _NAME, json.dumps(fields, indent=2).encode(), mode=0o600)
        return self._settings.port
