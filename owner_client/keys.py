"""The owner's signing keys: a new one in the old one's place. What is done where a key is kept is `offline.py`.

Every step may be run again, after a crash at any point: it finds what is done and does the rest.
"""

from dataclasses import dataclass
from typing import Any

from common.errors import ConflictError, MalformedError
from common.files import sync, write_secret
from common.trust.note import SigningKey, Verifier
from common.trust.rules import owner_key_name
from common.trust.statements import OwnerKeyAdd, OwnerKeyRevoke
from owner_client.chain import Chain
from owner_client.membership import Membership, send
from owner_client.participation import send_unsent


@dataclass(frozen=True, slots=True)
class Rotated:
    """What signs now, and what no longer does."""

    added: str
    revoked: list[str]


def rotate(member: Membership, *, public_key: str | None, reason: str | None) -> Rotated:
    """Add a key, sign with it from now on, and revoke all others.

    The new key is made here, or is `public_key` where both are on another machine. The old key signs until the log has
    the new one; the new one revokes the old.

    Raises:
        ConflictError: `public_key` is given, but the key is here.
        MalformedError: `public_key` is no key's line, or that of another name.
        SignatureNeededError: the keys are elsewhere, and the next statement waits for them.
    """
    if public_key is not None and member.chain.key is not None:
        raise ConflictError("your key is on this machine, so the new one is made here: leave --public-key out")
    if public_key is None and member.chain.key is None:
        raise ConflictError("your key is on another machine: make the new one there (owner new-key) and give its line")
    name = owner_key_name(member.root.federation, member.settings.owner)
    given = _given_key(public_key, name) if public_key is not None else None
    with member.chain.turn():
        send_unsent(member)
        new = _next_key(member, name) if given is None else None
        verifier = given or (new.verifier if new else None)
        assert verifier is not None
        if verifier.key_id not in member.chain.key_ids():
            send(member, member.chain.say(OwnerKeyAdd, also=(new,) if new else (), public_key=str(verifier)))
        chain = member.chain
        if new is not None and member.home.next_signing_key.exists():
            member.home.next_signing_key.replace(member.home.signing_key)
            sync(member.home.signing_key.parent)
        if new is not None:
            chain = Chain(member.home.statements, party=member.settings.owner, key=new, root=member.root)
        return Rotated(verifier.key_id, _revoke_others(member, chain, verifier.key_id, reason))


def _given_key(line: str, name: str) -> Verifier:
    """The key in a line; one of another name is refused here, for no key could sign a statement that adds it."""
    verifier = Verifier.parse(line)
    if verifier.name != name:
        raise MalformedError(
            f"this is a key of {verifier.name}, and yours is called {name}: make one with concord owner new-key "
            f"--name {name}"
        )
    return verifier


def _next_key(member: Membership, name: str) -> SigningKey:
    """The key that an interrupted rotation made or has put in place already, else a new one."""
    path, current = member.home.next_signing_key, member.chain.key
    if not path.exists():
        known = member.chain.key_ids()
        if current is not None and len(known) > 1 and known[-1] == current.verifier.key_id:
            return current
        write_secret(path, SigningKey.generate(name).to_pem())
    return SigningKey.from_pem(path.read_bytes(), name=name)


def _revoke_others(member: Membership, chain: Chain, kept: str, reason: str | None) -> list[str]:
    optional: dict[str, Any] = {} if reason is None else {"reason": reason}
    others = [key_id for key_id in chain.key_ids() if key_id != kept]
    for key_id in others:
        send(member, chain.say(OwnerKeyRevoke, revoked_key_id=key_id, **optional), chain=chain)
    return others
