"""What the README and the guides say can be typed: the README's first five minutes are lived through; every command and
option that a guide names exists; every example file is one that its command takes."""

import importlib
import re
import shlex
import shutil
import signal
from pathlib import Path

import click
import pytest
import typer

import concord as concord_command
from common.config import load_options, load_toml
from owner_client.config import OwnerSettings
from tests import commands
from tests.federation import free_ports

ROOT = Path(__file__).parents[1]
GUIDES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = ROOT / "deploy" / "examples"
PRETRAIN = """
vocab_size = 270
hidden_size = 16
intermediate_size = 32
num_hidden_layers = 2
num_attention_heads = 2
sequence_length = 32
batch_size = 2
steps = 4
learning_rate = 1e-2
"""
TRAINING = "steps = 4\nbatch_size = 2\nsequence_length = 32\nlearning_rate = 1e-2\nrouter_sequences = 8\n"


def _lines(path: Path) -> list[str]:
    """The commands of a document: indented lines, or inline code, that begin with `concord`."""
    text = path.read_text()
    typed = re.findall(r"^    (concord [^\n#]+)", text, flags=re.M)
    return typed + re.findall(r"`(concord [^`\n]+)`", text)


@pytest.mark.parametrize(
    ("path", "line"), [(path, line) for path in GUIDES for line in _lines(path)], ids=lambda value: str(value)[-60:]
)
def test_every_command_that_a_guide_names_exists(path: Path, line: str) -> None:
    words = shlex.split(line)[1:]
    if words[0].startswith("-") or words[0].isupper():
        return
    module = importlib.import_module(concord_command._GROUPS[words[0]][0])
    command: click.Command = typer.main.get_command(module.app)
    for word in words[1:]:
        if not isinstance(command, click.Group) or word.startswith("-"):
            break
        found = command.get_command(click.Context(command), word)
        assert found is not None, f"{path.name}: {line}"
        command = found
    known = {option for parameter in command.params for option in parameter.opts}
    unknown = {word for word in words if word.startswith("--")} - known
    assert not unknown, f"{path.name}: {line}: {command.name} knows {sorted(known)}"


def test_links_in_documents_lead_somewhere() -> None:
    for path in [*GUIDES, ROOT / "DECISIONS.md", ROOT / "CHANGELOG.md"]:
        for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
            assert target.startswith("http") or (path.parent / target).exists(), f"{path.name}: {target}"


def test_the_examples_are_what_their_commands_take(tmp_path: Path) -> None:
    from common.tune import TuneJob
    from coordinator.pretrain import PretrainJob
    from owner_client.train import ExpertJob

    places = {name: str(tmp_path) for name in ("public", "output")}
    pretrain = PretrainJob.model_validate({**load_options(EXAMPLES / "pretrain.toml"), **places})
    assert pretrain.model_config_for(eos_token_id=0).num_hidden_layers == pretrain.num_hidden_layers
    owned = {**places, "base": str(tmp_path), "data": str(tmp_path)}
    ExpertJob.model_validate({**load_options(EXAMPLES / "owner-training.toml"), **owned})
    settings = load_toml(EXAMPLES / "owner.toml", OwnerSettings, hint="")
    assert settings.consent is not None
    ExpertJob.model_validate({**settings.training, **owned})
    tune = {
        **load_options(EXAMPLES / "tune.toml"),
        "start": str(tmp_path),
        "output": str(tmp_path),
        "trained": "routers",
    }
    assert TuneJob.model_validate(tune).validation is not None
    names = {"pretrain.toml", "owner-training.toml", "owner.toml", "tune.toml"}
    assert {path.name for path in EXAMPLES.glob("*.toml")} == names


def test_the_first_five_minutes_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command of the README's three people, in the order in which they meet."""
    monkeypatch.chdir(tmp_path)
    _write_what_people_have(tmp_path)
    section = (ROOT / "README.md").read_text().split("## The first five minutes")[1].split("## Status")[0]
    admin, owner, auditor = (
        [line.strip() for line in re.findall(r"^    (concord [^\n#]+)", part, flags=re.M)]
        for part in section.split("\n**")[1:]
    )
    ports = free_ports(2)
    admin[0] += f" --port {ports[0]} --enrolment-port {ports[1]}"
    *_, release = admin
    serving = next(line for line in admin if " serve " in line)
    for line in admin[: admin.index(serving)]:
        _type(line)
    daemon = commands.start(*shlex.split(serving)[1:])
    try:
        commands.wait_for_step(daemon, "serving")
        for line in [*admin[admin.index(serving) + 1 : -1], *owner[:-1], release, owner[-1]]:
            _type(line)
        _type(release)
        shutil.copytree("coordinator/public", "public")
        shutil.copy("public/trusted_root.json", "trusted_root.json")
        told = [_type(line) for line in auditor]
        assert "consent.revoke" in told[1]
        assert "not in it: hospital" in told[2]
    finally:
        commands.stop(daemon, signal.SIGTERM)


def _type(line: str) -> str:
    done = commands.concord(*shlex.split(line)[1:])
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def _write_what_people_have(folder: Path) -> None:
    (folder / "deploy" / "examples").mkdir(parents=True)
    (folder / "deploy" / "examples" / "pretrain.toml").write_text(PRETRAIN)
    (folder / "deploy" / "examples" / "owner-training.toml").write_text(TRAINING)
    (folder / "terms.txt").write_text("The terms.\n")
    for name, word in (("public-text", "public"), ("own-text", "ward"), ("held-out/hospital", "nurse")):
        for split in ("train", "validation", "test"):
            (folder / name).mkdir(parents=True, exist_ok=True)
            texts = (f"{word} {split} {i} " + f"{word} of plain text number {i * 7} " * 12 for i in range(20))
            (folder / name / f"{split}.txt").write_text("\n\n".join(texts))
