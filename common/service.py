"""What a daemon tells the service manager that started it: that it is ready, what it does, that it lives (sd_notify).

The protocol is a datagram to the socket that NOTIFY_SOCKET names; without one nothing is said.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread
from typing import Final

_MICROSECONDS: Final = 1_000_000


def tell(text: str) -> None:
    """Tell the service manager, if there is one."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.sendto(text.encode(), f"\0{address[1:]}" if address[0] == "@" else address)


@contextmanager
def being_watched() -> Iterator[None]:
    """Say that this is ready, that it lives while the block runs, as often as is asked for, and then that it stops."""
    ended, every_s = Event(), int(os.environ.get("WATCHDOG_USEC") or 0) / _MICROSECONDS / 2
    tell("READY=1")
    if every_s:

        def live() -> None:
            while not ended.wait(every_s):
                tell("WATCHDOG=1")

        Thread(target=live, name="watchdog", daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        tell("STOPPING=1")
