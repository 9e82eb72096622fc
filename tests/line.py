"""A TCP line that tests spoil, and a coordinator that is a process of its own at its other end."""

import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Final, Literal

from tests.commands import STOP_S, wait_for_step

Way = Literal["up", "down"]
PIECE: Final = 64 * 1024
RESET: Final = struct.pack("ii", 1, 0)
"""SO_LINGER: what is closed so is cut, not ended."""


@dataclass
class _Flow:
    """One connection through the line."""

    near: socket.socket
    far: socket.socket
    is_lost: bool = False

    def cut(self) -> None:
        """End it as a broken line does."""
        for each in (self.near, self.far):
            with suppress(OSError):
                each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                each.shutdown(socket.SHUT_RDWR)
            each.close()


@dataclass
class _Plan:
    way: Way
    at: int
    do: Callable[[], object]


@dataclass
class Line:
    """From a port of its own to `target` on this machine, until closed. It counts what an owner sends and gets,
    not what a lost connection never delivers.
    """

    target: int
    delay_s: float = 0.0
    carried: dict[Way, int] = field(default_factory=lambda: {"up": 0, "down": 0})

    def __post_init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self._flows: list[_Flow] = []
        self._source = "127.0.0.1"
        self._moves, self._lock, self.plans = Event(), Lock(), list[_Plan]()
        self._moves.set()
        Thread(target=self._accept, daemon=True).start()

    @property
    def port(self) -> int:
        """Where owners dial."""
        return int(self._server.getsockname()[1])

    def after(self, way: Way, size_bytes: int, do: Callable[[], object]) -> None:
        """Do something once so many more bytes have gone one way."""
        with self._lock:
            self.plans.append(_Plan(way, self.carried[way] + size_bytes, do))

    def cut(self) -> None:
        """Break every connection; new ones can be made."""
        for flow in self._taken():
            flow.cut()

    def stall(self) -> None:
        """Take nothing and carry nothing, and say nothing about it, until `move`."""
        self._moves.clear()

    def move(self) -> None:
        """Carry again."""
        self._moves.set()

    def change_address(self) -> None:
        """Whoever dials has another address: what was open is dead, and nobody is told."""
        for flow in self._taken():
            flow.is_lost = True
        self._source = "127.0.0.2"

    def close(self) -> None:
        """No more of it."""
        self._server.close()
        self.move()
        self.cut()

    def _taken(self) -> list[_Flow]:
        with self._lock:
            return list(self._flows)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._server.accept()
                self._moves.wait()
                try:
                    far = socket.create_connection(("127.0.0.1", self.target), source_address=(self._source, 0))
                except OSError:
                    near.close()
                    continue
                flow = _Flow(near, far)
                with self._lock:
                    self._flows.append(flow)
                for way, source, sink in (("up", near, far), ("down", far, near)):
                    Thread(target=self._carry, args=(flow, way, source, sink), daemon=True).start()

    def _carry(self, flow: _Flow, way: Way, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(PIECE):
                if flow.is_lost:  # how much a sender pours into a dead line before it knows is gRPC's window
                    continue
                self._count(way, len(data))
                self._moves.wait()
                if flow.is_lost:
                    continue
                if self.delay_s:
                    time.sleep(self.delay_s)
                sink.sendall(data)
        if not flow.is_lost:
            flow.cut()

    def _count(self, way: Way, size_bytes: int) -> None:
        with self._lock:
            self.carried[way] += size_bytes
            due = [plan for plan in self.plans if plan.way == way and plan.at <= self.carried[way]]
            self.plans = [plan for plan in self.plans if plan not in due]
        for plan in due:
            plan.do()


@contextmanager
def line_to(port: int) -> Iterator[Line]:
    """A line while the block runs."""
    line = Line(port)
    try:
        yield line
    finally:
        line.close()


_SERVE: Final = """
import sys
from common.rpc import channel
from coordinator import streams
streams.SILENCE_S = float(sys.argv.pop(1))
channel.KEEPALIVE_MS = int(sys.argv.pop(1))
import concord
concord.main()
"""


class Served:
    """A coordinator's process, begun again whenever it is killed."""

    def __init__(self, home: Path, *, silence_s: float, keepalive_ms: int) -> None:
        self._line = [sys.executable, "-c", _SERVE, str(silence_s), str(keepalive_ms)]
        self._line += ["coordinator", "serve", "--home", str(home), "--json"]
        self._ended = Event()
        self._process = self._start()
        wait_for_step(self._process, "serving")
        self._keeper = Thread(target=self._keep, daemon=True)
        self._keeper.start()

    def _start(self) -> "subprocess.Popen[str]":
        return subprocess.Popen(self._line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    @property
    def pid(self) -> int:
        """Of the process that serves now."""
        return self._process.pid

    def kill(self) -> None:
        """SIGKILL, and it is dead; another one is begun."""
        process = self._process
        process.send_signal(signal.SIGKILL)
        process.wait(STOP_S)

    def _keep(self) -> None:
        while self._process.wait() == -signal.SIGKILL and not self._ended.is_set():
            self._process = self._start()

    def stop(self) -> int:
        """End it; its exit status."""
        self._ended.set()
        self._process.terminate()
        self._keeper.join(STOP_S)
        return self._process.wait(STOP_S)


@contextmanager
def served(home: Path, *, silence_s: float = 60.0, keepalive_ms: int = 30_000) -> Iterator[Served]:
    """A coordinator while the block runs; streams that stand still for `silence_s` are ended there."""
    process = Served(home, silence_s=silence_s, keepalive_ms=keepalive_ms)
    try:
        yield process
    finally:
        assert process.stop() == 0
