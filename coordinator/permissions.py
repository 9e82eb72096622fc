"""Who may call what: one table, asked by the one interceptor for every call. What is not in it nobody may call.

A right to call is not yet a right to what the call is about: whose statement or upload it is, the rules of the registry
and of intake decide.
"""

from collections.abc import Mapping
from typing import Final

from common.errors import NotPermittedError
from common.trust.identity import Identity

_EVERYBODY: Final = frozenset({"owner", "admin", "auditor", "witness"})
_OWNER: Final = frozenset({"owner"})
_READERS: Final = frozenset({"owner", "admin", "auditor"})

OPEN: Final = frozenset({"/concord.v1.Enrolment/Redeem"})
"""What needs no certificate: an invitation is the caller's right to it."""

REGISTER_NODE: Final = "/concord.v1.Campaigns/RegisterNode"
"""Whoever may make this call may also speak for the node, at the gate to Flower."""

PERMISSIONS: Final[Mapping[str, frozenset[str]]] = {
    "/concord.v1.Enrolment/Redeem": _EVERYBODY,
    "/concord.v1.Enrolment/Renew": _EVERYBODY,
    "/concord.v1.Registry/Record": _OWNER,
    "/concord.v1.Registry/GetCheckpoint": _EVERYBODY,
    "/concord.v1.Registry/Cosign": _OWNER,
    "/concord.v1.Registry/GetConsistency": _EVERYBODY,
    "/concord.v1.Registry/GetChain": _OWNER,
    "/concord.v1.Registry/GetBase": _READERS,
    "/concord.v1.Registry/GetRelease": _READERS,
    "/concord.v1.Transfer/OpenUpload": _OWNER,
    "/concord.v1.Transfer/PutChunks": _OWNER,
    "/concord.v1.Transfer/FinishUpload": _OWNER,
    "/concord.v1.Transfer/Fetch": _READERS,
    "/concord.v1.Transfer/ListPublished": frozenset({"admin", "auditor"}),
    "/concord.v1.Transfer/ReadPublished": frozenset({"admin", "auditor"}),
    "/concord.v1.Campaigns/Poll": _OWNER,
    "/concord.v1.Campaigns/Acknowledge": _OWNER,
    "/concord.v1.Campaigns/Report": _OWNER,
    REGISTER_NODE: _OWNER,
}


def check_permitted(identity: Identity, method: str) -> None:
    """Raise `NotPermittedError` unless somebody of this role may make this call."""
    roles = PERMISSIONS.get(method, frozenset())
    if identity.role not in roles:
        who = ", ".join(sorted(roles)) or "nobody"
        raise NotPermittedError(f"{method} is for {who}, not for the {identity.role} {identity.party}")
