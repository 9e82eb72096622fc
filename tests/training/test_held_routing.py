"""Holding routing to what it was: nothing at first, then a divergence of held rows alone, felt by rows that train."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from common.held_routing import HeldRouting
from common.loss import TensorBatch
from common.model import hf
from common.model.transformer import CausalLM, ModelOutput
from coordinator.combine.upcycle import upcycle


@pytest.fixture
def model(base: Path) -> CausalLM:
    return upcycle([hf.load(base)] * 3, num_experts_per_tok=2, seed=0)


def _batch(*sources: int) -> TensorBatch:
    ids_BT = torch.arange(8 * len(sources)).view(len(sources), 8)
    return TensorBatch(ids_BT, ids_BT, torch.zeros_like(ids_BT), torch.zeros_like(ids_BT), torch.tensor(sources))


def _turn_rows(model: CausalLM) -> None:
    with torch.no_grad():
        for router in model.routers:
            router.rows[1].mul_(-20)


def _divergence(model: CausalLM, held: HeldRouting, batch: TensorBatch) -> Tensor:
    return held.divergence(model(batch.input_ids_BT), batch)


def test_rows_that_did_not_move_diverge_by_nothing(model: CausalLM) -> None:
    held = HeldRouting(model, source=1, share=0.5)
    assert float(_divergence(model, held, _batch(1, 0)).detach()) == pytest.approx(0, abs=1e-7)


def test_it_is_the_divergence_of_the_held_rows_from_the_first_routing(model: CausalLM) -> None:
    held, first = HeldRouting(model, source=1, share=0.5), [torch.stack(list(r.rows)).clone() for r in model.routers]
    _turn_rows(model)
    batch = _batch(0, 1, 0, 1)
    inputs = model.feed_forward_inputs(batch.input_ids_BT)
    expected = []
    for layer, (router, rows_ED) in enumerate(zip(model.routers, first, strict=True)):
        x_BTD = inputs[layer][[1, 3]]
        then, now = ((x_BTD @ rows.T).softmax(-1) for rows in (rows_ED, torch.stack(list(router.rows))))
        expected.append((then * (then / now).log()).sum(-1).mean())
    assert float(expected[0].detach()) > 1e-4
    torch.testing.assert_close(_divergence(model, held, batch), torch.stack(expected).mean())


def test_rows_of_other_texts_are_free(model: CausalLM) -> None:
    held = HeldRouting(model, source=1, share=0.5)
    _turn_rows(model)
    assert float(_divergence(model, held, _batch(0, 0)).detach()) == 0


def test_over_a_run_each_sequence_weighs_the_same(model: CausalLM) -> None:
    """All rows held in one batch of two, or one in each: the same in sum."""
    held = HeldRouting(model, source=1, share=0.5)
    _turn_rows(model)
    same = _batch(1, 1)
    same.input_ids_BT[1] = same.input_ids_BT[0]
    together = _divergence(model, held, same) + _divergence(model, held, _batch(0, 0))
    same.sources_B[0] = 0
    apart = 2 * _divergence(model, held, same)
    torch.testing.assert_close(together, apart)


def test_training_against_it_brings_rows_back(model: CausalLM) -> None:
    held = HeldRouting(model, source=1, share=1.0)
    model.requires_grad_(False)
    moved = [router.rows[1].requires_grad_() for router in model.routers]
    _turn_rows(model)
    batch, optimizer = _batch(1, 1), torch.optim.SGD(moved, lr=1.0)
    before = _divergence(model, held, batch)
    before.backward()  # type: ignore[no-untyped-call]
    assert all(row.grad is not None and bool(row.grad.any()) for row in moved)
    optimizer.step()
    assert _divergence(model, held, batch) < before


def test_what_is_only_measured_is_not_kept(model: CausalLM) -> None:
    """A score between two steps must not change what the next one is compared with, nor hold memory."""
    held = HeldRouting(model, source=1, share=1.0)
    _turn_rows(model)
    batch = _batch(1)
    output: ModelOutput = model(batch.input_ids_BT)
    with torch.inference_mode():
        model(_batch(1, 1, 1).input_ids_BT)
    assert float(held.divergence(output, batch).detach()) > 0
