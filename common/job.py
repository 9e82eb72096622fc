"""The frame of a job that is its own process: one JSON file in, JSON lines out, one line on stderr when it fails."""

import contextlib
import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from types import FrameType
from typing import Final, TypeVar

import torch
from pydantic import BaseModel, ValidationError

from common.errors import ConcordError, JobFailedError, MalformedError

Config = TypeVar("Config", bound=BaseModel)

EXIT_STOPPED: Final = 143
"""Exit status of a job that SIGTERM stopped after it saved its state: run it again to go on."""

_listener: ContextVar[Callable[[Mapping[str, object]], None] | None] = ContextVar("listener", default=None)

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3


class StoppedError(JobFailedError):
    """The job was asked to stop and saved its state."""


class StopSignal:
    """Whether somebody asked this process to stop: SIGTERM is noted, for the job to end where its state is whole."""

    def __init__(self) -> None:
        self.requested = False

    def listen(self) -> "StopSignal":
        """Note SIGTERM from now on; call it in a job's main thread."""
        signal.signal(signal.SIGTERM, self._note)
        return self

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self.requested = True


def run(arguments: list[str], config_class: type[Config], job: Callable[[Config], Mapping[str, object]]) -> int:
    """Run a job whose only argument is a JSON file with its configuration. Returns the exit status.

    The last line on stdout is `{"event": "done", ...}` with what `job` returns. A failure that Concord names is one
    line on stderr and status 1; `StoppedError` is status `EXIT_STOPPED`. A job that nobody reads any more ends at its
    next event.
    """
    try:
        if len(arguments) != 1:
            raise MalformedError(f"one argument is expected, the job's JSON file; there are {len(arguments)}")
        emit("done", job(read(Path(arguments[0]), config_class)))
    except ConcordError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_STOPPED if isinstance(error, StoppedError) else 1
    except BrokenPipeError:  # who started it is gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_STOPPED
    return 0


def read(path: Path, config_class: type[Config]) -> Config:
    """A job's configuration; MalformedError names the first field that is wrong."""
    try:
        return config_class.model_validate_json(path.read_bytes())
    except OSError as error:
        raise MalformedError(f"{path}: cannot be read ({error.strerror})") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise MalformedError(f"{path}: {place}: {first['msg']}") from error


@contextlib.contextmanager
def heard_by(listener: Callable[[Mapping[str, object]], None]) -> Iterator[None]:
    """Hand events to `listener` while the block runs, for a job that is called and not started."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def emit(event: str, fields: Mapping[str, object]) -> None:
    """Print one event as a JSON line on stdout, or hand it to who listens."""
    listener = _listener.get()
    if listener is not None:
        listener({"event": event, **fields})
        return
    sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
    sys.stdout.flush()


def use_cpu(*, threads: int) -> None:
    """Give torch and the tokenizer that many threads, and keep freed memory in the process.

    A step frees and asks for the same large tensors again; with glibc's defaults each one is mapped anew and its pages
    zeroed by the system, which costs a quarter of the time of a small model's training step.
    """
    torch.set_num_threads(threads)
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    with contextlib.suppress(OSError, AttributeError):  # not glibc: nothing to tune
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 2**30)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
