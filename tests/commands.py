"""Running `concord` as people and machines do: a process of its own."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil

Event = Mapping[str, object]
STOP_S = 15
"""A command that was told to stop has ended after so long."""


def concord(*arguments: str | Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end."""
    return subprocess.run(
        _line(*arguments),
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )


def start(*arguments: str | Path) -> "subprocess.Popen[str]":
    """Start a command with `--json`."""
    pipe = subprocess.PIPE
    return subprocess.Popen(_line(*arguments, "--json"), stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True)


def _line(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "concord", *map(str, arguments)]


def events(command: "subprocess.Popen[str]") -> Iterator[Event]:
    """What a command started with `start` says, as it comes."""
    assert command.stdout is not None
    for line in command.stdout:
        yield json.loads(line)


def wait_for_step(command: "subprocess.Popen[str]", begins: str) -> None:
    """Wait until it says a step that begins so; fails where it ends without."""
    for event in events(command):
        if event["event"] == "step" and str(event["text"]).startswith(begins):
            return
    raise AssertionError(f"it ended without {begins!r}: {command.communicate()[1]}")


def stop(command: "subprocess.Popen[str]", number: signal.Signals) -> tuple[int, str]:
    """Tell a command alone to stop; its exit status and errors once it, and all that it started, has ended."""
    below = psutil.Process(command.pid).children(recursive=True)
    command.send_signal(number)
    _, errors = command.communicate(timeout=STOP_S)
    _, left = psutil.wait_procs(below, timeout=STOP_S)
    for process in left:
        process.kill()
    assert not left, f"still running: {[process.cmdline() for process in left]}"
    return command.returncode, errors


@contextmanager
def serving(home: Path) -> Iterator[None]:
    """A coordinator's daemon while the block runs."""
    daemon = start("coordinator", "serve", "--home", home)
    try:
        wait_for_step(daemon, "serving")
        yield
    finally:
        stop(daemon, signal.SIGTERM)
