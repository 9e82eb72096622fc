"""What tests of campaigns share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.campaigns.asking import asking, write_small_base
from tests.federation import Federation


@pytest.fixture(scope="session")
def small_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base that reads text, its public text beside it."""
    return write_small_base(tmp_path_factory.mktemp("small"))


@pytest.fixture
def asked(tmp_path: Path, small_base: Path) -> Iterator[Federation]:
    """A consortium of three owners that accept every campaign."""
    with asking(tmp_path, small_base) as federation:
        yield federation
