"""An array down and up again through Flower's own messages."""

import json
import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

client = ClientApp()
server = ServerApp()


def _array(mib: int) -> ArrayRecord:
    values = np.random.default_rng(0).random(mib * 1024 * 256, dtype=np.float32)
    return ArrayRecord({"weights": Array(values)})


@client.train()
def train(message: Message, context: Context) -> Message:
    asked = message.content["asked"]
    content = RecordDict({"asked": asked})
    if asked["send"]:
        content["arrays"] = _array(int(str(asked["mib"])))
    return Message(content, reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    mib, found = int(context.run_config["mib"]), dict[str, float | str]()
    while not (nodes := list(grid.get_node_ids())):
        time.sleep(0.5)
    for way in ("none", "down", "up"):
        content = RecordDict({"asked": ConfigRecord({"send": way == "up", "mib": mib})})
        if way == "down":
            content["arrays"] = _array(mib)
        begun = time.perf_counter()
        (sent,) = grid.push_messages([Message(content, dst_node_id=nodes[0], message_type="train")])
        replies = list[Message]()
        while not replies:
            replies = list(grid.pull_messages([sent]))
            time.sleep(0.02)
        found[way] = time.perf_counter() - begun
        if replies[0].has_error():
            found["error"] = str(replies[0].error)
    Path(str(context.run_config["result"])).write_text(json.dumps(found))
