"""A whole consortium on one machine: one coordinator and its owners as separate processes over mutual TLS.

The demo only types the commands that people would type, and reads what they print. What is done is found again: a demo
that was stopped goes on in the same directory.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Final, TypeVar

from common.audit import audit
from common.console import Reporter, job_progress
from common.errors import MalformedError, NotFoundError
from common.files import write_atomic
from common.jobs import run_job
from common.model.assembly import assemble
from common.model.expert import EXPERT_NAME, read_config
from coordinator.evaluation import domains_in
from deploy import corpora
from deploy.processes import Command, Fields, MemoryMeter, free_ports
from deploy.recipe import EVALUATED_BYTES, EXPERT, PRETRAIN
from owner_client.config import OwnerHome
from owner_client.egress import read_ledger

Result = TypeVar("Result")
Timed = Callable[[str], AbstractContextManager[None]]

PUBLIC: Final = "public"
FEDERATION: Final = "demo.concord"
_TERMS: Final = """Terms of the demo consortium

The owner's expert may be used in releases of the line "main" for research, until the consent lapses or is revoked.
The owner's text stays with the owner. Revoking keeps the expert out of every later release.
"""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a demo is to do, and where."""

    workdir: Path
    data: Path | None
    num_owners: int
    seed: int
    keep: bool
    pretraining: Mapping[str, int | float] = field(default_factory=lambda: PRETRAIN)
    training: Mapping[str, int | float] = field(default_factory=lambda: EXPERT)


@dataclass(frozen=True, slots=True)
class Stage:
    """What the parts of a demo share."""

    plan: Plan
    text: Path
    owners: Sequence[str]
    reporter: Reporter
    stop: Event

    @property
    def home(self) -> Path:
        """The coordinator's home."""
        return self.plan.workdir / "coordinator"

    @property
    def public(self) -> Path:
        """What the coordinator publishes."""
        return self.home / "public"

    def owner_home(self, owner: str) -> Path:
        """An owner's home."""
        return self.plan.workdir / "owners" / owner

    def start(self, name: str, *arguments: str | Path) -> Command:
        """Start a command; its progress is shown as `name`."""
        output = self.plan.workdir / "output" / f"{name.replace(' ', '-')}.txt"
        output.parent.mkdir(parents=True, exist_ok=True)

        def show(event: Fields) -> None:
            if event["event"] == "progress":
                task = f"{name}: {event['task']}"
                done, total = float(str(event["done"])), float(str(event["total"]))
                self.reporter.progress(task, done=done, total=total, note=str(event["note"]))

        return Command(arguments, output=output, on_event=show)

    def do(self, name: str, *arguments: str | Path) -> Fields:
        """Run a command to its end."""
        command = self.start(name, *arguments)
        try:
            return command.wait(self.stop)
        finally:
            command.stop()


def run(plan: Plan, *, reporter: Reporter, stop: Event) -> dict[str, object]:
    """Run the demo and return its figures; everything it started is stopped when this returns."""
    started = time.monotonic()
    plan.workdir.mkdir(parents=True, exist_ok=True)
    write_atomic(plan.workdir / "demo.json", json.dumps({"seed": plan.seed, "owners": plan.num_owners}).encode())
    try:
        with MemoryMeter() as memory:
            text = _text(plan)
            stage = Stage(plan, text, _owners(text, plan.num_owners), reporter, stop)
            figures = _run(stage)
        figures["seconds"] = round(time.monotonic() - started, 1)
        figures["peak_rss_mb"] = round(memory.peak_bytes / 1e6)
    finally:
        if not plan.keep:
            shutil.rmtree(plan.workdir, ignore_errors=True)
    return figures


def _text(plan: Plan) -> Path:
    if plan.data is not None:
        return plan.data
    text = plan.workdir / "text"
    if not (text / ".complete").exists():
        corpora.write_default(text, seed=plan.seed)
        (text / ".complete").touch()
    return text


def _owners(text: Path, num_owners: int) -> list[str]:
    folders = sorted(path.name for path in text.iterdir() if path.is_dir() and not path.name.startswith("."))
    if PUBLIC not in folders:
        raise NotFoundError(
            f"{text} has no folder called {PUBLIC}: put the public text there, beside one folder an owner"
        )
    folders.remove(PUBLIC)
    if len(folders) < num_owners:
        raise MalformedError(f"{text} has text for {len(folders)} owners, not for {num_owners}; see --owners")
    return folders[:num_owners]


def _run(stage: Stage) -> dict[str, object]:
    seconds: dict[str, float] = {}

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        seconds[name] = round(time.monotonic() - started, 1)

    with ExitStack() as running:
        daemons = bring_together(stage, running, timed)
        leaver = stage.owners[0]
        with _beside(stage, _evaluate_pairs) as pairs:  # one processor each
            with timed("release 1"):
                first = make_release(stage, "release-1")
            with timed("opt-out and release 2"):
                _leave(stage, leaver, daemons[leaver])
                second = make_release(stage, "release-2")
            with timed("waiting for each owner's own model"):
                own = pairs.result()
        with timed("audit"):
            audited = stage.do("audit", "audit", "verify", stage.public, "--root", stage.public / "trusted_root.json")
            stage.reporter.step("audit: every step holds")
    return _figures(stage, leaver, [first, second], own, audited, seconds)


def bring_together(stage: Stage, running: ExitStack, timed: Timed) -> dict[str, Command]:
    """Everything until all experts are submitted; returns the owners' daemons, which run on as the coordinator's does
    until `running` ends."""
    with timed("public model"):
        _publish(stage)
    with timed("enrolment"):
        _serve(stage, running)
        _enrol(stage)
    with timed("owners train and submit"):
        return _take_part(stage, running)


@contextmanager
def _beside(stage: Stage, work: Callable[[Stage], Result]) -> Iterator[Future[Result]]:
    """Do `work` in a thread while the block runs; a block that fails stops it."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        try:
            yield pool.submit(work, stage)
        except BaseException:
            stage.stop.set()
            raise


def _leave(stage: Stage, owner: str, daemon: Command) -> None:
    daemon.stop()
    stage.do(f"{owner} opts out", "owner", "opt-out", "--home", stage.owner_home(owner), "--reason", "demo")
    stage.reporter.step(f"{owner} has opted out: its revocation is in the log")


def _publish(stage: Stage) -> None:
    """The coordinator makes its home, trains the public model and publishes it."""
    if not (stage.home / "coordinator.toml").exists():
        port, enrolment_port = free_ports(2)
        stage.do(
            "init", "coordinator", "init", "--home", stage.home, "--federation", FEDERATION,
            "--port", str(port), "--enrolment-port", str(enrolment_port),
        )  # fmt: skip
        stage.reporter.step("coordinator: certificate authority, log and release keys, empty registry")
    options = stage.plan.workdir / "pretrain.toml"
    options.write_text(_toml({**stage.plan.pretraining, "seed": stage.plan.seed, "threads": 2}))
    base = stage.plan.workdir / "base"
    stage.do(
        "coordinator", "coordinator", "pretrain", "--data", stage.text / PUBLIC, "--output", base, "--config", options
    )
    stage.do("publish", "coordinator", "publish", base, "--home", stage.home)
    stage.reporter.step("coordinator: public model trained and published, its digest is in the log")


def _toml(options: Mapping[str, int | float]) -> str:
    return "".join(f"{name} = {value}\n" for name, value in options.items())


def _serve(stage: Stage, running: ExitStack) -> None:
    daemon = stage.start("serving", "coordinator", "serve", "--home", stage.home)
    running.callback(daemon.stop)
    daemon.wait_for_step("serving", stage.stop)
    stage.reporter.step("coordinator: serving over mutual TLS")


def _enrol(stage: Stage) -> None:
    """Each owner redeems its one-time invitation."""
    for owner in stage.owners:
        home = stage.owner_home(owner)
        if not (home / "owner.toml").exists():
            _join(stage, owner)
            stage.reporter.step(f"{owner}: enrolled with a one-time invitation")
        _agree(stage, owner)


def _join(stage: Stage, owner: str) -> None:
    home, invitation = stage.owner_home(owner), stage.plan.workdir / f"{owner}.invitation"
    if not (home / "enrolling").exists():
        invitation.unlink(missing_ok=True)
        stage.do("invite", "coordinator", "invite", owner, "--home", stage.home, "--output", invitation)
    stage.do(
        f"{owner} enrols", "owner", "enrol", "--home", home, "--invitation", invitation,
        "--data", stage.text / owner, "--public", stage.text / PUBLIC,
    )  # fmt: skip


def _agree(stage: Stage, owner: str) -> None:
    """What the owner's person writes into owner.toml, once: the consent, and how to train."""
    terms = stage.plan.workdir / "terms.txt"
    settings = stage.owner_home(owner) / "owner.toml"
    written = settings.read_text()
    if "[consent]" in written:
        return
    write_atomic(terms, _TERMS.encode())
    consent = f'\n[consent]\npurposes = ["research"]\nterms = {json.dumps(str(terms))}\n'
    training = f"\n[training]\n{_toml({**stage.plan.training, 'seed': stage.plan.seed, 'threads': 1})}"
    write_atomic(settings, ("poll_s = 1\n" + written + consent + training).encode())


def _take_part(stage: Stage, running: ExitStack) -> dict[str, Command]:
    """All owners at once: verify the base, consent, train at home, submit."""
    daemons = {owner: stage.start(owner, "owner", "run", "--home", stage.owner_home(owner)) for owner in stage.owners}
    for daemon in daemons.values():
        running.callback(daemon.stop)
    for owner, daemon in daemons.items():
        daemon.wait_for_step("the expert is submitted", stage.stop)
        stage.reporter.step(f"{owner}: base verified, consent signed, expert trained at home and submitted")
    return daemons


def make_release(stage: Stage, name: str) -> Fields:
    """Assemble, evaluate, sign and log what is in force."""
    held_out = _held_out(stage)
    made = stage.do(
        name, "coordinator", "release", "--home", stage.home, "--evaluate", held_out,
        "--max-bytes", str(EVALUATED_BYTES), "--threads", "1",
    )  # fmt: skip
    experts = made["experts"]
    assert isinstance(experts, list)
    stage.reporter.step(f"coordinator: {made['release']} with {', '.join(experts)} is assembled, signed and logged")
    return made


def _held_out(stage: Stage) -> Path:
    """The held-out text of every domain, as the consortium shares it for evaluation: test splits alone."""
    folder = stage.plan.workdir / "held-out"
    for domain in (PUBLIC, *stage.owners):
        (folder / domain).mkdir(parents=True, exist_ok=True)
        for path in sorted((stage.text / domain).glob("test*")):
            target = folder / domain / path.name
            if path.is_dir():
                shutil.copytree(path, target, dirs_exist_ok=True)
            else:
                shutil.copyfile(path, target)
    return folder


def _evaluate_pairs(stage: Stage) -> dict[str, dict[str, object]]:
    """The public model, and each owner's own model of two experts, on every domain."""
    base = stage.public / "base" / "0"
    models = {"public": base}
    for owner in stage.owners:
        directory = stage.plan.workdir / "pairs" / owner
        if not directory.exists():
            directory.parent.mkdir(exist_ok=True)
            assemble(base, [_expert(stage, owner)], num_experts_per_tok=2, output=directory)
        models[f"owner:{owner}"] = directory
    output = stage.plan.workdir / "pairs.json"
    job = {
        "models": models,
        "domains": domains_in(_held_out(stage)),
        "sequence_length": read_config(base).max_position_embeddings,
        "threads": 1,
        "max_bytes": EVALUATED_BYTES,
        "output": output,
    }
    run_job(
        "common.evaluate",
        job,
        config_path=stage.plan.workdir / "pairs.job.json",
        on_event=job_progress(stage.reporter, "each owner's own model"),
        stop=stage.stop,
    )
    found: dict[str, dict[str, object]] = json.loads(output.read_text())["models"]
    return found


def _expert(stage: Stage, owner: str) -> Path:
    return next((stage.owner_home(owner) / "experts").glob(f"*/{EXPERT_NAME}"))


def _figures(
    stage: Stage,
    leaver: str,
    releases: Sequence[Fields],
    pairs: Mapping[str, Mapping[str, object]],
    audited: Fields,
    seconds: Mapping[str, float],
) -> dict[str, object]:
    evaluated = {
        str(made["release"]): json.loads((Path(str(made["directory"])) / "evaluation.json").read_text())
        for made in releases
    }
    report = audit(stage.public)
    return {
        "audit": audited["audit"],
        "left": leaver,
        "bits_per_byte": {name: found["bits_per_byte"] for name, found in {**pairs, **evaluated}.items()},
        "shares": {name: found["shares"] for name, found in evaluated.items()},
        "experts": {name: [PUBLIC, *owners] for name, owners in report.releases.items()},
        "sent_bytes": {owner: sum(_sent(stage, owner).values()) for owner in stage.owners},
        "sent_files": {owner: _sent(stage, owner) for owner in stage.owners},
        "held_bytes": {owner: _held(stage.text / owner) for owner in stage.owners},
        "releases": [str(made["directory"]) for made in releases],
        "log": list(report.log_lines),  # read now: without --keep its files are gone when this is printed
        "audit_steps": [f"{finding.step}. {finding.title}: {finding.found}" for finding in report.findings],
        "seconds_by_part": dict(seconds),
        "workdir": str(stage.plan.workdir),
        "kept": stage.plan.keep,
    }


def _sent(stage: Stage, owner: str) -> dict[str, int]:
    """Bytes of everything that left an owner, by name, as its ledger has it."""
    sent: dict[str, int] = {}
    for line in read_ledger(OwnerHome(stage.owner_home(owner)).ledger):
        name = str(line["name"])
        sent[name] = sent.get(name, 0) + int(str(line["size_bytes"]))
    return sent


def _held(folder: Path) -> int:
    """Bytes of text that stayed: all but the test split, which owners share so that releases can be evaluated."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return sum(path.stat().st_size for path in files if not path.relative_to(folder).parts[0].startswith("test"))
