"""Carrying out revocations that take back what is published: statements first, then the files.

A withdrawn release stays in the log and its manifest among the published files, so that anybody can tell which bytes it
was and that they are gone. Everything here may be cut off anywhere and done again.
"""

import logging
import shutil
from threading import Thread

from common.errors import ConcordError, ConflictError
from common.files import taking_turns
from common.trust.history import History, taken_back, withdrawals_due
from common.trust.statements import ReleaseWithdraw
from coordinator.home import Coordinator

logger = logging.getLogger(__name__)


def carry_out(coordinator: Coordinator, *, in_background: bool) -> list[str]:
    """Withdraw every release that a revocation asks to withdraw, and take down its files; the names of the releases.

    The files wait for a release that is being made just now, `in_background` without keeping the caller.
    """
    names = _record_withdrawals(coordinator)
    if in_background:
        if names:
            Thread(target=_take_down_or_log, args=(coordinator,), daemon=True).start()
    else:
        with taking_turns(coordinator.home.release_lock):
            take_down(coordinator)
    return names


def _record_withdrawals(coordinator: Coordinator) -> list[str]:
    names = []
    with coordinator.registry.history() as history:
        due = withdrawals_due(history)
    for release, cause_index in due:
        name = release.statement.release
        try:
            coordinator.registry.issue(ReleaseWithdraw, release=name, cause_index=cause_index)
        except ConflictError:  # another process was faster
            with coordinator.registry.history() as history:
                if history.releases[name].withdrawn_index is None:
                    raise
        names.append(name)
    return names


def _take_down_or_log(coordinator: Coordinator) -> None:
    try:
        with taking_turns(coordinator.home.release_lock):
            take_down(coordinator)
    except (ConcordError, OSError):
        logger.exception("files of a withdrawn release could not be removed; it is tried again")


def take_down(coordinator: Coordinator) -> None:
    """Remove the files of withdrawn releases, and the experts whose owners asked for it; holding the release lock."""
    history, publication = coordinator.registry.head(), coordinator.publication
    withdrawn = [each.statement for each in history.releases.values() if each.withdrawn_index is not None]
    for release in withdrawn:
        publication.hide(publication.release(release.release))
        # A model whose rows are being trained is the release's, experts and all; the job fails without it and ends.
        shutil.rmtree(coordinator.home.router_training / release.release, ignore_errors=True)
    gone = _files(coordinator, [release.manifest_digest for release in withdrawn]) | taken_back(history).keys()
    if gone:
        publication.remove(gone - needed_files(coordinator, history))


def standing_manifests(history: History) -> list[str]:
    """Digests of the manifests of all bases, and of the releases that stand."""
    manifests = [base.base_digest for base in history.bases.values()]
    return manifests + [r.statement.manifest_digest for r in history.releases.values() if r.withdrawn_index is None]


def needed_files(coordinator: Coordinator, history: History) -> set[str]:
    """Digests of all that is named by bases, by releases that stand, and by contributions that were not taken back."""
    contributed = {
        file.digest for contribution in history.contributions_by_index.values() for file in contribution.files.values()
    }
    return _files(coordinator, standing_manifests(history)) | (contributed - taken_back(history).keys())


def _files(coordinator: Coordinator, manifest_digests: list[str]) -> set[str]:
    """Digests of what these manifests name; of one that is not in this home no file is here, either."""
    published = coordinator.publication
    here = (published.manifest(digest) for digest in manifest_digests if published.object_path(digest).is_file())
    return {entry.digest for manifest in here for entry in manifest.files.values()}
