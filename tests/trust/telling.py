"""A log that is told statement by statement, for the rules' tests."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest

from common.errors import ConcordError
from common.trust import strict_json
from common.trust.history import History, releasable_experts, replay
from common.trust.manifest import FileEntry, Manifest
from common.trust.note import SigningKey, sign
from common.trust.root import TrustedRoot
from common.trust.rules import owner_key_name
from common.trust.statements import COORDINATOR, TYPE_PREFIX, Statement

FEDERATION = "health.example"
ORIGIN = "health.example/log"
BASE, BASE_2, CONFIG = ("sha256:" + digit * 64 for digit in "abc")
COORDINATOR_KEY = SigningKey.generate(f"{FEDERATION}/{COORDINATOR}")
ROOT = TrustedRoot(FEDERATION, ORIGIN, SigningKey.generate(ORIGIN).verifier, COORDINATOR_KEY.verifier)
NOW = datetime(2026, 11, 23, 9, tzinfo=UTC)


def key_of(party: str) -> SigningKey:
    """A new key of that name."""
    return SigningKey.generate(owner_key_name(FEDERATION, party))


def expert_of(digit: str) -> dict[str, Any]:
    """The files of an expert."""
    return {"expert.safetensors": {"digest": "sha256:" + digit * 64, "size": 9}}


def manifest_digest(files: dict[str, Any]) -> str:
    """The digest that releases name it by."""
    return Manifest({name: FileEntry(entry["digest"], entry["size"]) for name, entry in files.items()}).digest


@dataclass
class Telling:
    """A log that is told statement by statement; `says` appends what the rules allow."""

    history: History = field(default_factory=lambda: History(ROOT))
    entries: list[bytes] = field(default_factory=list)
    keys: dict[str, SigningKey] = field(default_factory=lambda: {COORDINATOR: COORDINATOR_KEY})

    def note(self, party: str, kind: str, *, signers: list[SigningKey] | None = None, **fields: object) -> bytes:
        """The next statement of a party, right in all but what `fields` changes."""
        known, key = self.history.parties.get(party), self.keys.setdefault(party, key_of(party))
        body = {
            "federation": FEDERATION,
            "origin": ORIGIN,
            "party": party,
            "key_id": key.verifier.key_id,
            "record_id": f"0190c0a0-0000-7000-8000-{len(self.entries):012d}",
            "seq": known.next_seq if known else 0,
            "prev": known.head if known else None,
            "issued_at": "2026-11-23T09:00:00Z",
            **fields,
        }
        text = f"{TYPE_PREFIX}{kind}\n{strict_json.canonical(body).decode()}\n"
        return bytes(sign(text, *([key] if signers is None else signers)))

    def says(self, party: str, kind: str, **fields: Any) -> Statement:
        """Append it."""
        entry = self.note(party, kind, **fields)
        statement = self.history.append(entry)
        self.entries.append(entry)
        return statement

    def joins(self, party: str, **fields: Any) -> Statement:
        """Enrol an owner."""
        key = self.keys.setdefault(party, key_of(party))
        fields = {"public_key": str(key.verifier), "signers": [key, COORDINATOR_KEY], **fields}
        return self.says(party, "owner.enrol", **fields)

    def publishes(self, **fields: Any) -> Statement:
        """Publish a base."""
        round_number = len(self.history.bases)
        fields = {"base_digest": BASE, "config_digest": CONFIG, "round": round_number, **fields}
        return self.says(COORDINATOR, "base.publish", **fields)

    def consents(self, party: str, *, base: str = BASE, expert: dict[str, Any] | None = None, **fields: Any) -> str:
        """Grant; returns the record id."""
        fields = {
            "expert": {"name": "expert", "base_digest": base, "kind": "full", **(expert or {})},
            "scope": {"line": "main"},
            "purposes": ["research"],
            "terms": {"uri": "terms.txt", "digest": CONFIG},
            "not_before": "2026-11-23T00:00:00Z",
            "not_after": "2027-11-23T00:00:00Z",
            **fields,
        }
        return self.says(party, "consent.grant", **fields).record_id

    def contributes(self, party: str, grant_id: str, *, digit: str = "1", **fields: Any) -> Statement:
        """Contribute an expert."""
        fields = {"tokens_seen": 1, "training_config_digest": CONFIG, "files": expert_of(digit), **fields}
        return self.says(party, "expert.contribute", grant_id=grant_id, **fields)

    def revokes(self, party: str, grant_id: str, **fields: Any) -> Statement:
        """Withdraw."""
        return self.says(party, "consent.revoke", grant_id=grant_id, **{"effect": "future", "deadline_s": 0, **fields})

    def releases(self, **fields: Any) -> Statement:
        """Release everything that may be, but for what `fields` changes."""
        name, line, base = (fields.get(key, value) for key, value in RELEASE_NAMES.items())
        chosen = releasable_experts(self.history, release=name, line=line, base_digest=base, at=NOW)
        experts = [
            {
                "digest": contribution.manifest_digest,
                "grant_index": grant.index,
                "contribute_index": contribution.index,
                "slot": slot,
            }
            for slot, (grant, contribution) in enumerate(chosen, start=1)
        ]
        made = {
            **RELEASE_NAMES,
            "manifest_digest": CONFIG,
            "log_size": self.history.size,
            "experts": experts,
            "num_experts_per_tok": 1,
            "not_after": min((grant.statement.not_after for grant, _ in chosen), default=None),
        }
        return self.says(COORDINATOR, "release.publish", **{**made, **fields})


RELEASE_NAMES = {"release": "release-1", "line": "main", "base_digest": BASE}


def refused(log: Telling, error: type[ConcordError], match: str, act: Callable[[], object]) -> None:
    """`act` is refused and changes nothing."""
    before = replay(ROOT, log.entries)
    with pytest.raises(error, match=match):
        act()
    assert log.history == before
