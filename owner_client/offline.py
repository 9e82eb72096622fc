"""What is done on the machine where an owner's signing key is kept: make a key, read a statement, sign it.

It needs no connection, no home, and neither grpc nor torch.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from common.errors import ConflictError, MalformedError, NotPermittedError
from common.files import read_required, write_secret
from common.trust.certificate_request import CertificateRequest, is_certificate_request, parse_request
from common.trust.describe import describe as describe_statement
from common.trust.note import SigningKey, Verifier, sign
from common.trust.rules import owner_key_name
from common.trust.speakers import CLOCKS_DIFFER
from common.trust.statements import (
    MAX_STATEMENT_BYTES,
    ConsentRevoke,
    OwnerKeyAdd,
    Statement,
    parse,
    parse_time,
)

_OLD: Final = timedelta(hours=24)


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


def read_unsigned(path: Path) -> Statement | CertificateRequest:
    """The statement or request in an `.unsigned` file.

    Raises:
        MalformedError: it is not exactly one.
    """
    data = read_required(path, hint="carry it here from the home's directory statements")
    if len(data) > MAX_STATEMENT_BYTES:
        raise MalformedError(f"{path} has {len(data)} bytes; a statement has at most {MAX_STATEMENT_BYTES}")
    try:
        return parse_request(data.decode()) if is_certificate_request(data) else parse(data.decode())
    except UnicodeDecodeError as error:
        raise MalformedError(f"{path} is no statement: it is not UTF-8 text") from error


def describe(wanted: Statement | CertificateRequest) -> str:
    """What is to be signed, in a line."""
    if isinstance(wanted, CertificateRequest):
        return f"asks for a new TLS certificate, for a key with request {wanted.csr}"
    return describe_statement(wanted)


def sign_all(wanted: Statement | CertificateRequest, keys: Sequence[SigningKey]) -> bytes:
    """The signed note; `keys` are those of `keys_for`."""
    return bytes(sign(wanted.text, *keys))


def keys_for(wanted: Statement | CertificateRequest, keys: Sequence[Path]) -> list[SigningKey]:
    """The keys in these files, for this statement or request; whose key signs a request is not known here.

    Raises:
        NotFoundError: there is no such file.
        NotPermittedError: the keys are not those that this statement is to be signed with.
    """
    name = owner_key_name(wanted.federation, wanted.party)
    signing = [SigningKey.from_pem(read_required(path, hint="where is your key?"), name=name) for path in keys]
    found = [key.verifier.key_id for key in signing]
    if isinstance(wanted, CertificateRequest):
        expected = found[:1]
    elif isinstance(wanted, OwnerKeyAdd):
        expected = [wanted.key_id, Verifier.parse(wanted.public_key).key_id]
    else:
        expected = [wanted.key_id]
    if found != expected:
        given = ", ".join(found)
        raise NotPermittedError(f"this {wanted.type} is to be signed with {', '.join(expected)}; you gave {given}")
    return signing


def doubts(statement: Statement | CertificateRequest, *, now: datetime) -> list[str]:
    """What whoever is about to sign should look at: dates that are not today's, hours that are over."""
    if isinstance(statement, CertificateRequest):
        return []
    found, written = [], parse_time(statement.issued_at)
    if written > now + CLOCKS_DIFFER:
        found.append(f"it is dated {statement.issued_at}, in the future by this machine's clock")
    if written < now - _OLD:
        found.append(
            f"it was written {(now - written).days} days ago or more, on {statement.issued_at}, and stays so dated"
        )
    if isinstance(statement, ConsentRevoke) and statement.effect == "withdraw_published" and statement.deadline < now:
        found.append(
            f"releases were to be withdrawn by {statement.deadline:%Y-%m-%dT%H:%M:%SZ}, which is over: the coordinator "
            "may refuse it. Run concord owner opt-out --withdraw-within-hours again at home, with hours enough"
        )
    return found
