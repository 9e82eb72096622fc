"""The signed statements of campaigns: what the coordinator asks of owners, what each answers, and how it ended.

An answer holds figures, each over so many documents, and never text. A long list (ids of public documents) goes beside
the statement, which names it by digest and size.
"""

from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field

from common.trust.statement_fields import (
    MAX_LIST_BYTES,
    Count,
    Digest,
    FileDigest,
    Line,
    Name,
    PartyId,
    RecordId,
    Statement,
    Strict,
    Time,
)

MAX_ATTACHMENT_BYTES: Final = 1024 * 1024
"""What may go beside an answer."""
MAX_FIGURES: Final = 64
_MAX_OWNERS: Final = 1024

CampaignKind = Literal["evaluate", "select-proxy", "train", "extraction"]
Measure = Literal["bits_per_byte", "accuracy", "told_apart", "greedy_rate", "sampled_rate"]
Positive = Annotated[int, Field(ge=1, le=2**53 - 1)]
Share = Annotated[float, Field(ge=0, le=1)]


class CampaignModel(Strict):
    """A model by the manifest of its files. `stands` says what the log has of it: a release or a base under this name,
    or nothing, for a candidate."""

    manifest: FileDigest
    stands: Literal["release", "base", "candidate"]
    name: Name


class Evaluate(Strict):
    """How good is this model on each owner's held-out text; on so much of each text at most."""

    kind: Literal["evaluate"]
    model: CampaignModel
    max_bytes: Positive | None = None


class SelectProxy(Strict):
    """Which documents of this pool of public text look like an owner's, as far as its text is told from the pool's."""

    kind: Literal["select-proxy"]
    pool: FileDigest
    count: Annotated[int, Field(ge=1, le=10_000)]
    min_accuracy: Share


class Train(Strict):
    """Train an expert over this base now, and submit it, as each owner's settings say."""

    kind: Literal["train"]
    base_digest: Digest


class Extraction(Strict):
    """How often this model goes on with an owner's text word for word after so many tokens of it."""

    kind: Literal["extraction"]
    model: CampaignModel
    prefix_tokens: Annotated[int, Field(ge=4, le=512)]
    continuation_tokens: Annotated[int, Field(ge=4, le=512)]
    documents: Annotated[int, Field(ge=1, le=100_000)]


Parameters = Annotated[Evaluate | SelectProxy | Train | Extraction, Field(discriminator="kind")]

MEASURES: Final[dict[str, frozenset[str]]] = {
    "evaluate": frozenset({"bits_per_byte", "accuracy"}),
    "select-proxy": frozenset({"told_apart"}),
    "train": frozenset(),
    "extraction": frozenset({"greedy_rate", "sampled_rate"}),
}
"""What figures of an answer may measure, by kind of campaign."""
WITH_ATTACHMENT: Final = frozenset({"evaluate", "select-proxy"})
"""Kinds whose answers may have a file beside them."""


class CampaignDefine(Statement):
    """The coordinator asks these owners for something, between two dates. `record_id` is the campaign's id. It is over
    when `quorum` of them have reported, when every one of them has answered, or at the later date."""

    type: ClassVar[str] = "campaign.define"
    max_bytes: ClassVar[int] = MAX_LIST_BYTES
    parameters: Parameters
    owners: Annotated[list[PartyId], Field(min_length=1, max_length=_MAX_OWNERS)]
    quorum: Annotated[int, Field(ge=1, le=_MAX_OWNERS)]
    min_documents: Positive
    opens_at: Time
    closes_at: Time

    @property
    def kind(self) -> CampaignKind:
        """What is asked."""
        return self.parameters.kind

    @property
    def subject(self) -> str:
        """Digest of what the campaign is about: a model, a pool of documents, a base."""
        match self.parameters:
            case Evaluate(model=model) | Extraction(model=model):
                return model.manifest.digest
            case SelectProxy(pool=pool):
                return pool.digest
            case Train(base_digest=digest):
                return digest


class CampaignDecline(Statement):
    """An owner gives no answer."""

    type: ClassVar[str] = "campaign.decline"
    campaign_id: RecordId
    reason: Line | None = None


class Figure(Strict):
    """One number over so many documents, and their bytes where the owner says how many."""

    name: Name
    measure: Measure
    value: Annotated[float, Field(ge=0, le=1e6)]
    documents: Count
    size_bytes: Count | None = None


class CampaignResult(Statement):
    """An owner's answer: about what, what it found, and a commitment to the text that it was found on."""

    type: ClassVar[str] = "campaign.result"
    campaign_id: RecordId
    subject: Digest
    figures: Annotated[list[Figure], Field(max_length=MAX_FIGURES)]
    held_out: Digest | None = None
    """Of the owner's text with a secret of its own: the same text gives the same one, and nobody can try texts out."""
    attachment: FileDigest | None = None


class CampaignClose(Statement):
    """The campaign is over: why, who reported, who declined and who said nothing."""

    type: ClassVar[str] = "campaign.close"
    max_bytes: ClassVar[int] = MAX_LIST_BYTES
    campaign_id: RecordId
    by: Literal["quorum", "everybody", "date", "admin"]
    reported: Annotated[list[PartyId], Field(max_length=_MAX_OWNERS)]
    declined: Annotated[list[PartyId], Field(max_length=_MAX_OWNERS)]
    absent: Annotated[list[PartyId], Field(max_length=_MAX_OWNERS)]
