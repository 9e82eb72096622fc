"""What a simulated owner may be told to do, and what comes of it: as text, which any engine can carry."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

Action = Literal["join", "take part", "answer", "prepare", "answer late", "leave"]


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
    invitation: str = ""
    campaign_id: str = ""
    drops_out: bool = False

    def to_json(self) -> str:
        """As an engine's message holds it."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Task":
        """The inverse of `to_json`."""
        return cls(**json.loads(text))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a task: how long its owner was busy, or why it is not heard of."""

    task: Task
    seconds: float = 0.0
    sent_bytes: int = 0
    failure: str = ""


Ask = Callable[[Sequence[Task]], list[Outcome]]
"""Has owners do tasks, several at once, and waits for all of them."""
