"""Kills its own process with SIGKILL at one chosen point of its work, once.

Python imports this module at start where this folder is on PYTHONPATH. A point is a list of (audit event, pattern)
pairs that must come in this order; the process dies when the last one comes, before what it announces is done. Events
are Python's own (`open`, `os.rename`, ...: https://docs.python.org/3/library/audit_events.html) and `concord.point`,
which marks what no file operation marks. Patterns are searched in the event's text arguments, joined by blanks.
"""

import json
import os
import re
import signal
import sys
from collections.abc import Sequence

POINT_VARIABLE = "CRASH_POINT"
MARKER_VARIABLE = "CRASH_MARKER"


class _Crash:
    def __init__(self, point: Sequence[Sequence[str]], marker: str) -> None:
        self._steps = [(event, re.compile(pattern)) for event, pattern in point]
        self._marker = marker

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        if not self._steps or event != self._steps[0][0]:
            return
        words = [os.fsdecode(each) for each in arguments if isinstance(each, str | bytes | os.PathLike)]
        if self._steps[0][1].search(" ".join(words)):
            del self._steps[0]
            if not self._steps:
                os.close(os.open(self._marker, os.O_CREAT | os.O_EXCL))
                os.kill(os.getpid(), signal.SIGKILL)


if POINT_VARIABLE in os.environ and not os.path.exists(os.environ[MARKER_VARIABLE]):  # noqa: PTH110
    sys.addaudithook(_Crash(json.loads(os.environ[POINT_VARIABLE]), os.environ[MARKER_VARIABLE]))
