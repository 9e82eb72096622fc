"""Router rows trained on what owners chose, as a release of its own: by the command, with the jobs that really run."""

import json
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from common.audit import audit
from common.audit_answers import removal
from common.audit_rebuild import rebuild
from common.errors import ConsentError, VerificationError
from common.model.partition import joined_router
from common.trust.manifest import Manifest, digest_of_file
from common.trust.note import SigningKey
from coordinator.config import CoordinatorHome
from coordinator.home import open_home
from coordinator.router_plan import RouterSettings, plan_training
from coordinator.router_training import train_routers
from tests.campaigns.asking import Quiet, write_small_base
from tests.choosing import OPTIONS, UNKNOWN, ask_for_documents, ask_to_train, choose, ids_of, released, write_pool
from tests.commands import concord
from tests.federation import Federation
from tests.published import Published
from tests.test_crash import PUBLISHED, Point, Victim, appended, at, kept
from tests.training.small_jobs import write_text

ROUTERS = "model-router.safetensors"
SMALL = RouterSettings(
    steps=12, learning_rate=0.05, batch_size=4, sequence_length=32, every_steps=4, threads=1
)  # as OPTIONS


@dataclass(frozen=True)
class Home:
    """A coordinator's home where a campaign was answered."""

    path: Path
    campaign_id: str
    other_campaign_id: str

    def train(self, *more: str | Path, release: str = "release-1", campaign: str | None = None) -> Any:
        """Run the command."""
        return concord(
            "coordinator", "train-routers", release, "--campaign", campaign or self.campaign_id, *OPTIONS, *more,
            "--home", self.path, "--json",
        )  # fmt: skip

    @property
    def public(self) -> Path:
        """What is published."""
        return CoordinatorHome(self.path).public

    def release(self, name: str) -> Path:
        """Where a release is shown."""
        return self.public / "releases" / name

    def published(self) -> Published:
        """The same with its keys, to let it lie."""
        with open_home(self.path) as coordinator:
            root, keys = coordinator.registry.root, coordinator.home.keys
            log_key = SigningKey.from_pem((keys / "log.key").read_bytes(), name=root.log.name)
            own_key = SigningKey.from_pem((keys / "coordinator.key").read_bytes(), name=root.coordinator.name)
        return Published(self.public, root, log_key, own_key, b"")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base that reads text."""
    return write_small_base(tmp_path_factory.mktemp("base"))


@contextmanager
def answered(path: Path, base: Path) -> Iterator[tuple[Federation, Home]]:
    """Two of three owners chose documents that are there, the third one that is not."""
    pool = write_pool(path / "pool")
    with released(path, base) as federation:
        asked, other = ask_for_documents(federation, pool), ask_to_train(federation)
        choose(federation, "archive", asked, ids_of(pool, "theorem")[:12])
        choose(federation, "hospital", asked, [*ids_of(pool, "river")[:8], UNKNOWN])
        choose(federation, "library", asked, [UNKNOWN])
        yield federation, Home(federation.coordinator.home.path, asked.record_id, other.record_id)


@pytest.fixture(scope="module")
def kept_home(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Home:
    """Made once."""
    with answered(tmp_path_factory.mktemp("answered"), base) as (_, home):
        pass
    return home


def copy_of(home: Home, path: Path) -> Home:
    """The same home, for a test of its own."""
    shutil.copytree(home.path, path / "coordinator")
    return Home(path / "coordinator", home.campaign_id, home.other_campaign_id)


@pytest.fixture
def home(kept_home: Home, tmp_path: Path) -> Home:
    """Where nothing was trained yet."""
    return copy_of(kept_home, tmp_path)


@pytest.fixture(scope="module")
def kept_trained(kept_home: Home, tmp_path_factory: pytest.TempPathFactory) -> Home:
    """Where rows were trained, once."""
    home = copy_of(kept_home, tmp_path_factory.mktemp("trained"))
    done = home.train()
    assert done.returncode == 0, done.stderr
    return home


@pytest.fixture
def trained(kept_trained: Home, tmp_path: Path) -> Home:
    """A copy of it."""
    return copy_of(kept_trained, tmp_path)


def test_rows_of_those_who_chose_are_trained_and_nothing_else_changes(home: Home, tmp_path: Path) -> None:
    done = home.train()
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["release"], result["parent"], result["is_new"]) == ("release-2", "release-1", True)
    assert (result["trained"], result["kept"]) == ({"archive": 12, "hospital": 8}, ["library"])
    assert result["missing"] == {"hospital": 1, "library": 1}
    before, after = (load_file(home.release(name) / ROUTERS) for name in ("release-1", "release-2"))
    assert before.keys() == {joined_router(layer) for layer in range(2)}
    for name, rows in before.items():
        assert [torch.equal(*pair) for pair in zip(rows, after[name], strict=True)] == [True, False, False, True]
    old, new = (Manifest.of_directory(home.release(name)).files for name in ("release-1", "release-2"))
    assert {name for name in old.keys() | new.keys() if old.get(name) != new.get(name)} == {
        ROUTERS, "router_training.json",
    }  # fmt: skip
    report = audit(home.public)
    assert report.holds, report.findings[-1]
    assert not (home.path / "work").exists()
    assert [path.name for path in (home.path / "router-training" / "release-1").iterdir()] == []
    made = rebuild(home.public, report, "release-2", tmp_path / "again")
    assert made.trained == (1, 2)
    assert set(made.taken_over) == {ROUTERS, "router_training.json"}
    assert Manifest.of_directory(tmp_path / "again").files == new


def test_the_log_and_a_file_say_how(trained: Home) -> None:
    with open_home(trained.path) as coordinator:
        said = coordinator.registry.head().releases["release-2"].statement.router_training
    assert said is not None
    file = trained.release("release-2") / "router_training.json"
    assert digest_of_file(file) == said.settings_digest
    told = json.loads(file.read_text())
    assert (told["parent"], told["parent_digest"], told["campaign_id"]) == (
        "release-1", said.parent_digest, trained.campaign_id,
    )  # fmt: skip
    assert {owner: each["documents"] for owner, each in told["proxies"].items()} == {"archive": 12, "hospital": 8}
    assert [each["digest"] for each in told["proxies"].values()] == [each.digest for each in said.proxies]
    assert told["settings"] == SMALL.model_dump(mode="json")
    shown = concord("audit", "release", "release-2", trained.public)
    assert "it is release-1, but for the router rows of archive, hospital" in shown.stdout
    rebuilt = concord("audit", "rebuild", "release-2", trained.public)
    assert "router rows of slots 1, 2 were trained and are not made again" in rebuilt.stdout + rebuilt.stderr


def test_the_same_again_is_the_same_release_and_other_settings_are_another(trained: Home) -> None:
    again = trained.train()
    assert again.returncode == 0, again.stderr
    result = json.loads(again.stdout.splitlines()[-1])
    assert (result["release"], result["is_new"]) == ("release-2", False)
    other = trained.train("--seed", "3")
    assert json.loads(other.stdout.splitlines()[-1])["release"] == "release-3", other.stderr
    assert audit(trained.public).holds
    of_trained = trained.train(release="release-2")
    assert "the rows of release-2 were trained already; train those of release-1" in of_trained.stderr


def test_it_is_evaluated_like_any_and_other_public_text_may_be_mixed_in(home: Home, tmp_path: Path) -> None:
    held_out, public = tmp_path / "held-out" / "walks", write_text(tmp_path / "public", "public", seed=5)
    held_out.mkdir(parents=True)
    shutil.copy(public / "train.jsonl", held_out / "test.jsonl")
    done = home.train("--public", public, "--evaluate", held_out.parent, "--max-bytes", "2000")
    assert done.returncode == 0, done.stderr
    found = json.loads((home.release("release-2") / "evaluation.json").read_text())
    assert "walks" in json.dumps(found)
    told = json.loads((home.release("release-2") / "router_training.json").read_text())
    assert told["public"] == Manifest.of_directory(public).digest
    report = audit(home.public)
    assert report.holds, report.findings[-1]
    made = rebuild(home.public, report, "release-2", tmp_path / "again")
    assert set(made.taken_over) == {ROUTERS, "router_training.json", "evaluation.json"}


def test_a_later_release_is_of_what_owners_contributed(trained: Home) -> None:
    done = concord("coordinator", "release", "--home", trained.path)
    assert done.returncode == 0, done.stderr
    first, third = (Manifest.of_directory(trained.release(name)) for name in ("release-1", "release-3"))
    assert first == third
    late = trained.train()
    assert "release-1 is not the newest release; train the rows of release-3" in late.stderr
    with pytest.raises(VerificationError, match=r"release-2 has trained router rows.*compare release-1"):
        removal(trained.public, audit(trained.public), "release-2", "release-3")


MISTAKES: dict[str, tuple[Callable[[Home], Any], str]] = {
    "another kind of campaign": (
        lambda home: home.train(campaign=home.other_campaign_id), "of kind train, not select-proxy"
    ),
    "no campaign": (lambda home: home.train(campaign="0123"), "no campaign begins with '0123'"),
    "no release": (lambda home: home.train(release="release-9"), "there is no release 'release-9'"),
    "sequences too long": (lambda home: home.train("--sequence-length", "64"), "reads 32 tokens, not 64"),
    "no learning rate": (lambda home: home.train("--lr", "0"), "learning_rate: "),
    "no device": (lambda home: home.train("--device", "tpu"), "device: "),
    "no public text": (lambda home: home.train("--public", home.path / "keys" / "none"), "none"),
    "a rate that only harms": (lambda home: home.train("--lr", "1e-12"), "no rows were better"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_that_says_what_to_do(home: Home, mistake: str) -> None:
    act, says = MISTAKES[mistake]
    done = act(home)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    assert says in done.stderr
    assert not home.release("release-2").exists()


def test_a_pool_that_is_gone(home: Home) -> None:
    shutil.rmtree(home.path / "campaigns" / "handed-out")
    done = home.train()
    assert "is not in this home any more" in done.stderr
    assert "campaign define select-proxy" in done.stderr


def test_an_answer_that_is_not_the_one_in_the_log(home: Home) -> None:
    answer = home.path / "campaigns" / "answers" / home.campaign_id / "archive.json"
    answer.write_bytes(answer.read_bytes().replace(b"0.999", b"0.998"))
    assert "what is kept of the answer of archive is not sha256:" in home.train().stderr


def test_nobody_who_is_in_it_chose(base: Path, tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool")
    with released(tmp_path, base) as federation:
        asked = ask_for_documents(federation, pool)
        home = Home(federation.coordinator.home.path, asked.record_id, "")
        assert "nobody in release-1 chose documents" in home.train().stderr
        choose(federation, "archive", asked, [UNKNOWN])
        assert "none of the 1 documents that owners chose is in the pool" in home.train().stderr


def test_one_who_leaves_is_in_no_trained_release(base: Path, tmp_path: Path) -> None:
    with answered(tmp_path, base) as (federation, home):
        coordinator = federation.coordinator

        def plan(release: str) -> Any:
            return plan_training(
                coordinator, release=release, campaign_id=home.campaign_id, settings=SMALL, public=None
            )

        objects = {path.name for path in (home.public / "objects").iterdir()}
        with pytest.raises(ConsentError, match=r"the rows of release-1 may not be trained: consent .* of library was"):
            train_routers(
                coordinator,
                plan("release-1"),
                evaluate=lambda _: federation.owner("library").opt_out() and None,
                reporter=Quiet(),
            )
        assert {path.name for path in (home.public / "objects").iterdir()} == objects
        with pytest.raises(ConsentError, match="make a new release and train that one's rows"):
            plan("release-1")
        federation.release()
        made = train_routers(coordinator, plan("release-2"), evaluate=None, reporter=Quiet())
        assert made.published.owners == {1: "archive", 2: "hospital"}
        assert made.kept == ()
        report = audit(federation.public)
        assert report.holds, report.findings[-1]
        assert removal(federation.public, report, "release-1", "release-2").left.keys() == {"library"}
        federation.owner("archive").opt_out()
        federation.release()
        assert audit(federation.public).holds
        assert removal(federation.public, audit(federation.public), "release-2", "release-4").left.keys() == {"archive"}


# What an audit finds


def _rows(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def act(directory: Path) -> None:
        tensors = load_file(directory / ROUTERS)
        change(tensors)
        _replace(directory / ROUTERS, lambda path: save_file(tensors, path, metadata={"format": "pt"}))

    return act


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """As another file: the one that is there has a second name among the objects."""
    data = path.read_bytes() if path.exists() else b""
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    write(path)


def _public_row(tensors: dict[str, torch.Tensor]) -> None:
    tensors[joined_router(1)][0] *= 1.5


def _kept_row(tensors: dict[str, torch.Tensor]) -> None:
    tensors[joined_router(0)][3] *= 1.5


def _expert(directory: Path) -> None:
    path = directory / "model-expert-0002.safetensors"
    tensors = load_file(path)
    next(iter(tensors.values()))[0, 0] += 1
    _replace(path, lambda place: save_file(tensors, place, metadata={"format": "pt"}))


def _no_settings(directory: Path) -> None:
    (directory / "router_training.json").unlink()


LIES: dict[str, tuple[Callable[[Path], None], str]] = {
    "the public row": (_rows(_public_row), "has another row than its inputs make it, of somebody whose row was not"),
    "the row of one who chose nothing": (_rows(_kept_row), "has another row than its inputs make it"),
    "an expert": (_expert, "is not what its inputs make it|not the same file as in release-1"),
    "the configuration": (
        lambda directory: _replace(directory / "config.json", lambda path: path.write_bytes(path.read_bytes() + b"\n")),
        "is not what base and statement make it",
    ),
    "the settings": (
        lambda directory: _replace(directory / "router_training.json", lambda path: path.write_bytes(b"{}")),
        "which the log names",
    ),
    "no settings": (_no_settings, "which the log names"),
    "another file": (
        lambda directory: _replace(directory / "generation_config.json", lambda path: path.write_bytes(b"{}")),
        "is not the base's|not the same file as in release-1|is no part of a release",
    ),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_whatever_else_is_changed_is_found(trained: Home, lie: str, tmp_path: Path) -> None:
    """The coordinator signs whatever it changed: hashes hold, and what the release is made of does not."""
    act, says = LIES[lie]
    published = trained.published()
    act(trained.release("release-2"))
    published.relist()
    report = published.audit()
    assert not report.holds
    assert report.findings[-1].step == 8
    assert re.search(says, report.findings[-1].found), report.findings[-1].found
    if lie.startswith("the row"):
        log_alone = audit(trained.public, root=published.root, log_alone=True)
        with pytest.raises(VerificationError, match="has another row than release-1"):
            rebuild(trained.public, log_alone, "release-2", tmp_path / "again")


def test_a_trained_row_may_be_any(trained: Home) -> None:
    """What training makes of a row nobody makes again: the log says whose rows these are."""
    published = trained.published()
    _rows(lambda tensors: tensors[joined_router(0)][1].mul_(1.5))(trained.release("release-2"))
    published.relist()
    assert published.audit().holds


# kill -9


POINTS = [
    at("coordinator train-routers", "the texts are made, not in their place", kept("texts")),
    at("coordinator train-routers", "rows are half trained", kept("best.safetensors"), kept("best.safetensors")),
    at("coordinator train-routers", "a file is there by content", ("os.link", "public/objects/")),
    at("coordinator train-routers", "the statement is not committed", appended("release.publish")),
    at("coordinator train-routers", "logged, no checkpoint shows it", appended("release.publish"), PUBLISHED),
    at("coordinator train-routers", "logged, not shown", kept("releases/release-2")),
    at(
        "coordinator train-routers", "shown, not cleaned up", kept("release-2"), ("shutil.rmtree", "release-1/[0-9a-f]")
    ),
]


@pytest.mark.parametrize("point", POINTS, ids=lambda point: point.name)
def test_killed_there_and_run_again_it_is_one_release(
    point: Point, home: Home, kept_trained: Home, tmp_path: Path
) -> None:
    victim = Victim(point, tmp_path)
    arguments = ("release-1", "--campaign", home.campaign_id, *OPTIONS, "--home", home.path)
    killed = victim.start(point.command, *arguments)
    killed.communicate()
    assert killed.returncode in (-signal.SIGKILL, 1)  # itself, or its job
    victim.check_killed()
    again = victim.start(point.command, *arguments)
    _, errors = again.communicate()
    assert again.returncode == 0, errors
    report = audit(home.public)
    assert report.holds, report.findings[-1]
    assert list(report.releases) == ["release-1", "release-2"]
    assert Manifest.of_directory(home.release("release-2")) == Manifest.of_directory(kept_trained.release("release-2"))
    assert list((home.path / "router-training" / "release-1").iterdir()) == []
