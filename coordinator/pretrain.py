"""The public model's job: public documents to the base directory, the one anchor that every owner starts from.

`python -m coordinator.pretrain JOB.json` trains a tokenizer and an OLMo 2 model (beside its next tokens, on the topic
that routers should see: `topics`), then measures the hidden states of
public text for the public expert's router row and the direction biases act along. The base directory loads with
`transformers` (`config.json`, `generation_config.json`, `model.safetensors`, tokenizer files) and holds
`router.safetensors` beside them.

Shapes: B batch, T sequence.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator
from torch import nn

from common import data, tokenizer, training, training_job
from common.data import Document, read_split, set_unseen_aside
from common.errors import MalformedError
from common.job import StopSignal
from common.loss import LossFunction, language_loss
from common.model import hf
from common.model.config import ModelConfig
from common.model.router_rows import measure, public_router
from common.model.transformer import CausalLM
from common.packing import Batch, MixtureState, PackedText, batches
from common.tokenizer import Tokenizer
from common.training import Trainer, TrainingConfig
from coordinator import topics
from coordinator.patchworks import patchworks
from coordinator.topics import TopicLM, TopicSpace, topic_loss


class PretrainJob(TrainingConfig, frozen=True, extra="forbid"):
    """The job's JSON file. Sizes of the model have Hugging Face's names."""

    public: Path
    """Folder or file of public documents; its train split is read."""
    unseen_share: float = Field(default=0.0, ge=0, lt=1)
    """Share of the public documents, by their hash, that is left out, for what compares the model with experts."""
    annealing: Path | None = None
    """Likewise the text of the `anneal_steps`, as a rule a better part of the public one; by default the same text."""
    long_steps: int = Field(default=0, ge=0)
    """How many of `steps`, the last ones, read sequences of `long_sequence_length`, as many tokens a batch. Short ones
    teach the next token sooner, long ones what kind of text it is, which routers need."""
    long_sequence_length: int | None = Field(default=None, ge=2)
    """A multiple of `sequence_length` that divides a batch."""
    patchwork_share: float = Field(default=0.0, ge=0, le=1)
    """Share of the documents, by their hash, that is read cut up and mixed (`patchworks`)."""
    vocab_size: int = Field(ge=tokenizer.MIN_VOCAB_SIZE)
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None = None
    rope_theta: float = 10_000.0
    topic_weight: float = Field(default=0.5, ge=0)
    """Weight of predicting topics from what routers see (`topics`); 0 leaves it out."""
    topic_word_evenness: float = Field(default=0.0, ge=0, le=1)
    """How far rare words count as much as frequent ones in what a topic is (`topics`)."""
    topic_oversampling: int = Field(default=1, ge=1)
    """How many times as many topics are looked for as are predicted."""
    num_topics: int | None = Field(default=None, ge=1)
    """How many kinds of difference between documents are predicted, at most; by default an eighth of `hidden_size`, so
    that they take little of what the model has room for, and not over 64."""
    router_sequences: int = Field(default=256, ge=1)
    """How many public sequences the router row is measured on."""

    @model_validator(mode="after")
    def _can_be_long(self) -> Self:
        if (self.long_steps > 0) != (self.long_sequence_length is not None) or self.long_steps > self.steps:
            raise ValueError("long_steps are some of the steps and need a long_sequence_length: give both or neither")
        tokens = self.batch_size * self.sequence_length
        if tokens % self.longest_sequence or self.longest_sequence % self.sequence_length:
            raise ValueError("long_sequence_length must be a multiple of sequence_length and divide a batch's tokens")
        return self

    @property
    def longest_sequence(self) -> int:
        """Tokens of the longest sequence that is read."""
        return self.long_sequence_length or self.sequence_length

    def model_config_for(self, eos_token_id: int) -> ModelConfig:
        """The model that these sizes describe. Raises ValueError when they do not fit together."""
        return ModelConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=self.num_key_value_heads or self.num_attention_heads,
            max_position_embeddings=self.longest_sequence,
            rope_theta=self.rope_theta,
            eos_token_id=eos_token_id,
        )


def main(arguments: list[str]) -> int:
    """Run the job; returns the exit status."""
    return training_job.run(arguments, PretrainJob, run)


def run(config: PretrainJob, stop: StopSignal) -> dict[str, object]:
    """Make the base directory, or find that an earlier run made it; returns what `training.json` records."""
    _, documents = set_unseen_aside(read_split(config.public, "train"), share=config.unseen_share)
    annealing = None if config.annealing is None else read_split(config.annealing, "train")
    fingerprint = training.fingerprint(
        config,
        public=training.digest_texts(d.text for d in documents),
        annealing=training.digest_texts(d.text for d in annealing or ()),
    )
    if (record := training_job.finished(config, fingerprint)) is not None:
        return record
    tokens = tokenizer.train(documents, vocab_size=config.vocab_size)
    stages = _stages(config, tokens, documents, annealing)
    text = stages[-1].text if config.annealing is None else _packed(config, tokens, documents, config.longest_sequence)
    model = CausalLM(_sizes(config, tokens), seed=config.seed).to(config.device)
    trained, loss = _objective(model, text, config)
    trainer = Trainer(
        trained,
        config=config,
        loss=loss,
        peak_learning_rate=partial(_peak_learning_rate, config=config),
        fingerprint=fingerprint,
        report=training_job.reporter("pretrain"),
        stop=stop,
    )
    result = trainer.train(partial(_batches_of, stages))
    record = {"fingerprint": fingerprint, "public_tokens": text.num_tokens, **asdict(result)}
    record["config"] = config.model_dump(mode="json")
    training_job.publish(
        config.output, partial(_write, model, tokens, text, config, record), checkpoint=config.checkpoint_folder
    )
    return record


def _peak_learning_rate(name: str, *, config: PretrainJob) -> float:
    return config.learning_rate * (topics.HEADS_LEARN_FASTER if name.startswith(topics.HEADS_PREFIX) else 1)


def _objective(model: CausalLM, text: PackedText, config: PretrainJob) -> tuple[nn.Module, LossFunction]:
    """What is trained and on which loss: the model on its next tokens, with topic heads unless they weigh nothing."""
    language = partial(language_loss, z_loss=config.z_loss, router_z_loss=config.router_z_loss)
    if config.topic_weight == 0:
        return model, language
    vocab_size = model.config.vocab_size
    num_topics = config.num_topics or min(max(1, config.hidden_size // 8), 64)
    space = TopicSpace.fit(
        text,
        vocab_size=vocab_size,
        num_topics=num_topics,
        seed=config.seed,
        word_evenness=config.topic_word_evenness,
        oversampling=config.topic_oversampling,
    )
    if space.num_topics == 0:
        return model, language
    with_heads = TopicLM(model, num_topics=space.num_topics).to(config.device)
    return with_heads, topic_loss(language, with_heads, space.to(config.device), weight=config.topic_weight)


@dataclass(frozen=True, slots=True)
class _Stage:
    """So many batches of a text."""

    text: PackedText
    num_batches: int
    batch_size: int


def _stages(
    config: PretrainJob, tokens: Tokenizer, documents: Sequence[Document], annealing: Sequence[Document] | None
) -> list[_Stage]:
    """What is read when: the last steps may be another text, or longer sequences, or both."""
    annealed_from = config.steps - (config.anneal_steps if annealing is not None else 0)
    long_from = config.steps - config.long_steps
    begins = sorted({0, annealed_from, long_from} - {config.steps})
    stages = []
    for begin, end in zip(begins, [*begins[1:], config.steps], strict=True):
        length = config.longest_sequence if begin >= long_from else config.sequence_length
        read = annealing if annealing is not None and begin >= annealed_from else documents
        text = _packed(config, tokens, read, length)
        stages.append(_Stage(text, end - begin, config.batch_size * config.sequence_length // length))
    return stages


def _packed(config: PretrainJob, tokens: Tokenizer, documents: Sequence[Document], length: int) -> PackedText:
    cut, whole = data.by_hash("patchwork", documents, config.patchwork_share)
    return training.packed(
        whole,
        tokens,
        config.model_copy(update={"sequence_length": length}),
        name=str(config.public),
        patchworks=patchworks(cut, seed=config.seed),
    )


def _batches_of(stages: Sequence[_Stage], state: MixtureState | None = None) -> Iterator[tuple[Batch, MixtureState]]:
    """Batches of all stages in turn. The state counts the sequences that were read in each."""
    consumed = list(state.consumed) if state else [0] * len(stages)
    for index, stage in enumerate(stages):
        left = stage.num_batches - consumed[index] // stage.batch_size
        for batch, after in islice(_batches(stage.text, stage.batch_size, consumed[index]), left):
            consumed[index] = after.consumed[0]
            yield batch, MixtureState(tuple(consumed))


def _batches(text: PackedText, batch_size: int, consumed: int = 0) -> Iterator[tuple[Batch, MixtureState]]:
    return batches([text], shares=[1.0], batch_size=batch_size, state=MixtureState((consumed,)))


def _write(
    model: CausalLM,
    tokens: tokenizer.Tokenizer,
    text: PackedText,
    config: PretrainJob,
    record: dict[str, object],
    directory: Path,
) -> None:
    batch_size = config.batch_size * config.sequence_length // config.longest_sequence
    count = -(-config.router_sequences // config.batch_size)
    sample = (batch for batch, _ in islice(_batches(text, batch_size), count))
    public_router(measure(model, sample, device=config.device)).save(directory)
    tokens.save(directory)
    hf.save(model, directory)
    training_job.write_record(directory, record)


def _sizes(config: PretrainJob, tokens: Tokenizer) -> ModelConfig:
    try:
        return config.model_config_for(tokens.eos_token_id)
    except ValueError as error:
        raise MalformedError(f"these sizes make no model: {error}") from error


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
