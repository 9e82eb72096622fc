"""Which public documents look like the owner's: what router training may use in place of the owner's own.

`python -m owner_client.proxies JOB.json` trains a classifier of own against public documents and ranks the public ones
(arXiv 2507.07024, section 3.3.3), or has the owner's expert rank them (`expert_choice`). What it writes are ids and
scores of *public* documents, and how well the two kinds could be told apart; nothing of the owner's text is in it.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, model_validator

from common import data, job
from common.data import Corpus, Document
from common.errors import MalformedError, NotFoundError
from common.files import write_atomic
from common.text_classifier import TextClassifier
from common.text_encoder import TextEncoder
from owner_client import own_kind
from owner_client.expert_choice import ExpertChoice, GainScale, trained_length

_OWN: Final = "own"
_PUBLIC: Final = "public"

_HELD_OUT_BYTES: Final = 400_000
"""How much held-out text of each kind an expert is tried on."""


class ProxyJob(BaseModel, frozen=True, extra="forbid"):
    """The job's JSON file."""

    data: Path
    """The owner's corpus; the classifier learns from its train split and is tried on its validation split."""
    public: Path
    """The public corpus; proxies are chosen from its train split."""
    count: int = Field(ge=1)
    """How many public documents to choose, at most."""
    min_score: float = Field(default=0.0, ge=0, le=1)
    """How likely a document must be the owner's kind to be chosen."""
    min_accuracy: float = Field(default=0.0, ge=0, le=1)
    """How well own and public text must be told apart, or no proxies are chosen: those of an owner that cannot be told
    from its neighbours teach its row to take theirs."""
    unseen_share: float = Field(default=0.0, ge=0, lt=1)
    """Share of the public documents that the public model was not trained on: proxies are chosen from these alone."""
    output: Path
    encoder: Path | None = None
    """Directory of a small encoder to fine-tune for the choice; by default a light linear classifier chooses."""
    base: Path | None = None
    """Directory of the public model that `expert` is of."""
    expert: Path | None = None
    """The owner's expert, a file: it chooses what it predicts better than the public model does."""
    sequence_length: int | None = Field(default=None, ge=2)
    """Tokens that the expert reads at once; by default as many as it was trained on."""
    batch_size: int = Field(default=2, ge=1)
    threads: int = Field(default=2, ge=1)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _one_chooses(self) -> "ProxyJob":
        if (self.base is None) != (self.expert is None):
            raise ValueError("expert and base, the public model that it is of, go together: give both or neither")
        if self.encoder is not None and self.expert is not None:
            raise ValueError("an encoder and an expert are given, and one chooses: leave one out")
        return self


@dataclass(frozen=True, slots=True)
class Proxies:
    """Chosen public documents, likeliest first, with the probability that each is the owner's kind of text.

    `accuracy` is over held-out documents of both kinds, each kind counting half; what public text can hold of the
    owner's kind is not counted as mistaken (`own_kind`).
    """

    ids: list[str]
    scores: list[float]
    accuracy: float


def select(config: ProxyJob) -> Proxies:
    """Choose the public documents that look most like the owner's.

    Raises:
        MalformedError: the public text has fewer documents than asked for, or a text cannot be read.
        NotFoundError: none is likely enough to be the owner's kind, or the two kinds are not told apart well enough.
    """
    own, public = data.read_corpus(config.data), data.read_corpus(config.public)
    if config.unseen_share:
        unseen, _ = data.set_unseen_aside(public.train, share=config.unseen_share)
        public = replace(public, train=tuple(unseen))
    if len(public.train) < config.count:
        raise MalformedError(
            f"{config.public}: {len(public.train)} public documents, and {config.count} proxies are asked for; "
            "ask for fewer or add public documents"
        )
    scores, accuracy = (_cross_fitted if config.expert is None else _by_expert)(config, own, public)
    if accuracy < config.min_accuracy:
        raise NotFoundError(
            f"own and public text are told apart in {accuracy:.0%} of cases, under the {config.min_accuracy:.0%} asked "
            "for: what would be chosen may be anybody's. Go without proxies: your router row then stays as it is"
        )
    order = sorted(range(len(scores)), key=lambda index: (-scores[index], public.train[index].digest))
    chosen = [index for index in order[: config.count] if scores[index] >= config.min_score]
    if not chosen:
        raise NotFoundError(
            f"no public document reaches a score of {config.min_score}, the best has {scores[order[0]]:.2f}; "
            "ask for a lower one, or go without proxies: your router row then stays as it is"
        )
    return Proxies([public.train[i].digest for i in chosen], [scores[i] for i in chosen], accuracy)


def _cross_fitted(config: ProxyJob, own: Corpus, public: Corpus) -> tuple[list[float], float]:
    """How likely each public training document is the owner's kind, and the accuracy on held-out documents.

    Each half of the public documents is scored by a classifier that learned from the other half: one that had learned
    a document as public would say so.
    """
    halves = [range(0, len(public.train), 2), range(1, len(public.train), 2)]
    scores, accuracies = [0.0] * len(public.train), []
    for scored, learned in (halves, halves[::-1]):
        seen = [public.train[index] for index in learned] or public.train
        classifier = _classifier(config, {_OWN: _texts(own.train), _PUBLIC: _texts(seen)})
        column = classifier.kinds.index(_OWN)
        found = classifier.probabilities(_texts([public.train[index] for index in scored]))[:, column]
        for index, score in zip(scored, found, strict=True):
            scores[index] = float(score)
        held = [classifier.probabilities(_texts(part))[:, column] for part in (own.validation, public.validation)]
        accuracies.append(own_kind.accuracy(*held))
    return scores, sum(accuracies) / len(accuracies)


def _by_expert(config: ProxyJob, own: Corpus, public: Corpus) -> tuple[list[float], float]:
    """The same from what the owner's expert gains. It did not learn held-out documents of either kind: gains there say
    what a gain means, those of one half for the other where accuracy is counted."""
    assert config.base is not None
    assert config.expert is not None
    config.output.parent.mkdir(parents=True, exist_ok=True)
    length = config.sequence_length or trained_length(config.expert.parent)
    chooser = ExpertChoice(config.base, config.expert, sequence_length=length, batch_size=config.batch_size,
                           scratch=config.output.parent)  # fmt: skip
    held = [chooser.gains(data.sample(part, _HELD_OUT_BYTES)) for part in (own.validation, public.validation)]
    halves = [[gains_N[0::2] for gains_N in held], [gains_N[1::2] for gains_N in held]]
    if min(map(len, halves[1])) == 0:  # one document of a kind, whose gain must do for both
        halves = [held, held]
    accuracies = [_scale_accuracy(learned, tried) for learned, tried in (halves, halves[::-1])]
    scores = GainScale(*held).probabilities(chooser.gains(public.train))
    return scores.tolist(), sum(accuracies) / len(accuracies)


def _scale_accuracy(learned: Sequence[NDArray[np.float64]], tried: Sequence[NDArray[np.float64]]) -> float:
    """Of a scale fitted to gains on own and on public documents, over others of both kinds."""
    scale = GainScale(*learned)
    return own_kind.accuracy(*(scale.probabilities(gains_N) for gains_N in tried))


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
    job.use_cpu(threads=config.threads)
    proxies = select(config)
    config.output.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(config.output, json.dumps(asdict(proxies), indent=2).encode() + b"\n")
    return {"task": "proxies", "output": str(config.output), "accuracy": proxies.accuracy}


if __name__ == "__main__":
    sys.exit(job.run(sys.argv[1:], ProxyJob, run))
