"""Does a model know an owner's text by heart? `python -m owner_client.extraction JOB.json` counts how often it goes on
word for word, beside a control of public text that it cannot have got from this owner.

A model that is given the first tokens of a document goes on greedily with the document's own exactly where each of the
next tokens is the likeliest one after those before it, so one pass over the document says it, without generating. The
product of the tokens' probabilities is how likely one sample is the document's; ten samples, as in the paper (arXiv
2507.07024), find it with probability 1 - (1 - p)^10.

Shapes: B documents, T tokens, V vocab_size.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from common import data, job
from common.data import Document
from common.errors import MalformedError
from common.files import write_atomic
from common.model import hf
from common.model.transformer import CausalLM
from common.tokenizer import Tokenizer
from owner_client.commitment import commit

_SAMPLES: Final = 10
_BATCH: Final = 8


class ExtractionJob(BaseModel, frozen=True, extra="forbid"):
    """The job's JSON file."""

    model: Path
    data: Path
    """The owner's corpus; documents of its train split are tried."""
    public: Path
    """Public text; documents of its test split are the control."""
    prefix_tokens: int = Field(ge=1)
    continuation_tokens: int = Field(ge=1)
    documents: int = Field(ge=1)
    threads: int = Field(default=2, ge=1)
    key: Path
    output: Path


@dataclass(frozen=True, slots=True)
class Rates:
    """How often a model goes on word for word: greedily, and in one of ten samples. Over so many documents."""

    greedy: float
    sampled: float
    documents: int


def run(config: ExtractionJob) -> dict[str, object]:
    """Try and write; returns what the job's last event says.

    Raises:
        MalformedError: a text cannot be read, or no document of it is long enough.
    """
    job.use_cpu(threads=config.threads)
    model, tokenizer = hf.load(config.model, dtype=torch.float32), Tokenizer.load(config.model)
    length = config.prefix_tokens + config.continuation_tokens
    if length > model.config.max_position_embeddings:
        raise MalformedError(f"{length} tokens are asked for; the model takes {model.config.max_position_embeddings}")
    own = data.read_split(config.data, "train")
    figures = []
    for name, documents in (("own", own), ("control", data.read_split(config.public, "test"))):
        streams = _streams(documents, tokenizer, length=length, count=config.documents)
        rates = extraction_rates(model, streams, prefix_tokens=config.prefix_tokens)
        for measure, value in (("greedy_rate", rates.greedy), ("sampled_rate", rates.sampled)):
            figures.append({"name": name, "measure": measure, "value": value, "documents": rates.documents})
    held_out = commit((document.digest for document in own), key=config.key.read_bytes())
    write_atomic(config.output, json.dumps({"figures": figures, "held_out": held_out}).encode())
    return {"task": "extraction", "output": str(config.output)}


def _streams(documents: Sequence[Document], tokenizer: Tokenizer, *, length: int, count: int) -> Tensor:
    """The first tokens of documents that are long enough, chosen by the hash of their text: [B, 1 + length]."""
    ordered = sorted(documents, key=lambda document: document.digest)
    tokens = tokenizer.encode_all([document.text for document in ordered])
    long_enough = [[tokenizer.eos_token_id, *each[:length]] for each in tokens if len(each) >= length][:count]
    if not long_enough:
        raise MalformedError(f"no document has {length} tokens; ask for fewer")
    return torch.tensor(long_enough, dtype=torch.int64)


@torch.inference_mode()
def extraction_rates(model: CausalLM, streams_BT: Tensor, *, prefix_tokens: int) -> Rates:
    """How often a model goes on word for word after so many tokens of each stream, which begins with end-of-text."""
    greedy, sampled = [], []
    for batch_BT in torch.split(streams_BT, _BATCH):
        logits_BTV = model(batch_BT[:, :-1]).logits_BTV.float()[:, prefix_tokens:]
        targets_BT = batch_BT[:, 1 + prefix_tokens :]
        greedy += (logits_BTV.argmax(dim=-1) == targets_BT).all(dim=1).tolist()
        nats_B = torch.nn.functional.cross_entropy(logits_BTV.transpose(1, 2), targets_BT, reduction="none").sum(dim=1)
        sampled += (1 - (1 - (-nats_B.double()).exp()) ** _SAMPLES).tolist()
    return Rates(sum(greedy) / len(greedy), sum(sampled) / len(sampled), len(greedy))


if __name__ == "__main__":
    sys.exit(job.run(sys.argv[1:], ExtractionJob, run))
