"""What the log's entries leave behind: parties, consents, contributions, releases and campaigns, as of some entry.

A log may hold millions of entries, and whoever folds it keeps all that rules can still ask about: of a revoked consent
or an old contribution that is little. What was said in full is in the entry itself.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache

from common.trust.campaign_statements import CampaignDefine
from common.trust.cosignature import Witness
from common.trust.manifest import FileEntry
from common.trust.note import Verifier
from common.trust.statements import ConsentGrant, ReleasePublish, Statement


@dataclass(frozen=True, slots=True)
class Party:
    """A party as of some entry: the keys that sign for it, and where its chain of statements stands."""

    verifiers: tuple[Verifier, ...]
    next_seq: int = 0
    head: str | None = None
    revoked_key_ids: frozenset[str] = frozenset()
    witness: Witness | None = None

    def after(self, statement: Statement) -> "Party":
        """The same party when it said `statement`."""
        return Party(self.verifiers, statement.seq + 1, statement.digest, self.revoked_key_ids, self.witness)

    def verifier(self, key_id: str) -> Verifier | None:
        """The key with this id, while it signs for the party."""
        for verifier in self.verifiers:
            if verifier.key_id == key_id:
                return verifier
        return None


@dataclass(frozen=True, slots=True)
class Grant:
    """A consent in the log: what it says while it stands, or the index of the entry that revoked it."""

    index: int
    party: str
    record_id: str
    standing: ConsentGrant | None
    revoked_index: int | None = None

    @property
    def statement(self) -> ConsentGrant:
        """What it says; asked only of a consent that is not revoked."""
        assert self.standing is not None, "a revoked consent is read from its entry"
        return self.standing


@dataclass(slots=True)
class RecordIds:
    """Ids of records, 16 bytes each: a set of millions takes eight times as much. Ids begin with their time, so a new
    one goes near the end of what is kept in order.
    """

    _high: "array[int]" = field(default_factory=lambda: array("Q"), repr=False)
    _low: "array[int]" = field(default_factory=lambda: array("Q"), repr=False)

    def __contains__(self, record_id: str) -> bool:
        high, low = _halves(record_id)
        if not self._high or high > self._high[-1]:  # as nearly always: it is younger than all that are here
            return False
        at, end = self._place(high, low)
        return at < end and self._low[at] == low

    def add(self, record_id: str) -> None:
        """Take in an id that is not in it."""
        high, low = _halves(record_id)
        if not self._high or high > self._high[-1]:
            self._high.append(high)
            self._low.append(low)
            return
        at, _ = self._place(high, low)
        self._high.insert(at, high)
        self._low.insert(at, low)

    def _place(self, high: int, low: int) -> tuple[int, int]:
        """Where an id is or belongs, and where ids with its first half end."""
        start = bisect_left(self._high, high)
        end = bisect_right(self._high, high, start)
        return bisect_left(self._low, low, start, end), end


@lru_cache(8)  # asked for, and then taken in
def _halves(record_id: str) -> tuple[int, int]:
    number = int(record_id.replace("-", ""), 16)
    return number >> 64, number & 0xFFFF_FFFF_FFFF_FFFF


@dataclass(frozen=True, slots=True)
class Contribution:
    """An expert in the log."""

    index: int
    party: str
    grant_id: str
    files: Mapping[str, FileEntry]
    manifest_digest: str


@dataclass(frozen=True, slots=True)
class Release:
    """A release in the log, and the index of the entry that withdrew it, if any."""

    index: int
    statement: ReleasePublish
    withdrawn_index: int | None = None


@dataclass(frozen=True, slots=True)
class TakingBack:
    """A revocation that asks to withdraw what is published, and until when."""

    party: str
    grant_id: str
    deadline: datetime


@dataclass(frozen=True, slots=True)
class Campaign:
    """A campaign in the log, and the index of the entry that closed it, if any."""

    index: int
    statement: CampaignDefine
    closed_index: int | None = None


@dataclass(frozen=True, slots=True)
class CampaignAnswer:
    """An owner's answer in the log: a result, or no more than that it declines."""

    index: int
    is_result: bool
    attachment: str | None = None
    """Digest of the file that came beside it."""
