"""What the jobs leave behind: a base that transformers loads, and an expert that holds the owner's part alone."""

import json
import math
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_jobs import expert_config
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from common.data import read_split
from common.errors import JobFailedError, MalformedError
from common.job import StopSignal
from common.loss import TensorBatch
from common.model import hf, partition
from common.model.router_rows import RATIO_RIDGE, Moments, PublicRouter, log_ratio_row, logistic_row, measure
from common.model.transformer import CausalLM
from common.packing import PackedText, batches
from common.tokenizer import Tokenizer
from owner_client import router_init, train


def _packed(base: Path, folder: Path) -> PackedText:
    tokens = Tokenizer.load(base)
    encoded = tokens.encode_all([d.text for d in read_split(folder, "test")])
    return PackedText(encoded, sequence_length=32, eos_token_id=tokens.eos_token_id, seed=1)


def _config(text: Path, base: Path, output: Path, **changes: object) -> train.ExpertJob:
    return train.ExpertJob.model_validate(expert_config(text, base, output, **changes))


@torch.inference_mode()
def _loss(model: CausalLM, text: PackedText) -> float:
    batch, _ = next(batches([text], shares=[1.0], batch_size=text.num_sequences))
    placed = TensorBatch.place(batch, "cpu")
    logits = model(placed.input_ids_BT, document_ids_BT=placed.document_ids_BT).logits_BTV
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), placed.targets_BT.flatten()))


def test_transformers_loads_the_base_and_its_tokenizer(base: Path, text: Path) -> None:
    theirs, tokens = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    ids = tokens("the old river house", return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        torch.testing.assert_close(theirs(ids).logits, hf.load(base)(ids).logits_BTV, atol=1e-4, rtol=1e-4)
    assert theirs.generation_config.eos_token_id == tokens.eos_token_id
    record = json.loads((base / "training.json").read_text())
    assert record["final_loss"] < 0.7 * record["first_loss"]
    assert record["config"]["vocab_size"] == theirs.config.vocab_size


def test_the_public_row_gives_a_logit_near_one_on_public_text_it_never_saw(base: Path, text: Path) -> None:
    model = hf.load(base)
    sizes = model.config
    router = PublicRouter.load(base, num_hidden_layers=sizes.num_hidden_layers, hidden_size=sizes.hidden_size)
    batch, _ = next(batches([_packed(base, text / "public")], shares=[1.0], batch_size=32))
    inputs = model.feed_forward_inputs(torch.from_numpy(batch.input_ids_BT))
    for x_BTD, direction_D in zip(inputs, router.bias_directions, strict=True):
        logits = x_BTD @ direction_D
        assert 0.9 < float(logits.detach().mean()) < 1.1
        assert float(logits.detach().std()) < 0.5


def test_a_base_without_its_router_file_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(MalformedError, match="is this a public model's directory"):
        PublicRouter.load(tmp_path, num_hidden_layers=2, hidden_size=16)
    with pytest.raises(MalformedError, match="for 3 layers"):
        PublicRouter.load(base, num_hidden_layers=3, hidden_size=16)
    with pytest.raises(MalformedError, match=r"has shape \(16,\), not \(8,\)"):
        PublicRouter.load(base, num_hidden_layers=2, hidden_size=8)


def _gaussian(mean_D: Tensor, covariance_DD: Tensor) -> Moments:
    """Moments of tokens whose documents do not differ."""
    return Moments(mean_D, covariance_DD + torch.outer(mean_D, mean_D), covariance_DD)


def test_the_ratio_of_two_gaussians_is_found() -> None:
    generator = torch.Generator().manual_seed(0)
    offset_D = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    factor_DD = torch.randn(3, 3, dtype=torch.float64, generator=generator)
    covariance_DD = factor_DD @ factor_DD.T + torch.eye(3)
    means = [torch.randn(3, dtype=torch.float64, generator=generator) + offset_D for _ in range(2)]
    own, public = (_gaussian(mean, covariance_DD) for mean in means)
    row_D = log_ratio_row(own, public, torch.zeros(3), torch.zeros(3), ridge=1e-6).double()
    gaussians = [torch.distributions.MultivariateNormal(mean, covariance_DD) for mean in means]
    x_ND = torch.randn(50, 3, dtype=torch.float64, generator=generator)
    expected_N = gaussians[0].log_prob(x_ND) - gaussians[1].log_prob(x_ND)
    ours_N = x_ND @ row_D - 0.5 * torch.dot(means[0] + means[1], row_D)
    torch.testing.assert_close(ours_N, expected_N, atol=1e-4, rtol=1e-4)


def test_a_ridge_keeps_rows_from_leaning_on_directions_of_little_variance() -> None:
    covariance_DD = torch.diag(torch.tensor([1.0, 1e-4], dtype=torch.float64))
    means = [torch.tensor([0.5, 0.01], dtype=torch.float64), torch.zeros(2, dtype=torch.float64)]
    own, public = (_gaussian(mean, covariance_DD) for mean in means)
    exact_D, kept_D = (log_ratio_row(own, public, torch.zeros(2), torch.zeros(2), ridge=r) for r in (1e-9, RATIO_RIDGE))
    assert exact_D[1] > 100 * exact_D[0]
    assert kept_D[1] < 2 * kept_D[0]
    assert kept_D[0] == pytest.approx(float(exact_D[0]), rel=0.05)


def test_a_prior_shifts_the_logit_by_its_log_odds() -> None:
    own, public = (_gaussian(mean, torch.eye(2, dtype=torch.float64)) for mean in torch.eye(2, dtype=torch.float64))
    u_D = torch.tensor([3.0, 5.0])
    even_D, shy_D = (log_ratio_row(own, public, torch.zeros(2), u_D, prior=prior) for prior in (0.5, 0.2))
    torch.testing.assert_close(shy_D - even_D, math.log(0.25) * u_D)


def test_rows_tell_own_from_public_text_before_any_training(base: Path, text: Path) -> None:
    public_model = hf.load(base)
    model = hf.two_expert(public_model)
    router = PublicRouter.load(base, num_hidden_layers=2, hidden_size=16)
    own, public = _packed(base, text / "own"), _packed(base, text / "public")
    router_init.initialise_routers(
        model,
        public_model,
        router,
        own=own,
        public=public,
        make_row=router_init.row_maker("ratio", prior=0.5, seed=0),
        num_sequences=8,
        batch_size=4,
        device="cpu",
    )
    for kind, sign in (("own", 1), ("public", -1)):
        batch, _ = next(batches([_packed(base, text / kind)], shares=[1.0], batch_size=4))
        for logits_BTE in model(torch.from_numpy(batch.input_ids_BT)).router_logits:
            assert sign * (logits_BTE[..., 1] - logits_BTE[..., 0]).mean().item() > 0.2


def test_an_expert_holds_exactly_what_an_owner_may_send_and_learns_its_domain(
    base: Path, text: Path, tmp_path: Path
) -> None:
    record = train.run(_config(text, base, tmp_path / "expert", steps=60), StopSignal())
    tensors = load_file(tmp_path / "expert" / train.EXPERT_FILE)
    expected = partition.expert_tensors(num_hidden_layers=2, hidden_size=16, intermediate_size=32, dtype="F32")
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {n: s.shape for n, s in expected.items()}
    assert sorted(p.name for p in (tmp_path / "expert").iterdir()) == ["expert.safetensors", "training.json"]
    assert json.loads((tmp_path / "expert" / "training.json").read_text()) == json.loads(json.dumps(record))
    biases = record["biases"]
    assert isinstance(biases, list)
    assert all(bias <= 0 for bias in biases)

    public_model = hf.load(base)
    model = hf.two_expert(public_model)
    router = PublicRouter.load(base, num_hidden_layers=2, hidden_size=16)
    public_rows = {partition.router_row(i, 0): row for i, row in enumerate(router.rows)}
    model.load_state_dict({**tensors, **public_rows}, strict=False)
    own, public = _packed(base, text / "own"), _packed(base, text / "public")
    gain = _loss(public_model, own) - _loss(model, own)
    assert gain > 0.5
    assert _loss(model, public) - _loss(public_model, public) < gain / 4


def test_the_anchor_halves_what_an_expert_costs_on_public_text(base: Path, text: Path, tmp_path: Path) -> None:
    public_model, public = hf.load(base), _packed(base, text / "public")
    costs = []
    for weight in (0.0, 2.0):
        output = tmp_path / f"{weight}"
        train.run(_config(text, base, output, steps=60, public_anchor=weight), StopSignal())
        model = hf.two_expert(public_model)
        rows = PublicRouter.load(base, num_hidden_layers=2, hidden_size=16).rows
        public_rows = {partition.router_row(i, 0): row for i, row in enumerate(rows)}
        model.load_state_dict({**load_file(output / train.EXPERT_FILE), **public_rows}, strict=False)
        costs.append(_loss(model, public) - _loss(public_model, public))
    assert costs[0] > 0.05
    assert costs[1] < costs[0] / 2


def test_a_changed_shared_parameter_fails_the_job(
    base: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nudge(model: CausalLM, _step: int) -> None:
        with torch.no_grad():
            model.lm_head.weight[0, 0] += 1e-6

    monkeypatch.setattr(train, "_clamp_biases", nudge)
    with pytest.raises(JobFailedError, match="not the owner's; the expert is not written"):
        train.run(_config(text, base, tmp_path / "expert", steps=2), StopSignal())
    assert not (tmp_path / "expert").exists()


def test_the_bias_is_folded_into_the_row_exactly(base: Path) -> None:
    model = hf.two_expert(hf.load(base))
    gate = model.routers[1]
    with torch.no_grad():
        gate.add_bias(1, torch.arange(16.0))
        gate.rows[1].fill_(2.0)
        gate.biases["1"].fill_(-0.5)
    row_D = train.expert_tensors(model)[partition.router_row(1, 1)]
    torch.testing.assert_close(row_D, 2.0 - 0.5 * torch.arange(16.0))


def test_moments_do_not_depend_on_the_batch_size(base: Path, text: Path) -> None:
    model, packed = hf.load(base), _packed(base, text / "public")
    few, many = _moments(model, packed, 1), _moments(model, packed, 4)
    for a, b in zip(few, many, strict=True):
        torch.testing.assert_close(a.second_DD, b.second_DD)


def test_what_varies_within_documents_is_told_from_how_documents_differ(base: Path, text: Path) -> None:
    """Against the definition, on sequences that hold ends and beginnings of documents."""
    model, packed = hf.load(base), _packed(base, text / "public")
    batch, _ = next(batches([packed], shares=[1.0], batch_size=4))
    assert any(len(np.unique(row)) > 1 for row in batch.document_ids_BT)
    ids, documents = torch.from_numpy(batch.input_ids_BT), torch.from_numpy(batch.document_ids_BT)
    with torch.inference_mode():
        inputs = model.feed_forward_inputs(ids, document_ids_BT=documents)
    for x_BTD, moments in zip(inputs, _moments(model, packed, 4), strict=True):
        parts = [x[d == i].double() for x, d in zip(x_BTD, documents, strict=True) for i in d.unique()]
        around = torch.cat([part - part.mean(dim=0) for part in parts])
        torch.testing.assert_close(moments.within_DD, around.T @ around / (len(around) - len(parts)))
        torch.testing.assert_close(moments.mean_D, x_BTD.double().mean(dim=(0, 1)))


def test_a_row_reads_how_documents_differ_and_not_how_tokens_do() -> None:
    """Two kinds differ equally in two directions; along the second, documents of one kind differ among themselves."""
    mean_D = torch.tensor([1.0, 1.0], dtype=torch.float64)
    tokens_DD, documents_DD = (
        torch.diag(torch.tensor([4.0, 1.0])).double(),
        torch.diag(torch.tensor([0.0, 3.0])).double(),
    )
    zero_D = torch.zeros(2, dtype=torch.float64)
    own = Moments(mean_D, tokens_DD + documents_DD + torch.outer(mean_D, mean_D), tokens_DD)
    public = Moments(zero_D, tokens_DD + documents_DD, tokens_DD)
    row_D = log_ratio_row(own, public, torch.zeros(2), torch.zeros(2), ridge=1e-9)
    torch.testing.assert_close(row_D, torch.tensor([0.25, 1.0]), atol=1e-5, rtol=0)


def _sampled(mean_D: Tensor, factor_DD: Tensor, *, count: int, seed: int) -> Moments:
    """A kind of text whose hidden states are Gaussian around a mean; the last coordinate is 1."""
    draws_ND = torch.randn(count, len(mean_D), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x_ND = torch.cat([mean_D + draws_ND @ factor_DD.T, torch.ones(count, 1, dtype=torch.float64)], dim=1)
    moments = _gaussian(x_ND.mean(dim=0), torch.eye(len(mean_D) + 1, dtype=torch.float64))
    return replace(moments, sample_ND=x_ND.float())


def test_a_fitted_ratio_is_the_log_density_ratio_whatever_there_is_of_each_text() -> None:
    """Against the two densities, from four times as much public text as own; the prior moves the constant alone."""
    factor_DD = torch.tensor([[1.0, 0.0], [0.5, 0.7]], dtype=torch.float64)
    means = [torch.tensor(m, dtype=torch.float64) for m in ([0.8, -0.3], [-0.2, 0.4])]
    own, public = (
        _sampled(m, factor_DD, count=n, seed=i) for i, (m, n) in enumerate(zip(means, (20_000, 80_000), strict=True))
    )
    constant_D = torch.tensor([0.0, 0.0, 1.0])
    row_D = logistic_row(own, public, torch.zeros(3), constant_D, penalty=1e-9)
    gaussians = [torch.distributions.MultivariateNormal(m, factor_DD @ factor_DD.T) for m in means]
    x_ND = own.sample_ND[:200].double()
    expected_N = gaussians[0].log_prob(x_ND[:, :2]) - gaussians[1].log_prob(x_ND[:, :2])
    assert ((x_ND @ row_D.double() - expected_N).abs().mean() / expected_N.abs().mean()).item() < 0.05
    shifted_D = logistic_row(own, public, torch.zeros(3), constant_D, penalty=1e-9, prior=0.2)
    torch.testing.assert_close(shifted_D - row_D, math.log(0.25) * constant_D)


def test_a_fitted_ratio_of_texts_that_never_meet_stays_finite() -> None:
    own, public = (
        _sampled(torch.full((2,), m).double(), 0.01 * torch.eye(2).double(), count=500, seed=0) for m in (9.0, -9.0)
    )
    row_D = logistic_row(own, public, torch.zeros(3), torch.zeros(3))
    assert torch.isfinite(row_D).all()
    assert bool((own.sample_ND @ row_D > 2).all())
    assert bool((public.sample_ND @ row_D < -2).all())


def test_a_fitted_ratio_needs_hidden_states() -> None:
    moments = _gaussian(torch.zeros(3).double(), torch.eye(3).double())
    with pytest.raises(ValueError, match="keep_every"):
        logistic_row(moments, moments, torch.zeros(3), torch.zeros(3))


def test_hidden_states_are_kept_evenly_over_batches(base: Path, text: Path) -> None:
    model, packed = hf.load(base), _packed(base, text / "public")
    read = [batch for batch, _ in islice(batches([packed], shares=[1.0], batch_size=1), 4)]
    kept = measure(model, read, device="cpu", keep_every=7)
    whole = measure(model, read, device="cpu", keep_every=1)
    for few, all_ in zip(kept, whole, strict=True):
        assert len(all_.sample_ND) == 4 * 32
        torch.testing.assert_close(few.sample_ND, all_.sample_ND[::7])
        torch.testing.assert_close(all_.sample_ND.double().mean(dim=0), all_.mean_D)


def _moments(model: CausalLM, packed: PackedText, batch_size: int) -> tuple[Moments, ...]:
    iterator = batches([packed], shares=[1.0], batch_size=batch_size)
    return measure(model, (next(iterator)[0] for _ in range(4 // batch_size)), device="cpu")


def test_text_without_negatives_trains_too(base: Path, text: Path, tmp_path: Path) -> None:
    record = train.run(_config(text, base, tmp_path / "expert", steps=3, negative_share=0.0), StopSignal())
    assert record["tokens"] == 3 * 4 * 32
