"""Certificates: a federation's own ECDSA P-256 authority, what it issues, and the party a certificate names.

The party is a URI SAN in SPIFFE's form, never the CN. A CSR brings a key and proves its possession; its subject, names
and extensions are ignored. Profile: RFC 5280. P-256 throughout: gRPC's TLS refuses Ed25519 certificates. Keys and
certificates are PEM bytes at every edge. No clock and no files: dates are arguments, and whoever writes a key keeps it
from others' eyes (0600). Verifying a chain is TLS's task; revocation is checked on each call, against the registry.
"""

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from ipaddress import ip_address
from typing import Final, Self

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from common.errors import MalformedError, VerificationError
from common.trust.identity import COORDINATOR, DNS_NAME, Identity, check_federation

CA_LIFETIME: Final = timedelta(days=3650)
CA_BACKDATED: Final = timedelta(hours=1)
"""How long before its making an authority is valid: what it issues at once may be back-dated for slow clocks."""

_AUTHORITY_URI = re.compile(r"spiffe://(?P<federation>[^/]+)")
_CRYPTOGRAPHY_ERRORS: Final = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)


@dataclass(frozen=True, slots=True)
class CertificateFacts:
    """What every call is judged by: `serial` as 32 hex digits or more, dates in UTC, both inclusive."""

    identity: Identity
    serial: str
    not_before: datetime
    not_after: datetime


@dataclass(frozen=True, slots=True)
class CertificateAuthority:
    """A federation's authority, one of two kinds: a root certifies other authorities, an issuing one leaves alone."""

    federation: str
    certificate_pem: bytes
    key_pem: bytes = field(repr=False)

    @classmethod
    def create(
        cls,
        federation: str,
        *,
        now: datetime,
        lifetime: timedelta = CA_LIFETIME,
        under: "CertificateAuthority | None" = None,
    ) -> Self:
        """A new issuing authority with a new key, valid from an hour before `now` until `lifetime` after it. It is
        certified by the root `under`, or by itself.

        Raises:
            ValueError: the federation is not a DNS name, `now` has no time zone, or dates outside the root's.
        """
        return cls._made(federation, now=now, lifetime=lifetime, path_length=0, under=under)

    @classmethod
    def create_root(cls, federation: str, *, now: datetime, lifetime: timedelta = CA_LIFETIME) -> Self:
        """A new root: it certifies issuing authorities, and its key may lie in a safe between two of them."""
        return cls._made(federation, now=now, lifetime=lifetime, path_length=1, under=None)

    @classmethod
    def _made(
        cls,
        federation: str,
        *,
        now: datetime,
        lifetime: timedelta,
        path_length: int,
        under: "CertificateAuthority | None",
    ) -> Self:
        check_federation(federation)
        key_pem = new_key()
        key = _load_key(key_pem)
        subject_key = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        # The key's id in the name keeps a chain unambiguous while two authorities overlap.
        kind = "root" if path_length else "CA"
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Concord {kind} {subject_key.digest.hex()[:16]}")])
        not_before, not_after = now - CA_BACKDATED, now + lifetime
        issuer, issuer_key, issuer_key_id = name, key, subject_key
        if under is not None:
            above = _load_certificate(under.certificate_pem)
            _check_within(above, _whole_seconds(not_before), _whole_seconds(not_after))
            issuer, issuer_key = above.subject, _load_key(under.key_pem)
            issuer_key_id = above.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        certificate = (
            _builder(name, key.public_key(), not_before=not_before, not_after=not_after)
            .issuer_name(issuer)
            .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
            .add_extension(_key_usage(ca=True), critical=True)
            .add_extension(_uri_name(f"spiffe://{federation}"), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_key_id), critical=False
            )
            .sign(issuer_key, hashes.SHA256())
        )
        return cls(federation, _to_pem(certificate), key_pem)

    @classmethod
    def from_pem(cls, key_pem: bytes, *, certificate_pem: bytes) -> Self:
        """An authority made earlier by `create`.

        Raises:
            MalformedError: not a P-256 key, not a certificate, or not one that `create` makes.
            VerificationError: the certificate is for another key.
        """
        key, certificate = _load_key(key_pem), _load_certificate(certificate_pem)
        if _p256(certificate, "the certificate") != key.public_key():
            raise VerificationError("the authority's certificate is for another key than the one given")
        uri = _one_uri(certificate)
        match = _AUTHORITY_URI.fullmatch(uri)
        if not match or not DNS_NAME.fullmatch(match["federation"]):
            raise MalformedError(f"not an authority's certificate: it names {uri[:120]!r}")
        return cls(match["federation"], certificate_pem, key_pem)

    @property
    def is_root(self) -> bool:
        """Whether it certifies authorities."""
        constraints = _load_certificate(self.certificate_pem).extensions.get_extension_for_class(x509.BasicConstraints)
        return bool(constraints.value.path_length)

    def issue(
        self,
        csr_pem: bytes,
        *,
        identity: Identity,
        not_before: datetime,
        not_after: datetime,
        server_names: Sequence[str] = (),
    ) -> bytes:
        """A certificate, PEM, for the CSR's key and `identity`; nothing else of the CSR is used.

        The coordinator's is for a TLS server reached as one of `server_names` (DNS names, IP addresses), an owner's for
        a TLS client. Dates have a time zone and are cut to whole seconds.

        Raises:
            MalformedError: not a CSR, or its key is not P-256.
            VerificationError: the CSR is not signed by its own key.
            ValueError: another federation's identity, server names for an owner, none or bad ones for the coordinator,
                or dates without a time zone, in the wrong order or outside the authority's own.
        """
        names = _server_names(identity, server_names)
        assert not self.is_root, "a root certifies authorities, nobody else"
        if identity.federation != self.federation:
            raise ValueError(f"{identity} is not of the federation {self.federation}")
        authority = _load_certificate(self.certificate_pem)
        _check_within(authority, _whole_seconds(not_before), _whole_seconds(not_after))
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, identity.party)])  # for people; nothing reads it
        usage = ExtendedKeyUsageOID.SERVER_AUTH if identity.role == COORDINATOR else ExtendedKeyUsageOID.CLIENT_AUTH
        authority_key = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        certificate = (
            _builder(subject, _proven_key(csr_pem), not_before=not_before, not_after=not_after)
            .issuer_name(authority.subject)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(ca=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(_uri_name(str(identity), *names), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(authority_key), critical=False
            )
            .sign(_load_key(self.key_pem), hashes.SHA256())
        )
        return _to_pem(certificate)


def new_key() -> bytes:
    """A new P-256 private key, unencrypted PKCS8 PEM."""
    return ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def openssh_key(key_pem: bytes) -> bytes:
    """The same key in the form that OpenSSH, and Flower, reads."""
    return _load_key(key_pem).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )


def public_key(key_pem: bytes) -> bytes:
    """The public half of a key, PEM."""
    return (
        _load_key(key_pem)
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )


def check_public_key(pem: bytes) -> None:
    """Raise `MalformedError` unless this is a P-256 public key, and spelled as `public_key` does."""
    try:
        key = serialization.load_pem_public_key(pem)
        spelled = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    except _CRYPTOGRAPHY_ERRORS as error:
        raise MalformedError("a node's key is a P-256 public key in PEM") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1) or spelled != pem:
        raise MalformedError("a node's key is a P-256 public key in PEM")


def make_csr(key_pem: bytes) -> bytes:
    """A PEM request for a certificate on `key_pem`; it asks for no name, since the issuer ignores that.

    Raises:
        MalformedError: not a P-256 key.
    """
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return request.sign(_load_key(key_pem), hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def fingerprint(certificate_pem: bytes) -> str:
    """SHA-256 of the certificate's DER as 64 hex digits.

    Raises:
        MalformedError: not a certificate.
    """
    return sha256(_load_certificate(certificate_pem).public_bytes(serialization.Encoding.DER)).hexdigest()


def check_roots(pem: bytes) -> None:
    """Raise `MalformedError` unless these are certificates of authorities, one at least."""
    try:
        found = x509.load_pem_x509_certificates(pem)
        are_authorities = [each.extensions.get_extension_for_class(x509.BasicConstraints).value.ca for each in found]
    except (x509.ExtensionNotFound, *_CRYPTOGRAPHY_ERRORS) as error:
        raise MalformedError("what is to be trusted are no certificates in PEM") from error
    if not found or not all(are_authorities):
        raise MalformedError("what is to be trusted are no certificates of authorities")


def identity_of(certificate_pem: bytes) -> CertificateFacts:
    """Who a leaf certificate names, its serial and its dates. TLS verified the chain; nothing is verified here.

    Raises:
        MalformedError: not a certificate, not exactly one URI among its names, or a URI that is no identity.
    """
    certificate = _load_certificate(certificate_pem)
    return CertificateFacts(
        identity=Identity.parse(_one_uri(certificate)),
        serial=f"{certificate.serial_number:032x}",
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
    )


def _server_names(identity: Identity, names: Sequence[str]) -> list[x509.GeneralName]:
    """The coordinator's names as SANs. A server without names could only be reached by clients that check none."""
    if (identity.role == COORDINATOR) != bool(names):
        raise ValueError(
            f"{identity}: expected server names for the coordinator and none for owners, got {list(names)}"
        )
    return [_server_name(name) for name in names]


def check_server_name(name: str) -> str:
    """`name` if a certificate may bear it: a DNS name in lower case, or an IP address; else a `ValueError`."""
    _server_name(name)
    return name


def _server_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        # A last label of digits alone is a mistyped IPv4 address.
        if not DNS_NAME.fullmatch(name) or name.rpartition(".")[2].isdigit():
            raise ValueError(f"server name {name[:80]!r} is neither a lower-case DNS name nor an IP address") from None
        return x509.DNSName(name)


def _whole_seconds(moment: datetime) -> datetime:
    """In UTC without fractions, which X.509 dates do not have."""
    if moment.tzinfo is None:
        raise ValueError(f"{moment} has no time zone")
    return moment.astimezone(UTC).replace(microsecond=0)


def _check_within(authority: x509.Certificate, not_before: datetime, not_after: datetime) -> None:
    """A leaf that outlives its authority, or is older, fails only later and elsewhere."""
    first, last = authority.not_valid_before_utc, authority.not_valid_after_utc
    if not first <= not_before < not_after <= last:
        raise ValueError(f"{not_before} to {not_after} is not within the authority's own {first} to {last}")


def _builder(
    subject: x509.Name, public_key: ec.EllipticCurvePublicKey, *, not_before: datetime, not_after: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(public_key)
        .serial_number(secrets.randbits(128) or 1)
        .not_valid_before(_whole_seconds(not_before))
        .not_valid_after(_whole_seconds(not_after))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    """An authority signs certificates and revocation lists; a leaf signs TLS handshakes."""
    return x509.KeyUsage(
        digital_signature=not ca,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _uri_name(uri: str, *others: x509.GeneralName) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri), *others])


def _one_uri(certificate: x509.Certificate) -> str:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound as error:
        raise MalformedError("the certificate has no subject alternative name, expected exactly one URI") from error
    except _CRYPTOGRAPHY_ERRORS as error:
        raise MalformedError("the certificate's extensions do not parse") from error
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1:
        raise MalformedError(f"the certificate names {len(uris)} URIs, expected exactly one")
    return uris[0]


def _proven_key(csr_pem: bytes) -> ec.EllipticCurvePublicKey:
    """The CSR's key, once the CSR's signature proves that the sender holds it."""
    try:
        request = x509.load_pem_x509_csr(csr_pem)
    except _CRYPTOGRAPHY_ERRORS as error:
        raise MalformedError("not a certificate signing request in PEM; make one for an ECDSA P-256 key") from error
    key = _p256(request, "the CSR")
    try:
        is_proven = request.is_signature_valid
    except _CRYPTOGRAPHY_ERRORS as error:
        raise MalformedError("the CSR's signature is not of a kind its key makes") from error
    if not is_proven:
        raise VerificationError("the CSR is not signed by its own key")
    return key


def _p256(holder: x509.Certificate | x509.CertificateSigningRequest, name: str) -> ec.EllipticCurvePublicKey:
    try:
        key = holder.public_key()
    except _CRYPTOGRAPHY_ERRORS as error:
        raise MalformedError(f"the public key in {name} does not parse, expected ECDSA P-256") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise MalformedError(f"the public key in {name} is {_kind(key)}, expected ECDSA P-256")
    return key


def _load_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except _CRYPTOGRAPHY_ERRORS as error:
        raise MalformedError("not an unencrypted private key in PEM") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise MalformedError(f"the key is {_kind(key)}, expected ECDSA P-256")
    return key


def _load_certificate(pem: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem)
    except _CRYPTOGRAPHY_ERRORS as error:
        raise MalformedError("not a certificate in PEM") from error


def _to_pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _kind(key: object) -> str:
    """What a key is, for a message: its curve, else its type."""
    if isinstance(key, ec.EllipticCurvePublicKey | ec.EllipticCurvePrivateKey):
        return key.curve.name
    return type(key).__name__
