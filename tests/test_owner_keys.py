"""An owner's keys: changed without a break, kept on another machine, and what happens in between."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.audit import audit
from common.errors import ConflictError, MalformedError, NotPermittedError, SignatureNeededError
from common.trust.statements import OwnerKeyAdd, OwnerKeyRevoke
from owner_client import keys, participation
from tests import commands
from tests.federation import Federation, Owner, expert_weights, running_federation


@pytest.fixture
def joined(tmp_path: Path) -> Iterator[Federation]:
    """A base, and an owner that has joined."""
    with running_federation(tmp_path) as federation:
        federation.publish_base()
        federation.enrol("archive")
        yield federation


def rotate(owner: Owner, *, public_key: str | None = None) -> keys.Rotated:
    """Change keys."""
    with owner.member() as member:
        return keys.rotate(member, public_key=public_key, reason=None)


def key_ids(federation: Federation) -> list[str]:
    """The keys that sign for the archive."""
    return [verifier.key_id for verifier in federation.coordinator.registry.head().parties["archive"].verifiers]


def test_a_new_key_signs_and_the_old_one_no_longer(joined: Federation) -> None:
    owner, old = joined.owner("archive"), key_ids(joined)
    owner.take_part(seed=1)
    key_file = owner.home.signing_key.read_bytes()
    rotated = rotate(owner)
    assert rotated.revoked == old
    assert key_ids(joined) == [rotated.added]
    assert owner.home.signing_key.read_bytes() != key_file
    assert owner.home.signing_key.stat().st_mode & 0o77 == 0
    owner.opt_out()
    assert audit(joined.public).holds
    owner.home.signing_key.write_bytes(key_file)
    with pytest.raises(NotPermittedError, match="does not sign for archive any more"):
        owner.consent()


STOPS = ("before it is sent", "before it is in place", "before the old one is revoked")


@pytest.mark.parametrize("stop", STOPS)
def test_a_rotation_that_was_cut_off_goes_on(stop: str, joined: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, old = joined.owner("archive"), key_ids(joined)

    def cut_off(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        if stop == STOPS[0]:
            patched.setattr(keys, "send", cut_off)
        elif stop == STOPS[1]:
            patched.setattr(Path, "replace", _replace_all_but_keys)
        else:
            patched.setattr(keys, "_revoke_others", cut_off)
        with pytest.raises(KeyboardInterrupt):
            rotate(owner)
    rotated = rotate(owner)
    assert rotated.revoked == old
    assert key_ids(joined) == [rotated.added]
    said = [type(said.statement) for said in _statements(owner)]
    assert said.count(OwnerKeyAdd) == said.count(OwnerKeyRevoke) == 1
    assert not owner.home.next_signing_key.exists()


_REPLACE = Path.replace


def _replace_all_but_keys(self: Path, target: Path) -> Path:
    if self.name == "signing.key.next":
        raise KeyboardInterrupt
    return _REPLACE(self, target)


def _statements(owner: Owner) -> list[participation.Said]:
    with owner.member() as member:
        return member.chain.statements()


def test_an_owner_whose_key_is_elsewhere_carries_statements_to_it(joined: Federation, tmp_path: Path) -> None:
    owner, vault = joined.owner("archive"), tmp_path / "vault"
    vault.mkdir()
    shutil.move(owner.home.signing_key, vault / "signing.key")

    def carry(name: str, *signing: str) -> None:
        shutil.copy(owner.home.statements / f"{name}.unsigned", vault)
        options = [word for each in signing for word in ("--key", str(vault / each))]
        done = commands.concord("owner", "sign", str(vault / f"{name}.unsigned"), *options, "--yes")
        assert done.returncode == 0, done.stderr
        shutil.copy(vault / f"{name}.note", owner.home.statements)

    with pytest.raises(SignatureNeededError, match=r"consent.grant waits for your signature.*00001.unsigned"):
        owner.consent()
    with pytest.raises(SignatureNeededError):
        owner.consent()  # again is no second one
    carry("00001", "signing.key")
    grant = owner.consent()
    assert grant.record_id in joined.coordinator.registry.head().grants
    owner.put_expert(expert_weights(1))
    with pytest.raises(SignatureNeededError, match=r"expert\.contribute waits"):
        owner.submit()
    carry("00002", "signing.key")
    assert owner.submit().receipt
    line = keys.make(vault / "new.key", name="test.concord/owner/archive")
    with pytest.raises(SignatureNeededError, match=r"owner\.key\.add waits"):
        rotate(owner, public_key=line)
    carry("00003", "signing.key", "new.key")
    with pytest.raises(SignatureNeededError, match=r"owner\.key\.revoke waits"):
        rotate(owner, public_key=line)
    with pytest.raises(AssertionError, match="is to be signed with"):
        carry("00004", "signing.key")
    carry("00004", "new.key")
    assert rotate(owner, public_key=line).revoked == []
    assert len(key_ids(joined)) == 1
    assert joined.release().owners == {1: "archive"}
    assert audit(joined.public).holds


def test_keys_are_changed_where_they_are(joined: Federation, tmp_path: Path) -> None:
    owner = joined.owner("archive")
    line = keys.make(tmp_path / "new.key", name="test.concord/owner/archive")
    with pytest.raises(ConflictError, match="the new one is made here"):
        rotate(owner, public_key=line)
    owner.home.signing_key.unlink()
    with pytest.raises(ConflictError, match="make the new one there"):
        rotate(owner)
    with pytest.raises(ConflictError, match="never overwritten"):
        keys.make(tmp_path / "new.key", name="test.concord/owner/archive")


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"concord/v1 consent.grant\n{}\n", "Field required"),
        (b"x" * 20_000, "at most 16384"),
        (b"\xff\xfe", "not UTF-8"),
        (b"", "unknown statement type"),
    ],
)
def test_what_is_no_statement_is_not_signed(data: bytes, problem: str, tmp_path: Path) -> None:
    (tmp_path / "x.unsigned").write_bytes(data)
    with pytest.raises(MalformedError, match=problem):
        keys.read_unsigned(tmp_path / "x.unsigned")
