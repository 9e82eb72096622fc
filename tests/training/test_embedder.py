"""Rows from an embedder of the owner's choice: what they are, what is refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_jobs import expert_config

from common.data import read_split
from common.embedder import PROJECTION_NAME, Embedder, directory_digest, embedded_difference, projection
from common.errors import MalformedError
from common.job import StopSignal
from common.model import partition
from common.model.router_rows import PublicRouter
from owner_client import train
from tests.encoders import write_embedder


def _texts(text: Path, kind: str) -> list[str]:
    return [document.text for document in read_split(text / kind, "train")]


@pytest.fixture(scope="module")
def embedder(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As wide as the small public model."""
    return write_embedder(
        tmp_path_factory.mktemp("embedder") / "e", _texts(text, "own") + _texts(text, "public"), width=16
    )


def test_rows_differ_from_the_public_row_as_mean_embeddings_do(
    base: Path, text: Path, tmp_path: Path, embedder: Path
) -> None:
    config = expert_config(
        text, base, tmp_path / "expert", steps=2, bias=False, router_start="embedder", embedder=embedder,
        embedder_documents=10_000,
    )  # fmt: skip
    train.run(train.ExpertJob.model_validate(config), StopSignal())
    rows = load_file(tmp_path / "expert" / train.EXPERT_FILE)
    public = PublicRouter.load(base, num_hidden_layers=2, hidden_size=16)
    reader = Embedder(embedder)
    expected = reader.mean(_texts(text, "own")) - reader.mean(_texts(text, "public"))
    assert expected.norm() > 0.05
    for layer in range(2):
        torch.testing.assert_close(rows[partition.router_row(layer, 1)] - public.rows[layer], expected)


def test_another_width_needs_the_stated_projection(base: Path, text: Path, tmp_path: Path) -> None:
    wide = write_embedder(tmp_path / "wide", _texts(text, "own"), width=24)
    job = expert_config(text, base, tmp_path / "expert", steps=2, router_start="embedder", embedder=wide)
    with pytest.raises(MalformedError, match=r"makes 24 numbers .* hidden_size is 16; .* embedder_projection"):
        train.run(train.ExpertJob.model_validate(job), StopSignal())
    train.run(train.ExpertJob.model_validate({**job, "embedder_projection": True}), StopSignal())
    assert (tmp_path / "expert" / train.EXPERT_FILE).exists()


def test_the_projection_is_the_stated_one_and_keeps_lengths() -> None:
    first = projection(384, 128)
    assert first.shape == (384, 128)
    assert first.abs().unique().tolist() == [pytest.approx(128**-0.5)]
    # The first eight signs, from `printf concord/embedder-projection/v1 | openssl shake256 -xoflen 1`.
    assert PROJECTION_NAME == "concord/embedder-projection/v1"
    assert (first[0, :8] > 0).int().tolist() == [0, 1, 0, 0, 0, 1, 0, 0]
    vectors = torch.randn(50, 384, generator=torch.Generator().manual_seed(0))
    ratios = (vectors @ first).norm(dim=1) / vectors.norm(dim=1)
    assert ratios.mean() == pytest.approx(1, abs=0.05)


def test_what_could_run_code_is_refused(text: Path, tmp_path: Path, embedder: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in embedder.rglob("*"):
        if file.is_file():
            target = copy / file.relative_to(embedder)
            target.parent.mkdir(exist_ok=True, parents=True)
            target.write_bytes(file.read_bytes())
    assert directory_digest(copy) == directory_digest(embedder)
    (copy / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(MalformedError, match=r"pytorch_model\.bin: pickled tensors are not read"):
        Embedder(copy)
    (copy / "pytorch_model.bin").unlink()
    modules = json.loads((copy / "modules.json").read_text())
    modules[0]["type"] = "os.system"
    (copy / "modules.json").write_text(json.dumps(modules))
    assert directory_digest(copy) != directory_digest(embedder)
    with pytest.raises(MalformedError, match=r"'os\.system' is not a module of sentence-transformers"):
        Embedder(copy)


@pytest.mark.parametrize("content", [None, "{", "[1]", '[{"type": 3}]'])
def test_a_directory_that_is_no_embedder_is_refused(tmp_path: Path, content: str | None) -> None:
    with pytest.raises(MalformedError, match="no such directory"):
        Embedder(tmp_path / "none")
    (tmp_path / "model.safetensors").write_bytes(b"")
    if content is not None:
        (tmp_path / "modules.json").write_text(content)
    with pytest.raises(MalformedError, match=r"modules\.json"):
        Embedder(tmp_path)


def test_an_embedder_and_its_use_go_together(base: Path, text: Path, tmp_path: Path, embedder: Path) -> None:
    for change in ({"router_start": "embedder"}, {"embedder": embedder}):
        with pytest.raises(ValueError, match="give both or neither"):
            train.ExpertJob.model_validate(expert_config(text, base, tmp_path, **change))


def test_embeddings_of_one_width_are_not_projected(text: Path, embedder: Path) -> None:
    reader = Embedder(embedder)
    own, public = _texts(text, "own")[:5], _texts(text, "public")[:5]
    plain = embedded_difference(reader, own, public, hidden_size=16, project=True)
    torch.testing.assert_close(plain, reader.mean(own) - reader.mean(public))
