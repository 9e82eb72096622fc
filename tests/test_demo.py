"""The demo, real but small: text of one's own, two owners, every process of its own, everything stopped at the end."""

import gzip
import json
import random
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from threading import Event
from typing import Any

import psutil
import pytest
from rich.console import Console

from common.audit import audit
from common.console import JsonReporter
from common.errors import MalformedError, NotFoundError
from deploy import demo
from deploy.demo import Plan
from deploy.demo_report import print_report

Finished = tuple[Mapping[str, Any], list[Mapping[str, Any]], Path]

SMALL = {
    "vocab_size": 270,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "steps": 8,
    "batch_size": 2,
    "sequence_length": 32,
    "learning_rate": 1e-2,
}


def _texts(words: str, count: int) -> list[str]:
    random_ = random.Random(words)
    return [f"{i} " + " ".join(random_.choice(words.split()) for _ in range(60)) for i in range(count)]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Own text in every format that is promised."""
    folder = tmp_path_factory.mktemp("text")
    for name in ("public", "archive", "hospital"):
        (folder / name).mkdir()
    lines = {
        "public": _texts("the model of a language is public and plain", 60),
        "archive": _texts("ledger charter parish deed seal folio", 60),
        "hospital": _texts("ward dose chart pulse nurse fever", 60),
    }
    cuts = {"train": slice(0, 40), "validation": slice(40, 50), "test": slice(50, 60)}
    for split, cut in cuts.items():
        (folder / "public" / f"{split}.jsonl").write_text(_jsonl(lines["public"][cut]))
        with gzip.open(folder / "archive" / f"{split}.jsonl.gz", "wt") as file:
            file.write(_jsonl(lines["archive"][cut]))
        (folder / "hospital" / f"{split}.txt").write_text("\n\n".join(lines["hospital"][cut]))
    return folder


def _jsonl(texts: list[str]) -> str:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts)


@pytest.fixture(scope="module")
def finished(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The figures of one demo, the events that it printed, and where it is."""
    workdir, stream = tmp_path_factory.mktemp("demo") / "work", StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "PRETRAIN", SMALL)
        sizes = {name: SMALL[name] for name in ("steps", "batch_size", "sequence_length", "learning_rate")}
        patch.setattr(demo, "EXPERT", {**sizes, "router_sequences": 8})
        figures = demo.run(
            Plan(workdir, data=text, num_owners=2, seed=3, keep=True), reporter=JsonReporter(stream), stop=Event()
        )
    return figures, [json.loads(line) for line in stream.getvalue().splitlines()], workdir


def test_a_demo_ends_with_every_figure_and_everything_stopped(
    finished: Finished,
) -> None:
    figures, _, workdir = finished
    left = [" ".join(process.cmdline()) for process in psutil.Process().children(recursive=True)]
    assert [line for line in left if "concord" in line or "owner_client" in line or "coordinator" in line] == []
    assert figures["audit"] is True
    assert figures["left"] == "archive"
    rows = {"public", "owner:archive", "owner:hospital", "release-1", "release-2"}
    assert figures["bits_per_byte"].keys() == rows
    for row in figures["bits_per_byte"].values():
        assert row.keys() == {"public", "archive", "hospital"}
        assert all(0 < value < 20 for value in row.values())
    first, second = figures["experts"]["release-1"], figures["experts"]["release-2"]
    assert first[0] == "public"  # the others follow in the order of their consents
    assert set(first) == {"public", "archive", "hospital"}
    assert second == ["public", "hospital"]
    for release, domains in figures["shares"].items():
        for shares in domains.values():
            assert len(shares) == len(figures["experts"][release])
            assert sum(shares) == pytest.approx(1)
    assert figures["peak_rss_mb"] > 100
    released = audit(workdir / "coordinator" / "public").releases
    assert {name: set(owners) for name, owners in released.items()} == {
        "release-1": {"archive", "hospital"},
        "release-2": {"hospital"},
    }


def test_what_was_sent_is_what_the_ledger_says(
    finished: Finished,
) -> None:
    figures, _, workdir = finished
    for owner, files in figures["sent_files"].items():
        experts = list((workdir / "owners" / owner / "experts").glob("*/expert.safetensors"))
        assert files["expert.safetensors"] == experts[0].stat().st_size
        assert figures["sent_bytes"][owner] == sum(files.values())
        assert ("consent.revoke" in files) == (owner == figures["left"])


def test_progress_shows_loss_and_speed(finished: Finished) -> None:
    _, events, _ = finished
    notes = [
        event["note"] for event in events if event["event"] == "progress" and "training the expert" in event["task"]
    ]
    assert notes
    assert all("loss" in note and "tokens/s" in note for note in notes)


def test_the_report_names_every_figure(finished: Finished) -> None:
    figures, _, workdir = finished
    stream = StringIO()
    print_report(Console(file=stream, width=160), figures)
    printed = stream.getvalue()
    for expected in ("Bits per byte", "owner:hospital", "What left each owner", "consent.revoke", "release.publish"):
        assert expected in printed
    assert f"concord audit verify {workdir}/coordinator/public" in printed


def test_text_without_public_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text" / "archive").mkdir(parents=True)
    with pytest.raises(NotFoundError, match="no folder called public"):
        _refused(tmp_path)


def test_too_few_owners_are_refused(tmp_path: Path) -> None:
    for name in ("public", "archive"):
        (tmp_path / "text" / name).mkdir(parents=True)
    with pytest.raises(MalformedError, match="text for 1 owners, not for 2; see --owners"):
        _refused(tmp_path)


def _refused(tmp_path: Path) -> None:
    plan = Plan(tmp_path / "work", data=tmp_path / "text", num_owners=2, seed=0, keep=False)
    demo.run(plan, reporter=JsonReporter(StringIO()), stop=Event())
