"""A transfer may last longer than a certificate: it goes on with a renewed one."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from coordinator.releases import publish_base
from owner_client import membership, participation
from owner_client.egress import Outbound
from owner_client.membership import Membership
from tests.federation import SIZES, expert_weights, running_federation, write_base

WIDE = replace(SIZES, hidden_size=64, intermediate_size=4096)
"""An expert of several chunks."""
LONG_AGO = datetime.min.replace(tzinfo=UTC)


NEVER = datetime.max.replace(tzinfo=UTC)


def quiet(done: int, total: int) -> None:
    """Say nothing."""


def renew_at(member: Membership, moment: datetime) -> None:
    """As if the certificate were to be renewed then."""
    member.client.connection.keep_fresh(lambda: membership._renewed(member), due_at=moment)


@pytest.fixture
def always_due(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every certificate is to be renewed, also one that is new, as by a clock that is wrong."""
    monkeypatch.setattr(membership, "renewal_moment", lambda _: LONG_AGO)


@pytest.mark.usefixtures("always_due")
def test_a_stream_ends_when_renewal_is_due_and_goes_on_over_a_new_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    read_chunk = Outbound.read_chunk
    with running_federation(tmp_path) as federation:
        publish_base(federation.coordinator, write_base(tmp_path / "base", sizes=WIDE))
        owner = federation.enrol("archive")
        owner.consent()
        owner.put_expert(expert_weights(1, sizes=WIDE))
        with owner.member() as member:
            before, base = owner.home.tls.read_bytes(), participation.fetch_base(member, on_bytes=quiet)

            def reading(self: Outbound, index: int) -> tuple[bytes, bytes]:
                read.append(index)
                if len(read) == 2:
                    renew_at(member, LONG_AGO)
                return read_chunk(self, index)

            monkeypatch.setattr(Outbound, "read_chunk", reading)
            renew_at(member, NEVER)
            said = participation.submit(member, base=base, on_bytes=quiet)
            assert said.receipt is not None
        assert owner.home.tls.read_bytes() != before
    assert len(read) > 3
    assert read == sorted(set(read)), "no chunk was sent twice"


@pytest.mark.usefixtures("always_due")
def test_a_fetch_goes_on_with_the_new_certificate_too(tmp_path: Path) -> None:
    with running_federation(tmp_path) as federation:
        publish_base(federation.coordinator, write_base(tmp_path / "base", sizes=WIDE))
        owner = federation.enrol("archive")
        with owner.member() as member:
            before = owner.home.tls.read_bytes()
            renew_at(member, LONG_AGO)
            participation.fetch_base(member, on_bytes=quiet)
        assert owner.home.tls.read_bytes() != before
