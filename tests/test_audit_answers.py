"""What the audit answers: who is in a release and why others are not, what an owner said, who was taken out."""

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from common.audit import audit
from common.audit_answers import about_owner, about_release, removal
from common.errors import NotFoundError, VerificationError
from common.model import checkpoint
from coordinator.withdrawal import carry_out
from owner_client import participation
from tests.commands import concord
from tests.federation import Federation, running_federation
from tests.published import Published, publish


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Published:
    return publish(tmp_path_factory.mktemp("answers"))


def test_members_are_named_with_the_consent_they_are_in_by(original: Published) -> None:
    answer = about_release(original.audit(), "release-1")
    assert [(member.slot, member.owner) for member in answer.members] == [(1, "archive"), (2, "hospital")]
    assert answer.others == {}
    for member in answer.members:
        assert member.grant.party == member.owner
        held = original.path / "objects" / member.expert_digest.removeprefix("sha256:")
        assert held.exists()


def test_who_opted_out_is_named_with_the_entry_that_says_so(original: Published) -> None:
    report = original.audit()
    answer = about_release(report, "release-2")
    assert [member.owner for member in answer.members] == ["hospital"]
    revoked = next(i for i, statement in enumerate(report.statements) if statement.type == "consent.revoke")
    assert list(answer.others) == ["archive"]
    assert f"was revoked by entry {revoked}" in answer.others["archive"]


REASONS: dict[str, tuple[Callable[[Federation], object], str]] = {
    "archive": (lambda federation: federation.enrol("archive"), "never consented"),
    "museum": (lambda federation: federation.enrol("museum").consent(), "contributed no expert under its consent"),
}


@pytest.mark.parametrize("name", REASONS)
def test_every_owner_outside_is_told_why(tmp_path: Path, name: str) -> None:
    act, reason = REASONS[name]
    with running_federation(tmp_path) as federation:
        federation.publish_base()
        act(federation)
        federation.release()
        others = about_release(audit(federation.public), "release-1").others
    assert list(others) == [name]
    assert reason in others[name]


def test_a_release_is_told_with_what_happened_since(tmp_path: Path) -> None:
    with running_federation(tmp_path) as federation:
        federation.publish_base()
        for seed, name in enumerate(("archive", "hospital")):
            federation.enrol(name).take_part(seed)
        federation.release()
        standing = about_release(audit(federation.public), "release-1")
        with federation.owners["archive"].member() as member:
            participation.opt_out(member, reason=None, withdraw_within=timedelta(0))
        carry_out(federation.coordinator, in_background=False)
        federation.release()
        public, log = federation.public, audit(federation.public)
    assert standing.withdrawn is None
    assert not any(member.revoked for member in standing.members)
    answer = about_release(log, "release-1")
    indices = {statement.type: index for index, statement in enumerate(log.statements)}
    assert answer.withdrawn is not None
    assert answer.withdrawn.index == indices["release.withdraw"]
    assert [member.revoked and member.revoked.index for member in answer.members] == [indices["consent.revoke"], None]
    told = concord("audit", "release", "release-1", public)
    assert f"was withdrawn by entry {indices['release.withdraw']}" in told.stdout + told.stderr
    assert f"(entry {indices['consent.revoke']}): archive withdraws consent" in told.stdout + told.stderr
    result = json.loads(concord("audit", "release", "release-1", public, "--json").stdout.splitlines()[-1])
    assert result["withdrawn_index"] == indices["release.withdraw"]
    assert [expert["revoked_index"] for expert in result["experts"]] == [indices["consent.revoke"], None]
    assert result["not_after"] == answer.statement.not_after
    gone = concord("audit", "removal", "release-1", "release-2", public)
    assert gone.returncode == 1
    assert f"release-1 was withdrawn by entry {indices['release.withdraw']}; its files are gone" in gone.stderr


def test_an_owners_statements_come_in_order(original: Published) -> None:
    events, slots = about_owner(original.audit(), "archive")
    kinds = [event.statement.type for event in events]
    assert kinds == ["owner.enrol", "consent.grant", "expert.contribute", "consent.revoke"]
    assert [event.index for event in events] == sorted(event.index for event in events)
    assert slots == {"release-1": 1}


def test_who_is_not_there_is_said(original: Published) -> None:
    report = original.audit()
    with pytest.raises(NotFoundError, match="joined have: archive, hospital"):
        about_owner(report, "nobody")
    with pytest.raises(NotFoundError, match="there are: release-1, release-2"):
        about_release(report, "release-9")


def test_a_removal_is_proved_tensor_by_tensor(original: Published) -> None:
    found = removal(original.path, original.audit(), "release-1", "release-2")
    assert list(found.left) == ["archive"]
    assert found.kept == ("hospital",)
    assert found.num_tensors == len(checkpoint.read_checkpoint(original.path / "releases" / "release-2"))
    gone = found.left["archive"].removeprefix("sha256:")
    manifest = (original.path / "releases" / "release-2" / "manifest.json").read_text()
    assert gone not in manifest


def test_what_is_no_removal_is_refused(original: Published) -> None:
    report = original.audit()
    for before, after, message in (
        ("release-2", "release-1", "holds archive, who is not in release-2"),
        ("release-1", "release-1", "nobody who is in release-1 is missing"),
    ):
        with pytest.raises(VerificationError, match=message):
            removal(original.path, report, before, after)


@pytest.mark.parametrize("part", ["experts.1.up_proj", "self_attn.q_proj", "mlp.gate"])
def test_any_other_difference_is_named(original: Published, tmp_path: Path, part: str) -> None:
    """By the comparison itself: an audit would have refused these files before."""
    report, published = original.audit(), original.copy(tmp_path / "public")
    entry = next(
        (n, e) for n, e in checkpoint.read_checkpoint(published.path / "releases" / "release-2").items() if part in n
    )
    name, shard = entry[0], entry[1].location.path
    tensors = load_file(shard)
    tensors[name].view(-1)[-1] += 1e-3
    shard.unlink()  # it may be linked from elsewhere
    save_file(tensors, shard, metadata={"format": "pt"})
    with pytest.raises(VerificationError, match=name.replace(".", r"\.")):
        removal(published.path, report, "release-1", "release-2")


def test_commands_answer_from_a_log_that_holds_alone(original: Published, tmp_path: Path) -> None:
    published = original.copy(tmp_path / "public")
    for arguments, words in (
        (("release", "release-2"), ("slot 1: hospital consents", "not in it: archive")),
        (("owner", "archive"), ("withdraws consent", "in release-1, slot 1")),
        (("removal", "release-1", "release-2"), ("gone: archive", "as before: hospital")),
    ):
        said = concord("audit", *arguments, published.path)
        assert said.returncode == 0, said.stderr
        text = " ".join((said.stdout + said.stderr).split())
        assert all(word in text for word in words), text
        assert json.loads(concord("audit", *arguments, published.path, "--json").stdout.splitlines()[-1])
    published.write_log(published.entries()[:-1], key=published.own_key)
    refused = concord("audit", "release", "release-1", published.path)
    assert refused.returncode == 1
    assert "step 1" in refused.stderr


@pytest.mark.parametrize(
    "command",
    [("log",), ("show",), ("release", "release-1"), ("owner", "archive"), ("removal", "release-1", "release-2"),
     ("rebuild", "release-1"), ("verify",)],
)  # fmt: skip
def test_a_root_that_is_only_published_is_told_apart_from_one_that_was_given(
    original: Published, tmp_path: Path, command: tuple[str, ...]
) -> None:
    (tmp_path / "root.json").write_bytes(bytes(original.root))
    for given, is_said in (((), True), (("--root", tmp_path / "root.json"), False)):
        told = concord("audit", *command, original.path, *given)
        assert told.returncode == 0, told.stderr
        assert ("give --root" in " ".join((told.stdout + told.stderr).split())) is is_said


def test_an_entry_is_shown_as_it_was_signed(original: Published) -> None:
    shown = concord("audit", "show", "1", str(original.path), "--json")
    assert shown.returncode == 0, shown.stderr
    result = json.loads(shown.stdout.splitlines()[-1])
    note = original.entries()[1].decode()
    assert result["digest"] == list(original.audit().statements)[1].digest
    for name_and_id in result["signed_by"]:
        assert name_and_id.rpartition("+")[0] in note
    text = concord("audit", "show", "1", str(original.path)).stdout
    assert all(line in text for line in note.split("\n\n")[0].splitlines()[:1])
    odd = concord("audit", "show", "-1x", str(original.path))
    assert odd.returncode == 2
    odd = concord("audit", "show", "one", str(original.path))
    assert (odd.returncode, "'one' is no number of an entry" in odd.stderr) == (1, True)
    missing = concord("audit", "show", "999", str(original.path))
    assert missing.returncode == 1
    assert "0 to" in missing.stderr


def test_showing_nothing_asks_for_the_published_files() -> None:
    refused = concord("audit", "show")
    assert refused.returncode == 2
    assert "Missing argument 'PUBLIC'" in refused.stderr
