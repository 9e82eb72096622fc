"""Bases and releases: from what is in force in the log to signed, published directories.

A release is made in an order that a crash at any point leaves in a state from which making it again goes on: assemble
and evaluate in `work/`, publish the files by content, record the statement that names them, then show the directory.
What the log names and no directory shows yet is shown first thing next time.
"""

import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from common.errors import (
    ConcordError,
    ConflictError,
    ConsentError,
    MalformedError,
    NoRoomError,
    NotFoundError,
    TooLargeError,
    UnavailableError,
)
from common.files import check_room, exclusive, full_disk_is_unavailable
from common.model.assembly import assemble
from common.model.expert import CONFIG_NAME, EXPERT_NAME, check_base
from common.trust import strict_json
from common.trust.history import History, left_out, releasable_experts
from common.trust.manifest import Manifest
from common.trust.rules import first_lapse
from common.trust.state import Contribution, Grant
from common.trust.statements import MAX_LIST_BYTES, BasePublish, ReleasedExpert, ReleasePublish
from coordinator.home import Coordinator
from coordinator.intake import SPARE_BYTES
from coordinator.withdrawal import needed_files, take_down

_ATTEMPTS: Final = 5
_OTHER_FIELDS_BYTES: Final = 2048
"""Room for what a release's statement says beside its experts."""

Evaluate = Callable[[Path], None]
"""Evaluates the model in a directory and writes what it found there, before the release is signed."""


@dataclass(frozen=True, slots=True)
class PublishedBase:
    """A public checkpoint in the log."""

    statement: BasePublish
    directory: Path


@dataclass(frozen=True, slots=True)
class PublishedRelease:
    """A release in the log: where it is shown, and who is in it by slot."""

    statement: ReleasePublish
    directory: Path
    owners: Mapping[int, str]
    left_out: Mapping[str, str]
    """Owners whose expert and unrevoked consent are there, but who may not be in it, and why."""
    is_new: bool
    """Whether it was made just now; else nothing has come since."""


def publish_base(coordinator: Coordinator, directory: Path) -> PublishedBase:
    """Publish the model in `directory` as the public checkpoint of the next round. The same one again changes nothing.

    Raises:
        MalformedError: it is not a base: a dense OLMo 2 model with a router row for the public expert.
    """
    check_base(directory)
    with one_at_a_time(coordinator), full_disk_is_unavailable("the public model"):
        manifest = coordinator.publication.add_objects(directory, ours=False)
        with coordinator.registry.history() as history:
            statement, round_number = history.bases.get(manifest.digest), len(history.bases)
        if statement is None:
            statement = _record_base(coordinator, manifest, round_number=round_number)
        shown = coordinator.publication.base(statement.round)
        coordinator.publication.show(shown, manifest_digest=manifest.digest)
    return PublishedBase(statement, shown)


def _record_base(coordinator: Coordinator, manifest: Manifest, *, round_number: int) -> BasePublish:
    recorded = coordinator.registry.issue(
        BasePublish,
        base_digest=manifest.digest,
        config_digest=manifest.files[CONFIG_NAME].digest,
        round=round_number,
    )
    assert isinstance(recorded.statement, BasePublish)
    return recorded.statement


def latest_base(history: History) -> BasePublish:
    """The base of the latest round; `NotFoundError` before the first."""
    if not history.bases:
        raise NotFoundError("no public checkpoint is published yet; publish one with: concord coordinator publish")
    return max(history.bases.values(), key=lambda base: base.round)


def find_release(history: History, name: str) -> ReleasePublish:
    """A release by name, or the latest where no name is given.

    Raises:
        NotFoundError: there is none of that name, or it was withdrawn.
    """
    standing = [release for release in history.releases.values() if release.withdrawn_index is None]
    if not name:
        if not standing:
            raise NotFoundError("nothing is released yet, or all of it was withdrawn")
        return standing[-1].statement
    release = history.releases.get(name)
    if release is None:
        known = ", ".join(each.statement.release for each in standing[-5:]) or "none"
        raise NotFoundError(f"there is no release {name[:80]!r}; there are: {known}")
    if release.withdrawn_index is not None:
        raise NotFoundError(f"{name} was withdrawn by entry {release.withdrawn_index} of the log; use a later one")
    return release.statement


def make_release(coordinator: Coordinator, *, evaluate: Evaluate | None) -> PublishedRelease:
    """Make, sign and log the next release from what is in force in the log now.

    Where the log's last entry is that very release, as after a crash, it is found again.

    Entries that land while it is made and change nothing about who may be in it are taken into account.

    Raises:
        ConflictError: another release is being made, or experts came while it was made; make it again.
        ConsentError: an owner opted out while it was made; make it again.
        NoRoomError: the disk is full; nothing of it is left.
    """
    with one_at_a_time(coordinator):
        show_logged(coordinator)
        try:
            with full_disk_is_unavailable("the next release"):
                return _make_next(coordinator, evaluate)
        except NoRoomError:
            shutil.rmtree(coordinator.home.work, ignore_errors=True)  # half a model, which is made anew
            raise
        finally:
            take_down(coordinator)  # what was withdrawn meanwhile


def _make_next(coordinator: Coordinator, evaluate: Evaluate | None) -> PublishedRelease:
    settings, now = coordinator.settings, datetime.now(UTC)
    with coordinator.registry.history() as history:
        base = latest_base(history)
        name, line = f"release-{len(history.releases) + 1}", settings.line
        place = {"release": name, "line": line, "base_digest": base.base_digest}
        chosen = releasable_experts(history, **place, at=now)
    experts = [_released(slot, *pair) for slot, pair in enumerate(chosen, start=1)]
    _check_fits(experts)
    staging = clear_work(coordinator) / name
    files = [coordinator.publication.find(_expert_digest(contribution)) for _, contribution in chosen]
    num_experts_per_tok = min(settings.num_experts_per_tok, len(chosen) + 1)
    shared = coordinator.publication.manifest(base.base_digest).size_bytes
    needed = shared + sum(path.stat().st_size for path in files) + SPARE_BYTES
    check_room(coordinator.home.work, needed=needed, what=name)
    assemble(coordinator.publication.base(base.round), files, num_experts_per_tok=num_experts_per_tok, output=staging)
    if evaluate is not None:
        evaluate(staging)
    _check_still(coordinator, chosen, **place)  # before anything of it is published
    manifest = coordinator.publication.add_objects(staging, ours=True)
    with coordinator.registry.history() as history:
        earlier, not_after = _last_entry(history, manifest), first_lapse(history, experts)
    try:
        statement = earlier or record_release(
            coordinator,
            lambda: _check_still(coordinator, chosen, **place),
            **place,
            manifest_digest=manifest.digest,
            experts=experts,
            num_experts_per_tok=num_experts_per_tok,
            not_after=not_after,
        )
    except ConcordError:
        take_back(coordinator, staging)
        raise
    shown = coordinator.publication.release(statement.release)
    coordinator.publication.show(shown, manifest_digest=manifest.digest)
    shutil.rmtree(coordinator.home.work, ignore_errors=True)
    with coordinator.registry.history() as history:
        why = left_out(history, **(place | {"release": statement.release}), at=now)
    owners = {slot: grant.party for slot, (grant, _) in enumerate(chosen, start=1)}
    return PublishedRelease(statement, shown, owners, why, is_new=earlier is None)


def _check_fits(experts: list[ReleasedExpert]) -> None:
    """One statement names them all; else that would be found out once they are assembled."""
    size = len(strict_json.canonical([each.model_dump(mode="json") for each in experts])) + _OTHER_FIELDS_BYTES
    if size > MAX_LIST_BYTES:
        raise TooLargeError(
            f"a release of {len(experts)} experts would take {size} bytes in the log; at most {MAX_LIST_BYTES} are "
            "allowed: let some owners consent to another line of releases (`line` in coordinator.toml)"
        )


def clear_work(coordinator: Coordinator) -> Path:
    """The folder in which releases are made, emptied; holding the release lock."""
    work = coordinator.home.work
    for left in work.glob("*"):
        take_back(coordinator, left)  # a crash came between its files and its entry, or after both
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    return work


def take_back(coordinator: Coordinator, staging: Path) -> None:
    """Remove what was published of the model in `staging` and the log does not name."""
    if not staging.is_dir():
        return
    try:
        manifest = Manifest.of_directory(staging)
    except MalformedError:
        return  # half assembled: a model is published once it is whole
    history = coordinator.registry.head()
    published = {manifest.digest, *(entry.digest for entry in manifest.files.values())}
    logged = {release.statement.manifest_digest for release in history.releases.values()}
    coordinator.publication.remove(published - logged - needed_files(coordinator, history))


def _last_entry(history: History, manifest: Manifest) -> ReleasePublish | None:
    """The release of exactly these files, where nothing was recorded since it."""
    last = next(reversed(history.releases.values()), None)
    if last is None or last.index != history.size - 1 or last.statement.manifest_digest != manifest.digest:
        return None
    return last.statement


def record_release(coordinator: Coordinator, check: Callable[[], int], **fields: object) -> ReleasePublish:
    """Record it over the log as it is now; `check` says how large that is, if the release may still be made."""
    for _ in range(_ATTEMPTS):
        log_size = check()
        try:
            recorded = coordinator.registry.issue(ReleasePublish, log_size=log_size, **fields)
        except ConflictError:
            if coordinator.registry.size() == log_size:
                raise
            continue  # an entry landed between the two
        assert isinstance(recorded.statement, ReleasePublish)
        return recorded.statement
    raise UnavailableError("the log grows faster than a release can be recorded; make it again")


def _check_still(
    coordinator: Coordinator, chosen: list[tuple[Grant, Contribution]], *, release: str, line: str, base_digest: str
) -> int:
    """The log's size, if those who may be in the release now are the chosen ones."""
    at = datetime.now(UTC)
    with coordinator.registry.history() as history:
        now, log_size = (
            releasable_experts(history, release=release, line=line, base_digest=base_digest, at=at),
            history.size,
        )
    was, here = ({grant.index: contribution.index for grant, contribution in each} for each in (chosen, now))
    if was.keys() - here.keys():
        raise ConsentError(f"an owner of {release} opted out, or its consent lapsed, while it was made; make it again")
    if was != here:
        raise ConflictError(f"an expert came while {release} was made; make it again")
    return log_size


def _expert_digest(contribution: Contribution) -> str:
    return contribution.files[EXPERT_NAME].digest


def _released(slot: int, grant: Grant, contribution: Contribution) -> ReleasedExpert:
    return ReleasedExpert(
        digest=contribution.manifest_digest,
        grant_index=grant.index,
        contribute_index=contribution.index,
        slot=slot,
    )


def show_logged(coordinator: Coordinator) -> None:
    """Show every base and release that the log names and that a crash kept from being shown.

    Raises:
        NotFoundError: its manifest is not here. Where several homes share a registry, it is where it was made.
    """
    publication = coordinator.publication
    with coordinator.registry.history() as history:
        logged = {publication.base(base.round): base.base_digest for base in history.bases.values()}
        for name, release in history.releases.items():
            if release.withdrawn_index is None:
                logged[publication.release(name)] = release.statement.manifest_digest
    for directory, digest in logged.items():
        if coordinator.settings.database is None or publication.object_path(digest).is_file():
            publication.show(directory, manifest_digest=digest)


def one_at_a_time(coordinator: Coordinator) -> AbstractContextManager[None]:
    """Hold the release lock while the block runs; `ConflictError` where another process does."""
    return exclusive(coordinator.home.release_lock, what=f"{coordinator.home.path} (publishing or releasing)")
