"""Uploading an expert: the coordinator says what is missing, that is sent, and then it is finished.

An upload takes up where it was, whichever end was restarted.
"""

from collections.abc import Callable
from contextlib import closing
from threading import Condition
from typing import Final, Self

from common.errors import ConcordError, MalformedError
from common.rpc.channel import call, stream
from common.rpc.chunk_message import ChunkMessage
from common.rpc.transfer import CHUNK_BYTES, ChunkPlan, missing_chunks
from owner_client.connection import Connection
from owner_client.egress import Outbound
from owner_client.fetching import Count, OnBytes
from owner_client.pace import Pace
from owner_client.retry import Retry
from protos import transfer_pb2

_OPEN_TIMEOUT_S: Final = 30.0
_FINISH_TIMEOUT_S: Final = 3600.0
"""What was sent is checked as it comes; bytes that the coordinator had before may still have to be."""
_LEAST_AHEAD: Final = 8
_SHARE_AHEAD: Final = 128
"""Chunks that are on their way and not on the coordinator's disk: this part of a file, or that many if these are more.
They are what a kill loses. The coordinator commits a file in 512 parts and says so after two at the latest."""


class Uploading:
    """Uploads experts to one coordinator."""

    def __init__(self, connection: Connection, *, retry: Retry, pace: Pace, count: Count) -> None:
        self._connection, self._retry, self._pace, self._count = connection, retry, pace, count

    def upload(self, outbound: Outbound, *, on_bytes: OnBytes) -> bytes:
        """Send what is missing and finish; returns the receipt, which is not verified yet."""
        stored: list[int] = []

        def note(done: int, total: int) -> None:
            stored[:] = [done]
            on_bytes(done, total)

        return self._retry(lambda: self._try(outbound, note), progress=lambda: tuple(stored))

    def _try(self, outbound: Outbound, on_bytes: OnBytes) -> bytes:
        while (upload_id := self._send_some(outbound, on_bytes)) is None:
            self._pace.wait_until_open()
        request = transfer_pb2.FinishUploadRequest(upload_id=upload_id)
        self._count("FinishUpload", request.ByteSize())
        return bytes(call(self._connection.transfer.FinishUpload, request, timeout_s=_FINISH_TIMEOUT_S).receipt)

    def _open(self, outbound: Outbound) -> transfer_pb2.OpenUploadReply:
        request = transfer_pb2.OpenUploadRequest(note=outbound.message.data)
        self._count("OpenUpload", request.ByteSize())
        opened = call(self._connection.transfer.OpenUpload, request, timeout_s=_OPEN_TIMEOUT_S)
        if opened.chunk_bytes != CHUNK_BYTES:
            raise MalformedError(f"the coordinator takes chunks of {opened.chunk_bytes} bytes; update this client")
        return opened

    def _send_some(self, outbound: Outbound, on_bytes: OnBytes) -> str | None:
        """Send what is missing, until all is there or the connection may not be used any more.

        Returns the upload's id when all is there.
        """
        self._pace.wait_until_open()
        self._connection.refresh()
        opened = self._open(outbound)
        entry = outbound.plan.entry
        received = next((file.received_chunks for file in opened.files if file.digest == entry.digest), 0)
        plan = ChunkPlan(entry.size)
        sending = Sending(
            outbound, opened.upload_id, missing_chunks(plan, received=received), self._may_go_on, self._pace
        )
        if sending.missing:
            outbound.record_upload(sending.missing)
            with closing(stream(self._connection.put_chunks, sending)) as replies, closing(sending):
                for reply in replies:
                    received = next(file.received_chunks for file in reply.files if file.digest == entry.digest)
                    sending.acknowledge(received)
                    on_bytes(min(received * CHUNK_BYTES, entry.size), entry.size)
            sending.raise_failure()
        return opened.upload_id if received == plan.num_chunks else None

    def _may_go_on(self) -> bool:
        return self._pace.is_open and not self._connection.is_due


class Sending:
    """The chunks of one stream, as many ahead of what the coordinator has on disk as a kill may cost. gRPC asks for
    them on a thread of its own: what fails there is kept for the caller.
    """

    def __init__(
        self, outbound: Outbound, upload_id: str, missing: range, may_go_on: Callable[[], bool], pace: Pace
    ) -> None:
        self.missing, self._may_go_on = missing, may_go_on
        self._outbound, self._upload_id, self._pace = outbound, upload_id, pace
        self._indices = iter(missing)
        self._failure: Exception | None = None
        self._ahead = max(_LEAST_AHEAD, (missing.stop - 1) // _SHARE_AHEAD)
        self._acknowledged, self._is_closed, self._changed = missing.start, False, Condition()

    def acknowledge(self, chunks: int) -> None:
        """So many chunks of the file are on the coordinator's disk."""
        with self._changed:
            self._acknowledged = max(self._acknowledged, chunks)
            self._changed.notify_all()

    def close(self) -> None:
        """Nobody says any more what is there: send nothing."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _wait_for_turn(self, index: int) -> bool:
        """Wait until this chunk is not too far ahead; False once the stream is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or index < self._acknowledged + self._ahead)
            return not self._is_closed

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> bytes:
        index = next(self._indices)
        if not self._wait_for_turn(index) or self._failure is not None or not self._may_go_on():
            raise StopIteration
        try:
            data, digest = self._outbound.read_chunk(index)
        except (ConcordError, OSError) as error:
            self._failure = error
            raise StopIteration from error
        self._pace.spend(len(data))
        return ChunkMessage(self._upload_id, self._outbound.plan.entry.digest, index, data, digest).format()

    def raise_failure(self) -> None:
        """Raise what ended the stream early, if anything of ours did."""
        if self._failure is not None:
            raise self._failure
