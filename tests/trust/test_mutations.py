"""A log whose operator and parties collude: every change of a whole life that breaks a rule is flagged, with its step.

The tree is rebuilt over whatever they put into it, so hashes and checkpoints hold; what is left are the rules. Changes
that break none (a party's last word, said otherwise) are counted too, so that no test here can pass by refusing all.
"""

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from common.errors import ConcordError
from common.trust import strict_json
from common.trust.note import Note, sign
from common.trust.statements import parse_note
from common.trust.verify import StepFailed, check_history, check_revocations
from tests.trust.telling import COORDINATOR_KEY, ROOT, Telling, key_of

LATE = datetime(2027, 1, 1, tzinfo=UTC)
TAKEN_BACK = {"effect": "withdraw_published", "deadline_s": 3600}


def _whole_life() -> Telling:
    """Every kind of statement: three owners, a change of keys, two releases, an opt-out that withdraws the first."""
    log = Telling()
    log.publishes()
    for digit, owner in zip("123", ("archive", "hospital", "library"), strict=True):
        log.joins(owner)
        log.contributes(owner, log.consents(owner), digit=digit)
    new = key_of("hospital")
    log.says("hospital", "owner.key.add", public_key=str(new.verifier), signers=[log.keys["hospital"], new])
    log.says("hospital", "owner.key.revoke", revoked_key_id=log.keys["hospital"].verifier.key_id)
    log.keys["hospital-earlier"], log.keys["hospital"] = log.keys["hospital"], new
    log.releases()
    log.says("coordinator", "cert.revoke", owner="library")
    archive = next(grant for grant in log.history.grants.values() if grant.party == "archive")
    log.revokes("archive", archive.record_id, **TAKEN_BACK)
    log.says("coordinator", "release.withdraw", release="release-1", cause_index=log.history.size - 1)
    log.releases(release="release-2")
    return log


LIFE = _whole_life()
SIGNERS = {key.verifier.key_id: key for key in (*LIFE.keys.values(), COORDINATOR_KEY)}


def _flagged(entries: list[bytes]) -> tuple[int, int | None] | None:
    """The step that does not hold, if any, and the entry that it names."""
    try:
        history = check_history(ROOT, entries)
        check_revocations(history, at=LATE)
    except StepFailed as failed:
        named = re.match(r"step \d \([^)]*\): entry (\d+): ", str(failed))
        return failed.step, None if named is None else int(named[1])
    return None


def _kind(entry: bytes) -> str:
    return parse_note(entry)[1].type


def _step_of(entry: bytes) -> int:
    """The step in which an entry is refused that may not be where it is."""
    return 5 if _kind(entry) == "release.publish" else 4


def _leaves(value: object, path: tuple[object, ...] = ()) -> Iterator[tuple[object, ...]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _leaves(item, (*path, index))
    else:
        yield path


def _other(value: object) -> object:
    """Another value of the same look."""
    if isinstance(value, int):
        return value + 1
    assert isinstance(value, str) or value is None
    if not value:
        return "sha256:" + "0" * 64 if value is None else "x"
    place = max(index for index, character in enumerate(value) if character.isalnum())
    character = value[place]
    other = {"9": "8", "z": "y", "Z": "Y", "f": "e"}.get(character, chr(ord(character) + 1))
    return value[:place] + other + value[place + 1 :]


def _changed(text: str, path: tuple[object, ...]) -> str:
    kind, _, body = text.partition("\n")
    value = json.loads(body)
    place = value
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = _other(place[path[-1]])
    return f"{kind}\n{strict_json.canonical(value).decode()}\n"


def _with(index: int, entry: bytes) -> list[bytes]:
    return [*LIFE.entries[:index], entry, *LIFE.entries[index + 1 :]]


CHANGES = [
    (index, path)
    for index, entry in enumerate(LIFE.entries)
    for path in _leaves(json.loads(Note.parse(entry).text.split("\n")[1]))
]


def test_the_life_itself_holds() -> None:
    assert _flagged(LIFE.entries) is None
    assert len({parse_note(entry)[1].type for entry in LIFE.entries}) == 10
    assert len(CHANGES) > 220


def test_every_field_that_is_changed_without_a_signature_is_flagged() -> None:
    for index, path in CHANGES:
        note = Note.parse(LIFE.entries[index])
        mutated = bytes(Note(_changed(note.text, path), note.signatures))
        flagged = _flagged(_with(index, mutated))
        assert flagged is not None, (index, path)
        # A release that breaks a rule besides is refused for that; any other change by its signature.
        assert flagged[0] in {4, _step_of(LIFE.entries[index])}, (index, path)
        assert flagged[1] == index, (index, path)


def _resigned(index: int, path: tuple[object, ...]) -> bytes:
    """The same change, signed again by whoever signed before."""
    note = Note.parse(LIFE.entries[index])
    return bytes(sign(_changed(note.text, path), *(SIGNERS[line.key_id] for line in note.signatures)))


HARMLESS = {
    # (type, field) of a party's last word that may say something else without breaking a rule
    ("release.publish", "issued_at"), ("release.publish", "record_id"), ("release.publish", "manifest_digest"),
    ("release.publish", "num_experts_per_tok"), ("release.publish", "release"),
    ("consent.revoke", "issued_at"), ("consent.revoke", "record_id"), ("consent.revoke", "deadline_s"),
    ("expert.contribute", "issued_at"), ("expert.contribute", "record_id"), ("expert.contribute", "tokens_seen"),
    ("expert.contribute", "training_config_digest"), ("expert.contribute", "size"), ("expert.contribute", "digest"),
    ("owner.key.revoke", "issued_at"), ("owner.key.revoke", "record_id"),
}  # fmt: skip


NAMED_BY = {
    # what names what, where the next word of the same party does not come first
    ("base.publish", "base_digest"): "consent.grant",
    ("expert.contribute", "digest"): "release.publish",
    ("expert.contribute", "size"): "release.publish",
}


def _is_told_by(found: int, index: int, entry: bytes, field: str) -> bool:
    """Whether the entry that is refused is the changed one, its party's next, or one that names what was changed or
    bears the same id now.
    """
    changed = parse_note(LIFE.entries[index])[1]
    following = next((i for i in range(index + 1, len(LIFE.entries)) if _party(LIFE.entries[i]) == changed.party), None)
    if found in (index, following):
        return True
    if field == "record_id":
        return parse_note(entry)[1].record_id.encode() in LIFE.entries[found] or _kind(LIFE.entries[found]) in (
            "release.publish",
            "release.withdraw",
        )
    return NAMED_BY.get((changed.type, field)) == _kind(LIFE.entries[found])


def _party(entry: bytes) -> str:
    return parse_note(entry)[1].party


def test_every_field_that_is_changed_and_signed_again_is_flagged_or_harmless() -> None:
    """What breaks no rule is in a party's last statement alone: everything before is chained to what follows."""
    last = {parse_note(entry)[1].party: index for index, entry in enumerate(LIFE.entries)}
    unflagged, at_once = set(), 0
    for index, path in CHANGES:
        try:
            entry = _resigned(index, path)
        except ConcordError:
            continue
        statement, flagged = parse_note(LIFE.entries[index])[1], _flagged(_with(index, entry))
        if flagged is None:
            assert index == last[statement.party], (index, path)
            unflagged.add((statement.type, str(path[-1])))
            continue
        step, found = flagged
        assert found is not None, (index, path)
        assert step == _step_of(LIFE.entries[found]), (index, path)
        assert _is_told_by(found, index, entry, str(path[-1])), (index, path, found)
        at_once += found == index
    assert unflagged <= HARMLESS
    assert at_once > 90
    assert ("release.publish", "manifest_digest") in unflagged  # files tell that one: step 7


def test_every_entry_that_is_left_out_is_flagged_but_for_last_words_that_nobody_built_on() -> None:
    flagged = [_flagged(LIFE.entries[:index] + LIFE.entries[index + 1 :]) for index in range(len(LIFE.entries))]
    # Step and place of the first entry that cannot stand without it, as numbered when it is gone.
    assert flagged == [
        (4, 1), (4, 1), (4, 2), (5, 11), (4, 4), (4, 5), (4, 9), (4, 7), (4, 8), (5, 11),
        (4, 10), (5, 11), (4, 12), (4, 14), (4, 14), (5, 15), None,
    ]  # fmt: skip


@pytest.mark.parametrize("distance", [1, 2, 5])
def test_entries_that_change_places_are_flagged_where_one_builds_on_the_other(distance: int) -> None:
    """Two owners' words may come in either order; what names an index, a size or a date before it may not."""
    unflagged = []
    for index in range(len(LIFE.entries) - distance):
        entries = LIFE.entries.copy()
        entries[index], entries[index + distance] = entries[index + distance], entries[index]
        flagged = _flagged(entries)
        if flagged is None:
            unflagged.append((parse_note(entries[index])[1], parse_note(entries[index + distance])[1]))
            continue
        step, found = flagged
        assert found is not None, index
        assert index <= found, index
        assert step == _step_of(entries[found]), index
    assert all(one.party != other.party for one, other in unflagged)
    assert not any("release" in one.type for pair in unflagged for one in pair)
    needs_base = {"consent.grant", "expert.contribute"}
    assert not any({one.type, other.type} - {"base.publish"} <= needs_base for one, other in unflagged)


def test_every_entry_that_is_there_twice_is_flagged() -> None:
    for index, entry in enumerate(LIFE.entries):
        for place in range(index, len(LIFE.entries) + 1):
            entries = [*LIFE.entries[:place], entry, *LIFE.entries[place:]]
            # The second one is refused, or a release between that says how many entries were before it.
            step, found = _flagged(entries) or (None, None)
            assert found is not None, (index, place)
            assert found in (place, index + 1), (index, place)
            assert step == _step_of(entries[found]), (index, place)
