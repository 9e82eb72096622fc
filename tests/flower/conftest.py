"""What tests of Flower share."""

from collections.abc import Iterator

import pytest

from tests.campaigns.asking import write_small_base
from tests.flower.over_flower import Consortium, over_flower


@pytest.fixture(scope="session")
def flowing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Consortium]:
    """Two owners whose campaigns come over Flower."""
    base = write_small_base(tmp_path_factory.mktemp("small"))
    with over_flower(tmp_path_factory.mktemp("flower"), base) as consortium:
        yield consortium
