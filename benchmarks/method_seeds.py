"""A study of several seeds: how long it took, what is reported of all of them, and seeds that were measured before.

Seeds need nothing of one another, so a long study may be done in parts, each recorded when it is done.
"""

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from common.errors import ConflictError, MalformedError
from common.files import write_atomic

MEANS: Final = ("table", "cost", "merge_efficiency", "public_cost", "share_of_dense_gain", "opt_out", "top_k")
"""What is reported as a mean over seeds; a system that only the first seed has is reported as it is there."""


def mean_over(values: Sequence[Any]) -> Any:
    """The mean of numbers, or by key of what has keys."""
    if not isinstance(values[0], Mapping):
        return sum(values) / len(values)
    return {key: mean_over([value[key] for value in values if key in value]) for key in values[0]}


class Stopwatch:
    """Seconds that a study took, over all its lives: those of a life that was killed count up to its last stage."""

    def __init__(self, work: Path) -> None:
        self._file, self._started = work / "seconds.json", time.monotonic()
        self._before = float(json.loads(self._file.read_text())) if self._file.exists() else 0.0

    def lap(self) -> float:
        """All seconds so far, kept."""
        total = self._before + time.monotonic() - self._started
        self._file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self._file, json.dumps(round(total, 1)).encode())
        return total


def recorded(path: Path, *, benchmark: str, owners: Sequence[str], sizes: Mapping[str, object]) -> dict[str, Any]:
    """The result of the same study with other seeds, as it was recorded.

    Raises:
        MalformedError: it is no result.
        ConflictError: it is of another study: other owners, or sizes that are not these.
    """
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        theirs = found["benchmark"], sorted(found["merge_efficiency"]["release"]), found["sizes"]
        found["seeds"], found["seconds"], found["machine"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MalformedError(f"{path}: not a result of this benchmark ({error!r})") from error
    ours = benchmark, sorted(owners), json.loads(json.dumps(sizes))
    for what, their, our in zip(("benchmark", "owners", "sizes"), theirs, ours, strict=True):
        if their != our:
            raise ConflictError(f"{path} is of another study, its {what} are not these; measure all seeds anew")
    return found


def check_apart(parts: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> None:
    """Check that no seed is in two parts, nor among those that are yet to be measured.

    Raises:
        ConflictError: one is.
    """
    times = Counter([*map(str, seeds), *(seed for part in parts for seed in part["seeds"])])
    if twice := [seed for seed, count in times.items() if count > 1]:
        raise ConflictError(f"seed {twice[0]} would count twice; choose others with --seeds, or join fewer results")


def joined(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One result of parts that hold different seeds: means over all of them, the time of all, and each part's own time
    and machine."""
    seeds = {seed: found for part in parts for seed, found in part["seeds"].items()}
    runs = [run for part in parts for run in part.get("runs", [_run(part)])]
    return {
        **{key: parts[-1][key] for key in ("benchmark", "machine", "sizes")},
        **{key: mean_over([each[key] for each in seeds.values()]) for key in MEANS},
        "seeds": seeds,
        "runs": runs,
        "seconds": round(sum(run["seconds"] for run in runs), 1),
    }


def _run(part: Mapping[str, Any]) -> dict[str, Any]:
    return {"seeds": list(part["seeds"]), "seconds": part["seconds"], "machine": part["machine"]}
