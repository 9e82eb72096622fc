"""Does an owner notice when strangers hold ten thousand half-open connections and send rubbish to both ports?

    python -m benchmarks.half_open --half-open 10000      # the last line is one JSON object

An owner calls again and again, over one connection and over a new one every tenth time, while others upload; first in
peace, then while processes hold connections that began a TLS handshake and never go on (those that are closed are
opened anew), send theirs a byte at a time, and send random bytes. Needs as many open files as connections (`ulimit
-Hn`).
"""

import argparse
import json
import random
import resource
import selectors
import socket
import ssl
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from benchmarks import moving
from benchmarks.machine import describe
from benchmarks.many_owners import Watched
from benchmarks.moving import CHUNK, Plan, Process, finish_stage, run_stage, start_stage

A_PROCESS: Final = 2500
"""Connections that one process holds."""
SLOW: Final = 200
"""Connections that send a byte a second."""
NEW_EVERY: Final = 10
_SPARE_FILES: Final = 1000
_RUBBISH_BYTES: Final = 700
_OVER: Final = "over"


def hello() -> bytes:
    """The beginning of a handshake as a client makes it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    arriving, leaving = ssl.MemoryBIO(), ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        context.wrap_bio(arriving, leaving).do_handshake()
    return leaving.read()


def hold(plan: Plan, name: str, port: str, count: str) -> dict[str, Any]:
    """Hold connections that have begun a handshake, until it is over; how many were opened, and held at most."""
    first, wanted, selector = hello()[:100], int(count), selectors.DefaultSelector()
    held, opened, most = 0, 0, 0
    while not (plan.work / _OVER).exists():
        while held < wanted:
            connection = socket.create_connection((plan.host, int(port)), timeout=60)
            connection.setblocking(False)
            with suppress(OSError):
                connection.send(first)
            selector.register(connection, selectors.EVENT_READ)
            held, opened = held + 1, opened + 1
        most = max(most, held)
        (plan.work / f"{name}.ready").touch()
        for key, _ in selector.select(0.5):
            with suppress(OSError):
                if key.fileobj.recv(100):  # type: ignore[union-attr]
                    continue
            selector.unregister(key.fileobj)
            key.fileobj.close()  # type: ignore[union-attr]
            held -= 1
    return {"opened": opened, "most": most}


def annoy(plan: Plan, name: str, *ports: str) -> dict[str, Any]:
    """Slow handshakes, a byte a second each, and random bytes on connections of their own, to all ports."""
    first, sent = hello(), 0
    slow = [_connection(plan, ports[number % len(ports)]) for number in range(SLOW)]
    (plan.work / f"{name}.ready").touch()
    while not (plan.work / _OVER).exists():
        for number, connection in enumerate(slow):
            try:
                connection.send(first[sent % len(first) :][:1])
            except OSError:
                connection.close()
                slow[number] = _connection(plan, ports[number % len(ports)])
        for port in ports:
            for _ in range(10):
                with _connection(plan, port) as rubbish, suppress(OSError):
                    rubbish.sendall(random.randbytes(_RUBBISH_BYTES))
        sent += 1
        time.sleep(1)
    return {"rubbish": sent * 10 * len(ports)}


def _connection(plan: Plan, port: str) -> socket.socket:
    return socket.create_connection((plan.host, int(port)), timeout=60)


def call(plan: Plan, name: str, seconds: str) -> dict[str, Any]:
    """Call for so long: milliseconds of calls over one connection and over new ones, and how many failed."""
    from common.errors import ConcordError
    from owner_client.config import OwnerHome
    from owner_client.membership import open_membership

    home, old, new, failed = OwnerHome(plan.owner(name)), list[float](), list[float](), 0
    end = time.monotonic() + float(seconds)
    with open_membership(home, patience_s=0) as member:
        while time.monotonic() < end:
            begun = time.perf_counter()
            try:
                if len(old) % NEW_EVERY == NEW_EVERY - 1 and len(new) < len(old) // NEW_EVERY + 1:
                    with open_membership(home, patience_s=0) as another:
                        another.client.watch()
                    new.append(1000 * (time.perf_counter() - begun))
                    begun = time.perf_counter()
                member.client.watch()
                old.append(1000 * (time.perf_counter() - begun))
            except ConcordError as error:
                print(error, file=sys.stderr)
                failed += 1
            time.sleep(0.02)
    return {"calls": len(old) + len(new), "failed": failed, "p99_ms": _p99(old), "p50_ms": statistics.median(old),
            "new_p99_ms": _p99(new), "new_p50_ms": statistics.median(new)}  # fmt: skip


def _p99(values: list[float]) -> float:
    return sorted(values)[int(0.99 * (len(values) - 1))]


def measure(plan: Plan, names: list[str], watched: Watched, *, seconds: float) -> dict[str, Any]:
    """Uploads of these owners in turn, beside the calls of another one."""
    calling = start_stage(plan, call, "caller", str(seconds))
    rates = []
    while calling.poll() is None and names:
        rates.append(run_stage(plan, moving.up, names.pop(0))["mb_per_s"])
    found = finish_stage(calling)
    rounded = {key: round(found[key], 1) for key in ("p50_ms", "p99_ms", "new_p50_ms", "new_p99_ms")}
    median = round(statistics.median(rates), 1)
    return {**rounded, "calls": found["calls"], "failed": found["failed"], "upload_mb_per_s": median,
            "uploads": len(rates), "rss_mb": max(watched.mb)}  # fmt: skip


@contextmanager
def serving(plan: Plan) -> Iterator[Process]:
    """The coordinator's daemon; what it says goes to a file: nobody has to read it for it to go on."""
    command = [sys.executable, "-m", "concord", "coordinator", "serve", "--home", str(plan.home)]
    with (
        (plan.work / "serve.out").open("w") as out,
        subprocess.Popen(command, stdout=out, stderr=out, text=True) as run,
    ):
        while "serving" not in (plan.work / "serve.out").read_text():
            assert run.poll() is None, (plan.work / "serve.out").read_text()
            time.sleep(0.1)
        try:
            yield run
        finally:
            run.terminate()


@contextmanager
def strangers(plan: Plan, count: int, ports: tuple[str, str]) -> Iterator[list[Process]]:
    """All of them at work while the block runs."""
    (plan.work / _OVER).unlink(missing_ok=True)
    counts = [min(A_PROCESS, count - begun) for begun in range(0, count, A_PROCESS)]
    names = [f"holder-{number}" for number in range(len(counts))]
    at_work = [start_stage(plan, hold, name, ports[0], str(held)) for name, held in zip(names, counts, strict=True)]
    at_work.append(start_stage(plan, annoy, "annoyer", *ports))
    try:
        for name in (*names, "annoyer"):
            while not (plan.work / f"{name}.ready").exists():
                assert all(each.poll() is None for each in at_work), "a stranger failed"
                time.sleep(0.1)
        yield at_work
    finally:
        (plan.work / _OVER).touch()


def run(plan: Plan, *, count: int, seconds: float) -> dict[str, Any]:
    """In peace, then not."""
    moving.found(plan)
    settings = {line.partition(" = ")[0]: line.partition(" = ")[2] for line in
                (plan.home / "coordinator.toml").read_text().splitlines()}  # fmt: skip
    ports = settings["port"], settings["enrolment_port"]
    with serving(plan) as server:
        watched = Watched(server.pid)
        run_stage(plan, moving.enrol, "caller", *plan.owners)
        for name in plan.owners:
            moving.write_expert(plan, name)
            run_stage(plan, moving.down, name)
        names = plan.owners
        before = measure(plan, names[: len(names) // 2], watched, seconds=seconds)
        print("before", before, flush=True)
        with strangers(plan, count, ports) as at_work:
            during = measure(plan, names[len(names) // 2 :], watched, seconds=seconds)
        print("during", during, flush=True)
        held = [finish_stage(each) for each in at_work]
        watched.end()
    return {
        "half_open": sum(each.get("most", 0) for each in held), "opened": sum(each.get("opened", 0) for each in held),
        "rubbish": held[-1]["rubbish"], "slow": SLOW,
        "calls_p99_ms_before": before["p99_ms"], "calls_p99_ms_during": during["p99_ms"],
        "calls_p50_ms_before": before["p50_ms"], "calls_p50_ms_during": during["p50_ms"],
        "new_connection_p99_ms_before": before["new_p99_ms"], "new_connection_p99_ms_during": during["new_p99_ms"],
        "calls": before["calls"] + during["calls"], "failed_calls": before["failed"] + during["failed"],
        "coordinator_rss_mb_before": before["rss_mb"], "coordinator_rss_mb_peak": max(watched.mb),
        "upload_mb_per_s_before": before["upload_mb_per_s"], "upload_mb_per_s_during": during["upload_mb_per_s"],
        "uploads": before["uploads"] + during["uploads"],
    }  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--half-open", type=int, default=10_000)
    parser.add_argument("--size-mib", type=int, default=64)
    parser.add_argument("--uploads", type=int, default=4, help="at most so many before, and so many during")
    parser.add_argument("--seconds", type=float, default=30.0, help="of calls, before and during")
    parser.add_argument("--work", type=Path, help="an empty folder on the disk to be measured")
    arguments = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < arguments.half_open + _SPARE_FILES:
        sys.exit(f"a process may have {hard} files open here; that is too few for --half-open {arguments.half_open}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    needs_gb = (4 * arguments.uploads + 3) * arguments.size_mib * CHUNK / 1e9 + 0.5
    with moving.folder(arguments.work, needs_gb=needs_gb) as work:
        plan = replace(Plan(work, arguments.size_mib), num_owners=2 * arguments.uploads)
        result = run(plan, count=arguments.half_open, seconds=arguments.seconds)
    fields = {"machine": describe(), "size_mib": arguments.size_mib, "seconds": arguments.seconds}
    print(json.dumps({"benchmark": "half_open", **fields, **result}))


if __name__ == "__main__":
    main()
