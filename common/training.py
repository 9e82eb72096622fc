"""What pretraining and expert training share: the schedule, the step loop, exact resumption.

AdamW with a cosine schedule and clipped gradients (arXiv 2507.07024, section 3.3.1). A run killed at any moment and
started again ends with the same bits: a checkpoint holds all that a step reads (parameters, optimizer state, place in
the text, step), and everything else is a function of the configuration. Tensors are kept as safetensors and the rest as
JSON; nothing is pickled.
"""

import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Final, Literal, Self

import torch
from pydantic import BaseModel, Field, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from common.data import Document
from common.errors import ConflictError, JobFailedError, MalformedError
from common.files import sync
from common.job import StoppedError, StopSignal
from common.loss import LossFunction, TensorBatch
from common.model.transformer import ModelOutput
from common.packing import Batch, MixtureState, PackedText
from common.tokenizer import Tokenizer

BETAS: Final = (0.9, 0.95)

_TENSORS_FILE = "tensors.safetensors"
_STATE_FILE = "state.json"
_MOMENTS = ("exp_avg", "exp_avg_sq")


class TrainingConfig(BaseModel, frozen=True, extra="forbid"):
    """What both kinds of training are told; a job's configuration adds where its text and its output are."""

    output: Path
    """What the job makes; it appears complete or not at all."""
    steps: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    sequence_length: int = Field(ge=2)
    learning_rate: float = Field(gt=0)
    warmup_steps: int = Field(default=20, ge=0)
    final_learning_rate_share: float = Field(default=0.0, ge=0, le=1)
    """Share of the learning rate that is left at the end of the cosine."""
    anneal_steps: int = Field(default=0, ge=0)
    """How many of `steps`, the last ones, anneal: straight from what the cosine leaves to zero (arXiv 2501.00656)."""
    weight_decay: float = Field(default=0.0, ge=0)
    clip_norm: float = Field(default=1.0, gt=0)
    z_loss: float = Field(default=1e-5, ge=0)
    router_z_loss: float = Field(default=1e-3, ge=0)
    seed: int = Field(default=0, ge=0, lt=2**63)
    threads: int = Field(default=1, ge=1)
    device: Literal["cpu", "cuda"] = "cpu"
    precision: Literal["float32", "bfloat16"] = "float32"
    """What matrices are multiplied in; parameters and optimizer state stay float32."""
    compile: bool = False
    checkpoint: Path | None = None
    """Folder for checkpoints; by default beside `output`. It is removed when the output is there."""
    checkpoint_every_s: float = Field(default=60.0, gt=0)
    checkpoint_every_steps: int | None = Field(default=None, ge=1)
    progress_every_s: float = Field(default=1.0, ge=0)

    @model_validator(mode="after")
    def _can_anneal(self) -> Self:
        if self.anneal_steps and (self.anneal_steps >= self.steps or self.final_learning_rate_share == 0):
            raise ValueError(
                "anneal_steps are some of the steps and need a final_learning_rate_share above 0 to come down from"
            )
        return self

    @property
    def checkpoint_folder(self) -> Path:
        """Where checkpoints are kept while the job runs."""
        return self.checkpoint or self.output.with_name(self.output.name + ".checkpoint")


_NOT_OF_THE_RESULT: Final = {"checkpoint_every_s", "checkpoint_every_steps", "progress_every_s"}


def fingerprint(config: TrainingConfig, **inputs: str) -> str:
    """SHA-256 of all that decides the result: the configuration and digests of the inputs, but no paths."""
    fields = _without_paths(config.model_dump(exclude=set(_NOT_OF_THE_RESULT)))
    return hashlib.sha256(json.dumps({**fields, "inputs": inputs}, sort_keys=True).encode()).hexdigest()


def _without_paths(fields: dict[str, object]) -> dict[str, object]:
    nested = {name: _without_paths(value) if isinstance(value, dict) else value for name, value in fields.items()}
    return {name: value for name, value in nested.items() if not isinstance(value, Path)}


def packed(
    documents: Sequence[Document],
    tokens: Tokenizer,
    config: TrainingConfig,
    *,
    name: str,
    patchworks: Sequence[Sequence[str]] = (),
) -> PackedText:
    """Documents, and patchworks of parts, as the sequences a job trains on; `name` is what errors call them."""
    return PackedText(
        tokens.encode_all([document.text for document in documents]),
        patchworks=[tokens.encode_all(parts) for parts in patchworks],
        sequence_length=config.sequence_length,
        eos_token_id=tokens.eos_token_id,
        seed=config.seed,
        name=name,
    )


def digest_texts(texts: Iterable[str]) -> str:
    """SHA-256 over the SHA-256 of each text in turn."""
    return hashlib.sha256(b"".join(hashlib.sha256(text.encode()).digest() for text in texts)).hexdigest()


def digest_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes, in order of the names."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.view(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def learning_rate_share(
    step: int, *, steps: int, warmup_steps: int, final_share: float, anneal_steps: int = 0
) -> float:
    """Share of the peak learning rate at `step` (from 0): linear warm-up, a cosine down to `final_share`, then straight
    down to zero over the last `anneal_steps` of all `steps`.
    """
    steps -= anneal_steps
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if step >= steps and anneal_steps:
        return final_share * (1 - (step - steps) / anneal_steps)
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return final_share + (1 - final_share) * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands: `step` of `steps` are done; `loss` is the mean cross-entropy since the last report."""

    step: int
    steps: int
    loss: float
    tokens_per_s: float
    seconds_left: float


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """What a run leaves to tell: tokens seen over all its lives, and the mean loss of its first and last steps."""

    steps: int
    tokens: int
    first_loss: float
    final_loss: float


@dataclass(slots=True)
class _Run:
    """All that changes from step to step, beside the parameters and the optimizer's moments."""

    step: int = 0
    consumed: MixtureState | None = None
    losses: list[float] = field(default_factory=list)


class Trainer:
    """Trains the parameters of `model` that require gradients; everything else is left alone."""

    def __init__(
        self,
        model: nn.Module,
        *,
        config: TrainingConfig,
        loss: LossFunction,
        fingerprint: str,
        peak_learning_rate: Callable[[str], float] | None = None,
        after_step: Callable[[int], None] = lambda step: None,
        is_enough: Callable[[int], bool] = lambda step: False,
        report: Callable[[Progress], None] = lambda progress: None,
        stop: StopSignal | None = None,
    ) -> None:
        """Make a trainer.

        Args:
            model: Called as `CausalLM` is; in float32 on the device it trains on.
            config: How to train.
            loss: From the model's output and the batch.
            fingerprint: Of the configuration and inputs; a checkpoint with another one is refused.
            peak_learning_rate: Of a parameter by name; `config.learning_rate` for all by default.
            after_step: Called after every update with the steps done so far, for constraints on parameters.
            is_enough: Asked before every update with the steps done so far; training ends where it says so.
            report: Called about every `progress_every_s`, and after the last step.
            stop: Asked after every step.
        """
        self._config, self._loss, self._fingerprint = config, loss, fingerprint
        self._after_step, self._report, self._stop = after_step, report, stop or StopSignal()
        self._is_enough = is_enough
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._optimizer = _optimizer(
            self._parameters, config, peak_learning_rate or (lambda name: config.learning_rate)
        )
        # Compiled on request only: the graph of a small model costs more to compile than to run.
        self._forward: Callable[..., ModelOutput] = torch.compile(model) if config.compile else model
        self._run = _Run()

    def train(self, batches: Callable[[MixtureState | None], Iterator[tuple[Batch, MixtureState]]]) -> TrainingResult:
        """Run all steps that are left, from the newest checkpoint if there is one.

        Args:
            batches: Gives the iterator of batches that starts at a state; None is the beginning.

        Raises:
            StoppedError: asked to stop; a checkpoint is written.
            JobFailedError: the loss is no longer a number.
            ConflictError: the checkpoint is of another job.
            MalformedError: the checkpoint cannot be read.
        """
        self._resume()
        config, first = self._config, self._run.step
        started = reported = saved = time.monotonic()
        for batch, state in islice(batches(self._run.consumed), config.steps - first):
            if self._is_enough(self._run.step):
                break
            self._step(batch)
            self._run.consumed = state
            now = time.monotonic()
            if self._stop.requested or self._is_due(now - saved):
                self._save()
                saved = now
            if self._stop.requested:
                raise StoppedError(f"stopped after step {self._run.step} of {config.steps}; run the job again to go on")
            if now - reported >= config.progress_every_s or self._run.step == config.steps:
                self._report(self._progress(now - started, since=first))
                reported = now
        losses = self._run.losses
        return TrainingResult(
            steps=self._run.step,
            tokens=self._run.step * config.batch_size * config.sequence_length,
            first_loss=_mean(losses[:10]),
            final_loss=_mean(losses[-10:]),
        )

    def _step(self, batch: Batch) -> None:
        config, run = self._config, self._run
        share = learning_rate_share(
            run.step,
            steps=config.steps,
            warmup_steps=min(config.warmup_steps, (config.steps - config.anneal_steps) // 2),
            final_share=config.final_learning_rate_share,
            anneal_steps=config.anneal_steps,
        )
        for group in self._optimizer.param_groups:
            group["lr"] = share * group["peak"]
        placed = TensorBatch.place(batch, config.device)
        with _autocast(config):
            loss = self._loss(self._forward(placed.input_ids_BT, document_ids_BT=placed.document_ids_BT), placed)
        loss.total.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._parameters.values(), config.clip_norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._after_step(run.step + 1)
        run.losses.append(_finite(float(loss.cross_entropy), run.step))
        run.step += 1

    def _progress(self, seconds: float, *, since: int) -> Progress:
        config, done = self._config, self._run.step - since
        return Progress(
            step=self._run.step,
            steps=config.steps,
            loss=_mean(self._run.losses[-20:]),
            tokens_per_s=done * config.batch_size * config.sequence_length / max(seconds, 1e-9),
            seconds_left=seconds / done * (config.steps - self._run.step),
        )

    # -- Checkpoints: `step-<n>` folders; one is renamed into place when complete, then older ones go ------------------

    def _is_due(self, seconds: float) -> bool:
        every = self._config.checkpoint_every_steps
        if every is not None:
            return self._run.step % every == 0
        return seconds >= self._config.checkpoint_every_s

    def _save(self) -> None:
        folder = self._config.checkpoint_folder
        folder.mkdir(parents=True, exist_ok=True)
        target, partial = folder / f"step-{self._run.step:09d}", folder / "partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        save_file(self._tensors(), partial / _TENSORS_FILE)
        state = {
            "fingerprint": self._fingerprint,
            "step": self._run.step,
            "consumed": list(self._run.consumed.consumed) if self._run.consumed else None,
            "losses": self._run.losses,
        }
        (partial / _STATE_FILE).write_text(json.dumps(state))
        for file in partial.iterdir():
            sync(file)
        partial.rename(target)
        sync(folder)
        for old in _checkpoints(folder)[:-1]:
            shutil.rmtree(old)

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {f"parameter {name}": p.detach() for name, p in self._parameters.items()}
        for name, parameter in self._parameters.items():
            tensors |= {f"{moment} {name}": self._optimizer.state[parameter][moment] for moment in _MOMENTS}
        return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}

    def _resume(self) -> None:
        found = _checkpoints(self._config.checkpoint_folder)
        if not found:
            return
        try:
            state = json.loads((found[-1] / _STATE_FILE).read_text())
            tensors = load_file(found[-1] / _TENSORS_FILE)
            if state["fingerprint"] != self._fingerprint:
                raise ConflictError(
                    f"{found[-1]} is a checkpoint of another job or other text; remove it to start anew"
                )
            consumed = state["consumed"]
            self._run = _Run(state["step"], MixtureState(tuple(consumed)) if consumed else None, state["losses"])
            self._place(tensors)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise MalformedError(f"{found[-1]}: not a checkpoint ({error}); remove it to start anew") from error

    def _place(self, tensors: dict[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            with torch.no_grad():
                parameter.copy_(tensors[f"parameter {name}"])
            moments = {moment: tensors[f"{moment} {name}"].to(parameter.device) for moment in _MOMENTS}
            step = torch.tensor(float(self._run.step), device=parameter.device)
            self._optimizer.state[parameter] = {"step": step, **moments}


def _optimizer(
    parameters: Mapping[str, nn.Parameter], config: TrainingConfig, peak_learning_rate: Callable[[str], float]
) -> torch.optim.AdamW:
    """AdamW with one group for each peak learning rate."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        groups.setdefault(peak_learning_rate(name), []).append(parameter)
    return torch.optim.AdamW(
        [{"params": group, "lr": peak, "peak": peak} for peak, group in groups.items()],
        betas=BETAS,
        weight_decay=config.weight_decay,
        fused=True,
    )


def _autocast(config: TrainingConfig) -> AbstractContextManager[object]:
    if config.precision == "float32":
        return nullcontext()
    return torch.autocast(config.device, dtype=torch.bfloat16)


def _finite(loss: float, step: int) -> float:
    if not math.isfinite(loss):
        raise JobFailedError(f"the loss is {loss} after step {step + 1}; choose a lower learning_rate")
    return loss


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))
