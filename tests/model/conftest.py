"""Small models of the reference implementation, trained until norms and routers are far from where they start."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import FlexOlmoConfig, FlexOlmoForCausalLM, Olmo2Config, Olmo2ForCausalLM, PreTrainedModel

NUM_EXPERTS = 4
SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "eos_token_id": 0,
    "pad_token_id": 1,
}


def _texts() -> Tensor:
    """Counting in steps that change from row to row: easy to learn, and different rows want different experts."""
    starts, steps = torch.arange(64)[:, None], 1 + torch.arange(64)[:, None] % 7
    return (starts * 5 + steps * torch.arange(24)) % SIZES["vocab_size"]


def _train(model: PreTrainedModel) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(40):
        model(_texts(), labels=_texts()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


@pytest.fixture
def input_ids() -> Tensor:
    """[3, 40] token ids, partly like the text trained on."""
    drawn = torch.randint(0, SIZES["vocab_size"], (3, 40), generator=torch.Generator().manual_seed(5))
    drawn[0, :24] = _texts()[0]
    return drawn


@pytest.fixture(scope="session")
def dense_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained `Olmo2ForCausalLM` as transformers saves it."""
    torch.manual_seed(0)
    model = Olmo2ForCausalLM(Olmo2Config(**SIZES))
    _train(model)
    directory = tmp_path_factory.mktemp("dense")
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def moe_directory(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """A trained `FlexOlmoForCausalLM` of 4 experts as transformers saves it, for a number of experts per token."""
    torch.manual_seed(1)
    model = FlexOlmoForCausalLM(FlexOlmoConfig(**SIZES, num_experts=NUM_EXPERTS, num_experts_per_tok=2))
    _train(model)

    def save(num_experts_per_tok: int) -> Path:
        directory = tmp_path_factory.mktemp("moe")
        model.config.num_experts_per_tok = num_experts_per_tok
        model.save_pretrained(directory)
        return directory

    return save
