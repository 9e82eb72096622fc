"""Which party a parameter belongs to, by its name: the only place that knows.

Freezing, egress, intake, assembly and opt-out all ask `owner_of`. Names are Hugging Face's on-disk names for
`flex_olmo`, with one exception: while training, and in what an owner submits, the router is one row per expert
(`mlp.gate.rows.<i>`), joined into `mlp.gate.weight` when a release is assembled. No torch here.
"""

import re
from dataclasses import dataclass
from typing import Final, Literal

PUBLIC_EXPERT: Final = 0
OWNED_EXPERT: Final = 1
"""The slot of the owner's own expert while it trains beside the public one, and in what it submits."""

Part = int | Literal["shared", "router"]

_LAYER = r"model\.layers\.(?P<layer>0|[1-9][0-9]{0,3})\."
_INDEX = r"(?P<expert>0|[1-9][0-9]{0,3})"
_EXPERT = re.compile(_LAYER + r"mlp\.experts\." + _INDEX + r"\.(?:gate|up|down)_proj\.weight")
_ROW = re.compile(_LAYER + r"mlp\.gate\.(?:rows|biases)\." + _INDEX)
_JOINED_ROUTER = re.compile(_LAYER + r"mlp\.gate\.weight")
_SHARED = re.compile(
    r"model\.embed_tokens\.weight|model\.norm\.weight|lm_head\.weight|"
    + _LAYER
    + r"(?:self_attn\.(?:[qkvo]_proj|[qk]_norm)|post_attention_layernorm|post_feedforward_layernorm)\.weight"
)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a tensor must look like: `dtype` in safetensors' spelling (`F32`, `BF16`), `shape` in elements."""

    dtype: str
    shape: tuple[int, ...]


def owner_of(name: str) -> Part:
    """The expert index a parameter belongs to, `"shared"` for the frozen rest, `"router"` for joined router rows.

    Raises:
        ValueError: no parameter of this model has that name.
    """
    if match := _EXPERT.fullmatch(name) or _ROW.fullmatch(name):
        return int(match["expert"])
    if _JOINED_ROUTER.fullmatch(name):
        return "router"
    if _SHARED.fullmatch(name):
        return "shared"
    raise ValueError(f"{name!r} is not a parameter of an OLMo 2 or FlexOlmo model")


def router_row(layer: int, expert: int) -> str:
    """Name of the router row of `expert` at `layer`: a vector of [hidden_size]."""
    return f"model.layers.{layer}.mlp.gate.rows.{expert}"


def bias_direction(layer: int) -> str:
    """Name, in a base's `router.safetensors`, of the direction [hidden_size] that biases act along at `layer`."""
    return f"model.layers.{layer}.mlp.gate.bias_direction"


def joined_router(layer: int) -> str:
    """Name of the joined router at `layer`: [num_experts, hidden_size]."""
    return f"model.layers.{layer}.mlp.gate.weight"


def feed_forward(layer: int, expert: int, projection: str) -> str:
    """Name of one projection (`gate_proj`, `up_proj`, `down_proj`) of one expert."""
    return f"model.layers.{layer}.mlp.experts.{expert}.{projection}.weight"


def dense_feed_forward(layer: int, projection: str) -> str:
    """Name of the same projection in the public OLMo 2 model, which has one feed-forward a layer."""
    return f"model.layers.{layer}.mlp.{projection}.weight"


PROJECTIONS: Final = ("gate_proj", "up_proj", "down_proj")


def expert_tensors(
    *, num_hidden_layers: int, hidden_size: int, intermediate_size: int, dtype: str, expert: int = OWNED_EXPERT
) -> dict[str, TensorSpec]:
    """Everything an owner may send and a coordinator may accept for one expert: three projections and a row a layer."""
    wide, narrow = (intermediate_size, hidden_size), (hidden_size, intermediate_size)
    tensors: dict[str, TensorSpec] = {}
    for layer in range(num_hidden_layers):
        for projection in PROJECTIONS:
            shape = narrow if projection == "down_proj" else wide
            tensors[feed_forward(layer, expert, projection)] = TensorSpec(dtype, shape)
        tensors[router_row(layer, expert)] = TensorSpec(dtype, (hidden_size,))
    return tensors


def dense_tensors(
    *,
    num_hidden_layers: int,
    hidden_size: int,
    intermediate_size: int,
    vocab_size: int,
    key_value_size: int,
    dtype: str,
) -> dict[str, TensorSpec]:
    """Every tensor of a public OLMo 2 model; `key_value_size` is num_key_value_heads times the size of a head."""
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocab_size, hidden_size),
        "model.norm.weight": (hidden_size,),
        "lm_head.weight": (vocab_size, hidden_size),
    }
    for layer in range(num_hidden_layers):
        attention = f"model.layers.{layer}.self_attn"
        shapes |= {f"{attention}.{name}_proj.weight": (hidden_size, hidden_size) for name in "qo"}
        shapes |= {f"{attention}.{name}_proj.weight": (key_value_size, hidden_size) for name in "kv"}
        shapes |= {f"{attention}.q_norm.weight": (hidden_size,), f"{attention}.k_norm.weight": (key_value_size,)}
        norms = (f"model.layers.{layer}.post_{part}_layernorm.weight" for part in ("attention", "feedforward"))
        shapes |= dict.fromkeys(norms, (hidden_size,))
        wide, narrow = (intermediate_size, hidden_size), (hidden_size, intermediate_size)
        shapes |= {dense_feed_forward(layer, p): narrow if p == "down_proj" else wide for p in PROJECTIONS}
    return {name: TensorSpec(dtype, shape) for name, shape in shapes.items()}
