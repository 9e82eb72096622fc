"""An auditor's calls to a coordinator: it reads, and what it reads is counted there. Nothing is believed here."""

from collections.abc import Iterator
from contextlib import closing
from typing import Final, Self

from common.rpc.channel import call, close_channel, open_channel, stream
from common.rpc.identity import TlsIdentity
from protos import (
    enrolment_pb2,
    enrolment_pb2_grpc,
    registry_pb2,
    registry_pb2_grpc,
    transfer_pb2,
    transfer_pb2_grpc,
)

_TIMEOUT_S: Final = 30.0


def redeem(target: str, *, authority: bytes, token: str, csr: bytes) -> bytes:
    """Redeem an invitation in another role than an owner's; returns the certificate, PEM."""
    with open_channel(target, authority=authority, tls=None) as channel:
        stub = enrolment_pb2_grpc.EnrolmentStub(channel)
        request = enrolment_pb2.RedeemRequest(token=token, csr=csr)
        return bytes(call(stub.Redeem, request, timeout_s=_TIMEOUT_S).certificate)


class AuditorCalls:
    """Over one connection."""

    def __init__(self, target: str, *, tls: TlsIdentity) -> None:
        self._channel = open_channel(target, authority=tls.authority, tls=tls)
        self._enrolment = enrolment_pb2_grpc.EnrolmentStub(self._channel)
        self._registry = registry_pb2_grpc.RegistryStub(self._channel)
        self._transfer = transfer_pb2_grpc.TransferStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        close_channel(self._channel)

    def renew(self, csr: bytes) -> tuple[bytes, bytes]:
        """A new certificate, and the roots to trust from now on; both PEM."""
        reply = call(self._enrolment.Renew, enrolment_pb2.RenewRequest(csr=csr), timeout_s=_TIMEOUT_S)
        return bytes(reply.certificate), bytes(reply.authority)

    def checkpoint(self) -> bytes:
        """The latest checkpoint's note."""
        request = registry_pb2.GetCheckpointRequest()
        return bytes(call(self._registry.GetCheckpoint, request, timeout_s=_TIMEOUT_S).checkpoint)

    def consistency(self, old_size: int, new_size: int) -> tuple[bytes, ...]:
        """The proof between two sizes of the log."""
        request = registry_pb2.GetConsistencyRequest(old_size=old_size, new_size=new_size)
        return tuple(call(self._registry.GetConsistency, request, timeout_s=_TIMEOUT_S).hashes)

    def listed(self) -> list[tuple[str, int]]:
        """Every published file: path and size in bytes."""
        with closing(stream(self._transfer.ListPublished, transfer_pb2.ListPublishedRequest())) as replies:
            return [(reply.path, reply.size_bytes) for reply in replies]

    def read(self, path: str, *, offset: int = 0) -> Iterator[bytes]:
        """A published file from an offset on, in pieces."""
        request = transfer_pb2.ReadPublishedRequest(path=path, offset=offset)
        with closing(stream(self._transfer.ReadPublished, request)) as replies:
            for reply in replies:
                yield bytes(reply.data)
