"""Review mode: nothing leaves before a person approved exactly these bytes; limits hold in both modes."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from threading import Event

import pytest

from common.errors import ApprovalNeededError, ConflictError, EgressDeniedError, NotFoundError
from owner_client import egress, participation
from owner_client.config import EgressSettings
from owner_client.daemon import run
from owner_client.review import Reviews, Wanted
from tests.commands import concord
from tests.federation import Federation, Owner, expert_weights

DIGEST = "sha256:" + "ab" * 32
WANTED = Wanted("expert", "expert.safetensors", DIGEST, 2_000_000, "there:1", {"trained on": "9 tokens"})


def _reviews(path: Path, **settings: object) -> Reviews:
    return Reviews(path / "reviews", settings=EgressSettings.model_validate(settings), ledger=path / "ledger.jsonl")


def test_by_policy_an_expert_leaves_unasked(tmp_path: Path) -> None:
    _reviews(tmp_path).let_go(WANTED)
    assert _reviews(tmp_path).all() == []


def test_in_review_it_waits_for_a_word_on_its_very_bytes(tmp_path: Path) -> None:
    reviews = _reviews(tmp_path, mode="review")
    for _ in range(2):
        with pytest.raises(ApprovalNeededError, match=f"concord owner review {WANTED.id}"):
            reviews.let_go(WANTED)
    assert reviews.is_waiting()
    assert reviews.answer(WANTED.id, approved=True).answer == "approved"
    reviews.let_go(WANTED)
    other = Wanted("expert", "expert.safetensors", "sha256:" + "cd" * 32, 2_000_000, "there:1", {})
    with pytest.raises(ApprovalNeededError):
        reviews.let_go(other)
    assert [review.answer for review in reviews.all()] == ["approved", "waiting"]


def test_an_answer_for_one_does_not_serve_another_with_the_same_start(tmp_path: Path) -> None:
    reviews = _reviews(tmp_path, mode="review")
    with pytest.raises(ApprovalNeededError):
        reviews.let_go(WANTED)
    reviews.answer(WANTED.id, approved=True)
    twin = Wanted("expert", "expert.safetensors", DIGEST[:-1] + "0", 2_000_000, "there:1", {})
    with pytest.raises(EgressDeniedError, match="asked about for other bytes"):
        reviews.let_go(twin)


def test_a_rejection_is_final(tmp_path: Path) -> None:
    reviews = _reviews(tmp_path, mode="review")
    with pytest.raises(ApprovalNeededError):
        reviews.let_go(WANTED)
    reviews.answer(WANTED.id, approved=False, reason="not yet")
    with pytest.raises(EgressDeniedError, match="was rejected: not yet"):
        reviews.let_go(WANTED)
    with pytest.raises(ConflictError, match="was rejected already"):
        reviews.answer(WANTED.id, approved=True)
    assert not reviews.is_waiting()


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "0" * 12, "zz"])
def test_what_nobody_asked_about_cannot_be_approved(name: str, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="nothing is known as"):
        _reviews(tmp_path, mode="review").answer(name, approved=True)


def test_a_kind_that_is_not_allowed_never_leaves(tmp_path: Path) -> None:
    with pytest.raises(EgressDeniedError, match="no expert may leave"):
        _reviews(tmp_path, kinds=["result"]).let_go(WANTED)


def test_no_more_leaves_in_a_day_than_is_allowed(tmp_path: Path) -> None:
    reviews = _reviews(tmp_path, max_megabytes_a_day=3)
    reviews.let_go(WANTED)
    egress.ledger_at(tmp_path / "ledger.jsonl").record_upload(
        name="x", digest=DIGEST, size_bytes=1_000_001, to="there:1"
    )
    with pytest.raises(EgressDeniedError, match="must wait: 1000001 bytes left in the last 24 hours"):
        reviews.let_go(WANTED)


@pytest.fixture
def owner(consortium: Federation) -> Owner:
    """An owner that has consented and holds an expert, and wants to look first."""
    owner = consortium.enrol("archive")
    owner.consent()
    owner.put_expert(expert_weights(1))
    with owner.home.settings_file.open("a") as file:
        file.write('\n[egress]\nmode = "review"\n')
    return owner


def test_a_person_reads_approves_and_the_same_command_goes_on(consortium: Federation, owner: Owner) -> None:
    home = ("--home", owner.home.path)
    asked = concord("owner", "submit", *home)
    assert asked.returncode == 1
    assert "waits for your word" in asked.stderr
    assert "expert.contribute" not in owner.home.ledger.read_text()
    (review,) = json.loads(concord("owner", "review", *home, "--json").stdout.splitlines()[-1])["reviews"]
    shown = concord("owner", "review", review["id"], *home).stdout
    for said in ("trained on: 1000 tokens", "router row: 2 tensors", "up_proj: 2 tensors", review["digest"]):
        assert said in shown
    assert concord("owner", "approve", review["id"], *home).returncode == 0
    assert concord("owner", "submit", *home).returncode == 0
    assert len(consortium.coordinator.registry.head().contributions_by_index) == 1


@dataclass
class Heard:
    """What a daemon says, to be waited for."""

    said: SimpleQueue[str] = field(default_factory=SimpleQueue)

    def step(self, text: str) -> None:
        self.said.put(text)

    def warning(self, text: str) -> None:
        self.said.put(text)

    def table(self, *_: object) -> None: ...

    def progress(self, *_: object, **__: object) -> None: ...

    def result(self, *_: object) -> None: ...

    def wait_for(self, text: str) -> None:
        """Wait until it says this."""
        while text not in self.said.get(timeout=60):
            pass


@pytest.mark.parametrize("word", ["approve", "reject"])
def test_the_daemon_waits_for_the_word_and_watches_the_log_meanwhile(
    word: str, consortium: Federation, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = owner.home.settings_file
    consent = f'[consent]\npurposes = ["research"]\nterms = "{owner.terms}"\n'
    settings.write_text(f"poll_s = 0.1\n{settings.read_text()}\n{consent}")
    monkeypatch.setattr(participation, "train", lambda *_, **__: None)  # what it would leave is there
    heard, stop = Heard(), Event()
    with ThreadPoolExecutor(1) as pool:
        daemon = pool.submit(run, owner.home, reporter=heard, stop=stop)
        try:
            heard.wait_for("expert.safetensors waits for your word")
            consortium.enrol("hospital")
            heard.wait_for("the log has 4 entries")
            (path,) = owner.home.reviews.glob("*.json")
            assert concord("owner", word, path.stem, "--home", owner.home.path).returncode == 0
            heard.wait_for("the expert is submitted" if word == "approve" else "was rejected")
        finally:
            stop.set()
        daemon.result(60)
    assert len(consortium.coordinator.registry.head().contributions_by_index) == (word == "approve")
