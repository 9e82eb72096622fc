"""A bad line between two network namespaces: a process that delays, drops and shapes the packets of two TUN devices.

    owner's namespace [tun] <- this process -> [tun] coordinator's namespace

Needs root, `ip` and /dev/net/tun. The process reads `cut SECONDS` from its standard input and loses everything for as
long, and says `works` when it does.
"""

import ctypes
import fcntl
import heapq
import os
import random
import selectors
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

OWNER: Final = "concord-owner"
COORDINATOR: Final = "concord-coord"
OWNER_ADDRESSES: Final = ("10.97.0.2", "10.97.0.3")
COORDINATOR_ADDRESS: Final = "10.97.0.1"
_IP: Final = "/usr/sbin/ip"
_DEVICE: Final = "line0"
_TUNSETIFF: Final = 0x400454CA
_IFF_TUN: Final = 0x0001
_IFF_NO_PI: Final = 0x1000
_CLONE_NEWNET: Final = 0x40000000
_QUEUE_S: Final = 0.2
"""How much may wait for its turn; what comes beyond is dropped, as by any router."""


@dataclass(frozen=True)
class Quality:
    """What a line is like: the way there and back takes `round_trip_s`, each way bears `bytes_per_s`."""

    round_trip_s: float
    bytes_per_s: float
    loss: float


class Line:
    """The process, from outside."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def cut(self, seconds: float) -> None:
        """Lose everything from now on for a while."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"cut {seconds}\n")
        self._process.stdin.flush()

    def change_address(self) -> None:
        """Give the owner's end another address: what it had open is dead, and nobody says so."""
        before, after = OWNER_ADDRESSES
        _ip("-n", OWNER, "addr", "add", f"{after}/24", "dev", _DEVICE)
        _ip("-n", OWNER, "addr", "del", f"{before}/24", "dev", _DEVICE)
        _ip("-n", OWNER, "addr", "replace", f"{after}/24", "dev", _DEVICE)


@contextmanager
def line(quality: Quality) -> Iterator[Line]:
    """Both namespaces and a line between them while the block runs."""
    _remove()
    for name in (OWNER, COORDINATOR):
        _ip("netns", "add", name)
    fields = [str(value) for value in (quality.round_trip_s, quality.bytes_per_s, quality.loss)]
    command = [sys.executable, "-m", "benchmarks.line", *fields]
    try:
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            if "works" not in process.stdout.readline():
                sys.exit("the line could not be made; this needs root and /dev/net/tun")
            for name, address in ((OWNER, OWNER_ADDRESSES[0]), (COORDINATOR, COORDINATOR_ADDRESS)):
                _ip("-n", name, "addr", "add", f"{address}/24", "dev", _DEVICE)
                _ip("-n", name, "link", "set", _DEVICE, "up")
                _ip("-n", name, "link", "set", "lo", "up")
            try:
                yield Line(process)
            finally:
                process.terminate()
    finally:
        _remove()


def within(namespace: str) -> tuple[str, ...]:
    """What to put before a command so that it runs there."""
    return (_IP, "netns", "exec", namespace)


def _remove() -> None:
    for name in (OWNER, COORDINATOR):
        subprocess.run([_IP, "netns", "del", name], check=False, stderr=subprocess.DEVNULL)


def _ip(*arguments: str) -> None:
    subprocess.run([_IP, *arguments], check=True)


# Inside


def _open_device(namespace: str) -> int:
    """A TUN device in a namespace, which this process enters."""
    with Path("/run/netns", namespace).open() as there:
        if ctypes.CDLL(None, use_errno=True).setns(there.fileno(), _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"namespace {namespace} may not be entered")
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH", _DEVICE.encode(), _IFF_TUN | _IFF_NO_PI))
    return descriptor


class _Shaper:
    """Packets on their way."""

    def __init__(self, quality: Quality, ends: tuple[int, int]) -> None:
        self._quality = quality
        self._other = {ends[0]: ends[1], ends[1]: ends[0]}
        self._free_at = dict.fromkeys(ends, 0.0)
        self._flying: list[tuple[float, int, int, bytes]] = []
        self._count = 0
        self.cut_until = 0.0

    def take(self, end: int, packet: bytes, now: float) -> None:
        """A packet came in at one end."""
        free_at = max(now, self._free_at[end])
        if now < self.cut_until or free_at - now > _QUEUE_S or random.random() < self._quality.loss:
            return
        self._free_at[end] = free_at + len(packet) / self._quality.bytes_per_s
        self._count += 1
        due = self._free_at[end] + self._quality.round_trip_s / 2
        heapq.heappush(self._flying, (due, self._count, self._other[end], packet))

    def deliver(self, now: float) -> float | None:
        """Let go of what is due; seconds until more is."""
        while self._flying and self._flying[0][0] <= now:
            _, _, end, packet = heapq.heappop(self._flying)
            if now >= self.cut_until:
                os.write(end, packet)
        return max(0.0, self._flying[0][0] - now) if self._flying else None


def _main() -> None:
    """Work until killed."""
    round_trip_s, bytes_per_s, loss = (float(value) for value in sys.argv[1:4])
    ends = _open_device(OWNER), _open_device(COORDINATOR)
    shaper = _Shaper(Quality(round_trip_s, bytes_per_s, loss), ends)
    selector = selectors.DefaultSelector()
    for descriptor in (*ends, sys.stdin.fileno()):
        selector.register(descriptor, selectors.EVENT_READ)
    print("works", flush=True)
    while True:
        for key, _ in selector.select(shaper.deliver(time.monotonic())):
            if key.fd in ends:
                shaper.take(key.fd, os.read(key.fd, 65536), time.monotonic())
                continue
            words = os.read(key.fd, 100).split()
            if not words:
                return
            shaper.cut_until = time.monotonic() + float(words[1])


if __name__ == "__main__":
    _main()
