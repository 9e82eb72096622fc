"""How soon does `concord` answer, and how much memory does an idle coordinator hold?

    python -m benchmarks.commands                   # the last line is one JSON object

Times are the median of eleven runs, beside what the same Python needs to start and do nothing. Memory is resident set
size a few seconds after the coordinator began to serve.
"""

import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from benchmarks.machine import describe

RUNS = 11


def main() -> None:
    """Print the figures as one JSON object."""
    figures = {
        "benchmark": "commands",
        "machine": describe(),
        "python_alone_s": seconds("-c", "pass"),
        "help_s": seconds("-m", "concord", "--help"),
        "version_s": seconds("-m", "concord", "--version"),
        "idle_coordinator_mb": idle_coordinator_mb(),
    }
    print(json.dumps(figures))


def seconds(*arguments: str) -> float:
    """Median time of a Python command from start to end."""
    times = []
    for _ in range(RUNS):
        started = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - started)
    return round(statistics.median(times), 4)


def idle_coordinator_mb() -> float:
    """Resident memory of a serving coordinator that nobody calls, in MB."""
    with tempfile.TemporaryDirectory() as directory:
        home, concord = Path(directory) / "coordinator", [sys.executable, "-m", "concord", "coordinator"]
        ports = [str(free_port()), str(free_port())]
        options = ["--federation", "bench.example", "--port", ports[0], "--enrolment-port", ports[1]]
        subprocess.run([*concord, "init", "--home", home, *options], check=True, stdout=subprocess.DEVNULL)
        serve = [*concord, "serve", "--home", str(home), "--json"]
        with subprocess.Popen(serve, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            while "serving" not in process.stdout.readline():
                pass
            time.sleep(3)  # let it settle: what is measured is rest
            resident = psutil.Process(process.pid).memory_info().rss
            process.terminate()
        return round(resident / 1e6, 1)


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


if __name__ == "__main__":
    main()
