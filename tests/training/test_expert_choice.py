"""An owner's expert knows which public documents are of its owner's kind."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from small_jobs import WORDS, expert_config, pretrain_config, write_text

from common.data import read_documents, read_split, write_documents
from common.errors import MalformedError, NotFoundError
from common.evaluate import prepare, score
from common.job import StopSignal
from common.model import hf
from common.model.assembly import assemble
from common.tokenizer import Tokenizer
from coordinator import pretrain
from owner_client import proxies, train
from owner_client.expert_choice import ExpertChoice, GainScale, trained_length
from owner_client.proxies import ProxyJob


@pytest.fixture(scope="module")
def expert(text: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that learned its owner's text by the real job."""
    output = tmp_path_factory.mktemp("expert") / "expert"
    train.run(train.ExpertJob.model_validate(expert_config(text, base, output, steps=60)), StopSignal())
    return output / train.EXPERT_FILE


@pytest.fixture
def pool(text: Path, tmp_path: Path) -> Path:
    """Public text that nobody has seen, of which one document in six is of the owner's kind."""
    kinds = {
        kind: read_documents(write_text(tmp_path / kind, kind, num_documents=count, seed=5) / "train.jsonl")
        for kind, count in (("public", 60), ("own", 12))
    }
    (tmp_path / "pool").mkdir()
    write_documents(tmp_path / "pool" / "train.jsonl", [*kinds["public"], *kinds["own"]])
    return tmp_path / "pool"


def _job(text: Path, base: Path, expert: Path, pool: Path, **changes: Any) -> ProxyJob:
    places = {"data": text / "own", "public": pool, "base": base, "expert": expert, "output": pool.parent / "proxies"}
    return ProxyJob.model_validate({**places, "count": 40, "min_score": 0.5, **changes})


def test_it_chooses_the_public_documents_of_its_owners_kind_and_no_others(
    text: Path, base: Path, expert: Path, pool: Path
) -> None:
    job = _job(text, base, expert, pool, min_accuracy=0.95)
    proxies.run(job)
    found = proxies.Proxies(**json.loads(job.output.read_text()))
    public = list(read_split(pool, "train"))
    chosen = proxies.chosen_documents(public, found)
    alike = {each.digest for each in public if any(word in each.text for word in WORDS["own"].split())}
    assert {each.digest for each in chosen} == alike
    assert len(alike) > 5
    assert found.accuracy > 0.95
    assert found.scores == sorted(found.scores, reverse=True)
    assert [each.name for each in pool.parent.glob("two-expert-*")] == []


def test_what_a_document_gains_is_the_difference_of_two_models_losses(
    text: Path, base: Path, expert: Path, tmp_path: Path
) -> None:
    documents = read_split(text / "own", "validation")
    chooser = ExpertChoice(base, expert, sequence_length=32, batch_size=2, scratch=tmp_path)
    gains = chooser.gains(documents)
    assert gains.shape == (len(documents),)
    assemble(base, [expert], num_experts_per_tok=2, output=tmp_path / "own-model")
    for gain, each in zip(gains, documents, strict=True):
        domain = prepare([each], Tokenizer.load(base), sequence_length=32)
        bits = [score(hf.load(model), domain, batch_size=2).bits_per_byte for model in (base, tmp_path / "own-model")]
        nats = (bits[0] - bits[1]) * math.log(2) * domain.num_bytes / domain.windows.num_tokens
        assert gain == pytest.approx(nats, abs=1e-4)
        assert gain > 0.1


def test_an_expert_that_learned_nothing_of_its_owners_text_chooses_nothing(
    text: Path, base: Path, expert: Path, pool: Path
) -> None:
    with pytest.raises(NotFoundError, match="the expert predicts own text no better than public text"):
        proxies.select(_job(text, base, expert, pool, data=text / "public"))


def test_an_expert_of_another_base_is_refused(text: Path, base: Path, expert: Path, pool: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    pretrain.run(
        pretrain.PretrainJob.model_validate(pretrain_config(text, other, steps=2, hidden_size=8)), StopSignal()
    )
    with pytest.raises(MalformedError, match="shape"):
        proxies.select(_job(text, other, expert, pool))


@pytest.mark.parametrize(
    ("record", "error", "said"),
    [
        (None, NotFoundError, "is not there; give sequence_length"),
        ("{", MalformedError, "no config with a sequence_length"),
        ('{"config": {"sequence_length": "x"}}', MalformedError, "sequence_length is x"),
    ],
)
def test_an_expert_reads_what_it_was_trained_on(
    expert: Path, tmp_path: Path, record: str | None, error: type[Exception], said: str
) -> None:
    assert trained_length(expert.parent) == 32
    if record is not None:
        (tmp_path / "training.json").write_text(record)
    with pytest.raises(error, match=said):
        trained_length(tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"base": None}, "go together: give both or neither"), ({"encoder": Path("encoder")}, "one chooses")],
)
def test_what_chooses_is_said_once(
    text: Path, base: Path, expert: Path, pool: Path, changes: dict[str, Any], said: str
) -> None:
    job = _job(text, base, expert, pool).model_dump()
    with pytest.raises(ValidationError, match=said):
        ProxyJob.model_validate({**job, **changes})


def test_a_scale_says_how_likely_a_gain_is_an_owners() -> None:
    """Two normal distributions, one unit wide and three apart: half way between, either is as likely."""
    random = np.random.default_rng(0)
    scale = GainScale(random.normal(3, 1, 2000), random.normal(0, 1, 20_000))
    middle, own, public = scale.probabilities(np.array([1.5, 3.0, 0.0]))
    assert middle == pytest.approx(0.5, abs=0.03)
    assert own == pytest.approx(1 / (1 + math.exp(-4.5)), abs=0.01)
    assert public == pytest.approx(1 - own, abs=0.01)
