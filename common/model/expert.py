"""What an expert is, on both sides of the wire: one file of exactly these tensors, all of them finite. No torch."""

from functools import lru_cache
from pathlib import Path
from typing import Final

from common.errors import MalformedError
from common.files import read_required
from common.model import checkpoint
from common.model.config import ModelConfig
from common.model.partition import PUBLIC_EXPERT, TensorSpec, bias_direction, dense_tensors, expert_tensors, router_row

EXPERT_NAME: Final = "expert.safetensors"
"""The one file that an owner sends."""
CONFIG_NAME: Final = "config.json"
ROUTER_NAME: Final = "router.safetensors"
"""In a base: per layer the public expert's router row, and the direction along which biases act."""
EVALUATION_NAME: Final = "evaluation.json"
"""In a release: what was found, by domain. It is in the manifest, so the log's statement covers it."""
ROUTER_SHARD: Final = "model-router.safetensors"
"""In a release: every joined router, and nothing else."""
ROUTER_TRAINING_NAME: Final = "router_training.json"
"""In a release whose rows were trained: how, and on what. The log's statement names it by digest."""
_DTYPES: Final = {"float32": "F32", "bfloat16": "BF16"}


def read_config(base: Path) -> ModelConfig:
    """The model config of a base directory."""
    return _config(read_required(base / CONFIG_NAME, hint="this directory holds no model"))


@lru_cache(64)  # an audit asks for the same few of them again for every expert of every release
def _config(data: bytes) -> ModelConfig:
    return ModelConfig.parse(data)


def expected_tensors(config: ModelConfig) -> dict[str, TensorSpec]:
    """The allow-list for an expert of this base: what an owner may send and a coordinator accepts."""
    return expert_tensors(
        num_hidden_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        dtype=_DTYPES[config.dtype],
    )


def largest_size(config: ModelConfig) -> int:
    """Bytes that no expert file of this base can exceed."""
    return sum(map(checkpoint.size_bytes, expected_tensors(config).values())) + checkpoint.MAX_HEADER_BYTES


def check_expert(path: Path, *, config: ModelConfig) -> None:
    """Raise `MalformedError` unless `path` is an expert of a base with this config."""
    entries = checkpoint.read_header(path)
    checkpoint.check_tensors(entries, expected=expected_tensors(config))
    checkpoint.check_nothing_beside(path)
    bad = checkpoint.first_not_finite(entries)
    if bad is not None:
        raise MalformedError(f"tensor {bad} holds NaN or infinity; train again with a lower learning rate")


def base_tensors(config: ModelConfig) -> dict[str, TensorSpec]:
    """All tensors of a base with this config."""
    return dense_tensors(
        num_hidden_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        vocab_size=config.vocab_size,
        key_value_size=config.num_key_value_heads * config.head_dim,
        dtype=_DTYPES[config.dtype],
    )


def router_tensors(config: ModelConfig) -> dict[str, TensorSpec]:
    """All tensors of `router.safetensors`: per layer the public row and the direction that biases act along."""
    layers = range(config.num_hidden_layers)
    names = [name for layer in layers for name in (router_row(layer, PUBLIC_EXPERT), bias_direction(layer))]
    return dict.fromkeys(names, TensorSpec(_DTYPES[config.dtype], (config.hidden_size,)))


def check_base(directory: Path) -> ModelConfig:
    """The config of the base in `directory`.

    Raises:
        MalformedError: not exactly the tensors of a dense OLMo 2 model and its public router rows, or one not finite.
    """
    config = read_config(directory)
    if config.num_experts:
        raise MalformedError(
            f"{directory} is a mixture of {config.num_experts} experts; a base is a dense OLMo 2 model"
        )
    if not (directory / ROUTER_NAME).is_file():
        raise MalformedError(f"{directory} has no {ROUTER_NAME}; make a base with: concord coordinator pretrain")
    rows, weights = checkpoint.read_header(directory / ROUTER_NAME), checkpoint.read_checkpoint(directory)
    checkpoint.check_tensors(
        rows, expected=router_tensors(config), whole=ROUTER_NAME, remedy="make it with: concord coordinator pretrain"
    )
    checkpoint.check_tensors(
        weights,
        expected=base_tensors(config),
        whole=f"the model that {CONFIG_NAME} describes",
        remedy="save the model with the config it was trained with",
    )
    for tensors in (rows, weights):
        if (bad := checkpoint.first_not_finite(tensors)) is not None:
            raise MalformedError(f"{directory}: tensor {bad} holds NaN or infinity; a base must not")
    return config
