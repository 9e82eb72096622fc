"""Invitations as admins hand them out."""

from datetime import timedelta

from common.trust.invitation import Invitation
from coordinator.home import Coordinator


def invitation_for(coordinator: Coordinator, party: str) -> Invitation:
    """One for this party, good once and for as many minutes as the settings say."""
    settings = coordinator.settings
    return Invitation(
        owner=party,
        target=f"{settings.reachable_at}:{settings.port}",
        enrolment_target=f"{settings.reachable_at}:{settings.enrolment_port}",
        authority=coordinator.authority.certificate_pem.decode(),
        root=coordinator.registry.root,
        token=coordinator.enrolment.invite(party, lifetime=timedelta(minutes=settings.invitation_minutes)),
    )
