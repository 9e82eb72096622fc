"""Which apps may run here: the coordinator hands out the app that a run has, and an app is code.

The SuperNode runs what is vouched for by a key that it was given (`--trusted-entities`), and refuses all else with an
answer that says so. That key is this daemon's: on its way to the SuperNode an app gets its signature, if its hash is
allowed, and no other. Format of the signature: `flwr.supercore.primitives.asymmetric_ed25519`.
"""

import hashlib
import json
import logging
import time
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Callable, Collection
from typing import Final

from common.flower import IMPORTING, app, app_hash
from common.trust.note import SigningKey

logger = logging.getLogger(__name__)

GET_FAB: Final = "/v1/fleet/get-fab"
_ENTITY: Final = "fpk_concord"
_SSH_ED25519: Final = b"ssh-ed25519"


class AllowedApps:
    """Vouches for Concord's own app, and for those whose hashes are in `also`; `refused` hears of others."""

    def __init__(self, also: Collection[str], *, refused: Callable[[str], None]) -> None:
        self._key = SigningKey.generate("flower/apps")
        self._allowed, self._refused = {app_hash(app()), *also}, refused

    @property
    def entities(self) -> str:
        """The file that the SuperNode is given, YAML."""
        parts = (_SSH_ED25519, self._key.verifier.public_key)
        blob = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
        return f"{_ENTITY}: '{_SSH_ED25519.decode()} {b64encode(blob).decode()}'\n"

    def vouch(self, reply: bytes) -> bytes:
        """The reply to `GET_FAB` as the SuperNode is to see it: nobody's word is in it but ours."""
        with IMPORTING:
            from flwr.proto.fab_pb2 import GetFabResponse

        response = GetFabResponse.FromString(reply)
        found = app_hash(response.fab.content)
        response.fab.verifications.clear()
        response.fab.verifications["valid_license"] = "Valid"
        if found in self._allowed:
            response.fab.verifications[_ENTITY] = self._signature(response.fab.content)
        else:
            self._refused(found)
        return bytes(response.SerializeToString())

    def _signature(self, content: bytes) -> str:
        at = int(time.time())
        signature = self._key.private_key.sign(at.to_bytes(8, "big") + hashlib.sha256(content).digest())
        return json.dumps({"signed_at": at, "signature": urlsafe_b64encode(signature).decode()})
