"""What may come beside an answer to a campaign, checked to its last field before it is kept."""

from typing import Annotated, Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from common.config import describe
from common.errors import MalformedError, TooLargeError, VerificationError
from common.trust import strict_json
from common.trust.campaign_statements import (
    MAX_ATTACHMENT_BYTES,
    CampaignDefine,
    CampaignResult,
    SelectProxy,
    Share,
)
from common.trust.manifest import digest_of
from common.trust.statement_fields import Name

_MAX_LAYERS: Final = 1024
_Kind = TypeVar("_Kind", bound=BaseModel)
_Id = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Layers = Annotated[list[Annotated[list[Share], Field(min_length=1, max_length=1024)]], Field(max_length=_MAX_LAYERS)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ProxyList(_Strict):
    """Public documents by the digest of their text, the likeliest first, and how likely each is the owner's kind."""

    ids: Annotated[list[_Id], Field(min_length=1, max_length=10_000)]
    scores: list[Share]

    @model_validator(mode="after")
    def _check(self) -> "ProxyList":
        if len(self.ids) != len(self.scores) or len(set(self.ids)) != len(self.ids):
            raise ValueError("each document is named once and has one score")
        if self.scores != sorted(self.scores, reverse=True):
            raise ValueError("scores fall from the first document to the last")
        return self


class RouterShares(_Strict):
    """By text: each expert's share of every layer's choices."""

    shares_per_layer: Annotated[dict[Name, _Layers], Field(max_length=64)]


def check_attachment(data: bytes, result: CampaignResult, asked: CampaignDefine) -> None:
    """Raise unless `data` is what belongs beside an answer, byte for byte.

    Raises:
        TooLargeError: it is larger than anything that may come.
        VerificationError: it is another file than the answer names.
        MalformedError: it is not of the form that is asked for.
    """
    if len(data) > MAX_ATTACHMENT_BYTES:
        raise TooLargeError(f"{len(data)} bytes came beside an answer; at most {MAX_ATTACHMENT_BYTES} are allowed")
    named = result.attachment
    if named is None:
        if data:
            raise VerificationError(f"{len(data)} bytes came beside an answer that names no file; send it without")
        return
    if (digest_of(data), len(data)) != (named.digest, named.size):
        raise VerificationError(
            f"{digest_of(data)} of {len(data)} bytes came beside an answer that names {named.digest} of {named.size}"
        )
    if isinstance(asked.parameters, SelectProxy):
        chosen = _parse(data, ProxyList, what="the list of documents")
        if len(chosen.ids) > asked.parameters.count:
            raise MalformedError(f"{len(chosen.ids)} documents where {asked.parameters.count} were asked for")
    else:
        _parse(data, RouterShares, what="the list of router shares")


def parse_proxies(data: bytes) -> ProxyList:
    """The documents that an owner chose; `MalformedError` for anything else."""
    return _parse(data, ProxyList, what="the list of documents")


def parse_shares(data: bytes) -> RouterShares:
    """Router shares; `MalformedError` for anything else."""
    return _parse(data, RouterShares, what="the list of router shares")


def _parse(data: bytes, kind: type[_Kind], *, what: str) -> _Kind:
    fields, is_canonical = strict_json.load_spelled(data, what=what)
    if not is_canonical:
        raise MalformedError(f"{what} is not canonical JSON")
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise MalformedError(f"{what}: {describe(error)}"[:500]) from error
