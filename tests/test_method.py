"""The measuring of ways to combine experts: every system in small, stopped in the middle and gone on with."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.consortium import Consortium
from benchmarks.method import PRESETS, efficiency
from benchmarks.method_report import markdown
from common.errors import MalformedError
from deploy import corpora

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The text of this machine, by domain."""
    folder = tmp_path_factory.mktemp("text") / "corpora"
    corpora.write_default(folder, seed=0)
    return folder


def _start(text: Path, work: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-u", "-m", "benchmarks.method", "--preset", "smoke", "--data", str(text)]
    command += ["--work", str(work), "--owners", "code", "legal", "math"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


def test_every_system_is_measured_and_a_killed_run_goes_on(text: Path, tmp_path: Path) -> None:
    first = _start(text, tmp_path)
    assert first.stdout is not None
    for line in first.stdout:
        if "dense experts" in line:
            first.send_signal(signal.SIGKILL)
            break
    first.wait()
    made = {path: path.stat().st_mtime_ns for path in tmp_path.glob("seed-0/*/training.json")}
    assert len(made) >= 4
    second = _start(text, tmp_path)
    output, errors = second.communicate()
    assert second.returncode == 0, errors
    assert {path: path.stat().st_mtime_ns for path in made} == made
    assert not re.search(r"^  (base|expert-legal)$", output.partition("dense experts")[0], re.MULTILINE)

    result = json.loads(output.splitlines()[-1])
    table, owners = result["table"], ["code", "legal", "math"]
    assert {"public", "release", "release+rt", "soup", "weighted soup", "BTX", "unrestricted 1x"} <= set(table)
    assert {"BTM, dense", "BTM, coordinated", "classifier, dense", "no coordination"} <= set(table)
    assert all(set(row) == {"public", *owners, "mixed"} for row in table.values())
    assert all(1 < bits < 8 for row in table.values() for bits in row.values())
    for owner in owners:
        assert table[f"own: {owner}"][owner] < table["public"][owner]
        assert result["opt_out"][owner][owner] > table["release"][owner]
        assert result["merge_efficiency"]["release"][owner] > 0
    assert result["seeds"]["0"]["top_k"]["2"] == pytest.approx(table["release"])
    assert "| release |" in markdown(result)


def test_merge_efficiency_is_the_kept_share_of_what_an_owner_gained() -> None:
    table = {"public": {"a": 2.0}, "release": {"a": 1.6}}
    assert efficiency(table, {"a": {"a": 1.5}}, "release") == {"a": pytest.approx(0.8)}


def test_owners_that_cannot_be_told_apart_are_refused(text: Path, tmp_path: Path) -> None:
    with pytest.raises(MalformedError, match="a name of its own"):
        Consortium(tmp_path, text, ("code", "code"), PRESETS["smoke"], 0).corpora()
    (tmp_path / "data").mkdir()
    for name, source in (("public", "public"), ("a", "math"), ("b", "math")):
        (tmp_path / "data" / name).symlink_to(text / source)
    with pytest.raises(MalformedError, match="b and a have the same text"):
        Consortium(tmp_path / "work", tmp_path / "data", ("a", "b"), PRESETS["smoke"], 0).corpora()
