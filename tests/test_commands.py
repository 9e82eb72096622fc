"""What every command says: its help, its JSON, and one line on what went wrong."""

import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer
from click import Group

from common import audit_cli, witness_cli
from common.audit import audit
from coordinator import cli as coordinator_cli
from coordinator.home import open_home
from coordinator.releases import publish_base
from deploy import demo_cli
from owner_client import cli as owner_cli
from owner_client.config import OwnerHome
from tests.commands import concord, serving, start, wait_for_step
from tests.federation import Owner, expert_weights, free_ports, write_base

OPTIONS = {
    "coordinator init": "origin federation home host port enrolment-port advertise num-experts-per-tok database json",
    "coordinator migrate": "database writer json",
    "coordinator pretrain": "data output config json",
    "coordinator tune": "output config json",
    "coordinator publish": "home json",
    "coordinator invite": "output role home json",
    "coordinator owners": "home json",
    "coordinator intake": "clear home json",
    "coordinator campaign": "",
    "coordinator campaign list": "home json",
    "coordinator campaign show": "home json",
    "coordinator campaign close": "home json",
    "coordinator campaign proxies": "home json",
    "coordinator campaign define": "",
    "coordinator campaign define evaluate": "max-bytes owner quorum hours min-documents home json",
    "coordinator campaign define select-proxy": "count min-accuracy owner quorum hours min-documents home json",
    "coordinator campaign define train": "owner quorum hours home json",
    "coordinator campaign define extraction": "prefix-tokens continuation-tokens documents owner hours home json",
    "coordinator train-routers": "campaign public steps lr batch-size sequence-length mixed-share public-share "
    "hold-public max-documents every-steps patience seed threads device evaluate max-bytes home json",
    "coordinator rotate": "",
    "coordinator rotate server": "home json",
    "coordinator rotate intermediate": "root-key home json",
    "coordinator rotate root": "finish at-once root-key home json",
    "coordinator serve": "home json",
    "coordinator revoke": "reason home json",
    "coordinator registry": "home json",
    "coordinator recover": "from home json",
    "coordinator release": "home evaluate max-bytes threads json",
    "coordinator status": "home json",
    "owner enrol": "invitation data public home json",
    "owner consent": "terms purpose line release days not-before jurisdiction home json",
    "owner train": "data public config home json",
    "owner submit": "dry-run home json",
    "owner proxies": "count output data public encoder by-expert unseen-share min-accuracy home json",
    "owner opt-out": "reason withdraw-within-hours home json",
    "owner hand-over": "address witness-key home json",
    "owner revoke-certificates": "reason home json",
    "owner rotate-key": "public-key reason home json",
    "owner new-key": "name output json",
    "owner sign": "key output yes json",
    "owner run": "home json",
    "owner fetch-release": "output home json",
    "owner campaign": "",
    "owner campaign list": "home json",
    "owner campaign accept": "home json",
    "owner campaign decline": "reason home json",
    "owner status": "follow home json",
    "owner ledger": "home json",
    "owner ledger show": "home json",
    "owner ledger verify": "key home json",
    "owner ledger export": "home json",
    "owner review": "home json",
    "owner approve": "home json",
    "owner reject": "reason home json",
    "audit verify": "root checkpoint quorum witnesses receipt json",
    "audit log": "root json",
    "audit show": "root json",
    "audit release": "root json",
    "audit owner": "root json",
    "audit removal": "root json",
    "audit rebuild": "root output json",
    "audit evidence": "root public json",
    "audit export": "output json",
    "audit enrol": "invitation home json",
    "audit look": "home json",
    "audit fetch": "most-gigabytes home json",
    "witness init": "name home json",
    "witness watch": "home json",
    "witness serve": "home host port json",
    "demo": "data owners workdir keep seed json",
}
NO_COORDINATOR = "concord coordinator init"
NO_OWNER = "concord owner enrol"
HEAVY = ("torch", "grpc", "flwr", "sqlalchemy", "numpy", "transformers")


# Help


@pytest.mark.parametrize("command", OPTIONS)
def test_help_names_every_option(command: str) -> None:
    shown = concord(*command.split(), "--help")
    assert shown.returncode == 0
    words = shown.stdout.replace(",", " ").split()
    assert [option for option in OPTIONS[command].split() if f"--{option}" not in words] == []


def test_no_command_is_without_a_test() -> None:
    commands = {"demo"}
    for name, module in {
        "coordinator": coordinator_cli,
        "owner": owner_cli,
        "audit": audit_cli,
        "witness": witness_cli,
    }.items():
        group = typer.main.get_command(module.app)
        assert isinstance(group, Group)
        commands |= set(_commands(name, group))
    assert commands == OPTIONS.keys()
    (demo,) = (command.callback for command in demo_cli.app.registered_commands)
    assert demo is demo_cli.demo


def _commands(name: str, group: Group) -> Iterator[str]:
    """All commands of a group, and of the groups in it."""
    for word, command in group.commands.items():
        yield f"{name} {word}"
        if isinstance(command, Group):
            yield from _commands(f"{name} {word}", command)


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_help_and_version_load_nothing_heavy(argument: str) -> None:
    line = [sys.executable, "-X", "importtime", "-m", "concord", argument]
    shown = subprocess.run(line, capture_output=True, text=True, check=True)
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in shown.stderr.splitlines()}
    assert "importlib" in loaded
    assert loaded.isdisjoint((*HEAVY, "typer", "pydantic", "cryptography", "rich"))


def test_the_coordinator_and_owner_groups_are_named_in_help() -> None:
    assert all(name in concord("--help").stdout for name in ("coordinator", "owner", "audit", "witness", "demo"))


def test_a_command_that_is_not_there_is_wrong_usage() -> None:
    shown = concord("coordinate")
    assert shown.returncode == 2
    assert (
        shown.stderr
        == "Error: no command 'coordinate'; there are: coordinator, owner, audit, witness, demo, simulate\n"
    )


# JSON


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, "subprocess.CompletedProcess[str]"]:
    """What each command said with `--json`, in a consortium's whole life."""
    path = tmp_path_factory.mktemp("life")
    home, owner, outputs = path / "coordinator", path / "owner", {}
    ports = [str(port) for port in free_ports(2)]
    terms = path / "terms.txt"
    terms.write_text("The terms.\n")

    def do(command: str, *arguments: str | Path) -> None:
        outputs[command] = concord(*command.split(), *arguments, "--json")

    do(
        "coordinator init",
        "--federation",
        "json.test",
        "--home",
        home,
        "--port",
        ports[0],
        "--enrolment-port",
        ports[1],
    )
    do("coordinator publish", write_base(path / "base"), "--home", home)
    do("coordinator invite", "archive", "--output", path / "invitation", "--home", home)
    with serving(home):
        do("owner enrol", "--invitation", path / "invitation", "--home", owner)
        do("owner consent", "--terms", terms, "--purpose", "research", "--home", owner)
        Owner("archive", OwnerHome(owner), terms).put_expert(expert_weights(1))
        do("owner submit --dry-run", "--home", owner)
        do("owner submit", "--home", owner)
        do("coordinator release", "--home", home)
        do("owner rotate-key", "--home", owner)
        do("owner opt-out", "--home", owner)
        do("coordinator release", "--home", home)
        do("owner status", "--home", owner)
        do("owner ledger", "--home", owner)
    do("coordinator status", "--home", home)
    do("audit verify", home / "public", "--root", home / "public" / "trusted_root.json")
    do("audit log", home / "public", "--root", home / "public" / "trusted_root.json")
    do("audit release", "release-2", home / "public")
    do("audit owner", "archive", home / "public")
    do("audit removal", "release-1", "release-2", home / "public")
    do("audit rebuild", "release-1", home / "public")
    do("audit export", home / "public", "--output", path / "bundle.zip")
    do("owner new-key", "--name", "json.test/owner/archive", "--output", path / "new.key")
    return outputs


SAID = {
    "coordinator init": {"event", "home", "public"},
    "coordinator publish": {"event", "base_digest", "directory"},
    "coordinator invite": {"event", "invitation", "owner"},
    "owner enrol": {"event", "owner", "home"},
    "owner consent": {"event", "grant_id", "not_before", "not_after"},
    "owner submit --dry-run": {"event", "file", "digest", "size_bytes", "tensors"},
    "owner submit": {"event", "record_id"},
    "coordinator release": {"event", "release", "is_new", "directory", "experts", "left_out", "manifest_digest"},
    "owner opt-out": {"event", "record_id", "grant_id"},
    "owner rotate-key": {"event", "key_id", "revoked_key_ids"},
    "owner new-key": {"event", "public_key"},
    "owner status": {
        "event", "owner", "coordinator", "trusted_root", "certificate_until", "renews_at", "consent_in_force",
        "consent_until", "consent_to_come", "consent_from", "expert_in_the_log", "statements", "not_in_the_log_yet",
        "waiting_for_approval", "campaigns_waiting", "sent_bytes", "daemon",
    },
    "owner ledger": {"event", "sent"},
    "coordinator status": {
        "event", "federation", "address", "trusted_root", "log_entries", "owners", "certificates_revoked",
        "base", "consents_in_force",
        "consents_to_come", "consents_lapsed", "opted_out", "experts", "releases", "public", "owners_now", "daemon",
    },
    "audit verify": {"event", "audit", "steps", "releases"},
    "audit log": {"event", "audit", "entries"},
    "audit owner": {"event", "owner", "entries", "releases"},
    "audit removal": {"event", "left", "kept", "tensors"},
    "audit rebuild": {"event", "release", "files", "taken_over", "trained_slots"},
    "audit export": {"event", "bundle", "entries"},
}  # fmt: skip


@pytest.mark.parametrize("command", SAID)
def test_json_is_lines_with_one_result_last(command: str, said: dict[str, "subprocess.CompletedProcess[str]"]) -> None:
    output = said[command]
    assert output.returncode == 0, output.stderr
    assert output.stderr == ""
    events = [json.loads(line) for line in output.stdout.splitlines()]
    assert [event["event"] for event in events if event["event"] == "result"] == ["result"]
    assert events[-1].keys() == SAID[command]


# Mistakes


@dataclass(frozen=True)
class Stage:
    """A consortium that serves, with one owner that has joined, one that has consented, and things that are wrong."""

    path: Path
    busy_port: int

    @property
    def home(self) -> Path:
        return self.path / "coordinator"

    @property
    def empty_home(self) -> Path:
        """A coordinator's home without a base."""
        return self.path / "new"

    @property
    def joined(self) -> Path:
        return self.path / "joined"

    @property
    def consented(self) -> Path:
        return self.path / "consented"

    @property
    def terms(self) -> Path:
        return self.path / "terms.txt"


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    path = tmp_path_factory.mktemp("stage")
    (path / "terms.txt").write_text("The terms.\n")
    (path / "empty").mkdir()
    (path / "broken.toml").write_text("steps = = 3\n")
    (path / "wrong.toml").write_text("stepps = 3\n")
    (path / "good.toml").write_text("steps = 3\nbatch_size = 2\nsequence_length = 8\nlearning_rate = 0.1\n")
    (path / "binary").write_bytes(bytes(range(256)))
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        stage = Stage(path, int(busy.getsockname()[1]))
        for home, ports in ((stage.home, free_ports(2)), (stage.empty_home, [stage.busy_port, *free_ports(1)])):
            done = concord(
                "coordinator", "init", "--federation", "wrong.test", "--home", home,
                "--port", str(ports[0]), "--enrolment-port", str(ports[1]),
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
        with open_home(stage.home) as coordinator:
            publish_base(coordinator, write_base(path / "base"))
        with serving(stage.home):
            for name in ("joined", "consented"):
                concord("coordinator", "invite", name, "--output", path / f"{name}.json", "--home", stage.home)
                concord("owner", "enrol", "--invitation", path / f"{name}.json", "--home", path / name)
            concord("owner", "consent", "--terms", stage.terms, "--purpose", "r", "--home", stage.consented)
            concord("coordinator", "invite", "unused", "--output", path / "unused.json", "--home", stage.home)
            yield stage


Arguments = Callable[[Stage], list[str | Path]]
MISTAKES: dict[str, tuple[str, Arguments, str]] = {
    "init over a home": (
        "coordinator init", lambda s: ["--federation", "a.b", "--home", s.home], "is a coordinator's home already"
    ),
    "init with a bad name": (
        "coordinator init", lambda s: ["--federation", "A B", "--home", s.path / "x"], "federation: "
    ),
    "init with a bad port": (
        "coordinator init", lambda s: ["--federation", "a.b", "--port", "99999", "--home", s.path / "x"], "port: "
    ),
    "init under a file": (
        "coordinator init", lambda s: ["--federation", "a.b", "--home", s.terms / "x"], "terms.txt"
    ),
    "publish without a home": (
        "coordinator publish", lambda s: [s.path / "base", "--home", s.path / "none"], NO_COORDINATOR
    ),
    "publish what is no checkpoint": (
        "coordinator publish", lambda s: [s.path / "empty", "--home", s.home], "this directory holds no model"
    ),
    "publish a folder that is not there": (
        "coordinator publish", lambda s: [s.path / "none", "--home", s.home], "this directory holds no model"
    ),
    "publish a file": ("coordinator publish", lambda s: [s.terms, "--home", s.home], "terms.txt"),
    "invite into a file that is there": (
        "coordinator invite", lambda s: ["new", "--output", s.terms, "--home", s.home], "exists already"
    ),
    "invite by a bad name": (
        "coordinator invite", lambda s: ["No Good", "--output", s.path / "x", "--home", s.home], "No Good"
    ),
    "invite into a folder": (
        "coordinator invite", lambda s: ["new", "--output", s.terms / "x", "--home", s.home], "terms.txt"
    ),
    "serve without a home": ("coordinator serve", lambda s: ["--home", s.path / "none"], NO_COORDINATOR),
    "serve a home that is served": (
        "coordinator serve", lambda s: ["--home", s.home], "already in use by another process"
    ),
    "serve on a port in use": ("coordinator serve", lambda s: ["--home", s.empty_home], "choose another port"),
    "release without a home": ("coordinator release", lambda s: ["--home", s.path / "none"], NO_COORDINATOR),
    "release without a base": (
        "coordinator release", lambda s: ["--home", s.empty_home], "concord coordinator publish"
    ),
    "release on no text": (
        "coordinator release", lambda s: ["--home", s.home, "--evaluate", s.path / "empty"], "has no held-out text"
    ),
    "status without a home": ("coordinator status", lambda s: ["--home", s.path / "none"], NO_COORDINATOR),
    "pretrain without options": (
        "coordinator pretrain",
        lambda s: ["--data", s.path / "empty", "--output", s.path / "x", "--config", s.path / "none"],
        "name a TOML file",
    ),
    "pretrain with options that do not parse": (
        "coordinator pretrain",
        lambda s: ["--data", s.path / "empty", "--output", s.path / "x", "--config", s.path / "broken.toml"],
        "broken.toml: ",
    ),
    "pretrain with an option that is none": (
        "coordinator pretrain",
        lambda s: ["--data", s.path / "empty", "--output", s.path / "x", "--config", s.path / "wrong.toml"],
        "job.json",
    ),
    "tune what is no release": (
        "coordinator tune",
        lambda s: [s.path / "empty", "--output", s.path / "x", "--config", "deploy/examples/tune.toml"],
        "a model directory is needed",
    ),
    "tune on shares that are no whole": (
        "coordinator tune",
        lambda s: [s.path / "empty", "--output", s.path / "x", "--config", s.path / "wrong.toml"],
        "job.json",
    ),
    "proxies without a home": (
        "owner proxies", lambda s: ["--count", "3", "--output", s.path / "x", "--home", s.path / "none"], NO_OWNER
    ),
    "proxies without text": (
        "owner proxies",
        lambda s: ["--count", "3", "--output", s.path / "x", "--home", s.joined],
        "give --data and --public",
    ),
    "proxies by two": (
        "owner proxies",
        lambda s: ["--count", "3", "--output", s.path / "x", "--by-expert", "--encoder", s.path, "--home", s.joined],
        "give --encoder or --by-expert, not both",
    ),
    "enrol with no file": (
        "owner enrol", lambda s: ["--invitation", s.path / "none", "--home", s.path / "x"], "ask the admin for one"
    ),
    "enrol with a wrong file": (
        "owner enrol", lambda s: ["--invitation", s.terms, "--home", s.path / "x"], "invitation"
    ),
    "enrol with a binary file": (
        "owner enrol", lambda s: ["--invitation", s.path / "binary", "--home", s.path / "x"], "invitation"
    ),
    "enrol with a folder": (
        "owner enrol", lambda s: ["--invitation", s.path / "empty", "--home", s.path / "x"], "empty"
    ),
    "enrol with text that is not there": (
        "owner enrol",
        lambda s: ["--invitation", s.path / "unused.json", "--home", s.path / "x", "--data", s.path / "none"],
        "the invitation is still good",
    ),
    "enrol with nothing": ("owner enrol", lambda s: ["--home", s.path / "x"], "invitation"),
    "enrol where one has joined": (
        "owner enrol", lambda s: ["--invitation", s.path / "unused.json", "--home", s.joined], "has joined already"
    ),
    "enrol with a used invitation": (
        "owner enrol", lambda s: ["--invitation", s.path / "joined.json", "--home", s.path / "x"], "was used already"
    ),
    "consent without a home": (
        "owner consent", lambda s: ["--terms", s.terms, "--purpose", "r", "--home", s.path / "none"], NO_OWNER
    ),
    "consent to terms that are not there": (
        "owner consent", lambda s: ["--terms", s.path / "none", "--purpose", "r", "--home", s.joined], "terms"
    ),
    "consent for no days": (
        "owner consent", lambda s: ["--terms", s.terms, "--purpose", "r", "--days", "0", "--home", s.joined], "days: "
    ),
    "consent for an empty purpose": (
        "owner consent", lambda s: ["--terms", s.terms, "--purpose", "", "--home", s.joined], "purpose"
    ),
    "recover from what is not there": (
        "coordinator recover", lambda s: ["--home", s.home, "--from", s.path / "empty"], "name a coordinator's public"
    ),
    "train without text": ("owner train", lambda s: ["--home", s.consented], "no text to train on"),
    "train on text that is not there": (
        "owner train", lambda s: [
            "--data", s.path / "none", "--public", s.terms, "--config", s.path / "good.toml", "--home", s.consented
        ],
        "none"
    ),
    "train without a home": ("owner train", lambda s: ["--home", s.path / "none"], NO_OWNER),
    "submit without a home": ("owner submit", lambda s: ["--home", s.path / "none"], NO_OWNER),
    "submit before training": ("owner submit", lambda s: ["--home", s.consented], "train first"),
    "plan to submit before training": ("owner submit", lambda s: ["--dry-run", "--home", s.consented], "train first"),
    "opt out without a home": ("owner opt-out", lambda s: ["--home", s.path / "none"], NO_OWNER),
    "opt out without a consent": ("owner opt-out", lambda s: ["--home", s.joined], "no consent to revoke"),
    "run without a home": ("owner run", lambda s: ["--home", s.path / "none"], NO_OWNER),
    "owner's status without a home": ("owner status", lambda s: ["--home", s.path / "none"], NO_OWNER),
    "owner's status of a file": ("owner status", lambda s: ["--home", s.terms], "terms.txt"),
    "clear a quarantine that is not there": (
        "coordinator intake", lambda s: ["--clear", "../keys", "--home", s.home], "is in quarantine"
    ),
    "a campaign about a model that is not there": (
        "coordinator campaign define evaluate", lambda s: ["release-9", "--home", s.home], "release-9"
    ),
    "a campaign that is not there": (
        "coordinator campaign show", lambda s: ["0123", "--home", s.home], "0123"
    ),
    "training rows by no campaign": (
        "coordinator train-routers", lambda s: ["release-1", "--campaign", "0123", "--home", s.home], "0123"
    ),
    "accept what nobody asks": ("owner campaign accept", lambda s: ["0123", "--home", s.joined], "0123"),
    "ledger without a home": ("owner ledger", lambda s: ["--home", s.path / "none"], NO_OWNER),
    "a ledger that is none": (
        "owner ledger verify", lambda s: [s.terms, "--home", s.joined], "no ledger that `concord owner ledger export`"
    ),
    "a ledger exported over a file": (
        "owner ledger export", lambda s: [s.terms, "--home", s.joined], "choose another name"
    ),
    "reviews without a home": ("owner review", lambda s: ["--home", s.path / "none"], NO_OWNER),
    "approve what nobody asked about": (
        "owner approve", lambda s: ["0123456789ab", "--home", s.joined], "see: concord owner review"
    ),
    "reject what nobody asked about": (
        "owner reject", lambda s: ["../keys", "--home", s.joined], "see: concord owner review"
    ),
    "audit of no publication": ("audit verify", lambda s: [s.path / "empty"], "not a coordinator's public directory"),
    "audit of a file": ("audit verify", lambda s: [s.terms], "terms.txt"),
    "audit by a root that is not there": (
        "audit verify", lambda s: [s.home / "public", "--root", s.path / "none"], "ask for it out of band"
    ),
    "audit by a wrong root": ("audit verify", lambda s: [s.home / "public", "--root", s.terms], "trusted root"),
    "an auditor that has not joined": (
        "audit look", lambda s: ["--home", s.path / "none"], "join first: concord audit enrol"
    ),
    "an auditor without an invitation": (
        "audit enrol", lambda s: ["--invitation", s.terms, "--home", s.path / "none"], "invitation"
    ),
    "demo among other files": ("demo", lambda s: ["--workdir", s.path], "choose an empty directory"),
    "demo of text without public": (
        "demo", lambda s: ["--data", s.path / "empty", "--workdir", s.path / "demo-1"], "no folder called public"
    ),
    "demo of text that is not there": (
        "demo", lambda s: ["--data", s.path / "none", "--workdir", s.path / "demo-2"], "none"
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(mistake: str, stage: Stage) -> None:
    command, arguments, says = MISTAKES[mistake]
    check_one_line(concord(*command.split(), *arguments(stage)), says)


def check_one_line(output: "subprocess.CompletedProcess[str]", says: str) -> None:
    """It failed with one line on standard error that says this."""
    assert output.stderr.startswith("Error: "), output.stderr
    assert output.stderr.count("\n") == 1, output.stderr
    assert says in output.stderr
    assert output.returncode == 1


def test_nothing_was_changed_by_mistakes(stage: Stage) -> None:
    for mistake in ("init over a home", "enrol where one has joined", "enrol with a used invitation"):
        command, arguments, _ = MISTAKES[mistake]
        concord(*command.split(), *arguments(stage))
    assert audit(stage.home / "public").holds
    assert not (stage.joined / "enrolling").exists()


def test_two_daemons_in_one_owners_home(stage: Stage) -> None:
    daemon = start("owner", "run", "--home", stage.joined)
    try:
        wait_for_step(daemon, "the public model is in the log")
        check_one_line(concord("owner", "run", "--home", stage.joined), "already in use by another process")
    finally:
        daemon.terminate()
        daemon.communicate()


def test_a_damaged_registry_is_one_line(tmp_path: Path) -> None:
    home = tmp_path / "coordinator"
    concord("coordinator", "init", "--federation", "a.b", "--home", home)
    (home / "registry.sqlite").write_bytes(b"no database " * 1000)
    check_one_line(concord("coordinator", "status", "--home", home), "restore the newest backup")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("keys/log.key", "signing key"),
        ("keys/authority.json", "authority.json"),
        ("public/trusted_root.json", "trusted root"),
        ("coordinator.toml", "coordinator.toml"),
    ],
)
def test_a_damaged_file_in_a_coordinators_home_is_one_line(name: str, says: str, tmp_path: Path) -> None:
    home = tmp_path / "coordinator"
    concord("coordinator", "init", "--federation", "a.b", "--home", home)
    (home / name).write_bytes(b"\xff nonsense")
    check_one_line(concord("coordinator", "serve", "--home", home), says)


def test_a_path_in_brackets_is_shown_as_it_is(tmp_path: Path) -> None:
    home = tmp_path / "[/bold]"
    made = concord("coordinator", "init", "--federation", "a.b", "--home", home)
    assert made.returncode == 0, made.stderr
    assert f"home: {home}" in made.stdout.splitlines()[1]
