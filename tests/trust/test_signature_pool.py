"""Signatures that are checked beside the fold: as many as one likes, and the first that fails is named."""

from dataclasses import replace

import pytest

from common.trust import signature_pool
from common.trust.note import Note, Signature, SigningKey, sign
from common.trust.signature_pool import SignatureChecks
from common.trust.verify import StepFailed, check_history
from tests.trust.telling import ROOT, Telling

KEY = SigningKey.generate("archive.example")


def _note(number: int, *, good: bool = True) -> Note:
    note = sign(f"statement {number}\n", KEY)
    return note if good else replace(note, text=f"statement {number} or so\n")


@pytest.fixture(params=[3, 10_000], ids=["processes", "here"])
def batch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Batches that are full soon, or never."""
    monkeypatch.setattr(signature_pool, "_BATCH", request.param)
    return int(request.param)


def test_all_that_hold_hold(batch: int) -> None:
    with SignatureChecks(workers=2) as checks:
        for number in range(40):
            checks.of_entry(number)
            checks.verify(_note(number), [KEY.verifier])
        checks.finish()
    assert checks.failed is None


@pytest.mark.parametrize("bad", [{0}, {39}, {7, 8, 30}, {17, 2}])
def test_the_first_that_does_not_hold_is_named(batch: int, bad: set[int]) -> None:
    with SignatureChecks(workers=2) as checks:
        for number in range(40):
            checks.of_entry(number)
            checks.verify(_note(number, good=number not in bad), [KEY.verifier])
        checks.finish()
    assert checks.failed is not None
    assert checks.failed[0] == min(bad)
    assert "does not hold" in checks.failed[1]


def test_a_log_with_a_signature_that_does_not_hold_fails_at_its_entry(batch: int, log: Telling) -> None:
    for number in range(12):
        log.joins(f"owner-{number}")
    entries = log.entries.copy()
    note = Note.parse(entries[6])
    wrong = Signature(note.signatures[0].name, note.signatures[0].key_id, bytes(64))
    entries[6] = bytes(Note(note.text, (wrong, *note.signatures[1:])))
    with pytest.raises(StepFailed, match=r"step 4 .*: entry 6: the signature by .* does not hold"):
        check_history(ROOT, entries)
    assert check_history(ROOT, log.entries) == log.history


def test_what_comes_first_is_reported_a_signature_or_a_rule(batch: int, log: Telling) -> None:
    """Entry 5 breaks its sequence; a signature before it is wrong, or one after it that nobody gets to."""
    for number in range(12):
        log.joins(f"owner-{number}")
    entries = log.entries.copy()
    entries[5] = entries[1]
    note = Note.parse(entries[9])
    entries[9] = bytes(replace(note, signatures=(replace(note.signatures[0], data=bytes(64)), *note.signatures[1:])))
    with pytest.raises(StepFailed, match=r"entry 5: .* has joined already"):
        check_history(ROOT, entries)
    note = Note.parse(entries[3])
    entries[3] = bytes(replace(note, signatures=(replace(note.signatures[0], data=bytes(64)), *note.signatures[1:])))
    with pytest.raises(StepFailed, match=r"entry 3: .* does not hold"):
        check_history(ROOT, entries)
