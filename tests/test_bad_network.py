"""Uploads and downloads end by themselves, whatever the line does and however often the coordinator is killed; one
whose line stands still keeps nobody else waiting.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from threading import Event, Timer

import psutil
import pytest

from common.rpc import channel
from common.trust.manifest import digest_of_file
from coordinator import home as coordinator_home
from coordinator.config import CoordinatorSettings
from coordinator.home import open_home
from coordinator.releases import publish_base
from owner_client import participation
from owner_client.ledger import UPLOAD, ledger_at
from tests.federation import FEDERATION, SIZES, Federation, Owner, expert_weights, free_ports, write_base
from tests.line import Line, Served, Way, line_to, served

MIB = 2**20
LARGE = replace(SIZES, hidden_size=256, intermediate_size=2700)
"""Base and expert are 16 MiB each."""
PATIENCE_S = 240
KILLS = 10
KILL_EVERY = 3 * MIB // 2
RESENT_A_KILL = 5 * MIB
"""Two commits of a mebibyte, and what gRPC and the sockets had taken."""
SILENCE_S = 1.5
KEEPALIVE_MS = 1000
MOST_MB = 400
MOST_THREADS = 100


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """A consortium over a large base; nothing serves it."""
    path, ports = tmp_path_factory.mktemp("network"), free_ports(2)
    settings = CoordinatorSettings(
        federation=FEDERATION, origin=f"{FEDERATION}/log", port=ports[0], enrolment_port=ports[1]
    )
    home = coordinator_home.create(path / "coordinator", settings).path
    with open_home(home) as coordinator:
        publish_base(coordinator, write_base(path / "base", sizes=LARGE))
        yield Federation(path, ports, coordinator)


def _join(federation: Federation, name: str, line: Line) -> Owner:
    """An owner whose every call goes over the line."""
    owner = federation.enrol(name, patience_s=PATIENCE_S)
    settings = owner.home.settings_file.read_text()
    owner.home.settings_file.write_text(settings.replace(f":{federation.ports[0]}", f":{line.port}"))
    return owner


def _get_ready(owner: Owner, seed: int) -> Path:
    """Fetch, consent, have an expert; its file."""
    owner.consent()
    return owner.put_expert(expert_weights(seed, sizes=LARGE)) / "expert.safetensors"


def _submit(owner: Owner) -> None:
    with owner.member() as member:
        base = participation.fetch_base(member, on_bytes=lambda *_: None)
        participation.submit(member, base=base, on_bytes=lambda *_: None)


def _check_arrived(federation: Federation, owner: Owner, file: Path) -> None:
    """Published as it is at home, once in the log, and in the ledger, which holds."""
    digest = digest_of_file(file)
    assert digest_of_file(federation.coordinator.publication.find(digest)) == digest
    with federation.coordinator.registry.history() as history:
        found = [each for each in history.contributions_by_index.values() if each.files[file.name].digest == digest]
    assert len(found) == 1
    assert not any(federation.coordinator.home.incoming.iterdir())
    ledger = ledger_at(owner.home.ledger)
    ledger.verify()
    uploads = [line for line in ledger.lines() if line["kind"] == UPLOAD]
    assert {line["digest"] for line in uploads} == {digest}
    sizes = [int(str(line["size_bytes"])) for line in uploads]
    assert sizes[0] == file.stat().st_size
    assert sizes == sorted(sizes, reverse=True), "what is stored is never missing again"


@pytest.mark.timeout(900)  # a coordinator needs some seconds to begin, more on a busy machine
def test_an_upload_ends_through_ten_kills_of_the_coordinator(federation: Federation) -> None:
    with served(federation.coordinator.home.path) as coordinator, line_to(federation.ports[0]) as line:
        owner = _join(federation, "archive", line)
        file = _get_ready(owner, 1)
        before, kills = line.carried["up"], []

        def kill() -> None:
            kills.append(coordinator.pid)
            coordinator.kill()
            if len(kills) < KILLS:
                line.after("up", KILL_EVERY, kill)

        assert file.stat().st_size > KILLS * KILL_EVERY, "the upload cannot end before the last kill"
        line.after("up", KILL_EVERY, kill)
        _submit(owner)
    assert len(set(kills)) == KILLS, "each time another process"
    resent = line.carried["up"] - before - file.stat().st_size
    assert resent < KILLS * RESENT_A_KILL
    _check_arrived(federation, owner, file)


# What a line may do


def _cut(line: Line, way: Way) -> None:
    """Three times, at once and again."""
    for part in (2, 5, 8):
        line.after(way, part * MIB, line.cut)


def _stall(line: Line, way: Way) -> None:
    """For longer than a stream may stand still on either side."""

    def stall() -> None:
        line.stall()
        Timer(2 * SILENCE_S, line.move).start()

    line.after(way, 5 * MIB, stall)


def _delay(line: Line, way: Way) -> None:
    """Each piece comes late, from the third mebibyte on for two more."""

    def delay() -> None:
        line.delay_s = 0.02
        line.after(way, 2 * MIB, lambda: setattr(line, "delay_s", 0.0))

    line.after(way, 3 * MIB, delay)


def _change_address(line: Line, way: Way) -> None:
    line.after(way, 5 * MIB, line.change_address)


FAULTS: dict[str, Callable[[Line, Way], None]] = {
    "cut three times": _cut,
    "stalled": _stall,
    "delayed": _delay,
    "another address": _change_address,
}


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Owners here give up what stands still in seconds, not minutes."""
    monkeypatch.setattr(channel, "STREAM_SILENCE_S", 1.5 * SILENCE_S)
    monkeypatch.setattr(channel, "KEEPALIVE_MS", KEEPALIVE_MS)
    monkeypatch.setattr(channel, "KEEPALIVE_TIMEOUT_MS", KEEPALIVE_MS)


@pytest.fixture(scope="module")
def coordinator(federation: Federation) -> Iterator[Served]:
    """One that gives up what stands still as soon."""
    with served(federation.coordinator.home.path, silence_s=SILENCE_S, keepalive_ms=KEEPALIVE_MS) as running:
        yield running


@pytest.mark.parametrize("fault", FAULTS)
def test_base_and_expert_arrive_whatever_the_line_does(
    fault: str, federation: Federation, coordinator: Served, impatient: None
) -> None:
    seed = 10 + list(FAULTS).index(fault)
    with line_to(federation.ports[0]) as line:
        owner = _join(federation, f"owner-{seed}", line)
        size = federation.coordinator.publication.base(0).joinpath("model.safetensors").stat().st_size
        FAULTS[fault](line, "down")
        file = _get_ready(owner, seed)
        assert line.carried["down"] < size + 8 * MIB, "what had come is not fetched again"
        before = line.carried["up"]
        FAULTS[fault](line, "up")
        _submit(owner)
        assert line.carried["up"] - before < file.stat().st_size + 3 * RESENT_A_KILL
        assert line.plans == []
    _check_arrived(federation, owner, file)


def test_one_whose_line_stands_still_holds_nobody_back(
    federation: Federation, coordinator: Served, impatient: None
) -> None:
    process, seeds = psutil.Process(coordinator.pid), range(20, 24)
    with ExitStack() as stack, ThreadPoolExecutor(len(seeds)) as pool:
        lines = [stack.enter_context(line_to(federation.ports[0])) for _ in seeds]
        owners = [_join(federation, f"owner-{seed}", line) for seed, line in zip(seeds, lines, strict=True)]
        files = list(pool.map(_get_ready, owners, seeds))
        stands = Event()

        def stand_still() -> None:
            lines[0].stall()
            stands.set()

        lines[0].after("up", 3 * MIB, stand_still)
        late = pool.submit(_submit, owners[0])
        try:
            assert stands.wait(PATIENCE_S)
            others = [pool.submit(_submit, owner) for owner in owners[1:]]
            for other in others:
                other.result(PATIENCE_S)
            assert not late.done()
        finally:
            lines[0].move()
        late.result(PATIENCE_S)
        threads, held = process.num_threads(), process.memory_info().rss
    for owner, file in zip(owners, files, strict=True):
        _check_arrived(federation, owner, file)
    assert threads < MOST_THREADS
    assert held < MOST_MB * MIB
