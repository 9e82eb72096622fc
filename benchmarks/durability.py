"""Is what the registry acknowledged still there after a kill -9 at any moment, and after a power cut?

    python -m benchmarks.durability --kills 1000 --power-cuts 2000     # the last line is one JSON object

*Kills*: a process appends statement after statement through the coordinator's registry and passes on every receipt it
got; it is killed at a random moment. Then the registry is opened as a coordinator opens it, and every statement that
was acknowledged must be there, under a root hash that its receipt leads to.

*Power cuts*: the same registry over SQLite files in memory (an APSW VFS) that tell what was synced from what was not.
At a random write or sync the power goes: of what was not synced, a random part is there, in sectors of 512 bytes, in
any order. The control does the same with `synchronous=OFF`, and must lose something, or the cuts would show nothing.
"""

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any, Final

from benchmarks.machine import describe
from benchmarks.power_cut import Disk, PowerCut, store_on
from benchmarks.registry import FEDERATION, Party
from common.trust.note import SigningKey
from common.trust.root import TrustedRoot
from common.trust.statements import (
    BasePublish,
    ContributedFile,
    parse_note,
)
from common.trust.verify import check_receipt
from coordinator.config import CoordinatorSettings
from coordinator.home import create, open_home
from coordinator.log import Log
from coordinator.registry import Registry

DIGEST: Final = "sha256:" + "b" * 64
FILES: Final = {"expert.safetensors": ContributedFile(digest="sha256:" + "e" * 64, size=9)}
LIVES: Final = 50
"""One registry is killed so often before the next is made."""
MOST_MS: Final = 250
"""A process is killed within so long of its first acknowledged statement."""


# kill -9


def kills(count: int, folder: Path) -> dict[str, Any]:
    """Kill appending processes; what was acknowledged and is not there any more."""
    random, acknowledged, lost, home = Random(0), 0, 0, folder / "home"
    for cycle in range(count):
        if cycle % LIVES == 0:
            shutil.rmtree(home, ignore_errors=True)
            create(home, CoordinatorSettings(federation=FEDERATION, origin=f"{FEDERATION}/log"))
            with open_home(home) as coordinator:
                coordinator.registry.issue(BasePublish, base_digest=DIGEST, config_digest=DIGEST, round=0)
        said = _killed(home, cycle, random.uniform(0, MOST_MS) / 1000)
        acknowledged += len(said)
        with open_home(home) as coordinator:  # it refuses a root hash that is not the signed one
            lost += sum(not _is_there(coordinator.registry, *pair) for pair in said)
    return {"kills": count, "acknowledged": acknowledged, "lost": lost}


def _killed(home: Path, cycle: int, after_s: float) -> list[tuple[bytes, bytes]]:
    """Statements and receipts that a process passed on before it was killed."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            _append_until_killed(home, cycle, writing)
        finally:
            os._exit(1)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        first = pipe.readline()
        time.sleep(after_s)  # the moment is what is chosen at random
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        lines = [first, *pipe.readlines()]
    whole = [line for line in lines if line.endswith(b"\n")]
    return [(bytes.fromhex(note), bytes.fromhex(receipt)) for note, receipt in map(json.loads, whole)]


def _append_until_killed(home: Path, cycle: int, writing: int) -> None:
    with open_home(home) as coordinator:
        registry = coordinator.registry
        party = Party(cycle, root=registry.root, base_digest=DIGEST, files=_files(cycle))
        registry.admit(party.joins(), claim=lambda connection: None)
        while True:
            note = party.next()
            receipt = registry.record(note, caller=party.name, arrived=True)
            os.write(writing, json.dumps([note.hex(), receipt.hex()]).encode() + b"\n")


def _files(number: int) -> dict[str, ContributedFile]:
    return {"expert.safetensors": ContributedFile(digest=f"sha256:{number:064x}", size=9)}


def _is_there(registry: Registry, note: bytes, receipt: bytes) -> bool:
    entry, newer = registry.find(parse_note(note)[1])
    old, new = (check_receipt(registry.root, each, entry=entry) for each in (receipt, newer))
    return entry == note and old[0].index == new[0].index


# Power cuts


def power_cuts(count: int, folder: Path, *, synchronous: str) -> dict[str, Any]:
    """Cut the power of appending registries; what was acknowledged and is not there any more."""
    random, acknowledged, lost, broken = Random(1), 0, 0, 0
    keys = SigningKey.generate(f"{FEDERATION}/log"), SigningKey.generate(f"{FEDERATION}/coordinator")
    root = TrustedRoot(FEDERATION, f"{FEDERATION}/log", keys[0].verifier, keys[1].verifier)
    for cycle in range(count):
        disk, said = Disk(random.randrange(2**32)), []
        with _registry(disk, keys, root, folder, synchronous) as registry:
            disk.cut_after = disk.events + random.randrange(1, 300)
            try:
                for entry, receipt in _append(registry, root, cycle):
                    said.append((entry, receipt))
            except Exception:
                assert disk.is_cut
        disk.restore_power()
        acknowledged += len(said)
        missing, is_whole = _after_the_cut(disk, keys, root, folder, synchronous, said)
        lost += missing
        broken += not is_whole
    return {"power_cuts": count, "acknowledged": acknowledged, "lost": lost, "unreadable_or_forked": broken}


@contextmanager
def _registry(
    disk: Disk, keys: tuple[SigningKey, SigningKey], root: TrustedRoot, folder: Path, synchronous: str
) -> Iterator[Registry]:
    shutil.rmtree(folder / "public", ignore_errors=True)
    store = store_on(disk, synchronous=synchronous)
    try:
        log = Log(store, key=keys[0], origin=root.origin, directory=folder / "public" / "log")
        log.committed = lambda appender: setattr(log, "_running", appender.running)  # type: ignore[method-assign]
        yield Registry(store, log, root=root, key=keys[1])
    finally:
        with suppress(PowerCut):
            store.close()


def _append(registry: Registry, root: TrustedRoot, cycle: int) -> Iterator[tuple[bytes, bytes]]:
    registry.issue(BasePublish, base_digest=DIGEST, config_digest=DIGEST, round=0)
    party = Party(cycle, root=root, base_digest=DIGEST, files=FILES)
    registry.admit(party.joins(), claim=lambda connection: None)
    for _ in range(40):
        note = party.next()
        yield note, registry.record(note, caller=party.name, arrived=True)


def _after_the_cut(
    disk: Disk, keys: tuple[SigningKey, SigningKey], root: TrustedRoot, folder: Path, synchronous: str,
    said: list[tuple[bytes, bytes]],
) -> tuple[int, bool]:  # fmt: skip
    try:
        with _registry(disk, keys, root, folder, synchronous) as registry:
            registry.head()
            missing = 0
            for note, receipt in said:
                try:
                    missing += not _is_there(registry, note, receipt)
                except Exception:
                    missing += 1
            return missing, True
    except Exception:
        return len(said), not said


def main() -> None:
    """Run both and the control, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--power-cuts", type=int, default=50)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="concord-durability-") as name:
        folder = Path(name)
        kill = kills(asked.kills, folder)
        power = power_cuts(asked.power_cuts, folder, synchronous="FULL")
        control = power_cuts(max(20, asked.power_cuts // 10), folder, synchronous="OFF")
    found = {"kill": kill, "power": power, "control": control}
    print(json.dumps({"benchmark": "durability", "machine": describe(), **found}))
    fine = not kill["lost"] and not power["lost"] and not power["unreadable_or_forked"]
    if not fine or not control["lost"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
