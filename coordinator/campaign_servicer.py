"""The gRPC service of campaigns: each method is parse, one call, reply."""

import grpc

from common.rpc.channel import caller
from common.trust.statements import parse_note
from coordinator.campaigns import Campaigns
from coordinator.flower_nodes import FlowerNodes
from coordinator.registry import Registry
from protos import campaign_pb2, campaign_pb2_grpc


class CampaignsServicer(campaign_pb2_grpc.CampaignsServicer):
    """`protos/campaign.proto`."""

    def __init__(self, campaigns: Campaigns, registry: Registry, nodes: FlowerNodes) -> None:
        self._campaigns, self._registry, self._nodes = campaigns, registry, nodes

    def Poll(self, request: campaign_pb2.PollRequest, context: grpc.ServicerContext) -> campaign_pb2.PollReply:
        offers = [
            campaign_pb2.Offer(note=note, receipt=self._registry.find(parse_note(note)[1])[1])
            for note in self._campaigns.offers_for(caller())
        ]
        return campaign_pb2.PollReply(offers=offers)

    def Acknowledge(
        self, request: campaign_pb2.AcknowledgeRequest, context: grpc.ServicerContext
    ) -> campaign_pb2.AcknowledgeReply:
        self._campaigns.heard(caller(), request.campaign_id, request.state)
        return campaign_pb2.AcknowledgeReply()

    def Report(self, request: campaign_pb2.ReportRequest, context: grpc.ServicerContext) -> campaign_pb2.ReportReply:
        receipt = self._campaigns.receive(caller(), request.note, request.attachment)
        return campaign_pb2.ReportReply(receipt=receipt)

    def RegisterNode(
        self, request: campaign_pb2.RegisterNodeRequest, context: grpc.ServicerContext
    ) -> campaign_pb2.RegisterNodeReply:
        return campaign_pb2.RegisterNodeReply(port=self._nodes.register(caller(), request.public_key))


def add_campaigns(server: grpc.Server, campaigns: Campaigns, registry: Registry, nodes: FlowerNodes) -> None:
    """Put the service on `server`."""
    campaign_pb2_grpc.add_CampaignsServicer_to_server(CampaignsServicer(campaigns, registry, nodes), server)
