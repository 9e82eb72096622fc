"""Logs to start from."""

import pytest

from tests.trust.telling import Telling


@pytest.fixture
def log() -> Telling:
    """A base and an owner: entries 0 and 1."""
    telling = Telling()
    telling.publishes()
    telling.joins("archive")
    return telling


@pytest.fixture
def contributed(log: Telling) -> Telling:
    """A consent and an expert under it besides: entries 2 and 3."""
    log.contributes("archive", log.consents("archive"))
    return log
