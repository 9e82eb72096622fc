"""Typed calls to the coordinator. Every receipt and checkpoint is verified before anything is believed.

Only `UnavailableError` is retried, with growing pauses that a stop ends at once. An upload takes up where it was,
whichever end was restarted.
"""

import random
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from threading import Event
from typing import Final, Protocol, Self, TypeVar

from common.errors import ConcordError, MalformedError, UnavailableError, VerificationError
from common.files import full_disk_is_unavailable
from common.part_file import PartFile, state_path
from common.rpc.channel import PUT_CHUNKS, call, open_channel, stream
from common.rpc.chunk_message import ChunkMessage
from common.rpc.identity import TlsIdentity
from common.rpc.transfer import CHUNK_BYTES, ChunkPlan, missing_chunks
from common.trust.cosignature import Witness, cosigned
from common.trust.manifest import FileEntry, Manifest
from common.trust.note import Checkpoint, Note
from common.trust.root import TrustedRoot
from common.trust.statements import BasePublish, parse_note
from common.trust.verify import check_receipt
from owner_client.egress import Message, Outbound
from owner_client.pace import Pace
from owner_client.pins import Pins
from owner_client.traffic import Traffic
from protos import (
    enrolment_pb2,
    enrolment_pb2_grpc,
    registry_pb2,
    registry_pb2_grpc,
    transfer_pb2,
    transfer_pb2_grpc,
)

CALL_TIMEOUT_S: Final = 30.0
_FINISH_TIMEOUT_S: Final = 3600.0
"""What was sent is checked as it comes; bytes that the coordinator had before may still have to be."""
_FIRST_PAUSE_S: Final = 0.2
_LONGEST_PAUSE_S: Final = 15.0

OnBytes = Callable[[int, int], None]
"""(bytes done, bytes in all)."""
_Result = TypeVar("_Result")


class Request(Protocol):
    """What all requests have in common."""

    def ByteSize(self) -> int:
        """How many bytes it has on the wire."""


class Retry:
    """How long an unavailable coordinator is waited for, in seconds; `stop` ends the waiting."""

    def __init__(self, *, patience_s: float, stop: Event | None = None) -> None:
        self._patience_s = patience_s
        self._stop = stop or Event()

    def __call__(self, attempt: Callable[[], _Result]) -> _Result:
        """Run `attempt` until it works.

        Raises:
            UnavailableError: patience has ended.
            KeyboardInterrupt: `stop` is set.
        """
        waited_s, pause_s = 0.0, _FIRST_PAUSE_S
        while True:
            if self._stop.is_set():
                raise KeyboardInterrupt
            try:
                return attempt()
            except UnavailableError:
                if waited_s >= self._patience_s and not self._stop.is_set():
                    raise
                self._stop.wait(pause_s * random.uniform(0.7, 1.3))  # noqa: S311
                waited_s, pause_s = waited_s + pause_s, min(2 * pause_s, _LONGEST_PAUSE_S)


def redeem(
    target: str, *, authority: bytes, token: str, csr: Message, note: Message, retry: Retry, traffic: Traffic
) -> enrolment_pb2.RedeemReply:
    """Redeem an invitation. The reply is not verified yet."""
    with open_channel(target, authority=authority, tls=None) as channel:
        stub = enrolment_pb2_grpc.EnrolmentStub(channel)
        request = enrolment_pb2.RedeemRequest(token=token, csr=csr.data, note=note.data)

        def attempt() -> enrolment_pb2.RedeemReply:
            traffic.sent("Redeem", request.ByteSize())
            return call(stub.Redeem, request, timeout_s=CALL_TIMEOUT_S)

        try:
            return retry(attempt)
        finally:
            traffic.write()


class Client:
    """One owner's calls to its coordinator."""

    def __init__(
        self,
        target: str,
        *,
        tls: TlsIdentity,
        root: TrustedRoot,
        pins: Pins,
        retry: Retry,
        traffic: Traffic,
        pace: Pace | None = None,
    ) -> None:
        self._channel = open_channel(target, authority=tls.authority, tls=tls)
        self._enrolment = enrolment_pb2_grpc.EnrolmentStub(self._channel)
        self._registry = registry_pb2_grpc.RegistryStub(self._channel)
        self._transfer = transfer_pb2_grpc.TransferStub(self._channel)
        self._put_chunks = self._channel.stream_stream(
            PUT_CHUNKS, response_deserializer=transfer_pb2.PutChunksReply.FromString
        )
        self._root = root
        self._pins = pins
        self._retry = retry
        self._pace = pace or Pace()
        self._traffic = traffic

    def close(self) -> None:
        """Close the connection, and write down what it sent."""
        self._channel.close()
        self._traffic.write()

    def renew(self, csr: Message) -> tuple[bytes, bytes]:
        """A new certificate for the key in `csr`, and the roots to trust from now on; both PEM."""
        reply = self._call(self._enrolment.Renew, enrolment_pb2.RenewRequest(csr=csr.data))
        return reply.certificate, reply.authority

    def record(self, message: Message, *, is_last: bool = False) -> bytes:
        """Record a signed statement; returns its verified receipt.

        After one that `is_last` no call is answered: that its checkpoint continues the pinned one is seen later.
        """
        note = message.data
        receipt: bytes = self._call(self._registry.Record, registry_pb2.RecordRequest(note=note)).receipt
        if is_last:
            check_receipt(self._root, receipt, entry=note)
        else:
            self.believe(receipt, entry=note)
        return receipt

    def believe(self, receipt: bytes, *, entry: bytes) -> None:
        """Verify that `entry` is in the log that this owner has been watching.

        Raises:
            VerificationError: it is not.
        """
        proof, _ = check_receipt(self._root, receipt, entry=entry)
        self._pins.observe(proof.checkpoint, fetch_proof=self._consistency)

    def watch(self) -> tuple[bytes, int]:
        """Fetch the latest checkpoint, verify that it continues the pinned one, and return its note and size."""
        reply = self._call(self._registry.GetCheckpoint, registry_pb2.GetCheckpointRequest())
        return reply.checkpoint, self._pins.observe(reply.checkpoint, fetch_proof=self._consistency).size

    def pinned(self) -> Checkpoint | None:
        """The largest checkpoint that this owner has verified."""
        return self._pins.pinned()

    def cosign(self, checkpoint: Message) -> None:
        """Hand in a cosignature under a checkpoint that continues all that this owner saw."""
        self._call(self._registry.Cosign, registry_pb2.CosignRequest(checkpoint=checkpoint.data))

    def wait_for_quorum(self, witnesses: Sequence[Witness], quorum: int) -> None:
        """Wait until `quorum` of `witnesses` have cosigned the log as it is now, or a checkpoint that continues it.

        Raises:
            UnavailableError: patience ended.
            VerificationError: a cosignature does not hold, or a checkpoint contradicts another.
        """
        size = self.watch()[1]

        def attempt() -> None:
            found = self._who_cosigned(witnesses, size)
            if len(found) < quorum:
                raise UnavailableError(
                    f"{len(found)} of {len(witnesses)} witnesses cosigned the log of {size} entries "
                    f"({', '.join(sorted(found)) or 'none'}); you ask for {quorum}"
                )

        self._retry(attempt)

    def _who_cosigned(self, witnesses: Sequence[Witness], size: int) -> set[str]:
        """Which of `witnesses` cosigned `size` entries or more of the log that this owner knows."""
        reply = self._call(self._registry.GetCheckpoint, registry_pb2.GetCheckpointRequest(with_cosigned=True))
        found: set[str] = set()
        for data in (reply.checkpoint, *reply.cosigned):
            note = Note.parse(data)
            by = cosigned(note, witnesses).keys() - found
            if by and Checkpoint.parse(note.text).size >= size:
                self._pins.observe(data, fetch_proof=self._consistency)
                found |= by
        return found

    def base(self) -> tuple[BasePublish, Manifest]:
        """The public checkpoint to train against, proven to be in the log and signed by the coordinator.

        Raises:
            VerificationError: it is not, or its manifest is not the logged one.
        """
        reply = self._call(self._registry.GetBase, registry_pb2.GetBaseRequest())
        note, statement = parse_note(reply.note)
        if not isinstance(statement, BasePublish):
            raise VerificationError(f"the coordinator showed {statement.type} as its base")
        note.verify(self._root.coordinator)
        self.believe(reply.receipt, entry=reply.note)
        manifest = Manifest.parse(reply.manifest)
        if manifest.digest != statement.base_digest:
            raise VerificationError(
                f"the base shown has digest {manifest.digest}, the log names {statement.base_digest}"
            )
        return statement, manifest

    def fetch(self, entry: FileEntry, *, to: Path, on_bytes: OnBytes) -> None:
        """Fetch a published file, going on from what an earlier try left in `<to>.part`.

        Raises:
            VerificationError: what came is not that file; it is dropped.
        """
        part = to.with_name(to.name + ".part")
        with full_disk_is_unavailable(f"{to.name} ({entry.size} bytes)"):
            self._retry(lambda: self._fetch_rest(entry, part, on_bytes))
        part.replace(to)
        state_path(part).unlink()

    def _fetch_rest(self, entry: FileEntry, part: Path, on_bytes: OnBytes) -> None:
        with closing(PartFile(part, entry)) as file:
            is_ended = False
            while file.position < entry.size and not is_ended:
                self._pace.wait_until_open()
                is_ended = self._fetch_some(entry, file, on_bytes)
            file.check(remedy="fetch it again")

    def _fetch_some(self, entry: FileEntry, file: PartFile, on_bytes: OnBytes) -> bool:
        """Fetch until the end of what there is, or of the hours in which the line may be used; True at the former."""
        request = transfer_pb2.FetchRequest(digest=entry.digest, offset=file.position)
        self._count("Fetch", request)
        with closing(stream(self._transfer.Fetch, request)) as replies:
            for reply in replies:
                if file.position + len(reply.data) > entry.size:
                    raise VerificationError(f"more came than the {entry.size} bytes of {entry.digest}")
                file.append(reply.data)
                sys.audit("concord.point", "chunk fetched")
                on_bytes(file.position, entry.size)
                self._pace.spend(len(reply.data))
                if not self._pace.is_open:
                    return False
        return True

    def submit(self, outbound: Outbound, *, on_bytes: OnBytes) -> bytes:
        """Upload an expert and have its contribution recorded; returns the verified receipt."""
        receipt = self._retry(lambda: self._submit_once(outbound, on_bytes))
        self.believe(receipt, entry=outbound.said.note)
        return receipt

    def _submit_once(self, outbound: Outbound, on_bytes: OnBytes) -> bytes:
        while (upload_id := self._send_some(outbound, on_bytes)) is None:
            self._pace.wait_until_open()
        request = transfer_pb2.FinishUploadRequest(upload_id=upload_id)
        self._count("FinishUpload", request)
        return bytes(call(self._transfer.FinishUpload, request, timeout_s=_FINISH_TIMEOUT_S).receipt)

    def _send_some(self, outbound: Outbound, on_bytes: OnBytes) -> str | None:
        """Send what is missing, until all is there or the hours in which the line may be used end; the upload's id
        when all is there.
        """
        self._pace.wait_until_open()
        request = transfer_pb2.OpenUploadRequest(note=outbound.message.data)
        self._count("OpenUpload", request)
        opened = call(self._transfer.OpenUpload, request, timeout_s=CALL_TIMEOUT_S)
        if opened.chunk_bytes != CHUNK_BYTES:
            raise MalformedError(f"the coordinator takes chunks of {opened.chunk_bytes} bytes; update this client")
        entry = outbound.plan.entry
        received = next((file.received_chunks for file in opened.files if file.digest == entry.digest), 0)
        plan = ChunkPlan(entry.size)
        sending = _Sending(outbound, opened.upload_id, missing_chunks(plan, received=received), self._pace)
        if sending.missing:
            outbound.record_upload(sending.missing)
            with closing(stream(self._put_chunks, sending)) as replies:
                for reply in replies:
                    received = next(file.received_chunks for file in reply.files if file.digest == entry.digest)
                    on_bytes(min(received * CHUNK_BYTES, entry.size), entry.size)
            sending.raise_failure()
        return opened.upload_id if received == plan.num_chunks else None

    def _consistency(self, old_size: int, new_size: int) -> tuple[bytes, ...]:
        request = registry_pb2.GetConsistencyRequest(old_size=old_size, new_size=new_size)
        return tuple(self._call(self._registry.GetConsistency, request).hashes)

    def _call(self, method: Callable[..., _Result], request: Request) -> _Result:
        def attempt() -> _Result:
            self._count(type(request).__name__.removesuffix("Request"), request)
            return call(method, request, timeout_s=CALL_TIMEOUT_S)

        return self._retry(attempt)

    def _count(self, name: str, request: Request) -> None:
        self._traffic.sent(name, request.ByteSize())


class _Sending:
    """The chunks of one stream. gRPC asks for them on a thread of its own: what fails there is kept for the caller."""

    def __init__(self, outbound: Outbound, upload_id: str, missing: range, pace: Pace) -> None:
        self.missing = missing
        self._outbound, self._upload_id, self._pace = outbound, upload_id, pace
        self._indices = iter(missing)
        self._failure: Exception | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> bytes:
        index = next(self._indices)
        if self._failure is not None or not self._pace.is_open:
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
