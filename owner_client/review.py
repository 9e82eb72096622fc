"""A person's word on what leaves: asked for by the daemon or a command, given by `concord owner approve` or `reject`.

`reviews/<id>.json` says what wants to leave, by digest, and how a person reads it; `<id>.approved` or `<id>.rejected`
beside it is the answer. It holds for exactly these bytes, for good: others ask again.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from common.errors import (
    ApprovalNeededError,
    ConflictError,
    EgressDeniedError,
    MalformedError,
    NotFoundError,
    VerificationError,
)
from common.files import make_private_directory, write_atomic
from common.trust import strict_json
from common.trust.statements import format_time, parse_time
from owner_client.config import EgressSettings
from owner_client.ledger import UPLOAD, ledger_at

_ID: Final = re.compile(r"[0-9a-f]{12}")
_MEGABYTE: Final = 1_000_000
_DAY: Final = timedelta(days=1)
_COUNTED: Final = (UPLOAD, "result")


@dataclass(frozen=True, slots=True)
class Wanted:
    """Something that wants to leave. `summary` is what a person reads, by what each thing is called."""

    kind: str
    name: str
    digest: str
    size_bytes: int
    to: str
    summary: Mapping[str, str]

    @property
    def id(self) -> str:
        """What a person calls it."""
        return self.digest.removeprefix("sha256:")[:12]


@dataclass(frozen=True, slots=True)
class Review:
    """What wanted to leave, since when, and what was said of it: `waiting`, `approved` or `rejected`."""

    wanted: Wanted
    asked_at: str
    answer: str
    reason: str | None


class Reviews:
    """One owner's."""

    def __init__(self, directory: Path, *, settings: EgressSettings, ledger: Path) -> None:
        self._directory, self._settings, self._ledger = directory, settings, ledger

    def let_go(self, wanted: Wanted) -> None:
        """Return where this may leave now.

        Raises:
            EgressDeniedError: the settings do not allow it, or a person rejected these bytes.
            ApprovalNeededError: a person's word is needed; it is asked for.
        """
        if wanted.kind not in self._settings.kinds:
            allowed = ", ".join(self._settings.kinds) or "nothing"
            raise EgressDeniedError(f"no {wanted.kind} may leave: [egress] kinds in owner.toml allows {allowed}")
        self._check_budget(wanted)
        if self._settings.mode == "policy":
            return
        review = self._find(wanted.id) or self._ask(wanted)
        if review.wanted.digest != wanted.digest:
            raise EgressDeniedError(f"{wanted.id} was asked about for other bytes ({review.wanted.digest})")
        if review.answer == "rejected":
            raise EgressDeniedError(f"{wanted.name} ({wanted.id}) was rejected: {review.reason or 'no reason given'}")
        if review.answer == "waiting":
            raise ApprovalNeededError(
                f"{wanted.name} waits for your word: concord owner review {wanted.id}, then approve or reject it"
            )

    def all(self) -> list[Review]:
        """Everything that was asked about, the oldest first."""
        return sorted(self._read(), key=lambda review: (review.asked_at, review.wanted.id))

    def is_waiting(self) -> bool:
        """Whether anything waits for an answer."""
        return any(review.answer == "waiting" for review in self._read())

    def find(self, review_id: str) -> Review:
        """What is known by this id; `NotFoundError` where nothing is."""
        review = self._find(review_id)
        if review is None:
            raise NotFoundError(f"nothing is known as {review_id[:40]!r}; see: concord owner review")
        return review

    def answer(self, review_id: str, *, approved: bool, reason: str | None = None) -> Review:
        """Give a person's word, once.

        Raises:
            ConflictError: it was given already, the other way.
        """
        review, word = self.find(review_id), "approved" if approved else "rejected"
        if review.answer not in ("waiting", word):
            raise ConflictError(f"{review_id} was {review.answer} already; what was said of these bytes stands")
        if review.answer == "waiting":
            said = {"at": format_time(datetime.now(UTC)), "digest": review.wanted.digest, "reason": reason}
            write_atomic(self._directory / f"{review_id}.{word}", strict_json.canonical(said), mode=0o600)
        return self.find(review_id)

    def _check_budget(self, wanted: Wanted) -> None:
        most = self._settings.max_megabytes_a_day
        if most is None:
            return
        since = datetime.now(UTC) - _DAY
        sent = sum(
            int(str(line["size_bytes"]))
            for line in ledger_at(self._ledger).lines()
            if line["kind"] in _COUNTED and parse_time(str(line["at"])) > since
        )
        if sent + wanted.size_bytes > most * _MEGABYTE:
            raise EgressDeniedError(
                f"{wanted.name} of {wanted.size_bytes} bytes must wait: {sent} bytes left in the last 24 hours, and "
                f"[egress] max_megabytes_a_day is {most:g}"
            )

    def _ask(self, wanted: Wanted) -> Review:
        make_private_directory(self._directory)
        fields = {
            "kind": wanted.kind, "name": wanted.name, "digest": wanted.digest, "size_bytes": wanted.size_bytes,
            "to": wanted.to, "summary": dict(wanted.summary), "asked_at": format_time(datetime.now(UTC)),
        }  # fmt: skip
        write_atomic(self._directory / f"{wanted.id}.json", json.dumps(fields, indent=1).encode(), mode=0o600)
        return self.find(wanted.id)

    def _read(self) -> Iterator[Review]:
        for path in self._directory.glob("*.json"):
            if (review := self._find(path.stem)) is not None:
                yield review

    def _find(self, review_id: str) -> Review | None:
        path = self._directory / f"{review_id}.json"
        if not _ID.fullmatch(review_id) or not path.is_file():
            return None
        match _read_object(path):
            case {"asked_at": str(asked_at), "kind": str(kind), "name": str(name), "digest": str(digest),
                  "size_bytes": int(size_bytes), "to": str(to), "summary": dict(summary)}:  # fmt: skip
                texts = {key: str(value) for key, value in summary.items()}
                wanted = Wanted(kind, name, digest, size_bytes, to, texts)
            case _:
                raise _damaged(path)
        for word in ("rejected", "approved"):
            said = path.with_suffix(f".{word}")
            if not said.is_file():
                continue
            match _read_object(said):
                case {"digest": wanted.digest, "reason": str() | None as reason}:
                    return Review(wanted, asked_at, word, reason)
                case {"digest": str(), "reason": str() | None}:
                    continue  # of other bytes
                case _:
                    raise _damaged(said)
        return Review(wanted, asked_at, "waiting", None)


def _read_object(path: Path) -> Mapping[str, object]:
    try:
        return strict_json.load_object(path.read_bytes(), what=str(path))
    except MalformedError as error:
        raise _damaged(path) from error


def _damaged(path: Path) -> VerificationError:
    return VerificationError(f"{path} is damaged; move it aside, and you are asked again before these bytes leave")
