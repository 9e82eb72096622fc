"""Multiple choice: a model answers with the choice that it finds likeliest after the context.

Each line of a file is `{"context": "...", "choices": ["...", ...], "answer": 0}`. The likelihood of context and choice
together decides: the context is the same for all choices of a question, so it cancels.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError, model_validator

from common.config import describe
from common.data import Document
from common.errors import MalformedError
from common.evaluate import Domain, prepare, token_nats
from common.model.transformer import CausalLM
from common.tokenizer import Tokenizer

_MAX_BYTES: Final = 256 * 2**20


class Question(BaseModel, frozen=True, extra="forbid", strict=True):
    """A context, what may follow it, and which of that is right."""

    context: Annotated[str, Field(min_length=1)]
    choices: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=2, max_length=64)]
    answer: Annotated[int, Field(ge=0)]

    @model_validator(mode="after")
    def _check(self) -> "Question":
        if self.answer >= len(self.choices):
            raise ValueError(f"the answer is choice {self.answer} of {len(self.choices)}")
        return self


@dataclass(frozen=True, slots=True)
class Accuracy:
    """How many questions were answered rightly, of how many."""

    right: int
    questions: int

    @property
    def share(self) -> float:
        """Of all questions."""
        return self.right / self.questions


def read_questions(path: Path) -> list[Question]:
    """The questions in a file.

    Raises:
        MalformedError: it is not there, too large, or a line is no question; the message says which.
    """
    if not path.is_file() or path.stat().st_size > _MAX_BYTES:
        raise MalformedError(f"{path} is not a file of questions, or larger than {_MAX_BYTES} bytes")
    questions = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if line.strip():
            questions.append(_question(line, f"{path}, line {number}"))
    if not questions:
        raise MalformedError(f"{path}: no question in it")
    return questions


def _question(line: str, where: str) -> Question:
    try:
        return Question.model_validate(json.loads(line))
    except ValidationError as error:
        raise MalformedError(f"{where}: {describe(error)}"[:500]) from error
    except ValueError as error:
        raise MalformedError(f"{where}: not JSON ({error})") from error


def answer(
    model: CausalLM, questions: Sequence[Question], tokenizer: Tokenizer, *, sequence_length: int, batch_size: int
) -> Accuracy:
    """Have a model answer questions."""
    texts = [question.context + choice for question in questions for choice in question.choices]
    domain = prepare([Document(str(i), text) for i, text in enumerate(texts)], tokenizer,
                     sequence_length=sequence_length)  # fmt: skip
    nats = _nats_by_document(model, domain, num_documents=len(texts), batch_size=batch_size)
    right, at = 0, 0
    for question in questions:
        of_choices = nats[at : at + len(question.choices)]
        right += int(np.argmin(of_choices)) == question.answer
        at += len(question.choices)
    return Accuracy(right, len(questions))


def _nats_by_document(model: CausalLM, domain: Domain, *, num_documents: int, batch_size: int) -> NDArray[np.float64]:
    nats_WT = token_nats(model, domain, batch_size=batch_size)
    scored_WT = domain.windows.scored_WT
    documents = domain.windows.document_of_window[domain.windows.document_ids_WT[scored_WT]]
    return np.bincount(documents, weights=nats_WT[scored_WT], minlength=num_documents).astype(np.float64)
