"""What a simulated owner may be told to do, and what comes of it: plain values, which any engine can carry."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

Action = Literal["join", "take part", "answer", "prepare", "answer late", "leave"]
Value = str | int | float | bool | bytes


@dataclass(frozen=True, slots=True)
class Task:
    """One owner's next step. `drops_out`: it goes dark in the middle, as by a power cut, and is not heard of again."""

    index: int
    """Which owner, from 0."""
    owner: str
    action: Action
    home: str
    text: str
    """Folder of everybody's text: `public`, and a folder an owner."""
    invitation: bytes = b""
    campaign_id: str = ""
    drops_out: bool = False

    def to_record(self) -> dict[str, Value]:
        """As an engine's message holds it."""
        return {name: cast("Value", getattr(self, name)) for name in self.__dataclass_fields__}

    @classmethod
    def from_record(cls, fields: Mapping[str, Value]) -> "Task":
        """The inverse of `to_record`."""
        return cls(**dict(fields))  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a task: how long its owner was busy, or why it is not heard of."""

    task: Task
    seconds: float = 0.0
    sent_bytes: int = 0
    failure: str = ""


Ask = Callable[[Sequence[Task]], list[Outcome]]
"""Has owners do tasks, several at once, and waits for all of them."""
