"""Is every upload that was finished intact, whoever was killed while it went on, and what is sent twice?

    python -m benchmarks.upload_kills --kills 200 --size-mib 64      # the last line is one JSON object

An owner sends its expert; at a chunk drawn by chance, and a moment later, the coordinator, the owner or both are killed
(SIGKILL) and begun again, until the upload is finished. Then the next owner's turn comes. At the end the coordinator's
published files are read and compared with what owners sent, and the log is audited.
"""

import argparse
import json
import statistics
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from signal import SIGKILL
from threading import Thread
from typing import Any, Final

from benchmarks import moving
from benchmarks.machine import describe
from benchmarks.moving import CHUNK, Plan, Process, run_stage, serving, start_stage
from common.trust.manifest import digest_of_file

VICTIMS: Final = ("coordinator", "owner", "both")
MOST_KILLS_AN_UPLOAD: Final = 4


@dataclass
class Found:
    """What happened so far."""

    kills: dict[str, int] = field(default_factory=lambda: dict.fromkeys(VICTIMS, 0))
    resent_chunks: list[float] = field(default_factory=list)
    """Of every upload, by kill."""
    digests: list[str] = field(default_factory=list)
    """Of every upload that was finished."""


def one_upload(plan: Plan, name: str, *, random: Random, found: Found) -> None:
    """One owner's upload through kills: after one of the coordinator alone the owner's process goes on to the end."""
    path = moving.write_expert(plan, name)
    chunks = -(-path.stat().st_size // CHUNK)
    before = sum(found.kills.values())
    with ExitStack() as coordinators:
        server = coordinators.enter_context(serving(plan))
        run_stage(plan, moving.enrol, name)
        run_stage(plan, moving.down, name)
        for _ in range(MOST_KILLS_AN_UPLOAD):
            victims = random.choice(VICTIMS)
            ids = {"coordinator": [str(server.pid)], "owner": ["self"], "both": [str(server.pid), "self"]}[victims]
            seen = plan.sent(name).stat().st_size if plan.sent(name).exists() else 0
            moment = seen + random.randint(1, max(1, chunks - seen))
            sending = start_stage(plan, moving.up, name, str(moment), *ids)
            killed, server = _outlive(plan, sending, server, coordinators, with_owner=victims == "both")
            found.kills[victims] += killed
            if sending.wait() == 0:
                break
        else:
            run_stage(plan, moving.up, name)
    kills = sum(found.kills.values()) - before
    found.resent_chunks.append((plan.sent(name).stat().st_size - chunks) / max(1, kills))
    found.digests.append(digest_of_file(path))
    path.unlink()


def _outlive(
    plan: Plan, sending: Process, server: Process, coordinators: ExitStack, *, with_owner: bool
) -> tuple[bool, Process]:
    """Wait until the owner's process has ended, beginning the coordinator anew where it was killed, before it or with
    it; whether anything was, and the coordinator that serves now.
    """
    ended = Thread(target=sending.communicate)
    ended.start()
    while ended.is_alive() and server.poll() is None:
        ended.join(0.05)
    killed = server.poll() is not None
    if killed:
        server = coordinators.enter_context(serving(plan))
    ended.join()
    if with_owner and not killed and sending.returncode == -SIGKILL:
        server.wait()  # killed first, but it may not have ended yet
    if server.poll() is not None:  # killed in the moment in which the owner's process ended
        killed, server = True, coordinators.enter_context(serving(plan))
    return killed or sending.returncode != 0, server


def intact(plan: Plan, digests: list[str]) -> int:
    """How many of the finished uploads are published and are what was sent, every byte read; the log is audited."""
    objects = plan.home / "public" / "objects"
    moving.concord("audit", "log", str(plan.home / "public"))
    return sum(digest_of_file(objects / digest.removeprefix("sha256:")) == digest for digest in digests)


def measure(plan: Plan, *, kills: int, seed: int) -> dict[str, Any]:
    """Kill until `kills` are reached, and look at what is there."""
    moving.found(plan)
    found, random = Found(), Random(seed)
    while sum(found.kills.values()) < kills:
        one_upload(plan, f"owner-{len(found.digests)}", random=random, found=found)
        print(len(found.digests), "uploads,", sum(found.kills.values()), "kills", flush=True)
    return {
        "kills": found.kills,
        "uploads_finished": len(found.digests),
        "uploads_intact": intact(plan, found.digests),
        "resent_mib_per_kill": {
            "median": round(statistics.median(found.resent_chunks), 1),
            "most": round(max(found.resent_chunks), 1),
        },
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--size-mib", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="an empty folder on the disk to be measured")
    arguments = parser.parse_args()
    needs_gb = arguments.kills * 3 * arguments.size_mib * CHUNK / 1e9 + 1
    with moving.folder(arguments.work, needs_gb=needs_gb) as work:
        result = measure(Plan(work, arguments.size_mib), kills=arguments.kills, seed=arguments.seed)
    fields = {"machine": describe(), "size_mib": arguments.size_mib, "seed": arguments.seed}
    print(json.dumps({"benchmark": "upload_kills", **fields, **result}))


if __name__ == "__main__":
    main()
