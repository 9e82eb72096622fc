"""Over a bad line, how does an upload compare with a bare TCP copy, and does it end by itself whatever the line does?

    python -m benchmarks.bad_line --size-mib 16        # as root; the last line is one JSON object

The line (`benchmarks/line.py`): 100 ms there and back, 10 MB/s, without loss and with 1% of packets lost. An owner's
upload and a bare TCP copy of as many bytes take turns. Then an upload's line is cut for a minute, and another
upload's owner gets a new address while it sends; both must end without a person.
"""

import argparse
import json
import socket
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from benchmarks import moving
from benchmarks.line import COORDINATOR, COORDINATOR_ADDRESS, OWNER, Quality, line, within
from benchmarks.machine import describe
from benchmarks.moving import CHUNK, Plan, finish_stage, run_stage, serving, start_stage

ROUND_TRIP_S: Final = 0.1
BYTES_PER_S: Final = 10e6
LOSSES: Final = {"no loss": 0.0, "1% loss": 0.01}
_PORT: Final = 7999
_BEGUN: Final = 0.3
"""Which part of an upload is sent when its line changes."""


def receive(plan: Plan) -> dict[str, Any]:
    """One end of the bare copy."""
    with socket.create_server((COORDINATOR_ADDRESS, _PORT)) as server:
        (plan.work / "listening").touch()
        connection, _ = server.accept()
        with connection:
            while connection.recv(CHUNK):
                pass
            connection.sendall(b".")
    return {}


def copy(plan: Plan, size: str) -> dict[str, Any]:
    """The other end; it counts until the last byte has arrived."""
    data, left, begun = bytes(CHUNK), int(size), time.perf_counter()
    with socket.create_connection((COORDINATOR_ADDRESS, _PORT)) as connection:
        while left:
            left -= connection.send(data[: min(left, CHUNK)])
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b".", "the copy was cut off"
    return moving.rate(int(size), time.perf_counter() - begun)


def bare_copy(plan: Plan, size: int) -> float:
    """MB/s of one bare copy."""
    (plan.work / "listening").unlink(missing_ok=True)
    receiving = start_stage(_there(plan), receive)
    while not (plan.work / "listening").exists():
        time.sleep(0.05)
    found = run_stage(plan, copy, str(size))
    finish_stage(receiving)
    return float(found["mb_per_s"])


def _there(plan: Plan) -> Plan:
    """Stages of the coordinator's end."""
    return replace(plan, within=within(COORDINATOR))


def upload(plan: Plan, name: str) -> float:
    """MB/s of one upload."""
    _get_ready(plan, name)
    return float(run_stage(plan, moving.up, name)["mb_per_s"])


def _get_ready(plan: Plan, name: str) -> None:
    """Join, consent and fetch the base before what is measured."""
    moving.write_expert(plan, name)
    run_stage(plan, moving.enrol, name)
    run_stage(plan, moving.down, name)


def disturbed(plan: Plan, name: str, disturb: Any) -> dict[str, Any]:
    """An upload whose line is disturbed on the way: whether it ended by itself, how long it took, what came twice."""
    _get_ready(plan, name)
    chunks = -(-plan.expert(name).stat().st_size // CHUNK)
    sending = start_stage(plan, moving.up, name)
    while sending.poll() is None and not _has_sent(plan, name, _BEGUN * chunks):
        time.sleep(0.05)
    disturb()
    found = finish_stage(sending)
    twice = plan.sent(name).stat().st_size - chunks
    return {"ended": True, "seconds": found["seconds"], "chunks_sent_twice": twice}


def _has_sent(plan: Plan, name: str, chunks: float) -> bool:
    return plan.sent(name).exists() and plan.sent(name).stat().st_size >= chunks


def compare(plan: Plan, num_rounds: int, prefix: str) -> dict[str, Any]:
    """Uploads and bare copies in turn over the line that is there."""
    ours, bare = [], []
    for number in range(num_rounds):
        ours.append(upload(plan, f"{prefix}-{number}"))
        bare.append(bare_copy(plan, plan.expert(f"{prefix}-{number}").stat().st_size))
    rates = {"mb_per_s": statistics.median(ours), "bare_tcp_mb_per_s": statistics.median(bare)}
    return {**rates, "ratio_to_bare_tcp": round(rates["mb_per_s"] / rates["bare_tcp_mb_per_s"], 2)}


def measure(plan: Plan, *, num_rounds: int, cut_s: float) -> dict[str, Any]:
    """Every line."""
    found: dict[str, Any] = {}
    moving.found(replace(plan, within=()))
    for name, loss in LOSSES.items():
        with line(Quality(ROUND_TRIP_S, BYTES_PER_S, loss)), serving(_there(plan)):
            found[name] = compare(plan, num_rounds, f"line-{len(found)}")
            print(name, found[name], flush=True)
    with line(Quality(ROUND_TRIP_S, BYTES_PER_S, 0.0)) as bad, serving(_there(plan)):
        found[f"cut of {cut_s:g} s"] = disturbed(plan, "cut", lambda: bad.cut(cut_s))
        found["address change"] = disturbed(plan, "moved", bad.change_address)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size-mib", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cut-s", type=float, default=60.0)
    parser.add_argument("--work", type=Path, help="an empty folder on the disk to be measured")
    arguments = parser.parse_args()
    with moving.folder(arguments.work, needs_gb=40 * arguments.size_mib * CHUNK / 1e9 + 1) as work:
        plan = Plan(work, arguments.size_mib, host=COORDINATOR_ADDRESS, within=within(OWNER))
        result = measure(plan, num_rounds=arguments.rounds, cut_s=arguments.cut_s)
    print(json.dumps({"benchmark": "bad_line", "machine": describe(), "size_mib": arguments.size_mib, **result}))


if __name__ == "__main__":
    main()
