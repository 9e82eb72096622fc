"""Teaches the public model to say what kind of text it reads, in the place where routers look.

Every owner's row is linear in one layer's feed-forward input, so a release routes well only as far as that input tells
kinds of text apart linearly. A large model's does; a small one's mostly names the last token. While the public model is
pretrained, a linear head on each layer's feed-forward input therefore predicts the *topic* of the document around the
token, or of the part of it where it was put together of several (`patchworks`): the document's word counts within the
sequence (square roots of frequencies, so that frequent words do not drown the rest), projected to their principal
components over the public text and brought to unit variance. No labels are needed. One more target is 1 everywhere, so
that there is a direction along which hidden states are constant: a router row has no other way to hold a constant. The
heads are thrown away; what leaves the job is a plain OLMo 2 model.

Shapes: B batch, T sequence, D hidden_size, V vocab_size, K topics, F components looked for, S stretches of one part
within one sequence.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.loss import Loss, LossFunction, TensorBatch
from common.model.transformer import CausalLM, ModelOutput, stretches
from common.packing import PackedText

HEADS_PREFIX: Final = "heads."
HEADS_LEARN_FASTER: Final = 5
"""Heads start at zero; the sooner they read what is there, the sooner what they ask for is what is missing."""

_SAMPLED_SEQUENCES: Final = 8192
_SAMPLED_COUNTS: Final = 2**26
"""How many sequences the components are found on, at most, and how many counts (sequences times vocabulary)."""

_POWER_ITERATIONS: Final = 4
_OUTLIER: Final = 4.0
"""Targets are clipped at so many standard deviations: a stretch of two words is no topic."""


@dataclass(frozen=True, slots=True)
class TopicSpace:
    """The map from word counts to topics: `components_VK`, and `centre_K` which is subtracted."""

    components_VK: Tensor
    centre_K: Tensor

    @classmethod
    def fit(
        cls,
        text: PackedText,
        *,
        vocab_size: int,
        num_topics: int,
        seed: int,
        word_evenness: float = 0.0,
        oversampling: int = 1,
    ) -> Self:
        """The first `num_topics` principal components of the stretches of `text`, each of unit variance over them.

        There are fewer when the text has fewer stretches than that, down to none for a single one.

        Args:
            text: What topics are found in.
            vocab_size: V.
            num_topics: K, at most.
            seed: Of the factorisation.
            word_evenness: The power of its standard deviation that each word's roots are divided by first: at 0 words
                count by how much their frequencies vary, so that frequent ones decide, at 1 all alike.
            oversampling: How many times as many components are looked for as are kept: the last ones of a randomised
                factorisation are mixtures of those beyond.
        """
        most = max(1, min(_SAMPLED_SEQUENCES, _SAMPLED_COUNTS // vocab_size))
        sequences = [text.sequence(index) for index in range(min(text.num_sequences, most))]
        input_ids = torch.stack([torch.from_numpy(tokens[:-1]) for tokens, _, _ in sequences]).long()
        part_ids = torch.stack([torch.from_numpy(ids) for _, _, ids in sequences])
        roots_SV, _ = _word_roots(input_ids, part_ids, vocab_size=vocab_size)
        mean_V, scale_V = roots_SV.mean(dim=0), _scale(roots_SV, word_evenness)
        deviations_SV = (roots_SV - mean_V) * scale_V
        found, sought = (
            min(number, len(roots_SV) - 1, vocab_size) for number in (num_topics, num_topics * oversampling)
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # the factorisation draws its starting subspace
            _, singular_F, directions_VF = torch.svd_lowrank(deviations_SV, q=sought, niter=_POWER_ITERATIONS)
        singular_K, directions_VK = singular_F[:found], directions_VF[:, :found]
        deviation_K = (singular_K / len(roots_SV) ** 0.5).clamp(min=torch.finfo(torch.float32).tiny)
        components_VK = scale_V[:, None] * directions_VK / deviation_K
        return cls(components_VK, mean_V @ components_VK)

    @property
    def num_topics(self) -> int:
        """K."""
        return len(self.centre_K)

    def to(self, device: torch.device | str) -> "TopicSpace":
        """The same on `device`."""
        return TopicSpace(self.components_VK.to(device), self.centre_K.to(device))

    def targets(self, batch: TensorBatch) -> Tensor:
        """The topic of the part around each token, as far as the sequence shows it, and a 1: [B, T, K + 1]."""
        roots_SV, stretches_BT = _word_roots(batch.input_ids_BT, batch.part_ids_BT, vocab_size=len(self.components_VK))
        topics_SK = (roots_SV @ self.components_VK - self.centre_K).clamp(-_OUTLIER, _OUTLIER)
        return F.pad(topics_SK, (0, 1), value=1.0)[stretches_BT]


class TopicLM(nn.Module):
    """`model` with a linear head on each layer's feed-forward input; computes what `model` computes."""

    def __init__(self, model: CausalLM, *, num_topics: int) -> None:
        super().__init__()
        self.model = model
        self.heads = nn.ModuleList(
            nn.Linear(model.config.hidden_size, num_topics + 1, bias=False)
            for _ in range(model.config.num_hidden_layers)
        )
        for parameter in self.heads.parameters():
            nn.init.zeros_(parameter)
        self._inputs: dict[int, Tensor] = {}
        for index, layer in enumerate(model.model.layers):
            layer.register_forward_hook(self._keep_inputs(index))

    def forward(self, input_ids_BT: Tensor, *, document_ids_BT: Tensor | None = None) -> ModelOutput:
        """As `CausalLM.forward`."""
        output: ModelOutput = self.model(input_ids_BT, document_ids_BT=document_ids_BT)
        return output

    def topics(self) -> list[Tensor]:
        """What each layer's head says of the newest forward pass: one [B, T, K + 1] a layer."""
        return [head(self._inputs[index]) for index, head in enumerate(self.heads)]

    def _keep_inputs(self, index: int) -> Callable[[nn.Module, object, tuple[Tensor, Tensor, Tensor | None]], None]:
        def hook(_layer: nn.Module, _arguments: object, output: tuple[Tensor, Tensor, Tensor | None]) -> None:
            self._inputs[index] = output[1]

        return hook


def topic_loss(language: LossFunction, model: TopicLM, space: TopicSpace, *, weight: float) -> LossFunction:
    """`language` plus `weight` times the mean squared error of the topics, averaged over layers."""

    def loss(output: ModelOutput, batch: TensorBatch) -> Loss:
        of_language = language(output, batch)
        targets_BTJ = space.targets(batch)
        errors = [(topics_BTJ.float() - targets_BTJ).square().mean() for topics_BTJ in model.topics()]
        return Loss(of_language.total + weight * torch.stack(errors).mean(), of_language.cross_entropy)

    return loss


def _scale(roots_SV: Tensor, evenness: float) -> Tensor:
    """What each word's roots are multiplied by [V]; a word that never varies says nothing either way."""
    deviation_V = roots_SV.std(dim=0, correction=0)
    return torch.where(deviation_V > 0, deviation_V, 1.0) ** -evenness


def _word_roots(input_ids_BT: Tensor, part_ids_BT: Tensor, *, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Square roots of word frequencies [S, V] of each stretch, and which stretch each token is in [B, T]."""
    stretches_BT = stretches(part_ids_BT)
    words = stretches_BT.flatten() * vocab_size + input_ids_BT.flatten()
    num_stretches = int(stretches_BT[-1, -1]) + 1
    counts_SV = torch.bincount(words, minlength=num_stretches * vocab_size).view(num_stretches, vocab_size).float()
    return (counts_SV / counts_SV.sum(dim=1, keepdim=True)).sqrt(), stretches_BT
