"""The measuring of ways to combine experts: every system in small, stopped in the middle and gone on with."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.consortium import Consortium, active_parameters, expert_steps_in_full_steps
from benchmarks.method import Study, check_only_left, efficiency
from benchmarks.method_presets import PRESETS, changed
from benchmarks.method_report import markdown
from benchmarks.method_seeds import MEANS, check_apart, joined, mean_over, recorded
from common.data import read_split, write_documents
from common.errors import ConflictError, MalformedError
from common.model import hf, partition
from common.model.config import ModelConfig
from common.model.transformer import CausalLM
from deploy import corpora

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The text of this machine, by domain."""
    folder = tmp_path_factory.mktemp("text") / "corpora"
    corpora.write_default(folder, seed=0)
    return folder


def _start(text: Path, work: Path, *more: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-u", "-m", "benchmarks.method", "--preset", "smoke", "--data", str(text)]
    command += ["--work", str(work), "--owners", "code", "legal", "math", *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


@pytest.mark.timeout(1200)  # trains some twenty small models, a minute and a half on two idle cores
def test_every_system_is_measured_and_a_killed_run_goes_on(text: Path, tmp_path: Path) -> None:
    first = _start(text, tmp_path)
    assert first.stdout is not None
    for line in first.stdout:
        if ": dense experts" in line:
            first.send_signal(signal.SIGKILL)
            break
    first.wait()
    made = {path: path.stat().st_mtime_ns for path in tmp_path.glob("seed-0/*/training.json")}
    assert len(made) >= 4
    second = _start(text, tmp_path)
    output, errors = second.communicate()
    assert second.returncode == 0, errors
    assert {path: path.stat().st_mtime_ns for path in made} == made
    assert not re.search(r"^  (base|expert-legal)$", output.partition(": dense experts")[0], re.MULTILINE)

    result = json.loads(output.splitlines()[-1])
    table, owners = result["table"], ["code", "legal", "math"]
    assert {"public", "release", "release+rt", "soup", "weighted soup", "BTX", "unrestricted 1x"} <= set(table)
    assert {"BTM, dense", "BTM, coordinated", "classifier, dense", "not coordinated, negatives"} <= set(table)
    assert all(set(row) == {"public", *owners, "mixed"} for row in table.values())
    assert all(1 < bits < 8 for row in table.values() for bits in row.values())
    for owner in owners:
        assert table[f"own: {owner}"][owner] < table["public"][owner]
        assert result["opt_out"][owner][owner] > table["release"][owner]
        assert result["merge_efficiency"]["release"][owner] > 0
    assert result["seeds"]["0"]["top_k"]["2"] == pytest.approx(table["release"])
    assert "| release |" in markdown(result)
    other = _start(text, tmp_path, "--try", "router_hold_public=3", "num_proxies=5")
    output, errors = other.communicate()
    assert other.returncode == 0, errors
    assert re.findall(r"^  (\S+)$", output, re.MULTILINE) == ["release+rt"]
    tried = json.loads(output.splitlines()[-1])
    assert (tried["benchmark"], tried["sizes"]["router_hold_public"]) == ("method-smoke-4-tried", 3.0)
    assert tried["table"].keys() == {"public", "release", "release+rt", *(f"own: {owner}" for owner in owners)}
    assert tried["table"]["release"] != table["release"], "it is measured on other text"


def test_sizes_are_changed_by_name() -> None:
    sizes = changed(PRESETS["smoke"], ["router_hold_public=0.25", "coordinated=false", "split_bytes=9"])
    assert (sizes.router_hold_public, sizes.coordinated, sizes.split_bytes) == (0.25, False, 9)
    assert replace(sizes, router_hold_public=0.0, coordinated=True, split_bytes=100_000) == PRESETS["smoke"]
    for wrong, message in (
        ("rate=1", "no size is called 'rate'"), ("top_k=many", "top_k"), ("top_k", "top_k"),
        ("router_hold_public=-1", "router_hold_public is -1.0"), ("router_hold_public=nan", "is nan"),
        ("evaluated_bytes=0", "evaluated_bytes: .*greater than or equal to 1"),
    ):  # fmt: skip
        with pytest.raises(MalformedError, match=message):
            changed(PRESETS["smoke"], [wrong])


def test_what_cannot_be_measured_is_one_line(tmp_path: Path) -> None:
    for more, message in (
        (["--try", "rate=1"], "no size is called 'rate'"),
        (["--join", str(tmp_path / "none.json")], "none.json: not a result of this benchmark"),
        ([], "public: no such file or folder"),
    ):
        run = _start(tmp_path / "data", tmp_path / "work", *more)
        _, errors = run.communicate()
        assert run.returncode == 1
        assert re.fullmatch(f"Error: .*{message}.*\n", errors)


def test_merge_efficiency_is_the_kept_share_of_what_an_owner_gained() -> None:
    table = {"public": {"a": 2.0}, "release": {"a": 1.6}}
    assert efficiency(table, {"a": {"a": 1.5}}, "release") == {"a": pytest.approx(0.8)}


def _keep_experts(model: CausalLM, kept: list[int], folder: Path) -> Path:
    """The model with some of its experts, saved."""
    state = model.state_dict()
    smaller = CausalLM(model.config.with_experts(len(kept), 2))
    for name, tensor in smaller.state_dict().items():
        owner, source = partition.owner_of(name), name
        if isinstance(owner, int):
            source = name.replace(f".{owner}.", f".{kept[owner]}.") if ".experts." in name else (
                name.rpartition(".")[0] + f".{kept[owner]}"
            )  # fmt: skip
        tensor.copy_(state[source])
    hf.save(smaller, folder)
    return folder


def test_what_is_left_when_an_owner_leaves_is_checked_bit_by_bit(tmp_path: Path) -> None:
    sizes = {"vocab_size": 300, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    config = ModelConfig(
        **sizes, num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=32, eos_token_id=0
    )
    model = CausalLM(config.with_experts(4, 2), seed=3)
    with torch.no_grad():
        before = _keep_experts(model, [0, 1, 2, 3], tmp_path / "before")
        after = _keep_experts(model, [0, 1, 3], tmp_path / "after")
        check_only_left(before, after, expert=2)
        with pytest.raises(AssertionError, match="is not as in"):
            check_only_left(before, after, expert=1)
        model.state_dict()[partition.router_row(0, 3)][5] += 1e-6
        nudged = _keep_experts(model, [0, 1, 3], tmp_path / "nudged")
        with pytest.raises(AssertionError, match=re.escape(partition.router_row(0, 2))):
            check_only_left(before, nudged, expert=2)


def test_means_are_over_the_seeds_that_have_a_system() -> None:
    seeds = [{"release": {"a": 1.0}, "unrestricted 2x": {"a": 3.0}}, {"release": {"a": 2.0}}]
    assert mean_over(seeds) == {"release": {"a": 1.5}, "unrestricted 2x": {"a": 3.0}}


def _result(*seeds: str, seconds: float, bits: float) -> dict[str, Any]:
    """What a study of one owner records, its means apart."""
    one = {key: {"release": {"code": bits}} for key in MEANS}
    return {
        "benchmark": "method-cpu-2", "machine": {"cores": len(seeds)}, "sizes": {"top_k": 3, "seeds": [0, 1]},
        "seeds": dict.fromkeys(seeds, one), "seconds": seconds, **one,
    }  # fmt: skip


def _recorded(path: Path, result: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    path.write_text(json.dumps(result))
    study = {"benchmark": "method-cpu-2", "owners": ["code"], "sizes": {"top_k": 3, "seeds": (0, 1)}}
    return recorded(path, **{**study, **changes})


def test_seeds_that_were_measured_apart_are_one_result(tmp_path: Path) -> None:
    parts = [_result("0", "1", seconds=5.0, bits=1.0), _result("2", seconds=2.5, bits=4.0)]
    result = joined([_recorded(tmp_path / "recorded", joined(parts[:1])), parts[1]])
    assert result["table"] == {"release": {"code": 2.0}}
    assert list(result["seeds"]) == ["0", "1", "2"]
    assert result["seconds"] == 7.5
    assert [(run["seeds"], run["seconds"], run["machine"]["cores"]) for run in result["runs"]] == [
        (["0", "1"], 5.0, 2), (["2"], 2.5, 1)
    ]  # fmt: skip
    check_apart(parts, [3])
    for conflicting, seeds in ((parts, [2]), ([*parts, parts[1]], [3]), ([], [3, 3])):
        with pytest.raises(ConflictError, match="would count twice"):
            check_apart(conflicting, seeds)


def test_what_an_owner_leaves_behind_is_beside_the_release_of_its_own_seed() -> None:
    released = [{"code": 2.0, "public": 4.0}, {"code": 1.0, "public": 1.0}]
    left = [{"code": {"code": 2.5, "public": 3.96}}, {}]
    table = {"public": released[1], "release": {"code": 1.5, "public": 2.5}}
    result = {
        "benchmark": "method-cpu-2-brief", "table": table, "opt_out": mean_over(left), "top_k": {},
        "cost": {name: {"active_parameters": 1000, "time_per_token": 1.0} for name in table},
        "merge_efficiency": {}, "public_cost": {}, "share_of_dense_gain": {"code": 0.5},
        "seeds": {
            str(seed): {"table": {"public": row, "release": row}, "opt_out": without}
            for seed, (row, without) in enumerate(zip(released, left, strict=True))
        },
    }  # fmt: skip
    assert "| code | +25.00% | -1.00% |" in markdown(result)
    assert "| without |" not in markdown({**result, "seeds": {"1": result["seeds"]["1"]}})


def test_seeds_of_another_study_are_not_joined(tmp_path: Path) -> None:
    result = _result("0", seconds=1.0, bits=1.0)
    others = {"benchmark": "method-cpu-2-brief", "owners": ["law"], "sizes": {"top_k": 2, "seeds": [0, 1]}}
    for what, other in others.items():
        with pytest.raises(ConflictError, match=f"its {what} are not these"):
            _recorded(tmp_path / "recorded", result, **{what: other})
    for broken in ({}, {**result, "merge_efficiency": 3}, []):
        with pytest.raises(MalformedError, match="not a result of this benchmark"):
            _recorded(tmp_path / "recorded", broken)  # type: ignore[arg-type]


def test_parameters_that_work_on_a_token_leave_out_experts_that_were_not_chosen() -> None:
    sizes = {"vocab_size": 300, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    config = ModelConfig(
        **sizes, num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=32, eos_token_id=0
    )
    attention_and_norms = 2 * (4 * 16 * 16 + 4 * 16) + 16
    dense = 300 * 16 + 16 + attention_and_norms + 2 * 3 * 16 * 32
    assert active_parameters(CausalLM(config)) == dense
    of_four, of_two = (active_parameters(CausalLM(config.with_experts(count, 2))) for count in (4, 2))
    assert of_two == dense + 2 * (3 * 16 * 32 + 2 * 16)
    assert of_four == of_two + 2 * 2 * 16


def test_owners_that_cannot_be_told_apart_are_refused(text: Path, tmp_path: Path) -> None:
    with pytest.raises(MalformedError, match="a name of its own"):
        Consortium(tmp_path, text, ("code", "code"), PRESETS["smoke"], 0).corpora()
    (tmp_path / "data").mkdir()
    for name, source in (("public", "public"), ("a", "math"), ("b", "math")):
        (tmp_path / "data" / name).symlink_to(text / source)
    with pytest.raises(MalformedError, match="b and a have the same text"):
        Consortium(tmp_path / "work", tmp_path / "data", ("a", "b"), PRESETS["smoke"], 0).corpora()


def test_where_nobody_has_proxies_routers_are_not_trained(text: Path, tmp_path: Path) -> None:
    public = list(read_split(text / "public", "train"))
    for name, documents in (("public", public[::2]), ("a", public[1::2])):
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True)
        write_documents(folder / "train.jsonl.gz", documents)
    sizes = replace(PRESETS["smoke"], pretrain_steps=4, expert_steps=2, min_accuracy=0.95)
    world = Consortium(tmp_path / "work", tmp_path / "data", ("a",), sizes, 0)
    experts, study = world.experts(), Study(world)
    assert study.proxies("a") == []
    assert study.router_trained(experts) == world.release(experts)
    assert study.calibrated(experts).is_dir()


def test_an_owners_step_costs_less_than_one_of_a_whole_mixture() -> None:
    sizes = replace(PRESETS["smoke"], hidden_size=10, intermediate_size=100, num_hidden_layers=1, vocab_size=300)
    # 400 of attention, 3,000 of the head, 3,000 in each of two experts: 9,400 forwards and as many backwards.
    assert expert_steps_in_full_steps(sizes) == pytest.approx(sizes.expert_steps * (18_800 + 3_000) / 28_200)
