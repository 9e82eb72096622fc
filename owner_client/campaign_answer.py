"""From what a job found to what may be said: figures over too few documents are left out, counts get noise where the
owner's settings ask for it, and the answer is brought into the one form that leaves.

A job writes `{"figures": [...], "held_out": digest or null, "attachment": object or null}`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from common.config import describe
from common.errors import MalformedError, NotFoundError
from common.trust import strict_json
from common.trust.campaign_statements import MAX_ATTACHMENT_BYTES, MEASURES, CampaignDefine, Figure
from common.trust.manifest import digest_of
from owner_client.config import CampaignSettings
from owner_client.count_noise import noisy_count

_FIGURES = TypeAdapter(list[Figure])


@dataclass(frozen=True, slots=True)
class Answer:
    """What an owner says: the fields of its statement as canonical JSON, and what goes beside it."""

    content: bytes
    attachment: bytes

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of the statement."""
        return strict_json.load_object(self.content, what="the answer")


def make_answer(found: Mapping[str, Any], asked: CampaignDefine, settings: CampaignSettings) -> Answer:
    """What may be said of what a job found.

    Raises:
        NotFoundError: every figure is over too few documents.
        MalformedError: the job's findings are none.
    """
    try:
        figures = _FIGURES.validate_python(found["figures"])
    except ValidationError as error:
        raise MalformedError(f"what the job found: {describe(error)}") from error
    least = max(asked.min_documents, settings.min_documents)
    enough = [figure for figure in figures if figure.documents >= least]
    if MEASURES[asked.kind] and not enough:
        raise NotFoundError(f"no figure is over {least} documents or more, so nothing is said; add held-out text")
    attachment = _attachment(found.get("attachment"), {figure.name for figure in enough})
    fields: dict[str, Any] = {
        "campaign_id": asked.record_id,
        "subject": asked.subject,
        "figures": [_said(figure, settings.count_epsilon, least).model_dump(exclude_unset=True) for figure in enough],
    }
    if found.get("held_out"):
        fields["held_out"] = found["held_out"]
    if attachment:
        fields["attachment"] = {"digest": digest_of(attachment), "size": len(attachment)}
    return Answer(strict_json.canonical(fields), attachment)


def _said(figure: Figure, epsilon: float | None, least: int) -> Figure:
    """A figure as it leaves. Bytes of text are no count that such noise is for: with noise they are not said."""
    if epsilon is None:
        return figure
    documents = noisy_count(figure.documents, epsilon=epsilon, least=least)
    return Figure(name=figure.name, measure=figure.measure, value=figure.value, documents=documents)


def _attachment(found: Mapping[str, Any] | None, named: set[str]) -> bytes:
    """What goes beside the answer; router shares of the texts alone whose figures are said."""
    if found is None:
        return b""
    if "shares_per_layer" in found:
        found = {"shares_per_layer": {name: rows for name, rows in found["shares_per_layer"].items() if name in named}}
    data = strict_json.canonical(dict(found))
    if len(data) > MAX_ATTACHMENT_BYTES:
        raise MalformedError(f"{len(data)} bytes would go beside the answer; at most {MAX_ATTACHMENT_BYTES} may")
    return data
