"""What may leave an owner's building: exactly an expert of its base, written to the ledger first, and nothing else."""

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from common.errors import EgressDeniedError, MalformedError, UnavailableError
from common.model.expert import EXPERT_NAME, expected_tensors
from common.trust.manifest import digest_of
from owner_client import egress, participation
from owner_client.egress import EgressPlan, Message, Outbound
from tests.federation import SIZES, Federation, Owner, expert_weights, write_base, write_expert

Tensors = dict[str, torch.Tensor]
UP = "model.layers.0.mlp.experts.1.up_proj.weight"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base at home."""
    return write_base(tmp_path_factory.mktemp("egress") / "base")


@pytest.fixture
def expert(tmp_path: Path) -> Path:
    """An expert of it, as training leaves it."""
    return write_expert(tmp_path / "expert", expert_weights(1))


def test_a_plan_names_every_tensor_that_would_leave(base: Path, expert: Path) -> None:
    planned = egress.plan(expert, base=base)
    data = (expert / EXPERT_NAME).read_bytes()
    assert (planned.entry.digest, planned.entry.size) == (digest_of(data), len(data))
    assert planned.tensors == expected_tensors(SIZES)
    assert len(egress.spec_lines(planned)) == len(planned.tensors)


def _saved(tensors: Tensors, **metadata: str) -> bytes:
    return bytes(save(tensors, metadata={"format": "pt", **metadata}))


def _spaced(tensors: Tensors) -> bytes:
    """The same header with white space between its words, which could spell anything."""
    data = _saved(tensors)
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].replace(b",", b", ").replace(b":", b":\t")
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


REFUSED: dict[str, tuple[Callable[[Tensors], bytes], str]] = {
    "an extra tensor": (lambda tensors: _saved({**tensors, "text": torch.zeros(9)}), "text must not be in"),
    "a shared parameter": (lambda tensors: _saved({**tensors, "lm_head.weight": torch.zeros(9)}), "lm_head.weight"),
    "a bias of the router": (
        lambda tensors: _saved({**tensors, "model.layers.0.mlp.gate.biases.1": torch.zeros(16)}),
        "biases.1 must not be in",
    ),
    "a tensor too few": (lambda tensors: _saved({name: tensors[name] for name in tensors if name != UP}), "missing"),
    "another shape": (lambda tensors: _saved({**tensors, UP: torch.zeros(24, 17)}), "this base needs"),
    "another dtype": (lambda tensors: _saved({**tensors, UP: tensors[UP].half()}), "this base needs"),
    "integers": (lambda tensors: _saved({**tensors, UP: tensors[UP].int()}), "dtype 'I32'; allowed"),
    "NaN": (lambda tensors: _saved({**tensors, UP: tensors[UP] * float("nan")}), "NaN or infinity"),
    "infinity": (lambda tensors: _saved({**tensors, UP: tensors[UP] + float("inf")}), "NaN or infinity"),
    "metadata": (lambda tensors: _saved(tensors, note="patient 17"), "carries metadata of its own"),
    "words in white space": (_spaced, "not compact JSON"),
    "trailing bytes": (lambda tensors: _saved(tensors) + b"patient 17", "where its header says"),
    "a pickle": (pickle.dumps, "not a safetensors file"),
    "nothing": (lambda tensors: b"", "not a safetensors file"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_anything_but_an_expert_of_this_base_is_refused(case: str, base: Path, expert: Path) -> None:
    make, match = REFUSED[case]
    (expert / EXPERT_NAME).write_bytes(make(expert_weights(1)))
    with pytest.raises(EgressDeniedError, match=f"must not leave: .*{match}"):
        egress.plan(expert, base=base)


def test_a_link_is_refused_wherever_it_leads(base: Path, expert: Path) -> None:
    path = expert / EXPERT_NAME
    path.rename(expert / "elsewhere")
    path.symlink_to(expert / "elsewhere")
    with pytest.raises(EgressDeniedError, match="is not there; train first"):
        egress.plan(expert, base=base)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["a folder", "a pipe"])
def test_what_is_no_file_is_refused(make: Callable[[Path], None], base: Path, expert: Path) -> None:
    (expert / EXPERT_NAME).unlink()
    make(expert / EXPERT_NAME)
    with pytest.raises(EgressDeniedError, match="is not there; train first"):
        egress.plan(expert, base=base)


def test_only_egress_makes_what_may_leave(base: Path, expert: Path) -> None:
    planned = egress.plan(expert, base=base)
    with pytest.raises(EgressDeniedError, match=r"only egress\.plan\(\)"):
        EgressPlan(planned.path, planned.entry, planned.tensors, planned.running, object())
    with pytest.raises(EgressDeniedError, match=r"only egress\.release\(\)"):
        Outbound(None, None, planned, expert, "", object())  # type: ignore[arg-type]
    with pytest.raises(EgressDeniedError, match=r"only egress\.message\(\)"):
        Message(b"patient 17", object())


def test_what_may_leave_cannot_be_turned_into_something_else(base: Path, expert: Path) -> None:
    planned = egress.plan(expert, base=base)
    with pytest.raises((TypeError, ValueError)):
        replace(planned, path=Path("/etc/hostname"))
    with pytest.raises(AttributeError):
        planned.path = Path("/etc/hostname")  # type: ignore[misc]


@pytest.fixture
def owner(consortium: Federation) -> Owner:
    """An owner with a consent and an expert at home."""
    owner = consortium.enrol("archive")
    owner.consent()
    owner.put_expert(expert_weights(1))
    return owner


def _at_home(owner: Owner) -> dict[Path, bytes]:
    """Every file but the ledger, which counts each call."""
    path = owner.home.path
    files = (each for each in path.rglob("*") if each.is_file() and not each.name.startswith("ledger."))
    return {each.relative_to(path): each.read_bytes() for each in files}


def test_a_dry_run_sends_and_records_nothing(consortium: Federation, owner: Owner) -> None:
    before, size = _at_home(owner), consortium.coordinator.registry.head().size
    left = egress.read_ledger(owner.home.ledger)
    command = [sys.executable, "-m", "concord", "owner", "submit", "--dry-run", "--home", str(owner.home.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert "nothing was sent" in done.stdout
    assert UP in done.stdout
    assert _at_home(owner) == before
    assert egress.read_ledger(owner.home.ledger) == left
    assert consortium.coordinator.registry.head().size == size
    assert list(consortium.coordinator.home.incoming.iterdir()) == []


def test_the_ledger_is_written_before_anything_leaves(consortium: Federation, owner: Owner) -> None:
    expert = next(owner.home.experts.glob("*/expert.safetensors"))
    with owner.member() as member:
        base = participation.fetch_base(member, on_bytes=lambda *_: None)
        consortium.stop()
        with pytest.raises(UnavailableError):
            participation.submit(member, base=base, on_bytes=lambda *_: None)
    lines = egress.read_ledger(owner.home.ledger)
    assert [line["name"] for line in lines[-2:]] == ["expert.safetensors", "expert.contribute"]
    assert lines[-2]["digest"] == digest_of(expert.read_bytes())


def test_the_ledger_names_a_statement_that_was_refused_too(owner: Owner) -> None:
    owner.opt_out()
    with owner.member() as member, pytest.raises(Exception, match="no consent"):
        participation.submit(member, base=owner.base(), on_bytes=lambda *_: None)
    names = [line["name"] for line in egress.read_ledger(owner.home.ledger)]
    assert names[-1] == "consent.revoke"
    assert "expert.safetensors" not in names


def test_a_file_changed_after_the_check_does_not_leave(consortium: Federation, owner: Owner) -> None:
    with owner.member() as member:
        base = owner.base()
        planned = participation.plan_submission(member, base=base)
        grant = participation.grant_in_force(member.chain)
        assert grant is not None
        with member.chain.turn():
            outbound = egress.release(
                planned,
                grant_id=grant.record_id,
                tokens_seen=1,
                config_digest=planned.entry.digest,
                chain=member.chain,
                reviews=member.reviews,
                ledger=owner.home.ledger,
                to="test",
            )
        planned.path.write_bytes(_saved(expert_weights(2)))
        with pytest.raises(EgressDeniedError, match="changed after it was checked; nothing more of it is sent"):
            member.client.submit(outbound, on_bytes=lambda *_: None)
    assert list(consortium.coordinator.home.incoming.glob("*/*.part")) == []


def test_the_ledger_has_a_line_for_each_thing_however_often_it_is_sent(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"
    for name in ("a", "b", "a"):
        egress.message(ledger, "statement", name=name, data=name.encode(), to="test")
    assert [line["name"] for line in egress.read_ledger(ledger)] == ["a", "b"]
    assert ledger.stat().st_mode & 0o777 == 0o600


def test_a_line_cut_off_by_a_crash_is_written_anew(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"
    egress.message(ledger, "statement", name="a", data=b"a", to="test")
    whole = ledger.read_bytes()
    ledger.write_bytes(whole + b'{"at": "2026-')
    assert [line["name"] for line in egress.read_ledger(ledger)] == ["a"]
    egress.message(ledger, "statement", name="b", data=b"b", to="test")
    assert [line["name"] for line in egress.read_ledger(ledger)] == ["a", "b"]


def test_a_base_without_a_config_lets_nothing_leave(expert: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(MalformedError, match=r"config\.json"):
        egress.plan(expert, base=tmp_path)
