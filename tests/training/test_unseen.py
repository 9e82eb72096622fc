"""Public text that the public model has not seen: left out of pretraining, and all that owners' experts see."""

import json
from pathlib import Path

import pytest
from small_jobs import expert_config, pretrain_config

from common.data import read_split, set_unseen_aside
from common.errors import MalformedError
from common.job import StopSignal
from common.tokenizer import Tokenizer
from coordinator import pretrain
from owner_client import train


def _tokens(base: Path, text: Path, *, share: float) -> tuple[int, int]:
    """Tokens of the unseen and of the seen public documents, each with its end."""
    tokens = Tokenizer.load(base)
    parts = set_unseen_aside(read_split(text / "public", "train"), share=share)
    unseen, seen = (sum(len(tokens.encode(each.text)) + 1 for each in part) for part in parts)
    return unseen, seen


def test_what_one_leaves_out_the_other_reads(text: Path, tmp_path: Path) -> None:
    config = pretrain_config(text, tmp_path / "base", unseen_share=0.5, steps=2, topic_weight=0.0)
    base = tmp_path / "base"
    made = pretrain.run(pretrain.PretrainJob.model_validate(config), StopSignal())
    unseen, seen = _tokens(base, text, share=0.5)
    assert made["public_tokens"] == seen

    def public_tokens(name: str, **changes: object) -> object:
        job = train.ExpertJob.model_validate(expert_config(text, base, tmp_path / name, steps=2, **changes))
        return train.run(job, StopSignal())["public_tokens"]

    assert public_tokens("by-the-base") == unseen
    assert public_tokens("all", unseen_share=0.0) == unseen + seen
    with pytest.raises(MalformedError, match=r"none of \d+ documents is unseen at share 1e-06"):
        public_tokens("none", unseen_share=1e-6)
    record = json.loads((base / "training.json").read_text())
    record["config"]["unseen_share"] = 2
    (base / "training.json").write_text(json.dumps(record))
    with pytest.raises(MalformedError, match=r"an unseen share of 2\.0 is none"):
        public_tokens("odd")
