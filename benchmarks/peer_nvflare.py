"""One end of NVIDIA FLARE's own transfer of a blob, over gRPC and mutual TLS. Runs in an environment that has nvflare.

python peer_nvflare.py server|client WORK PORT MIB      # the client prints the seconds of each way as JSON
"""

import json
import sys
import time
from concurrent.futures import Future
from pathlib import Path
from threading import Event

from nvflare.fuel.f3.cellnet.cell import Cell
from nvflare.fuel.f3.drivers.driver_params import DriverParams
from nvflare.fuel.f3.message import Message

CHANNEL, TOPIC, WAIT_S = "bench", "blob", 600.0


def credentials(work: Path) -> dict[str, str]:
    """Certificates as the benchmark made them."""
    files = {
        DriverParams.CA_CERT: "authority.pem",
        DriverParams.SERVER_CERT: "server.pem",
        DriverParams.SERVER_KEY: "server.key",
        DriverParams.CLIENT_CERT: "client.pem",
        DriverParams.CLIENT_KEY: "client.key",
    }
    return {name.value: str(work / file) for name, file in files.items()}


def main(role: str, work: Path, port: int, mib: int) -> None:
    """Serve one blob each way, or send one and get one."""
    name, other = ("server", "site-1") if role == "server" else ("site-1", "server")
    cell = Cell(name, f"grpc://127.0.0.1:{port}", True, credentials(work))
    arrived = Event()

    def got(future: Future[object], *_: object, **__: object) -> None:
        future.result()
        (work / f"{role}.got").touch()
        arrived.set()

    cell.register_blob_cb(CHANNEL, TOPIC, got)
    cell.start()
    (work / f"{role}.ready").touch()
    data = bytes(mib * 2**20)
    if role == "server":
        arrived.wait(WAIT_S)
        cell.send_blob(CHANNEL, TOPIC, other, Message(payload=data)).result(WAIT_S)
        _wait_for(work / "client.got")
        cell.stop()
        return
    time.sleep(2)  # until the two know each other; it has no event for that
    begun = time.perf_counter()
    cell.send_blob(CHANNEL, TOPIC, other, Message(payload=data)).result(WAIT_S)
    _wait_for(work / "server.got")
    sent = time.perf_counter()
    arrived.wait(WAIT_S)
    print(json.dumps({"up_s": sent - begun, "down_s": time.perf_counter() - sent}))
    cell.stop()


def _wait_for(path: Path) -> None:
    until = time.monotonic() + WAIT_S
    while not path.exists() and time.monotonic() < until:
        time.sleep(0.005)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
