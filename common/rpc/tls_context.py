"""TLS for what is no gRPC: the same certificates, 1.3 alone; and a certificate for talk within one machine."""

import ssl
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

from common.rpc.identity import TlsIdentity
from common.trust.identity import Identity
from common.trust.pki import CertificateAuthority, make_csr, new_key

_HERE: Final = ("localhost", "127.0.0.1")
_LOOPBACK: Final = "loopback.invalid"
_LIFETIME: Final = timedelta(days=3000)


def server_context(tls: TlsIdentity, *, require_client: bool) -> ssl.SSLContext:
    """What a server shows, and whom it lets finish a handshake."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if require_client:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=tls.authority.decode())
    return _showing(context, tls)


def client_context(tls: TlsIdentity) -> ssl.SSLContext:
    """What a client shows; the server must be certified by the same authority, for the name that is dialled."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=tls.authority.decode())
    return _showing(context, tls)


def trusting(authority: bytes) -> ssl.SSLContext:
    """Of a client that shows nothing."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=authority.decode())
    return context


class Contexts:
    """The context of an identity that may change, made anew where it did."""

    def __init__(self, ask: Callable[[], TlsIdentity], make: Callable[[TlsIdentity], ssl.SSLContext]) -> None:
        self._ask, self._make = ask, make
        self._last: tuple[TlsIdentity, ssl.SSLContext] | None = None

    def __call__(self) -> ssl.SSLContext:
        """Of what is to be shown now."""
        tls, last = self._ask(), self._last
        if last is not None and last[0] == tls:
            return last[1]
        context = self._make(tls)
        self._last = tls, context
        return context


def loopback_identity() -> TlsIdentity:
    """A new key with a certificate for this machine's own loopback address, by an authority whose key is forgotten."""
    now = datetime.now(UTC)
    authority, key = CertificateAuthority.create(_LOOPBACK, now=now), new_key()
    certificate = authority.issue(
        make_csr(key),
        identity=Identity.coordinator(_LOOPBACK),
        not_before=now,
        not_after=now + _LIFETIME,
        server_names=_HERE,
    )
    return TlsIdentity(key, certificate, authority.certificate_pem)


def _showing(context: ssl.SSLContext, tls: TlsIdentity) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    with tempfile.NamedTemporaryFile() as file:  # readable by us alone; OpenSSL reads keys from files
        file.write(bytes(tls))
        file.flush()
        context.load_cert_chain(file.name)
    return context
