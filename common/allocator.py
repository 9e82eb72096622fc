"""How the C library keeps freed memory, where that can be said (glibc's mallopt)."""

import ctypes
from contextlib import suppress
from typing import Final

_M_ARENA_MAX: Final = -8
_ARENAS: Final = 2


def share_freed_memory() -> None:
    """Let threads that begin from now on share two arenas. By default there are eight for every core, and messages of a
    megabyte that many streams have had stay in each of them.
    """
    with suppress(AttributeError, OSError):  # another C library has no such thing
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _ARENAS)
