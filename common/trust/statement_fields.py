"""What all signed statements are made of: the types of their fields, and what every statement carries.

Each type takes one spelling of a value and refuses every other.
"""

import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, lru_cache
from typing import Annotated, ClassVar, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import core_schema

from common.trust import strict_json
from common.trust.manifest import check_file_name, digest_of

TYPE_PREFIX: Final = "concord/v1 "
COORDINATOR: Final = "coordinator"
"""Party id of the coordinator; no owner may be called so."""

_TIME_FORMAT: Final = "%Y-%m-%dT%H:%M:%SZ"
_REMEMBERED: Final = 4096
_ONE_LINE: Final = r"[^\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]{1,1024}"
"""Nothing that ends a line, moves a cursor or turns the order of letters: people read this."""
_TIME: Final = re.compile(r"[1-9][0-9]{3}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
_RECORD_ID: Final = r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
SPELLING: Final = "spelling"


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
            custom_error_type=SPELLING,
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


class Strict(BaseModel):
    """A value in a statement: nothing but its fields, each spelt as it must be."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


MAX_STATEMENT_BYTES: Final = 16 * 1024
MAX_LIST_BYTES: Final = 60 * 1024
"""Of what the coordinator says of many owners at once. Signed, it fits an entry of the log: at most 65,535 bytes."""


class Statement(Strict):
    """What every statement carries. `prev` is the digest of this party's previous statement, null in its first."""

    type: ClassVar[str]
    max_bytes: ClassVar[int] = MAX_STATEMENT_BYTES
    """The most that one of this kind may have, without its signatures."""

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


class FileDigest(Strict):
    """A file by content."""

    digest: Digest
    size: Count
