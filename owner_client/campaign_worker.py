"""The daemon's part in campaigns: asks what is asked, does what was accepted, and reports it; one thing at a time.

What cannot be done is said and kept, for a person to look at; what the coordinator cannot hear now is said later. A
campaign that is over is let be.
"""

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from threading import Event, Thread
from time import monotonic
from typing import Final

from common.console import Reporter, bytes_progress, job_progress
from common.errors import (
    ApprovalNeededError,
    ConcordError,
    ConflictError,
    MalformedError,
    NotPermittedError,
    SignatureNeededError,
    UnavailableError,
)
from common.pauses import Pauses
from common.trust.statements import parse_note, parse_time
from owner_client.campaign_folder import OPEN_STATES, CampaignFolder, folders
from owner_client.campaign_reports import report, waits_for_flower
from owner_client.campaign_work import find_answer
from owner_client.campaigns import asked_no_more, take_offer
from owner_client.config import OwnerHome
from owner_client.flower_exchange import is_silent
from owner_client.latest_settings import LatestSettings
from owner_client.membership import Membership, open_membership

logger = logging.getLogger(__name__)

_LOOK_EVERY_S: Final = 0.2
_LONGEST_PAUSE_S: Final = 60.0
_LEAVE_S: Final = 30.0


class CampaignWorker:
    """A thread that takes part in campaigns while the block runs; `train` has the daemon train."""

    def __init__(self, home: OwnerHome, *, reporter: Reporter, train: Callable[[], object]) -> None:
        self._home, self._reporter, self._train = home, reporter, train
        self._stop = Event()
        self._said: set[str] = set()
        self._acknowledged: set[tuple[str, str]] = set()
        self._polled_s = float("-inf")
        self._thread = Thread(target=self._run, name="campaigns", daemon=True)

    def __enter__(self) -> "CampaignWorker":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(_LEAVE_S)

    def _run(self) -> None:
        pauses = Pauses(longest_s=_LONGEST_PAUSE_S)
        settings = LatestSettings(self._home, reporter=self._reporter)
        while not self._stop.is_set():
            try:
                with open_membership(self._home, patience_s=0, stop=self._stop) as member:
                    while not self._stop.is_set() and settings.now() == member.settings:
                        self._look(member)
                        pauses.begin_again()
                        self._stop.wait(_LOOK_EVERY_S)
            except KeyboardInterrupt:
                return  # ended in the middle of something, which is done again
            except (UnavailableError, NotPermittedError, MalformedError) as error:
                logger.info("campaigns wait: %s", error)
                self._stop.wait(pauses.next_s(settings.now().poll_s))
            except Exception:  # a worker that ends would leave every later campaign unanswered
                logger.exception("campaigns wait for something unforeseen to pass")
                self._stop.wait(_LONGEST_PAUSE_S)

    def _look(self, member: Membership) -> None:
        """Ask what is asked, where that is due, and go on with whatever is open."""
        if monotonic() - self._polled_s >= member.settings.poll_s:
            self._polled_s = monotonic()
            if not self._by_flower(member):
                asked_no_more(self._home, {self._take(note) for note in member.client.offers()})
        for folder in folders(self._home):
            if self._stop.is_set():
                return
            self._acknowledge(member, folder)
            if folder.state in OPEN_STATES:
                self._go_on(member, folder)

    def _by_flower(self, member: Membership) -> bool:
        """Whether campaigns come over Flower, and states and answers go that way."""
        settings = member.settings
        return settings.flower.enabled and not is_silent(self._home, settings)

    def _take(self, note: bytes) -> str:
        """Take in what is offered, where it can be; the campaign's id, empty for what cannot be read."""
        campaign_id = ""
        try:
            campaign_id = parse_note(note)[1].record_id
            take_offer(self._home, note)
        except ConcordError as error:
            self._say_once(f"a campaign is not taken: {error}")
        return campaign_id

    def _acknowledge(self, member: Membership, folder: CampaignFolder) -> None:
        """Tell the coordinator how far this is, once a state; what was answered or is over it knows."""
        state = folder.state
        if state not in ("offered", "accepted", "running", "failed") or (folder.id, state) in self._acknowledged:
            return
        if state == "offered":
            self._reporter.step(
                f"a campaign ({folder.asked.kind}) waits for your word: concord owner campaign accept {folder.id}"
            )
        try:
            if not self._by_flower(member):
                member.client.acknowledge(folder.id, state)
        except (UnavailableError, NotPermittedError):
            raise
        except ConcordError as error:
            self._say_once(f"campaign {folder.id}: {error}")
        self._acknowledged.add((folder.id, state))

    def _go_on(self, member: Membership, folder: CampaignFolder) -> None:
        try:
            if self._is_over(folder):
                return
            if folder.state in ("accepted", "running"):
                self._work(member, folder)
            if folder.state == "signed" and waits_for_flower(member):
                return
            if report(member, folder):
                what = "declined" if folder.has("declined") else f"{folder.asked.kind} answered"
                self._reporter.step(f"campaign {folder.id}: {what}; it is in the log")
        except (ApprovalNeededError, SignatureNeededError) as error:
            self._say_once(str(error))
        except (UnavailableError, NotPermittedError):
            raise
        except ConcordError as error:
            self._failed(folder, error)

    def _is_over(self, folder: CampaignFolder) -> bool:
        """Whether nothing may be said any more; what was signed may be in the log and is asked for all the same."""
        if folder.state == "signed" or datetime.now(UTC) < parse_time(folder.asked.closes_at):
            return False
        folder.write("late")
        self._reporter.warning(f"campaign {folder.id} was over at {folder.asked.closes_at}, before it was answered")
        return True

    def _work(self, member: Membership, folder: CampaignFolder) -> None:
        folder.write("running")
        self._acknowledge(member, folder)
        what = f"campaign: {folder.asked.kind}"
        find_answer(
            member,
            folder,
            train=self._train,
            on_bytes=bytes_progress(self._reporter, f"fetching for {what}"),
            on_event=job_progress(self._reporter, what),
            stop=self._stop,
        )

    def _failed(self, folder: CampaignFolder, error: ConcordError) -> None:
        """Keep why; a person may have it tried again. An answer that was refused is not in the log."""
        folder.forget("answer.note")
        is_late = isinstance(error, ConflictError) and (folder.has("answer.json") or folder.has("declined"))
        folder.write("late" if is_late else "failed", f"{error}\n".encode())
        self._reporter.warning(f"campaign {folder.id}: {error}")

    def _say_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._reporter.step(text)
