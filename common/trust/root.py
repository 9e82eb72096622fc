"""The trusted root: the few facts that everybody must hold before trusting anything else, got out of band."""

from dataclasses import dataclass

from common.errors import MalformedError
from common.trust import strict_json
from common.trust.note import Verifier


@dataclass(frozen=True, slots=True)
class TrustedRoot:
    """Which federation and log this is, and the keys that sign its checkpoints and its coordinator's statements."""

    federation: str
    origin: str
    log: Verifier
    coordinator: Verifier

    @classmethod
    def parse(cls, data: bytes) -> "TrustedRoot":
        """The inverse of `bytes(root)`; `MalformedError` for anything else."""
        match strict_json.load_object(data, what="trusted root"):
            case {
                "federation": str(federation),
                "origin": str(origin),
                "log": str(log),
                "coordinator": str(coordinator),
            }:
                root = cls(federation, origin, Verifier.parse(log), Verifier.parse(coordinator))
            case _:
                raise MalformedError("a trusted root needs federation, origin, log and coordinator")
        if bytes(root) != data:
            raise MalformedError("trusted root is not canonical JSON")
        return root

    def __bytes__(self) -> bytes:
        return strict_json.canonical(
            {
                "federation": self.federation,
                "origin": self.origin,
                "log": str(self.log),
                "coordinator": str(self.coordinator),
            }
        )
