"""The owner's own statements, in sequence: each is on disk before it is sent and stays until its receipt is beside it.

`statements/00000.note` and `00000.receipt`. A statement without a receipt is sent again, byte for byte, so that a
crash or a lost reply repeats it and never makes a second one. One the registry refuses is set aside as `.refused` and
its number is used again; not so a revocation, which stays and is sent again (`membership.send`).

The signing key may be on another machine: then the next statement is written as `00000.unsigned`, is signed there, and
what comes back is put beside it as `00000.note`.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from common.config import describe
from common.errors import ConflictError, MalformedError, SignatureNeededError
from common.files import exclusive, make_private_directory, taking_turns, write_atomic
from common.trust.note import SigningKey, Verifier
from common.trust.root import TrustedRoot
from common.trust.statements import (
    OwnerEnrol,
    OwnerKeyAdd,
    OwnerKeyRevoke,
    Statement,
    format_time,
    new_record_id,
    parse_note,
    sign_statement,
)

_Kind = TypeVar("_Kind", bound=Statement)


@dataclass(frozen=True, slots=True)
class Said:
    """A statement of this owner: its signed note and, once the log holds it, its receipt."""

    statement: Statement
    note: bytes
    receipt: bytes | None


class Chain:
    """One owner's statements."""

    def __init__(self, directory: Path, *, party: str, key: SigningKey | None, root: TrustedRoot) -> None:
        self._directory = directory
        self._party = party
        self._key = key
        self._root = root
        make_private_directory(directory)

    @property
    def party(self) -> str:
        """Whose chain it is."""
        return self._party

    @property
    def key(self) -> SigningKey | None:
        """The key that signs; None where it is on another machine."""
        return self._key

    def key_ids(self) -> list[str]:
        """The keys that sign for this owner by what is in the log, the latest last."""
        ids: list[str] = []
        for said in self.statements():
            if said.receipt is None:
                break
            match said.statement:
                case OwnerEnrol() | OwnerKeyAdd():
                    ids.append(Verifier.parse(said.statement.public_key).key_id)
                case OwnerKeyRevoke():
                    ids.remove(said.statement.revoked_key_id)
        return ids

    def statements(self) -> list[Said]:
        """Everything said so far, in order."""
        return [self._read(path) for path in sorted(self._directory.glob("*.note"))]

    def pending(self) -> list[Said]:
        """What has no receipt yet."""
        return [said for said in self.statements() if said.receipt is None]

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Hold the chain: nobody else, in this process or another, says or sends anything meanwhile."""
        with taking_turns(self._directory / ".lock"):
            yield

    @contextmanager
    def turn_if_free(self) -> Iterator[bool]:
        """Like `turn`, without waiting: False where somebody else holds the chain."""
        with ExitStack() as held:
            try:
                held.enter_context(exclusive(self._directory / ".lock", what="the statements"))
                is_free = True
            except ConflictError:
                is_free = False
            yield is_free

    def say(self, kind: type[_Kind], *, also: tuple[SigningKey, ...] = (), **fields: object) -> Said:
        """Sign the next statement, with the keys in `also` too, and put it on disk; within `turn`.

        Raises:
            ConflictError: an earlier statement still waits for its receipt.
            MalformedError: a field is not what such a statement may hold.
            SignatureNeededError: the key is not here; the statement is on disk to be signed where it is.
        """
        earlier = self.statements()
        if earlier and earlier[-1].receipt is None:
            raise ConflictError(f"statement {earlier[-1].statement.seq} is not in the log yet; send it first")
        now = datetime.now(UTC)
        try:
            statement = kind(
                federation=self._root.federation,
                origin=self._root.origin,
                party=self._party,
                key_id=self._key.verifier.key_id if self._key is not None else self.key_ids()[-1],
                record_id=new_record_id(now),
                seq=len(earlier),
                prev=earlier[-1].statement.digest if earlier else None,
                issued_at=format_time(now),
                **fields,
            )
        except ValidationError as error:
            raise MalformedError(f"{kind.type}: {describe(error)}") from error
        unsigned = self._path(statement, "unsigned")
        if self._key is None:
            write_atomic(unsigned, statement.text.encode())
            raise SignatureNeededError(
                f"{kind.type} waits for your signature, for the key is not here. Carry {unsigned} to where it is, sign "
                f"it there (concord owner sign {unsigned.name} --key KEY), put the signed file beside it as "
                f"{unsigned.with_suffix('.note').name}, and run this again"
            )
        note = sign_statement(statement, self._key, *also)
        write_atomic(self._path(statement, "note"), note)
        unsigned.unlink(missing_ok=True)
        return Said(statement, note, None)

    def acknowledge(self, said: Said, *, receipt: bytes) -> Said:
        """Keep the (verified) receipt of a statement."""
        write_atomic(self._path(said.statement, "receipt"), receipt)
        self._path(said.statement, "unsigned").unlink(missing_ok=True)
        return Said(said.statement, said.note, receipt)

    def set_aside(self, said: Said) -> None:
        """Take back the latest statement, which the registry refused."""
        refused = self._directory / f"{said.statement.record_id}.refused"
        self._path(said.statement, "note").rename(refused)

    def _path(self, statement: Statement, suffix: str) -> Path:
        return self._directory / f"{statement.seq:05d}.{suffix}"

    def _read(self, path: Path) -> Said:
        note = path.read_bytes()
        receipt = path.with_suffix(".receipt")
        return Said(parse_note(note)[1], note, receipt.read_bytes() if receipt.exists() else None)
