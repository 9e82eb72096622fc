"""Rolling a registry forward that was restored from an older backup, from what was published since.

What others have seen of a log must stay in it. All of it is among the published files: entries, and a checkpoint that
the log signed over them. They are taken in as they are, after everything in them was verified; nothing that is in the
registry is changed, and a registry that does not begin what was published is left alone. What was not published, as
invitations and certificates, is lost: whoever joined since is invited again.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from common.errors import ConflictError
from common.files import copy_whole, read_required
from common.trust.cosignature import cosigned
from common.trust.manifest import digest_of_file
from common.trust.note import Checkpoint, Note
from common.trust.statements import COORDINATOR, OwnerEnrol, parse_note
from common.trust.tiles import CHECKPOINT_NAME, LogEntries
from common.trust.verify import StepFailed, check_checkpoint, check_entries, check_history
from coordinator.enrolment import revoke_certificates
from coordinator.home import Coordinator, open_home
from coordinator.outside_witnesses import OutsideWitness, ask
from coordinator.releases import show_logged
from coordinator.withdrawal import needed_files, standing_manifests

_TOGETHER: Final = 1024
_HINT: Final = "name a coordinator's public directory, or a whole copy of one, with --from"


@dataclass(frozen=True, slots=True)
class Recovered:
    """The number of entries before and after, who joined in those that were added, and published files that are not
    there."""

    before: int
    after: int
    joined: list[str]
    missing: list[str]
    without_certificate: list[str]
    """Owners whose certificate the registry does not know, or not as one that holds: they need an invitation."""
    with_certificate: list[str]
    """The other owners: they need one where they renewed it since the backup."""
    still_behind: str | None
    """Why nothing may be signed yet: an outside witness has seen more than this."""


def recover(path: Path, source: Path | None) -> Recovered:
    """Bring the registry of the home in `path` up to what is published in `source`, by default the home's own files.

    Raises:
        NotFoundError: there is no such home, or a published file is missing.
        VerificationError: what is published there is not what this log signed, or breaks its rules.
        ConflictError: the registry is no beginning of it.
    """
    with open_home(path, may_be_older=True) as coordinator:
        public = source or coordinator.home.public
        note = read_required(public / "log" / CHECKPOINT_NAME, hint=_HINT)
        head = check_checkpoint(coordinator.registry.root, note)
        entries = LogEntries(lambda name: read_required(public / "log" / name, hint=_HINT), size=head.size)
        before = coordinator.log.head()
        if before.size < head.size:
            _check(coordinator, entries, head, before=before)
            for start in range(before.size, head.size, _TOGETHER):
                added = entries[start : start + _TOGETHER]
                coordinator.log.roll_forward(added, start=start, effects=revoke_certificates)
        elif not coordinator.log.holds(head):
            raise ConflictError(_OTHER.format(here=before.size, there=head.size))
        _keep_cosignatures(coordinator, Note.parse(note))
        coordinator.log.check_not_rolled_back()  # by its own files: those named may be older
        coordinator.log.sign_head()
        missing = _bring_files(coordinator, public)
        if not missing:
            show_logged(coordinator)
        still_behind = ask(coordinator.registry, coordinator.settings.outside_witnesses)
        said = (parse_note(entry)[1] for entry in entries[before.size :])
        joined = [statement.party for statement in said if isinstance(statement, OwnerEnrol)]
        return Recovered(before.size, coordinator.log.size(), joined, missing, *_owners(coordinator), still_behind)


def _owners(coordinator: Coordinator) -> tuple[list[str], list[str]]:
    """Owners without a certificate that holds, and those with one."""
    latest, now = coordinator.enrolment.latest_certificates(), datetime.now(UTC)
    holding = {owner for owner, each in latest.items() if not each.is_revoked and each.not_after > now}
    owners = [party for party in coordinator.registry.head().parties if party != COORDINATOR]
    return [owner for owner in owners if owner not in holding], [owner for owner in owners if owner in holding]


_OTHER: Final = (
    "the registry's {here} entries and the {there} that were published are two different logs. Nothing was changed: "
    "take another backup or other published files"
)


def _check(coordinator: Coordinator, entries: LogEntries, head: Checkpoint, *, before: Checkpoint) -> None:
    """Steps 2 to 5 of an audit, where what was seen last is what the registry holds."""
    try:
        check_entries(entries, head, last_seen=before)
    except StepFailed as error:
        if error.step == 2:
            raise ConflictError(_OTHER.format(here=before.size, there=head.size)) from error
        raise
    check_history(coordinator.registry.root, entries)


def _keep_cosignatures(coordinator: Coordinator, note: Note) -> None:
    outside = [OutsideWitness.parse(line).witness for line in coordinator.settings.outside_witnesses]
    for witness in [*coordinator.registry.head().witnesses, *outside]:
        if cosigned(note, [witness]):
            coordinator.registry.keep_cosignature(note, witness)


def _bring_files(coordinator: Coordinator, public: Path) -> list[str]:
    """Copy what the log names and is not published here; returns the digests of what is not there, either."""
    history = coordinator.registry.head()
    if missing := [each for each in standing_manifests(history) if not _bring(coordinator, public, each)]:
        return missing
    return sorted(each for each in needed_files(coordinator, history) if not _bring(coordinator, public, each))


def _bring(coordinator: Coordinator, public: Path, digest: str) -> bool:
    target = coordinator.publication.object_path(digest)
    found = public / "objects" / target.name
    if not target.exists() and found.is_file() and digest_of_file(found) == digest:
        copy_whole(found, target)
    return target.exists()
