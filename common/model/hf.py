"""Hugging Face directories (`config.json` and safetensors) to our module and back, and an owner's start.

`load` accepts `olmo2` and `flex_olmo`, in one file or as an index with shards; `save` writes one file. Names and shapes
must match exactly: nothing missing, nothing left over. Pickles are never read. Tokenizer files are not handled here.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from common.errors import MalformedError, NotFoundError
from common.model import checkpoint, partition
from common.model.checkpoint import TensorEntry
from common.model.config import CONFIG_FILE, GENERATION_CONFIG_FILE, ModelConfig
from common.model.transformer import DTYPES, CausalLM

WEIGHTS_FILE: Final = "model.safetensors"

_FILE_DTYPES: Final = ("F32", "BF16")


def load(directory: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> CausalLM:
    """The model in a Hugging Face directory.

    Args:
        directory: Holds `config.json` and `model.safetensors`, or its index and shards.
        device: Where the parameters go.
        dtype: What they are converted to; by default what `config.json` says.

    Raises:
        NotFoundError: the directory or one of its files is not there.
        MalformedError: a file does not parse, or tensors do not fit the configuration.
    """
    config = read_config(directory)
    entries = checkpoint.read_checkpoint(directory)
    model = _without_values(config)
    _check(entries, expected=_tensor_shapes(model), where=directory)
    tensors = _read_tensors(entries, device=device, dtype=dtype or DTYPES[config.dtype])
    return _assign(model, _split_routers(tensors))


def save(model: CausalLM, directory: Path) -> None:
    """Write `model` as a Hugging Face directory: routers joined, their biases folded in, `config.json` last.

    The same model gives the same bytes. Raises `OSError` when it cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state_dict(model).items()}
    save_file(tensors, directory / WEIGHTS_FILE, metadata={"format": "pt"})
    (directory / GENERATION_CONFIG_FILE).write_bytes(model.config.format_generation())
    (directory / CONFIG_FILE).write_bytes(model.config.format())


def state_dict(model: CausalLM) -> dict[str, Tensor]:
    """Tensors of `model` by Hugging Face's on-disk names: routers joined, biases folded in."""
    tensors = {name: tensor for name, tensor in model.state_dict().items() if ".mlp.gate." not in name}
    for layer, router in enumerate(model.routers):
        rows = [router.effective_row(expert).detach() for expert in range(model.config.num_experts)]
        tensors[partition.joined_router(layer)] = torch.stack(rows)
    return tensors


def two_expert(public: CausalLM) -> CausalLM:
    """The model an owner trains: the public feed-forward twice, both chosen for every token, one copy trainable.

    Router rows are zero, the owner's row has a bias of 0 along a direction of 0 (`Router.bias_direction`): the caller
    sets them. Everything that is not the owner's is frozen and shares its storage with `public`.

    Raises:
        ValueError: `public` already has experts.
    """
    if public.config.num_experts:
        raise ValueError(f"the public model must be dense; it has {public.config.num_experts} experts")
    config = public.config.with_experts(2, 2)
    tensors: dict[str, Tensor] = dict(public.state_dict())
    for layer in range(config.num_hidden_layers):
        for projection in partition.PROJECTIONS:
            weight = tensors.pop(partition.dense_feed_forward(layer, projection))
            tensors[partition.feed_forward(layer, partition.PUBLIC_EXPERT, projection)] = weight
            tensors[partition.feed_forward(layer, partition.OWNED_EXPERT, projection)] = weight.clone()
        for expert in (partition.PUBLIC_EXPERT, partition.OWNED_EXPERT):
            tensors[partition.router_row(layer, expert)] = public.lm_head.weight.new_zeros(config.hidden_size)
    model = _assign(_without_values(config), tensors)
    for router in model.routers:
        router.add_bias(partition.OWNED_EXPERT, torch.zeros_like(router.rows[partition.OWNED_EXPERT]))
    for name, parameter in model.named_parameters():
        parameter.requires_grad = partition.owner_of(name) == partition.OWNED_EXPERT
    return model


def read_config(directory: Path) -> ModelConfig:
    """The configuration in a Hugging Face directory. Raises as `load`."""
    path = directory / CONFIG_FILE
    try:
        return ModelConfig.parse(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFoundError(f"{path} is not there; a model directory is needed") from error


def _without_values(config: ModelConfig) -> CausalLM:
    with torch.device("meta"):
        return CausalLM(config)


def _assign(model: CausalLM, tensors: dict[str, Tensor]) -> CausalLM:
    model.load_state_dict(tensors, strict=True, assign=True)
    return model


def _tensor_shapes(model: CausalLM) -> dict[str, tuple[int, ...]]:
    """Every tensor a Hugging Face directory of this model holds, by its on-disk name."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in state_dict(model).items()}


def _split_routers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Joined routers become rows that own their storage, so that one row can train and be sent alone."""
    split: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith(".mlp.gate.weight"):
            rows = name.removesuffix("weight") + "rows."
            split |= {f"{rows}{expert}": row.clone() for expert, row in enumerate(tensor)}
        else:
            split[name] = tensor
    return split


def _check(entries: Mapping[str, TensorEntry], *, expected: Mapping[str, tuple[int, ...]], where: Path) -> None:
    if missing := sorted(expected.keys() - entries.keys()):
        raise MalformedError(f"{where}: {len(missing)} tensors are missing, the first is {missing[0]}")
    if unknown := sorted(entries.keys() - expected.keys()):
        raise MalformedError(f"{where}: {len(unknown)} tensors do not belong there, the first is {unknown[0]!r}")
    for name, shape in expected.items():
        spec = entries[name].spec
        if spec.shape != shape:
            raise MalformedError(f"{where}: {name} has shape {spec.shape}; {CONFIG_FILE} asks for {shape}")
        if spec.dtype not in _FILE_DTYPES:
            raise MalformedError(f"{where}: {name} is {spec.dtype}; only {' and '.join(_FILE_DTYPES)} are loaded")


def _read_tensors(
    entries: Mapping[str, TensorEntry], *, device: torch.device | str, dtype: torch.dtype
) -> dict[str, Tensor]:
    tensors = {}
    for path in sorted({entry.location.path for entry in entries.values()}):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is not a mapping
                # A copy: what is mapped from a file changes, or crashes the process, when the file is overwritten.
                tensors[name] = file.get_tensor(name).to(device=device, dtype=dtype, copy=True)
    return tensors
