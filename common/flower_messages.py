"""What goes to an owner and comes back within one message of Flower: JSON, parsed strictly.

To an owner: what it is asked (a signed note and its receipt each) and what became of answers that it handed over. Back:
how far it is with each, and answers that are signed and passed egress. Both may be repeated.
"""

from base64 import b64decode, b64encode
from typing import Annotated, Final, Literal, Self, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError

from common.config import describe
from common.errors import MalformedError

RECORD: Final = "concord"
"""The record of a message that holds it, under `FIELD`."""
FIELD: Final = "json"


def _decoded(value: object) -> object:
    return b64decode(value, validate=True) if isinstance(value, str) else value


Binary = Annotated[bytes, BeforeValidator(_decoded), PlainSerializer(lambda data: b64encode(data).decode())]
CampaignId = Annotated[str, Field(pattern=r"^[0-9a-f-]{36}$")]


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """The inverse of `bytes(message)`.

        Raises:
            MalformedError: it is not that.
        """
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            raise MalformedError(f"a message of Flower's: {describe(error)[:500]}") from error

    def __bytes__(self) -> bytes:
        return self.model_dump_json().encode()


class Offer(_Message):
    """What an owner is asked: the note of `campaign.define` and its proof."""

    note: Binary
    receipt: Binary


class Outcome(_Message):
    """What became of an answer: its receipt, or why it was refused."""

    campaign_id: CampaignId
    receipt: Binary = b""
    refused: str = ""


class Ask(_Message):
    """To an owner."""

    offers: tuple[Offer, ...] = ()
    outcomes: tuple[Outcome, ...] = ()


class Answer(_Message):
    """A signed note of `campaign.result` or `campaign.decline`, and what goes beside it."""

    campaign_id: CampaignId
    note: Binary
    attachment: Binary = b""


ToldState = Literal["offered", "accepted", "running", "failed"]
TOLD_STATES: Final = get_args(ToldState)


class Told(_Message):
    """From an owner."""

    states: dict[CampaignId, ToldState] = Field(default_factory=dict)
    answers: tuple[Answer, ...] = ()
