"""Fuzz the parsers: `python -m tests.fuzz.run RUNS [FOLDER]`; the last line is one JSON object.

Two ways, as many runs each: valid inputs with bytes changed at random; and atheris, guided by what the code has not
done yet, where it is installed (`make fuzz`). Each target of atheris is a process of its own. What is found lies in
FOLDER as the input that does it.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from tempfile import mkdtemp

from tests.fuzz.targets import SEEDS, TARGETS, mutated


def main(runs: int, folder: Path) -> None:
    """Run all targets both ways."""
    each, started = -(-runs // (2 * len(TARGETS))), time.monotonic()
    for name, target in TARGETS.items():
        chance = Random(name)
        for _ in range(each):
            data = mutated(chance.choice(SEEDS[name]), chance)
            try:
                target(data)
            except BaseException:
                (folder / f"found-{name}").write_bytes(data)
                raise
    guided = sum(_guided(name, each, folder) for name in TARGETS)
    total = each * len(TARGETS) + guided
    seconds = round(time.monotonic() - started)
    print(json.dumps({"inputs": total, "guided": guided, "targets": len(TARGETS), "found": 0, "seconds": seconds}))


def _guided(name: str, runs: int, folder: Path) -> int:
    corpus = folder / name
    corpus.mkdir(exist_ok=True)
    for number, seed in enumerate(SEEDS[name]):
        (corpus / f"seed-{number}").write_bytes(seed)
    prefix = f"-artifact_prefix={folder}/found-{name}-"
    command = [sys.executable, "-m", "tests.fuzz.guided", name, str(corpus), f"-runs={runs}", "-max_len=4096", prefix]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{name}: {done.stderr[-3000:]}")
    return runs


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else Path(mkdtemp(prefix="concord-fuzz-")))
