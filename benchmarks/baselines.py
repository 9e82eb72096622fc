"""What a release is compared with: soups, BTX, mixtures that had all data, and ensembles, in one consortium."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.consortium import PUBLIC, UNSEEN, Consortium, Job, Row, expert_steps_in_full_steps
from common import data
from common.ensemble import Nats, document_losses, losses_so_far, mixture_bits_per_byte, mixture_by_token, weigh
from common.evaluate import Domain, prepare
from common.model import hf
from common.text_classifier import TextClassifier
from common.tokenizer import Tokenizer
from coordinator.combine.soup import likelihood_weights, soup
from coordinator.combine.upcycle import upcycle

_TEMPERATURES: Final = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)

_TUNED_BYTES: Final = 20_000
"""Of each owner's validation text, at most, an ensemble's temperature is chosen on."""

Mix = Callable[[Domain, Sequence[Nats], float, int], float]
"""Bits per byte of a domain from models' losses of its tokens, a temperature and how many models at most weigh."""


def _whole(domain: Domain, nats: Sequence[Nats], temperature: float, top_k: int) -> float:
    weights = weigh(document_losses(domain, nats), temperature=temperature, top_k=top_k)
    return mixture_bits_per_byte(domain, nats, weights)


def _so_far(domain: Domain, nats: Sequence[Nats], temperature: float, top_k: int) -> float:
    weights = weigh(losses_so_far(domain, nats), temperature=temperature, top_k=top_k)
    return mixture_by_token(domain, nats, weights)


_BTM: Final[Mapping[str, Mix]] = {"BTM": _whole, "BTM so far": _so_far}


@dataclass
class Baselines:
    """Other ways to combine owners' training, and to do without owners."""

    world: Consortium

    def soups(self, dense: Sequence[Path]) -> dict[str, Path]:
        """The mean of the dense experts, and the mean weighted by how well each knows all validation text."""
        world = self.world
        models = [hf.load(path) for path in dense]
        losses = [
            np.mean([world.score(path, owner, split="validation").bits_per_byte for owner in world.owners])
            for path in dense
        ]
        weights = likelihood_weights([float(loss) for loss in losses], temperature=0.1)
        inputs = [path.name for path in dense]
        return {
            "soup": world.keep("soup", inputs, soup(models)),
            "weighted soup": world.keep("weighted-soup", [inputs, weights], soup(models, weights=weights)),
        }

    def btx_job(self, dense: Sequence[Path]) -> Job:
        """What trains dense experts, side by side, on public text."""
        world, corpora = self.world, self.world.corpora()
        start = upcycle(
            [hf.load(path) for path in (world.base(), *dense)], num_experts_per_tok=world.sizes.top_k, seed=world.seed
        )
        kept = world.keep("btx-start", [path.name for path in dense], start)
        public = {name: corpora / name for name in (PUBLIC, UNSEEN)}
        return world.tune_job("btx", kept, public, steps=world.sizes.tuning_steps,
                              learning_rate=world.sizes.dense_learning_rate)  # fmt: skip

    def unrestricted_job(self, times: int) -> Job:
        """What trains one mixture on everybody's text, with so many times the arithmetic of all owners' training."""
        world = self.world
        count = 1 + len(world.owners)
        start = upcycle([hf.load(world.base())] * count, num_experts_per_tok=world.sizes.top_k, seed=world.seed)
        kept = world.keep("unrestricted-start", count, start)
        sources = {name: world.corpora() / name for name in (UNSEEN, *world.owners)}
        steps = round(times * len(world.owners) * expert_steps_in_full_steps(world.sizes))
        rate = world.sizes.dense_learning_rate
        return world.tune_job(f"unrestricted-{times}x", kept, sources, learning_rate=rate, steps=steps)

    def ensembles(self, models: Sequence[Path]) -> dict[str, Row]:
        """Rows of BTM over `models`, weighed by whole documents or by what was read of them so far, and of one model a
        document chosen by a classifier of domains."""
        world = self.world
        temperatures = self._temperatures(models)
        rows: dict[str, Row] = {name: {} for name in (*_BTM, "classifier")}
        for name in world.measured_on:
            domain = world.domain(name)
            nats = [world.nats(path, domain) for path in models]
            for kind, mix in _BTM.items():
                rows[kind][name] = mix(domain, nats, temperatures[kind], world.sizes.top_k)
            rows["classifier"][name] = mixture_bits_per_byte(domain, nats, self._classified(name, len(models)))
        return rows

    def _temperatures(self, models: Sequence[Path]) -> dict[str, float]:
        """Each kind of BTM's temperature that is best on the owners' validation text."""
        totals = {kind: dict.fromkeys(_TEMPERATURES, 0.0) for kind in _BTM}
        for owner in self.world.owners:
            documents = data.sample(self.world.documents(owner, split="validation"), _TUNED_BYTES)
            domain = prepare(documents, Tokenizer.load(self.world.base()), sequence_length=self.world.sizes.context)
            nats = [self.world.nats(path, domain) for path in models]
            for kind, mix in _BTM.items():
                for temperature in _TEMPERATURES:
                    totals[kind][temperature] += mix(domain, nats, temperature, self.world.sizes.top_k)
        return {kind: min(losses, key=losses.__getitem__) for kind, losses in totals.items()}

    def _classified(self, name: str, num_models: int) -> NDArray[np.float64]:
        """All weight of each document on the model of the domain that the classifier names."""
        texts = [document.text for document in self.world.documents(name)]
        order = [self._classifier.kinds.index(kind) for kind in (PUBLIC, *self.world.owners)]
        picked = self._classifier.probabilities(texts)[:, order].argmax(axis=1)
        weights = np.zeros((num_models, len(texts)))
        weights[picked, np.arange(len(texts))] = 1
        return weights

    @cached_property
    def _classifier(self) -> TextClassifier:
        corpora = self.world.corpora()
        kinds = (PUBLIC, *self.world.owners)
        texts = {kind: [d.text for d in data.read_split(corpora / kind, "train")] for kind in kinds}
        return TextClassifier(texts, seed=self.world.seed)
