"""Being a member: enrol once, then open the home, keep the certificate fresh, and send statements.

Every step may be run again, after a crash at any point or just so: it finds what is done and does the rest.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event, Thread
from typing import Final

from common.allocator import share_freed_memory
from common.errors import (
    ConflictError,
    ConsentError,
    MalformedError,
    NotFoundError,
    NotPermittedError,
    SignatureNeededError,
    TooLargeError,
    UnavailableError,
)
from common.files import make_private_directory, read_required, write_atomic, write_secret
from common.rpc.identity import TlsIdentity
from common.trust.campaign_statements import CampaignDecline, CampaignResult
from common.trust.certificate_request import CertificateRequest, parse_certificate_request
from common.trust.cosignature import Witness, cosign, cosigned
from common.trust.invitation import Invitation
from common.trust.manifest import digest_of
from common.trust.note import Checkpoint, Note, SigningKey
from common.trust.pki import CertificateFacts, check_roots, identity_of, make_csr, new_key
from common.trust.root import TrustedRoot
from common.trust.rules import owner_key_name, witness_key_name
from common.trust.statements import ConsentRevoke, OwnerEnrol, OwnerKeyRevoke
from owner_client import egress
from owner_client.campaign_folder import folder_of
from owner_client.chain import Chain, Said
from owner_client.client import Client, redeem
from owner_client.config import OwnerHome, OwnerSettings
from owner_client.ledger import ledger_at
from owner_client.pace import Pace
from owner_client.pins import Pins
from owner_client.retry import Retry
from owner_client.review import Reviews
from owner_client.traffic import Traffic

_INVITATION: Final = "invitation.json"
_LOOK_EVERY_S: Final = 0.2
_COSIGN_AGAIN: Final = timedelta(hours=1)


REFUSALS: Final = (MalformedError, NotFoundError, ConflictError, ConsentError, TooLargeError)
"""The registry's word that it holds no such statement. After any other failure it may: the reply was lost, the receipt
does not verify, the coordinator failed after recording, or it would not even look (a lapsed certificate)."""


_KEPT: Final = (
    "Your revocation stays signed and is sent again; if it is refused without a reason, have it witnessed: "
    "concord owner hand-over"
)
_NOT_SENT: Final = (
    "Your revocation is signed and kept, and is sent when you run this again or while concord owner run does; if the "
    "log stays without it, have it witnessed: concord owner hand-over"
)


@dataclass(frozen=True, slots=True)
class Membership:
    """An enrolled owner: its home, keys, statements and connection."""

    home: OwnerHome
    settings: OwnerSettings
    root: TrustedRoot
    chain: Chain
    client: Client
    reviews: Reviews
    witness: SigningKey | None
    """What checkpoints are cosigned with; None in a home that enrolled without."""


def enrol(
    home: OwnerHome,
    invitation: Invitation,
    *,
    data: Path | None,
    public: Path | None,
    retry: Retry,
) -> OwnerSettings:
    """Join with a one-time invitation: make the keys, prove possession, get a certificate and a place in the log.

    In the home of an owner that has joined, its invitation gives a new certificate in place of one that lapsed.

    Raises:
        ConflictError: this home has joined already, as another owner or elsewhere.
        NotPermittedError: the invitation is used, expired or not of this coordinator.
    """
    if "/" in invitation.owner:
        raise MalformedError(
            f"this invitation is for {invitation.owner}, who is no owner; an auditor joins with: concord audit enrol"
        )
    if home.settings_file.exists():
        settings = home.settings()
        if _was_begun_with(home, invitation):
            _clear_away(home)
            return settings
        if settings.owner != invitation.owner or home.trusted_root.read_bytes() != bytes(invitation.root):
            raise ConflictError(f"{home.path} has joined already, as {settings.owner}; use another --home")
        _recertify(home, invitation, retry)
        return settings
    _check_restart(home, invitation)
    key = _prepare(home, invitation)
    chain = Chain(home.statements, party=invitation.owner, key=key, root=invitation.root)
    settings = OwnerSettings(owner=invitation.owner, target=invitation.target, data=data, public=public)
    with chain.turn():
        _redeem(home, invitation, chain, key, retry)
    write_atomic(home.settings_file, _toml(settings).encode())
    _clear_away(home)
    return settings


def _recertify(home: OwnerHome, invitation: Invitation, retry: Retry) -> None:
    """Exchange the invitation for a new certificate; interrupted, the same request is made again."""
    begun = home.recertifying / _INVITATION
    if begun.exists() and begun.read_bytes() != bytes(invitation):
        shutil.rmtree(home.recertifying)
    write_secret(begun, bytes(invitation))
    key_file, csr_file = home.recertifying / "tls.key", home.recertifying / "csr.pem"
    if not csr_file.exists():
        key = new_key()
        write_secret(key_file, key)
        write_secret(csr_file, make_csr(key))
    csr = csr_file.read_bytes()
    request = _signed_request(home, invitation, csr)
    authority, to = invitation.authority.encode(), invitation.enrolment_target
    reply = redeem(
        to,
        authority=authority,
        token=invitation.token,
        csr=egress.certificate_request(home.ledger, csr, to=to),
        note=egress.message(home.ledger, "request", name="proof of key", data=request, to=to),
        retry=retry,
        traffic=Traffic(ledger_at(home.ledger), to=to),
    )
    write_atomic(home.authority, authority)
    write_secret(home.tls, bytes(TlsIdentity(key_file.read_bytes(), reply.certificate, authority)))
    shutil.rmtree(home.recertifying)


def _signed_request(home: OwnerHome, invitation: Invitation, csr: bytes) -> bytes:
    """The request for a new certificate, signed here or, where the key is elsewhere, there."""
    federation, owner = invitation.root.federation, invitation.owner
    request = CertificateRequest.of(federation=federation, party=owner, csr=csr, token=invitation.token)
    if home.signing_key.exists():
        name = owner_key_name(federation, owner)
        return request.sign(SigningKey.from_pem(home.signing_key.read_bytes(), name=name))
    unsigned, signed = home.recertifying / "request.unsigned", home.recertifying / "request.note"
    if not signed.exists():
        write_atomic(unsigned, request.text.encode())
        raise SignatureNeededError(
            f"the request for a new certificate waits for your signature, for {home.signing_key} is not there. Restore "
            f"it from your backup or, where it is kept elsewhere, carry {unsigned} to it, sign that there (concord "
            f"owner sign {unsigned.name} --key KEY), put the signed file beside it as {signed.name}, and run this "
            "again while the invitation is good"
        )
    note = signed.read_bytes()
    if parse_certificate_request(note)[1] != request:
        raise MalformedError(f"{signed} is the signature of another request; remove it and run this again")
    return note


def _was_begun_with(home: OwnerHome, invitation: Invitation) -> bool:
    begun = home.enrolling / _INVITATION
    return begun.exists() and begun.read_bytes() == bytes(invitation)


def _clear_away(home: OwnerHome) -> None:
    """Remove what only an unfinished enrolment needs; the invitation last, so that a crash leaves it to go on from."""
    for path in sorted(home.enrolling.iterdir(), key=lambda path: path.name == _INVITATION):
        path.unlink()
    home.enrolling.rmdir()


def _redeem(home: OwnerHome, invitation: Invitation, chain: Chain, key: SigningKey, retry: Retry) -> None:
    """Exchange the invitation for a certificate and a verified place in the log."""
    said, csr, authority = (
        _enrolment(home, chain, key, invitation.root),
        (home.enrolling / "csr.pem").read_bytes(),
        invitation.authority.encode(),
    )
    to = invitation.enrolment_target
    reply = redeem(
        to,
        authority=authority,
        token=invitation.token,
        csr=egress.certificate_request(home.ledger, csr, to=to),
        note=egress.statement(home.ledger, said, to=to),
        retry=retry,
        traffic=Traffic(ledger_at(home.ledger), to=to),
    )
    if Note.parse(reply.note).text != said.statement.text:
        raise MalformedError("the coordinator logged another enrolment than the one that was sent")
    tls = TlsIdentity((home.enrolling / "tls.key").read_bytes(), reply.certificate, authority)
    write_secret(home.tls, bytes(tls))
    pins = Pins(home.pinned, evidence=home.evidence, root=invitation.root)
    traffic = Traffic(ledger_at(home.ledger), to=invitation.target)
    client = Client(invitation.target, tls=tls, root=invitation.root, pins=pins, retry=retry, traffic=traffic)
    try:
        client.believe(reply.receipt, entry=reply.note)
    finally:
        client.close()
    chain.acknowledge(said, receipt=reply.receipt)


def _check_restart(home: OwnerHome, invitation: Invitation) -> None:
    """An enrolment that was interrupted is finished with the invitation it was begun with, or begun anew."""
    if (home.enrolling / _INVITATION).exists() and not _was_begun_with(home, invitation):
        for directory in (home.enrolling, home.statements):
            for path in directory.glob("*"):
                path.unlink()


def _prepare(home: OwnerHome, invitation: Invitation) -> SigningKey:
    """Make the keys and the request, once; an interrupted enrolment is repeated with the same ones."""
    make_private_directory(home.path)
    write_secret(home.enrolling / _INVITATION, bytes(invitation))
    write_atomic(home.authority, invitation.authority.encode())
    write_atomic(home.trusted_root, bytes(invitation.root))
    if not (home.enrolling / "csr.pem").exists():
        tls_key = new_key()
        write_secret(home.enrolling / "tls.key", tls_key)
        write_secret(home.enrolling / "csr.pem", make_csr(tls_key))
    name = owner_key_name(invitation.root.federation, invitation.owner)
    if not home.signing_key.exists():
        write_secret(home.signing_key, SigningKey.generate(name).to_pem())
    return SigningKey.from_pem(home.signing_key.read_bytes(), name=name)


def _enrolment(home: OwnerHome, chain: Chain, key: SigningKey, root: TrustedRoot) -> Said:
    earlier = chain.statements()
    if earlier:
        return earlier[0]
    witness = Witness.of(_witness_key(home, root.federation, chain.party))
    return chain.say(OwnerEnrol, public_key=str(key.verifier), witness_key=str(witness))


def _witness_key(home: OwnerHome, federation: str, party: str) -> SigningKey:
    """What this owner's daemon cosigns with; made when it is needed first."""
    name = witness_key_name(federation, party)
    if not home.witness_key.exists():
        write_secret(home.witness_key, SigningKey.generate(name).to_pem())
    return SigningKey.from_pem(home.witness_key.read_bytes(), name=name)


def _toml(settings: OwnerSettings) -> str:
    lines = [f'owner = "{settings.owner}"', f'target = "{settings.target}"']
    for name, path in (("data", settings.data), ("public", settings.public)):
        if path is not None:
            lines.append(f"{name} = {json.dumps(str(path.resolve()))}")
    return "\n".join(lines) + "\n"


@contextmanager
def open_membership(home: OwnerHome, *, patience_s: float, stop: Event | None = None) -> Iterator[Membership]:
    """The enrolled owner whose home this is, its earlier unfinished statements sent first.

    Raises:
        NotFoundError: it has not enrolled.
    """
    share_freed_memory()  # before gRPC's threads begin, which megabytes pass through
    settings = home.settings()
    root = TrustedRoot.parse(read_required(home.trusted_root, hint="restore it or enrol again"))
    name = owner_key_name(root.federation, settings.owner)
    # Without the key all but signing works: an owner may keep it on another machine.
    key = SigningKey.from_pem(home.signing_key.read_bytes(), name=name) if home.signing_key.exists() else None
    authority = read_required(home.authority, hint="restore it or enrol again")
    tls = TlsIdentity.parse(read_required(home.tls, hint="restore it or enrol again"), authority=authority)
    pins = Pins(home.pinned, evidence=home.evidence, root=root)
    line = settings.transfer
    pace = Pace(megabytes_per_s=line.megabytes_per_s, hours=line.hours, stop=stop)
    retry = Retry(patience_s=patience_s, stop=stop)
    traffic = Traffic(ledger_at(home.ledger), to=settings.target)
    client = Client(settings.target, tls=tls, root=root, pins=pins, retry=retry, traffic=traffic, pace=pace)
    ended = Event()
    if stop is not None:
        Thread(target=_close_when, args=(stop, ended, client), daemon=True).start()
    try:
        chain = Chain(home.statements, party=settings.owner, key=key, root=root)
        reviews = reviews_of(home, settings)
        member = Membership(home, settings, root, chain, client, reviews, _witness_in_log(home, chain, root))
        due_at = renewal_moment(identity_of(tls.certificate))
        client.connection.keep_fresh(lambda: _renewed(member), due_at=due_at)
        yield member
    finally:
        ended.set()
        client.close()


def reviews_of(home: OwnerHome, settings: OwnerSettings) -> Reviews:
    """What a person of this owner is asked."""
    return Reviews(home.reviews, settings=settings.egress, ledger=home.ledger)


def _witness_in_log(home: OwnerHome, chain: Chain, root: TrustedRoot) -> SigningKey | None:
    enrolment = next((said.statement for said in chain.statements() if isinstance(said.statement, OwnerEnrol)), None)
    if enrolment is None or enrolment.witness_key is None or not home.witness_key.exists():
        return None
    return _witness_key(home, root.federation, chain.party)


def cosign_checkpoint(member: Membership, checkpoint: bytes) -> bool:
    """Cosign a checkpoint that was found to continue what this owner saw; False where that is done or has no key. One
    that stays the newest is cosigned again: the log is still watched.

    An older one than what was seen last is not cosigned: a coordinator that shows it wants today's word for it.
    """
    note = Note.parse(checkpoint)
    if member.witness is None or member.client.pinned() != Checkpoint.parse(note.text):
        return False
    now, before = datetime.now(UTC), cosigned(note, [Witness.of(member.witness)])
    if any(now < at + _COSIGN_AGAIN for at in before.values()):
        return False
    ours = Note(note.text, (*note.signatures[:1], cosign(note.text, member.witness, at=now)))
    data = bytes(ours)
    to = member.settings.target
    member.client.cosign(egress.message(member.home.ledger, "cosignature", name="checkpoint", data=data, to=to))
    return True


def wait_for_quorum(member: Membership) -> None:
    """Wait until as many of the witnesses that this owner trusts have cosigned the log's head as its settings ask for.

    Raises:
        UnavailableError: patience ended; the message says who did.
        VerificationError: a cosignature does not hold.
    """
    settings = member.settings
    if settings.quorum:
        member.client.wait_for_quorum([Witness.parse(line) for line in settings.witnesses], settings.quorum)


def _close_when(stop: Event, ended: Event, client: Client) -> None:
    """End the call that is under way when `stop` is set: a coordinator that hangs must not keep an owner from it."""
    while not ended.wait(_LOOK_EVERY_S):
        if stop.is_set():
            client.close()
            return


def send(member: Membership, said: Said, *, chain: Chain | None = None) -> Said:
    """Send one statement and keep its receipt; within the chain's turn. One that is refused is set aside; one that may
    be in the log all the same waits and is sent again, and so does a revocation, whatever the registry says: nothing
    else takes its number, for which a witness may have given a receipt. `chain` is the member's, where its key did not
    change.

    Raises:
        ConcordError: as the registry refused it.
    """
    chain = chain or member.chain
    if said.receipt is not None:
        return said
    try:
        receipt = _deliver(member, said)
    except REFUSALS as error:
        if isinstance(said.statement, ConsentRevoke | OwnerKeyRevoke):
            raise type(error)(f"{error}. {_KEPT}") from error
        chain.set_aside(said)
        raise
    except (UnavailableError, NotPermittedError) as error:
        if isinstance(said.statement, ConsentRevoke | OwnerKeyRevoke):
            raise type(error)(f"{error}. {_NOT_SENT}") from error
        raise
    return chain.acknowledge(said, receipt=receipt)


def _deliver(member: Membership, said: Said) -> bytes:
    """Bring a statement to the coordinator, with what goes beside it; its verified receipt."""
    note, beside = answer_messages(member, said)
    if not isinstance(said.statement, CampaignResult | CampaignDecline):
        return member.client.record(note)
    return member.client.report(note, beside)


def answer_messages(member: Membership, said: Said) -> tuple[egress.Message, egress.Message | None]:
    """A statement as it leaves, and what goes beside it.

    Raises:
        NotFoundError: what goes beside it is not here.
    """
    ledger, to = member.home.ledger, member.settings.target
    note = egress.statement(ledger, said, to=to)
    if not isinstance(said.statement, CampaignResult) or said.statement.attachment is None:
        return note, None
    data = folder_of(member.home, said.statement.campaign_id).read("attachment") or b""
    if digest_of(data) != said.statement.attachment.digest:
        raise NotFoundError(f"what goes beside the answer to {said.statement.campaign_id} is not here any more")
    return note, egress.attachment(ledger, data, name="campaign.result", to=to)


def renew_if_due(member: Membership) -> bool:
    """Renew the certificate, with a new key, when its moment has come; the reply says which roots to trust."""
    authority = member.home.authority.read_bytes()
    facts = identity_of(TlsIdentity.parse(member.home.tls.read_bytes(), authority=authority).certificate)
    if datetime.now(UTC) < renewal_moment(facts):
        return False
    key = new_key()
    csr = make_csr(key)
    message = egress.certificate_request(member.home.ledger, csr, to=member.settings.target)
    certificate, roots = member.client.renew(message)
    check_roots(roots)
    write_atomic(member.home.authority, roots)  # first: what the new certificate is under is among them
    write_secret(member.home.tls, bytes(TlsIdentity(key, certificate, roots)))
    return True


def _renewed(member: Membership) -> tuple[TlsIdentity, datetime]:
    """What to show from now on, renewed by this process or by another one, and when that is due."""
    renew_if_due(member)
    tls = TlsIdentity.parse(member.home.tls.read_bytes(), authority=member.home.authority.read_bytes())
    return tls, renewal_moment(identity_of(tls.certificate))


def renewal_moment(facts: CertificateFacts) -> datetime:
    """When a certificate is to be renewed: a moment between half and two thirds of its life that its serial draws, so
    that owners who joined together do not all come at once."""
    drawn = int(facts.serial[-8:], 16) / 16**8
    return facts.not_before + (facts.not_after - facts.not_before) * (1 / 2 + drawn / 6)
