"""The channel to the coordinator, and its calls. An upload may last longer than a certificate: between two streams a
renewed one is taken up in a new channel, and a stream ends early, to be gone on with, when renewal is due.
"""

from collections.abc import Callable
from datetime import UTC, datetime

from common.rpc.channel import FETCH, PUT_CHUNKS, close_channel, open_channel
from common.rpc.identity import TlsIdentity
from protos import campaign_pb2_grpc, enrolment_pb2_grpc, registry_pb2_grpc, transfer_pb2, transfer_pb2_grpc

Renew = Callable[[], tuple[TlsIdentity, datetime]]
"""Renews where that is due; what is to be shown from now on, and when that is to be renewed."""


class Connection:
    """One owner's calls, as gRPC has them; `put_chunks` takes messages as bytes and `fetch` gives them so."""

    def __init__(self, target: str, tls: TlsIdentity) -> None:
        self._target = target
        self._renew: Renew | None = None
        self._due_at: datetime | None = None
        self._open(tls)

    def _open(self, tls: TlsIdentity) -> None:
        self._tls = tls
        self._channel = open_channel(self._target, authority=tls.authority, tls=tls)
        self.enrolment = enrolment_pb2_grpc.EnrolmentStub(self._channel)
        self.campaigns = campaign_pb2_grpc.CampaignsStub(self._channel)
        self.registry = registry_pb2_grpc.RegistryStub(self._channel)
        self.transfer = transfer_pb2_grpc.TransferStub(self._channel)
        self.put_chunks: Callable[..., object] = self._channel.stream_stream(
            PUT_CHUNKS, response_deserializer=transfer_pb2.PutChunksReply.FromString
        )
        self.fetch: Callable[..., object] = self._channel.unary_stream(
            FETCH, request_serializer=transfer_pb2.FetchRequest.SerializeToString
        )

    def keep_fresh(self, renew: Renew, *, due_at: datetime) -> None:
        """From now on `refresh` renews what is shown, once `due_at` has come."""
        self._renew, self._due_at = renew, due_at

    @property
    def is_due(self) -> bool:
        """Whether what this connection shows is to be renewed."""
        return self._due_at is not None and datetime.now(UTC) >= self._due_at

    def refresh(self) -> None:
        """Renew what is shown, where that is due; no stream may be open."""
        if self._renew is None or not self.is_due:
            return
        tls, self._due_at = self._renew()
        if self.is_due:
            self._due_at = None  # due again at once, by a clock that is wrong: better the old one than none
        if tls != self._tls:
            close_channel(self._channel)
            self._open(tls)

    def close(self) -> None:
        """Close the channel, and what goes on in it."""
        close_channel(self._channel)
