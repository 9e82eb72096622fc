import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, GenerationConfig

from common.errors import MalformedError
from common.model.config import ModelConfig

SMALL = ModelConfig(
    vocab_size=512,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    eos_token_id=0,
)
MOE = SMALL.with_experts(4, 2)


def changed(config: ModelConfig = MOE, /, **changes: object) -> bytes:
    """`config.json` of `config` with some fields changed; `...` removes one."""
    fields = json.loads(config.format()) | changes
    return json.dumps({name: value for name, value in fields.items() if value is not ...}).encode()


@st.composite
def configs(draw: st.DrawFn) -> ModelConfig:
    kv_heads, groups = draw(st.integers(1, 8)), draw(st.integers(1, 8))
    heads, num_experts = kv_heads * groups, draw(st.integers(0, 64))
    vocab_size = draw(st.integers(1, 10**6))
    token = st.none() | st.integers(0, vocab_size - 1)
    return ModelConfig(
        vocab_size=vocab_size,
        hidden_size=heads * 2 * draw(st.integers(1, 64)),
        intermediate_size=draw(st.integers(1, 10**5)),
        num_hidden_layers=draw(st.integers(1, 1000)),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=draw(st.integers(1, 10**6)),
        rope_theta=draw(st.floats(1.5, 1e9)),
        rms_norm_eps=draw(st.floats(1e-12, 1e-3)),
        num_experts=num_experts,
        num_experts_per_tok=draw(st.integers(1, num_experts)) if num_experts else 0,
        eos_token_id=draw(token),
        bos_token_id=draw(token),
        pad_token_id=draw(token),
        dtype=draw(st.sampled_from(["float32", "bfloat16"])),
    )


@given(configs())
def test_parse_is_the_inverse_of_format(config: ModelConfig) -> None:
    assert ModelConfig.parse(config.format()) == config
    assert ModelConfig.parse(config.format()).format() == config.format()


@given(
    st.binary(max_size=200)
    | st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists).map(
        lambda value: json.dumps({"model_type": "olmo2", "vocab_size": value}).encode()
    )
)
def test_bytes_that_are_no_configuration_are_refused(data: bytes) -> None:
    with pytest.raises(MalformedError):
        ModelConfig.parse(data)


@pytest.mark.parametrize(("config", "model_type"), [(SMALL, "olmo2"), (MOE, "flex_olmo")])
def test_transformers_reads_what_format_writes(config: ModelConfig, model_type: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(config.format())
    (tmp_path / "generation_config.json").write_bytes(config.format_generation())
    theirs = AutoConfig.from_pretrained(tmp_path)
    assert theirs.model_type == model_type
    assert theirs.rope_parameters == {"rope_theta": 500000.0, "rope_type": "default"}
    for name in ("vocab_size", "hidden_size", "num_key_value_heads", "rms_norm_eps", "eos_token_id", "pad_token_id"):
        assert getattr(theirs, name) == getattr(config, name)
    assert GenerationConfig.from_pretrained(tmp_path).eos_token_id == 0
    theirs.save_pretrained(tmp_path)
    assert ModelConfig.parse((tmp_path / "config.json").read_bytes()) == config


def test_the_spelling_of_transformers_4_is_read() -> None:
    old = changed(rope_parameters=..., rope_theta=500000, rope_scaling=None, dtype=..., torch_dtype="float32")
    assert ModelConfig.parse(old) == MOE


def test_key_value_heads_default_to_all_heads() -> None:
    assert ModelConfig.parse(changed(num_key_value_heads=...)).num_key_value_heads == MOE.num_attention_heads


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "model_type is 'llama'"),
        ({"model_type": ["olmo2"]}, r"model_type is \['olmo2'\]"),
        ({"model_type": ...}, "model_type is missing"),
        ({"hidden_size": ...}, "hidden_size is missing"),
        ({"hidden_size": "64"}, "hidden_size is '64'"),
        ({"hidden_size": 64.0}, r"hidden_size is 64\.0"),
        ({"hidden_size": True}, "hidden_size is True"),
        ({"hidden_size": 0}, "hidden_size is 0"),
        ({"hidden_size": 2**17}, "hidden_size is 131072"),
        ({"hidden_size": 60}, "hidden_size is 60; it must be a multiple"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers is 1000000"),
        ({"num_key_value_heads": 3}, "num_key_value_heads is 3; it must divide"),
        ({"head_dim": 32}, "head_dim is 32"),
        ({"num_experts": 0}, "num_experts is 0"),
        ({"num_experts": 5000}, "num_experts is 5000"),
        ({"num_experts_per_tok": 5}, "num_experts_per_tok is 5"),
        ({"num_experts_per_tok": 0}, "num_experts_per_tok is 0"),
        ({"eos_token_id": 512}, "eos_token_id is 512"),
        ({"eos_token_id": [0, 1]}, r"eos_token_id is \[0, 1\]"),
        ({"rms_norm_eps": ...}, "rms_norm_eps is missing"),
        ({"rms_norm_eps": 0.0}, r"rms_norm_eps is 0\.0"),
        ({"dtype": "float16"}, "dtype is 'float16'"),
        ({"dtype": ...}, "dtype is missing"),
        ({"torch_dtype": "bfloat16"}, "torch_dtype is 'bfloat16'"),
        ({"rope_parameters": ...}, "rope_theta is missing"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_type is 'yarn'"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "factor": 2}}, "rope_parameters is"),
        ({"rope_parameters": "default"}, "rope_parameters is 'default'"),
        ({"rope_parameters": {"rope_theta": "1e4"}}, "rope_theta is '1e4'"),
        ({"rope_theta": 1e4}, r"rope_theta is 10000\.0 but"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling is"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"attention_bias": 0}, "attention_bias is 0"),
        ({"attention_dropout": 0.1}, r"attention_dropout is 0\.1"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is True"),
        ({"clip_qkv": 8.0}, r"clip_qkv is 8\.0"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"norm_topk_prob": True}, "norm_topk_prob is True"),
        ({"sliding_window": 128}, "sliding_window is 128"),
        ({"quantization_config": {}}, "quantization_config is"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(changes: dict[str, object], message: str) -> None:
    with pytest.raises(MalformedError, match=message):
        ModelConfig.parse(changed(**changes))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"[]", "an object is wanted"),
        (b"{", "config.json: "),
        (b"\xff{}", "config.json: "),
        (b'{"vocab_size": 1, "vocab_size": 2}', "duplicate key 'vocab_size'"),
        (b'{"rms_norm_eps": NaN}', "NaN is not JSON"),
        (b" " * 70_000, "70000 bytes"),
    ],
)
def test_what_is_not_a_json_object_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(MalformedError, match=message):
        ModelConfig.parse(data)


def test_more_experts_than_there_are_cannot_be_asked_for() -> None:
    with pytest.raises(ValueError, match="num_experts_per_tok is 3"):
        SMALL.with_experts(2, 3)
