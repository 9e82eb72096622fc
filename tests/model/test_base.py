"""What may be published as a base: exactly the tensors of the model its config describes, and its routers' rows."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from common.errors import MalformedError
from common.model import hf
from common.model.config import ModelConfig
from common.model.expert import ROUTER_NAME, base_tensors, check_base
from common.model.transformer import CausalLM
from tests.federation import SIZES, write_base

Tensors = dict[str, torch.Tensor]

UP = "model.layers.0.mlp.up_proj.weight"
ROW = "model.layers.0.mlp.gate.rows.0"
DIRECTION = "model.layers.0.mlp.gate.bias_direction"


@pytest.mark.parametrize("num_key_value_heads", [1, 2])
def test_a_base_is_every_tensor_of_the_model(num_key_value_heads: int) -> None:
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3}
    config = ModelConfig(
        **sizes,
        num_attention_heads=2,
        num_key_value_heads=num_key_value_heads,
        max_position_embeddings=32,
        eos_token_id=0,
    )
    model = hf.state_dict(CausalLM(config))
    assert {name: spec.shape for name, spec in base_tensors(config).items()} == {
        name: tuple(tensor.shape) for name, tensor in model.items()
    }


def _without(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name}


def _with(name: str, tensor: torch.Tensor) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, name: tensor}


SPOILT: dict[str, tuple[str, Callable[[Tensors], Tensors], str]] = {
    "a weight missing": ("model.safetensors", _without(UP), f"{UP} is missing from the model"),
    "a weight too many": (
        "model.safetensors",
        _with("head.bias", torch.zeros(4)),
        r"head\.bias must not be in the model",
    ),
    "another shape": ("model.safetensors", _with(UP, torch.zeros(3, 3)), f"{UP} is .*needs"),
    "another type": ("model.safetensors", _with(UP, torch.zeros(24, 16).bfloat16()), f"{UP} is .*BF16.*needs"),
    "a row missing": (ROUTER_NAME, _without(ROW), f"{ROW} is missing from router"),
    "no direction": (ROUTER_NAME, _without(DIRECTION), f"{DIRECTION} is missing from router"),
    "a row too many": (ROUTER_NAME, _with("model.layers.0.mlp.gate.rows.1", torch.zeros(16)), "must not be in router"),
    "a row not finite": (ROUTER_NAME, _with(ROW, torch.full((16,), torch.inf)), "NaN or infinity"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_anything_else_is_refused(tmp_path: Path, case: str) -> None:
    base = write_base(tmp_path / "base")
    assert check_base(base) == SIZES
    file, spoil, message = SPOILT[case]
    save_file(spoil(load_file(base / file)), base / file, metadata={"format": "pt"})
    with pytest.raises(MalformedError, match=message):
        check_base(base)
