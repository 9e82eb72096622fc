"""The units: systemd itself judges them, where it is installed; and what daemons tell it."""

import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from common import service
from tests.commands import _line, stop
from tests.federation import Federation

UNITS = sorted((Path(__file__).parents[1] / "deploy" / "systemd").glob("*.service"))
ANALYZE = shutil.which("systemd-analyze")
MOST_EXPOSED = 2.5
"""Of ten, as `systemd-analyze security` counts: below 5 is "medium", below 2.5 "ok"."""


def _as_installed(unit: Path, directory: Path) -> Path:
    """The unit with a program that is there."""
    text = unit.read_text().replace("/opt/concord/bin/concord", shutil.which("true") or "/bin/true")
    copy = directory / unit.name
    copy.write_text(text.replace("User=concord", "User=daemon").replace("Group=concord", "Group=daemon"))
    return copy


def test_there_is_a_unit_for_each_daemon() -> None:
    assert [unit.name for unit in UNITS] == ["concord-coordinator.service", "concord-owner.service"]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: str(unit.stem))
def test_systemd_finds_nothing_wrong_and_little_exposed(unit: Path, tmp_path: Path) -> None:
    if ANALYZE is None:
        pytest.skip("systemd-analyze is not installed")
    copy = _as_installed(unit, tmp_path)
    verified = subprocess.run([ANALYZE, "verify", "--man=no", copy], capture_output=True, text=True)
    assert [line for line in verified.stderr.splitlines() if copy.name in line] == []
    assert verified.returncode == 0, verified.stderr
    security = [ANALYZE, "security", "--offline=yes", f"--threshold={int(10 * MOST_EXPOSED)}", copy]
    judged = subprocess.run(security, capture_output=True, text=True)
    assert judged.returncode == 0, judged.stdout


def test_nothing_is_told_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    for address in ("", "relative", "/nowhere/at/all"):
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        service.tell("READY=1")


def test_a_daemon_says_that_it_is_ready_lives_and_stops(consortium: Federation, tmp_path: Path) -> None:
    owner, address = consortium.enrol("archive"), tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(address))
        manager.settimeout(60)
        daemon = subprocess.Popen(
            _line("owner", "run", "--home", owner.home.path, "--json"), text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, env={**os.environ, "NOTIFY_SOCKET": str(address), "WATCHDOG_USEC": "200000"},
        )  # fmt: skip
        said: list[str] = []
        while not {"READY=1", "WATCHDOG=1"} <= set(said) or not any(
            each.startswith("STATUS=no consent") for each in said
        ):
            said.append(manager.recv(4096).decode())
        assert stop(daemon, signal.SIGTERM)[0] == 0
        while said[-1] != "STOPPING=1":
            said.append(manager.recv(4096).decode())
