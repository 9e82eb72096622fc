"""Text and job configurations small enough for a test."""

import subprocess
from pathlib import Path
from random import Random
from typing import Protocol

from common.data import document, write_documents

WORDS = {
    "public": "the a old river house road people walked slowly over green hills under grey winter sky",
    "own": "lemma proof theorem let epsilon delta converge compact space therefore bounded sequence limit",
}


class StartJob(Protocol):
    """Start a job as the process it is in production."""

    def __call__(self, module: str, config: dict[str, object]) -> "subprocess.Popen[str]": ...


def write_text(folder: Path, kind: str, *, num_documents: int = 60, num_words: int = 60, seed: int = 0) -> Path:
    """A corpus of sentences made of the words of one kind."""
    random, words = Random(f"{kind} {seed}"), WORDS[kind].split()
    folder.mkdir(parents=True, exist_ok=True)
    texts = (" ".join(random.choice(words) for _ in range(num_words)) + f" {i}." for i in range(num_documents))
    write_documents(folder / "train.jsonl", [document(text) for text in texts])
    return folder


def pretrain_config(text: Path, output: Path, **changes: object) -> dict[str, object]:
    """A job small enough for a test."""
    sizes = {"vocab_size": 300, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    steps = {"steps": 30, "batch_size": 4, "sequence_length": 32, "learning_rate": 1e-2, "warmup_steps": 3}
    return {
        "public": str(text / "public"),
        "output": str(output),
        "num_attention_heads": 2,
        "router_sequences": 16,
        **sizes,
        **steps,
        **changes,
    }


def expert_config(text: Path, base: Path, output: Path, **changes: object) -> dict[str, object]:
    """An owner's job on that base."""
    places = {"base": str(base), "data": str(text / "own"), "public": str(text / "public"), "output": str(output)}
    steps = {"steps": 30, "batch_size": 4, "sequence_length": 32, "learning_rate": 1e-2, "warmup_steps": 3}
    negatives = {"negative_share": 0.3, "public_anchor": 0.5}
    return {**places, "router_sequences": 16, **steps, **negatives, **changes}
