"""How owners join and stay: one-time invitations, certificates issued and renewed, every call authenticated.

An invitation is claimed in the transaction that records the owner, so it is used once whoever races. Repeating the
same request (same token, key and note) gives the certificate again: a crash between the two loses nobody.
"""

import hashlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from sqlalchemy import ColumnElement, Connection, func, insert, select, update

from common.errors import ConcordError, MalformedError, NotFoundError, NotPermittedError, VerificationError
from common.trust.certificate_request import CertificateRequest, check_signed, parse_certificate_request
from common.trust.identity import Identity
from common.trust.invitation import TOKEN_BYTES, token_hash
from common.trust.pki import CertificateFacts, identity_of
from common.trust.statements import COORDINATOR, CertRevoke, Statement, format_time
from coordinator.authority import Authority
from coordinator.permissions import OPEN, check_permitted
from coordinator.reads import Reads
from coordinator.registry import Recorded, Registry
from coordinator.store import Store
from coordinator.tables import certificates, invitations

_BACKDATED: Final = timedelta(minutes=5)
"""How long before now a certificate is valid, for owners' slow clocks; a tenth of its life where that is less, since
owners count from there when they renew."""
_COME_BACK: Final = "ask the admin for an invitation and run `concord owner enrol` with it in the same home"


@dataclass(frozen=True, slots=True)
class LatestCertificate:
    """The latest certificate of a party: until when it is good, whether it was revoked before, since when it is there,
    and the fingerprint of the root that it is under."""

    not_after: datetime
    is_revoked: bool
    issued_at: datetime
    root: str

    def describe(self, *, at: datetime) -> str:
        """What it is good for, in a word or two."""
        if self.is_revoked:
            return "revoked"
        return f"{'good' if at < self.not_after else 'lapsed'}, until {format_time(self.not_after)}"


@dataclass(frozen=True, slots=True)
class Enrolled:
    """What an owner gets for its invitation."""

    certificate: bytes
    recorded: Recorded


class Enrolment:
    """Issues invitations and certificates and says who calls."""

    def __init__(
        self,
        store: Store,
        registry: Registry,
        *,
        authority: Authority,
        certificate_lifetime: timedelta,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store = store
        self._registry = registry
        self._authority = authority
        self._lifetime = certificate_lifetime
        self._now = now
        self.reads = Reads(store)
        """What auditors read, which is counted."""
        self.last_calls: dict[str, datetime] = {}
        """When each party called last, since this process began."""

    def latest_certificates(self) -> dict[str, LatestCertificate]:
        """By party: an owner's name, another's with its role before it."""
        with self._store.reading() as connection:
            rows = connection.execute(select(certificates).order_by(certificates.c.not_after)).all()
        return {
            row.party: LatestCertificate(
                datetime.fromtimestamp(row.not_after, UTC),
                row.revoked_at is not None,
                datetime.fromtimestamp(row.issued_at, UTC),
                row.root,
            )
            for row in rows
        }

    def invite(self, owner: str, *, lifetime: timedelta) -> str:
        """A new one-time token for `owner`, or for another with its role before its name, such as `auditor/kim`; only
        its hash is kept. One who has joined gets a new certificate for it.

        Raises:
            MalformedError: no party may be called so.
        """
        self._identity(owner)
        token = secrets.token_urlsafe(TOKEN_BYTES)
        expires_at = (self._now() + lifetime).timestamp()
        with self._store.transaction() as connection:
            connection.execute(
                insert(invitations).values(token_hash=token_hash(token), owner=owner, expires_at=expires_at)
            )
        return token

    def redeem(self, token: str, *, csr: bytes, note: bytes, owner: str) -> Enrolled:
        """Admit `owner`, whose signed enrolment is `note`, and certify the key in `csr`.

        Raises:
            NotPermittedError: the token is unknown, used, expired or another owner's.
        """
        request = _request_of(csr, note)

        def claim(connection: Connection) -> None:
            _claim(connection, token, owner=owner, request=request, now=self._now().timestamp())

        # Before anything is claimed: a CSR that cannot be certified must not use up the invitation.
        certificate = self._certify(csr, owner)
        recorded = self._registry.admit(note, claim=claim)
        with self._store.transaction() as connection:
            _check_claim_stands(connection, token)
            self._remember(connection, certificate, owner)
        return Enrolled(certificate, recorded)

    def certify(self, token: str, *, csr: bytes) -> bytes:
        """A certificate for an admin, an auditor or a witness, whose word is in no log: its invitation is all it needs.

        Raises:
            NotPermittedError: the token is unknown, used, expired or an owner's.
        """
        now = self._now().timestamp()
        with self._store.reading() as connection:
            who = connection.execute(select(invitations.c.owner).where(_is_token(token))).scalar()
        if who is None or "/" not in who:
            raise NotPermittedError("this invitation is not from this coordinator, or is an owner's; ask for a new one")
        certificate = self._certify(csr, who)
        with self._store.transaction() as connection:
            _claim(connection, token, owner=who, request=_request_of(csr, b""), now=now)
            self._remember(connection, certificate, who)
        return certificate

    def has_joined(self, owner: str) -> bool:
        """Whether the log has an owner of that name."""
        return self._registry.party(owner) is not None

    def recertify(self, token: str, *, csr: bytes, note: bytes) -> bytes:
        """A certificate for a member that has no valid one any more; all earlier ones of that member end here.

        Raises:
            NotPermittedError: the token is unknown, used, expired or another owner's, or it has not joined.
            VerificationError: not signed by the key that is in the log.
            MalformedError: the request is for another key pair, invitation or federation.
        """
        signed, request = parse_certificate_request(note)
        member = self._registry.party(request.party)
        if member is None or request.party == COORDINATOR:
            raise NotPermittedError(f"{request.party[:80]!r} has not joined; enrol first")
        if request != CertificateRequest.of(
            federation=self._registry.root.federation, party=request.party, csr=csr, token=token
        ):
            raise MalformedError("this certificate request belongs to another key, invitation or federation")
        verifier = member.verifier(signed.signatures[0].key_id)
        if verifier is None:
            raise VerificationError(f"this request is not signed by a key of {request.party} that is in the log")
        check_signed(signed, verifier)
        certificate = self._certify(csr, request.party)
        now = self._now().timestamp()
        with self._store.transaction() as connection:
            claimed_at = _claim(connection, token, owner=request.party, request=_request_of(csr, note), now=now)
            _revoke(connection, request.party, at=claimed_at)
            self._remember(connection, certificate, request.party)
        return certificate

    def renew(self, party: str, *, csr: bytes, shown: bytes | None = None) -> bytes:
        """A new certificate for a party that has `shown` a valid one; it must be valid still when this is on disk.

        Raises:
            NotPermittedError: it was revoked meanwhile.
        """
        certificate = self._certify(csr, party)
        with self._store.transaction() as connection:
            if shown is not None:
                self._check_known(connection, identity_of(shown))
            self._remember(connection, certificate, party)
        return certificate

    def revoke(self, caller: str) -> None:
        """End the certificates of an admin, an auditor or a witness, of whom the log knows nothing.

        Raises:
            NotFoundError: there is none of that name.
        """
        if caller not in self.latest_certificates():
            raise NotFoundError(f"{caller[:80]} has no certificate; see: concord coordinator owners")
        with self._store.transaction() as connection:
            _revoke(connection, caller, at=self._now().timestamp())

    @property
    def authority(self) -> Authority:
        """What certificates are made with."""
        return self._authority

    def authenticate(self, certificate: bytes | None, method: str) -> str:
        """The party that calls `method` with this certificate, judged anew on every call.

        Raises:
            NotPermittedError: no certificate, or one that is not ours, has lapsed or was revoked.
        """
        if method in OPEN:
            return ""
        if certificate is None:
            raise NotPermittedError(f"{method} needs a client certificate; enrol first")
        try:
            facts = identity_of(certificate)
        except ConcordError as error:
            raise NotPermittedError(f"this certificate names no party: {error}") from error
        if facts.identity.federation != self._registry.root.federation:
            raise NotPermittedError(f"{facts.identity} is of another federation")
        if facts.not_after < self._now():
            raise NotPermittedError(
                f"the certificate of {facts.identity.party} lapsed at {facts.not_after}; {_COME_BACK}"
            )
        with self._store.reading() as connection:
            self._check_known(connection, facts)
        check_permitted(facts.identity, method)
        self.last_calls[facts.identity.caller] = self._now()
        if facts.identity.role == "auditor":
            self.reads.count(facts.identity.caller, method)
        return facts.identity.caller

    def _check_known(self, connection: Connection, facts: CertificateFacts) -> None:
        known = connection.execute(
            select(certificates.c.party, certificates.c.revoked_at).where(certificates.c.serial == facts.serial)
        ).first()
        if known is None or known.party != facts.identity.caller or known.revoked_at is not None:
            raise NotPermittedError(
                f"the certificate of {facts.identity.party} is revoked or was never issued here; {_COME_BACK}"
            )

    def _identity(self, caller: str) -> Identity:
        if caller.rpartition("/")[2] == COORDINATOR:
            raise MalformedError(f"nobody may be called {COORDINATOR!r}")
        try:
            return Identity.of_caller(self._registry.root.federation, caller)
        except ValueError as error:
            raise MalformedError(f"owner {caller[:80]!r}: {error}") from error

    def _remember(self, connection: Connection, certificate: bytes, caller: str) -> None:
        facts = identity_of(certificate)
        connection.execute(
            insert(certificates).values(
                serial=facts.serial,
                party=caller,
                not_after=facts.not_after.timestamp(),
                revoked_at=None,
                issued_at=self._now().timestamp(),
                root=self._authority.root_fingerprint,
            )
        )

    def _certify(self, csr: bytes, party: str) -> bytes:
        now = self._now()
        since = now - min(_BACKDATED, self._lifetime / 10)
        return self._authority.issue(
            csr, identity=self._identity(party), not_before=since, not_after=now + self._lifetime
        )


def revoke_certificates(connection: Connection, statement: Statement) -> None:
    """What a `cert.revoke` does: no certificate that its owner has is good from the next call on."""
    if isinstance(statement, CertRevoke):
        _revoke(connection, statement.owner, at=datetime.now(UTC).timestamp())


def _revoke(connection: Connection, party: str, *, at: float) -> None:
    connection.execute(
        update(certificates)
        .where(certificates.c.party == party, certificates.c.revoked_at.is_(None))
        .values(revoked_at=at)
    )


def _request_of(csr: bytes, note: bytes) -> str:
    """What tells one request from another that shows the same token."""
    return hashlib.sha256(len(csr).to_bytes(8, "big") + csr + note).hexdigest()


def _is_token(token: str) -> ColumnElement[bool]:
    return invitations.c.token_hash == token_hash(token)


def _check_claim_stands(connection: Connection, token: str) -> None:
    """A request that is kept and sent again gives nothing once its owner's certificates were revoked after it."""
    claimed = connection.execute(select(invitations).where(_is_token(token))).first()
    if claimed is None:
        return
    revoked = connection.execute(
        select(func.max(certificates.c.revoked_at)).where(certificates.c.party == claimed.owner)
    ).scalar()
    if revoked is not None and claimed.used_at is not None and revoked > claimed.used_at:
        raise NotPermittedError(
            f"certificates of {claimed.owner} were revoked since this invitation was used; {_COME_BACK}"
        )


def _claim(connection: Connection, token: str, *, owner: str, request: str, now: float) -> float:
    """Use a token up, or find that this very request did; returns when it was used."""
    hashed = token_hash(token)
    claimed = connection.execute(
        update(invitations)
        .where(
            invitations.c.token_hash == hashed,
            invitations.c.owner == owner,
            invitations.c.used_at.is_(None),
            invitations.c.expires_at > now,
        )
        .values(used_at=now, used_by=request)
        .returning(invitations.c.owner)
    ).first()
    if claimed is not None:
        return now
    found = connection.execute(select(invitations).where(invitations.c.token_hash == hashed)).first()
    if found is None:
        raise NotPermittedError("this invitation is not from this coordinator; ask the admin for a new one")
    if found.owner != owner:
        raise NotPermittedError(f"this invitation is for {found.owner}, not for {owner}")
    if found.used_by == request:
        _check_claim_stands(connection, token)
        return float(found.used_at)
    if found.used_at is not None:
        raise NotPermittedError(f"this invitation was used already; ask the admin for a new one for {owner}")
    raise NotPermittedError(f"this invitation has expired; ask the admin for a new one for {owner}")
