"""Many owners upload at once while certificates live for a minute: does every upload end, in what memory, how fairly?

    python -m benchmarks.many_owners --owners 50 --size-mib 256      # the last line is one JSON object

Every owner is a process of its own that joins, fetches the base, waits for all others and then sends its expert as fast
as it may. Certificates live for 52 seconds: each is renewed, by the transfer that goes on, about every 30. An owner's
share is its rate beside the mean of all.
"""

import argparse
import json
import statistics
import time
from contextlib import suppress
from pathlib import Path
from subprocess import CalledProcessError
from threading import Event, Thread
from typing import Any, Final

from benchmarks import moving
from benchmarks.machine import describe
from benchmarks.moving import CHUNK, Plan, Process, serving, start_stage

CERTIFICATE_S: Final = 52.0
"""Of life: renewal comes at half to two thirds of it, after 26 to 35 seconds."""
_LOOK_EVERY_S: Final = 0.5


def send(plan: Plan, name: str) -> dict[str, Any]:
    """One owner's part: join, get ready, send when the file `go` is there."""
    moving.enrol(plan, name)
    with moving.member_of(plan, name) as member:
        planned = moving.prepare(plan, member, name)
        (plan.work / f"{name}.ready").touch()
        while not (plan.work / "go").exists():
            member.client.connection.refresh()
            time.sleep(0.1)
        renewals = _count_renewals(member)
        seconds = moving.submit(member, planned)
    return {"seconds": seconds, "renewals": len(renewals)}


def _count_renewals(member: Any) -> list[bytes]:
    """Grows with every certificate that this owner gets."""
    renewals: list[bytes] = []
    renew = member.client.renew

    def counted(csr: Any) -> tuple[bytes, bytes]:
        certificate, roots = renew(csr)
        renewals.append(certificate)
        return certificate, roots

    member.client.renew = counted
    return renewals


class Watched:
    """A process's memory, looked at now and then while it works."""

    def __init__(self, pid: int) -> None:
        self.mb: list[int] = []
        self._pid, self._ended = pid, Event()
        self._thread = Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        is_ended = False
        while not is_ended:  # once at least, however quickly they are done
            with suppress(FileNotFoundError, StopIteration):
                self.mb.append(moving.memory_mb(self._pid, "VmRSS"))
            is_ended = self._ended.wait(_LOOK_EVERY_S)

    def end(self) -> list[int]:
        """Look no more; what was seen."""
        self._ended.set()
        self._thread.join()
        return self.mb


def measure(plan: Plan) -> dict[str, Any]:
    """All owners at once."""
    moving.found(plan)
    for name in plan.owners:
        moving.write_expert(plan, name)
    with serving(plan) as server:
        sending = _ready(plan)
        print("all are ready", flush=True)
        watched, begun = Watched(server.pid), time.perf_counter()
        (plan.work / "go").touch()
        found = [_result(each) for each in sending]
        seconds = time.perf_counter() - begun
        memory = watched.end()
    ended = [each for each in found if each is not None]
    size = plan.expert(plan.owners[0]).stat().st_size
    return {"failed": len(found) - len(ended), "seconds": round(seconds, 1), **_shares(ended, size), **_memory(memory)}


def _ready(plan: Plan) -> list[Process]:
    """Owners that wait for the word; a few begin at a time, as many as there are cores to begin them."""
    sending = []
    for name in plan.owners:
        sending.append(start_stage(plan, send, name))
        while len(sending) - sum((plan.work / f"{each}.ready").exists() for each in plan.owners) > 2:
            if any(each.poll() for each in sending):
                raise SystemExit("an owner could not get ready; its error is above")
            time.sleep(0.1)
    while not all((plan.work / f"{name}.ready").exists() for name in plan.owners):
        time.sleep(0.1)
    return sending


def _result(process: Process) -> dict[str, Any] | None:
    try:
        return moving.finish_stage(process)
    except CalledProcessError:
        return None


def _shares(ended: list[dict[str, Any]], size: int) -> dict[str, Any]:
    """Rates of owners while all were under way, and how even they are (Jain's index: 1 where all are equal)."""
    rates = [size / each["seconds"] / 1e6 for each in ended]
    jain = sum(rates) ** 2 / (len(rates) * sum(rate**2 for rate in rates))
    return {
        "mb_per_s_together": round(sum(rates), 1),
        "slowest_share": round(min(rates) / statistics.mean(rates), 2),
        "fastest_share": round(max(rates) / statistics.mean(rates), 2),
        "fairness_index": round(jain, 3),
        "renewals_while_sending": sum(each["renewals"] for each in ended),
        "owner_peak_rss_mb": max(each["peak_mb"] for each in ended),
    }


def _memory(seen: list[int]) -> dict[str, Any]:
    """The coordinator's: flat where the second half of the time needs what the first did."""
    half = len(seen) // 2
    return {
        "server_peak_rss_mb": max(seen),
        "server_first_half_mb": max(seen[: half or 1]),
        "server_second_half_mb": max(seen[half:]),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--owners", type=int, default=50)
    parser.add_argument("--size-mib", type=int, default=256)
    parser.add_argument("--work", type=Path, help="an empty folder on the disk to be measured")
    arguments = parser.parse_args()
    needs_gb = 3.5 * arguments.owners * arguments.size_mib * CHUNK / 1e9 + 1
    with moving.folder(arguments.work, needs_gb=needs_gb) as work:
        result = measure(Plan(work, arguments.size_mib, arguments.owners, CERTIFICATE_S / 3600))
    fields = {"machine": describe(), "size_mib": arguments.size_mib, "owners": arguments.owners}
    print(json.dumps({"benchmark": "many_owners", **fields, **result}))


if __name__ == "__main__":
    main()
