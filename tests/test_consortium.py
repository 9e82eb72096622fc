"""The whole life of a consortium over real connections: join, consent, submit, release, opt out, audit."""

import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from common.audit import audit
from common.errors import ConflictError, ConsentError, NotFoundError
from common.model import checkpoint
from common.trust.describe import describe
from common.trust.statements import ConsentRevoke, ReleaseScope, format_time
from coordinator.home import open_home
from coordinator.releases import make_release
from owner_client import egress, participation
from owner_client.config import ConsentSettings
from tests.commands import concord
from tests.federation import Federation, expert_weights, running_federation


def test_two_owners_make_a_release_and_one_leaves(consortium: Federation) -> None:
    for seed, name in enumerate(("archive", "hospital"), start=1):
        consortium.enrol(name).take_part(seed)
    first = consortium.release()
    assert dict(first.owners) == {1: "archive", 2: "hospital"}
    consortium.owners["archive"].opt_out()
    second = consortium.release()
    assert dict(second.owners) == {1: "hospital"}
    report = audit(consortium.public, root=consortium.coordinator.registry.root)
    assert report.holds, report.findings[-1]
    assert report.releases == {"release-1": ["archive", "hospital"], "release-2": ["hospital"]}


def test_opting_out_leaves_every_other_byte_as_it_was(consortium: Federation) -> None:
    for seed, name in enumerate(("archive", "hospital"), start=1):
        consortium.enrol(name).take_part(seed)
    first = checkpoint.read_checkpoint(consortium.release().directory)
    consortium.owners["archive"].opt_out()
    second = checkpoint.read_checkpoint(consortium.release().directory)
    for name, entry in second.items():
        before = name.replace("experts.1.", "experts.2.")
        data = checkpoint.tensor_bytes(first[before])
        if name.endswith("mlp.gate.weight"):
            width = len(data) // 3
            data = data[:width] + data[2 * width :]
        assert checkpoint.tensor_bytes(entry) == data, name


def test_a_release_without_an_owner_is_the_one_that_never_had_it(tmp_path: Path) -> None:
    digests = []
    for names in (("archive", "hospital"), ("hospital",)):
        with running_federation(tmp_path / str(len(names))) as federation:
            federation.publish_base()
            for name in names:
                federation.enrol(name).take_part(seed=len(name))
            if "archive" in names:
                federation.owners["archive"].opt_out()
            digests.append(federation.release().statement.manifest_digest)
    assert digests[0] == digests[1]


def test_a_release_loads_with_transformers(consortium: Federation) -> None:
    consortium.enrol("archive").take_part(1)
    model = AutoModelForCausalLM.from_pretrained(consortium.release().directory)
    assert model.config.num_experts == 2
    expected = expert_weights(1)["model.layers.1.mlp.experts.1.up_proj.weight"]
    assert torch.equal(model.state_dict()["model.layers.1.mlp.experts.gate_up_proj"][1][24:], expected)
    assert model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=4, do_sample=False).shape == (1, 7)


def test_everybody_may_read_what_is_published(consortium: Federation) -> None:
    """A file server runs as somebody else as a rule; the rest of the home stays its own."""
    consortium.enrol("archive").take_part(1)
    consortium.release()
    files = [path for path in consortium.public.rglob("*") if path.is_file()]
    assert [str(path) for path in files if path.stat().st_mode & 0o777 != 0o644] == []


def test_a_release_over_an_empty_registry_is_the_public_model_alone(consortium: Federation) -> None:
    release = consortium.release()
    assert not release.owners
    theirs = AutoModelForCausalLM.from_pretrained(release.directory)
    public = AutoModelForCausalLM.from_pretrained(consortium.public / "base" / "0")
    input_ids = torch.arange(20)[None]
    torch.testing.assert_close(theirs(input_ids).logits, public(input_ids).logits, atol=1e-4, rtol=0)
    assert audit(consortium.public).holds


def test_a_release_needs_a_base(federation: Federation) -> None:
    with pytest.raises(NotFoundError, match="publish one with"):
        federation.release()


def test_every_step_may_be_repeated(consortium: Federation) -> None:
    owner = consortium.enrol("archive")
    assert owner.consent() == owner.consent()
    owner.put_expert(expert_weights(1))
    assert owner.submit() == owner.submit()
    size = consortium.coordinator.registry.head().size
    owner.submit()
    assert consortium.coordinator.registry.head().size == size


def test_the_ledger_names_all_that_left(consortium: Federation) -> None:
    owner = consortium.enrol("archive")
    owner.take_part(1)
    owner.opt_out()
    names = [line["name"] for line in egress.read_ledger(owner.home.ledger)]
    assert names == [
        "certificate request", "owner.enrol", "consent.grant", "expert.safetensors", "expert.contribute",
        "consent.revoke",
    ]  # fmt: skip


def test_a_revoked_owner_cannot_submit(consortium: Federation) -> None:
    owner = consortium.enrol("archive")
    owner.consent()
    owner.put_expert(expert_weights(1))
    owner.opt_out()
    with pytest.raises(ConsentError, match="no consent is in force"):
        owner.submit()


def test_the_registry_refuses_an_expert_under_a_revoked_consent(consortium: Federation) -> None:
    owner = consortium.enrol("archive")
    grant = owner.consent()
    owner.put_expert(expert_weights(1))
    owner.opt_out()
    with owner.member() as member:
        base = owner.base()
        expert = member.home.experts / base.short
        planned = egress.plan(expert, base=base.directory)
        outbound = egress.release(
            planned, grant_id=grant.record_id, tokens_seen=1, config_digest=planned.entry.digest,
            chain=member.chain, reviews=member.reviews, ledger=member.home.ledger, to="test",
        )  # fmt: skip
        with pytest.raises(ConsentError, match="was revoked by entry"):
            member.client.submit(outbound, on_bytes=lambda *_: None)


def test_an_owner_may_come_back(consortium: Federation) -> None:
    owner = consortium.enrol("archive")
    owner.take_part(1)
    owner.opt_out()
    assert not consortium.release().owners
    owner.consent()
    owner.submit()
    assert dict(consortium.release().owners) == {1: "archive"}
    assert audit(consortium.public).holds


def test_opting_out_twice_says_so(consortium: Federation) -> None:
    owner = consortium.enrol("archive")
    owner.consent()
    owner.opt_out()
    with pytest.raises(ConsentError, match="no consent to revoke"):
        owner.opt_out()


def test_an_unfinished_upload_does_not_keep_an_owner_from_leaving(consortium: Federation) -> None:
    owner = consortium.enrol("archive")
    grant = owner.consent()
    owner.put_expert(expert_weights(1))
    with owner.member() as member:
        base = owner.base()
        planned = egress.plan(member.home.experts / base.short, base=base.directory)
        egress.release(
            planned, grant_id=grant.record_id, tokens_seen=1, config_digest=planned.entry.digest,
            chain=member.chain, reviews=member.reviews, ledger=member.home.ledger, to="test",
        )  # fmt: skip
    assert isinstance(owner.opt_out(), ConsentRevoke)


def test_a_restored_backup_is_refused(tmp_path: Path) -> None:
    with running_federation(tmp_path) as federation:
        federation.publish_base()
    database = tmp_path / "coordinator" / "registry.sqlite"
    shutil.copyfile(database, tmp_path / "backup")
    with open_home(tmp_path / "coordinator") as coordinator:
        make_release(coordinator, evaluate=None)
    for suffix in ("-wal", "-shm"):
        Path(f"{database}{suffix}").unlink(missing_ok=True)
    shutil.copyfile(tmp_path / "backup", database)
    with pytest.raises(ConflictError, match="older backup"), open_home(tmp_path / "coordinator"):
        pass


def test_opting_out_revokes_every_consent(consortium: Federation) -> None:
    owner = consortium.enrol("archive")
    first = owner.consent()
    consortium.publish_base(seed=1)
    second = owner.consent()
    assert first.expert.base_digest != second.expert.base_digest
    with owner.member() as member:
        revoked = participation.opt_out(member, reason=None)
        assert {each.grant_id for each in revoked} == {first.record_id, second.record_id}
        assert participation.grants_in_force(member.chain) == []


@pytest.mark.parametrize(
    "changed",
    [
        {"purposes": ["commercial"]}, {"line": "other"}, {"terms": "other terms"}, {"release": "main"},
        {"jurisdiction": "eu"}, {"not_before": "2027-01-01T00:00:00Z"}, {"days": 200},
    ],
)  # fmt: skip
def test_another_consent_is_not_taken_for_the_one_in_force(consortium: Federation, changed: dict[str, object]) -> None:
    owner = consortium.enrol("archive")
    owner.consent()
    if "terms" in changed:
        owner.terms.write_text(str(changed.pop("terms")))
    settings = ConsentSettings.model_validate({"purposes": ["research"], "terms": owner.terms, **changed})
    with owner.member() as member, pytest.raises(ConflictError, match=r"another consent .* opt out first"):
        participation.consent(member, settings, base=owner.base())


def test_a_consent_to_one_release_is_for_that_one_alone(consortium: Federation) -> None:
    owner = consortium.enrol("archive")
    wanted = {"purposes": ["research"], "terms": owner.terms, "release": "release-1", "jurisdiction": "eu"}
    with owner.member() as member:
        grant = participation.consent(member, ConsentSettings.model_validate(wanted), base=owner.base())
        assert participation.consent(member, ConsentSettings.model_validate(wanted), base=owner.base()) == grant
    assert (grant.scope, grant.jurisdiction) == (ReleaseScope(release="release-1"), "eu")
    assert describe(grant).endswith(", jurisdiction eu")
    owner.put_expert(expert_weights(1))
    owner.submit()
    assert consortium.release().owners == {1: "archive"}
    consortium.enrol("hospital")
    second = consortium.release()
    assert not second.owners
    assert "does not cover release-2" in second.left_out["archive"]
    assert audit(consortium.public).holds


def test_a_consent_may_begin_later(consortium: Federation) -> None:
    owner, start = consortium.enrol("archive"), datetime.now(UTC).replace(microsecond=0) + timedelta(days=30)
    done = concord(
        "owner", "consent", "--terms", owner.terms, "--purpose", "research", "--not-before", format_time(start),
        "--days", "10", "--home", owner.home.path, "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["not_before"] == format_time(start)
    assert result["not_after"] == format_time(start + timedelta(days=10))
    owner.put_expert(expert_weights(1))
    with pytest.raises(ConsentError, match=f"is in force from {format_time(start)}"):
        owner.submit()
    for wrong in ("tomorrow", "2026-02-31T00:00:00Z"):
        refused = concord("owner", "consent", "--terms", owner.terms, "--purpose", "research", "--not-before", wrong,
                          "--home", owner.home.path)  # fmt: skip
        assert (refused.returncode, "not_before" in refused.stderr, "Traceback" in refused.stderr) == (1, True, False)


def test_a_release_says_who_is_left_out_and_why(consortium: Federation) -> None:
    owner = consortium.enrol("archive")
    with owner.member() as member:
        settings = ConsentSettings(purposes=["research"], terms=owner.terms, line="elsewhere")
        participation.consent(member, settings, base=owner.base())
    owner.put_expert(expert_weights(1))
    owner.submit()
    release = consortium.release()
    assert not release.owners
    assert "does not cover release-1 of line main" in release.left_out["archive"]
