"""Streams of chunks into an upload's files: which stream may write, and each chunk checked before it is written.

A chunk comes with the digest of the file up to its end. So one pass over the bytes says that this chunk is whole and,
after the last one, that the file is.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Final

from common.errors import ConflictError, MalformedError, TooLargeError, UnavailableError, VerificationError
from common.model.arriving import ArrivingExpert
from common.part_file import PartFile
from common.rpc.chunk_message import ChunkMessage
from common.rpc.transfer import ChunkPlan

_TURN_TIMEOUT_S: Final = 2.0


class Stream:
    """One stream of chunks and the files that it writes."""

    def __init__(self) -> None:
        self.arrivals: dict[str, Arrival] = {}

    def commit(self) -> None:
        """Return when all that came is on disk."""
        for arrival in self.arrivals.values():
            arrival.commit()

    def close(self) -> None:
        """Write no more; what is on disk stays."""
        for arrival in self.arrivals.values():
            arrival.close()


class Turn:
    """Who may write to one upload: the stream that came last, and nobody while it is finished."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._latest: Stream | None = None

    def give_to(self, stream: Stream) -> None:
        """From now on `stream` alone writes."""
        with self._held():
            self._close_latest()
            self._latest = stream

    @contextmanager
    def held_by(self, stream: Stream) -> Iterator[None]:
        """Let `stream` write, if no later one came."""
        with self._held():
            if self._latest is not stream:
                raise ConflictError("another call took this upload over; open it again")
            yield

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Let no stream write meanwhile, nor one that is open now ever again."""
        with self._held():
            self._close_latest()
            yield

    def end(self, stream: Stream) -> None:
        """`stream` is over; one that another took over was closed then."""
        with self._lock:
            if self._latest is stream:
                self._close_latest()

    def _close_latest(self) -> None:
        if self._latest is not None:
            self._latest.close()
            self._latest = None

    @contextmanager
    def _held(self) -> Iterator[None]:
        if not self._lock.acquire(timeout=_TURN_TIMEOUT_S):
            raise UnavailableError("this upload is being checked; try again soon")
        try:
            yield
        finally:
            self._lock.release()


class RefusedBytesError(MalformedError):
    """Bytes that no expert has."""


class Arrival:
    """One file as it comes, chunk by chunk, each checked before it is written; no part where it is here already."""

    def __init__(self, part: PartFile | None, expert: ArrivingExpert | None, plan: ChunkPlan) -> None:
        self._part, self._expert, self._plan = part, expert, plan

    @property
    def received_chunks(self) -> int:
        """Chunks that are on disk."""
        return self._plan.num_chunks if self._part is None else self._plan.received_chunks(self._part.committed)

    def put(self, chunk: ChunkMessage) -> bool:
        """Take a chunk; whether more is on disk than before."""
        if self._part is None or self._expert is None:
            return False
        there = self._plan.received_chunks(self._part.position)
        if chunk.index < there:
            return False  # sent again after a lost reply: it is here
        if chunk.index > there:
            raise ConflictError(f"chunk {chunk.index} came where {there} is next; open the upload again")
        try:
            length = self._plan.length(chunk.index)
        except ValueError as error:
            raise TooLargeError(f"more bytes than announced: {error}") from error
        if len(chunk.data) != length:
            raise MalformedError(
                f"chunk {chunk.index} has {len(chunk.data)} bytes, not {length}; send all of it, and no more"
            )
        digest = self._part.digest_with(chunk.data)
        if digest.digest() != chunk.sha256:
            raise VerificationError(f"chunk {chunk.index} was damaged on the way; send it again")
        try:
            self._expert.feed(chunk.data)
        except MalformedError as error:
            raise RefusedBytesError(str(error)) from error
        before = self._part.committed
        self._part.append(chunk.data, digest=digest)
        sys.audit("concord.point", "chunk stored")
        return self._part.committed > before

    def commit(self) -> None:
        """Return when all that came is on disk."""
        if self._part is not None:
            self._part.commit()

    def close(self) -> None:
        """Let go of the file."""
        if self._part is not None:
            self._part.close()
