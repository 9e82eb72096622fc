"""Fixtures for all tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.federation import THREE, Federation, running_federation


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    """A running consortium without a base."""
    with running_federation(tmp_path) as running:
        yield running


@pytest.fixture
def consortium(federation: Federation) -> Federation:
    """A running consortium with a published base."""
    federation.publish_base()
    return federation


@pytest.fixture
def three(consortium: Federation) -> Federation:
    """A base and three owners."""
    for name in THREE:
        consortium.enrol(name)
    return consortium
