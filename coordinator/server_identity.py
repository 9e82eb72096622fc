"""What the coordinator shows at handshakes: its own certificate, renewed in time, and the roots it trusts."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from common.files import write_secret
from common.rpc.identity import TlsIdentity
from common.trust.identity import Identity
from common.trust.pki import identity_of, make_csr, new_key
from coordinator.home import Coordinator

_LIFETIME: Final = timedelta(days=30)
_BACKDATED: Final = timedelta(minutes=5)
_LOOK_AGAIN: Final = timedelta(seconds=60)


class ServerIdentity:
    """Asked at every handshake: changed files are read again, a certificate that has a third of its life left is
    replaced."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self._read: tuple[tuple[object, ...], TlsIdentity] | None = None
        self._due = datetime.min.replace(tzinfo=UTC)

    def __call__(self) -> TlsIdentity:
        """What is shown and trusted now."""
        authority, path = self._coordinator.authority, _path(self._coordinator)
        version = (path.stat().st_mtime_ns if path.exists() else 0, authority.certificate_pem)
        now = datetime.now(UTC)
        if self._read is None or self._read[0] != version or now > self._due:
            identity = server_identity(self._coordinator)
            self._read = (path.stat().st_mtime_ns, authority.certificate_pem), identity
            self._due = now + _LOOK_AGAIN
        return self._read[1]


def server_identity(coordinator: Coordinator) -> TlsIdentity:
    """The coordinator's own TLS key and certificate, renewed where less than a third of its life is left."""
    path, authority = _path(coordinator), coordinator.authority.certificate_pem
    if path.exists():
        identity = TlsIdentity.parse(path.read_bytes(), authority=authority)
        if identity_of(identity.certificate).not_after > datetime.now(UTC) + _LIFETIME / 3:
            return identity
    return rotate_server(coordinator)


def rotate_server(coordinator: Coordinator) -> TlsIdentity:
    """A new key and certificate for the coordinator; a daemon shows them from the next handshake on."""
    key, now = new_key(), datetime.now(UTC)
    certificate = coordinator.authority.issue_own(
        make_csr(key),
        identity=Identity.coordinator(coordinator.registry.root.federation),
        not_before=now - _BACKDATED,
        not_after=now + _LIFETIME,
        server_names=list(dict.fromkeys((coordinator.settings.reachable_at, "localhost", "127.0.0.1"))),
    )
    identity = TlsIdentity(key, certificate, coordinator.authority.certificate_pem)
    write_secret(_path(coordinator), bytes(identity))
    return identity


def _path(coordinator: Coordinator) -> Path:
    return coordinator.home.keys / "server.pem"
