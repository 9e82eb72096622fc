"""Issued certificates verify, name who we say and nobody else, and requests cannot ask for more."""

from base64 import encodebytes
from datetime import UTC, datetime, timedelta, timezone
from hashlib import sha256
from ipaddress import ip_address
from pathlib import Path
from ssl import DER_cert_to_PEM_cert, PEM_cert_to_DER_cert
from subprocess import run

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store
from cryptography.x509.verification import VerificationError as ChainError
from hypothesis import given
from hypothesis import strategies as st

from common.errors import MalformedError, VerificationError
from common.trust.identity import Identity
from common.trust.pki import CertificateAuthority, fingerprint, identity_of, make_csr, new_key

NOW = datetime(2026, 11, 23, 9, 30, 15, tzinfo=UTC)
DAY = timedelta(days=1)
FEDERATION = "hospitals.example"
OWNER = Identity.owner(FEDERATION, party="hospital-1")
COORDINATOR = Identity.coordinator(FEDERATION)
SERVER_NAMES = ("localhost", "coordinator.hospitals.example", "127.0.0.1", "::1")
AUTHORITY = CertificateAuthority.create(FEDERATION, now=NOW)
CSR = make_csr(new_key())


def issue(csr: bytes = CSR, *, identity: Identity = OWNER, names: tuple[str, ...] = (), start: datetime = NOW) -> bytes:
    return AUTHORITY.issue(csr, identity=identity, not_before=start, not_after=start + DAY, server_names=names)


def server_certificate() -> bytes:
    return issue(identity=COORDINATOR, names=SERVER_NAMES)


def load(pem: bytes) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem)


def policy(authority: CertificateAuthority = AUTHORITY, *, at: datetime = NOW) -> PolicyBuilder:
    return PolicyBuilder().store(Store([load(authority.certificate_pem)])).time(at)


EMPTY = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))


def signed_csr(key: CertificateIssuerPrivateKeyTypes, request: x509.CertificateSigningRequestBuilder = EMPTY) -> bytes:
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return request.sign(key, algorithm).public_bytes(serialization.Encoding.PEM)


def csr_der(pem: bytes) -> bytes:
    return x509.load_pem_x509_csr(pem).public_bytes(serialization.Encoding.DER)


def csr_pem(der: bytes) -> bytes:
    label = b"CERTIFICATE REQUEST-----\n"
    return b"-----BEGIN " + label + encodebytes(der) + b"-----END " + label


SELF_KEY = ec.generate_private_key(ec.SECP256R1())


def self_made(*names: x509.GeneralName) -> bytes:
    """A certificate on `SELF_KEY` with exactly these subject alternative names, or without the extension."""
    key = SELF_KEY
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, str(OWNER))])
    builder = (
        x509.CertificateBuilder(issuer_name=name, subject_name=name, public_key=key.public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + DAY)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


# Chains.


@pytest.mark.parametrize("name", SERVER_NAMES)
def test_the_coordinators_certificate_serves_each_of_its_names(name: str) -> None:
    try:
        subject: x509.DNSName | x509.IPAddress = x509.IPAddress(ip_address(name))
    except ValueError:
        subject = x509.DNSName(name)
    certificate = load(server_certificate())
    assert policy().build_server_verifier(subject).verify(certificate, [])[0] == certificate


def test_the_coordinators_certificate_serves_no_other_name() -> None:
    verifier = policy().build_server_verifier(x509.DNSName("other.example"))
    with pytest.raises(ChainError):
        verifier.verify(load(server_certificate()), [])


def test_an_owners_certificate_authenticates_a_client() -> None:
    verified = policy().build_client_verifier().verify(load(issue()), [])
    assert verified.subjects == [x509.UniformResourceIdentifier(str(OWNER))]


def test_an_owners_certificate_cannot_serve_nor_the_coordinators_be_a_client() -> None:
    with pytest.raises(ChainError):
        policy().build_server_verifier(x509.DNSName("localhost")).verify(load(issue()), [])
    with pytest.raises(ChainError):
        policy().build_client_verifier().verify(load(server_certificate()), [])


@pytest.mark.parametrize("at", [NOW - timedelta(seconds=1), NOW + DAY + timedelta(seconds=1)])
def test_a_certificate_holds_only_between_its_dates(at: datetime) -> None:
    with pytest.raises(ChainError, match="valid at"):
        policy(at=at).build_client_verifier().verify(load(issue()), [])


def test_another_authority_of_the_same_federation_does_not_vouch() -> None:
    other = CertificateAuthority.create(FEDERATION, now=NOW)
    with pytest.raises(ChainError):
        policy(other).build_client_verifier().verify(load(issue()), [])


def test_an_owners_certificate_cannot_issue() -> None:
    key_pem = new_key()
    leaf_pem = issue(make_csr(key_pem))
    forged_pem = CertificateAuthority(FEDERATION, leaf_pem, key_pem).issue(
        CSR, identity=Identity.owner(FEDERATION, party="victim"), not_before=NOW, not_after=NOW + DAY
    )
    with pytest.raises(ChainError):
        policy().build_client_verifier().verify(load(forged_pem), [load(leaf_pem)])


@pytest.mark.parametrize("purpose", ["sslserver", "sslclient"])
def test_openssl_agrees(purpose: str, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_bytes(AUTHORITY.certificate_pem)
    (tmp_path / "leaf.pem").write_bytes(server_certificate() if purpose == "sslserver" else issue())
    for asked, expected in (("sslserver", purpose == "sslserver"), ("sslclient", purpose == "sslclient")):
        command = ["openssl", "verify", "-x509_strict", "-attime", str(int(NOW.timestamp())), "-purpose", asked]
        command += ["-CAfile", str(tmp_path / "ca.pem"), str(tmp_path / "leaf.pem")]
        assert (run(command, capture_output=True, check=False).returncode == 0) == expected


# What a certificate says.


def test_an_owners_certificate_says_exactly_this() -> None:
    key_pem = new_key()
    certificate = load(issue(make_csr(key_pem)))
    key = serialization.load_pem_private_key(key_pem, password=None)
    assert certificate.public_key() == key.public_key()
    assert certificate.issuer == load(AUTHORITY.certificate_pem).subject
    extensions = {type(extension.value): extension for extension in certificate.extensions}
    assert set(extensions) == {
        x509.SubjectKeyIdentifier,
        x509.AuthorityKeyIdentifier,
        x509.BasicConstraints,
        x509.KeyUsage,
        x509.ExtendedKeyUsage,
        x509.SubjectAlternativeName,
    }
    assert extensions[x509.BasicConstraints].value == x509.BasicConstraints(ca=False, path_length=None)
    assert extensions[x509.ExtendedKeyUsage].value == x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
    uri = x509.UniformResourceIdentifier("spiffe://hospitals.example/owner/hospital-1")
    assert extensions[x509.SubjectAlternativeName].value == x509.SubjectAlternativeName([uri])
    assert {kind for kind, extension in extensions.items() if extension.critical} == {
        x509.BasicConstraints,
        x509.KeyUsage,
    }
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.digital_signature
    assert not any((usage.key_cert_sign, usage.crl_sign, usage.key_agreement, usage.key_encipherment))


def test_the_coordinators_certificate_names_itself_and_its_servers() -> None:
    extensions = load(server_certificate()).extensions
    names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == [
        x509.UniformResourceIdentifier("spiffe://hospitals.example/coordinator"),
        x509.DNSName("localhost"),
        x509.DNSName("coordinator.hospitals.example"),
        x509.IPAddress(ip_address("127.0.0.1")),
        x509.IPAddress(ip_address("::1")),
    ]
    usage = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]


def test_the_authority_signs_leaves_only() -> None:
    extensions = load(AUTHORITY.certificate_pem).extensions
    constraints = extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert constraints.value == x509.BasicConstraints(ca=True, path_length=0)
    usage = extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.key_cert_sign
    assert not usage.digital_signature


def test_facts_are_read_back() -> None:
    pem = issue()
    facts = identity_of(pem)
    assert facts.identity == OWNER
    assert (facts.not_before, facts.not_after) == (NOW, NOW + DAY)
    assert int(facts.serial, 16) == load(pem).serial_number
    assert identity_of(server_certificate()).identity == COORDINATOR


def test_serials_are_128_random_bits() -> None:
    serials = {identity_of(issue()).serial for _ in range(32)}
    assert {len(serial) for serial in serials} == {32}
    assert len({serial[:8] for serial in serials}) == len({serial[-8:] for serial in serials}) == 32


def test_dates_are_cut_to_seconds_and_moved_to_utc() -> None:
    start = NOW.astimezone(timezone(timedelta(hours=5))) + timedelta(microseconds=999_999)
    assert identity_of(issue(start=start)).not_before == NOW


def test_the_fingerprint_is_of_the_der() -> None:
    pem = issue()
    assert fingerprint(pem) == sha256(PEM_cert_to_DER_cert(pem.decode())).hexdigest()


# What a request cannot do.


def test_what_a_request_asks_for_is_ignored() -> None:
    names = [x509.UniformResourceIdentifier(str(COORDINATOR)), x509.DNSName("coordinator.hospitals.example")]
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]
    greedy = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "coordinator")]))
        .add_extension(x509.BasicConstraints(ca=True, path_length=3), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00"), critical=False)
    )
    key = ec.generate_private_key(ec.SECP256R1())
    plain, asked = load(issue(signed_csr(key))), load(issue(signed_csr(key, greedy)))
    assert list(asked.extensions) == list(plain.extensions)
    assert asked.subject == plain.subject == x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "hospital-1")])


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        (rsa.generate_private_key(public_exponent=65537, key_size=2048), "RSA"),
        (ed25519.Ed25519PrivateKey.generate(), "Ed25519"),
        (ec.generate_private_key(ec.SECP384R1()), "secp384r1"),
        (ec.generate_private_key(ec.SECP256K1()), "secp256k1"),
    ],
    ids=["RSA", "Ed25519", "P-384", "secp256k1"],
)
def test_requests_for_other_keys_are_refused(key: CertificateIssuerPrivateKeyTypes, kind: str) -> None:
    with pytest.raises(MalformedError, match=f"{kind}.*expected ECDSA P-256"):
        issue(signed_csr(key))


def test_a_request_not_signed_by_its_key_is_refused() -> None:
    """Every bit of what is signed and of the signature counts: nobody gets a certificate on a key they do not hold."""
    request, der = x509.load_pem_x509_csr(CSR), csr_der(CSR)
    for part in (request.tbs_certrequest_bytes, request.signature):
        start = der.index(part)
        for position in range(start, start + len(part)):
            for bit in range(8):
                flipped = bytes([*der[:position], der[position] ^ 1 << bit, *der[position + 1 :]])
                with pytest.raises((MalformedError, VerificationError)):
                    issue(csr_pem(flipped))


def test_a_request_with_another_requests_signature_is_refused() -> None:
    mine, other = csr_der(CSR), csr_der(make_csr(new_key()))
    with pytest.raises(VerificationError, match="not signed by its own key"):
        issue(csr_pem(mine[:-16] + other[-16:]))


@pytest.mark.parametrize("pem", [b"", b"not a request", CSR[:-60], AUTHORITY.certificate_pem, b"\xff\x00"])
def test_what_is_no_request_is_refused(pem: bytes) -> None:
    with pytest.raises(MalformedError, match="not a certificate signing request"):
        issue(pem)


# What the issuer's caller cannot ask for.


def test_another_federations_identity_is_a_mistake() -> None:
    with pytest.raises(ValueError, match=r"not of the federation hospitals\.example"):
        issue(identity=Identity.owner("banks.example", party="hospital-1"))


def test_server_names_are_the_coordinators_alone() -> None:
    with pytest.raises(ValueError, match="expected server names"):
        issue(identity=OWNER, names=("localhost",))
    with pytest.raises(ValueError, match="expected server names"):
        issue(identity=COORDINATOR)


BAD_SERVER_NAMES = ["", "*", "*.example", "UPPER.example", "a b", "a_b", "-a", "a-", "a..b", ".a", "a.", "127.0.0.256"]
BAD_SERVER_NAMES += ["spiffe://a", "a" * 64, "a:443", "127.0.0.1/8", "bücher.example", ".".join(["abc"] * 64)]


@pytest.mark.parametrize("name", BAD_SERVER_NAMES)
def test_bad_server_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="server name"):
        issue(identity=COORDINATOR, names=("localhost", name))


@pytest.mark.parametrize(
    ("not_before", "not_after"),
    [
        (NOW, NOW - DAY),
        (NOW - DAY, NOW + DAY),
        (NOW, NOW + timedelta(days=4000)),
        (NOW.replace(tzinfo=None), NOW + DAY),
        (NOW, (NOW + DAY).replace(tzinfo=None)),
    ],
    ids=["reversed", "before the authority", "after the authority", "naive start", "naive end"],
)
def test_dates_that_cannot_hold_are_refused(not_before: datetime, not_after: datetime) -> None:
    with pytest.raises(ValueError, match=r"not within the authority|no time zone"):
        AUTHORITY.issue(CSR, identity=OWNER, not_before=not_before, not_after=not_after)


def test_a_certificate_may_be_back_dated_for_slow_clocks() -> None:
    start = NOW - timedelta(minutes=5)
    assert identity_of(issue(start=start)).not_before == start


# Reading certificates.

URI = x509.UniformResourceIdentifier(str(OWNER))


def test_a_certificate_without_a_name_is_refused_whatever_its_common_name() -> None:
    with pytest.raises(MalformedError, match="no subject alternative name"):
        identity_of(self_made())


@pytest.mark.parametrize(
    "names",
    [
        (x509.DNSName("hospital-1"),),
        (URI, URI),
        (URI, x509.UniformResourceIdentifier(str(COORDINATOR))),
        (URI, x509.UniformResourceIdentifier("https://hospitals.example")),
    ],
    ids=["none", "twice", "two identities", "another kind"],
)
def test_a_certificate_with_another_number_of_uris_than_one_is_refused(names: tuple[x509.GeneralName, ...]) -> None:
    with pytest.raises(MalformedError, match="expected exactly one"):
        identity_of(self_made(*names))


def test_the_one_uri_is_found_among_other_names() -> None:
    assert identity_of(self_made(x509.DNSName("a.example"), URI)).identity == OWNER


def test_an_authoritys_certificate_is_no_party() -> None:
    with pytest.raises(MalformedError, match="identity"):
        identity_of(AUTHORITY.certificate_pem)


@pytest.mark.parametrize("pem", [b"", b"not a certificate", CSR, b"\xff\x00"])
def test_what_is_no_certificate_is_refused(pem: bytes) -> None:
    with pytest.raises(MalformedError, match="not a certificate"):
        identity_of(pem)
    with pytest.raises(MalformedError, match="not a certificate"):
        fingerprint(pem)


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
def test_a_broken_certificate_raises_nothing_else_than_our_errors() -> None:
    der = load(server_certificate()).public_bytes(serialization.Encoding.DER)
    readers = (identity_of, lambda pem: CertificateAuthority.from_pem(AUTHORITY.key_pem, certificate_pem=pem))
    for position in range(len(der)):
        broken = DER_cert_to_PEM_cert(bytes([*der[:position], der[position] ^ 0xFF, *der[position + 1 :]])).encode()
        for read in readers:
            try:
                read(broken)
            except (MalformedError, VerificationError):
                continue
            assert read is identity_of  # what it does not read may be broken: the chain is for TLS to verify


# Identities.

PARTIES = st.from_regex(r"[a-z][a-z0-9-]{0,62}", fullmatch=True).filter(lambda party: party != "coordinator")
FEDERATIONS = st.from_regex(r"[a-z0-9]{1,9}(-[a-z0-9]{1,9})?(\.[a-z]{1,9}){0,3}", fullmatch=True)


@given(FEDERATIONS, PARTIES)
def test_every_identity_comes_back(federation: str, party: str) -> None:
    for identity in (Identity.owner(federation, party=party), Identity.coordinator(federation)):
        assert Identity.parse(str(identity)) == identity


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "spiffe://",
        "spiffe://a.example",
        "spiffe://a.example/",
        "spiffe://a.example/owner",
        "spiffe://a.example/owner/",
        "spiffe://a.example/owner/b/",
        "spiffe://a.example/owner/b/c",
        "spiffe://a.example/owner/b?c",
        "spiffe://a.example/owner/b#c",
        "spiffe://a.example/owner/b%20c",
        "spiffe://a.example/owner/B",
        "spiffe://a.example/owner/1b",
        "spiffe://a.example/owner/-b",
        "spiffe://a.example/owner/b_c",
        "spiffe://a.example/owner/b\n",
        "spiffe://a.example/owner/é",
        f"spiffe://a.example/owner/{'b' * 64}",
        "spiffe://a.example/owner/coordinator",
        "spiffe://a.example/owner/../coordinator",
        "spiffe://a.example//owner/b",
        "spiffe://a.example/coordinator/",
        "spiffe://a.example/coordinator/b",
        "spiffe://a.example/Coordinator",
        "spiffe://A.example/coordinator",
        "spiffe://a.example:443/coordinator",
        "spiffe://user@a.example/coordinator",
        "spiffe://a..example/coordinator",
        "spiffe://-a.example/coordinator",
        "spiffe://a.example./coordinator",
        f"spiffe://{'a' * 64}/coordinator",
        "SPIFFE://a.example/coordinator",
        "https://a.example/coordinator",
        " spiffe://a.example/coordinator",
        "spiffe://a.example/coordinator\n",
    ],
)
def test_bad_identities_are_refused(uri: str) -> None:
    with pytest.raises(MalformedError, match="identity"):
        Identity.parse(uri)


def test_a_party_names_one_identity() -> None:
    for role, party in (("owner", "coordinator"), ("coordinator", "hospital-1")):
        with pytest.raises(ValueError, match="cannot have the role"):
            Identity(FEDERATION, role, party)  # type: ignore[arg-type]  # a plain string
    with pytest.raises(ValueError, match="cannot have the role"):
        Identity(FEDERATION, "archivist", "someone")  # type: ignore[arg-type]  # the point of the test


# Authorities and keys.


def test_an_authority_survives_its_pem() -> None:
    restored = CertificateAuthority.from_pem(AUTHORITY.key_pem, certificate_pem=AUTHORITY.certificate_pem)
    assert restored == AUTHORITY
    assert restored.federation == FEDERATION


def test_an_authority_does_not_show_its_key() -> None:
    assert b"PRIVATE" in AUTHORITY.key_pem
    assert "PRIVATE" not in repr(AUTHORITY)


def test_an_authority_with_anothers_key_is_refused() -> None:
    with pytest.raises(VerificationError, match="another key"):
        CertificateAuthority.from_pem(new_key(), certificate_pem=AUTHORITY.certificate_pem)


def test_a_leaf_does_not_make_an_authority() -> None:
    key_pem = new_key()
    with pytest.raises(MalformedError, match="not an authority's certificate"):
        CertificateAuthority.from_pem(key_pem, certificate_pem=issue(make_csr(key_pem)))


@pytest.mark.parametrize("uri", ["spiffe://A.example", "spiffe://", "https://a.example", "a.example", str(COORDINATOR)])
def test_a_certificate_of_no_federation_does_not_make_an_authority(uri: str) -> None:
    key_pem = SELF_KEY.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with pytest.raises(MalformedError, match="not an authority's certificate"):
        CertificateAuthority.from_pem(key_pem, certificate_pem=self_made(x509.UniformResourceIdentifier(uri)))


@pytest.mark.parametrize("federation", ["", "A.example", "a_b", "a..b", "-a", "a.", "a/b", "a" * 64, "é.example"])
def test_a_federation_is_a_dns_name(federation: str) -> None:
    with pytest.raises(ValueError, match="not a lower-case DNS name"):
        CertificateAuthority.create(federation, now=NOW)


def test_an_authority_needs_a_time_zone() -> None:
    with pytest.raises(ValueError, match="no time zone"):
        CertificateAuthority.create(FEDERATION, now=NOW.replace(tzinfo=None))


def test_keys_are_p256_and_differ() -> None:
    first, second = new_key(), new_key()
    assert first != second
    key = serialization.load_pem_private_key(first, password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert isinstance(key.curve, ec.SECP256R1)


def test_requests_are_made_on_p256_keys_only() -> None:
    p384 = ec.generate_private_key(ec.SECP384R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with pytest.raises(MalformedError, match="secp384r1, expected ECDSA P-256"):
        make_csr(p384)
    with pytest.raises(MalformedError, match="not an unencrypted private key"):
        make_csr(b"not a key")
