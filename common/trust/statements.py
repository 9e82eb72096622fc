"""The signed statements: everything that is agreed, withdrawn, contributed or released.

A statement's body is two lines: a type line (`concord/v1 consent.grant`) and RFC 8785 canonical JSON. The body is
the text of a C2SP signed note; the log's entry is that note. `parse` is the inverse of `text` and refuses everything
else: unknown fields, duplicate keys, other spellings of a value, bodies over 16 KiB.

Fields follow ISO/IEC TS 27560 consent records and W3C DPV in substance (purposes, terms, dates, withdrawal).
"""

import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property, lru_cache
from typing import Annotated, ClassVar, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import core_schema

from common.errors import MalformedError
from common.trust import strict_json
from common.trust.manifest import FileEntry, Manifest, check_file_name, digest_of
from common.trust.note import Note, SigningKey, sign

MAX_STATEMENT_BYTES: Final = 16 * 1024
TYPE_PREFIX: Final = "concord/v1 "
COORDINATOR: Final = "coordinator"
"""Party id of the coordinator; no owner may be called so."""

_TIME_FORMAT: Final = "%Y-%m-%dT%H:%M:%SZ"
_REMEMBERED: Final = 4096
_ONE_LINE: Final = r"[^\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]{1,1024}"
"""Nothing that ends a line, moves a cursor or turns the order of letters: people read this."""
_TIME: Final = re.compile(r"[1-9][0-9]{3}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
_RECORD_ID: Final = r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
_SPELLING: Final = "spelling"


def format_time(moment: datetime) -> str:
    """A moment as statements spell it: UTC, whole seconds."""
    return moment.astimezone(UTC).strftime(_TIME_FORMAT)


@lru_cache(_REMEMBERED)  # each date of an entry is asked for several times
def parse_time(text: str) -> datetime:
    """The inverse of `format_time`; `ValueError` for any other spelling."""
    if not _TIME.fullmatch(text):
        raise ValueError(f"{text[:80]!r} is not a time such as 2026-11-23T09:00:00Z")
    return datetime.fromisoformat(text)


def new_record_id(now: datetime) -> str:
    """A UUID of version 7 (RFC 9562 section 5.7) for `now`."""
    milliseconds = int(now.timestamp() * 1000)
    value = (milliseconds << 80) | (0x7 << 76) | (secrets.randbits(12) << 64) | (0b10 << 62) | secrets.randbits(62)
    text = f"{value:032x}"
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def _matches(pattern: str, wanted: str) -> AfterValidator:
    compiled = re.compile(pattern)

    @lru_cache(_REMEMBERED)  # parties, keys, lines and terms come again and again
    def check(text: str) -> str:
        if not compiled.fullmatch(text):
            raise ValueError(f"{text[:80]!r} is not {wanted}")
        return text

    return AfterValidator(check)


@dataclass(frozen=True, slots=True)
class _Spelt:
    """A pattern that pydantic's core checks by itself: digests and ids are new in every entry of a log."""

    pattern: str
    wanted: str

    def __get_pydantic_core_schema__(self, source: object, handler: object) -> core_schema.CoreSchema:
        return core_schema.custom_error_schema(
            core_schema.str_schema(pattern=f"^(?:{self.pattern})$", strict=True),
            custom_error_type=_SPELLING,
            custom_error_message=f"expected {self.wanted}",
        )


def _check_time(text: str) -> str:
    parse_time(text)
    return text


Digest = Annotated[str, _Spelt(r"sha256:[0-9a-f]{64}", "a digest (sha256: and 64 hex digits)")]
Time = Annotated[str, AfterValidator(_check_time)]
PARTY_PATTERN: Final = re.compile(r"[a-z][a-z0-9-]{0,62}")
PartyId = Annotated[str, _matches(PARTY_PATTERN.pattern, "a party id (small letters, digits and '-')")]
KeyId = Annotated[str, _matches(r"[0-9a-f]{8}", "a key id (8 hex digits)")]
RecordId = Annotated[str, _Spelt(_RECORD_ID, "a record id (UUID version 7)")]
Name = Annotated[str, _matches(r"[a-z0-9][a-z0-9._-]{0,63}", "a name (small letters, digits, '.', '_' and '-')")]
Line = Annotated[str, _matches(_ONE_LINE, "one line of text, up to 1024 characters")]
FileName = Annotated[str, AfterValidator(check_file_name)]
Count = Annotated[int, Field(ge=0, le=strict_json.MAX_SAFE_INTEGER)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Statement(_Strict):
    """What every statement carries. `prev` is the digest of this party's previous statement, null in its first."""

    type: ClassVar[str]

    federation: Name
    origin: Line
    party: PartyId
    key_id: KeyId
    record_id: RecordId
    seq: Count
    prev: Digest | None
    issued_at: Time

    @property
    def text(self) -> str:
        """The body that is signed: type line and canonical JSON, each ended by a newline."""
        fields = self.model_dump(mode="json", exclude_unset=True)
        return f"{TYPE_PREFIX}{self.type}\n{strict_json.canonical(fields).decode()}\n"

    @cached_property
    def digest(self) -> str:
        """Digest of the body: how the party's next statement and receipts refer to it."""
        return digest_of(self.text.encode())


class OwnerEnrol(Statement):
    """An owner joins with this signing key, and the key that its daemon cosigns checkpoints with as a witness.

    Signed by the signing key (possession) and by the coordinator (admission).
    """

    type: ClassVar[str] = "owner.enrol"
    public_key: Line
    witness_key: Line | None = None


class OwnerKeyAdd(Statement):
    """An owner signs with another key too from now on. Signed by a key it has and by the new one (possession)."""

    type: ClassVar[str] = "owner.key.add"
    public_key: Line


class OwnerKeyRevoke(Statement):
    """An owner signs with a key no longer; what that key has signed before stays said. Any key of the owner may say it,
    the revoked one too, as long as another is left."""

    type: ClassVar[str] = "owner.key.revoke"
    revoked_key_id: KeyId
    reason: Line | None = None


class CertRevoke(Statement):
    """The TLS certificates that `owner` had until now are good no longer: said by the owner or the coordinator. The
    owner's signing keys stay; it comes back with an invitation and one of them."""

    type: ClassVar[str] = "cert.revoke"
    owner: PartyId
    reason: Line | None = None


class BasePublish(Statement):
    """The coordinator publishes the public checkpoint that all experts of a round are trained against."""

    type: ClassVar[str] = "base.publish"
    base_digest: Digest
    config_digest: Digest
    round: Count


class ConsentExpert(_Strict):
    """Which expert a consent is about. With `manifest_digest` it covers exactly those bytes, else what the owner
    itself contributes under this grant (a contribution is signed by the owner too)."""

    name: Name
    base_digest: Digest
    kind: Literal["full"]
    manifest_digest: Digest | None = None


class ReleaseScope(_Strict):
    """Consent to one release, by name."""

    release: Name


class LineScope(_Strict):
    """Consent to every release of a line, until revoked or lapsed."""

    line: Name


class Terms(_Strict):
    """The terms agreed to, by digest; `uri` says where they can be read."""

    uri: Line
    digest: Digest


class Privacy(_Strict):
    """The differential-privacy budget the expert was trained with."""

    epsilon: Annotated[float, Field(ge=0)]
    delta: Annotated[float, Field(ge=0, le=1)]
    mechanism: Name


class ConsentGrant(Statement):
    """An owner agrees that its expert is used in releases, within a scope, for purposes, under terms, until a date."""

    type: ClassVar[str] = "consent.grant"
    expert: ConsentExpert
    scope: ReleaseScope | LineScope
    purposes: Annotated[list[Name], Field(min_length=1, max_length=16)]
    terms: Terms
    not_before: Time
    not_after: Time
    jurisdiction: Name | None = None
    privacy: Privacy | None = None


class ConsentRevoke(Statement):
    """An owner withdraws a consent: no later release may hold its expert.

    With effect `withdraw_published` the releases that hold it already are withdrawn too, within `deadline_s` seconds of
    this statement's date, or of when the log can have known it if that is later.
    """

    type: ClassVar[str] = "consent.revoke"
    grant_id: RecordId
    reason: Line | None = None
    effect: Literal["future", "withdraw_published"]
    deadline_s: Count

    @property
    def deadline(self) -> datetime:
        """Until when it is to be carried out if it is known at once."""
        return self.deadline_from(parse_time(self.issued_at))

    def deadline_from(self, known: datetime) -> datetime:
        """The same if it is known from then on, or from its own date on where that is later; far off where the seconds
        lead past the end of the calendar."""
        try:
            return max(known, parse_time(self.issued_at)) + timedelta(seconds=self.deadline_s)
        except OverflowError:
            return datetime.max.replace(tzinfo=UTC)


class ContributedFile(_Strict):
    """A contributed file by content."""

    digest: Digest
    size: Count


class ExpertContribute(Statement):
    """An owner hands over an expert under a consent: the digests and sizes of its files and how it was trained."""

    type: ClassVar[str] = "expert.contribute"
    grant_id: RecordId
    files: Annotated[dict[FileName, ContributedFile], Field(min_length=1, max_length=64)]
    tokens_seen: Count
    training_config_digest: Digest

    @cached_property
    def manifest(self) -> Manifest:
        """The files as a manifest."""
        return Manifest({name: FileEntry(file.digest, file.size) for name, file in self.files.items()})

    @cached_property
    def manifest_digest(self) -> str:
        """What releases refer to them by."""
        return self.manifest.digest


class ReleasedExpert(_Strict):
    """One owner's expert in a release: the digest of its contribution's manifest, where the log holds the consent and
    the contribution, and the slot it took."""

    digest: Digest
    grant_index: Count
    contribute_index: Count
    slot: Annotated[int, Field(ge=1, le=9999)]


class ReleasePublish(Statement):
    """The coordinator publishes a release made from the log's first `log_size` entries.

    Nobody is to use it from `not_after` on, when the first of its experts' consents lapses; null where it has none.
    """

    type: ClassVar[str] = "release.publish"
    release: Name
    line: Name
    manifest_digest: Digest
    base_digest: Digest
    log_size: Count
    experts: Annotated[list[ReleasedExpert], Field(max_length=1024)]
    num_experts_per_tok: Annotated[int, Field(ge=1, le=1024)]
    not_after: Time | None


class ReleaseWithdraw(Statement):
    """The coordinator takes a release back because of the revocation in entry `cause_index`; its files are gone."""

    type: ClassVar[str] = "release.withdraw"
    release: Name
    cause_index: Count


KINDS: Final[dict[str, type[Statement]]] = {
    kind.type: kind
    for kind in (
        OwnerEnrol,
        OwnerKeyAdd,
        OwnerKeyRevoke,
        CertRevoke,
        BasePublish,
        ConsentGrant,
        ConsentRevoke,
        ExpertContribute,
        ReleasePublish,
        ReleaseWithdraw,
    )
}


def parse(text: str) -> Statement:
    """The statement whose body is `text`.

    Raises:
        MalformedError: unknown type or version, a field unknown, missing or out of range, not canonical, too long.
    """
    data = text.encode()
    if len(data) > MAX_STATEMENT_BYTES:
        raise MalformedError(f"statement of {len(data)} bytes; at most {MAX_STATEMENT_BYTES} are allowed")
    type_line = text.partition("\n")[0]
    kind = KINDS.get(type_line.removeprefix(TYPE_PREFIX)) if type_line.startswith(TYPE_PREFIX) else None
    if kind is None:
        raise MalformedError(f"unknown statement type {type_line[:80]!r}; this version knows {', '.join(KINDS)}")
    line, end = data[len(type_line) + 1 : -1], data[-1:]
    fields, is_canonical = strict_json.load_spelled(line, what=kind.type)
    try:
        statement = kind.model_validate(fields)
    except ValidationError as error:
        raise MalformedError(f"{kind.type}: {_first_problem(error)}") from error
    # No field is changed by being read, so the statement's own text is the canonical form of what was read.
    if end != b"\n" or not is_canonical:
        raise MalformedError(f"{kind.type} is not canonical: one line of RFC 8785 JSON and a newline are wanted")
    statement.__dict__["digest"] = digest_of(data)
    return statement


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    found = f"{str(problem['input'])[:80]!r} where " if problem["type"] == _SPELLING else ""
    return f"{'.'.join(map(str, problem['loc']))}: {found}{problem['msg']}"


def parse_note(data: bytes) -> tuple[Note, Statement]:
    """The signed note in `data` and the statement that is its text; signatures are not checked here."""
    note = Note.parse(data, max_bytes=2 * MAX_STATEMENT_BYTES)
    return note, parse(note.text)


def sign_statement(statement: Statement, *keys: SigningKey) -> bytes:
    """The signed note of a statement, as it is logged."""
    return bytes(sign(statement.text, *keys))
