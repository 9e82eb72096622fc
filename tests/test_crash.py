"""kill -9 at any moment of a consortium's life: the same command again goes on, and nothing acknowledged is lost.

Each point names a moment in one command's work and the last thing before which the process kills itself
(`tests/crash/sitecustomize.py`). The life around it is whole: two owners join, consent, submit; a release, an opt-out,
another release. The killed command runs as the process it is in production; the rest of the life runs in this one.
"""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread

import pytest

from common.audit import audit
from common.model.assembly import assemble
from common.trust.manifest import Manifest, check_directory, digest_of
from common.trust.note import Note, Proof
from coordinator import home as coordinator_home
from coordinator.config import CoordinatorSettings
from coordinator.home import open_home
from coordinator.releases import publish_base
from owner_client import egress
from tests.commands import events, stop
from tests.federation import (
    FEDERATION,
    SIZES,
    Federation,
    Owner,
    expert_weights,
    free_ports,
    running_federation,
    write_base,
    write_expert,
)

WIDER = replace(SIZES, hidden_size=64, intermediate_size=1024)
"""Base and expert are two chunks each."""
PATIENCE_S = 60
LEDGER = ("open", r"ledger\.jsonl$")
PUBLISHED = ("os.rename", r"public/log/checkpoint$")


@dataclass(frozen=True)
class Point:
    """A moment in the work of one command: what must have come, the last one being what is not done any more."""

    name: str
    command: str
    when: tuple[tuple[str, str], ...]


def at(command: str, name: str, *when: tuple[str, str]) -> Point:
    return Point(name, command, when)


def appended(kind: str) -> tuple[str, str]:
    return ("concord.point", rf"^appended {kind}$")


def answered(method: str) -> tuple[str, str]:
    return ("concord.point", rf"^answer .*/{method}$")


def kept(name: str) -> tuple[str, str]:
    """A file is about to take its place."""
    return ("os.rename", rf"/{name}$")


POINTS = [
    at("coordinator init", "init: the first key is written", kept("log.key")),
    at("coordinator init", "init: all keys are written, the settings are not", kept("coordinator.toml")),
    at("coordinator init", "init: the log has no checkpoint yet", PUBLISHED),
    at("coordinator publish", "publish: one object is there", ("os.link", "objects/"), ("os.link", "objects/")),
    at("coordinator publish", "publish: the objects are there, the manifest is not", kept("objects/[0-9a-f]{64}")),
    at("coordinator publish", "publish: the statement is not committed", appended("base.publish")),
    at("coordinator publish", "publish: the statement is committed, no checkpoint shows it", PUBLISHED),
    at("coordinator publish", "publish: logged, half shown", ("os.link", "base/.0.partial/model")),
    at("coordinator publish", "publish: logged, not shown", kept("base/0")),
    at("coordinator serve", "serve: the certificate of its own is not there yet", kept("server.pem")),
    at("coordinator serve", "enrolment: not committed", appended("owner.enrol")),
    at("coordinator serve", "enrolment: in the log, the certificate not yet among the issued", PUBLISHED),
    at("coordinator serve", "enrolment: the certificate is issued, not answered", answered("Redeem")),
    at("coordinator serve", "consent: not committed", appended("consent.grant")),
    at("coordinator serve", "consent: committed, no tile holds it", appended("consent.grant"), ("open", "log/tile/")),
    at("coordinator serve", "consent: committed, no checkpoint shows it", appended("consent.grant"), PUBLISHED),
    at("coordinator serve", "consent: published, not answered", appended("consent.grant"), answered("Record")),
    at("coordinator serve", "upload: announced, not opened", kept("note")),
    at("coordinator serve", "upload: opened, not answered", answered("OpenUpload")),
    at("coordinator serve", "upload: one chunk of two is stored", ("concord.point", "chunk stored")),
    at("coordinator serve", "upload: all chunks are stored, not answered", answered("PutChunks")),
    at("coordinator serve", "upload: all is checked, not moved", ("os.rename", r"\.part .*/objects/")),
    at("coordinator serve", "upload: moved, not recorded", appended("expert.contribute")),
    at("coordinator serve", "upload: recorded, not published", appended("expert.contribute"), PUBLISHED),
    at("coordinator serve", "upload: recorded, its folder still there", ("shutil.rmtree", "incoming/")),
    at("coordinator serve", "upload: recorded, not answered", answered("FinishUpload")),
    at("coordinator serve", "opt-out: not committed", appended("consent.revoke")),
    at("coordinator serve", "opt-out: published, not answered", appended("consent.revoke"), answered("Record")),
    at("coordinator release", "release: half assembled", kept("model-expert-0001.safetensors")),
    at("coordinator release", "release: assembled, half of it by content", *[("os.link", "public/objects/")] * 3),
    at("coordinator release", "release: the statement is not committed", appended("release.publish")),
    at("coordinator release", "release: logged, no checkpoint shows it", appended("release.publish"), PUBLISHED),
    at("coordinator release", "release: logged, not shown", kept("releases/release-1")),
    at("coordinator release", "release: shown, not cleaned up", kept("release-1"), ("shutil.rmtree", "/work$")),
    at("owner enrol", "enrol: the signing key is not there yet", kept("signing.key")),
    at("owner enrol", "enrol: signed, nothing in the ledger", LEDGER),
    at("owner enrol", "enrol: request in the ledger, statement not", LEDGER, LEDGER),
    at("owner enrol", "enrol: certificate answered, not kept", kept("tls.pem")),
    at("owner enrol", "enrol: certificate kept, receipt not", kept("00000.receipt")),
    at("owner enrol", "enrol: receipt kept, settings not", kept("owner.toml")),
    at("owner enrol", "enrol: all kept, the request not cleared away", ("os.remove", "enrolling/")),
    at("owner consent", "fetch: one chunk of the model has come", *[("concord.point", "chunk fetched")] * 3),
    at("owner consent", "fetch: the model has come, not in its place", kept("model.safetensors")),
    at("owner consent", "fetch: every file is there, the manifest is not", kept("manifest.json")),
    at("owner consent", "consent: signed, not sent", kept("00001.note"), LEDGER),
    at("owner consent", "consent: recorded, the checkpoint not pinned", kept("00001.note"), kept("checkpoint")),
    at("owner consent", "consent: recorded, the receipt not kept", kept("00001.receipt")),
    at("owner submit", "submit: signed, nothing in the ledger", kept("00002.note"), LEDGER),
    at("owner submit", "submit: in the ledger, nothing sent", LEDGER, LEDGER, ("open", r"expert\.safetensors r")),
    at("owner submit", "submit: half of it read", LEDGER, LEDGER, *[("open", r"expert\.safetensors r")] * 2),
    at("owner submit", "submit: recorded, the receipt not kept", kept("00002.receipt")),
    at("owner opt-out", "opt-out: signed, not sent", kept("00003.note"), LEDGER),
    at("owner opt-out", "opt-out: recorded, the receipt not kept", kept("00003.receipt")),
]


@pytest.mark.parametrize("point", POINTS, ids=lambda point: point.name)
def test_killed_there_and_run_again_it_goes_on(point: Point, tmp_path: Path, undisturbed: "Undisturbed") -> None:
    life = Life(tmp_path, Victim(point, tmp_path), undisturbed)
    life.live()
    life.victim.check_killed()


# A life, and what must be true after it


@dataclass(frozen=True)
class Undisturbed:
    """What a life is made of, and the digests of the releases of one that nothing disturbs."""

    base: Path
    experts: dict[str, int]
    first: str
    second: str


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    path = tmp_path_factory.mktemp("undisturbed")
    base, experts = write_base(path / "base", sizes=WIDER), {"archive": 1, "hospital": 2}
    files = {
        name: write_expert(path / name, expert_weights(seed, sizes=WIDER)) / "expert.safetensors"
        for name, seed in experts.items()
    }
    digests = []
    for number, members in enumerate((["archive", "hospital"], ["hospital"])):
        output = path / f"release-{number}"
        assemble(base, [files[name] for name in members], num_experts_per_tok=2, output=output)
        digests.append(Manifest.of_directory(output).digest)
    return Undisturbed(base, experts, *digests)


class Victim:
    """Runs one command so that it is killed at a point, once, and then again; the other commands by other means."""

    def __init__(self, point: Point, path: Path) -> None:
        self.point = point
        self._marker = path / "killed"
        self._environment = {
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parent / "crash"),
            "CRASH_POINT": json.dumps(point.when),
            "CRASH_MARKER": str(self._marker),
        }

    def do(self, command: str, *arguments: str | Path, instead: Callable[[], object]) -> None:
        """Run a command, or what stands for it where it is not the victim."""
        if command != self.point.command:
            instead()
            return
        killed = self.start(command, *arguments)
        killed.communicate()
        assert killed.returncode == -signal.SIGKILL
        again = self.start(command, *arguments)
        _, errors = again.communicate()
        assert again.returncode == 0, errors

    def start(self, command: str, *arguments: str | Path) -> "subprocess.Popen[str]":
        """Start a command as a process that is killed at the point, if nothing was killed yet."""
        line = [sys.executable, "-m", "concord", *command.split(), *map(str, arguments), "--json"]
        pipe = subprocess.PIPE
        return subprocess.Popen(line, env=self._environment, stdout=pipe, stderr=pipe, text=True)

    @contextmanager
    def keep_serving(self, home: Path) -> Iterator[None]:
        """Serve `home` as a process that is started again when it is killed, until the block ends."""
        process = self.start("coordinator serve", "--home", home)
        ended = Event()

        def restart() -> None:
            nonlocal process
            while process.wait() == -signal.SIGKILL and not ended.is_set():
                process = self.start("coordinator serve", "--home", home)

        keeper = Thread(target=restart)
        keeper.start()
        try:
            yield
        finally:
            ended.set()
            process.terminate()
            keeper.join()
        assert process.returncode == 0, process.communicate()

    def check_killed(self) -> None:
        """The point was reached."""
        assert self._marker.exists(), f"nothing was killed: the point {self.point.name!r} never came"


@dataclass(frozen=True)
class Life:
    """The life of a consortium in `path`, one command of which is a victim."""

    path: Path
    victim: Victim
    undisturbed: Undisturbed

    def live(self) -> None:
        """From the first key to the second release; then everything that was acknowledged must be there."""
        home, ports = self.path / "coordinator", free_ports(2)
        self._init(home, ports)
        with open_home(home) as coordinator:
            federation = Federation(self.path, ports, coordinator)
            base = self.undisturbed.base
            self.victim.do("coordinator publish", base, "--home", home, instead=lambda: publish_base(coordinator, base))
            with self._serving(federation):
                archive = self._join(federation)
                self._take_part(archive)
                hospital = federation.enrol("hospital", patience_s=PATIENCE_S)
                hospital.consent()
                hospital.put_expert(expert_weights(self.undisturbed.experts["hospital"], sizes=WIDER))
                hospital.submit()
                self.victim.do("coordinator release", "--home", home, instead=federation.release)
                self.victim.do("owner opt-out", "--home", archive.home.path, instead=archive.opt_out)
                federation.release()
                self._check(federation)

    def _init(self, home: Path, ports: list[int]) -> None:
        settings = CoordinatorSettings(
            federation=FEDERATION, origin=f"{FEDERATION}/log", port=ports[0], enrolment_port=ports[1]
        )
        self.victim.do(
            "coordinator init", "--home", home, "--federation", FEDERATION,
            "--port", str(ports[0]), "--enrolment-port", str(ports[1]),
            instead=lambda: coordinator_home.create(home, settings),
        )  # fmt: skip

    @contextmanager
    def _serving(self, federation: Federation) -> Iterator[None]:
        if self.victim.point.command == "coordinator serve":
            with self.victim.keep_serving(federation.coordinator.home.path):
                yield
            return
        federation.start()
        try:
            yield
        finally:
            federation.stop()

    def _join(self, federation: Federation) -> Owner:
        owner = federation.owner("archive", patience_s=PATIENCE_S)
        invitation = federation.invitation("archive")
        file = self.path / "archive.invitation"
        file.write_bytes(bytes(invitation))
        self.victim.do(
            "owner enrol", "--home", owner.home.path, "--invitation", file,
            instead=lambda: federation.enrol("archive", invitation=invitation, patience_s=PATIENCE_S),
        )  # fmt: skip
        return owner

    def _take_part(self, owner: Owner) -> None:
        home = owner.home.path
        self.victim.do(
            "owner consent", "--terms", owner.terms, "--purpose", "research", "--home", home, instead=owner.consent
        )
        owner.put_expert(expert_weights(self.undisturbed.experts[owner.name], sizes=WIDER))
        self.victim.do("owner submit", "--home", home, instead=owner.submit)

    def _check(self, federation: Federation) -> None:
        report = audit(federation.public, root=federation.coordinator.registry.root)
        assert report.holds, report.findings[-1]
        assert report.releases == {"release-1": ["archive", "hospital"], "release-2": ["hospital"]}
        releases = federation.coordinator.registry.head().releases
        digests = [each.statement.manifest_digest for each in releases.values()]
        assert digests == [self.undisturbed.first, self.undisturbed.second]
        assert list(federation.coordinator.home.incoming.iterdir()) == []
        assert not federation.coordinator.home.work.exists()
        for owner in federation.owners.values():
            check_owner(federation, owner)


def check_owner(federation: Federation, owner: Owner) -> None:
    """Every statement of the owner is in the log where its receipt says, once, and in its ledger, once."""
    with owner.member() as member:
        said = member.chain.statements()
        member.client.watch()
    kinds = ["owner.enrol", "consent.grant", "expert.contribute"] + ["consent.revoke"] * (owner.name == "archive")
    assert [each.statement.type for each in said] == kinds
    for each in said:
        assert each.receipt is not None
        entry = federation.coordinator.log.entry(Proof.parse(each.receipt).index)
        assert Note.parse(entry).text == each.statement.text
    history = federation.coordinator.registry.head()
    assert history.parties[owner.name].next_seq == len(said)
    ledger = Counter(str(line["digest"]) for line in egress.read_ledger(owner.home.ledger))
    assert set(ledger.values()) == {1}
    assert {digest_of(each.note) for each in said} <= ledger.keys()
    assert not owner.home.enrolling.exists()


# What a life does not come to


def test_a_renewed_certificate_that_was_not_kept_is_renewed_again(tmp_path: Path) -> None:
    settings = CoordinatorSettings(federation=FEDERATION, origin=f"{FEDERATION}/log", certificate_hours=0.02)
    coordinator_home.create(tmp_path / "coordinator", settings)
    with running_federation(tmp_path) as federation:
        federation.publish_base()
        owner = federation.enrol("archive")
        owner.home.settings_file.write_text("poll_s = 0.1\n" + owner.home.settings_file.read_text())
        before = owner.home.tls.read_bytes()
        victim = Victim(at("owner run", "renew: answered, not kept", kept("tls.pem")), tmp_path)
        killed = victim.start("owner run", "--home", owner.home.path)
        killed.communicate()
        assert killed.returncode == -signal.SIGKILL
        assert owner.home.tls.read_bytes() == before
        daemon = victim.start("owner run", "--home", owner.home.path)
        assert any(event.get("text") == "certificate renewed" for event in events(daemon))
        assert stop(daemon, signal.SIGTERM)[0] == 0
        assert owner.home.tls.read_bytes() != before
        with owner.member() as member:
            assert member.client.watch()[1] == 2


def test_publishing_from_another_disk_never_leaves_half_an_object(tmp_path: Path) -> None:
    elsewhere = Path("/dev/shm")  # noqa: S108
    if not elsewhere.is_dir() or elsewhere.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system here")
    settings = CoordinatorSettings(federation=FEDERATION, origin=f"{FEDERATION}/log")
    coordinator_home.create(tmp_path / "coordinator", settings)
    victim = Victim(
        at("coordinator publish", "publish: copied, not in its place", kept("objects/[0-9a-f]{64}")), tmp_path
    )
    with TemporaryDirectory(dir=elsewhere) as folder:
        base = write_base(Path(folder) / "base")
        arguments = (base, "--home", tmp_path / "coordinator")
        victim.do("coordinator publish", *arguments, instead=lambda: None)
        victim.check_killed()
        manifest = Manifest.of_directory(base)
    check_directory(tmp_path / "coordinator" / "public" / "base" / "0", manifest=manifest)
