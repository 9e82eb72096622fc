"""Fixtures for all tests."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.federation import THREE, Federation, running_federation


def pytest_configure() -> None:
    """A shell's background jobs ignore Ctrl-C, and so would every command that tests start and interrupt."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


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
