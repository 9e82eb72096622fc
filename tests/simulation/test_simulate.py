"""`concord simulate`: a whole consortium's life through Flower's engine, held to what owners did."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from common.audit import audit
from deploy.simulation import engine, owner
from deploy.simulation.life import Plan, Wave
from deploy.simulation.report import figures
from deploy.simulation.tasks import Task

OWNERS = 10
LIFE = ["--owners", str(OWNERS), "--drop-outs", "0.2", "--stragglers", "0.1", "--leavers", "0.2", "--seed", "3"]


def simulate(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "concord", "simulate", *arguments, "--json"]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)


def test_a_consortium_lives(tmp_path: Path) -> None:
    done = simulate(*LIFE, "--workdir", str(tmp_path / "life"))
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["owners_simulated"], result["dropped_out"]) == (OWNERS, 2)
    first, last = result["by_owners"]
    assert (first["owners"], last["owners"]) == (5, 10)
    # One drops out with half of its expert sent; those that left in the first wave are not in the second release.
    fates = Plan(tmp_path, OWNERS, 0.2, 0.1, 0.2, 3).fates()
    left = fates[:5].count("leaves")
    assert last["experts"] == OWNERS - 1 - left
    report = audit(tmp_path / "life" / "coordinator" / "public")
    assert report.holds, report.findings[-1]
    assert json.loads((tmp_path / "life" / "figures.json").read_text())["seconds"] == result["seconds"]
    assert (tmp_path / "life" / "growth.svg").read_text().count("<rect") >= 2 * 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--drop-outs", "0.6", "--leavers", "0.6"], "together at most 1"),
        (["--owners", "0"], "--owners"),
        (["--engine", "threads"], "--engine"),
    ],
)
def test_what_cannot_be_simulated_is_said(arguments: list[str], said: str) -> None:
    done = simulate(*arguments)
    assert done.returncode != 0
    assert said in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    done = simulate("--owners", "5", "--workdir", str(tmp_path))
    assert done.returncode == 1
    assert "choose an empty directory" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("num_owners", [1, 7, 200])
def test_every_owner_has_one_fate(num_owners: int) -> None:
    plan = Plan(Path(), num_owners, 0.1, 0.05, 0.05, 0)
    counted = Counter(plan.fates())
    assert sum(counted.values()) == num_owners
    assert counted["drops out submitting"] + counted["drops out answering"] == round(0.1 * num_owners)
    assert plan.fates() == Plan(Path(), num_owners, 0.1, 0.05, 0.05, 0).fates()
    assert plan.sizes()[-1] == num_owners


def test_what_an_owner_raises_is_its_messages_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that goes dark does not end the run, and the others are heard."""

    def act(task: Task) -> tuple[float, int]:
        if task.drops_out:
            raise owner.DroppedOutError(task.owner)
        return 0.5, 10

    monkeypatch.setattr(owner, "act", act)
    tasks = [Task(index, f"owner-{index}", "join", "", "", drops_out=index == 1) for index in range(3)]
    heard: list[Any] = []
    engine.run(lambda ask: heard.extend(ask(tasks)), num_owners=3, engine="in-process", workers=2)
    by_owner = {each.task.index: each for each in heard}
    assert by_owner[1].failure == "DroppedOutError: owner-1"
    assert [by_owner[index].seconds for index in (0, 2)] == [0.5, 0.5]


def test_a_thousand_owners_are_read_off_the_line() -> None:
    waves = [
        Wave(size, {"join": 0.5}, {"release": size / 100}, coordinator_mb=100 + size / 10) for size in (25, 50, 100)
    ]
    found: Any = figures(Plan(Path(), 100, 0.1, 0, 0, 0), waves, seconds=1, engine="in-process")
    assert found["mb_per_owner"] == pytest.approx(0.1)
    assert found["on_paper"]["release_s"] == pytest.approx(10)
    assert found["on_paper"]["coordinator_mb"] == pytest.approx(200)
