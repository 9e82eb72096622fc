"""One campaign at an owner's: a folder whose files say how far it is. Each is written whole, once, so that a crash at
any moment leaves a state to go on from, and the daemon and commands may look and write at the same time.

`offer.note` what is asked; `accepted` or `declined` what was decided; `answer.json` and `attachment` what was found;
`answer.note` what was signed; `receipt` once the log has it; `failed` why the last try did not work; `late` that it was
over before this owner answered; `closed` that the coordinator does not ask any more, before anybody decided.
"""

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from common.errors import NotFoundError
from common.files import make_private_directory, read_required, write_atomic
from common.trust.campaign_statements import CampaignDefine
from common.trust.statements import parse_note, parse_time
from owner_client.config import OwnerHome

_OFFER: Final = "offer.note"
STATES: Final = {
    "receipt": "answered",
    "late": "late",
    "answer.note": "signed",
    "failed": "failed",
    "declined": "declined",
    "answer.json": "ready",
    "running": "running",
    "accepted": "accepted",
    "closed": "over",
    _OFFER: "offered",
}
"""By file, the latest first."""
OPEN_STATES: Final = ("signed", "declined", "ready", "running", "accepted")
"""There is something to do for the daemon."""


@dataclass(frozen=True, slots=True)
class CampaignFolder:
    """A campaign's files."""

    path: Path

    @property
    def id(self) -> str:
        """The campaign's."""
        return self.path.name

    @property
    def state(self) -> str:
        """How far it is; `unknown` where nothing was asked."""
        return next((state for name, state in STATES.items() if (self.path / name).exists()), "unknown")

    @property
    def waits(self) -> bool:
        """Whether a person's word is wanted, and in time."""
        return self.state == "offered" and datetime.now(UTC) < parse_time(self.asked.closes_at)

    @property
    def asked(self) -> CampaignDefine:
        """What is asked; `NotFoundError` where nothing was."""
        statement = parse_note(self.offer)[1]
        assert isinstance(statement, CampaignDefine), "only such offers are kept"
        return statement

    @property
    def offer(self) -> bytes:
        """The signed note of what is asked."""
        return read_required(self.path / _OFFER, hint="nothing was asked; see: concord owner campaign list")

    def keep_offer(self, note: bytes) -> None:
        """Take in what is asked."""
        make_private_directory(self.path)
        write_atomic(self.path / _OFFER, note, mode=0o600)

    def has(self, name: str) -> bool:
        """Whether one of its files is there."""
        return (self.path / name).exists()

    def read(self, name: str) -> bytes | None:
        """One of its files, if it is there."""
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes = b"") -> None:
        """Write one of its files, whole and on disk."""
        write_atomic(self.path / name, data, mode=0o600)

    def write_first(self, name: str, data: bytes, *, unless: tuple[str, ...]) -> bool:
        """Write a decision that nobody made before; False where one of these was."""
        if any(self.has(other) for other in (name, *unless)):
            return False
        try:
            descriptor = os.open(self.path / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return False
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        return True

    def forget(self, name: str) -> None:
        """Remove one of its files, if it is there."""
        (self.path / name).unlink(missing_ok=True)


def folder_of(home: OwnerHome, campaign_id: str) -> CampaignFolder:
    """A campaign's folder, whether it is there yet or not; `NotFoundError` for what is no campaign's id."""
    if not campaign_id or not set(campaign_id) <= set("0123456789abcdef-"):
        raise NotFoundError(f"{campaign_id[:80]!r} is no campaign's id")
    return CampaignFolder(home.campaigns / campaign_id)


def folders(home: OwnerHome) -> list[CampaignFolder]:
    """Every campaign that is known here, the oldest first: ids begin with their time."""
    if not home.campaigns.is_dir():
        return []
    found = [CampaignFolder(path) for path in sorted(home.campaigns.iterdir()) if path.is_dir()]
    return [folder for folder in found if folder.has(_OFFER)]
