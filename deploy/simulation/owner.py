"""A simulated owner: an owner's home, keys, chain, ledger and calls as they are, with text and training made tiny.

Nothing is pretended but size. Jobs run in the process that acts for the owner: starting hundreds of processes that
each load torch would be all that is measured.
"""

import importlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from threading import Event
from typing import Final

from common.data import document, write_documents
from common.errors import ConflictError
from common.files import write_atomic
from common.job import StopSignal, heard_by
from common.jobs import JobEvent, plain
from common.trust.invitation import Invitation
from deploy.simulation.recipe import EXPERT, OWN_DOCUMENTS, PUBLIC
from deploy.simulation.tasks import Task
from owner_client import membership, participation
from owner_client.campaign_folder import CampaignFolder, folder_of
from owner_client.campaign_reports import report
from owner_client.campaign_work import find_answer
from owner_client.campaigns import take_offer
from owner_client.config import ConsentSettings, OwnerHome
from owner_client.egress import read_ledger
from owner_client.membership import Membership, open_membership
from owner_client.retry import Retry

_PATIENCE_S: Final = 120.0
_JOBS: Final[Mapping[str, tuple[str, bool]]] = {
    "owner_client.train": ("ExpertJob", True),
    "owner_client.campaign_evaluation": ("CampaignEvaluation", False),
}
"""By job, the class of its configuration and whether it wants to know when to stop."""


_SPLITS: Final = {"train": 1, "validation": 8, "test": 8}
"""By split, what part of the documents it has beside."""


class DroppedOutError(Exception):
    """This owner went dark in the middle of what it did."""


def act(task: Task) -> tuple[float, int]:
    """Do one task; the seconds that took, and the bytes that this owner has sent in all, as its ledger has them.

    Raises:
        DroppedOutError: as the task says.
        ConcordError: it could not be done.
    """
    started = time.monotonic()
    home = OwnerHome(Path(task.home))
    _ACTIONS[task.action](task, home)
    sent = sum(int(str(line["size_bytes"])) for line in read_ledger(home.ledger))
    return time.monotonic() - started, sent


def write_text(folder: Path, *, seed: int, documents: int) -> None:
    """Text of made-up words, an owner's own."""
    random = Random(seed)  # noqa: S311
    words = ["".join(random.choice("aeiklmnorstu") for _ in range(random.randint(3, 7))) for _ in range(40)]
    folder.mkdir(parents=True, exist_ok=True)
    for split, share in _SPLITS.items():
        texts = (" ".join(random.choice(words) for _ in range(60)) + "." for _ in range(documents // share))
        write_documents(folder / f"{split}.jsonl", [document(text) for text in texts])


def _join(task: Task, home: OwnerHome) -> None:
    text = Path(task.text)
    write_text(text / task.owner, seed=task.index + 1, documents=OWN_DOCUMENTS)
    invitation = Invitation.parse(task.invitation.encode())
    retry = Retry(patience_s=_PATIENCE_S)
    membership.enrol(home, invitation, data=text / task.owner, public=text / PUBLIC, retry=retry)
    settings = home.settings_file.read_text()
    if "[campaigns]" not in settings:
        more = '[campaigns]\naccept = ["evaluate"]\nmin_documents = 2\nthreads = 1\n'
        write_atomic(home.settings_file, f"{settings}{more}".encode())


def _take_part(task: Task, home: OwnerHome) -> None:
    terms = Path(task.text) / "terms.txt"
    with open_membership(home, patience_s=_PATIENCE_S) as member:
        base = participation.fetch_base(member, on_bytes=_quiet)
        participation.consent(member, ConsentSettings(purposes=["research"], terms=terms), base=base)
        participation.train(
            member, base=base, data=None, public=None, options={**EXPERT, "seed": task.index}, on_event=_quiet,
            stop=Event(), run=run_here,
        )  # fmt: skip
        participation.submit(member, base=base, on_bytes=_drop_out_halfway if task.drops_out else _quiet)


def _answer(task: Task, home: OwnerHome) -> None:
    with open_membership(home, patience_s=_PATIENCE_S) as member:
        folder = _find(member, task)
        if task.drops_out:
            raise DroppedOutError(task.owner)
        while not report(member, folder):
            pass  # an earlier statement was still on its way, and is sent now


def _find(member: Membership, task: Task) -> CampaignFolder:
    """Take what is asked and find the answer, which has not left then."""
    for note in member.client.offers():
        take_offer(member.home, note)
    folder = folder_of(member.home, task.campaign_id)
    if folder.state in ("accepted", "running"):
        member.client.acknowledge(folder.id, "running")
        find_answer(member, folder, train=lambda: None, on_bytes=_quiet, on_event=_quiet, stop=Event(), run=run_here)
    return folder


def _answer_late(task: Task, home: OwnerHome) -> None:
    """Hand in what a straggler finds after the campaign was closed: it is refused, and said so."""
    with open_membership(home, patience_s=_PATIENCE_S) as member:
        folder = folder_of(home, task.campaign_id)
        try:
            report(member, folder)
        except ConflictError:
            return
    raise ConflictError(f"{task.owner} answered after the end, and was heard")


def _prepare_late(task: Task, home: OwnerHome) -> None:
    with open_membership(home, patience_s=_PATIENCE_S) as member:
        _find(member, task)


def _leave(task: Task, home: OwnerHome) -> None:
    with open_membership(home, patience_s=_PATIENCE_S) as member:
        participation.opt_out(member, reason="simulated")


def run_here(
    module: str,
    config: Mapping[str, object],
    *,
    config_path: Path,
    on_event: Callable[[JobEvent], None],
    stop: Event | None = None,
) -> None:
    """A job in this process (`common.jobs.RunJob`)."""
    class_name, wants_stop = _JOBS[module]
    job = importlib.import_module(module)
    asked = getattr(job, class_name).model_validate(plain(config))
    with heard_by(on_event):
        job.run(asked, *([StopSignal()] if wants_stop else []))


def _quiet(*_: object) -> None:
    pass


def _drop_out_halfway(done: int, total: int) -> None:
    if 2 * done >= total:
        raise DroppedOutError("half of the expert was sent")


_ACTIONS: Final[Mapping[str, Callable[[Task, OwnerHome], None]]] = {
    "join": _join,
    "take part": _take_part,
    "answer": _answer,
    "prepare": _prepare_late,
    "answer late": _answer_late,
    "leave": _leave,
}
