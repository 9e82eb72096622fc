"""How fast does an expert travel, each way, beside the plainest thing that gRPC with mutual TLS can do?

    python -m benchmarks.transfer --size-mib 1024        # the last line is one JSON object

Over loopback, a coordinator's daemon and an owner's client: the base comes down, an expert of about the size that is
asked for goes up, checked value by value and recorded. Beside both, in turn with them, runs the ceiling
(`benchmarks/ceiling.py`). Then processes are killed (SIGKILL) at nine tenths of an upload, and what was sent twice is
counted. Memory is the peak of each process (VmHWM). A peer (`benchmarks/peers.py`) moves a file of at most 256 MiB.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any, Final

from benchmarks import ceiling, moving, peers
from benchmarks.machine import describe
from benchmarks.moving import CHUNK, Plan, run_stage, serving, start_stage

KILL_AT: Final = 0.9
KILLED: Final = ("coordinator", "owner", "both")
_FILES_OF_A_SIZE: Final = 6
"""Base at home and published, an expert with what arrives of it, and the ceiling's two: what must fit on the disk."""


def rounds(plan: Plan, names: list[str]) -> dict[str, Any]:
    """Each of `names` fetches and sends once, with a ceiling before each. All that is sent is read from the disk."""
    downs, ups, ceilings = [], [], []
    moving.write_expert(plan, "ceiling")
    with serving(plan) as server:
        run_stage(plan, moving.enrol, *names)
        for name in names:
            print("round of", name, flush=True)
            moving.drop_from_page_cache(plan.expert("ceiling"), plan.base_file)
            ceilings.append(ceiling.measure(plan))
            moving.drop_from_page_cache(*_published(plan, plan.base_file))
            downs.append(run_stage(plan, moving.down, name))
            path = moving.write_expert(plan, name)
            moving.drop_from_page_cache(plan.expert("ceiling"), plan.base_file)
            ceilings.append(ceiling.measure(plan))
            moving.drop_from_page_cache(path)
            ups.append(run_stage(plan, moving.up, name))
            _forget(plan, name)
            path.unlink()
        server_mb = moving.peak_mb(server.pid)
    plan.expert("ceiling").unlink()
    found = {way: _beside(way, each, ceilings, server_mb) for way, each in (("up", ups), ("down", downs))}
    found["up"]["check_s"] = statistics.median(each["check_s"] for each in ups)
    return found


def _beside(way: str, measured: list[dict[str, Any]], ceilings: list[dict[str, Any]], server_mb: int) -> dict[str, Any]:
    limits = [each[way]["mb_per_s"] for each in ceilings]
    rates = [each["mb_per_s"] for each in measured]
    return {
        "mb_per_s": statistics.median(rates),
        "ceiling_mb_per_s": statistics.median(limits),
        "ceiling_best_mb_per_s": max(limits),
        "ratio_to_ceiling": round(statistics.median(rates) / statistics.median(limits), 2),
        "all_mb_per_s": rates,
        "client_peak_rss_mb": max(each["peak_mb"] for each in measured),
        "server_peak_rss_mb": server_mb,
    }


def _forget(plan: Plan, name: str) -> None:
    """Make room on the disk: what an owner fetched, and what the coordinator published of its expert."""
    for path in plan.owner(name).rglob("model.safetensors"):
        path.unlink()
    for path in _published(plan, plan.expert(name)):
        path.unlink()


def _published(plan: Plan, like: Path) -> list[Path]:
    """What the coordinator published of a file's size."""
    objects = (plan.home / "public" / "objects").rglob("*")
    return [path for path in objects if path.is_file() and path.stat().st_size == like.stat().st_size]


def resent(plan: Plan, name: str, victims: str) -> float:
    """Kill near the end of an upload, begin again what was killed, and say which part was sent twice."""
    path = moving.write_expert(plan, name)
    chunks = -(-path.stat().st_size // CHUNK)
    with serving(plan) as first:
        run_stage(plan, moving.enrol, name)
        run_stage(plan, moving.down, name)
        killed = {"coordinator": [str(first.pid)], "owner": ["self"], "both": [str(first.pid), "self"]}[victims]
        sending = start_stage(plan, moving.up, name, str(int(KILL_AT * chunks)), *killed)
        if victims != "owner":
            first.wait()
        if victims != "coordinator":
            sending.communicate()
            sending = start_stage(plan, moving.up, name)
        if victims == "owner":
            moving.finish_stage(sending)
    if victims != "owner":
        with serving(plan):
            moving.finish_stage(sending)
    twice = (plan.sent(name).stat().st_size - chunks) / chunks
    _forget(plan, name)
    path.unlink()
    return round(max(0.0, twice), 4)


def measure(plan: Plan, *, num_rounds: int, kills: bool) -> dict[str, Any]:
    """Everything but the peers."""
    moving.found(plan)
    result = rounds(plan, plan.owners[:num_rounds])
    if kills:
        names = plan.owners[num_rounds:]
        print("killing at", KILL_AT, flush=True)
        twice = {victims: resent(plan, name, victims) for victims, name in zip(KILLED, names, strict=True)}
        result["resent_fraction_after_kill"] = twice
    return result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size-mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-kills", action="store_true")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--work", type=Path, help="an empty folder on the disk to be measured")
    arguments = parser.parse_args()
    owners = arguments.rounds + (0 if arguments.no_kills else len(KILLED))
    needs_gb = _FILES_OF_A_SIZE * arguments.size_mib * CHUNK / 1e9 + 2
    with moving.folder(arguments.work, needs_gb=needs_gb) as work:
        plan = Plan(work, arguments.size_mib, owners)
        result = measure(plan, num_rounds=arguments.rounds, kills=not arguments.no_kills)
        if not arguments.no_peers:
            result["peers"] = peers.measure(work, size_mib=min(arguments.size_mib, peers.LARGEST_MIB))
    print(json.dumps({"benchmark": "transfer", "machine": describe(), "size_mib": arguments.size_mib, **result}))


if __name__ == "__main__":
    main()
