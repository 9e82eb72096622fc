import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, FlexOlmoForCausalLM, Olmo2ForCausalLM

from common.errors import MalformedError, NotFoundError
from common.model import hf, partition
from common.model.config import ModelConfig
from common.model.transformer import CausalLM

CONFIG = ModelConfig(
    vocab_size=61,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    eos_token_id=0,
    pad_token_id=1,
)


@pytest.fixture
def directory(dense_directory: Path, tmp_path: Path) -> Path:
    """A copy of a good dense directory, to be damaged."""
    return Path(shutil.copytree(dense_directory, tmp_path / "model"))


def rewrite(directory: Path, **changes: Tensor | None) -> None:
    """Change tensors of a directory's weights; None removes one. Dots in names are written as double underscores."""
    tensors = load_file(directory / "model.safetensors")
    for name, tensor in changes.items():
        tensors.pop(name.replace("__", "."), None)
        if tensor is not None:
            tensors[name.replace("__", ".")] = tensor
    save_file(tensors, directory / "model.safetensors")


@pytest.mark.parametrize("experts", [(0, 0), (3, 2), (3, 3), (1, 1)])
def test_transformers_loads_what_we_save(experts: tuple[int, int], input_ids: Tensor, tmp_path: Path) -> None:
    model = CausalLM(CONFIG.with_experts(*experts), seed=4)
    hf.save(model, tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert isinstance(theirs, FlexOlmoForCausalLM if experts[0] else Olmo2ForCausalLM)
    with torch.no_grad():
        torch.testing.assert_close(theirs(input_ids).logits, model(input_ids).logits_BTV, atol=1e-4, rtol=0)
    generated = theirs.generate(input_ids[:1, :5], max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert generated.shape == (1, 8)


def test_saving_what_was_loaded_gives_the_same_tensors_and_the_same_bytes(
    moe_directory: Callable[[int], Path], tmp_path: Path
) -> None:
    source = moe_directory(2)
    for name in ("one", "two"):
        hf.save(hf.load(source), tmp_path / name)
    theirs, ours = load_file(source / "model.safetensors"), load_file(tmp_path / "one" / "model.safetensors")
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)
    for file in ("model.safetensors", "config.json", "generation_config.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_shards_are_loaded(dense_directory: Path, input_ids: Tensor, tmp_path: Path) -> None:
    Olmo2ForCausalLM.from_pretrained(dense_directory).save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    with torch.no_grad():
        sharded, whole = hf.load(tmp_path)(input_ids), hf.load(dense_directory)(input_ids)
    assert torch.equal(sharded.logits_BTV, whole.logits_BTV)


def test_a_release_of_one_expert_is_the_public_model(dense_directory: Path, input_ids: Tensor, tmp_path: Path) -> None:
    public = hf.load(dense_directory)
    tensors = {name: tensor for name, tensor in public.state_dict().items() if ".mlp." not in name}
    for layer in range(CONFIG.num_hidden_layers):
        for projection in partition.PROJECTIONS:
            weight = public.state_dict()[partition.dense_feed_forward(layer, projection)]
            tensors[partition.feed_forward(layer, 0, projection)] = weight
        tensors[partition.joined_router(layer)] = torch.randn(1, CONFIG.hidden_size)
    (tmp_path / "config.json").write_bytes(public.config.with_experts(1, 1).format())
    save_file(tensors, tmp_path / "model.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(hf.load(tmp_path)(input_ids).logits_BTV, public(input_ids).logits_BTV)


def test_saving_folds_biases_into_rows(dense_directory: Path, input_ids: Tensor, tmp_path: Path) -> None:
    model = hf.two_expert(hf.load(dense_directory))
    torch.manual_seed(0)
    for router in model.routers:
        router.add_bias(partition.OWNED_EXPERT, torch.randn(CONFIG.hidden_size))
        with torch.no_grad():
            router.biases["1"].fill_(-0.3)
            for row in router.rows:
                row.normal_()
    hf.save(model, tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        expected = model(input_ids).logits_BTV
        assert torch.equal(hf.load(tmp_path)(input_ids).logits_BTV, expected)
        torch.testing.assert_close(theirs(input_ids).logits, expected, atol=1e-4, rtol=0)


# ---- An owner's two-expert model -------------------------------------------------------------------------------------


def test_a_two_expert_model_starts_as_the_public_model(dense_directory: Path, input_ids: Tensor) -> None:
    public = hf.load(dense_directory)
    model = hf.two_expert(public)
    assert (model.config.num_experts, model.config.num_experts_per_tok) == (2, 2)
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids).logits_BTV, public(input_ids).logits_BTV, atol=1e-4, rtol=0)


def test_only_the_owned_expert_learns(dense_directory: Path, input_ids: Tensor) -> None:
    public = hf.load(dense_directory)
    before = {name: tensor.clone() for name, tensor in public.state_dict().items()}
    model = hf.two_expert(public)
    for router in model.routers:
        router.add_bias(partition.OWNED_EXPERT, torch.ones(CONFIG.hidden_size))
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if partition.owner_of(name) != 1}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):  # the router learns only once the two experts differ
        optimizer.step()
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(input_ids).logits_BTV.transpose(1, 2), input_ids).backward()
    learning = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    biases = {f"model.layers.{layer}.mlp.gate.biases.1" for layer in range(2)}
    assert learning == biases | set(
        partition.expert_tensors(num_hidden_layers=2, hidden_size=32, intermediate_size=48, dtype="F32")
    )
    after = dict(model.named_parameters())
    assert all(torch.equal(after[name], tensor) for name, tensor in frozen.items())
    assert all(torch.equal(public.state_dict()[name], tensor) for name, tensor in before.items())


def test_two_experts_are_made_from_a_dense_model_only() -> None:
    with pytest.raises(ValueError, match="must be dense; it has 2 experts"):
        hf.two_expert(CausalLM(CONFIG.with_experts(2, 1)))


# ---- Directories that are refused ------------------------------------------------------------------------------------


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"nowhere/config\.json is not there"):
        hf.load(tmp_path / "nowhere")


def test_missing_weights_are_named(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    with pytest.raises(MalformedError, match=r"holds no model\.safetensors"):
        hf.load(directory)


def test_a_pickle_is_not_read(directory: Path) -> None:
    torch.save({"model.norm.weight": torch.ones(32)}, directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()
    with pytest.raises(MalformedError, match=r"holds no model\.safetensors"):
        hf.load(directory)


def test_a_pickle_under_another_name_is_refused(directory: Path) -> None:
    torch.save({"model.norm.weight": torch.ones(32)}, directory / "model.safetensors")
    with pytest.raises(MalformedError, match="not a safetensors file"):
        hf.load(directory)


def test_cut_off_weights_are_refused(directory: Path) -> None:
    whole = (directory / "model.safetensors").read_bytes()
    (directory / "model.safetensors").write_bytes(whole[:-1])
    with pytest.raises(MalformedError, match="bytes where its header says"):
        hf.load(directory)


def test_a_missing_tensor_is_named(directory: Path) -> None:
    rewrite(directory, model__norm__weight=None)
    with pytest.raises(MalformedError, match=r"1 tensors are missing, the first is model\.norm\.weight"):
        hf.load(directory)


def test_a_tensor_too_many_is_named(directory: Path) -> None:
    rewrite(directory, model__extra=torch.zeros(1))
    with pytest.raises(MalformedError, match=r"do not belong there, the first is 'model\.extra'"):
        hf.load(directory)


def test_a_tensor_of_another_shape_is_named(directory: Path) -> None:
    rewrite(directory, model__norm__weight=torch.zeros(31))
    with pytest.raises(MalformedError, match=r"model\.norm\.weight has shape \(31,\); config\.json asks for \(32,\)"):
        hf.load(directory)


def test_a_tensor_of_another_dtype_is_named(directory: Path) -> None:
    rewrite(directory, model__norm__weight=torch.zeros(32, dtype=torch.float16))
    with pytest.raises(MalformedError, match=r"model\.norm\.weight is F16"):
        hf.load(directory)


def test_a_configuration_of_another_model_is_refused(directory: Path, moe_directory: Callable[[int], Path]) -> None:
    shutil.copy(moe_directory(2) / "config.json", directory)
    with pytest.raises(MalformedError, match=r"tensors are missing, the first is model\.layers\.0\.mlp\.experts"):
        hf.load(directory)


def make_index(directory: Path, shard: str) -> None:
    names = load_file(directory / "model.safetensors").keys()
    (directory / "model.safetensors").rename(directory / "model-1.safetensors")
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, shard)}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def test_a_missing_shard_is_named(directory: Path) -> None:
    make_index(directory, "model-2.safetensors")
    with pytest.raises(NotFoundError, match=r"model-2\.safetensors is not there"):
        hf.load(directory)


def test_a_shard_outside_the_directory_is_refused(directory: Path) -> None:
    make_index(directory, "../model/model-1.safetensors")
    with pytest.raises(MalformedError, match="names a shard"):
        hf.load(directory)


def test_loading_does_not_keep_the_file_in_the_model(directory: Path, input_ids: Tensor) -> None:
    """Otherwise replacing a file under a running job would change or crash it."""
    model = hf.load(directory)
    with torch.no_grad():
        before = model(input_ids).logits_BTV
        (directory / "model.safetensors").write_bytes(b"\0" * (directory / "model.safetensors").stat().st_size)
        assert torch.equal(model(input_ids).logits_BTV, before)
