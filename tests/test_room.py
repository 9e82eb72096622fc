"""Disks that are full, for real: small file systems in memory. What does not fit is refused before a byte moves, with
how much to free; where somebody else fills the disk meanwhile nothing breaks, and it goes on once there is room.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from common.audit import audit
from common.errors import NoRoomError, UnavailableError
from common.trust.manifest import Manifest, digest_of_file
from coordinator import home as coordinator_home
from coordinator.config import CoordinatorSettings
from coordinator.home import open_home
from coordinator.intake import SPARE_BYTES
from coordinator.releases import publish_base
from owner_client import participation
from owner_client.config import OwnerHome
from owner_client.ledger import ledger_at
from tests.commands import concord, start, stop, wait_for_step
from tests.federation import FEDERATION, SIZES, Federation, Owner, expert_weights, free_ports, write_base
from tests.line import line_to, served

MIB = 2**20
LARGE = replace(SIZES, hidden_size=256, intermediate_size=2700)
"""Base and expert are 16 MiB each."""
SENT_AGAIN = 6 * MIB
"""What may come twice: what was not on disk yet, and what was on its way."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str, int], Path]]:
    """Makes a disk of so many MiB."""
    made: list[Path] = []

    def make(name: str, size_mib: int) -> Path:
        place = tmp_path / name
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size_mib}m", "tmpfs", str(place)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no file system may be mounted here: {done.stderr.strip()}")
        made.append(place)
        return place

    yield make
    for place in made:
        subprocess.run(["umount", "--lazy", str(place)], check=True)  # noqa: S607


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A large public model."""
    return write_base(tmp_path_factory.mktemp("large") / "base", sizes=LARGE)


class Filler:
    """Somebody else's file, which takes whatever room there is but for so many bytes."""

    def __init__(self, place: Path) -> None:
        self._file = place / "somebody-else"

    def fill(self, *, leave: int = 0) -> None:
        """Take the room."""
        with self._file.open("ab", buffering=0) as file, suppress(OSError):
            left = shutil.disk_usage(self._file.parent).free - leave if leave else 2**60
            while left > 0:
                left -= file.write(bytes(min(left, MIB // 4)))

    def free(self) -> None:
        """Give it back."""
        self._file.unlink()


@contextmanager
def _federation(home: Path, base: Path) -> Iterator[Federation]:
    """A consortium whose coordinator lives in `home`; owners live elsewhere. Nothing serves it."""
    ports = free_ports(2)
    settings = CoordinatorSettings(
        federation=FEDERATION, origin=f"{FEDERATION}/log", port=ports[0], enrolment_port=ports[1]
    )
    coordinator_home.create(home, settings)
    with open_home(home) as coordinator:
        publish_base(coordinator, base)
        yield Federation(home.parent.parent, ports, coordinator)


def _ready(federation: Federation, name: str) -> tuple[Owner, Path]:
    owner = federation.enrol(name)
    owner.consent()
    return owner, owner.put_expert(expert_weights(len(name), sizes=LARGE)) / "expert.safetensors"


def _submit(owner: Owner, on_bytes: Callable[[int, int], None]) -> None:
    with owner.member() as member:
        participation.submit(member, base=participation.fetch_base(member, on_bytes=lambda *_: None), on_bytes=on_bytes)


def test_what_does_not_fit_is_refused_before_it_is_sent(disk: Callable[[str, int], Path], base: Path) -> None:
    small = disk("coordinator-disk", 120)
    filler = Filler(small)
    with _federation(small / "coordinator", base) as federation, served(federation.coordinator.home.path):
        owner, file = _ready(federation, "archive")
        filler.fill(leave=SPARE_BYTES + 8 * MIB)
        moved: list[int] = []
        with pytest.raises(UnavailableError, match=r"ask its admin to free [0-9]{6,8} bytes"):
            _submit(owner, lambda done, _: moved.append(done))
        assert moved == []
        assert list(federation.coordinator.home.incoming.iterdir()) == []
        filler.free()
        _submit(owner, lambda *_: None)
        assert digest_of_file(federation.coordinator.publication.find(digest_of_file(file))) == digest_of_file(file)


def test_a_disk_that_somebody_fills_during_an_upload(disk: Callable[[str, int], Path], base: Path) -> None:
    small = disk("coordinator-disk", 120)
    filler = Filler(small)
    with (
        _federation(small / "coordinator", base) as federation,
        served(federation.coordinator.home.path),
        line_to(federation.ports[0]) as line,
    ):
        owner, file = _ready(federation, "archive")
        settings = owner.home.settings_file.read_text()
        owner.home.settings_file.write_text(settings.replace(f":{federation.ports[0]}", f":{line.port}"))
        line.after("up", file.stat().st_size // 3, filler.fill)
        with pytest.raises(UnavailableError, match=r"no space left for this upload; free some and go on"):
            owner.submit()
        assert line.plans == []
        with pytest.raises(UnavailableError, match=r"no space|cannot be written|ask its admin to free"):
            owner.submit()
        with owner.member() as member:
            member.client.watch()  # what needs no room works
        filler.free()
        before = line.carried["up"]
        owner.submit()
        assert line.carried["up"] - before < file.stat().st_size * 2 // 3 + SENT_AGAIN
        assert digest_of_file(federation.coordinator.publication.find(digest_of_file(file))) == digest_of_file(file)
        owner.opt_out()
    assert audit(federation.public).holds


def _move(owner: Owner, to: Path) -> Owner:
    """The same owner with its home elsewhere."""
    home = to / "home"
    shutil.move(owner.home.path, home)
    owner.home = OwnerHome(home)
    return owner


def test_a_base_that_does_not_fit_is_not_begun(disk: Callable[[str, int], Path], base: Path, tmp_path: Path) -> None:
    with _federation(tmp_path / "c" / "coordinator", base) as federation, served(federation.coordinator.home.path):
        owner = _move(federation.enrol("archive"), disk("owner-disk", 8))
        owner.terms.write_text("The terms.\n")
        done = concord("owner", "consent", "--terms", owner.terms, "--purpose", "research", "--home", owner.home.path)
        assert done.returncode == 1
        assert "what is to be fetched needs" in done.stderr
        assert "bytes there and go on" in done.stderr
        assert list(owner.home.bases.rglob("*.part")) == []
        assert not any(path.stat().st_size > MIB for path in owner.home.path.rglob("*"))


def test_a_disk_that_somebody_fills_during_a_fetch(
    disk: Callable[[str, int], Path], base: Path, tmp_path: Path
) -> None:
    small = disk("owner-disk", 40)
    filler = Filler(small)
    with (
        _federation(tmp_path / "c" / "coordinator", base) as federation,
        served(federation.coordinator.home.path),
        line_to(federation.ports[0]) as line,
    ):
        owner = _move(federation.enrol("archive"), small)
        settings = owner.home.settings_file.read_text()
        owner.home.settings_file.write_text(settings.replace(f":{federation.ports[0]}", f":{line.port}"))
        line.after("down", (base / "model.safetensors").stat().st_size // 3, filler.fill)
        with pytest.raises(NoRoomError, match=r"no space left for .*; free some and go on"):
            owner.base()
        assert line.plans == []
        filler.free()
        before = line.carried["down"]
        fetched = owner.base()
        size = (base / "model.safetensors").stat().st_size
        assert line.carried["down"] - before < size * 2 // 3 + SENT_AGAIN
        assert Manifest.of_directory(fetched.directory).digest == fetched.digest


def test_a_line_of_the_ledger_is_there_whole_or_not_at_all(disk: Callable[[str, int], Path]) -> None:
    small = disk("owner-disk", 4)
    filler = Filler(small)
    ledger = ledger_at(small / "ledger.jsonl")

    def write(*numbers: int) -> None:
        for number in numbers:
            ledger.record("statement", name=f"statement {number}", digest="sha256:" + "0" * 64, size_bytes=1, to="x:1")

    write(0)
    filler.fill(leave=16 * 1024)
    with pytest.raises(NoRoomError, match="nothing leaves that is not in it"):
        write(*range(1, 1000))
    there = len(ledger.lines())
    assert ledger.verify().size == there > 1
    filler.free()
    write(1000)
    assert ledger.verify().size == there + 1


def test_an_owners_daemon_waits_for_room(disk: Callable[[str, int], Path], base: Path, tmp_path: Path) -> None:
    small = disk("owner-disk", 40)
    filler = Filler(small)
    with _federation(tmp_path / "c" / "coordinator", base) as federation, served(federation.coordinator.home.path):
        owner = _move(federation.enrol("archive"), small)
        filler.fill(leave=4 * MIB)
        daemon = start("owner", "run", "--home", owner.home.path)
        try:
            assert daemon.stdout is not None
            assert any("bytes there and go on; trying again" in line for line in daemon.stdout)
            filler.free()
            wait_for_step(daemon, "the public model is in the log")
        finally:
            assert stop(daemon, 15)[0] == 0  # type: ignore[arg-type]


_LIMITED = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, ({4 * MIB}, {4 * MIB}))
import concord
concord.main()
"""


def test_a_release_and_a_base_without_room(disk: Callable[[str, int], Path], base: Path, tmp_path: Path) -> None:
    small = disk("coordinator-disk", 160)
    filler = Filler(small)
    with _federation(small / "coordinator", base) as federation:
        home = federation.coordinator.home
        with served(home.path):
            _ready(federation, "archive")[0].submit()
        before = sorted(home.public.rglob("*"))
        filler.fill(leave=SPARE_BYTES + 8 * MIB)
        done = concord("coordinator", "release", "--home", home.path)
        assert done.returncode == 1
        assert "release-1 needs" in done.stderr
        assert "bytes there and go on" in done.stderr
        other = write_base(tmp_path / "other", sizes=LARGE, seed=5)
        filler.fill(leave=8 * MIB)
        done = concord("coordinator", "publish", other, "--home", home.path)
        assert done.returncode == 1
        assert "no space left for the public model; free some and go on" in done.stderr
        filler.free()
        command = [sys.executable, "-c", _LIMITED, "coordinator", "release", "--home", str(home.path)]
        limited = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert limited.returncode == 1
        assert "no space left for the next release; free some and go on" in limited.stderr
        assert not home.work.exists()
        assert sorted(home.public.rglob("*")) == before
        assert federation.release().owners == {1: "archive"}
    assert audit(federation.public).holds
