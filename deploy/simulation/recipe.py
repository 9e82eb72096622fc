"""The sizes of a simulation: everything is as it is in earnest but for its size."""

from typing import Final

PUBLIC: Final = "public"
OWN_DOCUMENTS: Final = 60
PUBLIC_DOCUMENTS: Final = 120
EVALUATED_BYTES: Final = 4000

PRETRAIN: Final[dict[str, int | float]] = {
    "vocab_size": 300,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "steps": 20,
    "batch_size": 4,
    "sequence_length": 32,
    "learning_rate": 1e-2,
    "warmup_steps": 3,
    "router_sequences": 16,
    "threads": 1,
}
"""Options of `coordinator/pretrain.py`'s job."""

EXPERT: Final[dict[str, int | float]] = {
    "steps": 3,
    "batch_size": 2,
    "sequence_length": 32,
    "learning_rate": 1e-2,
    "warmup_steps": 1,
    "router_sequences": 8,
    "threads": 1,
}
"""Options of `owner_client/train.py`'s job."""
