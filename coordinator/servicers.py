"""The gRPC services: each method is parse, one call, reply. Errors and identities are `common/rpc/channel.py`'s."""

from collections.abc import Iterator
from pathlib import Path

import grpc

from common.errors import MalformedError
from common.rpc.channel import authenticate_again, caller, shown_certificate
from common.rpc.chunk_message import ChunkMessage, format_fetched, parse_chunk
from common.rpc.one_ahead import one_ahead
from common.rpc.transfer import CHUNK_BYTES
from common.trust.certificate_request import is_certificate_request
from common.trust.statements import ConsentRevoke, parse_note
from coordinator.campaign_files import CampaignFiles
from coordinator.campaign_servicer import add_campaigns
from coordinator.enrolment import Enrolment
from coordinator.flower_nodes import FlowerNodes
from coordinator.home import Coordinator
from coordinator.intake import FileProgress, Intake
from coordinator.publication import Publication
from coordinator.registry import Registry
from coordinator.releases import find_release, latest_base
from coordinator.streams import Permitted, Streams
from coordinator.withdrawal import carry_out
from protos import (
    enrolment_pb2,
    enrolment_pb2_grpc,
    registry_pb2,
    registry_pb2_grpc,
    transfer_pb2,
    transfer_pb2_grpc,
)


class EnrolmentServicer(enrolment_pb2_grpc.EnrolmentServicer):
    """`protos/enrolment.proto`."""

    def __init__(self, enrolment: Enrolment, registry: Registry) -> None:
        self._enrolment = enrolment
        self._registry = registry

    def Redeem(self, request: enrolment_pb2.RedeemRequest, context: grpc.ServicerContext) -> enrolment_pb2.RedeemReply:
        if is_certificate_request(request.note):
            certificate = self._enrolment.recertify(request.token, csr=request.csr, note=request.note)
            return enrolment_pb2.RedeemReply(certificate=certificate)
        if not request.note:
            certificate = self._enrolment.certify(request.token, csr=request.csr)
            return enrolment_pb2.RedeemReply(certificate=certificate)
        _, statement = parse_note(request.note)
        enrolled = self._enrolment.redeem(request.token, csr=request.csr, note=request.note, owner=statement.party)
        return enrolment_pb2.RedeemReply(
            certificate=enrolled.certificate,
            note=enrolled.recorded.entry,
            receipt=self._registry.receipt(enrolled.recorded.leaf_index),
        )

    def Renew(self, request: enrolment_pb2.RenewRequest, context: grpc.ServicerContext) -> enrolment_pb2.RenewReply:
        certificate = self._enrolment.renew(caller(), csr=request.csr, shown=shown_certificate())
        return enrolment_pb2.RenewReply(certificate=certificate, authority=self._enrolment.authority.certificate_pem)


class RegistryServicer(registry_pb2_grpc.RegistryServicer):
    """`protos/registry.proto`."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self._registry = coordinator.registry
        self._log = coordinator.log
        self._publication = coordinator.publication

    def Record(self, request: registry_pb2.RecordRequest, context: grpc.ServicerContext) -> registry_pb2.RecordReply:
        receipt = self._registry.record(request.note, caller=caller())
        if isinstance(parse_note(request.note)[1], ConsentRevoke):
            carry_out(self._coordinator, in_background=True)
        return registry_pb2.RecordReply(receipt=receipt)

    def GetCheckpoint(
        self, request: registry_pb2.GetCheckpointRequest, context: grpc.ServicerContext
    ) -> registry_pb2.GetCheckpointReply:
        cosigned = self._log.cosigned() if request.with_cosigned else []
        return registry_pb2.GetCheckpointReply(checkpoint=self._log.checkpoint(), cosigned=cosigned)

    def Cosign(self, request: registry_pb2.CosignRequest, context: grpc.ServicerContext) -> registry_pb2.CosignReply:
        self._registry.cosign(request.checkpoint, caller=caller())
        return registry_pb2.CosignReply()

    def GetConsistency(
        self, request: registry_pb2.GetConsistencyRequest, context: grpc.ServicerContext
    ) -> registry_pb2.GetConsistencyReply:
        return registry_pb2.GetConsistencyReply(hashes=self._log.consistency(request.old_size, request.new_size))

    def GetChain(
        self, request: registry_pb2.GetChainRequest, context: grpc.ServicerContext
    ) -> registry_pb2.GetChainReply:
        party = self._registry.party(caller())
        assert party is not None, "whoever has a certificate has joined"
        return registry_pb2.GetChainReply(next_seq=party.next_seq, head=party.head or "")

    def GetBase(self, request: registry_pb2.GetBaseRequest, context: grpc.ServicerContext) -> registry_pb2.GetBaseReply:
        with self._registry.history() as history:
            base = latest_base(history)
        entry, receipt = self._registry.find(base)
        manifest = self._publication.manifest(base.base_digest)
        return registry_pb2.GetBaseReply(note=entry, receipt=receipt, manifest=bytes(manifest))

    def GetRelease(
        self, request: registry_pb2.GetReleaseRequest, context: grpc.ServicerContext
    ) -> registry_pb2.GetReleaseReply:
        with self._registry.history() as history:
            release = find_release(history, request.name)
        entry, receipt = self._registry.find(release)
        manifest = self._publication.manifest(release.manifest_digest)
        return registry_pb2.GetReleaseReply(note=entry, receipt=receipt, manifest=bytes(manifest))


class TransferServicer(transfer_pb2_grpc.TransferServicer):
    """`protos/transfer.proto`."""

    def __init__(self, intake: Intake, publication: Publication, files: CampaignFiles, streams: Streams) -> None:
        self._intake = intake
        self._publication = publication
        self._files = files
        self._streams = streams

    def OpenUpload(
        self, request: transfer_pb2.OpenUploadRequest, context: grpc.ServicerContext
    ) -> transfer_pb2.OpenUploadReply:
        upload_id, files = self._intake.open(request.note, caller=caller())
        return transfer_pb2.OpenUploadReply(upload_id=upload_id, chunk_bytes=CHUNK_BYTES, files=_progress(files))

    def PutChunks(
        self, request_iterator: Iterator[bytes], context: grpc.ServicerContext
    ) -> Iterator[transfer_pb2.PutChunksReply]:
        # Asked now: what follows runs when replies are asked for.
        return self._put(caller(), Permitted(authenticate_again()), request_iterator, context)

    def _put(
        self, party: str, permitted: Permitted, messages: Iterator[bytes], context: grpc.ServicerContext
    ) -> Iterator[transfer_pb2.PutChunksReply]:
        with self._streams.stream(party, end=context.cancel) as moved:

            def received() -> Iterator[ChunkMessage]:
                for message in one_ahead(messages):
                    permitted.check()
                    moved()
                    yield parse_chunk(message)

            for progress in self._intake.put(received(), caller=party):
                yield transfer_pb2.PutChunksReply(files=_progress(progress))

    def FinishUpload(
        self, request: transfer_pb2.FinishUploadRequest, context: grpc.ServicerContext
    ) -> transfer_pb2.FinishUploadReply:
        return transfer_pb2.FinishUploadReply(receipt=self._intake.finish(request.upload_id, caller=caller()))

    def Fetch(self, request: transfer_pb2.FetchRequest, context: grpc.ServicerContext) -> Iterator[bytes]:
        party, path = caller(), self._find(request.digest)
        _check_offset(request.offset, path, name=request.digest)
        return self._fetch(party, Permitted(authenticate_again()), path, request.offset, context)

    def _find(self, digest: str) -> Path:
        published = self._publication.object_path(digest)
        return published if published.is_file() else self._files.find(digest)

    def ListPublished(
        self, request: transfer_pb2.ListPublishedRequest, context: grpc.ServicerContext
    ) -> Iterator[transfer_pb2.ListPublishedReply]:
        return (
            transfer_pb2.ListPublishedReply(path=path, size_bytes=size) for path, size in self._publication.listed()
        )

    def ReadPublished(
        self, request: transfer_pb2.ReadPublishedRequest, context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        party, path = caller(), self._publication.listed_path(request.path)
        _check_offset(request.offset, path, name=request.path)
        return self._fetch(party, Permitted(authenticate_again()), path, request.offset, context)

    def _fetch(
        self, party: str, permitted: Permitted, path: Path, offset: int, context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        with self._streams.stream(party, end=context.cancel) as moved, path.open("rb") as file:
            file.seek(offset)
            while data := file.read(CHUNK_BYTES):
                permitted.check()
                yield format_fetched(data)
                moved()


def _check_offset(offset: int, path: Path, *, name: str) -> None:
    size = path.stat().st_size
    if offset > size:
        raise MalformedError(f"offset {offset} is past the end of {name[:200]}; it has {size} bytes, fetch it anew")


def _progress(files: list[FileProgress]) -> list[transfer_pb2.FileProgress]:
    return [
        transfer_pb2.FileProgress(digest=file.digest, size_bytes=file.size_bytes, received_chunks=file.received_chunks)
        for file in files
    ]


def add_services(server: grpc.Server, coordinator: Coordinator) -> None:
    """Put all services of `coordinator` on `server`."""
    enrolment = EnrolmentServicer(coordinator.enrolment, coordinator.registry)
    enrolment_pb2_grpc.add_EnrolmentServicer_to_server(enrolment, server)
    registry_pb2_grpc.add_RegistryServicer_to_server(RegistryServicer(coordinator), server)
    streams = Streams(threads=coordinator.settings.threads)
    transfer = TransferServicer(coordinator.intake, coordinator.publication, coordinator.campaigns.files, streams)
    transfer_pb2_grpc.add_TransferServicer_to_server(transfer, server)
    nodes = FlowerNodes(coordinator.home, coordinator.settings)
    add_campaigns(server, coordinator.campaigns, coordinator.registry, nodes)
