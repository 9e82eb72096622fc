"""The owner's signing keys: a new one in the old one's place, and signing where the key is.

Every step may be run again, after a crash at any point: it finds what is done and does the rest.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import ConflictError, MalformedError, NotPermittedError
from common.files import read_required, sync_directory, write_atomic, write_secret
from common.trust.note import SigningKey, Verifier
from common.trust.rules import owner_key_name
from common.trust.statements import MAX_STATEMENT_BYTES, OwnerKeyAdd, OwnerKeyRevoke, Statement, parse, sign_statement
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
        MalformedError: `public_key` is no key's line.
        SignatureNeededError: the keys are elsewhere, and the next statement waits for them.
    """
    if public_key is not None and member.chain.key is not None:
        raise ConflictError("your key is on this machine, so the new one is made here: leave --public-key out")
    if public_key is None and member.chain.key is None:
        raise ConflictError("your key is on another machine: make the new one there (owner new-key) and give its line")
    with member.chain.turn():
        send_unsent(member)
        name = owner_key_name(member.root.federation, member.settings.owner)
        new = _next_key(member, name) if public_key is None else None
        verifier = Verifier.parse(public_key) if public_key is not None else (new.verifier if new else None)
        assert verifier is not None
        if verifier.key_id not in member.chain.key_ids():
            send(member, member.chain.say(OwnerKeyAdd, also=(new,) if new else (), public_key=str(verifier)))
        chain = member.chain
        if new is not None and member.home.next_signing_key.exists():
            member.home.next_signing_key.replace(member.home.signing_key)
            sync_directory(member.home.signing_key.parent)
        if new is not None:
            chain = Chain(member.home.statements, party=member.settings.owner, key=new, root=member.root)
        return Rotated(verifier.key_id, _revoke_others(member, chain, verifier.key_id, reason))


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


def make(path: Path, *, name: str) -> str:
    """Make a signing key; its public line.

    Raises:
        ConflictError: there is a file of that name.
        MalformedError: the name cannot be a key's.
    """
    if path.exists():
        raise ConflictError(f"{path} is there already; a key is never overwritten")
    try:
        key = SigningKey.generate(name)
    except ValueError as error:
        raise MalformedError(str(error)) from error
    write_secret(path, key.to_pem())
    return str(key.verifier)


def read_unsigned(path: Path) -> Statement:
    """The statement in an `.unsigned` file.

    Raises:
        MalformedError: it is not exactly one.
    """
    data = read_required(path, hint="carry it here from the home's directory statements")
    if len(data) > MAX_STATEMENT_BYTES:
        raise MalformedError(f"{path} has {len(data)} bytes; a statement has at most {MAX_STATEMENT_BYTES}")
    try:
        return parse(data.decode())
    except UnicodeDecodeError as error:
        raise MalformedError(f"{path} is no statement: it is not UTF-8 text") from error


def sign_elsewhere(statement: Statement, keys: Sequence[Path], *, output: Path) -> None:
    """Sign a statement and write the note.

    Raises:
        NotPermittedError: the keys are not those that this statement is to be signed with.
    """
    name = owner_key_name(statement.federation, statement.party)
    signing = [SigningKey.from_pem(read_required(path, hint="where is your key?"), name=name) for path in keys]
    wanted = [statement.key_id]
    if isinstance(statement, OwnerKeyAdd):
        wanted.append(Verifier.parse(statement.public_key).key_id)
    found = [key.verifier.key_id for key in signing]
    if found != wanted:
        raise NotPermittedError(f"this {statement.type} is to be signed with {', '.join(wanted)}; you gave {found}")
    write_atomic(output, sign_statement(statement, *signing))
