"""Hugging Face directories (`config.json` and safetensors) to our module and back, and an owner's start.

`load` accepts `olmo2` and `flex_olmo`, in one file or as an index with shards; `save` writes one file. Names and shapes
must match exactly: nothing missing, nothing left over. Pickles are never read. Tokenizer files are not handled here.
"""

import json
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from common.errors import MalformedError, NotFoundError
from common.model import partition
from common.model.config import CONFIG_FILE, GENERATION_CONFIG_FILE, ModelConfig
from common.model.transformer import DTYPES, CausalLM

WEIGHTS_FILE: Final = "model.safetensors"
INDEX_FILE: Final = "model.safetensors.index.json"

_MAX_INDEX_BYTES: Final = 64 * 1024 * 1024


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
    expected = _tensor_shapes(config)
    files = _files(directory, expected)
    tensors: dict[str, Tensor] = {}
    for path, names in files.items():
        tensors |= _read(
            path, {name: expected[name] for name in names}, device=device, dtype=dtype or DTYPES[config.dtype]
        )
    return _assign(config, _split_routers(tensors))


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
    model = _assign(config, tensors)
    for router in model.routers:
        router.add_bias(partition.OWNED_EXPERT, torch.zeros_like(router.rows[partition.OWNED_EXPERT]))
    for name, parameter in model.named_parameters():
        parameter.requires_grad = partition.owner_of(name) == partition.OWNED_EXPERT
    return model


def read_config(directory: Path) -> ModelConfig:
    """The configuration in a Hugging Face directory. Raises as `load`."""
    return ModelConfig.parse(_read_bytes(directory / CONFIG_FILE))


def _assign(config: ModelConfig, tensors: dict[str, Tensor]) -> CausalLM:
    with torch.device("meta"):
        model = CausalLM(config)
    model.load_state_dict(tensors, strict=True, assign=True)
    return model


def _tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor a Hugging Face directory of this model holds, by its on-disk name."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in state_dict(CausalLM(config)).items()}


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


def _files(directory: Path, expected: dict[str, tuple[int, ...]]) -> dict[Path, list[str]]:
    """Which file holds which tensors. Raises `MalformedError` unless exactly the expected names are listed."""
    if (directory / INDEX_FILE).exists():
        places = _weight_map(directory)
    elif (directory / WEIGHTS_FILE).exists():
        places = dict.fromkeys(_names(directory / WEIGHTS_FILE), WEIGHTS_FILE)
    else:
        raise NotFoundError(f"{directory} holds neither {WEIGHTS_FILE} nor {INDEX_FILE}")
    _check_names(set(places), set(expected), where=directory)
    files: dict[Path, list[str]] = {}
    for name, file in sorted(places.items()):
        files.setdefault(directory / file, []).append(name)
    return files


def _weight_map(directory: Path) -> dict[str, str]:
    path = directory / INDEX_FILE
    try:
        index = json.loads(_read_bytes(path).decode("utf-8"))
        places = index["weight_map"]
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise MalformedError(f"{path} is not a safetensors index: {error!r}") from error
    if not isinstance(places, dict):
        raise MalformedError(f"{path}: weight_map is a {type(places).__name__}; it must be an object")
    for name, file in places.items():
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
            raise MalformedError(f"{path}: {name} is in {file!r}; it must be a .safetensors file of the same directory")
    for file in set(places.values()):
        listed = {name for name in places if places[name] == file}
        _check_names(set(_names(directory / file)), listed, where=directory / file)
    return places


def _names(path: Path) -> list[str]:
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except SafetensorError as error:
        raise MalformedError(f"{path} is not a safetensors file: {error}") from error
    except FileNotFoundError as error:
        raise NotFoundError(f"{path} is not there") from error


def _read(
    path: Path, shapes: dict[str, tuple[int, ...]], *, device: torch.device | str, dtype: torch.dtype
) -> dict[str, Tensor]:
    tensors = {}
    with safe_open(path, framework="pt") as file:
        for name, shape in shapes.items():
            tensor = file.get_tensor(name)
            if tuple(tensor.shape) != shape:
                raise MalformedError(f"{path}: {name} has shape {tuple(tensor.shape)}; {CONFIG_FILE} asks for {shape}")
            if tensor.dtype not in DTYPES.values():
                raise MalformedError(f"{path}: {name} has dtype {tensor.dtype}; only float32 and bfloat16 are read")
            tensors[name] = tensor.to(device=device, dtype=dtype)
    return tensors


def _check_names(found: set[str], expected: set[str], *, where: Path) -> None:
    if missing := sorted(expected - found):
        raise MalformedError(f"{where}: {len(missing)} tensors are missing, the first is {missing[0]}")
    if unknown := sorted(found - expected):
        raise MalformedError(f"{where}: {len(unknown)} tensors do not belong there, the first is {unknown[0]!r}")


def _read_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_INDEX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFoundError(f"{path} is not there") from error
    if len(data) > _MAX_INDEX_BYTES:
        raise MalformedError(f"{path} is longer than {_MAX_INDEX_BYTES} bytes")
    return data
