from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, FlexOlmoConfig, FlexOlmoForCausalLM, Olmo2Config, Olmo2ForCausalLM

from common.model import hf
from common.model.config import ModelConfig
from common.model.transformer import CausalLM, initialise

CONFIG = ModelConfig(
    vocab_size=61,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
)


def assert_equals_reference(directory: Path, input_ids: Tensor) -> None:
    reference = AutoModelForCausalLM.from_pretrained(directory).eval()
    with torch.no_grad():
        expected, output = reference(input_ids), hf.load(directory)(input_ids)
    torch.testing.assert_close(output.logits_BTV, expected.logits, atol=1e-4, rtol=0)


def test_dense_logits_equal_the_reference_on_trained_weights(dense_directory: Path, input_ids: Tensor) -> None:
    assert_equals_reference(dense_directory, input_ids)


@pytest.mark.parametrize("num_experts_per_tok", [1, 2, 3, 4])
def test_moe_logits_equal_the_reference_on_trained_weights(
    moe_directory: Callable[[int], Path], num_experts_per_tok: int, input_ids: Tensor
) -> None:
    assert_equals_reference(moe_directory(num_experts_per_tok), input_ids)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("num_experts_per_tok", [0, 1, 2, 3])
def test_logits_equal_the_reference_on_random_weights(
    num_experts_per_tok: int, kv_heads: int, input_ids: Tensor, tmp_path: Path
) -> None:
    torch.manual_seed(num_experts_per_tok)
    sizes = {
        "vocab_size": 61,
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": kv_heads,
        "initializer_range": 0.3,
        "pad_token_id": 1,
        "eos_token_id": 0,
    }
    if num_experts_per_tok:
        experts = {"num_experts": 3, "num_experts_per_tok": num_experts_per_tok}
        FlexOlmoForCausalLM(FlexOlmoConfig(**sizes, **experts)).save_pretrained(tmp_path)
    else:
        Olmo2ForCausalLM(Olmo2Config(**sizes)).save_pretrained(tmp_path)
    assert_equals_reference(tmp_path, input_ids)


def test_the_reference_models_are_trained(dense_directory: Path, moe_directory: Callable[[int], Path]) -> None:
    """Otherwise norms of all ones and routers that cannot tell experts apart would hide mistakes."""
    for model in (hf.load(dense_directory), hf.load(moe_directory(2))):
        assert all(p.std() > 0.01 for name, p in model.named_parameters() if name.endswith("norm.weight"))
    assert all(row.std() > 0.03 for router in model.routers for row in router.rows)


def test_router_logits_equal_the_reference(moe_directory: Callable[[int], Path], input_ids: Tensor) -> None:
    directory = moe_directory(2)
    reference = AutoModelForCausalLM.from_pretrained(directory).eval()
    with torch.no_grad():
        expected = reference(input_ids, output_router_logits=True).router_logits
        logits = hf.load(directory)(input_ids).router_logits
    assert len(logits) == len(expected) == 2
    for ours, theirs in zip(logits, expected, strict=True):
        torch.testing.assert_close(ours.flatten(0, 1), theirs.flatten(0, -2), atol=1e-4, rtol=0)


def test_a_dense_model_has_no_router_logits(dense_directory: Path, input_ids: Tensor) -> None:
    assert hf.load(dense_directory)(input_ids).router_logits == ()


@pytest.mark.parametrize("num_experts_per_tok", [2, 4])
def test_packed_documents_have_the_logits_they_have_alone(
    moe_directory: Callable[[int], Path], num_experts_per_tok: int, input_ids: Tensor
) -> None:
    model = hf.load(moe_directory(num_experts_per_tok))
    cuts = (0, 7, 8, 25, 40)
    # The third document repeats the id of the first: only a change of id means a new document.
    lengths = torch.tensor([end - start for start, end in pairwise(cuts)])
    document_ids = torch.tensor([3, 9, 3, 4]).repeat_interleave(lengths).expand(3, -1)
    with torch.no_grad():
        packed = model(input_ids, document_ids_BT=document_ids)
        for start, end in pairwise(cuts):
            alone = model(input_ids[:, start:end])
            torch.testing.assert_close(packed.logits_BTV[:, start:end], alone.logits_BTV, atol=1e-4, rtol=0)
            torch.testing.assert_close(packed.router_logits[1][:, start:end], alone.router_logits[1], atol=1e-4, rtol=0)


def test_one_document_is_plain_causal_attention(dense_directory: Path, input_ids: Tensor) -> None:
    model = hf.load(dense_directory)
    with torch.no_grad():
        packed, plain = model(input_ids, document_ids_BT=torch.zeros_like(input_ids)), model(input_ids)
    torch.testing.assert_close(packed.logits_BTV, plain.logits_BTV, atol=1e-4, rtol=0)


def test_rows_of_a_batch_may_be_cut_in_different_places(dense_directory: Path, input_ids: Tensor) -> None:
    model = hf.load(dense_directory)
    document_ids = torch.stack([(torch.arange(40) >= cut).long() for cut in (5, 20, 40)])
    with torch.no_grad():
        packed = model(input_ids, document_ids_BT=document_ids).logits_BTV
        for row in range(3):
            alone = model(input_ids[row : row + 1], document_ids_BT=document_ids[row : row + 1]).logits_BTV
            torch.testing.assert_close(packed[row : row + 1], alone, atol=1e-4, rtol=0)


def test_a_compiled_model_masks_documents_and_computes_the_same(dense_directory: Path, input_ids: Tensor) -> None:
    document_ids = torch.stack([(torch.arange(40) >= cut).long() for cut in (5, 20, 40)])
    logits, gradients = [], []
    for make in (lambda model: model, partial(torch.compile, backend="eager", fullgraph=True)):
        model = hf.load(dense_directory)
        output = make(model)(input_ids, document_ids_BT=document_ids).logits_BTV
        output.logsumexp(dim=-1).sum().backward()
        logits.append(output.detach())
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    torch.testing.assert_close(*logits, atol=1e-4, rtol=0)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-3, rtol=1e-3)


def test_feed_forward_inputs_are_what_routers_and_experts_see(
    moe_directory: Callable[[int], Path], input_ids: Tensor
) -> None:
    model = hf.load(moe_directory(2))
    document_ids = (torch.arange(40) // 9).expand(3, -1)
    with torch.no_grad():
        inputs = model.feed_forward_inputs(input_ids, document_ids_BT=document_ids)
        logits = model(input_ids, document_ids_BT=document_ids).router_logits
    for router, x_BTD, logits_BTE in zip(model.routers, inputs, logits, strict=True):
        torch.testing.assert_close(router(x_BTD), logits_BTE)


@pytest.mark.parametrize("config", [CONFIG, CONFIG.with_experts(3, 2)])
def test_a_seed_decides_the_initial_parameters(config: ModelConfig) -> None:
    torch.manual_seed(1)
    one = CausalLM(config, seed=7).state_dict()
    torch.manual_seed(2)
    same, other = CausalLM(config, seed=7).state_dict(), CausalLM(config, seed=8).state_dict()
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["lm_head.weight"], other["lm_head.weight"])
    assert one["lm_head.weight"].std() == pytest.approx(0.02, rel=0.1)
    assert torch.equal(one["model.norm.weight"], torch.ones(32))


def test_making_a_model_leaves_the_global_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    CausalLM(CONFIG)
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_model_can_be_made_on_the_meta_device_and_filled_later() -> None:
    with torch.device("meta"):
        model = CausalLM(CONFIG.with_experts(2, 2), seed=3)
    assert all(parameter.is_meta for parameter in model.parameters())
    model.to_empty(device="cpu")
    initialise(model, seed=3)
    filled, expected = model.state_dict(), CausalLM(CONFIG.with_experts(2, 2), seed=3).state_dict()
    assert all(torch.equal(filled[name], expected[name]) for name in expected)


def test_bfloat16_runs_and_stays_close(dense_directory: Path, input_ids: Tensor) -> None:
    with torch.no_grad():
        exact = hf.load(dense_directory)(input_ids).logits_BTV
        rough = hf.load(dense_directory, dtype=torch.bfloat16)(input_ids).logits_BTV
    assert rough.dtype == torch.bfloat16
    assert (rough.float() - exact).abs().mean() < 0.05 * exact.abs().mean()
