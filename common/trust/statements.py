"""The signed statements: everything that is agreed, withdrawn, contributed, released, asked or answered.

A statement's body is two lines: a type line (`concord/v1 consent.grant`) and RFC 8785 canonical JSON. The body is
the text of a C2SP signed note; the log's entry is that note. `parse` is the inverse of `text` and refuses everything
else: unknown fields, duplicate keys, other spellings of a value, bodies over 16 KiB (60 KiB where the coordinator lists
owners).

Fields follow ISO/IEC TS 27560 consent records and W3C DPV in substance (purposes, terms, dates, withdrawal).
"""

from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field, ValidationError

from common.errors import MalformedError
from common.trust import strict_json
from common.trust.campaign_statements import CampaignClose, CampaignDecline, CampaignDefine, CampaignResult
from common.trust.manifest import FileEntry, Manifest, digest_of
from common.trust.note import Note, SigningKey, sign
from common.trust.statement_fields import COORDINATOR as COORDINATOR
from common.trust.statement_fields import MAX_LIST_BYTES as MAX_LIST_BYTES
from common.trust.statement_fields import MAX_STATEMENT_BYTES as MAX_STATEMENT_BYTES
from common.trust.statement_fields import PARTY_PATTERN as PARTY_PATTERN
from common.trust.statement_fields import (
    SPELLING,
    Count,
    Digest,
    FileName,
    KeyId,
    Line,
    Name,
    PartyId,
    RecordId,
    Strict,
    Time,
)
from common.trust.statement_fields import TYPE_PREFIX as TYPE_PREFIX
from common.trust.statement_fields import Statement as Statement
from common.trust.statement_fields import format_time as format_time
from common.trust.statement_fields import new_record_id as new_record_id
from common.trust.statement_fields import parse_time as parse_time
from common.trust.tiles import MAX_ENTRY_BYTES


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


class ConsentExpert(Strict):
    """Which expert a consent is about. With `manifest_digest` it covers exactly those bytes, else what the owner
    itself contributes under this grant (a contribution is signed by the owner too)."""

    name: Name
    base_digest: Digest
    kind: Literal["full"]
    manifest_digest: Digest | None = None


class ReleaseScope(Strict):
    """Consent to one release, by name."""

    release: Name


class LineScope(Strict):
    """Consent to every release of a line, until revoked or lapsed."""

    line: Name


class Terms(Strict):
    """The terms agreed to, by digest; `uri` says where they can be read."""

    uri: Line
    digest: Digest


class Privacy(Strict):
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


class ContributedFile(Strict):
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


class ReleasedExpert(Strict):
    """One owner's expert in a release: the digest of its contribution's manifest, where the log holds the consent and
    the contribution, and the slot it took."""

    digest: Digest
    grant_index: Count
    contribute_index: Count
    slot: Annotated[int, Field(ge=1, le=9999)]


class ProxySet(Strict):
    """What one owner chose of a campaign's pool, which its row was trained on: the slot of its expert, where the log
    holds its answer, and the digest of the list that came beside it."""

    slot: Annotated[int, Field(ge=1, le=9999)]
    answer_index: Count
    digest: Digest


class RouterTraining(Strict):
    """How the rows of a release were trained: from which release, by its name and manifest; on which owners' choices
    of which campaign; and how, by the digest of a file among the release's. Rows of slots that are not named stay."""

    version: Literal[1]
    parent: Name
    parent_digest: Digest
    campaign_id: RecordId
    proxies: Annotated[list[ProxySet], Field(min_length=1, max_length=1024)]
    settings_digest: Digest


class ReleasePublish(Statement):
    """The coordinator publishes a release made from the log's first `log_size` entries.

    Nobody is to use it from `not_after` on, when the first of its experts' consents lapses; null where it has none.
    One with `router_training` is its parent, with other router rows.
    """

    type: ClassVar[str] = "release.publish"
    max_bytes: ClassVar[int] = MAX_LIST_BYTES
    release: Name
    line: Name
    manifest_digest: Digest
    base_digest: Digest
    log_size: Count
    experts: Annotated[list[ReleasedExpert], Field(max_length=1024)]
    num_experts_per_tok: Annotated[int, Field(ge=1, le=1024)]
    not_after: Time | None
    router_training: RouterTraining | None = None

    @property
    def trained_slots(self) -> frozenset[int]:
        """Slots whose router rows are not what their owners contributed."""
        training = self.router_training
        return frozenset() if training is None else frozenset(each.slot for each in training.proxies)


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
        CampaignDefine,
        CampaignDecline,
        CampaignResult,
        CampaignClose,
    )
}


def parse(text: str) -> Statement:
    """The statement whose body is `text`.

    Raises:
        MalformedError: unknown type or version, a field unknown, missing or out of range, not canonical, too long.
    """
    data = text.encode()
    type_line = text.partition("\n")[0]
    kind = KINDS.get(type_line.removeprefix(TYPE_PREFIX)) if type_line.startswith(TYPE_PREFIX) else None
    if len(data) > (most := MAX_STATEMENT_BYTES if kind is None else kind.max_bytes):
        raise MalformedError(f"statement of {len(data)} bytes; at most {most} are allowed")
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
    found = f"{str(problem['input'])[:80]!r} where " if problem["type"] == SPELLING else ""
    return f"{'.'.join(map(str, problem['loc']))}: {found}{problem['msg']}"


def parse_note(data: bytes) -> tuple[Note, Statement]:
    """The signed note in `data` and the statement that is its text; signatures are not checked here."""
    note = Note.parse(data, max_bytes=MAX_ENTRY_BYTES)
    statement = parse(note.text)
    if len(data) > 2 * statement.max_bytes:
        raise MalformedError(
            f"{statement.type} of {len(data)} bytes with its signatures; at most {2 * statement.max_bytes} are allowed"
        )
    return note, statement


def sign_statement(statement: Statement, *keys: SigningKey) -> bytes:
    """The signed note of a statement, as it is logged."""
    return bytes(sign(statement.text, *keys))
