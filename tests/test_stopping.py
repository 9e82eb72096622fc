"""SIGINT and SIGTERM, sent to a command alone, end it and all it started within seconds; run again, it goes on."""

import signal
import socket
import subprocess
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random
from string import ascii_lowercase

import pytest

from common.audit import audit
from common.data import document, write_documents
from common.job import StopSignal
from coordinator import pretrain
from coordinator.home import open_home
from coordinator.releases import publish_base
from tests.commands import concord, events, serving, start, stop, wait_for_step
from tests.federation import Federation, running_federation
from tests.training.small_jobs import WORDS, expert_config, pretrain_config, write_text

pytestmark = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
STOPPED = "Stopped. Everything done so far is kept; run the same command to go on.\n"
ENDLESS = {"steps": 100_000, "progress_every_s": 0.05}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Public text, an owner's text and a base."""
    path = tmp_path_factory.mktemp("text")
    for kind in WORDS:
        write_text(path / kind, kind)
    pretrain.run(pretrain.PretrainJob.model_validate(pretrain_config(path, path / "base", steps=3)), StopSignal())
    return path


@pytest.fixture
def trained_on(tmp_path: Path, text: Path) -> Iterator[Federation]:
    """A consortium over that base, with one owner."""
    with running_federation(tmp_path) as federation:
        publish_base(federation.coordinator, text / "base")
        federation.enrol("archive")
        yield federation


def test_stopping_serve(number: signal.Signals, tmp_path: Path) -> None:
    home = tmp_path / "coordinator"
    with running_federation(tmp_path):
        pass  # makes the home, on free ports
    daemon = start("coordinator", "serve", "--home", home)
    wait_for_step(daemon, "serving")
    assert stop(daemon, number)[0] == 0
    with serving(home):
        pass


def test_stopping_an_owners_daemon_that_watches(number: signal.Signals, trained_on: Federation) -> None:
    home = trained_on.owners["archive"].home.path
    for _ in range(2):
        daemon = start("owner", "run", "--home", home)
        wait_for_step(daemon, "no consent is set")
        status, errors = stop(daemon, number)
        assert status == 0
        assert "Traceback" not in errors


def test_stopping_an_owners_daemon_that_waits_for_the_coordinator(
    number: signal.Signals, trained_on: Federation
) -> None:
    trained_on.stop()
    with socket.create_server(("127.0.0.1", trained_on.ports[0])) as deaf:
        deaf.settimeout(60)
        daemon = start("owner", "run", "--home", trained_on.owners["archive"].home.path)
        connection, _ = deaf.accept()
        with connection:
            assert stop(daemon, number)[0] == 0


def test_stopping_an_owners_daemon_that_trains(
    number: signal.Signals, trained_on: Federation, text: Path, tmp_path: Path
) -> None:
    owner = trained_on.owners["archive"]
    settings = owner.home.settings_file
    consent = f'[consent]\npurposes = ["research"]\nterms = "{owner.terms}"\n'
    training = f"[training]\n{options(expert_config(text, text / 'base', text, **ENDLESS))}"
    settings.write_text(f'{settings.read_text()}data = "{text}/own"\npublic = "{text}/public"\n{consent}{training}')
    check_goes_on(("owner", "run", "--home", owner.home.path), number, expected=(0, ""))


def test_stopping_train(number: signal.Signals, trained_on: Federation, text: Path, tmp_path: Path) -> None:
    config = tmp_path / "training.toml"
    config.write_text(options(expert_config(text, text / "base", text, **ENDLESS)))
    home = trained_on.owners["archive"].home.path
    command = ("owner", "train", "--home", home, "--config", config)
    check_goes_on((*command, "--data", text / "own", "--public", text / "public"), number, expected=(130, STOPPED))


def test_stopping_pretrain(number: signal.Signals, text: Path, tmp_path: Path) -> None:
    config = tmp_path / "pretraining.toml"
    config.write_text(options(pretrain_config(text, tmp_path, **ENDLESS)))
    command = ("coordinator", "pretrain", "--data", text / "public", "--output", tmp_path / "base", "--config", config)
    check_goes_on(command, number, expected=(130, STOPPED))


def options(job: dict[str, object]) -> str:
    """The part of a job's configuration that is given as TOML."""
    return "".join(f"{name} = {value}\n" for name, value in job.items() if not isinstance(value, str))


def check_goes_on(command: tuple[str | Path, ...], number: signal.Signals, *, expected: tuple[int, str]) -> None:
    """A training is stopped twice; the second time it had begun where the first ended."""
    first = start(*command)
    reached = list(islice(steps_of_training(first), 5))[-1]
    status, errors = stop(first, number)
    assert (status, errors_of_people(errors)) == expected
    second = start(*command)
    assert next(steps_of_training(second)) > reached
    stop(second, number)


def steps_of_training(command: "subprocess.Popen[str]") -> Iterator[float]:
    """The steps of training that a command reports, as they come."""
    for event in events(command):
        if event["event"] == "progress" and event["task"] in ("training the expert", "public model"):
            yield float(str(event["done"]))


def errors_of_people(errors: str) -> str:
    """What a command says on standard error, without its logging."""
    return "".join(line for line in errors.splitlines(keepends=True) if not line.startswith("{"))


def test_stopping_a_release_that_is_evaluated(number: signal.Signals, text: Path, tmp_path: Path) -> None:
    with running_federation(tmp_path) as federation:
        publish_base(federation.coordinator, text / "base")
    held_out = tmp_path / "held-out"
    for kind in WORDS:
        (write_text(held_out / kind, kind, num_documents=5000) / "train.jsonl").rename(held_out / kind / "test.jsonl")
    home = tmp_path / "coordinator"
    release = start("coordinator", "release", "--home", home, "--evaluate", held_out)
    next(event for event in events(release) if event["event"] == "progress")
    assert stop(release, number) == (130, STOPPED)
    again = concord("coordinator", "release", "--home", home, "--evaluate", held_out, "--max-bytes", "1000")
    assert again.returncode == 0, again.stderr
    report = audit(home / "public")
    assert report.holds
    assert report.releases == {"release-1": []}


def test_stopping_the_demo(number: signal.Signals, tmp_path: Path) -> None:
    for domain in ("public", "own"):
        write_varied_text(tmp_path / "text" / domain)
    command = ("demo", "--owners", "1", "--data", tmp_path / "text", "--workdir", tmp_path / "demo")
    first = start(*command)
    reached = next(steps_of_demo(first))
    assert stop(first, number) == (130, STOPPED)
    second = start(*command)
    assert next(steps_of_demo(second)) > reached
    stop(second, number)
    with open_home(tmp_path / "demo" / "coordinator") as coordinator:
        assert coordinator.registry.head().size == 0


def write_varied_text(folder: Path) -> None:
    """A corpus of as many different words as the demo's tokenizer needs."""
    random = Random(folder.name)
    words = ["".join(random.choices(ascii_lowercase, k=6)) for _ in range(3000)]
    folder.mkdir(parents=True)
    for split, num_documents in (("train", 60), ("test", 5)):
        texts = (" ".join(random.choices(words, k=300)) for _ in range(num_documents))
        write_documents(folder / f"{split}.jsonl", [document(text) for text in texts])


def steps_of_demo(command: "subprocess.Popen[str]") -> Iterator[float]:
    """The steps of the public model's training that a demo reports, as they come."""
    for event in events(command):
        if event["event"] == "progress" and event["task"] == "coordinator: public model":
            yield float(str(event["done"]))
