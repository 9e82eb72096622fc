"""Many callers, one commit."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event

import pytest

from coordinator.group_commit import MAX_BATCH, GroupCommit


@dataclass(slots=True)
class _Request:
    number: int
    done: int | None = None


def test_a_request_alone_goes_straight_through() -> None:
    batches: list[list[int]] = []
    GroupCommit[_Request](lambda batch: batches.append([each.number for each in batch])).submit(_Request(1))
    assert batches == [[1]]


def test_requests_that_wait_go_together_and_each_once() -> None:
    """The first commit is held until all others wait for it."""
    batches: list[list[int]] = []
    started, go_on = Event(), Event()

    def commit(batch: list[_Request]) -> None:
        batches.append([each.number for each in batch])
        for each in batch:
            each.done = each.number
        started.set()
        assert go_on.wait(30)

    group = GroupCommit[_Request](commit)
    requests = [_Request(number) for number in range(MAX_BATCH + 20)]
    with ThreadPoolExecutor(len(requests)) as pool:
        first = pool.submit(group.submit, requests[0])
        assert started.wait(30)
        rest = [pool.submit(group.submit, request) for request in requests[1:]]
        while len(group._waiting) < len(rest):
            assert not first.done()
        go_on.set()
        for future in (first, *rest):
            future.result(30)
    assert batches[0] == [0]
    assert len(batches) == 3
    assert sorted(number for batch in batches for number in batch) == list(range(len(requests)))
    assert all(request.done == request.number for request in requests)


def test_a_commit_that_fails_ends_and_the_next_goes_on() -> None:
    failing = [True]

    def commit(batch: list[_Request]) -> None:
        if failing.pop() if failing else False:
            raise OSError("the disk is gone")
        for each in batch:
            each.done = each.number

    group, request = GroupCommit[_Request](commit), _Request(2)
    with pytest.raises(OSError, match="gone"):
        group.submit(_Request(1))
    group.submit(request)
    assert request.done == 2
