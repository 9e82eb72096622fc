"""An owner's daemon watches and cosigns from its start, whatever else it does."""

import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from threading import Barrier, Event, Thread

import pytest

from common.errors import MalformedError, NotFoundError, UnavailableError, VerificationError
from common.state_file import read_state
from common.trust.cosignature import Witness
from common.trust.note import Checkpoint, Note, SigningKey, sign
from common.trust.statements import CertRevoke, ConsentRevoke, new_record_id
from owner_client import egress
from owner_client.daemon import run
from owner_client.membership import cosign_checkpoint
from tests.campaigns.asking import Quiet, wait_until
from tests.commands import start, stop, wait_for_step
from tests.federation import THREE, Federation, Owner


@dataclass
class Heard:
    """What a daemon says; whoever consents waits for the others."""

    all_consented: Barrier | None = None
    watches: Event = field(default_factory=Event)
    only_watches: Event = field(default_factory=Event)
    sent: Event = field(default_factory=Event)
    warned: Event = field(default_factory=Event)

    def step(self, text: str) -> None:
        if text.startswith("the log has"):
            self.watches.set()
        if text.startswith("no consent is set"):
            self.only_watches.set()
        if text == "sent, and in the log now: consent.revoke":
            self.sent.set()
        if text.startswith("consent is in the log") and self.all_consented is not None:
            self.all_consented.wait(60)

    def table(self, *_: object) -> None: ...

    def warning(self, text: str) -> None:
        if "has no consent" in text:
            self.warned.set()

    def progress(self, *_: object, **__: object) -> None: ...

    def result(self, *_: object) -> None: ...


def _settings(owner: Owner, *lines: str) -> None:
    text = owner.home.settings_file.read_text()
    owner.home.settings_file.write_text("\n".join([text, "poll_s = 0.2", *lines, ""]))


def test_owners_who_wait_for_each_other_to_cosign_all_consent(three: Federation) -> None:
    witnesses = [str(each) for each in three.coordinator.registry.head().witnesses]
    owners = [three.owner(name) for name in THREE]
    for owner in owners:
        consent = ["[consent]", 'purposes = ["research"]', f'terms = "{owner.terms}"']
        _settings(owner, f"witnesses = {witnesses}", "quorum = 3", *consent)
    heard = Heard(all_consented=Barrier(len(owners)))
    with ThreadPoolExecutor(len(owners)) as pool:
        running = [pool.submit(run, owner.home, reporter=heard, stop=Event()) for owner in owners]
        for each in running:
            with pytest.raises(NotFoundError, match="data"):  # what comes after the consent: there is none to train on
                each.result(90)
    assert {grant.party for grant in three.coordinator.registry.head().grants.values()} == set(THREE)


def test_a_daemon_that_is_contradicted_stops_whatever_it_does(three: Federation) -> None:
    owner = three.owner("archive")
    _settings(owner)
    with owner.member() as member:
        member.client.watch()
        seen = Checkpoint.parse(Note.parse(owner.home.pinned.read_bytes()).text)
        key = SigningKey.from_pem((three.coordinator.home.keys / "log.key").read_bytes(), name=member.root.log.name)
    stop, heard = Event(), Heard()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run, owner.home, reporter=heard, stop=stop)
        assert heard.watches.wait(30)
        assert heard.only_watches.wait(30)  # else the one that takes part may see it first
        owner.home.pinned.write_bytes(bytes(sign(str(Checkpoint(seen.origin, seen.size + 1, bytes(32))), key)))
        with pytest.raises(VerificationError, match="both checkpoints are kept"):
            running.result(60)
    assert stop.is_set()


def test_a_daemon_that_is_told_to_stop_stops(three: Federation) -> None:
    _settings(three.owner("archive"))
    stop, heard = Event(), Heard()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run, three.owner("archive").home, reporter=heard, stop=stop)
        assert heard.watches.wait(30)
        stop.set()
        running.result(30)


def test_a_daemon_waits_for_the_first_public_model(federation: Federation) -> None:
    owner = federation.enrol("archive")
    _settings(owner)
    daemon = start("owner", "run", "--home", owner.home.path)
    try:
        wait_for_step(daemon, "no public model is published yet; waiting")
        federation.enrol("hospital")
        wait_for_step(daemon, "the log has 2 entries")
        assert str(read_state(owner.home.state)["doing"]).startswith("no public model is published yet")
        federation.publish_base()
        wait_for_step(daemon, "the public model is in the log")
        wait_for_step(daemon, "no consent is set")
    finally:
        assert stop(daemon, signal.SIGTERM)[0] == 0


def test_a_mistake_in_the_settings_ends_no_daemon(three: Federation) -> None:
    """What was set before holds until it is mended; the log is watched all the while."""
    owner = three.owners["archive"]
    file, reporter, ended = owner.home.settings_file, Quiet(), Event()
    good = file.read_text() + "poll_s = 0.1\n"
    file.write_text(good)
    thread = Thread(target=run, args=(owner.home,), kwargs={"reporter": reporter, "stop": ended})
    thread.start()
    try:
        wait_until(lambda: any("the log has" in text for text in reporter.said), "the first look")
        file.write_text(good + '[campaigns]\naccept = ["nonsense"]\n')
        wait_until(lambda: any("holds on until that is mended" in text for text in reporter.said), "a word on it")
        seen = len(reporter.said)
        three.coordinator.registry.issue(CertRevoke, owner="hospital")
        wait_until(lambda: any("the log has" in text for text in reporter.said[seen:]), "another look")
        assert thread.is_alive()
        file.write_text(good)
    finally:
        ended.set()
        thread.join(60)
    assert not thread.is_alive()


def test_a_daemon_that_waits_for_a_public_model_stops(federation: Federation) -> None:
    owner = federation.enrol("archive")
    daemon = start("owner", "run", "--home", owner.home.path)
    wait_for_step(daemon, "no public model is published yet; waiting")
    assert stop(daemon, signal.SIGTERM)[0] == 0


def test_a_daemon_sends_what_was_revoked_while_the_coordinator_was_away(three: Federation) -> None:
    owner = three.owner("archive")
    _settings(owner)
    grant = owner.consent()
    stop, heard = Event(), Heard()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run, owner.home, reporter=heard, stop=stop)
        try:
            assert heard.watches.wait(30)
            three.stop()
            with pytest.raises(UnavailableError, match=r"signed and kept, and is sent when .* owner hand-over"):
                owner.opt_out()
            three.start()
            assert heard.sent.wait(30)
        finally:
            stop.set()
        running.result(30)
    assert three.coordinator.registry.head().grants[grant.record_id].revoked_index is not None


def test_a_daemon_goes_on_watching_where_what_it_sends_is_refused(three: Federation) -> None:
    owner = three.owner("archive")
    _settings(owner)
    stop, heard = Event(), Heard()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run, owner.home, reporter=heard, stop=stop)
        try:
            assert heard.watches.wait(30)
            with owner.member() as member, member.chain.turn():
                member.chain.say(
                    ConsentRevoke, grant_id=new_record_id(datetime.now(UTC)), effect="future", deadline_s=0
                )
            assert heard.warned.wait(30)
            heard.watches.clear()
            three.owner("hospital").consent()
            assert heard.watches.wait(30)
        finally:
            stop.set()
        running.result(30)
    lines = [line for line in egress.read_ledger(owner.home.ledger) if line["name"] == "consent.revoke"]
    assert len(lines) == 1


def test_an_older_checkpoint_is_not_cosigned_as_if_it_were_seen_today(three: Federation) -> None:
    """It is true, but it says nothing about what was appended since; with its date a rollback would look well."""
    old = three.coordinator.registry.checkpoint()
    three.owner("hospital").consent()
    owner = three.owner("archive")
    with owner.member() as member:
        newest, size = member.client.watch()
        assert Checkpoint.parse(Note.parse(old).text).size == size - 1
        assert member.client._pins.observe(old, fetch_proof=member.client._consistency).size == size - 1
        before = egress.read_ledger(owner.home.ledger)
        assert not cosign_checkpoint(member, old)
        assert egress.read_ledger(owner.home.ledger) == before
        assert cosign_checkpoint(member, newest)


@pytest.mark.parametrize("quorum", [1, 2, 3, 4])
def test_a_quorum_can_be_had_and_cannot_be_had_twice(three: Federation, quorum: int) -> None:
    lines = [str(each) for each in three.coordinator.registry.head().witnesses]
    owner = three.owner("archive")
    _settings(owner, f"witnesses = {lines}", f"quorum = {quorum}")
    if quorum in (2, 3):
        assert owner.home.settings().quorum == quorum
    else:
        with pytest.raises(MalformedError, match=f"a quorum of {quorum} of 3 witnesses; more than half"):
            owner.home.settings()


@pytest.mark.parametrize(("lines", "why"), [(["x"], "is not NAME"), (["KEY", "KEY"], "named twice")])
def test_witnesses_are_named_once_and_as_they_are(three: Federation, lines: list[str], why: str) -> None:
    key = str(Witness.of(SigningKey.generate("w.example/w1")))
    owner = three.owner("archive")
    _settings(owner, f"witnesses = {[line.replace('KEY', key) for line in lines]}")
    with pytest.raises(MalformedError, match=rf"owner.toml: .*{why}"):
        owner.home.settings()


def test_two_threads_write_a_line_each_into_the_ledger(tmp_path: Path) -> None:
    def write(number: int) -> None:
        egress.message(tmp_path / "ledger", "cosignature", name=str(number), data=b"%d" % number, to="test")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(64)))
    assert sorted(int(str(line["name"])) for line in egress.read_ledger(tmp_path / "ledger")) == list(range(64))
