"""The owner's daemon: takes every step that the owner agreed to in its settings, and watches the log all the while.

It dials out only. Every checkpoint it sees must continue the one it has pinned, and is cosigned; its certificate is
renewed in time; what commands signed here while the coordinator was away is sent. That goes on beside all else, from
the start: others wait for its cosignature before they sign. What campaigns ask is answered beside all else, too; one
that asks to train has this look again for what there is to train.
"""

import logging
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime, timedelta
from threading import Event, Thread
from time import monotonic
from typing import Final

from common.console import Reporter, bytes_progress, job_progress
from common.errors import (
    ApprovalNeededError,
    EgressDeniedError,
    MalformedError,
    NoRoomError,
    NotFoundError,
    NotPermittedError,
    SignatureNeededError,
    UnavailableError,
    VerificationError,
)
from common.files import exclusive
from common.pauses import Pauses
from common.service import being_watched
from common.state_file import StatedReporter, StateFile
from common.trust.statements import format_time
from owner_client import participation
from owner_client.campaign_reports import waits_for_flower
from owner_client.campaign_worker import CampaignWorker
from owner_client.config import OwnerHome
from owner_client.latest_settings import LatestSettings
from owner_client.membership import REFUSALS, Membership, cosign_checkpoint, open_membership, renew_if_due
from owner_client.participation import Base

logger = logging.getLogger(__name__)

_PATIENCE_S: Final = 3600.0
_LOOK_EVERY_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 60.0
_PERSON_NEEDED_S: Final = 10.0
"""After a refusal nothing changes before somebody does something, such as invite this owner again."""
_NO_BASE: Final = (
    "no public model is published yet; waiting for the coordinator's first one, and watching the log meanwhile"
)
_SEND_AGAIN_S: Final = 3600.0
"""What the registry refused and is kept all the same is sent again after so long."""


def run(home: OwnerHome, *, reporter: Reporter, stop: Event) -> None:
    """Take part until stopped.

    Raises:
        NotFoundError: this home has not enrolled.
        ConflictError: another daemon runs in this home, or Flower is enabled and another version of it installed.
        VerificationError: the log contradicts itself; the evidence is kept.
    """
    home.settings()
    with exclusive(home.path / "daemon.lock", what=f"the owner in {home.path}"), being_watched():
        state = StateFile(home.state)
        stated = StatedReporter(reporter, state)
        stated.step("started")
        try:
            again = Event()
            with (
                Watching(home, reporter=stated.beside(), state=state, stop=stop),
                CampaignWorker(home, reporter=stated, train=again.set),
                _flower(home, reporter=stated.beside()),
            ):
                while not stop.is_set():
                    again.clear()
                    while not _did_all(home, reporter=stated, stop=stop):
                        stop.wait(_PERSON_NEEDED_S)
                    while not again.is_set() and not stop.wait(_LOOK_EVERY_S):
                        pass
        except (KeyboardInterrupt, UnavailableError):
            if not stop.is_set():
                raise
        stated.step("stopped; everything done so far is kept")


def _flower(home: OwnerHome, *, reporter: Reporter) -> AbstractContextManager[object]:
    """This owner's node, where campaigns are to come over Flower."""
    if not home.settings().flower.enabled:
        return nullcontext()
    from owner_client.flower import FlowerNode

    return FlowerNode(home, reporter=reporter)


def _did_all(home: OwnerHome, *, reporter: Reporter, stop: Event) -> bool:
    """Whether all that the settings agree to is done; False where the coordinator does not let this owner in or a
    disk is full, which a person must see to.
    """
    with open_membership(home, patience_s=_PATIENCE_S, stop=stop) as member:
        try:
            _take_part_when_approved(member, reporter=reporter, stop=stop)
        except SignatureNeededError as error:
            reporter.step(f"{error}; watching the log meanwhile")
        except (NoRoomError, NotPermittedError) as error:
            reporter.warning(f"{error}; trying again")
            return stop.is_set()
    return True


def _take_part_when_approved(member: Membership, *, reporter: Reporter, stop: Event) -> None:
    """Take part, waiting for a person's word where that is needed; the log is watched meanwhile."""
    asked = ""
    while not stop.is_set():
        try:
            take_part(member, reporter=reporter, stop=stop)
        except ApprovalNeededError as error:
            if str(error) != asked:
                reporter.step(f"{error}; watching the log meanwhile")
            asked = str(error)
            while member.reviews.is_waiting() and not stop.wait(_LOOK_EVERY_S):
                pass
            continue
        except EgressDeniedError as error:
            reporter.warning(f"{error}; watching the log only")
        return


def take_part(member: Membership, *, reporter: Reporter, stop: Event) -> None:
    """Fetch, consent, train and submit, as far as the settings agree and unless this owner has left."""
    with member.chain.turn():
        participation.send_unsent(member)
    if participation.has_left(member.chain):
        reporter.step("this owner has opted out; watching the log only")
        return
    _wait_for_base(member, reporter=reporter, stop=stop)
    if stop.is_set():
        return
    base = participation.fetch_base(member, on_bytes=bytes_progress(reporter, "fetching the public model"))
    reporter.step("the public model is in the log and every file of it is as signed")
    if member.settings.consent is None:
        _send_what_was_asked(member, base, reporter=reporter)
        return
    grant = participation.consent(member, member.settings.consent, base=base)
    reporter.step(f"consent is in the log until {grant.not_after}")
    _train_and_submit(member, base, reporter=reporter, stop=stop)


def _wait_for_base(member: Membership, *, reporter: Reporter, stop: Event) -> None:
    """Return when there is a public model, or at a stop: owners may join days before the first one is published."""
    is_said = False
    while not stop.is_set():
        try:
            member.client.base()
        except NotFoundError:
            if not is_said:
                reporter.step(_NO_BASE)
            is_said = True
            stop.wait(member.settings.poll_s)
            member.client.connection.refresh()
        else:
            return


def _send_what_was_asked(member: Membership, base: Base, *, reporter: Reporter) -> None:
    """Where a person consents and trains by hand: an expert that `concord owner submit` asked that person about is sent
    once it is approved; nothing else is.
    """
    grant = participation.grant_in_force(member.chain, base_digest=base.digest)
    if grant is None:
        reporter.step("no consent is set in owner.toml: sign one with `concord owner consent`; watching the log only")
    elif participation.was_asked_about(member, base=base):
        _submit(member, base, reporter=reporter)
    else:
        reporter.step(
            f"a consent is in force until {grant.not_after}, signed by hand: an expert leaves with "
            "`concord owner submit`; watching the log only"
        )


def _submit(member: Membership, base: Base, *, reporter: Reporter) -> None:
    said = participation.submit(member, base=base, on_bytes=bytes_progress(reporter, "sending the expert"))
    reporter.step(f"the expert is submitted: {said.statement.record_id}")


def _train_and_submit(member: Membership, base: Base, *, reporter: Reporter, stop: Event) -> None:
    participation.train(
        member,
        base=base,
        data=None,
        public=None,
        options=member.settings.training,
        on_event=job_progress(reporter, "training the expert"),
        stop=stop,
    )
    reporter.step("the expert is trained; it has not left")
    _submit(member, base, reporter=reporter)


class Watching:
    """A thread that watches the log while the block runs. Where that fails it sets `stop`, and the block ends with what
    failed.
    """

    def __init__(self, home: OwnerHome, *, reporter: Reporter, state: StateFile, stop: Event) -> None:
        self._home, self._reporter, self._state, self._stop = home, reporter, state, stop
        self._ended = Event()
        self._failure: Exception | None = None
        self._thread = Thread(target=self._run, name="watch", daemon=True)

    def __enter__(self) -> "Watching":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            watch(self._home, reporter=self._reporter, state=self._state, stop=self._ended)
        except KeyboardInterrupt:
            return  # ended in the middle of a call
        except Exception as error:  # the daemon must not go on without a witness; whoever started this is told
            self._failure = error
            self._stop.set()


def watch(home: OwnerHome, *, reporter: Reporter, state: StateFile, stop: Event) -> None:
    """Verify every new checkpoint, send what waits and keep the certificate fresh, until stopped.

    While the coordinator is away it is asked again after growing pauses, which differ from owner to owner. A changed
    address in `owner.toml` is taken up; what a person must see to is said once and asked again.
    """
    seen, resending, pauses = -1, _Resending(reporter), Pauses(longest_s=_LONGEST_PAUSE_S)
    settings = LatestSettings(home, reporter=reporter)
    while not stop.is_set():
        try:
            with open_membership(home, patience_s=0, stop=stop) as member:
                while not stop.is_set() and settings.now().target == member.settings.target:
                    if renew_if_due(member):
                        reporter.step("certificate renewed")
                        break  # the next connection shows the new one
                    checkpoint, size = member.client.watch()
                    cosign_checkpoint(member, checkpoint)
                    pauses.begin_again()
                    state.set(at_once=False, contact_at=format_time(datetime.now(UTC)), log_entries=size,
                              trouble=None, next_try_at=None)  # fmt: skip
                    if size != seen:
                        reporter.step(f"the log has {size} entries and continues what was seen before")
                        seen = size
                    resending.look(member)
                    stop.wait(member.settings.poll_s)
        except (UnavailableError, NotPermittedError, MalformedError) as error:
            pause_s = pauses.next_s(settings.now().poll_s)
            if isinstance(error, NotPermittedError | MalformedError):
                pause_s = max(pause_s, _PERSON_NEEDED_S)
            logger.info("%s; trying again in %.1f s", error, pause_s)
            again = format_time(datetime.now(UTC) + timedelta(seconds=pause_s))
            state.set(trouble=str(error), next_try_at=again)
            stop.wait(pause_s)
        except VerificationError:
            logger.critical("the log contradicts what this owner has seen; stopping")
            raise


class _Resending:
    """Sends what was signed and is not in the log, such as a revocation from while the coordinator was away. A refusal
    is said and does not end the watching.
    """

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._not_before_s = 0.0

    def look(self, member: Membership) -> None:
        """Send what waits, unless somebody else is about to: an upload may hold the chain for hours."""
        if monotonic() < self._not_before_s:
            return
        with member.chain.turn_if_free() as is_free:
            waiting = participation.unsent(member.chain) if is_free else []
            if not waiting or waits_for_flower(member):
                return
            try:
                participation.send_unsent(member)
            except (*REFUSALS, NotPermittedError) as error:
                self._not_before_s = monotonic() + _SEND_AGAIN_S
                self._reporter.warning(str(error))
            else:
                self._reporter.step(f"sent, and in the log now: {', '.join(said.statement.type for said in waiting)}")
