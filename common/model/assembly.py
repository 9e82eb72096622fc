"""Assembly: experts placed side by side. Bytes are placed, never computed; opt-out is leaving an expert out.

A release is a FlexOlmo directory in shards that are cut by owner: what is shared and the public expert in one file, a
file an expert, the joined router rows in one more. So a shard's bytes depend on its own expert and slot alone, the
same inputs always give the same files, and no torch is needed.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Final

from common.errors import MalformedError
from common.files import link_or_copy
from common.model import checkpoint
from common.model.checkpoint import ByteRange, Placed, TensorEntry
from common.model.config import ModelConfig
from common.model.expert import CONFIG_NAME, EVALUATION_NAME, ROUTER_NAME, ROUTER_SHARD, expected_tensors, read_config
from common.model.partition import (
    OWNED_EXPERT,
    PROJECTIONS,
    PUBLIC_EXPERT,
    TensorSpec,
    dense_feed_forward,
    feed_forward,
    joined_router,
    router_row,
)
from common.trust.manifest import MANIFEST_NAME

SHARED_SHARD: Final = "model-shared.safetensors"
_ALONGSIDE: Final = ("generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def expert_shard(slot: int) -> str:
    """File name of the expert in `slot`."""
    return f"model-expert-{slot:04d}.safetensors"


def assemble(base: Path, experts: Sequence[Path], *, num_experts_per_tok: int, output: Path) -> None:
    """Write the release of `experts` (files, in slot order from 1) over `base` into the new directory `output`.

    Without experts it is the public model alone, as a mixture of one.

    Raises:
        MalformedError: an expert is not one of this base.
    """
    config = read_config(base)
    expected = expected_tensors(config)
    held = [checkpoint.read_header(path) for path in experts]
    for entries in held:
        checkpoint.check_tensors(entries, expected=expected)
    shards = {SHARED_SHARD: _shared(base, config)}
    for slot, entries in enumerate(held, start=1):
        shards[expert_shard(slot)] = _expert(entries, config, slot)
    shards[ROUTER_SHARD] = _router(base, held, config)
    output.mkdir()
    for name, tensors in shards.items():
        checkpoint.write(output / name, tensors)
    total = sum(checkpoint.size_bytes(placed.spec) for tensors in shards.values() for placed in tensors.values())
    checkpoint.write_index(output, shards, total_size=total)
    num_experts = len(experts) + 1
    mixture = config.with_experts(num_experts, min(num_experts_per_tok, num_experts))
    (output / CONFIG_NAME).write_bytes(mixture.format())
    for name in _ALONGSIDE:
        if (base / name).exists():
            link_or_copy(base / name, output / name)


def _shared(base: Path, config: ModelConfig) -> dict[str, Placed]:
    """Everything of the public model, its feed-forwards renamed to those of the public expert."""
    renamed = {
        dense_feed_forward(layer, projection): feed_forward(layer, PUBLIC_EXPERT, projection)
        for layer in range(config.num_hidden_layers)
        for projection in PROJECTIONS
    }
    return {renamed.get(name, name): _whole(entry) for name, entry in checkpoint.read_checkpoint(base).items()}


def _expert(entries: Mapping[str, TensorEntry], config: ModelConfig, slot: int) -> dict[str, Placed]:
    return {
        feed_forward(layer, slot, projection): _whole(entries[feed_forward(layer, OWNED_EXPERT, projection)])
        for layer in range(config.num_hidden_layers)
        for projection in PROJECTIONS
    }


def _router(base: Path, experts: Sequence[Mapping[str, TensorEntry]], config: ModelConfig) -> dict[str, Placed]:
    public = checkpoint.read_header(base / ROUTER_NAME)
    joined = {}
    for layer in range(config.num_hidden_layers):
        name = router_row(layer, PUBLIC_EXPERT)
        if name not in public or public[name].spec.shape != (config.hidden_size,):
            raise MalformedError(f"{base / ROUTER_NAME} has no row {name} of {config.hidden_size}")
        rows = [public[name], *(entries[router_row(layer, OWNED_EXPERT)] for entries in experts)]
        spec = TensorSpec(rows[0].spec.dtype, (len(rows), config.hidden_size))
        joined[joined_router(layer)] = Placed(spec, tuple(row.location for row in rows))
    return joined


def replace_rows(release: Path, trained: Path, *, slots: Collection[int], output: Path) -> None:
    """Write an assembled release into the new directory `output` with the router rows in `slots` taken from the model
    in `trained`. All its other files are the same ones; an evaluation, which is of the release alone, is left out.

    Raises:
        MalformedError: the routers of the two are not of one kind, or a row is not finite.
    """
    held, others = checkpoint.read_checkpoint(release), checkpoint.read_checkpoint(trained)
    joined = {}
    for layer in range(read_config(release).num_hidden_layers):
        name = joined_router(layer)
        if name not in others or others[name].spec != held[name].spec:
            raise MalformedError(f"{trained} has no routers like those of {release}; train its rows anew")
        if (bad := checkpoint.first_not_finite({name: others[name]})) is not None:
            raise MalformedError(f"{trained}: tensor {bad} holds NaN or infinity; train with a lower learning rate")
        rows = zip(rows_of(held[name]), rows_of(others[name]), strict=True)
        pieces = tuple(new if slot in slots else old for slot, (old, new) in enumerate(rows))
        joined[name] = Placed(held[name].spec, pieces)
    output.mkdir()
    for path in sorted(release.iterdir()):
        if path.name not in (ROUTER_SHARD, EVALUATION_NAME, MANIFEST_NAME):
            link_or_copy(path, output / path.name)
    checkpoint.write(output / ROUTER_SHARD, joined)


def rows_of(entry: TensorEntry) -> tuple[ByteRange, ...]:
    """Where each row of a joined router is, by slot."""
    place, size = entry.location, entry.location.size // entry.spec.shape[0]
    return tuple(ByteRange(place.path, place.offset + slot * size, size) for slot in range(entry.spec.shape[0]))


def _whole(entry: TensorEntry) -> Placed:
    return Placed(entry.spec, (entry.location,))
