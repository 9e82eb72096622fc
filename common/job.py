"""The frame of a job that is its own process: one JSON file in, JSON lines out, one line on stderr when it fails."""

import contextlib
import ctypes
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, TypeVar

import torch
from pydantic import BaseModel, ValidationError

from common.errors import ConcordError, MalformedError

Config = TypeVar("Config", bound=BaseModel)

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3


def run(arguments: list[str], config_class: type[Config], job: Callable[[Config], Mapping[str, object]]) -> int:
    """Run a job whose only argument is a JSON file with its configuration. Returns the exit status.

    The last line on stdout is `{"event": "done", ...}` with what `job` returns. A failure that Concord names is one
    line on stderr and status 1.
    """
    try:
        if len(arguments) != 1:
            raise MalformedError(f"one argument is expected, the job's JSON file; there are {len(arguments)}")
        emit("done", job(read(Path(arguments[0]), config_class)))
    except ConcordError as error:
        sys.stderr.write(f"{error}\n")
        return 1
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


def emit(event: str, fields: Mapping[str, object]) -> None:
    """Print one event as a JSON line on stdout."""
    sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
    sys.stdout.flush()


def use_cpu(*, threads: int) -> None:
    """Give torch that many threads, and keep freed memory in the process instead of returning it to the system.

    A step frees and asks for the same large tensors again; with glibc's defaults each one is mapped anew and its pages
    zeroed by the kernel, which costs a quarter of the time of a small model's training step.
    """
    torch.set_num_threads(threads)
    with contextlib.suppress(OSError, AttributeError):  # not glibc: nothing to tune
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 2**30)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
