"""Does the demo show what it promises, in time? Runs `concord demo` once a seed; nothing else should run meanwhile.

    python -m benchmarks.demo [SEED ...]            # 0 1 2 3 by default; the last line is one JSON object

Figures, and what is asked of them: seconds after installation (120 at most on two cores), memory of all processes
together (4 GB), release 1 against the public model by domain (10% better on every owner's, at most 1% worse on public
text), what leaving gives back of the leaver's gain (80% at least), release 2 against release 1 elsewhere (at most 1%
worse). Percentages are of bits per byte on held-out text; positive is better.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.machine import describe

Scores = Mapping[str, Mapping[str, float]]


def main(seeds: list[int]) -> None:
    """Print the figures of all seeds as one JSON object."""
    runs = {}
    for seed in seeds:
        runs[str(seed)] = figures(run(seed))
        print(f"seed {seed}: {json.dumps(runs[str(seed)])}", flush=True)
    holds = all(run["holds"] for run in runs.values())
    print(json.dumps({"benchmark": "demo", "machine": describe(), "holds": holds, "seeds": runs}))


def run(seed: int) -> Mapping[str, Any]:
    """One demo in a directory of its own; its last line."""
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "concord", "demo", "--json", "--seed", str(seed)]
        command += ["--workdir", str(Path(directory) / "demo")]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    result: Mapping[str, Any] = json.loads(output.splitlines()[-1])
    return result


def figures(result: Mapping[str, Any]) -> dict[str, Any]:
    """What is asked of a demo, from its result."""
    scores: Scores = result["bits_per_byte"]
    left, domains = result["left"], list(scores["public"])
    first = {d: better(scores["public"][d], scores["release-1"][d]) for d in domains}
    second = {d: better(scores["release-1"][d], scores["release-2"][d]) for d in domains if d != left}
    gained = scores["public"][left] - scores["release-1"][left]
    given_back = 100 * (scores["release-2"][left] - scores["release-1"][left]) / gained
    holds = {
        "seconds": result["seconds"] <= 120,
        "memory": result["peak_rss_mb"] <= 4000,
        "audit": result["audit"],
        "owners": all(gain >= 10 for domain, gain in first.items() if domain != "public"),
        "public": first["public"] >= -1,
        "given back": given_back >= 80,
        "others": all(abs(change) <= 1 for change in second.values()),
    }
    return {
        "holds": all(holds.values()),
        "fails": [name for name, held in holds.items() if not held],
        "seconds": result["seconds"],
        "seconds_by_part": result["seconds_by_part"],
        "peak_rss_mb": result["peak_rss_mb"],
        "left": left,
        "release_1_better_by_percent": rounded(first),
        "given_back_percent": round(given_back, 1),
        "release_2_better_than_1_by_percent": rounded(second),
        "bits_per_byte": {model: rounded(row, 4) for model, row in scores.items()},
        "sent_bytes": result["sent_bytes"],
        "held_bytes": result["held_bytes"],
    }


def better(before: float, after: float) -> float:
    """By how many percent `after` is below `before`."""
    return 100 * (1 - after / before)


def rounded(row: Mapping[str, float], digits: int = 2) -> dict[str, float]:
    """A row of figures as it is recorded."""
    return {name: round(value, digits) for name, value in row.items()}


if __name__ == "__main__":
    main([int(argument) for argument in sys.argv[1:]] or [0, 1, 2, 3])
