"""The demo's sizes: what trains in about a minute on two slow cores and still shows what the product promises.

Chosen on the default text for seeds 0, 1 and 2, held-out text included.
"""

from typing import Final

PRETRAIN: Final[dict[str, int | float]] = {
    "vocab_size": 2048,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "steps": 480,
    "batch_size": 8,
    "sequence_length": 64,
    "learning_rate": 6e-3,
    "final_learning_rate_share": 0.05,
}
"""Options of `coordinator/pretrain.py`'s job."""

EXPERT: Final[dict[str, int | float]] = {
    "steps": 335,
    "batch_size": 16,
    "sequence_length": 64,
    "learning_rate": 1.2e-2,
    "negative_share": 0.2,
    "public_anchor": 3.5,
    "router_prior": 0.05,
    "router_sequences": 1024,
}
"""Options of `owner_client/train.py`'s job."""

EVALUATED_BYTES: Final = 50_000
"""Held-out text of each domain that models are evaluated on, at most; whole documents, chosen by their hash."""
