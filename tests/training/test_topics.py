"""Topics: what they are of a text, and that training for them makes routers see kinds of text."""

from pathlib import Path

import numpy as np
import pytest
import torch
from small_jobs import pretrain_config, write_text
from torch import Tensor

from common.data import read_split
from common.job import StopSignal
from common.loss import TensorBatch
from common.model import hf
from common.model.config import ModelConfig
from common.model.transformer import CausalLM
from common.packing import Batch, PackedText, batches
from common.tokenizer import Tokenizer
from coordinator import pretrain
from coordinator.patchworks import patchworks
from coordinator.topics import TopicLM, TopicSpace

VOCAB_SIZE = 40


def _packed(documents: list[list[int]]) -> PackedText:
    return PackedText(documents, sequence_length=16, eos_token_id=0, seed=0)


@pytest.fixture(scope="module")
def two_kinds() -> PackedText:
    """Documents of low and of high word numbers."""
    random = np.random.default_rng(0)
    kinds = [random.integers(low, low + 15, size=(200, 15)).tolist() for low in (1, 20)]
    return _packed([document for kind in kinds for document in kind])


def _batch(rows: list[list[int]], parts: list[list[int]]) -> TensorBatch:
    ids, of = np.array(rows, np.int64), np.array(parts, np.int64)
    return TensorBatch.place(Batch(ids, ids, np.zeros_like(of), of, np.zeros(len(rows), np.int64)), "cpu")


def test_topics_have_mean_zero_and_variance_one_and_the_first_tells_the_kinds_apart(two_kinds: PackedText) -> None:
    space = TopicSpace.fit(two_kinds, vocab_size=VOCAB_SIZE, num_topics=3, seed=0)
    batch, _ = next(batches([two_kinds], shares=[1.0], batch_size=two_kinds.num_sequences))
    targets_NJ = space.targets(TensorBatch.place(batch, "cpu")).flatten(0, 1)
    topics_NK = targets_NJ[:, :-1]
    assert torch.equal(targets_NJ[:, -1], torch.ones(len(targets_NJ)))
    torch.testing.assert_close(topics_NK.mean(dim=0), torch.zeros(3), atol=0.1, rtol=0)
    torch.testing.assert_close(torch.cov(topics_NK.T), torch.eye(3), atol=0.2, rtol=0)
    low = topics_NK[:, 0][torch.from_numpy(batch.input_ids_BT).flatten() < 18]
    high = topics_NK[:, 0][torch.from_numpy(batch.input_ids_BT).flatten() >= 20]
    assert abs(low.mean() - high.mean()) > 1.5


def test_rare_words_decide_where_words_count_alike() -> None:
    """Kinds differ in three rare words each; two frequent ones come and go in all documents."""
    random = np.random.default_rng(0)
    documents, kinds = [], []
    for index in range(400):
        rare = [3, 4, 5] if index % 2 else [6, 7, 8]
        documents.append([*rare, *random.choice([1, 2], size=12, p=[share := random.random(), 1 - share]).tolist()])
        kinds.append(index % 2)
    told_apart = {}
    for evenness in (0.0, 1.0):
        space = TopicSpace.fit(_packed(documents), vocab_size=9, num_topics=1, seed=0, word_evenness=evenness)
        topics = space.targets(_batch(documents, [[0] * 15] * 400))[:, 0, 0]
        means = [float(topics[torch.tensor(kinds) == kind].mean()) for kind in (0, 1)]
        told_apart[evenness] = abs(means[0] - means[1])
    assert told_apart[0.0] < 0.5
    assert told_apart[1.0] > 1.9


def test_more_is_found_of_what_varies_where_more_is_looked_for() -> None:
    random = np.random.default_rng(0)
    text = _packed(random.integers(1, 200, size=(300, 15)).tolist())
    kept = []
    for oversampling in (1, 4):
        space = TopicSpace.fit(text, vocab_size=200, num_topics=12, seed=0, oversampling=oversampling)
        assert space.num_topics == 12
        # Components are divided by the deviation they found: the smaller they are, the more of it.
        kept.append(float((1 / space.components_VK.norm(dim=0)).square().sum()))
    assert kept[1] > 1.01 * kept[0]


def test_a_topic_is_of_its_part_alone_whatever_else_is_in_the_sequence(two_kinds: PackedText) -> None:
    space = TopicSpace.fit(two_kinds, vocab_size=VOCAB_SIZE, num_topics=2, seed=0)
    of_two = space.targets(_batch([[1, 2, 3, 4, 30, 31, 32, 33]], [[5, 5, 5, 5, 9, 9, 9, 9]]))
    of_one = space.targets(_batch([[1, 2, 3, 4], [33, 30, 31, 32]], [[7, 7, 7, 7], [7, 7, 7, 7]]))
    torch.testing.assert_close(of_two[0, :4], of_one[0])
    torch.testing.assert_close(of_two[0, 4:], of_one[1])
    assert torch.equal(of_one[0], of_one[0][:1].expand(4, 3))


def test_the_same_seed_finds_the_same_topics_and_moves_no_other_chance(two_kinds: PackedText) -> None:
    before = torch.random.get_rng_state()
    first, second = (TopicSpace.fit(two_kinds, vocab_size=VOCAB_SIZE, num_topics=3, seed=4) for _ in range(2))
    assert torch.equal(first.components_VK, second.components_VK)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_little_text_has_fewer_topics_and_a_single_stretch_has_none(text: Path, tmp_path: Path) -> None:
    assert TopicSpace.fit(_packed([[1] * 15, [2] * 15, [3] * 15]), vocab_size=9, num_topics=8, seed=0).num_topics == 2
    assert TopicSpace.fit(_packed([[1] * 16]), vocab_size=9, num_topics=8, seed=0).num_topics == 0
    short = tmp_path / "short"
    write_text(short / "public", "public", num_documents=3)
    config = pretrain_config(short, tmp_path / "base", steps=2, sequence_length=128, vocab_size=260)
    record = pretrain.run(pretrain.PretrainJob.model_validate(config), StopSignal())
    assert record["steps"] == 2


def test_topics_make_the_kind_of_text_readable_where_routers_look(tmp_path: Path) -> None:
    """A line through what routers see predicts topics of text that was never trained on, far better than without."""
    folder = tmp_path / "public"
    for kind in ("public", "own"):
        write_text(folder / "train" / kind, kind, num_documents=60)
        write_text(folder / "test" / kind, kind, num_documents=30, seed=1)
    explained = [_explained(folder, tmp_path / f"base {weight}", weight) for weight in (0.0, 1.0)]
    assert explained[1] > explained[0] + 0.1
    assert explained[1] > 0.5


def test_a_model_that_read_patchworks_sees_a_change_of_subject(tmp_path: Path) -> None:
    folder = tmp_path / "public"
    for kind in ("public", "own"):
        write_text(folder / "train" / kind, kind, num_documents=30, num_words=240)
        write_text(folder / "test" / kind, kind, num_documents=15, num_words=240, seed=1)
    left = [
        1 - _explained(folder, tmp_path / f"base {share}", 1.0, cut=True, patchwork_share=share, sequence_length=128)
        for share in (0.0, 1.0)
    ]
    assert left[1] < 0.7 * left[0]


def _explained(folder: Path, output: Path, weight: float, *, cut: bool = False, **changes: object) -> float:
    """Share of the variance of the first topic that the least squares fit explains at the first layer, over whole
    documents or over patchworks."""
    job = pretrain.PretrainJob.model_validate(
        pretrain_config(folder.parent, output, steps=60, topic_weight=weight, **changes)
    )
    pretrain.run(job, StopSignal())
    model, tokens = hf.load(output), Tokenizer.load(output)
    documents = read_split(folder, "test")
    text = PackedText(
        [] if cut else tokens.encode_all([d.text for d in documents]),
        patchworks=[tokens.encode_all(parts) for parts in patchworks(documents, seed=0)] if cut else [],
        sequence_length=job.sequence_length,
        eos_token_id=tokens.eos_token_id,
        seed=0,
    )
    space = TopicSpace.fit(text, vocab_size=tokens.vocab_size, num_topics=1, seed=0)
    batch, _ = next(batches([text], shares=[1.0], batch_size=min(text.num_sequences, 96)))
    placed = TensorBatch.place(batch, "cpu")
    with torch.inference_mode():
        x_BTD = model.feed_forward_inputs(placed.input_ids_BT, document_ids_BT=placed.document_ids_BT)[0]
    return _r_squared(x_BTD.flatten(0, 1), space.targets(placed)[..., 0].flatten())


def _r_squared(x_ND: Tensor, y_N: Tensor) -> float:
    with_constant = torch.cat([x_ND, torch.ones(len(x_ND), 1)], dim=1)
    fit_D = torch.linalg.lstsq(with_constant, y_N.unsqueeze(1)).solution
    return 1 - float((y_N - (with_constant @ fit_D).squeeze(1)).var() / y_N.var())


def test_heads_change_nothing_that_the_model_computes() -> None:
    sizes = {"vocab_size": VOCAB_SIZE, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 16, "rope_theta": 1e4}
    model = CausalLM(ModelConfig(**sizes, **heads, eos_token_id=0))  # type: ignore[arg-type]
    with_heads = TopicLM(model, num_topics=3)
    ids = torch.arange(12).view(1, 12)
    assert torch.equal(with_heads(ids).logits_BTV, model(ids).logits_BTV)
    assert [tuple(t.shape) for t in with_heads.topics()] == [(1, 12, 4)] * 2
