"""What `benchmarks.method` is run with: which owners, how large everything is, and what is left out in turn."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from benchmarks.consortium import PUBLIC, Sizes
from common.config import describe
from common.errors import MalformedError

SETS: Final = {
    4: ("math", "educational", "code"),
    8: ("math", "educational", "code", "news", "creative", "academic", "legal"),
}
"""Owners besides the public set."""

PRESETS: Final = {
    "smoke": Sizes(
        hidden_size=64, intermediate_size=192, num_hidden_layers=2, num_attention_heads=2, vocab_size=512,
        sequence_length=64, batch_size=8, pretrain_steps=60, pretrain_learning_rate=6e-3, expert_steps=30,
        expert_learning_rate=8e-3, dense_learning_rate=3e-3, tuning_steps=10, router_steps=10,
        router_learning_rate=1e-3,
        evaluated_bytes=5_000, seeds=(0,),
        num_proxies=4, split_bytes=100_000, min_accuracy=0.5, ablations=("not coordinated, negatives",),
    ),
    "cpu": Sizes(
        hidden_size=128, intermediate_size=1024, num_hidden_layers=2, num_attention_heads=4, vocab_size=1024,
        sequence_length=1536, batch_size=2, short_sequence_length=192, pretrain_steps=2000, long_steps=450,
        context_length=3072, pretrain_learning_rate=5e-3, expert_steps=300, expert_learning_rate=4e-3,
        dense_learning_rate=2e-3, tuning_steps=150, router_steps=150, router_learning_rate=1e-2,
        router_mixed_share=0.7, router_hold_public=0.5, router_start="logistic", router_sequences=256,
        patchwork_share=0.6, rope_theta=100.0,
        evaluated_bytes=380_000, seeds=(0, 1), top_k=3,
        coordinated=False, negative_share=0.0, public_anchor=0.0, router_prior=0.55,
        ablations=(
            "coordinated", "coordinated, no bias", "coordinated, rows: mean hidden states", "coordinated, rows: random",
            "coordinated, rows trained", "coordinated, no public anchor",
            "coordinated, no negatives, rows as the paper's", "not coordinated, negatives",
        ),
    ),
    "gpu": Sizes(
        hidden_size=768, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=12, vocab_size=16384,
        sequence_length=512, batch_size=64, pretrain_steps=1200, pretrain_learning_rate=1e-3, expert_steps=300,
        expert_learning_rate=6e-4, dense_learning_rate=3e-4, tuning_steps=60, router_steps=60,
        router_learning_rate=3e-3,
        evaluated_bytes=380_000, seeds=(0,),
        device="cuda", precision="bfloat16",
    ),
}  # fmt: skip

COORDINATED: Final[Mapping[str, Any]] = {
    "coordinated": True,
    "negative_share": 0.125,
    "public_anchor": 2.0,
    "router_prior": 0.4,
}
"""The paper's training to coordinate, as the product does it. With three owners it costs each more than it saves; with
seven it saves more (see the results)."""

MANY: Final = 4
"""From so many owners on, experts are trained to coordinate, and what tells owners apart decides: presets change."""

PRESETS_OF_MANY: Final[Mapping[str, Mapping[str, Any]]] = {
    "smoke": COORDINATED,
    "cpu": {
        **COORDINATED,
        "hidden_size": 192, "intermediate_size": 1536, "num_attention_heads": 6, "top_k": 4,
        "patchwork_share": 0.0, "rope_theta": 10_000.0, "router_mixed_share": 0.0, "router_learning_rate": 3e-3,
        "router_hold_public": 4.0, "topic_word_evenness": 0.5, "topic_oversampling": 4, "experts_choose": True,
        "min_accuracy": 0.8, "held_alike": False,
    },
    "gpu": COORDINATED,
}  # fmt: skip

LEARNED_ROWS: Final[Mapping[str, Any]] = {"router_learning_rate": 1e-3, "router_z_loss": 1e-3, "held_out_bytes": 0}
"""Rows that are trained, as the paper's: with a loss on the router's logits, and with a bias that is trained alone."""

ABLATIONS: Final[Mapping[str, Mapping[str, Any]]] = {
    "coordinated": COORDINATED,
    "coordinated, no bias": {**COORDINATED, "bias": False},
    "coordinated, bias as trained": {**COORDINATED, "held_out_bytes": 0},
    "coordinated, rows: mean hidden states": {**COORDINATED, "router_start": "mean", **LEARNED_ROWS},
    "coordinated, rows: random": {**COORDINATED, "router_start": "random", **LEARNED_ROWS},
    "coordinated, rows trained": {**COORDINATED, **LEARNED_ROWS},
    "coordinated, no public anchor": {**COORDINATED, "public_anchor": 0.0},
    "coordinated, no negatives, rows as the paper's": {
        **COORDINATED,
        "negative_share": 0.0,
        "public_anchor": 0.0,
        "router_start": "mean",
        **LEARNED_ROWS,
    },
    "coordinated, negatives that the public model has seen": {**COORDINATED, "public": PUBLIC},
    "not coordinated, negatives": {**COORDINATED, "coordinated": False, "public_anchor": 0.0},
}


def changed(sizes: Sizes, changes: Sequence[str]) -> Sizes:
    """Those sizes, but for some, each `name=value`.

    Raises:
        MalformedError: no such size, or no such value of it.
    """
    given = {name: value for name, _, value in (change.partition("=") for change in changes)}
    if unknown := given.keys() - vars(sizes).keys():
        raise MalformedError(f"no size is called {min(unknown)!r}; there are {', '.join(vars(sizes))}")
    try:
        result = TypeAdapter(Sizes).validate_python({**vars(sizes), **given})
    except ValidationError as error:
        raise MalformedError(describe(error)) from error
    for name in given:
        value = vars(result)[name]
        if isinstance(value, (int, float)) and not 0 <= value < math.inf:
            raise MalformedError(f"{name} is {value}; give a number that is finite and not below 0")
    return result
