"""One item ahead: the same items, asked for while the one before is in use."""

from collections.abc import Iterator
from threading import Event

import pytest

from common.rpc.one_ahead import one_ahead


def test_items_come_in_order_and_all_of_them() -> None:
    assert list(one_ahead(range(1000))) == list(range(1000))
    assert list(one_ahead(())) == []


def test_the_next_one_is_asked_for_while_this_one_is_in_use() -> None:
    asked = [Event() for _ in range(4)]

    def items() -> Iterator[int]:
        for number, event in enumerate(asked):
            event.set()
            yield number

    ahead = one_ahead(items())
    assert next(ahead) == 0
    assert asked[1].wait(60)
    assert not asked[2].is_set(), "no more than one"
    ahead.close()


def test_what_fails_there_fails_here_after_what_came_before() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise OSError("the line is cut")

    ahead = one_ahead(items())
    assert next(ahead) == 1
    with pytest.raises(OSError, match="the line is cut"):
        next(ahead)


def test_closed_early_it_asks_for_no_more() -> None:
    ended = Event()

    def items() -> Iterator[int]:
        try:
            while True:
                yield 0
        finally:
            ended.set()

    ahead = one_ahead(items())
    next(ahead)
    ahead.close()
    assert ended.wait(60)
