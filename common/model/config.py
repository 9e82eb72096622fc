"""`config.json` of an OLMo 2 (`olmo2`) or FlexOlmo (`flex_olmo`) model: parse strictly, format deterministically.

Field names are Hugging Face's. `parse` accepts both spellings in use: transformers 5 (`rope_parameters`, `dtype`) and
transformers 4 (`rope_theta`, `rope_scaling`, `torch_dtype`). A field that would change what the model computes in a way
`transformer.py` does not implement is refused, and so is a field nobody here has heard of. No torch.
"""

import json
import math
from dataclasses import dataclass, replace
from typing import Final, Literal, Self, cast

from common.errors import MalformedError
from common.trust import strict_json
from common.trust.strict_json import JsonValue

Dtype = Literal["float32", "bfloat16"]

CONFIG_FILE: Final = "config.json"
GENERATION_CONFIG_FILE: Final = "generation_config.json"

_MAX_BYTES: Final = 64 * 1024
_ARCHITECTURES: Final = {"olmo2": "Olmo2ForCausalLM", "flex_olmo": "FlexOlmoForCausalLM"}
_CAPS: Final = {
    "vocab_size": 2**20,
    "hidden_size": 2**16,
    "intermediate_size": 2**18,
    "num_hidden_layers": 1000,
    "num_attention_heads": 1024,
    "num_key_value_heads": 1024,
    "max_position_embeddings": 2**24,
}
_MAX_EXPERTS: Final = 1024
_TOKENS: Final = ("eos_token_id", "bos_token_id", "pad_token_id")

_ONLY: Final[dict[str, tuple[object, ...]]] = {
    "attention_bias": (False,),
    "attention_dropout": (0, 0.0),
    "clip_qkv": (None,),
    "hidden_act": ("silu",),
    "norm_topk_prob": (False,),
    "rope_scaling": (None,),
    "tie_word_embeddings": (False,),
}
"""Fields with one meaning here: any other value asks for a computation we do not implement."""

_IGNORED: Final = frozenset(
    {
        "_name_or_path",
        "architectures",
        "initializer_range",
        "output_router_logits",
        "router_aux_loss_coef",
        "transformers_version",
        "use_cache",
    }
)
"""Fields that change nothing about the logits."""

_OURS: Final = frozenset(
    {
        *_CAPS,
        *_TOKENS,
        "dtype",
        "head_dim",
        "model_type",
        "num_experts",
        "num_experts_per_tok",
        "rms_norm_eps",
        "rope_parameters",
        "rope_theta",
        "torch_dtype",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """What a model computes. `num_experts == 0` is dense OLMo 2; otherwise FlexOlmo.

    Raises:
        ValueError: a value is out of range or two values do not fit together; names the field and the value.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    max_position_embeddings: int
    rope_theta: float = 500000.0
    rms_norm_eps: float = 1e-6
    num_experts: int = 0
    num_experts_per_tok: int = 0
    eos_token_id: int | None = None
    bos_token_id: int | None = None
    pad_token_id: int | None = None
    dtype: Dtype = "float32"

    def __post_init__(self) -> None:
        for name, cap in _CAPS.items():
            _check_integer(name, getattr(self, name), low=1, high=cap)
        _check_integer("num_experts", self.num_experts, low=0, high=_MAX_EXPERTS)
        least = min(1, self.num_experts)
        _check_integer("num_experts_per_tok", self.num_experts_per_tok, low=least, high=self.num_experts)
        _check_number("rope_theta", self.rope_theta, low=1.0, high=1e12)
        _check_number("rms_norm_eps", self.rms_norm_eps, low=0.0, high=1.0)
        for name in _TOKENS:
            if getattr(self, name) is not None:
                _check_integer(name, getattr(self, name), low=0, high=self.vocab_size - 1)
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype is {self.dtype!r}; it must be 'float32' or 'bfloat16'")
        _check_heads(self)

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def model_type(self) -> str:
        """Hugging Face's `model_type`."""
        return "flex_olmo" if self.num_experts else "olmo2"

    def with_experts(self, num_experts: int, num_experts_per_tok: int) -> Self:
        """The same model with that many experts a layer, of which each token uses `num_experts_per_tok`."""
        return replace(self, num_experts=num_experts, num_experts_per_tok=num_experts_per_tok)

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """The model that a `config.json` describes.

        Raises:
            MalformedError: it is not such a file, or describes a model that is not implemented here; the message names
                the field and its value.
        """
        fields = _json_object(data)
        try:
            return cls._from_fields(fields)
        except ValueError as error:
            raise MalformedError(f"{CONFIG_FILE}: {error}") from error

    def format(self) -> bytes:
        """The `config.json` that transformers loads as `Olmo2ForCausalLM` or `FlexOlmoForCausalLM`."""
        fields: dict[str, object] = {name: getattr(self, name) for name in (*_CAPS, *_TOKENS, "dtype", "rms_norm_eps")}
        fields |= {
            "architectures": [_ARCHITECTURES[self.model_type]],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "hidden_act": "silu",
            "initializer_range": 0.02,
            "model_type": self.model_type,
            "rope_parameters": {"rope_theta": self.rope_theta, "rope_type": "default"},
            "tie_word_embeddings": False,
            "use_cache": True,
        }
        if self.num_experts:
            fields |= {
                "norm_topk_prob": False,
                "num_experts": self.num_experts,
                "num_experts_per_tok": self.num_experts_per_tok,
                "output_router_logits": False,
            }
        return _to_bytes(fields)

    def format_generation(self) -> bytes:
        """The `generation_config.json` beside it: the special tokens and nothing that chooses a way of sampling."""
        fields: dict[str, object] = {name: getattr(self, name) for name in _TOKENS if getattr(self, name) is not None}
        return _to_bytes(fields | {"_from_model_config": True})

    @classmethod
    def _from_fields(cls, fields: dict[str, JsonValue]) -> Self:
        _check_implemented(fields)
        moe = _choice(fields, "model_type", tuple(_ARCHITECTURES)) == "flex_olmo"
        if moe and _integer(fields, "num_experts") < 1:
            raise ValueError(f"num_experts is {fields['num_experts']!r}; a flex_olmo model has at least one expert")
        sizes = {name: _integer(fields, name) for name in _CAPS if name != "num_key_value_heads"}
        heads = sizes["num_attention_heads"]
        config = cls(
            **sizes,
            num_key_value_heads=heads
            if fields.get("num_key_value_heads") is None
            else _integer(fields, "num_key_value_heads"),
            rope_theta=_rope_theta(fields),
            rms_norm_eps=_number(fields, "rms_norm_eps"),
            num_experts=_integer(fields, "num_experts") if moe else 0,
            num_experts_per_tok=_integer(fields, "num_experts_per_tok") if moe else 0,
            dtype=_dtype(fields),
            eos_token_id=_token(fields, "eos_token_id"),
            bos_token_id=_token(fields, "bos_token_id"),
            pad_token_id=_token(fields, "pad_token_id"),
        )
        if fields.get("head_dim") not in (None, config.head_dim):
            raise ValueError(
                f"head_dim is {fields['head_dim']!r}; only hidden_size / num_attention_heads is implemented"
            )
        return config


def _to_bytes(fields: dict[str, object]) -> bytes:
    return (json.dumps(fields, indent=2, sort_keys=True) + "\n").encode()


def _json_object(data: bytes) -> dict[str, JsonValue]:
    if len(data) > _MAX_BYTES:
        raise MalformedError(f"{CONFIG_FILE} has {len(data)} bytes; at most {_MAX_BYTES} are read")
    return strict_json.load_object(data, what=CONFIG_FILE)


def _check_implemented(fields: dict[str, JsonValue]) -> None:
    for name, value in fields.items():
        if name in _ONLY:
            if not any(type(value) is type(only) and value == only for only in _ONLY[name]):
                raise ValueError(f"{name} is {value!r}; only {_ONLY[name][-1]!r} is implemented")
        elif name not in _OURS and name not in _IGNORED:
            raise ValueError(f"{name} is {value!r}; this field is not known, so what it asks for cannot be honoured")


def _check_integer(name: str, value: object, *, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{name} is {value!r}; it must be a whole number from {low} to {high}")


def _check_number(name: str, value: object, *, low: float, high: float) -> None:
    if type(value) is not float or not math.isfinite(value) or not low < value <= high:
        raise ValueError(f"{name} is {value!r}; it must be a number above {low} and at most {high}")


def _check_heads(config: ModelConfig) -> None:
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    if config.hidden_size % (2 * heads):
        raise ValueError(
            f"hidden_size is {config.hidden_size}; it must be a multiple of twice num_attention_heads ({heads}), "
            "for rotary positions turn pairs of coordinates"
        )
    if heads % kv_heads:
        raise ValueError(f"num_key_value_heads is {kv_heads}; it must divide num_attention_heads ({heads})")


def _present(fields: dict[str, JsonValue], name: str) -> object:
    if name not in fields:
        raise ValueError(f"{name} is missing")
    return fields[name]


def _integer(fields: dict[str, JsonValue], name: str) -> int:
    value = _present(fields, name)
    if type(value) is not int:
        raise ValueError(f"{name} is {value!r}; it must be a whole number")
    return value


def _token(fields: dict[str, JsonValue], name: str) -> int | None:
    return None if fields.get(name) is None else _integer(fields, name)


def _number(fields: dict[str, JsonValue], name: str) -> float:
    value = _present(fields, name)
    if type(value) is int and abs(value) < 2**53:
        return float(value)
    if type(value) is not float:
        raise ValueError(f"{name} is {value!r}; it must be a number")
    return value


def _choice(fields: dict[str, JsonValue], name: str, allowed: tuple[str, ...]) -> str:
    value = _present(fields, name)
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")
    return value


def _dtype(fields: dict[str, JsonValue]) -> Dtype:
    names = [name for name in ("dtype", "torch_dtype") if name in fields]
    if len({str(fields[name]) for name in names}) > 1:
        raise ValueError(f"dtype is {fields['dtype']!r} but torch_dtype is {fields['torch_dtype']!r}")
    return cast(Dtype, _choice(fields, names[0] if names else "dtype", ("float32", "bfloat16")))


def _rope_theta(fields: dict[str, JsonValue]) -> float:
    parameters = fields.get("rope_parameters")
    if parameters is None:
        return _number(fields, "rope_theta")
    if not isinstance(parameters, dict) or not parameters.keys() <= {"rope_theta", "rope_type"}:
        raise ValueError(f"rope_parameters is {parameters!r}; only rope_theta and rope_type are implemented")
    if parameters.get("rope_type", "default") != "default":
        raise ValueError(f"rope_type is {parameters['rope_type']!r}; only 'default', without scaling, is implemented")
    theta = _number(parameters, "rope_theta")
    if "rope_theta" in fields and _number(fields, "rope_theta") != theta:
        raise ValueError(f"rope_theta is {fields['rope_theta']!r} but rope_parameters says {theta!r}")
    return theta
