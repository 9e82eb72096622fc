"""Keys change while owners go on: the server's, the issuing authority's, the root's, and the owners' own."""

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Barrier, Event

import pytest

from common.errors import ConflictError, NotFoundError, NotPermittedError, UnavailableError
from common.trust.pki import CertificateFacts, Identity, fingerprint, identity_of, make_csr, new_key
from common.trust.statements import CertRevoke
from coordinator import authority as authorities
from coordinator.authority import Authority, finish_root, rotate_issuing, rotate_root
from coordinator.server_identity import rotate_server
from owner_client import membership
from owner_client.membership import renewal_moment
from tests.commands import concord
from tests.federation import FEDERATION, Federation, Owner, expert_weights
from tests.raw_calls import calling, calling_as, tls_of


@contextmanager
def calling_all_the_while(*owners: Owner) -> Iterator[list[int]]:
    """Owners that call again and again, each over new connections and an old one; a failed call fails the test."""
    stop, counts = Event(), [0] * len(owners)

    def run(place: int) -> None:
        owner = owners[place]
        owner.patience_s = 30
        while not stop.is_set():
            with owner.member() as member:
                for _ in range(3):
                    member.client.watch()
                    counts[place] += 1

    with ThreadPoolExecutor(len(owners)) as pool:
        running = [pool.submit(run, place) for place in range(len(owners))]
        try:
            _wait_for_more(counts, running)
            yield counts
            _wait_for_more(counts, running)
        finally:
            stop.set()
        for each in running:
            each.result(60)


def _wait_for_more(counts: list[int], running: "list[object]") -> None:
    """Return when everybody called again, over a new connection too."""
    wanted = [count + 4 for count in counts]
    until = datetime.now(UTC) + timedelta(seconds=60)
    while any(count < want for count, want in zip(counts, wanted, strict=True)):
        assert datetime.now(UTC) < until, "calls stand still"
        assert not any(each.done() for each in running), "a call failed"  # type: ignore[attr-defined]
        Event().wait(0.01)


def _renew(owner: Owner) -> None:
    """What the daemon does when its moment has come."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(membership, "renewal_moment", lambda _: datetime.min.replace(tzinfo=UTC))
        with owner.member() as member:
            assert membership.renew_if_due(member)


@pytest.fixture
def two(consortium: Federation) -> tuple[Owner, Owner]:
    """Two owners that have joined."""
    return consortium.enrol("archive"), consortium.enrol("hospital")


def test_the_server_gets_a_new_key_while_owners_call(consortium: Federation, two: tuple[Owner, Owner]) -> None:
    shown = [_server_certificate(consortium)]
    with calling_all_the_while(*two):
        for _ in range(2):
            rotate_server(consortium.coordinator)
            shown.append(_server_certificate(consortium))
    assert len(set(shown)) == 3


def _server_certificate(federation: Federation) -> bytes:
    import ssl

    return ssl.get_server_certificate(("127.0.0.1", federation.ports[1])).encode()


def test_the_issuing_authority_changes_while_owners_call(consortium: Federation, two: tuple[Owner, Owner]) -> None:
    keys, before = consortium.coordinator.home.keys, consortium.coordinator.authority.now
    with calling_all_the_while(*two):
        rotate_issuing(keys)
        rotate_server(consortium.coordinator)
        _renew(two[0])
    after = consortium.coordinator.authority.now
    assert after.issuing.certificate_pem != before.issuing.certificate_pem
    assert after.roots == before.roots
    assert after.issuing.certificate_pem in tls_of(two[0]).certificate
    assert before.issuing.certificate_pem in tls_of(two[1]).certificate
    consortium.enrol("library")


def test_the_root_changes_while_owners_call(consortium: Federation, two: tuple[Owner, Owner]) -> None:
    keys, before = consortium.coordinator.home.keys, consortium.coordinator.authority.now
    with calling_all_the_while(*two):
        rotate_root(keys)
        for owner in two:
            _renew(owner)
    for owner in two:
        assert owner.home.authority.read_bytes().count(b"BEGIN CERTIFICATE") == 2
    with calling_all_the_while(*two):
        finish_root(keys)
        rotate_server(consortium.coordinator)
    after = consortium.coordinator.authority.now
    assert set(after.roots).isdisjoint(before.roots)
    _renew(two[0])
    assert two[0].home.authority.read_bytes() == after.roots[0]


def test_whoever_knows_the_old_root_alone_is_shut_out_in_the_end(
    consortium: Federation, two: tuple[Owner, Owner]
) -> None:
    keys = consortium.coordinator.home.keys
    rotate_root(keys)
    _renew(two[0])
    finish_root(keys)
    rotate_server(consortium.coordinator)
    with two[0].member() as member:
        member.client.watch()
    with pytest.raises(UnavailableError), two[1].member() as member:
        member.client.watch()
    consortium.enrol("hospital")  # an invitation brings it back
    with two[1].member() as member:
        member.client.watch()


def test_authorities_change_with_the_roots_key_alone(consortium: Federation, tmp_path: Path) -> None:
    keys, safe = consortium.coordinator.home.keys, tmp_path / "safe.key"
    shutil.move(keys / "root.key", safe)
    for change in (rotate_issuing, rotate_root):
        with pytest.raises(NotFoundError, match="name it with --root-key"):
            change(keys)
    consortium.enrol("archive")  # nothing else needs it
    rotate_issuing(keys, root_key=safe)
    rotate_root(keys, root_key=safe)
    assert (keys / "root.key").exists()
    with pytest.raises(ConflictError, match="rotate root --finish"):
        rotate_root(keys, root_key=safe)
    with pytest.raises(ConflictError, match="rotate root --finish"):
        rotate_issuing(keys, root_key=safe)
    finish_root(keys)
    with pytest.raises(ConflictError, match="begin with"):
        finish_root(keys)


def test_a_root_whose_change_was_cut_off_goes_on(consortium: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after each of the files that are written, and run again."""
    keys = consortium.coordinator.home.keys
    before = Authority(keys).now
    written: list[str] = []
    write = authorities.write_secret

    def cut_off(path: Path, data: bytes) -> None:
        write(path, data)
        written.append(path.name)
        raise KeyboardInterrupt

    monkeypatch.setattr(authorities, "write_secret", cut_off)
    with pytest.raises(KeyboardInterrupt):
        rotate_root(keys)
    assert written == ["root.key.next"]
    assert Authority(keys).now == before

    def cut_off_later(path: Path, data: bytes) -> None:
        write(path, data)
        if path.name == "authority.json":
            raise KeyboardInterrupt

    monkeypatch.setattr(authorities, "write_secret", cut_off_later)
    with pytest.raises(KeyboardInterrupt):
        rotate_root(keys)
    monkeypatch.undo()
    assert rotate_root(keys).is_changing
    assert not (keys / "root.key.next").exists()
    finish_root(keys)
    rotate_issuing(keys)  # the key that is there is the new root's


def test_commands_rotate_and_tell_who_is_behind(consortium: Federation, two: tuple[Owner, Owner]) -> None:
    home = ("--home", consortium.coordinator.home.path)

    def do(*words: str, code: int = 0) -> dict[str, object]:
        done = concord("coordinator", *words, *home, "--json")
        assert done.returncode == code, done.stderr
        return json.loads(done.stdout.splitlines()[-1]) if code == 0 else {"error": done.stderr}

    assert do("rotate", "server")["server"]
    assert do("rotate", "intermediate")["issuing"]
    assert len(do("rotate", "root")["roots"]) == 2  # type: ignore[arg-type]
    assert "still under the old root: archive, hospital" in str(do("rotate", "root", "--finish", code=1)["error"])
    _renew(two[0])
    parties = {each["party"]: each for each in do("owners")["parties"]}  # type: ignore[attr-defined]
    assert parties["archive"]["root"].startswith("present")
    assert parties["hospital"]["root"].startswith("old")
    assert len(do("rotate", "root", "--finish", "--at-once")["roots"]) == 1  # type: ignore[arg-type]


# Owners' certificates


@pytest.mark.parametrize("serial", ["0" * 32, "f" * 32, "8" * 32])
def test_a_certificate_is_renewed_between_half_and_two_thirds_of_its_life(serial: str) -> None:
    start = datetime(2026, 11, 29, tzinfo=UTC)
    facts = CertificateFacts(Identity.owner(FEDERATION, party="archive"), serial, start, start + timedelta(hours=24))
    assert timedelta(hours=12) <= renewal_moment(facts) - start <= timedelta(hours=16)


def test_a_renewed_certificate_has_another_key(consortium: Federation) -> None:
    owner = consortium.enrol("archive")
    before = tls_of(owner)
    _renew(owner)
    assert tls_of(owner).key != before.key
    assert fingerprint(tls_of(owner).certificate) != fingerprint(before.certificate)
    assert identity_of(tls_of(owner).certificate).identity.party == "archive"


def test_a_revocation_is_not_undone_by_a_renewal_that_races_it(consortium: Federation) -> None:
    owner = consortium.enrol("archive")
    shown = tls_of(owner).certificate
    consortium.coordinator.registry.issue(CertRevoke, owner="archive")
    with pytest.raises(NotPermittedError, match="revoked"):  # it was authenticated before that, and goes on now
        consortium.coordinator.enrolment.renew("archive", csr=make_csr(new_key()), shown=shown)


def test_a_revocation_is_not_undone_by_a_request_from_before(federation: Federation) -> None:
    invitation = federation.invitation("archive")
    owner = federation.enrol("archive", invitation=invitation)
    (enrolled,) = list(owner.home.statements.glob("*.note"))
    csr = make_csr(new_key())
    authority = federation.coordinator.authority.certificate_pem
    again = federation.invitation("archive")
    with calling(f"127.0.0.1:{federation.ports[1]}", authority=authority, tls=None) as calls:
        federation.coordinator.registry.issue(CertRevoke, owner="archive")
        with pytest.raises(NotPermittedError):
            calls.redeem(invitation.token, csr=csr, note=enrolled.read_bytes())
    federation.enrol("archive", invitation=again)  # a new invitation and the signing key do


def test_a_revocation_ends_a_stream_that_is_under_way(consortium: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    from common.trust.manifest import digest_of
    from coordinator import streams
    from tests.raw_calls import chunk, contribution

    monkeypatch.setattr(streams, "ASK_AGAIN_S", 0.0)
    owner = consortium.enrol("archive")
    grant = owner.consent()
    owner.put_expert(expert_weights(1))
    data = next(owner.home.experts.glob("*/expert.safetensors")).read_bytes()
    with calling_as(owner) as calls:
        upload_id = calls.open(contribution(owner, grant.record_id, data)).upload_id
        consortium.coordinator.registry.issue(CertRevoke, owner="archive")
        with pytest.raises(NotPermittedError, match="revoked"):
            calls.put(chunk(upload_id, digest_of(data), index=0, data=data))


def test_of_racers_for_an_invitation_one_wins(federation: Federation) -> None:
    invitations, racers = 20, 50
    enrolment = federation.coordinator.enrolment
    with ThreadPoolExecutor(racers) as pool:
        for number in range(invitations):
            token = enrolment.invite(f"auditor/kim-{number}", lifetime=timedelta(minutes=5))
            barrier = Barrier(racers)

            def race(_: int, token: str = token, barrier: Barrier = barrier) -> bool:
                csr = make_csr(new_key())
                barrier.wait(60)
                try:
                    return bool(enrolment.certify(token, csr=csr))
                except NotPermittedError:
                    return False

            assert sum(pool.map(race, range(racers))) == 1
