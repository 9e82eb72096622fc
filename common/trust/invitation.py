"""An invitation: one file, handed over out of band, with which one owner may join once.

It carries the trusted root and the certificate authority, so that the owner's first call already knows whom it talks
to, and a one-time secret, of which the coordinator keeps only the hash.
"""

import hashlib
import re
from dataclasses import dataclass, field
from typing import Final

from common.errors import MalformedError
from common.trust import strict_json
from common.trust.root import TrustedRoot

TOKEN_BYTES: Final = 32
MAX_BYTES: Final = 64 * 1024
"""Of an invitation's file."""
_TOKEN = re.compile(r"[A-Za-z0-9_-]{43}")
_TARGET = re.compile(r"[^\s/]{1,255}:[0-9]{1,5}")


@dataclass(frozen=True, slots=True)
class Invitation:
    """What an owner needs to join: `target` and `enrolment_target` are `host:port`, `authority` a PEM certificate."""

    owner: str
    target: str
    enrolment_target: str
    authority: str
    root: TrustedRoot
    token: str = field(repr=False)

    @classmethod
    def parse(cls, data: bytes) -> "Invitation":
        """The inverse of `bytes(invitation)`; `MalformedError` for anything else."""
        match strict_json.load_object(data, what="invitation"):
            case {
                "owner": str(owner),
                "target": str(target),
                "enrolment_target": str(enrolment_target),
                "authority": str(authority),
                "root": dict(root),
                "token": str(token),
            } if _TOKEN.fullmatch(token) and _TARGET.fullmatch(target) and _TARGET.fullmatch(enrolment_target):
                trusted = TrustedRoot.parse(strict_json.canonical(root))
                invitation = cls(owner, target, enrolment_target, authority, trusted, token)
            case _:
                raise MalformedError("this is no invitation; ask the consortium's admin for a new file")
        if bytes(invitation) != data:
            raise MalformedError("this invitation was changed or is not whole; ask for a new file")
        return invitation

    def __bytes__(self) -> bytes:
        fields = {
            "owner": self.owner,
            "target": self.target,
            "enrolment_target": self.enrolment_target,
            "authority": self.authority,
            "root": strict_json.loads(bytes(self.root)),
            "token": self.token,
        }
        return strict_json.canonical(fields) + b"\n"


def token_hash(token: str) -> str:
    """What a coordinator keeps of a token: its SHA-256 in hex."""
    return hashlib.sha256(token.encode()).hexdigest()
