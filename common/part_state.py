"""How far a part is committed, kept beside it: written in place, so that a commit costs no change of a directory.

Two slots are written in turn, each with a digest of its own. A power cut tears at most the one that was being written;
the other one says what was committed before.
"""

import hashlib
import os
from pathlib import Path
from typing import Final

from common.resumable_sha256 import STATE_BYTES, ResumableSha256

_CHECK_BYTES: Final = 32
_BODY_BYTES: Final = 8 + STATE_BYTES
_SLOT_BYTES: Final = 4096
"""A block of its own on any disk: what is written to one slot leaves the other one alone."""


class PartState:
    """The state of one part, open for what comes next."""

    def __init__(self, path: Path, *, anew: bool) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        self._turn = 0
        if anew or os.fstat(self._descriptor).st_size != 2 * _SLOT_BYTES:
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, bytes(2 * _SLOT_BYTES), 0)
            os.fsync(self._descriptor)
        else:
            self._turn = 1 - _latest(os.pread(self._descriptor, 2 * _SLOT_BYTES, 0))

    def save(self, committed: int, digest: bytes | None) -> None:
        """Put on disk that so many bytes are, and the digest's state after them."""
        body = committed.to_bytes(8, "little") + (digest or bytes(STATE_BYTES))
        os.pwrite(self._descriptor, body + hashlib.sha256(body).digest(), self._turn * _SLOT_BYTES)
        os.fdatasync(self._descriptor)
        self._turn = 1 - self._turn

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._descriptor)


def read_state(path: Path, *, most: int) -> tuple[int, ResumableSha256 | None]:
    """Bytes that are committed, at most `most`, and the digest after them where it can be taken up."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return 0, None
    body = max((_body(raw, 0), _body(raw, 1)), key=_committed)
    committed = _committed(body)
    if committed <= 0 or committed > most:
        return 0, None
    try:
        return committed, ResumableSha256.resume(body[8:]) if any(body[8:]) else None
    except ValueError:
        return committed, None


def _latest(raw: bytes) -> int:
    return int(_committed(_body(raw, 1)) > _committed(_body(raw, 0)))


def _committed(body: bytes) -> int:
    """Bytes that a slot says are committed; -1 where it says nothing that can be believed."""
    return int.from_bytes(body[:8], "little") if body else -1


def _body(raw: bytes, slot: int) -> bytes:
    """What a slot holds; empty where that was torn."""
    start = slot * _SLOT_BYTES
    body, check = raw[start : start + _BODY_BYTES], raw[start + _BODY_BYTES : start + _BODY_BYTES + _CHECK_BYTES]
    return body if len(body) == _BODY_BYTES and hashlib.sha256(body).digest() == check else b""
