"""Typed calls to the coordinator. Every receipt and checkpoint is verified before anything is believed.

Only `UnavailableError` is retried (`owner_client/retry.py`). Files move in `owner_client/fetching.py` and
`owner_client/uploading.py`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Protocol, TypeVar

from common.errors import UnavailableError, VerificationError
from common.rpc.channel import call, open_channel
from common.rpc.identity import TlsIdentity
from common.trust.cosignature import Witness, cosigned
from common.trust.manifest import FileEntry, Manifest
from common.trust.note import Checkpoint, Note
from common.trust.root import TrustedRoot
from common.trust.statements import BasePublish, ReleasePublish, parse_note
from common.trust.verify import check_receipt
from owner_client.connection import Connection
from owner_client.egress import Message, Outbound
from owner_client.fetching import Fetching, OnBytes
from owner_client.pace import Pace
from owner_client.pins import Pins
from owner_client.retry import Retry
from owner_client.traffic import Traffic
from owner_client.uploading import Uploading
from protos import (
    campaign_pb2,
    enrolment_pb2,
    enrolment_pb2_grpc,
    registry_pb2,
)

CALL_TIMEOUT_S: Final = 30.0
_Result = TypeVar("_Result")


class Request(Protocol):
    """What all requests have in common."""

    def ByteSize(self) -> int:
        """How many bytes it has on the wire."""


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
        self.connection = Connection(target, tls)
        self._root = root
        self._pins = pins
        self._retry = retry
        self._traffic = traffic
        pace = pace or Pace()
        self._fetching = Fetching(self.connection, retry=retry, pace=pace, count=traffic.sent)
        self._uploading = Uploading(self.connection, retry=retry, pace=pace, count=traffic.sent)

    def close(self) -> None:
        """Close the connection, and write down what it sent."""
        self.connection.close()
        self._traffic.write()

    def renew(self, csr: Message) -> tuple[bytes, bytes]:
        """A new certificate for the key in `csr`, and the roots to trust from now on; both PEM."""
        reply = self._call(self.connection.enrolment.Renew, enrolment_pb2.RenewRequest(csr=csr.data))
        return reply.certificate, reply.authority

    def record(self, message: Message, *, is_last: bool = False) -> bytes:
        """Record a signed statement; returns its verified receipt.

        After one that `is_last` no call is answered: that its checkpoint continues the pinned one is seen later.
        """
        note = message.data
        receipt: bytes = self._call(self.connection.registry.Record, registry_pb2.RecordRequest(note=note)).receipt
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
        reply = self._call(self.connection.registry.GetCheckpoint, registry_pb2.GetCheckpointRequest())
        return reply.checkpoint, self._pins.observe(reply.checkpoint, fetch_proof=self._consistency).size

    def pinned(self) -> Checkpoint | None:
        """The largest checkpoint that this owner has verified."""
        return self._pins.pinned()

    def cosign(self, checkpoint: Message) -> None:
        """Hand in a cosignature under a checkpoint that continues all that this owner saw."""
        self._call(self.connection.registry.Cosign, registry_pb2.CosignRequest(checkpoint=checkpoint.data))

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
        reply = self._call(
            self.connection.registry.GetCheckpoint, registry_pb2.GetCheckpointRequest(with_cosigned=True)
        )
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
        reply = self._call(self.connection.registry.GetBase, registry_pb2.GetBaseRequest())
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

    def release(self, name: str) -> tuple[ReleasePublish, Manifest]:
        """A release by name, or the latest that stands, proven to be in the log and signed by the coordinator.

        Raises:
            NotFoundError: there is none, or it was withdrawn.
            VerificationError: what was shown is not it.
        """
        reply = self._call(self.connection.registry.GetRelease, registry_pb2.GetReleaseRequest(name=name))
        note, statement = parse_note(reply.note)
        if not isinstance(statement, ReleasePublish) or name not in ("", statement.release):
            raise VerificationError(
                f"the coordinator showed {statement.type} where {name or 'a release'} was asked for"
            )
        note.verify(self._root.coordinator)
        self.believe(reply.receipt, entry=reply.note)
        manifest = Manifest.parse(reply.manifest)
        if manifest.digest != statement.manifest_digest:
            raise VerificationError(
                f"the release shown has digest {manifest.digest}, the log names {statement.manifest_digest}"
            )
        return statement, manifest

    def offers(self) -> list[bytes]:
        """The signed notes of campaigns that ask this owner, each proven to be in the log.

        Raises:
            VerificationError: one is not in the log.
        """
        reply = self._call(self.connection.campaigns.Poll, campaign_pb2.PollRequest())
        for offer in reply.offers:
            self.believe(offer.receipt, entry=offer.note)
        return [bytes(offer.note) for offer in reply.offers]

    def acknowledge(self, campaign_id: str, state: str) -> None:
        """Say how far this owner is with a campaign."""
        request = campaign_pb2.AcknowledgeRequest(campaign_id=campaign_id, state=state)
        self._call(self.connection.campaigns.Acknowledge, request)

    def report(self, message: Message, attachment: Message | None) -> bytes:
        """Hand in a signed answer to a campaign; returns its verified receipt."""
        request = campaign_pb2.ReportRequest(note=message.data, attachment=attachment.data if attachment else b"")
        receipt: bytes = self._call(self.connection.campaigns.Report, request).receipt
        self.believe(receipt, entry=message.data)
        return receipt

    def register_node(self, public_key: Message) -> int:
        """Make this key the one of this owner's Flower node; the port where its messages are taken."""
        request = campaign_pb2.RegisterNodeRequest(public_key=public_key.data)
        return int(self._call(self.connection.campaigns.RegisterNode, request).port)

    def fetch(self, entry: FileEntry, *, to: Path, on_bytes: OnBytes) -> None:
        """Fetch a published file, going on from what an earlier try left in `<to>.part`.

        Raises:
            VerificationError: what came is not that file; it is dropped.
        """
        self._fetching.fetch(entry, to=to, on_bytes=on_bytes)

    def submit(self, outbound: Outbound, *, on_bytes: OnBytes) -> bytes:
        """Upload an expert and have its contribution recorded; returns the verified receipt."""
        receipt = self._uploading.upload(outbound, on_bytes=on_bytes)
        self.believe(receipt, entry=outbound.said.note)
        return receipt

    def _consistency(self, old_size: int, new_size: int) -> tuple[bytes, ...]:
        request = registry_pb2.GetConsistencyRequest(old_size=old_size, new_size=new_size)
        return tuple(self._call(self.connection.registry.GetConsistency, request).hashes)

    def _call(self, method: Callable[..., _Result], request: Request) -> _Result:
        def attempt() -> _Result:
            self._traffic.sent(type(request).__name__.removesuffix("Request"), request.ByteSize())
            return call(method, request, timeout_s=CALL_TIMEOUT_S)

        return self._retry(attempt)
