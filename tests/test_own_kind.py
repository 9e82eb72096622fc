"""How well own and public text are told apart, where public text holds some of the owner's kind."""

import numpy as np
import pytest

from owner_client.own_kind import accuracy, own_kind_share

OWN = np.linspace(0.6, 1.0, 200)
OTHER = np.linspace(0.0, 0.4, 80)


def test_public_text_of_the_owners_kind_is_no_mistake() -> None:
    public = np.concatenate([OTHER, OWN[::10]])
    assert own_kind_share(OWN, public) == pytest.approx(0.2, abs=0.02)
    assert accuracy(OWN, public) > 0.98


def test_a_mistake_is_one_beside_text_of_the_owners_kind() -> None:
    mistaken = np.linspace(0.51, 0.59, 20)
    assert own_kind_share(OWN, np.concatenate([OTHER, mistaken])) == 0
    assert accuracy(OWN, np.concatenate([OTHER, mistaken])) == pytest.approx(0.9)
    both = np.concatenate([OTHER, mistaken, OWN[::4]])
    assert own_kind_share(OWN, both) == pytest.approx(1 / 3, abs=0.02)
    assert accuracy(OWN, both) == pytest.approx(0.9, abs=0.01)


def test_own_text_that_is_not_recognised_counts() -> None:
    assert accuracy(np.concatenate([OWN, OTHER]), OTHER) == pytest.approx((200 / 280 + 1) / 2)


@pytest.mark.parametrize("scores", [OWN, OTHER, np.linspace(0.0, 1.0, 300), np.full(5, 0.5)])
def test_what_is_not_told_apart_is_not_taken_to_be_of_the_owners_kind(scores: np.ndarray) -> None:
    """The highest score of all is an own one, and no public document is above it: that says nothing of the rest."""
    own = np.append(scores, 1.1)
    assert own_kind_share(own, scores) == 0.5
    assert accuracy(own, scores) == pytest.approx(0.5, abs=0.1)


def test_a_classifier_that_calls_everything_the_owners_tells_nothing_apart() -> None:
    assert accuracy(OWN, np.concatenate([OWN[1:], OTHER[:1]])) < 0.55


def test_a_classifier_that_is_always_wrong_is_right_about_nothing() -> None:
    assert own_kind_share(OTHER, OWN) == 0.5
    assert accuracy(OTHER, OWN) == 0
    assert accuracy(np.append(OTHER, OWN[:20]), OWN) == pytest.approx(0.1)
