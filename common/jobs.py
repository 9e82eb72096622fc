"""Jobs: work that needs torch runs as a subprocess, so that a daemon needs none and survives its faults.

A job is a module started as `python -m <module> JOB.json`. It writes events as JSON lines on its standard output
(`{"event": "progress", ...}`), its results as files, and on failure one message on standard error and exit status 1.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Event, Thread
from typing import Final, Protocol

from common.errors import JobFailedError

JobEvent = Mapping[str, object]

_LOOK_EVERY_S: Final = 0.2


class RunJob(Protocol):
    """How a job is run: `run_job`, or what stands in for it where hundreds of small ones run on one machine."""

    def __call__(
        self,
        module: str,
        config: Mapping[str, object],
        *,
        config_path: Path,
        on_event: Callable[[JobEvent], None],
        stop: Event | None = None,
    ) -> None: ...


def run_job(
    module: str,
    config: Mapping[str, object],
    *,
    config_path: Path,
    on_event: Callable[[JobEvent], None],
    stop: Event | None = None,
) -> None:
    """Run a job to its end, handing on its events. When `stop` is set the job is told to stop and saves its state.

    Raises:
        JobFailedError: it failed; the message is what it said.
        KeyboardInterrupt: it was stopped because `stop` was set.
    """
    config_path.write_text(json.dumps(plain(config), indent=2) + "\n")
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", module, str(config_path)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        try:
            _follow(process, on_event, stop)
        finally:
            _end(process)
        if process.returncode and stop is not None and stop.is_set():
            raise KeyboardInterrupt
        if process.returncode:
            errors.seek(0)
            raise JobFailedError(_reason(module, process.returncode, errors.read().decode(errors="replace")))


def plain(value: object) -> object:
    """Paths as text, all else as it is."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _follow(process: subprocess.Popen[str], on_event: Callable[[JobEvent], None], stop: Event | None) -> None:
    assert process.stdout is not None
    if stop is not None:
        Thread(target=_stop_when, args=(stop, process), daemon=True).start()
    for line in process.stdout:
        if line.startswith("{"):
            on_event(json.loads(line))
    process.wait()


def _stop_when(stop: Event, process: subprocess.Popen[str]) -> None:
    """Tell the process to stop when `stop` is set; end with it."""
    while process.poll() is None:
        if stop.wait(_LOOK_EVERY_S):
            process.terminate()
            return


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _reason(module: str, status: int, output: str) -> str:
    lines = [line for line in output.strip().splitlines() if line.strip()]
    if status < 0:
        return f"{module} was stopped by {signal.Signals(-status).name}; start it again and it goes on where it was"
    return lines[-1].removeprefix("Error: ") if lines else f"{module} ended with status {status}"
