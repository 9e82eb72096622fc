"""An owner's keys: changed without a break, kept on another machine, and what happens in between."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from common.audit import audit
from common.errors import ConflictError, MalformedError, NotPermittedError, SignatureNeededError
from common.trust.note import SigningKey
from common.trust.statements import ConsentRevoke, OwnerKeyAdd, OwnerKeyRevoke, format_time, new_record_id, parse
from owner_client import keys, offline, participation
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
    line = offline.make(vault / "new.key", name="test.concord/owner/archive")
    with pytest.raises(SignatureNeededError, match=r"owner\.key\.add waits"):
        rotate(owner, public_key=line)
    carry("00003", "signing.key", "new.key")
    with pytest.raises(SignatureNeededError, match=r"owner\.key\.revoke waits"):
        rotate(owner, public_key=line)
    with pytest.raises(AssertionError, match="is to be signed with"):
        carry("00004", "signing.key")
    carry("00004", "new.key")
    done = commands.concord("owner", "rotate-key", "--public-key", line, "--home", owner.home.path)
    assert f"{key_ids(joined)[0]} signs for you now, alone" in " ".join(done.stdout.split()), done.stderr
    assert len(key_ids(joined)) == 1
    assert not list(owner.home.statements.glob("*.unsigned"))  # what is in the log waits for no signature
    assert joined.release().owners == {1: "archive"}
    assert audit(joined.public).holds


def test_keys_are_changed_where_they_are(joined: Federation, tmp_path: Path) -> None:
    owner = joined.owner("archive")
    line = offline.make(tmp_path / "new.key", name="test.concord/owner/archive")
    with pytest.raises(ConflictError, match="the new one is made here"):
        rotate(owner, public_key=line)
    owner.home.signing_key.unlink()
    other = offline.make(tmp_path / "other.key", name="test.concord/owner/hospital")
    with pytest.raises(MalformedError, match=r"a key of test.concord/owner/hospital, and yours is called .*/archive"):
        rotate(owner, public_key=other)
    assert not list(owner.home.statements.glob("*.unsigned"))
    with pytest.raises(ConflictError, match="make the new one there"):
        rotate(owner)
    with pytest.raises(ConflictError, match="never overwritten"):
        offline.make(tmp_path / "new.key", name="test.concord/owner/archive")


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
        offline.read_unsigned(tmp_path / "x.unsigned")


_BLOCKED = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "grpc", "google", "sqlalchemy", "numpy", "safetensors", "transformers"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
import concord
concord.main()
"""


def _without_extras(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", _BLOCKED, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def _revocation(owner: SigningKey, *, hours_ago: int, deadline_s: int = 3600) -> str:
    at = datetime.now(UTC) - timedelta(hours=hours_ago)
    return ConsentRevoke(
        federation="test.concord", origin="test.concord/log", party="archive", key_id=owner.verifier.key_id,
        record_id=new_record_id(at), seq=3, prev="sha256:" + "0" * 64, issued_at=format_time(at),
        grant_id=new_record_id(at), effect="withdraw_published", deadline_s=deadline_s,
    ).text  # fmt: skip


def test_the_machine_of_the_key_needs_no_extras(tmp_path: Path) -> None:
    made = _without_extras("owner", "new-key", "--name", "test.concord/owner/archive", "--output", tmp_path / "k")
    assert made.returncode == 0, made.stderr
    key = SigningKey.from_pem((tmp_path / "k").read_bytes(), name="test.concord/owner/archive")
    (tmp_path / "3.unsigned").write_text(_revocation(key, hours_ago=0))
    signed = _without_extras("owner", "sign", tmp_path / "3.unsigned", "--key", tmp_path / "k", "--yes")
    assert signed.returncode == 0, signed.stderr
    assert "archive withdraws consent" in signed.stdout  # in words, beside what is signed
    assert "carry 3.note back" in signed.stdout
    elsewhere = _without_extras("owner", "submit", "--home", tmp_path)
    assert (elsewhere.returncode, "Traceback" in elsewhere.stderr) == (1, False)
    assert "is not installed; run: pip install 'concord-moe[owner]'" in elsewhere.stderr


def test_who_is_asked_is_asked_once_it_can_be_done_and_may_say_no(tmp_path: Path) -> None:
    line = offline.make(tmp_path / "k", name="test.concord/owner/archive")
    key = SigningKey.from_pem((tmp_path / "k").read_bytes(), name="test.concord/owner/archive")
    assert line == str(key.verifier)
    (tmp_path / "3.unsigned").write_text(_revocation(key, hours_ago=0))
    command = [sys.executable, "-m", "concord", "owner", "sign", str(tmp_path / "3.unsigned"), "--key"]
    said = {
        name: subprocess.run([*command, str(tmp_path / name)], input="n\n", capture_output=True, text=True, timeout=60)
        for name in ("k", "away")
    }
    assert [each.returncode for each in said.values()] == [1, 1]
    assert said["k"].stderr.endswith("Error: nothing was signed\n")
    assert ("Sign this" in said["away"].stderr, "away is not there" in said["away"].stderr) == (False, True)
    assert not (tmp_path / "3.note").exists()


@pytest.mark.parametrize(
    ("hours_ago", "doubts"),
    [(0, []), (23, ["which is over"]), (50, ["2 days ago", "which is over"]), (-1, ["in the future by this machine"])],
)
def test_whoever_signs_is_told_of_dates(hours_ago: int, doubts: list[str]) -> None:
    key = SigningKey.generate("test.concord/owner/archive")
    found = offline.doubts(parse(_revocation(key, hours_ago=hours_ago)), now=datetime.now(UTC))
    assert [doubt in said for doubt, said in zip(doubts, found, strict=True)] == [True] * len(doubts)
