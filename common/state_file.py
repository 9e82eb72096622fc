"""What a daemon is doing, in a small file that status commands read: whole or not at all, written at most so often."""

import json
import os
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from time import monotonic
from typing import Final

from common.console import Reporter
from common.files import temporary_name
from common.service import tell
from common.trust.statements import format_time

WRITE_EVERY_S: Final = 1.0
_RATE_OVER_S: Final = 10.0
_MEGABYTE: Final = 1_000_000


class StateFile:
    """One daemon's. Anybody who may read the home may read it; it holds no secret."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = Lock()
        now = format_time(datetime.now(UTC))
        self._fields: dict[str, object] = {"pid": os.getpid(), "started_at": now}
        self._written_at = -WRITE_EVERY_S

    def set(self, *, at_once: bool = True, **fields: object) -> None:
        """Say something new; None takes it away. What is not to be written `at_once` may wait a second."""
        with self._lock:
            self._fields |= fields
            if at_once or monotonic() - self._written_at >= WRITE_EVERY_S:
                self._write()

    def _write(self) -> None:
        now = format_time(datetime.now(UTC))
        fields = {name: value for name, value in self._fields.items() if value is not None}
        temporary = temporary_name(self._path)
        try:
            temporary.write_text(json.dumps({**fields, "updated_at": now}))
            temporary.replace(self._path)
        except OSError:
            return  # a full disk keeps nobody from working: what is said is old then, and says so
        self._written_at = monotonic()


def read_state(path: Path) -> Mapping[str, object]:
    """What was said last; nothing where nothing was."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


class StatedReporter:
    """A reporter whose every word is in the state file as well, and known to the service manager."""

    def __init__(self, reporter: Reporter, state: StateFile) -> None:
        self._reporter, self._state = reporter, state
        self._task = ""
        self._seen: deque[tuple[float, float]] = deque()

    def beside(self) -> "StatedReporter":
        """For a thread beside: its steps are said, and do not hide in the file what the daemon is doing."""
        return _BesideReporter(self._reporter, self._state)

    def step(self, text: str) -> None:
        """What was done, or is begun."""
        self._reporter.step(text)
        self._state.set(doing=text, since=format_time(datetime.now(UTC)), task=None, done=None, total=None,
                        mb_per_s=None)  # fmt: skip
        tell(f"STATUS={text}")

    def table(self, *arguments: object) -> None:
        """Tables are for people alone."""
        self._reporter.table(*arguments)  # type: ignore[arg-type]

    def warning(self, text: str) -> None:
        """What a person should look at."""
        self._reporter.warning(text)
        self._state.set(warning=text, warned_at=format_time(datetime.now(UTC)))

    def progress(self, task: str, *, done: float, total: float, note: str = "") -> None:
        """How far something is, and how fast that went lately."""
        self._reporter.progress(task, done=done, total=total, note=note)
        now = monotonic()
        if task != self._task:
            self._task, self._since = task, format_time(datetime.now(UTC))
            self._seen.clear()
        self._seen.append((now, done))
        while now - self._seen[0][0] > _RATE_OVER_S:
            self._seen.popleft()
        began, then = self._seen[0]
        rate = (
            (done - then) / (now - began) / _MEGABYTE if now > began and "ing" in task and total > _MEGABYTE else None
        )
        self._state.set(at_once=done >= total, task=task, task_since=self._since, done=done, total=total,
                        note=note or None, mb_per_s=None if rate is None else round(rate, 2))  # fmt: skip

    def result(self, fields: Mapping[str, object]) -> None:
        """Results are the commands'."""
        self._reporter.result(fields)


class _BesideReporter(StatedReporter):
    def step(self, text: str) -> None:
        """What was done beside."""
        self._reporter.step(text)
