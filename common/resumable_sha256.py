"""SHA-256 whose state can be put on disk and taken up again: a resumed file is not read a second time for its digest.

Python's `hashlib` keeps the state to itself. OpenSSL's `SHA256_CTX` is a plain structure of fixed layout (FIPS 180-4's
eight words, length, the block begun) and `_hashlib` brings its library along. Where the two cannot be had, or do not
agree with `hashlib`, there is no state to keep, and whoever resumes reads what is there again.
"""

import ctypes
import hashlib
from typing import Any, Final, Self


class _Context(ctypes.Structure):
    _fields_ = (
        ("words", ctypes.c_uint32 * 8),
        ("bits_low", ctypes.c_uint32),
        ("bits_high", ctypes.c_uint32),
        ("block", ctypes.c_uint32 * 16),
        ("used", ctypes.c_uint),
        ("digest_bytes", ctypes.c_uint),
    )


STATE_BYTES: Final = ctypes.sizeof(_Context)


class ResumableSha256:
    """A SHA-256 in progress."""

    def __init__(self) -> None:
        self._plain = hashlib.sha256() if _library is None else None
        self._context = _Context()
        if _library is not None:
            _library.SHA256_Init(ctypes.byref(self._context))

    @classmethod
    def resume(cls, state: bytes) -> Self:
        """Go on from what `state` returned.

        Raises:
            ValueError: it is no such state, or this machine cannot take one up.
        """
        if len(state) != STATE_BYTES or _library is None:
            raise ValueError("no state that a digest can be resumed from")
        resumed = cls()
        resumed._context = _Context.from_buffer_copy(state)
        return resumed

    def copy(self) -> "ResumableSha256":
        """Another one that has taken in the same bytes."""
        other = ResumableSha256()
        other._plain = None if self._plain is None else self._plain.copy()
        other._context = _Context.from_buffer_copy(self._context)
        return other

    def update(self, data: bytes | memoryview) -> None:
        """Take in the next bytes; other threads run meanwhile."""
        if _library is None:
            assert self._plain is not None, "made without a library"
            self._plain.update(data)
        else:
            _library.SHA256_Update(ctypes.byref(self._context), _address(data), len(data))

    def state(self) -> bytes | None:
        """What `resume` goes on from; None where this machine cannot say."""
        return None if _library is None else bytes(self._context)

    def digest(self) -> bytes:
        """The digest of all bytes so far, 32 bytes; more may follow."""
        if _library is None:
            assert self._plain is not None, "made without a library"
            return self._plain.digest()
        final, digest = _Context.from_buffer_copy(self._context), ctypes.create_string_buffer(32)
        _library.SHA256_Final(digest, ctypes.byref(final))
        return digest.raw

    def hexdigest(self) -> str:
        """The same as 64 hex digits."""
        return self.digest().hex()


def _address(data: bytes | memoryview) -> object:
    """Where the bytes are, for C: a part of a message is hashed where it lies."""
    if isinstance(data, bytes):
        return data
    import numpy as np  # loaded by whoever moves experts; an audit hashes bytes

    return ctypes.c_void_p(np.frombuffer(data, np.uint8).__array_interface__["data"][0])


def _load() -> Any | None:
    """OpenSSL's library, where it is there and computes what `hashlib` does, also across a state."""
    try:
        import _hashlib

        library = ctypes.CDLL(_hashlib.__file__)
        library.SHA256_Update.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
        library.SHA256_Init.argtypes = [ctypes.c_void_p]
        library.SHA256_Final.argtypes = [ctypes.c_char_p, ctypes.c_void_p]
    except (ImportError, OSError, AttributeError, TypeError):
        return None
    return library


_library: Any | None = _load()


def _agrees() -> bool:
    sample = bytes(range(251)) * 3
    first = ResumableSha256()
    first.update(sample)
    state = first.state()
    assert state is not None, "asked only where there is a library"
    resumed = ResumableSha256.resume(state)
    resumed.update(sample[:100])
    return resumed.hexdigest() == hashlib.sha256(sample + sample[:100]).hexdigest()


if _library is not None and not _agrees():
    _library = None
