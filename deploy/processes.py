"""Running `concord` commands as processes of their own, and measuring all of them together."""

import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from threading import Event, Thread
from typing import Final

import psutil

from common.errors import JobFailedError

Fields = Mapping[str, object]
OnEvent = Callable[[Fields], None]

_STOP_S: Final = 20.0
_SAMPLE_S: Final = 0.25


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on now."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


class Command:
    """One `concord` command with `--json`, running. Its events are handed on as they come."""

    def __init__(self, arguments: Sequence[str | Path], *, output: Path, on_event: OnEvent) -> None:
        self._output = output
        self._on_event = on_event
        self.result: Fields = {}
        self._steps: list[str] = []
        self._changed = threading.Condition()
        self._errors = output.open("ab")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "concord", *map(str, arguments), "--json"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            start_new_session=True,  # ctrl-C is for the demo, which then stops each command in order
        )
        self._reader = Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            event = json.loads(line)
            if event["event"] == "result":
                self.result = event
            with self._changed:
                if event["event"] == "step":
                    self._steps.append(event["text"])
                self._changed.notify_all()
            self._on_event(event)
        self._process.wait()
        with self._changed:
            self._changed.notify_all()

    @property
    def pid(self) -> int:
        """The process's."""
        return self._process.pid

    def rss_bytes(self) -> int:
        """Memory that it holds now."""
        return int(psutil.Process(self.pid).memory_info().rss)

    def wait(self, stop: Event) -> Fields:
        """Wait for its end; returns its result.

        Raises:
            JobFailedError: it failed, with what it said last.
        """
        with self._changed:
            while self._process.poll() is None or self._reader.is_alive():
                if stop.is_set():
                    raise KeyboardInterrupt
                self._changed.wait(0.2)
        self._raise_if_failed()
        return self.result

    def wait_for_step(self, start: str, stop: Event) -> None:
        """Wait until it says a step that starts so."""
        with self._changed:
            while not any(step.startswith(start) for step in self._steps):
                if stop.is_set():
                    raise KeyboardInterrupt
                if self._process.poll() is not None and not self._reader.is_alive():
                    self._raise_if_failed()
                    raise JobFailedError(f"a command ended early; see {self._output}")
                self._changed.wait(0.2)

    def _raise_if_failed(self) -> None:
        if self._process.returncode:
            lines = self._output.read_text(errors="replace").strip().splitlines()
            raise JobFailedError(
                lines[-1].removeprefix("Error: ") if lines else f"a command failed; see {self._output}"
            )

    def stop(self) -> None:
        """Tell it to stop and wait until it has; kill it where it does not."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(timeout=_STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._reader.join()
        self._errors.close()


def rss_bytes(*, but: int | None = None) -> int:
    """Memory that this process and those it started hold now, all but one where one is named."""
    me, total = psutil.Process(), 0
    for process in [me, *me.children(recursive=True)]:
        try:
            total += 0 if process.pid == but else process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


class MemoryMeter:
    """The largest memory that this process and all below it held together, in bytes (resident, shared pages once
    a process)."""

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._stop = Event()
        self._thread = Thread(target=self._sample, daemon=True)

    def __enter__(self) -> "MemoryMeter":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stop.wait(_SAMPLE_S):
            self.peak_bytes = max(self.peak_bytes, rss_bytes())
