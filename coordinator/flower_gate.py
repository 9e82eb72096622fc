"""The gate to Flower: of the SuperLink, which trusts all who reach it, owners' nodes see `/v1/fleet/` and nothing else.

Who comes shows the certificate that all calls are made with, and speaks for its own node alone: the key that a message
is signed with (which the SuperLink checks) is the one that this owner has registered.
"""

import logging
import re
import ssl
from base64 import b64encode
from collections.abc import Mapping
from typing import Final

from common.errors import ConcordError, NotFoundError, NotPermittedError
from common.forwarding import Asked, Reply, forward
from coordinator.enrolment import Enrolment
from coordinator.flower_nodes import FlowerNodes
from coordinator.permissions import REGISTER_NODE

logger = logging.getLogger(__name__)

REFUSED: Final = {"concord-refused": "1"}
"""On what this gate answers itself. Flower's client tries again after 503; 401 would end it, 403 a run."""
_FLEET: Final = re.compile(r"/v1/fleet/[a-z]+(-[a-z]+)*")
NODE_KEY: Final = "flwr-public-key"
"""The header that has the key which a message is signed with, base64."""


class FlowerGate:
    """Answers what comes from owners' nodes."""

    def __init__(self, enrolment: Enrolment, nodes: FlowerNodes, *, port: int, context: ssl.SSLContext) -> None:
        self._enrolment, self._nodes, self._port, self._context = enrolment, nodes, port, context

    def __call__(self, asked: Asked) -> Reply:
        """Carry it on, or say why not."""
        try:
            self._check(asked)
            return forward(asked, host="127.0.0.1", port=self._port, context=self._context)
        except ConcordError as error:
            logger.info("a node's message is refused: %s", error)
            return Reply(503, str(error).encode(), REFUSED)

    def _check(self, asked: Asked) -> None:
        owner = self._enrolment.authenticate(asked.certificate, REGISTER_NODE)
        if not _FLEET.fullmatch(asked.path):
            raise NotFoundError(f"{asked.path[:80]!r} is not for nodes")
        node = self._nodes.by_owner().get(owner)
        if node is None or not _shows(asked.headers, node.public_key.encode()):
            raise NotPermittedError(f"{owner} does not speak for its own node: register its key first")


def _shows(headers: Mapping[str, str], public_key: bytes) -> bool:
    return headers.get(NODE_KEY) == b64encode(public_key).decode()
