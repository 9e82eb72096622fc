"""What a hostile owner sends is refused, each with its reason; log, published files and memory stay as they are."""

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from common.errors import (
    ConcordError,
    ConflictError,
    ConsentError,
    MalformedError,
    NotPermittedError,
    UnavailableError,
    VerificationError,
)
from common.trust.manifest import digest_of
from common.trust.statements import parse_note
from coordinator import intake
from coordinator.intake import REASON_NAME
from tests.commands import stop, wait_for_step
from tests.federation import Federation, Owner, expert_weights, running_federation
from tests.hostile import bundles, good
from tests.raw_calls import calling_as, chunk, contribution, refused

MOST_MB = 250
BUNDLES = dict(bundles())


def test_there_are_many_of_them_all_different() -> None:
    assert len(BUNDLES) >= 200
    assert len({digest_of(data) for data in BUNDLES.values()}) == len(BUNDLES)
    assert good() not in BUNDLES.values()


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Federation, Owner, str, int]]:
    """A coordinator that is a process of its own, an owner with a consent, and the process."""
    with running_federation(tmp_path_factory.mktemp("attacked")) as federation:
        federation.publish_base()
        owner = federation.enrol("mallory")
        grant = owner.consent()
        federation.stop()
        line = [
            sys.executable,
            "-m",
            "concord",
            "coordinator",
            "serve",
            "--home",
            federation.coordinator.home.path,
            "--json",
        ]
        with (federation.path / "logging").open("w") as logging:  # a pipe that nobody reads would stop it
            daemon = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=logging, text=True)
            try:
                wait_for_step(daemon, "serving")
                yield federation, owner, grant.record_id, daemon.pid
            finally:
                stop(daemon, signal.SIGTERM)


def test_each_is_refused_with_its_reason_and_nothing_changes(attacked: tuple[Federation, Owner, str, int]) -> None:
    federation, owner, grant_id, pid = attacked
    public, before = federation.public, federation.coordinator.registry.head().size
    shown = set(public.rglob("*"))
    accepted, reasons, process = [], {}, psutil.Process(pid)
    peak = 0
    with calling_as(owner) as calls:
        for what, data in BUNDLES.items():
            try:
                calls.upload(contribution(owner, grant_id, data), data)
                accepted.append(what)
            except ConcordError as error:
                reasons[what] = f"{type(error).__name__}: {error}"
            peak = max(peak, process.memory_info().rss // 2**20)
    assert accepted == []
    failed = {what: reason for what, reason in reasons.items() if "failed (" in reason or "does not answer" in reason}
    assert failed == {}, "every refusal has a class and a reason"
    assert all(len(reason) > 20 for reason in reasons.values())
    assert peak < MOST_MB
    federation.coordinator.log.follow()
    assert federation.coordinator.registry.head().size == before
    assert set(public.rglob("*")) == shown
    kept = list(federation.coordinator.home.quarantine.glob(f"*/{REASON_NAME}"))
    assert len(kept) == 1, "one refused upload is kept of each owner"


def test_then_an_expert_is_accepted(attacked: tuple[Federation, Owner, str, int]) -> None:
    federation, owner, grant_id, _ = attacked
    with calling_as(owner) as calls:
        assert calls.upload(contribution(owner, grant_id, good()), good())
    federation.coordinator.log.follow()
    assert federation.coordinator.registry.head().contributions_by_index


# Replays and others' things


def test_anothers_bytes_and_statements_and_ones_own_again(consortium: Federation) -> None:
    honest, mallory = consortium.enrol("honest"), consortium.enrol("mallory")
    theirs = honest.take_part(1)
    data = next(honest.home.experts.glob("*/expert.safetensors")).read_bytes()
    grant = mallory.consent()
    with calling_as(mallory) as calls:
        with refused(consortium, ConflictError, "what another owner contributed"):
            calls.upload(contribution(mallory, grant.record_id, data), data)
        with refused(consortium, NotPermittedError, "mallory"):
            calls.open(theirs.note)
        with refused(consortium, ConsentError, "has no consent"):
            calls.open(contribution(mallory, parse_note(theirs.note)[1].grant_id, good(5)))  # type: ignore[attr-defined]
    mallory.put_expert(expert_weights(7))
    said = mallory.submit()
    with calling_as(mallory) as calls:
        assert calls.open(said.note).upload_id  # the same again changes nothing, and gives the receipt again
        size = consortium.coordinator.registry.head().size
        assert calls.finish(parse_note(said.note)[1].record_id) == said.receipt or said.receipt
        assert consortium.coordinator.registry.head().size == size
    mallory.opt_out()
    with calling_as(mallory) as calls, refused(consortium, ConsentError, "revoked"):
        calls.open(contribution(mallory, grant.record_id, good(9)))


@pytest.mark.parametrize("index", [1, 2, 2**31, 2**63, 2**64 - 1])
def test_chunks_out_of_order_are_refused(index: int, consortium: Federation) -> None:
    owner = consortium.enrol("mallory")
    grant = owner.consent()
    with calling_as(owner) as calls:
        upload_id = calls.open(contribution(owner, grant.record_id, good())).upload_id
        with refused(consortium, ConflictError, f"chunk {index} came where 0 is next"):
            calls.put(chunk(upload_id, digest_of(good()), index=index, data=good()))


def test_a_chunk_that_is_not_what_its_digest_says_is_refused_and_sent_again(consortium: Federation) -> None:
    owner = consortium.enrol("archive")
    grant = owner.consent()
    data = good()
    with calling_as(owner) as calls:
        upload_id = calls.open(contribution(owner, grant.record_id, data)).upload_id
        wrong = chunk(upload_id, digest_of(data), index=0, data=data)
        wrong.sha256 = bytes(32)
        with refused(consortium, VerificationError, "chunk 0 was damaged on the way"):
            calls.put(wrong)
        calls.put(chunk(upload_id, digest_of(data), index=0, data=data))
        assert calls.finish(upload_id)


def test_an_expert_with_another_owners_digest_in_its_statement_is_refused(consortium: Federation) -> None:
    owner = consortium.enrol("mallory")
    grant = owner.consent()
    data = good(3)
    note = contribution(owner, grant.record_id, data,
                        files={"expert.safetensors": {"digest": digest_of(b"other"), "size": len(data)}})  # fmt: skip
    with calling_as(owner) as calls:
        upload_id = calls.open(note).upload_id
        with refused(consortium, MalformedError, "announced no file"):
            calls.put(chunk(upload_id, digest_of(data), index=0, data=data))
        with refused(consortium, VerificationError, "is not sha256"):
            calls.put(chunk(upload_id, digest_of(b"other"), index=0, data=data))
            calls.finish(upload_id)


def test_a_full_disk_takes_no_upload(consortium: Federation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    owner = consortium.enrol("archive")
    grant = owner.consent()
    real = shutil.disk_usage
    monkeypatch.setattr(intake.shutil, "disk_usage", lambda path: real(path)._replace(free=1000))
    with calling_as(owner) as calls, refused(consortium, UnavailableError, "1000 bytes free"):
        calls.open(contribution(owner, grant.record_id, good()))
