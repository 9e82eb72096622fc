"""How a member that has no valid certificate asks for one: with an invitation and the signing key that is in the log.

The invitation alone lets nobody in as a member: the request is signed by the key that the member enrolled with. It is
bound to one key pair and one invitation, and is not a statement: it is never logged.
"""

from dataclasses import dataclass
from typing import ClassVar, Final

from common.errors import MalformedError
from common.trust import strict_json
from common.trust.manifest import digest_of
from common.trust.note import Note, SigningKey, Verifier, sign
from common.trust.statements import TYPE_PREFIX

_TYPE_LINE: Final = f"{TYPE_PREFIX}certificate.request\n"
_MAX_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class CertificateRequest:
    """Who asks, and the digests of the CSR and of the invitation's token."""

    type: ClassVar[str] = "certificate.request"
    federation: str
    party: str
    csr: str
    token: str

    @classmethod
    def of(cls, *, federation: str, party: str, csr: bytes, token: str) -> "CertificateRequest":
        """The request for the key in `csr`."""
        return cls(federation, party, digest_of(csr), digest_of(token.encode()))

    @property
    def text(self) -> str:
        """What is signed."""
        fields = {"federation": self.federation, "party": self.party, "csr": self.csr, "token": self.token}
        return f"{_TYPE_LINE}{strict_json.canonical(fields).decode()}\n"

    def sign(self, key: SigningKey) -> bytes:
        """The signed note; the same request and key give the same bytes."""
        return bytes(sign(self.text, key))


def is_certificate_request(data: bytes) -> bool:
    """Whether a note says that it is one."""
    return data.startswith(_TYPE_LINE.encode())


def parse_certificate_request(data: bytes) -> tuple[Note, CertificateRequest]:
    """The note and what it asks for; the signature is not checked here.

    Raises:
        MalformedError: it is not exactly what `CertificateRequest.sign` gives.
    """
    note = Note.parse(data, max_bytes=_MAX_BYTES)
    return note, parse_request(note.text)


def parse_request(text: str) -> CertificateRequest:
    """The request in `text`.

    Raises:
        MalformedError: it is not exactly what `CertificateRequest.text` gives.
    """
    body = text.removeprefix(_TYPE_LINE)
    match strict_json.load_object(body.removesuffix("\n").encode(), what="certificate request"):
        case {"federation": str(federation), "party": str(party), "csr": str(csr), "token": str(token), **rest} if (
            not rest
        ):
            request = CertificateRequest(federation, party, csr, token)
        case _:
            raise MalformedError("this is no certificate request; use the concord of this version")
    if request.text != text:
        raise MalformedError("this certificate request is not canonical; use the concord of this version")
    return request


def check_signed(note: Note, verifier: Verifier) -> None:
    """Raise unless the key in the log, and nobody else, signed."""
    note.verify(verifier)
    if len(note.signatures) != 1:
        raise MalformedError(f"a certificate request is signed once, not {len(note.signatures)} times")
