"""A consortium's whole life with many owners: they join, consent, train, submit, are asked, leave; some drop out in
the middle, some answer too late.

The consortium grows in waves, each about twice the size of the one before, so that one run shows how cost grows. The
coordinator is the daemon that admins start, in a process of its own; what admins do is done by the library that their
commands call. What must hold is checked after every wave, from the log.
"""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from random import Random
from threading import Event
from typing import Final, Literal

from common.audit import audit
from common.console import Reporter, job_progress
from common.errors import VerificationError
from common.files import write_atomic
from common.jobs import run_job
from common.trust.campaign_statements import CampaignResult, Evaluate
from common.trust.statements import parse_note
from coordinator import home as coordinator_home
from coordinator.campaign_subjects import model_of
from coordinator.config import CoordinatorSettings
from coordinator.home import Coordinator, open_home
from coordinator.invitations import invitation_for
from coordinator.releases import PublishedRelease, make_release, publish_base
from deploy.processes import Command, free_ports, rss_bytes
from deploy.simulation.owner import write_text
from deploy.simulation.recipe import EVALUATED_BYTES, PRETRAIN, PUBLIC, PUBLIC_DOCUMENTS
from deploy.simulation.tasks import Action, Ask, Outcome, Task

FEDERATION: Final = "simulation.concord"
_SMALLEST_WAVE: Final = 5
_WAVES: Final = 4

Fate = Literal["stays", "drops out submitting", "drops out answering", "straggles", "leaves"]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is simulated: how many owners, and which shares of them do what."""

    workdir: Path
    num_owners: int
    drop_outs: float
    stragglers: float
    leavers: float
    seed: int

    def sizes(self) -> list[int]:
        """How many owners have joined after each wave."""
        found = [self.num_owners // 2**wave for wave in range(_WAVES)]
        return sorted({size for size in found if size >= min(_SMALLEST_WAVE, self.num_owners)})

    def fates(self) -> list[Fate]:
        """By owner, what becomes of it: exactly as many of each as the shares say, drawn by the seed."""
        counted: list[Fate] = []
        dropping = round(self.drop_outs * self.num_owners)
        counted += ["drops out submitting"] * (dropping // 2)
        counted += ["drops out answering"] * (dropping - dropping // 2)
        counted += ["straggles"] * round(self.stragglers * self.num_owners)
        counted += ["leaves"] * round(self.leavers * self.num_owners)
        counted += ["stays"] * (self.num_owners - len(counted))
        Random(self.seed).shuffle(counted)  # noqa: S311
        return counted


@dataclass
class Wave:
    """What a wave cost: seconds that an owner was waited for, by what it did, and what the coordinator took."""

    owners: int
    seconds_per_owner: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    coordinator_mb: float = 0.0
    acting_mb: float = 0.0
    """Memory of the processes that act for owners, all together."""
    coordinator_disk_mb: float = 0.0
    owner_disk_mb: float = 0.0
    sent_bytes_per_owner: float = 0.0
    experts: int = 0
    reported: int = 0
    log_entries: int = 0

    @property
    def whole_life_s(self) -> float:
        """Seconds for all that one owner does."""
        return sum(self.seconds_per_owner.values())


@contextmanager
def serving(plan: Plan, *, reporter: Reporter) -> Iterator[Command]:
    """Make the coordinator's home and public model where they are not there, and serve while the block runs."""
    home, text = plan.workdir / "coordinator", plan.workdir / "text"
    ports = free_ports(2)
    settings = CoordinatorSettings(
        federation=FEDERATION, origin=f"{FEDERATION}/log", port=ports[0], enrolment_port=ports[1]
    )
    coordinator_home.create(home, settings)
    write_text(text / PUBLIC, seed=0, documents=PUBLIC_DOCUMENTS)
    write_atomic(text / "terms.txt", b"The terms of a simulated consortium.\n")
    base = plan.workdir / "base"
    job = {**PRETRAIN, "public": text / PUBLIC, "output": base, "seed": plan.seed}
    config_path = plan.workdir / "pretrain.json"
    run_job("coordinator.pretrain", job, config_path=config_path, on_event=job_progress(reporter, "public model"))
    with open_home(home) as coordinator:
        publish_base(coordinator, base)
    output = plan.workdir / "coordinator.txt"
    daemon = Command(["coordinator", "serve", "--home", home], output=output, on_event=lambda event: None)
    try:
        daemon.wait_for_step("serving", Event())
        reporter.step("the coordinator serves over mutual TLS, in a process of its own")
        yield daemon
    finally:
        daemon.stop()


class Life:
    """The life of one consortium, told to owners through `ask`."""

    def __init__(self, plan: Plan, coordinator: Coordinator, daemon: Command, ask: Ask, reporter: Reporter) -> None:
        self._plan, self._coordinator, self._daemon, self._ask = plan, coordinator, daemon, ask
        self._reporter = reporter
        self._fates = plan.fates()
        self._joined = 0
        self._gone: set[int] = set()
        self._submitted: set[int] = set()

    def live(self) -> list[Wave]:
        """All waves, each checked.

        Raises:
            VerificationError: what is in the log is not what owners did.
        """
        waves = [self._wave(size) for size in self._plan.sizes()]
        report = audit(self._coordinator.home.public, root=self._coordinator.registry.root)
        if not report.holds:
            raise VerificationError(f"the audit does not hold: {report.findings[-1].found}")
        self._reporter.step("audit: every step holds")
        return waves

    def _wave(self, size: int) -> Wave:
        wave, started = Wave(size), time.monotonic()
        arriving = list(range(self._joined, size))
        self._joined = size
        self._done(wave, "join", self._tasks("join", arriving))
        self._submitted |= self._heard(wave, "take part", self._tasks("take part", arriving), arriving)
        with _timed(wave, "release"):
            released = make_release(self._coordinator, evaluate=None)
        self._check_release(released)
        self._campaign(wave, released)
        leaving = [index for index in arriving if self._fates[index] == "leaves"]
        self._heard(wave, "leave", self._tasks("leave", leaving), leaving)
        self._gone |= set(leaving)
        self._measure(wave, released)
        wave.seconds["wave"] = round(time.monotonic() - started, 2)
        self._reporter.step(
            f"{size} owners: {wave.experts} experts in {released.statement.release}, {wave.reported} answered; "
            f"{wave.whole_life_s:.2f} s an owner"
        )
        return wave

    def _campaign(self, wave: Wave, released: PublishedRelease) -> None:
        """How good is the release on every owner's text? Closed once all were heard who will be; stragglers come after
        that.
        """
        model = model_of(self._coordinator, released.statement.release)
        asked = self._coordinator.campaigns.define(
            Evaluate(kind="evaluate", model=model, max_bytes=EVALUATED_BYTES), min_documents=2,
            lifetime=timedelta(hours=6),
        )  # fmt: skip
        campaign_id = asked.statement.record_id
        here = self._here()
        late = [index for index in here if self._fates[index] == "straggles"]
        prompt = [index for index in here if index not in late]
        answered = self._heard(wave, "answer", self._tasks("answer", prompt, campaign_id=campaign_id), prompt)
        self._done(wave, "prepare", self._tasks("prepare", late, campaign_id=campaign_id))
        if self._coordinator.campaigns.find(campaign_id).closed_index is None:
            self._coordinator.campaigns.close(campaign_id)
        self._done(wave, "answer late", self._tasks("answer late", late, campaign_id=campaign_id))
        self._check_answers(campaign_id, answered)
        wave.reported = len(answered)

    def _here(self) -> list[int]:
        return [index for index in range(self._joined) if index not in self._gone]

    def _tasks(self, action: Action, owners: Sequence[int], *, campaign_id: str = "") -> list[Task]:
        drops = {"take part": "drops out submitting", "answer": "drops out answering"}.get(action)
        return [
            Task(
                index=index,
                owner=_name(index),
                action=action,
                home=str(self._plan.workdir / "owners" / _name(index)),
                text=str(self._plan.workdir / "text"),
                invitation=self._invitation(index) if action == "join" else "",
                campaign_id=campaign_id,
                drops_out=self._fates[index] == drops,
            )
            for index in owners
        ]

    def _invitation(self, index: int) -> str:
        return bytes(invitation_for(self._coordinator, _name(index))).decode()

    def _heard(self, wave: Wave, action: Action, tasks: list[Task], owners: Sequence[int]) -> set[int]:
        """Who did a task; the others must be those that were to drop out, and are not asked again."""
        outcomes = self._did(wave, action, tasks)
        lost = {each.task.index for each in outcomes if each.failure}
        expected = {task.index for task in tasks if task.drops_out}
        if lost != expected:
            strange = next(each for each in outcomes if bool(each.failure) != each.task.drops_out)
            raise VerificationError(
                f"{strange.task.owner} could not {action}: {strange.failure or 'it did not drop out'}"
            )
        self._gone |= lost
        return set(owners) - lost

    def _done(self, wave: Wave, action: Action, tasks: list[Task]) -> None:
        self._heard(wave, action, tasks, [task.index for task in tasks])

    def _did(self, wave: Wave, action: Action, tasks: list[Task]) -> list[Outcome]:
        if not tasks:
            return []
        started = time.monotonic()
        outcomes = self._ask(tasks)
        if len(outcomes) != len(tasks):
            raise VerificationError(f"of {len(tasks)} owners that were to {action}, {len(outcomes)} came back")
        wave.seconds[action] = round(time.monotonic() - started, 2)
        if action in ("join", "take part", "answer"):
            wave.seconds_per_owner[action] = round((time.monotonic() - started) / len(tasks), 4)
        sent = [each.sent_bytes for each in outcomes if each.sent_bytes]
        if action == "answer" and sent:
            wave.sent_bytes_per_owner = sum(sent) / len(sent)
        self._reporter.progress(f"{self._joined} owners", done=1, total=1, note=action)
        return outcomes

    def _check_release(self, released: PublishedRelease) -> None:
        """Exactly those who submitted and have not left; who dropped out after submitting is still in it."""
        left = {index for index in self._submitted & self._gone if self._fates[index] == "leaves"}
        wanted = {_name(index) for index in self._submitted - left}
        if set(released.owners.values()) != wanted:
            raise VerificationError(f"{released.statement.release} is of {sorted(released.owners.values())}")

    def _check_answers(self, campaign_id: str, answered: set[int]) -> None:
        """Every answer once, and of nobody else."""
        log = self._coordinator.log
        said = Counter(
            statement.party
            for index in range(self._coordinator.registry.size())
            if isinstance(statement := parse_note(log.entry(index))[1], CampaignResult)
            and statement.campaign_id == campaign_id
        )
        if said != Counter({_name(index): 1 for index in answered}):
            raise VerificationError(f"campaign {campaign_id} holds {said}")
        states = Counter(each.state for each in self._coordinator.campaigns.table(campaign_id))
        if states["reported"] != len(answered) or sum(states.values()) < len(answered):
            raise VerificationError(f"campaign {campaign_id} shows {states}")

    def _measure(self, wave: Wave, released: PublishedRelease) -> None:
        wave.experts = len(released.owners)
        wave.log_entries = self._coordinator.registry.size()
        wave.coordinator_mb = round(self._daemon.rss_bytes() / 1e6, 1)
        wave.acting_mb = round(rss_bytes(but=self._daemon.pid) / 1e6, 1)
        home = self._coordinator.home.path
        wave.coordinator_disk_mb = round(_size(home) / 1e6, 2)
        wave.owner_disk_mb = round(_size(self._plan.workdir / "owners") / 1e6 / wave.owners, 3)


def _name(index: int) -> str:
    return f"owner-{index + 1:04d}"


@contextmanager
def _timed(wave: Wave, name: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    wave.seconds[name] = round(time.monotonic() - started, 2)


def _size(folder: Path) -> int:
    """Bytes of the files in a folder; those with several names count once."""
    found = {}
    for path in folder.rglob("*"):
        try:
            facts = path.lstat()
        except FileNotFoundError:  # the daemon renames what it writes
            continue
        found[facts.st_ino] = facts.st_size if path.is_file() else 0
    return sum(found.values())
