"""Training of a model that is there already: all of it, or its routers alone, on a mixture of texts.

`python -m common.tune JOB.json` goes on from a Hugging Face directory, dense or with experts, and writes another. It is
how a consortium trains a release's router rows on public text (arXiv 2507.07024, section 3.3.3), and how every way of
combining experts that the release is measured against is made: a dense expert is the public model trained on an owner's
text, BTX is a mixture of dense experts trained on public text, and the unrestricted mixture is one that saw everything.

With `validation` the result is the state that was best there, whatever came after it. With `held` routers go on routing
one of the texts as they did (`common.held_routing`).

Shapes: B batch, T sequence.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Final, Literal

import torch
from pydantic import BaseModel, Field, model_validator
from safetensors.torch import load_file, save_file
from torch import Tensor

from common import data, training, training_job
from common.errors import MalformedError
from common.evaluate import Domain, prepare, score
from common.files import write_atomic
from common.held_routing import HeldRouting
from common.job import StopSignal
from common.loss import Loss, LossFunction, TensorBatch, language_loss
from common.model import hf, partition
from common.model.transformer import DTYPES, CausalLM, ModelOutput
from common.packing import Batch, MixtureState, PackedText, batches
from common.tokenizer import Tokenizer
from common.training import Trainer, TrainingConfig

_TRAINED: Final = {"everything": "", "routers": ".mlp.gate.rows."}
"""What a parameter's name contains when it is trained."""

_BEST_TENSORS: Final = "best.safetensors"
_BEST_STATE: Final = "best.json"


class Source(BaseModel, frozen=True, extra="forbid"):
    """A text and its share of the sequences."""

    text: Path
    """Folder or file of documents; the train split of a folder is read."""
    share: float = Field(gt=0, le=1)


class Validation(BaseModel, frozen=True, extra="forbid"):
    """Where and how often the model is tried while it trains."""

    text: Path
    """Folder or file of documents; the validation split of a folder is read."""
    every_steps: int = Field(ge=1)
    max_bytes: int = Field(default=100_000, ge=1)
    patience: int | None = Field(default=None, ge=1)
    """After so many tries in a row that were no better, training ends."""


class Held(BaseModel, frozen=True, extra="forbid"):
    """What routers go on routing as they did."""

    source: str
    """Name of the text among the sources."""
    weight: float = Field(gt=0, allow_inf_nan=False)
    """Of a nat of divergence from what the routing was, beside a nat of the cross-entropy."""


class TuneJob(TrainingConfig, frozen=True, extra="forbid"):
    """The job's JSON file."""

    start: Path
    """The Hugging Face directory to go on from."""
    sources: Annotated[dict[str, Source], Field(min_length=1)]
    trained: Literal["everything", "routers"] = "everything"
    kept_rows: tuple[int, ...] = ()
    """Experts whose router rows stay as they are; of owners without text of their kind among the sources."""
    held: Held | None = None
    validation: Validation | None = None

    @model_validator(mode="before")
    @classmethod
    def _rows_keep_their_size(cls, fields: object) -> object:
        """Rows that are log density ratios have large logits, which say how sure they are; a loss on the logits' size
        would undo more of that than text can teach."""
        if isinstance(fields, dict) and fields.get("trained") == "routers":
            return {"router_z_loss": 0.0, **fields}
        return fields

    @model_validator(mode="after")
    def _shares(self) -> "TuneJob":
        if abs(sum(source.share for source in self.sources.values()) - 1) > 1e-6:
            raise ValueError("the shares of the sources do not sum to 1")
        if self.kept_rows and self.trained != "routers":
            raise ValueError('kept_rows are for training routers; set trained to "routers"')
        if self.held and self.trained != "routers":
            raise ValueError('held is for training routers; set trained to "routers"')
        if self.held and self.held.source not in self.sources:
            raise ValueError(f"held: no source {self.held.source} among {', '.join(self.sources)}")
        return self


def main(arguments: list[str]) -> int:
    """Run the job; returns the exit status."""
    return training_job.run(arguments, TuneJob, run)


def run(config: TuneJob, stop: StopSignal) -> dict[str, object]:
    """Make the model's directory, or find that an earlier run made it; returns what `training.json` records.

    Raises:
        MalformedError: the model or a text cannot be read, or routers are to be trained where there are none.
    """
    model = hf.load(config.start, device=config.device, dtype=torch.float32)
    if config.trained == "routers" and not model.routers:
        raise MalformedError(f"{config.start}: a dense model has no routers to train; give a release")
    documents = {name: data.read_split(source.text, "train") for name, source in config.sources.items()}
    digests = {f"text {name}": training.digest_texts(d.text for d in texts) for name, texts in documents.items()}
    fingerprint = training.fingerprint(config, start=training.digest_tensors(model.state_dict()), **digests)
    if (record := training_job.finished(config, fingerprint)) is not None:
        return record
    tokens = Tokenizer.load(config.start)
    texts = [
        training.packed(documents[name], tokens, config, name=str(source.text))
        for name, source in config.sources.items()
    ]
    _choose_trained(model, config)
    best = _Best(model, config, tokens)
    trainer = Trainer(
        model,
        config=config,
        loss=_loss(model, config),
        fingerprint=fingerprint,
        after_step=best.after_step,
        is_enough=best.is_enough,
        report=training_job.reporter("tune"),
        stop=stop,
    )
    result = trainer.train(partial(_batches, texts, [source.share for source in config.sources.values()], config))
    record = {"fingerprint": fingerprint, **best.restore(), **asdict(result), "config": config.model_dump(mode="json")}
    training_job.publish(config.output, partial(_write, model, tokens, record), checkpoint=config.checkpoint_folder)
    return record


def _choose_trained(model: CausalLM, config: TuneJob) -> None:
    """Have gradients computed for what is trained alone."""
    if unknown := [index for index in config.kept_rows if not 0 <= index < model.config.num_experts]:
        raise MalformedError(
            f"kept_rows: no expert {unknown[0]} among the {model.config.num_experts} of {config.start}"
        )
    if len(set(config.kept_rows)) == model.config.num_experts > 0:
        raise MalformedError("kept_rows: all rows are kept, so there is nothing to train; leave one out")
    for name, parameter in model.named_parameters():
        is_kept = _TRAINED["routers"] in name and partition.owner_of(name) in config.kept_rows
        parameter.requires_grad = _TRAINED[config.trained] in name and not is_kept


def _loss(model: CausalLM, config: TuneJob) -> LossFunction:
    """What is minimised; `model` is as training starts."""
    of_language = partial(language_loss, z_loss=config.z_loss, router_z_loss=config.router_z_loss)
    if config.held is None:
        return of_language
    name, weight = config.held.source, config.held.weight
    held = HeldRouting(model, source=list(config.sources).index(name), share=config.sources[name].share)

    def loss(output: ModelOutput, batch: TensorBatch) -> Loss:
        said = of_language(output, batch)
        return Loss(said.total + weight * held.divergence(output, batch), said.cross_entropy)

    return loss


class _Best:
    """Keeps the trained tensors of the step that was best on the validation text, through restarts too."""

    def __init__(self, model: CausalLM, config: TuneJob, tokens: Tokenizer) -> None:
        self._model, self._config = model, config
        self._validation = config.validation
        self._domain = None if config.validation is None else _domain(config.validation, tokens, config)
        self._tensors = config.checkpoint_folder / _BEST_TENSORS
        self._state = config.checkpoint_folder / _BEST_STATE
        if self._domain is not None and not self._state.exists():
            self._consider(0)  # what training only makes worse is left as it was

    def after_step(self, step: int) -> None:
        """Try the model when it is time."""
        if self._validation is not None and (step % self._validation.every_steps == 0 or step == self._config.steps):
            self._consider(step)

    def is_enough(self, step: int) -> bool:
        """Whether too many tries up to that step were no better than the best one."""
        if self._validation is None or self._validation.patience is None:
            return False
        every, best = self._validation.every_steps, int(json.loads(self._state.read_text())["step"])
        return step // every * every - best >= self._validation.patience * every

    def restore(self) -> dict[str, object]:
        """Put the best state back into the model; returns what to record of it."""
        if self._domain is None:
            return {}
        tensors = load_file(self._tensors)
        with torch.no_grad():
            for name, parameter in self._trained():
                parameter.copy_(tensors[name])
        return {"best": json.loads(self._state.read_text())}

    def _consider(self, step: int) -> None:
        assert self._domain is not None
        found = score(self._model, self._domain, batch_size=self._config.batch_size).bits_per_byte
        if self._state.exists() and json.loads(self._state.read_text())["bits_per_byte"] <= found:
            return
        self._tensors.parent.mkdir(parents=True, exist_ok=True)
        # The tensors first: a crash between the two leaves a state that this step, done again, is better than.
        partial_path = self._tensors.with_suffix(".partial")
        save_file({name: p.detach().cpu().contiguous() for name, p in self._trained()}, partial_path)
        partial_path.replace(self._tensors)
        write_atomic(self._state, json.dumps({"step": step, "bits_per_byte": found}).encode())

    def _trained(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, p) for name, p in self._model.named_parameters() if p.requires_grad)


def _domain(validation: Validation, tokens: Tokenizer, config: TuneJob) -> Domain:
    documents = data.sample(data.read_split(validation.text, "validation"), validation.max_bytes)
    return prepare(documents, tokens, sequence_length=config.sequence_length)


def _batches(
    texts: list[PackedText], shares: list[float], config: TuneJob, state: MixtureState | None = None
) -> Iterator[tuple[Batch, MixtureState]]:
    return batches(texts, shares=shares, batch_size=config.batch_size, state=state)


def _write(model: CausalLM, tokens: Tokenizer, record: dict[str, object], directory: Path) -> None:
    tokens.save(directory)
    hf.save(model.to(DTYPES[model.config.dtype]), directory)
    training_job.write_record(directory, record)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
