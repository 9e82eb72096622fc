"""The audit finds whatever was done to what a coordinator published, and names the step.

One consortium with a release, an opt-out and a second release is made once; each test does something to a copy of its
public directory. Where the coordinator itself is the liar, it has its keys and signs what it likes.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Timer
from typing import Any

import pytest

from common.audit import audit
from common.audit_bundle import audit_bundle, export
from common.errors import MalformedError, NotFoundError
from common.files import write_atomic
from common.model import checkpoint
from common.trust.cosignature import Witness, cosign
from common.trust.evidence import Evidence
from common.trust.manifest import Manifest, digest_of
from common.trust.note import Checkpoint, Note, Proof, Signature, SigningKey, Verifier
from common.trust.root import TrustedRoot
from common.trust.tiles import bundle_path, format_bundle, tile_path
from tests.commands import concord
from tests.federation import FEDERATION
from tests.published import LAST, Published, publish


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Published:
    return publish(tmp_path_factory.mktemp("audit"))


@pytest.fixture
def published(original: Published, tmp_path: Path) -> Published:
    """A copy to do things to."""
    return original.copy(tmp_path / "public")


def _fails(published: Published, step: int, match: str = "", **arguments: Any) -> None:
    report = published.audit(**arguments)
    assert not report.holds
    assert report.findings[-1].step == step, report.findings[-1]
    assert report.findings[-1].found.startswith(f"step {step} (")
    assert match in report.findings[-1].found


def test_what_was_published_honestly_holds(published: Published) -> None:
    report = published.audit(last_seen=published.first_checkpoint)
    assert report.holds, report.findings[-1]
    assert [finding.step for finding in report.findings] == list(range(1, 9))
    assert report.releases == {"release-1": ["archive", "hospital"], "release-2": ["hospital"]}
    assert audit(published.path).holds


# Files.


def _step_of(path: Path, published: Published) -> int | None:
    """The step that must find a change in a published file; None for what no step needs."""
    size, top = len(published.entries()), path.parts[0]
    if path == Path("log/checkpoint"):
        return 1
    if top == "log":
        steps = {Path("log") / bundle_path(0, width=size): 3, Path("log") / tile_path(0, 0, width=size): 7}
        return steps.get(path)
    return 7 if top in ("base", "releases") else None


def _flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("where", [0, 0.5, 1])
def test_one_bit_anywhere_is_found(where: float, published: Published) -> None:
    found = 0
    for path in sorted(each.relative_to(published.path) for each in published.path.rglob("*") if each.is_file()):
        step, size = _step_of(path, published), (published.path / path).stat().st_size
        if step is not None:
            position = round(where * (size - 1))
            _flip(published.path / path, position)
            report = published.audit()
            assert report.findings[-1].step == step, path
            assert not report.findings[-1].holds, path
            _flip(published.path / path, position)
            found += 1
    assert found > 20
    assert published.audit().holds


def test_every_missing_file_is_found(published: Published) -> None:
    found = 0
    for path in sorted(each.relative_to(published.path) for each in published.path.rglob("*") if each.is_file()):
        step = _step_of(path, published)
        if step is not None and step != 1:
            aside = (published.path / path).rename(published.path / "aside")
            report = published.audit()
            assert report.findings[-1].step == step, path
            assert not report.findings[-1].holds, path
            aside.rename(published.path / path)
            found += 1
    assert found > 20
    assert published.audit().holds


def test_a_directory_without_a_checkpoint_is_no_public_directory(published: Published) -> None:
    (published.path / "log" / "checkpoint").unlink()
    with pytest.raises(NotFoundError, match="not a coordinator's public directory"):
        published.audit()


def test_a_root_that_was_changed_is_malformed(published: Published) -> None:
    _flip(published.path / "trusted_root.json", 5)
    with pytest.raises(MalformedError, match="trusted root"):
        audit(published.path)


@pytest.mark.parametrize("directory", ["base/0", "releases/release-1", LAST])
@pytest.mark.parametrize("name", ["evil.py", ".hidden", "model.safetensors.bak"])
def test_a_file_that_no_manifest_lists_is_found(directory: str, name: str, published: Published) -> None:
    (published.path / directory / name).write_bytes(b"x")
    _fails(published, 7, "which its manifest does not list")


@pytest.mark.parametrize("directory", ["base/1", "releases/release-9"])
def test_a_directory_that_the_log_does_not_name_is_found(directory: str, published: Published) -> None:
    shutil.copytree(published.path / "releases" / "release-1", published.path / directory)
    _fails(published, 7, "is published but the log does not name it")


@pytest.mark.parametrize(
    "place",
    ["extra", ".extra", "releases/.release-1", "releases/.release-9.partial", "base/.0", "objects/.old", "objects/sub"],
)
def test_what_is_published_by_any_other_name_is_found(place: str, published: Published) -> None:
    (published.path / place).mkdir()
    (published.path / place / "expert.safetensors").write_bytes(b"x")
    _fails(published, 7, place)


@pytest.mark.parametrize(
    "place", ["evil.bin", "releases/release-1.bin", "base/evil", "objects/.old", "objects/.a.partial"]
)
def test_a_file_by_any_other_name_is_found(place: str, published: Published) -> None:
    (published.path / place).write_bytes(b"x")
    _fails(published, 7, place)


@pytest.mark.parametrize(
    "place",
    [
        "log/x", "log/tile/withdrawn.safetensors", "log/tile/0/001", "log/tile/1/000.p/1", "log/tile/0/000.p/01",
        "log/tile/entries/000", "log/tile/entries/000.p/0", "log/tile/8/000.p/1", "log/.x.1-2.partial",
        "log/tile/0/000.p/1", "log/tile/entries/000.p/2", ".x.1-1.partial", "objects/.x.1-1.partial",
    ],
)  # fmt: skip
def test_a_file_that_the_log_does_not_account_for_is_found(place: str, published: Published) -> None:
    (published.path / place).parent.mkdir(parents=True, exist_ok=True)
    (published.path / place).write_bytes(b"x")
    _fails(published, 7, place)


def test_an_object_that_the_log_does_not_name_is_found(published: Published) -> None:
    stray = published.path / "objects" / digest_of(b"stray").removeprefix("sha256:")
    stray.write_bytes(b"stray")
    _fails(published, 7, f"{stray} is published but the log does not name it")


def test_another_published_root_than_the_one_given_is_found(published: Published) -> None:
    other = SigningKey.generate(published.root.log.name).verifier
    forged = TrustedRoot(published.root.federation, published.root.origin, other, published.root.coordinator)
    (published.path / "trusted_root.json").write_bytes(bytes(forged))
    _fails(published, 7, "is not the trusted root that you gave")


@pytest.mark.parametrize("place", ["releases/.release-2.partial", "base/.0.hidden"])
def test_what_is_made_or_taken_away_holds_nothing_else(place: str, published: Published) -> None:
    (published.path / place).mkdir()
    (published.path / place / "x").write_bytes(b"x")
    _fails(published, 7, f"{place}/x")


def test_an_audit_of_files_that_outrun_the_log_looks_again(published: Published, tmp_path: Path) -> None:
    """As beside a coordinator that has shown a release whose entry is being published."""
    later = published.copy(tmp_path / "later").checkpoint
    head = published.path / "log" / "checkpoint"
    head.write_bytes(published.first_checkpoint)
    timer = Timer(0.5, lambda: write_atomic(head, later))
    timer.start()
    report = published.audit()
    timer.join()
    assert report.holds, report.findings[-1]
    assert report.checkpoint == later


def test_what_is_being_written_just_now_is_no_fault(published: Published) -> None:
    for place in ("releases/.release-2.partial", "base/.0.hidden"):
        (published.path / place).mkdir()
    for place in (".trusted_root.json.12-34.partial", f"objects/.{'0' * 64}.12-34.partial"):
        (published.path / place).write_bytes(b"x")
    report = published.audit()
    assert report.holds, report.findings[-1]


@pytest.mark.parametrize("directory", ["base/0", "releases/release-1"])
def test_a_missing_directory_is_found(directory: str, published: Published) -> None:
    shutil.rmtree(published.path / directory)
    _fails(published, 7, "must be published")


def test_a_directory_in_place_of_a_file_is_found(published: Published) -> None:
    (published.path / LAST / "config.json").unlink()
    (published.path / LAST / "config.json").mkdir()
    _fails(published, 7, "is not a plain file")


def test_a_file_in_place_of_a_directory_is_found(published: Published) -> None:
    shutil.rmtree(published.path / LAST)
    (published.path / LAST).write_bytes(b"")
    _fails(published, 7)


def test_one_release_shown_as_another_is_found(published: Published) -> None:
    shutil.rmtree(published.path / LAST)
    shutil.copytree(published.path / "releases" / "release-1", published.path / LAST)
    _fails(published, 7, "the log names")


def _expert_object(published: Published) -> Path:
    """The file of the expert in the second release."""
    contribution = [note for note in published.entries() if note.startswith(b"concord/v1 expert.contribute")][-1]
    digest = json.loads(contribution.split(b"\n")[1])["files"]["expert.safetensors"]["digest"]
    return published.path / "objects" / digest.removeprefix("sha256:")


def test_a_contribution_that_was_changed_is_found(published: Published) -> None:
    _flip(_expert_object(published), -1)
    _fails(published, 7, "does not hold the bytes that its name is the SHA-256 of")


def test_a_contribution_that_is_missing_is_found(published: Published) -> None:
    _expert_object(published).unlink()
    _fails(published, 8, "must be published")


# The log.


def test_a_checkpoint_of_another_key_is_found(published: Published) -> None:
    published.write_log(published.entries(), key=SigningKey.generate(published.root.log.name))
    _fails(published, 1, "0 signatures by")


def test_a_checkpoint_of_another_log_is_found(published: Published) -> None:
    published.write_log(published.entries(), origin="other.example/log")
    _fails(published, 1, "checkpoint of 'other.example/log'")


def test_another_coordinator_s_directory_is_found(published: Published) -> None:
    other = SigningKey.generate(f"{FEDERATION}/log").verifier
    report = audit(
        published.path, root=TrustedRoot(FEDERATION, published.root.origin, other, published.root.coordinator)
    )
    assert report.findings[-1].step == 1


def test_a_log_that_shrank_is_found(published: Published) -> None:
    seen = published.checkpoint
    published.write_log(published.entries()[:-1])
    _fails(published, 2, "the log shrank from", last_seen=seen)


def test_an_older_checkpoint_does_not_name_what_is_published(published: Published) -> None:
    (published.path / "log" / "checkpoint").write_bytes(published.first_checkpoint)
    _fails(published, 7, "release-2 is published but the log does not name it")


@pytest.mark.parametrize("which", ["as large", "smaller"])
def test_a_fork_is_found(which: str, published: Published) -> None:
    entries = published.entries()
    forked = [*entries[:5], published.resign(entries[0], seq=1)]
    seen = forked if which == "smaller" else [*forked, *entries[6:]]
    note = published.sign_checkpoint(seen, key=published.log_key, origin=published.root.origin)
    _fails(published, 2, "root hash of", last_seen=note)


def test_a_last_checkpoint_that_is_none_is_the_auditors_own_trouble(published: Published) -> None:
    with pytest.raises(MalformedError, match="the checkpoint that you last saw is none of"):
        published.audit(last_seen=b"none")


@pytest.mark.parametrize("change", ["changed", "dropped", "reordered", "doubled"])
def test_entries_that_do_not_give_the_signed_root_are_found(change: str, published: Published) -> None:
    entries = published.entries()
    bundle = published.path / "log" / bundle_path(0, width=len(entries))
    bundle.write_bytes(format_bundle(_CHANGES[change](entries)))
    _fails(published, 3)


_CHANGES: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "changed": lambda entries: [entries[0], entries[1].replace(b"archive", b"archivf"), *entries[2:]],
    "dropped": lambda entries: [*entries[:3], *entries[4:]],
    "reordered": lambda entries: [*entries[:2], entries[3], entries[2], *entries[4:]],
    "doubled": lambda entries: [*entries, entries[-1]],
}


@pytest.mark.parametrize("change", _CHANGES)
def test_a_log_that_was_rewritten_and_signed_anew_is_found(change: str, published: Published) -> None:
    entries = published.entries()
    published.write_log(_CHANGES[change](entries))
    _fails(published, 5 if change in ("dropped", "doubled") else 4, "entry ")


def test_a_dropped_opt_out_is_found(published: Published) -> None:
    """The coordinator drops a revocation and signs its own later statements anew: the release is not from this log."""
    entries = [entry for entry in published.entries() if not entry.startswith(b"concord/v1 consent.revoke")]
    published.write_log(entries)
    _fails(published, 5, "release-2 was made from 9 entries; the log has 8")


def test_what_is_dated_before_a_witness_saw_the_log_without_it_is_found(published: Published) -> None:
    key, now = SigningKey.generate("witness.example/w"), datetime.now(UTC)
    first = Note.parse(published.first_checkpoint)
    seen = bytes(Note(first.text, (*first.signatures, cosign(first.text, key, at=now + timedelta(hours=12)))))
    tomorrow = {"root": published.root, "last_seen": seen, "now": now + timedelta(days=1)}
    assert audit(published.path, **tomorrow).holds
    found = audit(published.path, **tomorrow, witnesses=[Witness.of(key)]).findings[-1]
    assert (found.step, found.holds, "may not be dated back" in found.found) == (5, False, True)


def test_a_log_of_tomorrow_is_found(published: Published) -> None:
    found = audit(published.path, root=published.root, now=datetime.now(UTC) - timedelta(days=1)).findings[-1]
    assert (found.step, "which is yet to come" in found.found) == (4, True)


# A coordinator that signs what it likes.


def test_a_release_that_holds_a_revoked_expert_is_found(published: Published) -> None:
    entries = published.entries()
    first = next(entry for entry in entries if b'"release-1"' in entry)
    forged = published.resign(entries[-1], experts=json.loads(first.split(b"\n")[1])["experts"], num_experts_per_tok=2)
    published.write_log([*entries[:-1], forged])
    _fails(published, 5, "was revoked by entry")


def _change_tensor(published: Published, name: str) -> None:
    entry = checkpoint.read_checkpoint(published.path / LAST)[name]
    _flip(entry.location.path, entry.location.offset + entry.location.size - 1)
    published.relist()


@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens.weight",
        "lm_head.weight",
        "model.norm.weight",
        "model.layers.1.self_attn.q_norm.weight",
        "model.layers.0.mlp.experts.0.up_proj.weight",
        "model.layers.1.mlp.experts.1.down_proj.weight",
        "model.layers.0.mlp.gate.weight",
    ],
)
def test_a_tensor_that_is_not_what_its_inputs_make_it_is_found(name: str, published: Published) -> None:
    _change_tensor(published, name)
    _fails(published, 8, f"tensor {name} is not what its inputs make it")


def test_experts_swapped_for_the_public_one_are_found(published: Published) -> None:
    shard = published.path / LAST / "model-expert-0001.safetensors"
    shared = checkpoint.read_checkpoint(published.path / LAST)
    held = checkpoint.read_header(shard)
    public = {name: shared[name.replace("experts.1.", "experts.0.")] for name in held}
    placed = {name: checkpoint.Placed(entry.spec, (entry.location,)) for name, entry in public.items()}
    checkpoint.write(shard, placed)
    published.relist()
    _fails(published, 8, "experts.1.")


def _config(published: Published, **changes: Any) -> None:
    path = published.path / LAST / "config.json"
    fields = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")


def _extra_tensor(published: Published) -> None:
    shard = published.path / LAST / "model-router.safetensors"
    held = checkpoint.read_header(shard)
    placed = {name: checkpoint.Placed(entry.spec, (entry.location,)) for name, entry in held.items()}
    extra = {**placed, "model.layers.9.mlp.gate.weight": next(iter(placed.values()))}
    checkpoint.write(shard, extra)
    index = json.loads((published.path / LAST / checkpoint.INDEX_NAME).read_text())
    index["weight_map"]["model.layers.9.mlp.gate.weight"] = shard.name
    (published.path / LAST / checkpoint.INDEX_NAME).write_text(json.dumps(index))


LIES: dict[str, tuple[Callable[[Published], object], str]] = {
    "another base of the rotary positions": (
        lambda published: _config(published, rope_parameters={"rope_theta": 1000.0, "rope_type": "default"}),
        "config.json is not what base and statement make it",
    ),
    "another number of active experts": (
        lambda published: _config(published, num_experts_per_tok=1),
        "config.json is not what base and statement make it",
    ),
    "code": (lambda published: (published.path / LAST / "modeling_x.py").write_text("1"), "is no part of a release"),
    "a tokenizer where the base has none": (
        lambda published: (published.path / LAST / "tokenizer.json").write_text("{}"),
        "is no part of a release",
    ),
    "weights that the index does not name": (
        lambda published: shutil.copy(
            published.path / LAST / "model-router.safetensors", published.path / LAST / "model.safetensors"
        ),
        "is no part of a release",
    ),
    "a tensor more": (_extra_tensor, "tensor model.layers.9.mlp.gate.weight is in the release or in its inputs"),
    "a shard that is not there": (
        lambda published: (published.path / LAST / "model-router.safetensors").unlink(),
        "is not there",
    ),
    "an index that is none": (
        lambda published: (published.path / LAST / checkpoint.INDEX_NAME).write_text('{"weight_map": {"x": [1]}}'),
        "names a shard",
    ),
    "no config": (lambda published: (published.path / LAST / "config.json").unlink(), "config.json"),
    "no generation config": (
        lambda published: (published.path / LAST / "generation_config.json").unlink(),
        "generation_config.json",
    ),
    "another generation config": (
        lambda published: (published.path / LAST / "generation_config.json").write_text("{}"),
        "is not the base's",
    ),
}


@pytest.mark.parametrize("case", LIES)
def test_a_signed_release_that_is_more_than_its_inputs_is_found(case: str, published: Published) -> None:
    lie, match = LIES[case]
    lie(published)
    published.relist()
    _fails(published, 8, match)


def test_a_statement_that_says_another_number_of_active_experts_is_found(published: Published) -> None:
    entries = published.entries()
    for number, step in ((1, 8), (9, 5)):
        published.write_log([*entries[:-1], published.resign(entries[-1], num_experts_per_tok=number)])
        _fails(published, step, "release-2")


def test_an_evaluation_beside_the_weights_is_part_of_a_release(published: Published) -> None:
    (published.path / LAST / "evaluation.json").write_text("{}")
    published.relist()
    assert published.audit().holds


def test_a_configuration_that_the_log_does_not_name_is_found(published: Published) -> None:
    """The base's manifest and every file are as logged; the entry's other digest says something else."""
    entries = published.entries()
    alone = [published.resign(entries[0], config_digest=f"sha256:{'0' * 64}")]
    published.write_log(alone)
    shutil.rmtree(published.path / "releases")
    _fails(published, 7, f"the log names sha256:{'0' * 64}")
    bundle = published.path.with_name("b.zip")
    export(published.path, bundle)
    found = audit_bundle(bundle, root=published.root).findings[-1]
    assert (found.step, "base/0 has configuration" in found.found) == (7, True)


def test_a_base_that_is_not_the_logged_one_is_found(published: Published) -> None:
    weights = published.path / "base" / "0" / "model.safetensors"
    _flip(weights, -1)
    (weights.parent / "manifest.json").write_bytes(bytes(Manifest.of_directory(weights.parent)))
    _fails(published, 7, "the log names")


# The command.

_BLOCKED = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "grpc", "google", "sqlalchemy", "numpy", "safetensors", "transformers"}:
            raise ImportError(f"an auditor has no {name}")

sys.meta_path.insert(0, Blocked())
import concord
concord.main()
"""


def _verify(published: Published, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", _BLOCKED, "audit", "verify", str(published.path), "--json", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_an_auditor_needs_neither_torch_nor_grpc_nor_a_database(published: Published) -> None:
    done = _verify(published)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["audit"] is True
    assert result["steps"] == {str(step): True for step in range(1, 9)}


def test_the_command_fails_where_a_step_fails(published: Published) -> None:
    _change_tensor(published, "model.norm.weight")
    done = _verify(published)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["steps"]["8"] is False


def test_the_command_keeps_the_last_checkpoint_and_refuses_an_older_log(published: Published, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    newest = published.checkpoint
    assert _verify(published, "--checkpoint", str(seen)).returncode == 0
    assert seen.read_bytes() == newest
    published.write_log(published.entries()[:-1])
    failed = _verify(published, "--checkpoint", str(seen))
    assert failed.returncode == 1
    assert seen.read_bytes() == newest
    kept = Path(json.loads(failed.stdout.splitlines()[-1])["evidence"])
    assert kept.parent == tmp_path
    assert Evidence.parse(kept.read_bytes()).checkpoints == (newest, published.checkpoint)


def test_what_an_audit_keeps_of_a_fork_convinces_a_third_person(published: Published, tmp_path: Path) -> None:
    root, seen, entries = tmp_path / "root.json", tmp_path / "seen", published.entries()
    root.write_bytes(bytes(published.root))
    forked = [*entries[:5], published.resign(entries[0], seq=1), *entries[6:]]
    seen.write_bytes(published.sign_checkpoint(forked, key=published.log_key, origin=published.root.origin))
    assert _verify(published, "--checkpoint", str(seen), "--root", str(root)).returncode == 1
    (kept,) = tmp_path.glob("seen.evidence-*.json")
    judged = concord("audit", "evidence", kept, "--root", root)
    assert judged.returncode == 0, judged.stderr
    assert "signed two different logs" in " ".join(judged.stdout.split())


def test_a_copy_that_is_damaged_accuses_nobody(published: Published, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    _flip(published.path / "log" / bundle_path(0, width=len(published.entries())), 40)
    for note in (published.checkpoint, published.first_checkpoint):
        seen.write_bytes(note)
        failed = _verify(published, "--checkpoint", str(seen))
        assert json.loads(failed.stdout.splitlines()[-1])["steps"]["3"] is False
    assert list(tmp_path.glob("seen.evidence-*")) == []


def test_digests_of_objects_are_their_names(published: Published) -> None:
    for path in (published.path / "objects").iterdir():
        assert digest_of(path.read_bytes()) == f"sha256:{path.name}"


def test_a_tensor_that_only_claims_another_shape_is_found(published: Published) -> None:
    shards = sorted((published.path / LAST).glob("*.safetensors"))
    shard = next(path for path in shards if b'"shape":[24,16]' in path.read_bytes())
    shard.write_bytes(shard.read_bytes().replace(b'"shape":[24,16]', b'"shape":[16,24]', 1))
    published.relist()
    _fails(published, 8, "is not what its inputs make it")


def test_an_object_nobody_names_must_still_be_what_it_is_called(published: Published) -> None:
    (published.path / "objects" / ("0" * 64)).write_bytes(b"junk")
    _fails(published, 7, "does not hold the bytes")


def test_an_audit_goes_on_from_the_last_and_still_sees_what_changed(published: Published, tmp_path: Path) -> None:
    """Signatures that held are not checked again, but only of the same entries, under the same root."""
    root, seen = tmp_path / "root.json", tmp_path / "seen"
    root.write_bytes(bytes(published.root))
    verify = ("audit", "verify", published.path, "--root", root, "--checkpoint", seen)
    first, again = concord(*verify), concord(*verify)
    assert (first.returncode, again.returncode) == (0, 0), first.stderr + again.stderr
    size = len(published.entries())
    assert "audited before" not in first.stdout
    assert f"{size} of them audited before" in " ".join(again.stdout.split())
    (tmp_path / "seen.audited").write_text("something else\n")
    assert "audited before" not in concord(*verify).stdout
    entries = published.entries()
    note = Note.parse(entries[1])
    entries[1] = bytes(Note(note.text, (Signature(note.signatures[0].name, note.signatures[0].key_id, bytes(64)),
                                        *note.signatures[1:])))  # fmt: skip
    published.write_log(entries)
    assert "step 2" in concord(*verify).stderr + concord(*verify).stdout


def test_a_manifest_that_does_not_parse_is_named(published: Published) -> None:
    (published.path / LAST / "manifest.json").write_bytes(b"{} ")
    _fails(published, 7, f"{LAST}/manifest.json: ")


@pytest.mark.parametrize(
    ("parse", "odd"),
    [(Note.parse, b"hello\n"), (Checkpoint.parse, "one\n"), (Proof.parse, b"x"), (Verifier.parse, "junk")],
)
def test_what_does_not_parse_is_said_in_words(parse: Callable[[Any], object], odd: str | bytes) -> None:
    with pytest.raises(MalformedError, match=r"it (is not|does not)"):
        parse(odd)
