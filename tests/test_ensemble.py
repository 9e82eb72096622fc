"""Ensembles over documents, against sums done by hand."""

import math

import numpy as np
import pytest

from common.ensemble import document_losses, losses_so_far, mixture_bits_per_byte, mixture_by_token, weigh
from common.evaluate import Domain, pack, score, token_nats
from common.model.config import ModelConfig
from common.model.transformer import CausalLM


def _domain() -> Domain:
    documents = [[5, 6, 7, 8, 9, 10, 11, 12, 13, 14], [20, 21, 22], [30, 31, 32, 33, 34, 35]]
    return Domain(pack(documents, sequence_length=4, eos_token_id=0), num_documents=3, num_bytes=40)


def _model(seed: int) -> CausalLM:
    sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 16, "eos_token_id": 0}
    return CausalLM(ModelConfig(**sizes, **heads, rope_theta=1e4), seed=seed)  # type: ignore[arg-type]


def test_token_losses_sum_to_the_score_whatever_the_batch_size() -> None:
    domain, model = _domain(), _model(0)
    few, many = (token_nats(model, domain, batch_size=size) for size in (1, 8))
    np.testing.assert_allclose(few, many, atol=1e-6)
    bits = few.sum() / math.log(2) / domain.num_bytes
    assert bits == pytest.approx(score(model, domain, batch_size=3).bits_per_byte, rel=1e-6)
    assert (few[~domain.windows.scored_WT] == 0).all()


def test_document_losses_gather_the_windows_of_each_document() -> None:
    """The loss of a document is the one it has when it is the only one there."""
    domain, model = _domain(), _model(1)
    losses_MF = document_losses(domain, [token_nats(model, domain, batch_size=4)])
    for index, tokens in enumerate([[5, 6, 7, 8, 9, 10, 11, 12, 13, 14], [20, 21, 22], [30, 31, 32, 33, 34, 35]]):
        alone = Domain(pack([tokens], sequence_length=4, eos_token_id=0), num_documents=1, num_bytes=1)
        expected = token_nats(model, alone, batch_size=4).sum() / len(tokens)
        assert losses_MF[0, index] == pytest.approx(expected, rel=1e-5)


def test_losses_so_far_are_of_the_text_before_each_token_through_all_windows_of_its_document() -> None:
    domain = _domain()
    nats = [token_nats(_model(seed), domain, batch_size=4) for seed in (0, 1)]
    losses_MN = losses_so_far(domain, nats)
    windows, read = domain.windows, dict[int, list[tuple[int, int, float, float]]]()
    for place, loss in zip(np.argwhere(windows.scored_WT), losses_MN[1], strict=True):
        window = int(windows.document_ids_WT[tuple(place)])
        found = read.setdefault(int(windows.document_of_window[window]), [])
        found.append((window, int(place[1]), float(nats[1][tuple(place)]), float(loss)))
    assert sorted(map(len, read.values())) == [3, 6, 10]
    for tokens in read.values():
        tokens.sort()
        for count, (_, _, _, loss) in enumerate(tokens):
            before = [each for _, _, each, _ in tokens[:count]]
            assert loss == pytest.approx(sum(before) / max(1, count))


def test_a_token_may_have_weights_of_its_own() -> None:
    domain = _domain()
    nats = [token_nats(_model(seed), domain, batch_size=4) for seed in (0, 1)]
    first_N = np.arange(domain.windows.num_tokens) % 2 == 0
    mixed = mixture_by_token(domain, nats, np.stack([first_N, ~first_N]).astype(float))
    losses_MN = np.stack([each[domain.windows.scored_WT] for each in nats])
    expected = np.where(first_N, *losses_MN).sum() / math.log(2) / domain.num_bytes
    assert mixed == pytest.approx(expected)


def test_weights_are_a_softmax_over_the_best() -> None:
    losses_MF = np.array([[1.0, 3.0], [2.0, 1.0], [4.0, 1.5]])
    weights_MF = weigh(losses_MF, temperature=0.5, top_k=2)
    expected = np.exp([-2.0, -4.0]) / np.exp([-2.0, -4.0]).sum()
    np.testing.assert_allclose(weights_MF[:, 0], [*expected, 0.0])
    np.testing.assert_allclose(weights_MF.sum(axis=0), 1)
    assert (weigh(losses_MF, temperature=1.0, top_k=1) == [[1, 0], [0, 1], [0, 0]]).all()
    for top_k, temperature in ((0, 1.0), (4, 1.0), (1, 0.0)):
        with pytest.raises(ValueError, match="top_k"):
            weigh(losses_MF, temperature=temperature, top_k=top_k)


def test_equal_models_tie_in_order_and_exactly_top_k_are_used() -> None:
    assert (weigh(np.ones((3, 4)), temperature=1.0, top_k=2) == np.array([[0.5], [0.5], [0.0]])).all()


def test_the_mixture_is_the_weighted_mean_of_probabilities() -> None:
    domain = _domain()
    nats = [token_nats(_model(seed), domain, batch_size=4) for seed in (0, 1)]
    weights_MF = np.array([[0.3, 1.0, 0.5], [0.7, 0.0, 0.5]])
    total = 0.0
    windows = domain.windows
    for place in np.argwhere(windows.scored_WT):
        of = windows.document_of_window[windows.document_ids_WT[tuple(place)]]
        total -= math.log2(sum(weights_MF[m, of] * math.exp(-nats[m][tuple(place)]) for m in range(2)))
    assert mixture_bits_per_byte(domain, nats, weights_MF) == pytest.approx(total / domain.num_bytes)


def test_a_mixture_is_never_worse_than_its_weights_allow() -> None:
    """All weight on one model is that model."""
    domain, model = _domain(), _model(0)
    nats = [token_nats(model, domain, batch_size=4), token_nats(_model(1), domain, batch_size=4)]
    alone = mixture_bits_per_byte(domain, nats, np.array([[1.0] * 3, [0.0] * 3]))
    assert alone == pytest.approx(score(model, domain, batch_size=4).bits_per_byte, rel=1e-6)
