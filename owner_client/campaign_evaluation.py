"""Evaluating a model on an owner's held-out text, for a campaign (`python -m owner_client.campaign_evaluation`).

Bits per byte of each named text, and accuracy where a file of questions is given; router shares of every layer go
beside that. What is written holds numbers alone.
"""

import json
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from common import evaluate, job, multiple_choice
from common.files import write_atomic
from common.model import hf
from common.tokenizer import Tokenizer
from owner_client.commitment import commit

_MODEL = "model"
_DIGITS = 6


class CampaignEvaluation(BaseModel, frozen=True, extra="forbid"):
    """The job's JSON file."""

    model: Path
    held_out: dict[str, Path] = Field(min_length=1)
    """Corpora by the names that figures have; their test splits are read."""
    choices: Path | None = None
    max_bytes: int | None = Field(default=None, ge=1)
    threads: int = Field(default=2, ge=1)
    key: Path
    """What the commitment to the text is blinded with."""
    output: Path


def run(config: CampaignEvaluation) -> dict[str, object]:
    """Evaluate and write; returns what the job's last event says."""
    found = _scores(config)
    figures = [
        {
            "name": name,
            "measure": "bits_per_byte",
            "value": found["models"][_MODEL]["bits_per_byte"][name],
            "documents": text["documents"],
            "size_bytes": text["bytes"],
        }
        for name, text in found["domains"].items()
    ]
    if config.choices is not None:
        figures.append(_accuracy(config, config.choices))
    shares = found["models"][_MODEL]["shares_per_layer"]
    rounded = {name: [[round(share, _DIGITS) for share in layer] for layer in rows] for name, rows in shares.items()}
    result = {
        "figures": figures,
        "held_out": _commitment(config),
        "attachment": {"shares_per_layer": rounded},
    }
    write_atomic(config.output, json.dumps(result).encode())
    return {"task": "evaluate", "output": str(config.output)}


def _scores(config: CampaignEvaluation) -> dict[str, Any]:
    output = config.output.with_name(f"{config.output.name}.scores")
    evaluate.evaluate(
        evaluate.EvaluationConfig(
            models={_MODEL: config.model},
            domains=dict(config.held_out),
            output=output,
            sequence_length=hf.read_config(config.model).max_position_embeddings,
            threads=config.threads,
            max_bytes=config.max_bytes,
        )
    )
    found: dict[str, Any] = json.loads(output.read_bytes())
    output.unlink()
    return found


def _accuracy(config: CampaignEvaluation, path: Path) -> dict[str, object]:
    model, tokenizer = hf.load(config.model), Tokenizer.load(config.model)
    length = model.config.max_position_embeddings
    found = multiple_choice.answer(
        model, multiple_choice.read_questions(path), tokenizer, sequence_length=length, batch_size=4
    )
    return {"name": "choices", "measure": "accuracy", "value": found.share, "documents": found.questions}


def _commitment(config: CampaignEvaluation) -> str:
    texts = [evaluate.read_domain(path, max_bytes=config.max_bytes) for path in config.held_out.values()]
    return commit((document.digest for text in texts for document in text), key=config.key.read_bytes())


if __name__ == "__main__":
    sys.exit(job.run(sys.argv[1:], CampaignEvaluation, run))
