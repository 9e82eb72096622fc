"""Which public documents look like the owner's: what router training may use in place of the owner's own.

`python -m owner_client.proxies JOB.json` trains a classifier of own against public documents and ranks the public ones
(arXiv 2507.07024, section 3.3.3). What it writes are ids and scores of *public* documents, and how well the two kinds
could be told apart; nothing of the owner's text is in it.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from pydantic import BaseModel, Field

from common import data, job
from common.data import Document
from common.errors import MalformedError
from common.files import write_atomic
from common.text_classifier import TextClassifier
from common.text_encoder import TextEncoder

_OWN: Final = "own"
_PUBLIC: Final = "public"


class ProxyJob(BaseModel, frozen=True, extra="forbid"):
    """The job's JSON file."""

    data: Path
    """The owner's corpus; the classifier learns from its train split and is tried on its validation split."""
    public: Path
    """The public corpus; proxies are chosen from its train split."""
    count: int = Field(ge=1)
    """How many public documents to choose."""
    output: Path
    encoder: Path | None = None
    """Directory of a small encoder to fine-tune for the choice; by default a light linear classifier chooses."""
    seed: int = Field(default=0, ge=0)


@dataclass(frozen=True, slots=True)
class Proxies:
    """Chosen public documents, likeliest first, with the probability that each is the owner's kind of text.

    `accuracy` is over held-out documents of both kinds, each kind counting half.
    """

    ids: list[str]
    scores: list[float]
    accuracy: float


def select(config: ProxyJob) -> Proxies:
    """Choose the public documents that look most like the owner's.

    Raises:
        MalformedError: the public text has fewer documents than asked for, or a text cannot be read.
    """
    own, public = data.read_corpus(config.data), data.read_corpus(config.public)
    if len(public.train) < config.count:
        raise MalformedError(
            f"{config.public}: {len(public.train)} public documents, and {config.count} proxies are asked for; "
            "ask for fewer or add public documents"
        )
    # A document that is chosen is scored by a classifier that learned from it as public: ranks stay comparable, for
    # that holds for all of them.
    classifier = _classifier(config, {_OWN: _texts(own.train), _PUBLIC: _texts(public.train)})
    column = classifier.kinds.index(_OWN)
    scores = classifier.probabilities(_texts(public.train))[:, column]
    order = sorted(range(len(scores)), key=lambda index: (-scores[index], public.train[index].digest))[: config.count]
    held = [classifier.probabilities(_texts(part))[:, column] for part in (own.validation, public.validation)]
    accuracy = (float((held[0] > 0.5).mean()) + float((held[1] <= 0.5).mean())) / 2
    return Proxies([public.train[i].digest for i in order], [float(scores[i]) for i in order], accuracy)


def _classifier(config: ProxyJob, texts: dict[str, list[str]]) -> TextClassifier | TextEncoder:
    if config.encoder is None:
        return TextClassifier(texts, seed=config.seed)
    return TextEncoder(config.encoder, texts, seed=config.seed)


def _texts(documents: Sequence[Document]) -> list[str]:
    return [document.text for document in documents]


def chosen_documents(public: list[Document], proxies: Proxies) -> list[Document]:
    """The documents that `proxies` name.

    Raises:
        MalformedError: one is not there.
    """
    known = {document.digest: document for document in public}
    if missing := [digest for digest in proxies.ids if digest not in known]:
        raise MalformedError(f"{len(missing)} proxies are no public documents here, the first is {missing[0]}")
    return [known[digest] for digest in proxies.ids]


def run(config: ProxyJob) -> dict[str, object]:
    """Choose and write; returns what the job's last event says."""
    proxies = select(config)
    config.output.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(config.output, json.dumps(asdict(proxies), indent=2).encode() + b"\n")
    return {"task": "proxies", "output": str(config.output), "accuracy": proxies.accuracy}


if __name__ == "__main__":
    sys.exit(job.run(sys.argv[1:], ProxyJob, run))
