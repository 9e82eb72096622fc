"""The ServerApp: carries campaigns to owners' nodes and answers back, for as long as any is open. The log decides what
is asked and what was answered, so that a run may end at any moment and another one go on.
"""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from common.errors import ConcordError
from common.flower_messages import FIELD, RECORD
from coordinator.flower_dispatch import FlowerDispatch
from coordinator.flower_nodes import FlowerNodes
from coordinator.home import Coordinator, open_home

logger = logging.getLogger(__name__)

HOME: Final = "CONCORD_HOME"
_LOOK_EVERY_S: Final = 0.5
_LIFETIME_S: Final = 600.0
_AFTER_ERROR_S: Final = 30.0
_AFTERWARDS_S: Final = 60.0
"""How long owners are told, after the last campaign's end, what became of their answers."""
app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """A run of Concord's own."""
    with opened() as coordinator:
        Carrier(grid, coordinator).carry()


@contextmanager
def opened() -> Iterator[Coordinator]:
    """The coordinator whose daemon started this run. What is logged goes to a file, too, of its Flower directory."""
    with open_home(Path(os.environ[HOME])) as coordinator:
        handler = logging.FileHandler(coordinator.home.flower / "campaigns.log")
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        logger.addHandler(handler)
        try:
            yield coordinator
        finally:
            logger.removeHandler(handler)
            handler.close()


@dataclass(frozen=True, slots=True)
class _Sent:
    owner: str
    node: int


class Carrier:
    """Carries campaigns over a grid. Use it in a ServerApp of your own to decide when and whom to ask."""

    def __init__(self, grid: Grid, coordinator: Coordinator) -> None:
        self._grid = grid
        self._nodes = FlowerNodes(coordinator.home, coordinator.settings)
        self._every_s = coordinator.settings.flower.every_s
        self._sent: dict[str, _Sent] = {}
        self._next_s: dict[int, float] = {}
        """By node, when it may be asked again: a node that was started anew waits for nothing."""
        self.dispatch = FlowerDispatch(coordinator.campaigns, coordinator.registry)

    def carry(self) -> None:
        """Until no campaign is open and everybody knows what became of its answers."""
        until = time.monotonic() + _AFTERWARDS_S
        while time.monotonic() < until:
            self.turn()
            if self.dispatch.is_open():
                until = time.monotonic() + _AFTERWARDS_S
            elif not self.dispatch.has_untold():
                return
            time.sleep(_LOOK_EVERY_S)

    def turn(self, *, owners: set[str] | None = None) -> None:
        """Take what came, and ask everybody, or these owners, who has nothing to answer now."""
        known = {owner: node.id for owner, node in self._nodes.by_owner().items()}
        self._sent = {name: sent for name, sent in self._sent.items() if known.get(sent.owner) == sent.node}
        for reply in self._grid.pull_messages(list(self._sent)) if self._sent else ():
            self._hear(reply)
        busy, now = {sent.owner for sent in self._sent.values()}, time.monotonic()
        online = set(self._grid.get_node_ids())
        for owner, node in known.items():
            is_due = now >= self._next_s.get(node, 0) and owner not in busy
            if node in online and is_due and (owners is None or owner in owners):
                self._ask(owner, node)

    def _ask(self, owner: str, node: int) -> None:
        data = self.dispatch.ask(owner)
        if data is None:
            return
        content = RecordDict({RECORD: ConfigRecord({FIELD: data})})
        message = Message(content, dst_node_id=node, message_type="query", ttl=_LIFETIME_S)
        for name in self._grid.push_messages([message]):
            self._sent[name] = _Sent(owner, node)

    def _hear(self, reply: Message) -> None:
        sent = self._sent.pop(reply.metadata.reply_to_message_id)
        self._next_s[sent.node] = time.monotonic() + self._every_s
        if reply.has_error():
            logger.warning("the node of %s answers: %s", sent.owner, reply.error.reason)
            self._next_s[sent.node] += _AFTER_ERROR_S
            return
        data = reply.content[RECORD][FIELD]
        try:
            came = self.dispatch.heard(sent.owner, data if isinstance(data, bytes) else b"")
        except ConcordError as error:
            logger.warning("what %s says is not taken: %s", sent.owner, error)
            return
        if came:
            self._next_s[sent.node] = 0  # it is told at once that they are in the log
