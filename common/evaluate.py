"""Bits per byte by domain, and which experts a release sends each domain's tokens to.

Bits per byte = total negative log-likelihood / ln 2 / UTF-8 bytes, which compares models whatever their tokenizer.
A document follows an end-of-text token and is cut into windows of `sequence_length`; each of its tokens is scored once,
and windows of several documents share a row without attending to one another.

As a job: `python -m common.evaluate JOB.json` with an `EvaluationConfig`.

Shapes: W rows of windows, B rows of a batch, T sequence_length, D hidden_size, V vocab_size, L layers, E experts,
K experts per token, N tokens.
"""

import bisect
import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, Field
from torch import Tensor

from common import data, job
from common.data import Document
from common.errors import JobFailedError, MalformedError, NotFoundError
from common.model import hf
from common.model.moe import choose_experts
from common.model.transformer import CausalLM
from common.tokenizer import TOKENIZER_FILE, Tokenizer

PADDING: Final = -1
"""The target of a position that is not scored."""

_PROGRESS_EVERY_S: Final = 0.5

Name = Annotated[str, Field(min_length=1, max_length=200)]


class EvaluationConfig(BaseModel, frozen=True, extra="forbid"):
    """What is evaluated on what."""

    models: dict[Name, Path] = Field(min_length=1)
    """Hugging Face directories; all with the same tokenizer."""
    domains: dict[Name, Path | Annotated[tuple[Path, ...], Field(min_length=1)]] = Field(min_length=1)
    """A corpus folder (its test split is read), or files of documents, read whole."""
    output: Path
    sequence_length: int = Field(ge=2)
    batch_size: int = Field(default=4, ge=1)
    """Rows at a time; on a CPU a few are fastest, since they stay in its cache."""
    threads: int = Field(default=1, ge=1)
    max_bytes: int | None = Field(default=None, ge=1)
    """At most so much text of each domain, chosen by document hash."""
    device: Literal["cpu", "cuda"] = "cpu"


@dataclass(frozen=True, slots=True)
class Windows:
    """A domain's text as rows for a model, int64 [W, T]. Targets are `PADDING` where there is nothing to predict.

    `document_ids_WT` tells windows apart; `document_of_window` is the document that each of them is cut from.
    """

    input_ids_WT: NDArray[np.int64]
    targets_WT: NDArray[np.int64]
    document_ids_WT: NDArray[np.int64]
    document_of_window: NDArray[np.int64]

    @property
    def scored_WT(self) -> NDArray[np.bool_]:
        """Where there is something to predict."""
        return np.asarray(self.targets_WT != PADDING)

    @property
    def num_tokens(self) -> int:
        """Tokens that are scored."""
        return int(self.scored_WT.sum())


@dataclass(frozen=True, slots=True)
class Domain:
    """A domain ready to be scored: its windows, and the documents and UTF-8 bytes they hold."""

    windows: Windows
    num_documents: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Scores:
    """A model on a domain; `shares_per_layer[layer][expert]` is that expert's share of the layer's top-k choices.

    A dense model is one expert that is always chosen.
    """

    bits_per_byte: float
    shares_per_layer: tuple[tuple[float, ...], ...]

    @property
    def shares(self) -> tuple[float, ...]:
        """Each expert's share, averaged over layers; they sum to 1."""
        return tuple(
            math.fsum(layer) / len(self.shares_per_layer) for layer in zip(*self.shares_per_layer, strict=True)
        )


# ---- Text to windows -------------------------------------------------------------------------------------------------


def read_domain(source: Path | Sequence[Path], *, max_bytes: int | None = None) -> list[Document]:
    """The documents of a corpus folder's test split, or of files.

    Args:
        source: A folder, a file, or several files.
        max_bytes: At most so many bytes of UTF-8 text, of documents in the order of their hashes; the last one is cut.

    Raises:
        MalformedError: as `data.read_documents`.
    """
    if isinstance(source, Path) and source.is_dir():
        documents = list(data.read_split(source, "test"))
    else:
        files = (source,) if isinstance(source, Path) else source
        documents = [document for file in files for document in data.read_documents(file)]
    return documents if max_bytes is None else data.sample(documents, max_bytes)


def prepare(documents: Sequence[Document], tokenizer: Tokenizer, *, sequence_length: int) -> Domain:
    """Encode documents and lay them out in windows."""
    texts = [document.text for document in documents]
    tokens = tokenizer.encode_all(texts)
    return Domain(
        windows=pack(tokens, sequence_length=sequence_length, eos_token_id=tokenizer.eos_token_id),
        num_documents=len(texts),
        num_bytes=sum(len(text.encode()) for text in texts),
    )


def pack(documents: Sequence[Sequence[int]], *, sequence_length: int, eos_token_id: int) -> Windows:
    """Lay out documents (token ids without end-of-text) in rows, longest windows first, each where it fits best."""
    streams = [np.array([eos_token_id, *tokens], np.int64) for tokens in documents]
    pieces = [
        (stream[start : start + sequence_length + 1], document)
        for document, stream in enumerate(streams)
        for start in range(0, len(stream) - 1, sequence_length)
    ]
    pieces.sort(key=lambda piece: len(piece[0]), reverse=True)
    places = _best_fit([len(piece) - 1 for piece, _ in pieces], capacity=sequence_length)
    shape = (1 + max((row for row, _ in places), default=-1), sequence_length)
    input_ids_WT, targets_WT = np.full(shape, eos_token_id, np.int64), np.full(shape, PADDING, np.int64)
    document_ids_WT = np.full(shape, PADDING, np.int64)
    for index, ((piece, _), (row, start)) in enumerate(zip(pieces, places, strict=True)):
        end = start + len(piece) - 1
        input_ids_WT[row, start:end], targets_WT[row, start:end] = piece[:-1], piece[1:]
        document_ids_WT[row, start:end] = index
    of_windows = np.array([document for _, document in pieces], np.int64)
    return Windows(input_ids_WT, targets_WT, document_ids_WT, of_windows)


def _best_fit(lengths: Sequence[int], *, capacity: int) -> list[tuple[int, int]]:
    """(row, start) of each length, in the fullest row that still has room for it."""
    places, rooms, num_rows = [], list[tuple[int, int]](), 0
    for length in lengths:
        fullest = bisect.bisect_left(rooms, (length, 0))
        if fullest < len(rooms):
            room, row = rooms.pop(fullest)
        else:
            room, row, num_rows = capacity, num_rows, num_rows + 1
        places.append((row, capacity - room))
        if room > length:
            bisect.insort(rooms, (room - length, row))
    return places


# ---- Scoring ---------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def score(
    model: CausalLM, domain: Domain, *, batch_size: int, advance: Callable[[int], None] = lambda rows: None
) -> Scores:
    """Bits per byte and routing shares of `model` on a domain.

    Args:
        model: On the device where it is to run.
        domain: What `prepare` made with the model's tokenizer.
        batch_size: Rows at a time.
        advance: Called with the number of rows just done.

    Raises:
        JobFailedError: the model's likelihoods are not numbers.
    """
    config, device = model.config, model.lm_head.weight.device
    total_nats = torch.zeros((), dtype=torch.float64, device=device)
    counts_LE = torch.zeros(config.num_hidden_layers, max(config.num_experts, 1), dtype=torch.int64, device=device)
    for start in range(0, len(domain.windows.targets_WT), batch_size):
        batch = _batch(domain.windows, slice(start, start + batch_size), device)
        hidden_BTD, router_logits = model.hidden_states(batch.input_ids_BT, document_ids_BT=batch.document_ids_BT)
        for hidden_TD, targets_T in zip(hidden_BTD, batch.targets_BT, strict=True):
            total_nats += _nats(model, hidden_TD, targets_T).sum(dtype=torch.float64)
        scored_BT = batch.targets_BT != PADDING
        for layer, logits_BTE in enumerate(router_logits):
            _, chosen_NK = choose_experts(logits_BTE[scored_BT], config.num_experts_per_tok)
            counts_LE[layer] += torch.bincount(chosen_NK.flatten(), minlength=config.num_experts)
        advance(len(scored_BT))
    if not math.isfinite(float(total_nats)):
        raise JobFailedError(f"the log-likelihood is {float(total_nats)}; the model's weights are damaged")
    if not config.num_experts:
        counts_LE += 1
    shares_LE = counts_LE / counts_LE.sum(dim=1, keepdim=True)
    return Scores(
        bits_per_byte=float(total_nats) / math.log(2) / domain.num_bytes,
        shares_per_layer=tuple(tuple(layer) for layer in shares_LE.tolist()),
    )


@torch.inference_mode()
def token_nats(model: CausalLM, domain: Domain, *, batch_size: int) -> NDArray[np.float64]:
    """Negative log-likelihood of every position of the domain's windows [W, T]; 0 where there is nothing to predict.

    Arguments as `score`.
    """
    nats_WT = np.zeros(domain.windows.targets_WT.shape, np.float64)
    for start in range(0, len(nats_WT), batch_size):
        batch = _batch(domain.windows, slice(start, start + batch_size), model.lm_head.weight.device)
        hidden_BTD, _ = model.hidden_states(batch.input_ids_BT, document_ids_BT=batch.document_ids_BT)
        for row, (hidden_TD, targets_T) in enumerate(zip(hidden_BTD, batch.targets_BT, strict=True), start):
            scored_T = (targets_T != PADDING).cpu().numpy()
            nats_WT[row, : len(scored_T)][scored_T] = _nats(model, hidden_TD, targets_T).double().cpu().numpy()
    return nats_WT


@dataclass(frozen=True, slots=True)
class _Batch:
    input_ids_BT: Tensor
    targets_BT: Tensor
    document_ids_BT: Tensor


def _batch(windows: Windows, rows: slice, device: torch.device) -> _Batch:
    """Some rows on the device, without columns that are padding in all of them."""
    used = int(np.flatnonzero((windows.targets_WT[rows] != PADDING).any(axis=0))[-1]) + 1
    arrays = (windows.input_ids_WT, windows.targets_WT, windows.document_ids_WT)
    return _Batch(*(torch.from_numpy(array[rows, :used]).to(device) for array in arrays))


def _nats(model: CausalLM, hidden_TD: Tensor, targets_T: Tensor) -> Tensor:
    """Negative log-likelihood of one row's targets [N]. One row at a time, as logits are far larger than all else."""
    scored_T = targets_T != PADDING
    logits_NV = model.lm_head(hidden_TD[scored_T]).float()
    chosen_N = logits_NV.gather(1, targets_T[scored_T].unsqueeze(1)).squeeze(1)
    nats_N: Tensor = logits_NV.logsumexp(dim=-1) - chosen_N
    return nats_N


# ---- The job ---------------------------------------------------------------------------------------------------------


def evaluate(config: EvaluationConfig) -> dict[str, object]:
    """Score every model on every domain and write `config.output`. Returns what the job's last event says.

    Raises:
        MalformedError, NotFoundError: a model, its tokenizer or a text cannot be read, or they do not fit together.
        JobFailedError: a model's likelihoods are not numbers.
    """
    started = time.monotonic()
    job.use_cpu(threads=config.threads)
    tokenizer = _shared_tokenizer(config.models)
    domains = {
        name: prepare(
            read_domain(source, max_bytes=config.max_bytes), tokenizer, sequence_length=config.sequence_length
        )
        for name, source in config.domains.items()
    }
    total = len(config.models) * sum(len(domain.windows.targets_WT) for domain in domains.values())
    progress = _Progress(total=total)
    models = {
        name: _evaluate_model(directory, domains, tokenizer, config=config, progress=progress)
        for name, directory in config.models.items()
    }
    seconds = round(time.monotonic() - started, 3)
    texts = {
        name: {"documents": domain.num_documents, "bytes": domain.num_bytes, "tokens": domain.windows.num_tokens}
        for name, domain in domains.items()
    }
    _write(config.output, {"models": models, "domains": texts, "seconds": seconds})
    return {"task": "evaluate", "output": str(config.output), "seconds": seconds}


def _evaluate_model(
    directory: Path,
    domains: Mapping[str, Domain],
    tokenizer: Tokenizer,
    *,
    config: EvaluationConfig,
    progress: "_Progress",
) -> dict[str, object]:
    # bfloat16 is slower than float32 on most CPUs, and less exact.
    model = hf.load(directory, device=config.device, dtype=torch.float32 if config.device == "cpu" else None)
    _check_fit(model, tokenizer, sequence_length=config.sequence_length, directory=directory)
    scores = {
        name: score(model, domain, batch_size=config.batch_size, advance=progress.advance)
        for name, domain in domains.items()
    }
    return {
        "bits_per_byte": {name: result.bits_per_byte for name, result in scores.items()},
        "shares": {name: result.shares for name, result in scores.items()},
        "shares_per_layer": {name: result.shares_per_layer for name, result in scores.items()},
    }


def _shared_tokenizer(models: Mapping[str, Path]) -> Tokenizer:
    (first, directory), *others = models.items()
    expected = _tokenizer_bytes(directory)
    for name, other in others:
        if _tokenizer_bytes(other) != expected:
            raise MalformedError(f"{first!r} and {name!r} have different tokenizers; evaluate them in separate jobs")
    return Tokenizer.load(directory)


def _tokenizer_bytes(directory: Path) -> bytes:
    try:
        return (directory / TOKENIZER_FILE).read_bytes()
    except OSError as error:
        raise NotFoundError(
            f"{directory}: no {TOKENIZER_FILE} ({error.strerror}); is this a model directory?"
        ) from error


def _check_fit(model: CausalLM, tokenizer: Tokenizer, *, sequence_length: int, directory: Path) -> None:
    config = model.config
    if tokenizer.vocab_size > config.vocab_size:
        raise MalformedError(
            f"{directory}: the tokenizer has {tokenizer.vocab_size} tokens but the model {config.vocab_size}"
        )
    if sequence_length > config.max_position_embeddings:
        raise MalformedError(
            f"sequence_length is {sequence_length}; {directory} takes at most {config.max_position_embeddings}"
        )


class _Progress:
    """Counts rows and prints an event now and then, and at the end."""

    def __init__(self, *, total: int) -> None:
        self._done, self._total, self._reported = 0, total, -math.inf

    def advance(self, rows: int) -> None:
        self._done += rows
        now = time.monotonic()
        if now - self._reported >= _PROGRESS_EVERY_S or self._done == self._total:
            job.emit("progress", {"task": "evaluate", "done": self._done, "total": self._total})
            self._reported = now


def _write(output: Path, result: Mapping[str, object]) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(output.name + ".partial")
    partial.write_text(json.dumps(result, indent=2) + "\n")
    partial.replace(output)


if __name__ == "__main__":
    sys.exit(job.run(sys.argv[1:], EvaluationConfig, evaluate))
