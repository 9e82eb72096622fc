"""What an admin does with the registry: revokes certificates, and reads it as tables."""

import json
from datetime import UTC, datetime

import pytest

from common.audit import audit
from common.errors import ConcordError, NotFoundError, NotPermittedError
from common.trust.describe import describe
from common.trust.statements import CertRevoke
from common.trust.tables import tables_of
from tests.commands import concord
from tests.federation import FEDERATION, Federation
from tests.trust.telling import Telling


def test_revoked_certificates_end_at_the_next_call_of_an_open_connection(consortium: Federation) -> None:
    owner = consortium.enrol("archive")
    with owner.member() as member:
        member.client.watch()
        home = consortium.coordinator.home.path
        done = concord("coordinator", "revoke", "archive", "--reason", "laptop stolen", "--home", home)
        assert done.returncode == 0, done.stderr
        with pytest.raises(NotPermittedError, match="is revoked"):
            member.client.watch()
    said = list(audit(consortium.public).statements)[-1]
    assert isinstance(said, CertRevoke)
    assert describe(said) == "revokes the certificates of archive: laptop stolen"
    with pytest.raises(ConcordError):
        owner.consent()
    consortium.enrol("archive")  # an invitation and the logged signing key let it back
    assert owner.consent().seq == 1


def test_an_owner_ends_its_own_certificates_and_comes_back(consortium: Federation) -> None:
    owner = consortium.enrol("archive")
    grant = owner.consent()
    done = concord("owner", "revoke-certificates", "--reason", "laptop stolen", "--home", owner.home.path, "--json")
    assert done.returncode == 0, done.stderr
    said = list(audit(consortium.public).statements)[-1]
    assert isinstance(said, CertRevoke)
    assert (said.party, said.owner, said.reason) == ("archive", "archive", "laptop stolen")
    assert json.loads(done.stdout.splitlines()[-1])["record_id"] == said.record_id
    assert not owner.home.evidence.exists()
    again = concord("owner", "revoke-certificates", "--home", owner.home.path)
    assert (again.returncode, "is revoked" in again.stderr) == (1, True)
    consortium.enrol("archive")
    with owner.member() as member:
        member.client.watch()  # and what came continues what was seen
        assert member.chain.pending() == []
    assert owner.consent() == grant


def test_what_is_revoked_is_seen_and_said_when_it_is_revoked_again(consortium: Federation) -> None:
    home = consortium.coordinator.home.path
    consortium.enrol("archive")
    consortium.enrol("hospital")
    for reason, why in (("two\nlines", "reason"), ("x" * 5000, "reason")):
        refused = concord("coordinator", "revoke", "archive", "--reason", reason, "--home", home)
        assert refused.returncode == 1
        assert why in refused.stderr
        assert "Traceback" not in refused.stderr
    assert concord("coordinator", "revoke", "archive", "--home", home).returncode == 0
    size = consortium.coordinator.registry.head().size
    again = concord("coordinator", "revoke", "archive", "--home", home)
    assert (again.returncode, "revoked already" in again.stderr) == (1, True)
    assert consortium.coordinator.registry.head().size == size
    said = json.loads(concord("coordinator", "registry", "--home", home, "--json").stdout.splitlines()[-1])
    assert [row["certificate"].split(",")[0] for row in said["owners"]] == ["revoked", "good"]
    status = json.loads(concord("coordinator", "status", "--home", home, "--json").stdout.splitlines()[-1])
    assert status["certificates_revoked"] == ["archive"]


def test_a_registry_wider_than_the_screen_is_read_line_by_line(consortium: Federation) -> None:
    consortium.enrol("hospital").consent()
    shown = concord("coordinator", "registry", "--home", consortium.coordinator.home.path, COLUMNS="60")
    assert "entry 2: owner hospital, state in force, covers line main" in shown.stdout


def test_a_release_with_nothing_new_is_said_to_stand(consortium: Federation) -> None:
    consortium.enrol("archive").take_part(seed=0)
    made, stands = (concord("coordinator", "release", "--home", consortium.coordinator.home.path, "--json")
                    for _ in range(2))  # fmt: skip
    assert json.loads(made.stdout.splitlines()[-1])["is_new"]
    assert not json.loads(stands.stdout.splitlines()[-1])["is_new"]
    assert "nothing came since release-1" in stands.stdout
    assert "published" not in stands.stdout


def test_settings_of_another_log_are_refused(consortium: Federation) -> None:
    settings = consortium.coordinator.home.settings_file
    settings.write_text(settings.read_text().replace(f'"{FEDERATION}"', '"another.example"'))
    refused = concord("coordinator", "status", "--home", consortium.coordinator.home.path)
    assert refused.returncode == 1
    assert "named once and for all" in " ".join(refused.stderr.split())


def test_another_owner_feels_nothing(consortium: Federation) -> None:
    consortium.enrol("archive")
    hospital = consortium.enrol("hospital")
    consortium.coordinator.registry.issue(CertRevoke, owner="archive")
    assert hospital.consent().seq == 1


@pytest.mark.parametrize(("party", "owner", "error", "why"), [
    ("archive", "hospital", NotPermittedError, "may not revoke certificates of hospital"),
    ("coordinator", "nobody", NotFoundError, "no owner nobody has joined"),
    ("coordinator", "coordinator", NotFoundError, "no owner coordinator has joined"),
])  # fmt: skip
def test_who_may_not_revoke_whose(party: str, owner: str, error: type[Exception], why: str) -> None:
    log = Telling()
    for name in ("archive", "hospital"):
        log.joins(name)
    before = log.history.size
    with pytest.raises(error, match=why):
        log.says(party, "cert.revoke", owner=owner)
    assert log.history.size == before
    log.says("hospital", "cert.revoke", owner="hospital")


def test_the_registry_is_read_as_tables(consortium: Federation) -> None:
    for seed, name in enumerate(("archive", "hospital")):
        consortium.enrol(name).take_part(seed=seed)
    consortium.release()
    consortium.owner("archive").opt_out()
    coordinator = consortium.coordinator
    head, entry = coordinator.registry.head(), coordinator.log.entry
    owners, consents, releases, campaigns = tables_of(head, at=datetime.now(UTC), entry=entry)
    assert list(campaigns.rows) == []
    assert [row[0] for row in owners.rows] == ["archive", "hospital"]
    assert [(row[1], row[2]) for row in consents.rows] == [
        ("archive", f"revoked by entry {consortium.coordinator.registry.head().size - 1}"),
        ("hospital", "in force"),
    ]
    assert [row[3:5] for row in consents.rows] == [("line main", "research")] * 2  # a revoked one said so too
    assert "" not in consents.rows[0][5:7]
    assert [(row[1], row[2], row[3]) for row in releases.rows] == [("release-1", "archive, hospital", "published")]
    home = consortium.coordinator.home.path
    shown = concord("coordinator", "registry", "--home", home, COLUMNS="160")
    assert shown.returncode == 0, shown.stderr
    assert all(word in shown.stdout for word in ("owners", "hospital", "in force", "release-1", "line main"))
    said = json.loads(concord("coordinator", "registry", "--home", home, "--json").stdout.splitlines()[-1])
    assert [row["owner"] for row in said["consents"]] == ["archive", "hospital"]
    audited = concord("audit", "show", consortium.public, COLUMNS="160")
    assert audited.returncode == 0, audited.stderr
    assert "certificate" not in audited.stdout
    assert all(word in audited.stdout for word in ("owners", "hospital", "in force", "release-1", "line main"))
    found = json.loads(concord("audit", "show", consortium.public, "--json").stdout.splitlines()[-1])
    assert (found["consents"], found["releases"]) == (said["consents"], said["releases"])
