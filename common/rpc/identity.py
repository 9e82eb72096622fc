"""What one end of a TLS connection shows and trusts."""

from dataclasses import dataclass, field
from typing import Final

from common.errors import MalformedError

_CERTIFICATE_START: Final = b"-----BEGIN CERTIFICATE-----"


@dataclass(frozen=True, slots=True)
class TlsIdentity:
    """A key with its certificate, and the certificate authority that both ends trust; all PEM.

    Key and certificate are stored as one file (`bytes(identity)`), so that a crash cannot part them.
    """

    key: bytes = field(repr=False)
    certificate: bytes
    authority: bytes

    @classmethod
    def parse(cls, data: bytes, *, authority: bytes) -> "TlsIdentity":
        """The inverse of `bytes(identity)`."""
        key, start, rest = data.partition(_CERTIFICATE_START)
        if not key or not start:
            raise MalformedError("a TLS identity is a private key and then its certificate, in PEM")
        return cls(key, start + rest, authority)

    def __bytes__(self) -> bytes:
        return self.key + self.certificate
