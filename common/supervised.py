"""A program that is kept running: started again after growing pauses where it ends, and ended with whoever keeps it.

It is the head of a session of its own, so that what it has started ends with it. Should this process be killed, the
kernel ends it (Linux): a thread that outlives the child is its parent.
"""

import ctypes
import logging
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from time import monotonic
from typing import Final

from common.errors import ConcordError
from common.pauses import Pauses

logger = logging.getLogger(__name__)

_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 30.0
_STEADY_S: Final = 60.0
"""Whoever lived for so long begins with a short pause again."""
_LEAVE_S: Final = 5.0
_LOOK_EVERY_S: Final = 0.1
_PR_SET_PDEATHSIG: Final = 1


class Supervised:
    """Keeps one program running while the block runs. `command` is asked at each start: it may prepare something."""

    def __init__(
        self, name: str, command: Callable[[], Sequence[str]], *, environment: Mapping[str, str], output: Path
    ) -> None:
        self._name, self._command, self._environment, self._output = name, command, environment, output
        self._stop = Event()
        self._process: subprocess.Popen[bytes] | None = None
        self.starts = 0
        self._thread = Thread(target=self._run, name=name, daemon=True)

    @property
    def pid(self) -> int | None:
        """Its process, while there is one."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def __enter__(self) -> "Supervised":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def restart(self) -> None:
        """End it, to be started again."""
        if self._process is not None:
            _end(self._process)

    def _run(self) -> None:
        pauses = Pauses(longest_s=_LONGEST_PAUSE_S)
        while not self._stop.is_set():
            begun = monotonic()
            try:
                self._keep()
            except (ConcordError, OSError) as error:
                logger.warning("%s cannot be started now: %s", self._name, error)
            except Exception:  # what keeps others running must not end
                logger.exception("%s cannot be started now", self._name)
            if monotonic() - begun > _STEADY_S:
                pauses.begin_again()
            self._stop.wait(pauses.next_s(_FIRST_PAUSE_S))

    def _keep(self) -> None:
        command = list(self._command())
        with self._output.open("ab") as output:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=dict(self._environment),
                start_new_session=True, preexec_fn=_end_with_parent,
            )  # fmt: skip
        self._process = process
        self.starts += 1
        logger.info("%s runs as process %d", self._name, process.pid)
        try:
            while process.poll() is None and not self._stop.wait(_LOOK_EVERY_S):
                pass
        finally:
            _end(process)
        if not self._stop.is_set():
            logger.warning("%s ended with status %s; starting it again. See %s", self._name, process.returncode,
                           self._output)  # fmt: skip


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a program, and what it has started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(_LEAVE_S)
    except subprocess.TimeoutExpired:
        logger.info("process %d does not end; it is killed", process.pid)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


_libc = ctypes.CDLL(None, use_errno=True)


def _end_with_parent() -> None:
    """Have the kernel end this process when its parent ends; elsewhere than on Linux nothing happens."""
    if hasattr(_libc, "prctl"):
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
