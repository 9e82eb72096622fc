"""The certificate authorities of a coordinator: an offline root, the issuing one under it, and how both are changed.

`keys/authority.json` is one file that is replaced as a whole. It holds the issuing key and certificate, the roots that
are trusted and, while a root is changed, the issuing authority under the old one: the coordinator's own certificate is
made by that until every owner knows the new root. `keys/root.key` is needed to change authorities and for nothing else:
it may lie elsewhere. A daemon sees a changed file at its next use.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Lock
from typing import Final

from common.errors import ConflictError, MalformedError, NotFoundError
from common.files import read_required, write_secret
from common.trust import strict_json
from common.trust.identity import Identity
from common.trust.pki import CertificateAuthority, fingerprint

AUTHORITY_NAME: Final = "authority.json"
ROOT_KEY_NAME: Final = "root.key"
_NEXT_ROOT_KEY_NAME: Final = "root.key.next"
ISSUING_LIFETIME: Final = timedelta(days=365 * 2)
_HINT: Final = "this home is not complete; restore it from a backup or make a new one"


@dataclass(frozen=True, slots=True)
class Authorities:
    """All of it. `roots`: the present one first, then the one that is on its way out. `serving` certifies the
    coordinator itself, and is `issuing` but while a root is changed."""

    issuing: CertificateAuthority
    roots: tuple[bytes, ...]
    serving: CertificateAuthority

    @classmethod
    def parse(cls, data: bytes) -> "Authorities":
        """The inverse of `bytes`."""
        match strict_json.load_object(data, what=AUTHORITY_NAME):
            case {"issuing": dict(issuing), "roots": [*roots], "serving": dict(serving)}:
                pems = tuple(str(root).encode() for root in roots)
                return cls(_authority(issuing), pems, _authority(serving))
        raise MalformedError(f"{AUTHORITY_NAME} is not one that is written here; {_HINT}")

    def __bytes__(self) -> bytes:
        fields = {
            "issuing": _fields(self.issuing),
            "roots": [root.decode() for root in self.roots],
            "serving": _fields(self.serving),
        }
        return strict_json.canonical(fields) + b"\n"

    @property
    def is_changing(self) -> bool:
        """Whether two roots are trusted."""
        return len(self.roots) > 1


def _authority(fields: object) -> CertificateAuthority:
    match fields:
        case {"key": str(key), "certificate": str(certificate)}:
            return CertificateAuthority.from_pem(key.encode(), certificate_pem=certificate.encode())
    raise MalformedError(f"{AUTHORITY_NAME} is not one that is written here; {_HINT}")


def _fields(authority: CertificateAuthority) -> dict[str, str]:
    return {"key": authority.key_pem.decode(), "certificate": authority.certificate_pem.decode()}


class Authority:
    """What certificates are made with, as its file is now."""

    def __init__(self, keys: Path) -> None:
        self._path = keys / AUTHORITY_NAME
        self._lock = Lock()
        self._read: tuple[tuple[int, int, int], Authorities] | None = None

    @property
    def now(self) -> Authorities:
        """What the file says."""
        with self._lock:
            try:
                status = self._path.stat()
            except FileNotFoundError as error:
                raise NotFoundError(f"{self._path} is not there; {_HINT}") from error
            version = status.st_mtime_ns, status.st_ino, status.st_size
            if self._read is None or self._read[0] != version:
                self._read = version, Authorities.parse(read_required(self._path, hint=_HINT))
            return self._read[1]

    @property
    def certificate_pem(self) -> bytes:
        """The roots: what both ends trust."""
        return b"".join(self.now.roots)

    @property
    def root_fingerprint(self) -> str:
        """Of the root that new certificates are under."""
        return fingerprint(self.now.roots[0])

    def issue(self, csr: bytes, *, identity: Identity, not_before: datetime, not_after: datetime) -> bytes:
        """A member's certificate with the issuing one after it, PEM; errors as `CertificateAuthority.issue`."""
        issuing = self.now.issuing
        leaf = issuing.issue(csr, identity=identity, not_before=not_before, not_after=not_after)
        return leaf + issuing.certificate_pem

    def issue_own(
        self, csr: bytes, *, identity: Identity, not_before: datetime, not_after: datetime, server_names: Sequence[str]
    ) -> bytes:
        """The coordinator's own, likewise, under the root that every member knows."""
        serving = self.now.serving
        leaf = serving.issue(
            csr, identity=identity, not_before=not_before, not_after=not_after, server_names=server_names
        )
        return leaf + serving.certificate_pem


def create_authorities(keys: Path, federation: str) -> None:
    """A root and an issuing authority under it; `ValueError` where the federation's name cannot stand in them."""
    now = datetime.now(UTC)
    root = CertificateAuthority.create_root(federation, now=now)
    issuing = CertificateAuthority.create(federation, now=now, lifetime=ISSUING_LIFETIME, under=root)
    write_secret(keys / ROOT_KEY_NAME, root.key_pem)
    write_secret(keys / AUTHORITY_NAME, bytes(Authorities(issuing, (root.certificate_pem,), issuing)))


def rotate_issuing(keys: Path, *, root_key: Path | None = None) -> Authorities:
    """A new issuing authority under the present root. Certificates that the old one made stay good.

    Raises:
        NotFoundError: the root's key is not there.
        ConflictError: a root is being changed.
    """
    old = _stable(keys)
    root = _root(old, root_key or keys / ROOT_KEY_NAME)
    issuing = _issuing(root)
    return _write(keys, Authorities(issuing, old.roots, issuing))


def rotate_root(keys: Path, *, root_key: Path | None = None) -> Authorities:
    """A new root, trusted beside the old one until `finish_root`; new certificates are under the new one.

    Run again after a crash it goes on where that was. The old root's key must be shown.

    Raises:
        NotFoundError: the old root's key is not there.
        ConflictError: a root is being changed already.
    """
    now = Authority(keys).now
    here, coming = keys / ROOT_KEY_NAME, keys / _NEXT_ROOT_KEY_NAME
    if now.is_changing:
        if not coming.exists():
            raise ConflictError("a root is being changed already; end that first: rotate root --finish")
        coming.replace(here)  # a crash came between the two files
        return now
    _root(now, root_key or here)
    root = CertificateAuthority.create_root(now.issuing.federation, now=datetime.now(UTC))
    write_secret(coming, root.key_pem)
    changed = _write(keys, Authorities(_issuing(root), (root.certificate_pem, *now.roots), now.serving))
    coming.replace(here)
    return changed


def finish_root(keys: Path) -> Authorities:
    """Trust the new root alone.

    Raises:
        ConflictError: no root is being changed.
    """
    now = Authority(keys).now
    if not now.is_changing:
        raise ConflictError("no root is being changed; begin with: concord coordinator rotate root")
    return _write(keys, replace(now, roots=now.roots[:1], serving=now.issuing))


def _stable(keys: Path) -> Authorities:
    now = Authority(keys).now
    if now.is_changing:
        raise ConflictError("a root is being changed; end that first: concord coordinator rotate root --finish")
    return now


def _root(now: Authorities, path: Path) -> CertificateAuthority:
    """The present root with its key, wherever that is kept."""
    key = read_required(path, hint="the root's key is kept elsewhere; bring it, and name it with --root-key")
    return CertificateAuthority.from_pem(key, certificate_pem=now.roots[0])


def _issuing(root: CertificateAuthority) -> CertificateAuthority:
    now = datetime.now(UTC)
    return CertificateAuthority.create(root.federation, now=now, lifetime=ISSUING_LIFETIME, under=root)


def _write(keys: Path, authorities: Authorities) -> Authorities:
    write_secret(keys / AUTHORITY_NAME, bytes(authorities))
    return authorities
