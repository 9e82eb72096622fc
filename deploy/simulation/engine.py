"""Flower's engine under a simulation: a ServerApp that leads the consortium's life, a ClientApp that acts for owners.

Small runs stay in this process, a few owners at once; with Ray (`pip install 'flwr[simulation]'`) they are spread over
processes. Nothing that must last is Flower's: owners' homes and the coordinator's registry are files, which messages
name.
"""

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Final, Literal
from uuid import uuid4

os.environ.update(
    FLWR_TELEMETRY_ENABLED="0",
    FLWR_DISABLE_UPDATE_CHECK="1",
    FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION="1",
    RAY_USAGE_STATS_ENABLED="0",
    RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
)

from flwr.app import ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from deploy.simulation import owner
from deploy.simulation.tasks import Ask, Outcome, Task

Engine = Literal["in-process", "ray"]

_TASK: Final = "task"
_OUTCOME: Final = "outcome"
_QUERY: Final = "query"
_RAISED: Final = 2
"""Flower's code for a ClientApp that raised."""
_PULL_EVERY_S: Final = 0.05

client_app = ClientApp()


@client_app.query()
def act(message: Message, context: Context) -> Message:
    """An owner's step; whatever it raises is this message's error."""
    task = Task.from_json(str(message.content.config_records[_TASK][_TASK]))
    seconds, sent_bytes = owner.act(task)
    outcome = MetricRecord({"seconds": seconds, "sent_bytes": sent_bytes})
    return Message(RecordDict({_OUTCOME: outcome}), reply_to=message)


def run(live: Callable[[Ask], None], *, num_owners: int, engine: Engine, workers: int) -> None:
    """Lead a life whose owners act through Flower; `workers` of them at once."""
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        live(lambda tasks: _ask(grid, tasks))

    logging.getLogger("flwr").setLevel(logging.CRITICAL)  # owners that drop out are no errors here
    if engine == "ray":
        _run_with_ray(server_app, num_owners=num_owners, workers=workers)
        return
    run_id = uuid4().int >> 65
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, run_id, 1
    context = Context(run_id=run_id, node_id=0, node_config={}, state=RecordDict(), run_config={})
    with _in_process(num_owners, workers) as grid:
        server_app(grid=grid, context=context)


def _run_with_ray(server_app: ServerApp, *, num_owners: int, workers: int) -> None:
    from flwr.simulation import run_simulation

    resources: dict[str, Any] = {
        "init_args": {"num_cpus": workers, "log_to_driver": False},
        "client_resources": {"num_cpus": 1},
    }
    run_simulation(server_app, client_app, num_owners, backend_config=resources)


def _ask(grid: Grid, tasks: Sequence[Task]) -> list[Outcome]:
    """Send every owner its task, by the node that it is in this run, and wait for all."""
    nodes = _nodes(grid, at_least=max(task.index for task in tasks) + 1)
    messages = [
        Message(
            RecordDict({_TASK: ConfigRecord({_TASK: task.to_json()})}),
            dst_node_id=nodes[task.index],
            message_type=_QUERY,
        )
        for task in tasks
    ]
    sent = dict(zip(grid.push_messages(messages), tasks, strict=True))
    outcomes = []
    while sent:
        for reply in grid.pull_messages(list(sent)):
            outcomes.append(_outcome(sent.pop(reply.metadata.reply_to_message_id), reply))
        time.sleep(_PULL_EVERY_S if sent else 0)
    return outcomes


def _nodes(grid: Grid, *, at_least: int) -> list[int]:
    while len(nodes := sorted(grid.get_node_ids())) < at_least:
        time.sleep(_PULL_EVERY_S)
    return nodes


def _outcome(task: Task, reply: Message) -> Outcome:
    if reply.has_error():
        return Outcome(task, failure=str(reply.error.reason or f"Flower's error {reply.error.code}"))
    found = reply.content.metric_records[_OUTCOME]
    seconds, sent_bytes = found["seconds"], found["sent_bytes"]
    assert isinstance(seconds, float)
    assert isinstance(sent_bytes, int)
    return Outcome(task, seconds=seconds, sent_bytes=sent_bytes)


@contextmanager
def _in_process(num_owners: int, workers: int) -> Iterator["InProcessGrid"]:
    with ThreadPoolExecutor(workers, thread_name_prefix="owner") as pool:
        yield InProcessGrid(pool, num_owners)


class InProcessGrid(Grid):
    """Flower's grid over threads of this process: each message is one call of the ClientApp."""

    def __init__(self, pool: ThreadPoolExecutor, num_owners: int) -> None:
        self._pool, self._num_owners = pool, num_owners
        self._running: dict[str, Future[Message]] = {}
        self._run = Run.create_empty(run_id=TaskIdentity.run_id)

    def set_run(self, run: Run) -> None:
        """What messages belong to."""
        self._run = run

    @property
    def run(self) -> Run:
        """As it was set."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Flower wants it of every grid; `Message` does the same."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """A node an owner, from 1."""
        return range(1, self._num_owners + 1)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Begin what the messages ask; returns their ids."""
        sent = []
        for message in messages:
            message_id = str(uuid4())
            message.metadata.__dict__["_message_id"] = message_id  # as Flower's own grids do
            self._running[message_id] = self._pool.submit(self._call, message)
            sent.append(message_id)
        return sent

    def _call(self, message: Message) -> Message:
        node_id = message.metadata.dst_node_id
        config: dict[str, Any] = {"partition-id": node_id - 1, "num-partitions": self._num_owners}
        context = Context(
            run_id=self._run.run_id, node_id=node_id, node_config=config, state=RecordDict(), run_config={}
        )
        try:
            return client_app(message, context)
        except Exception as error:
            return Message(Error(code=_RAISED, reason=f"{type(error).__name__}: {error}"), reply_to=message)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """What is done by now, once."""
        done = [each for each in message_ids if each in self._running and self._running[each].done()]
        return [self._running.pop(each).result() for each in done]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """What is done when all is, or when the time is over."""
        sent = {each: self._running[each] for each in self.push_messages(messages)}
        ends = None if timeout is None else time.monotonic() + timeout
        for future in sent.values():
            future.exception(None if ends is None else max(0.0, ends - time.monotonic()))
        return self.pull_messages(sent)
