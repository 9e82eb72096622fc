"""What is on its way and not on the coordinator's disk is little: that is what a kill may cost."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from owner_client.pace import Pace
from owner_client.uploading import Sending

CHUNKS = 4096
AHEAD = 31
"""A 128th of the file, rounded down."""


@dataclass
class Reads:
    """Notes which chunks were read to be sent."""

    plan: Any = field(default_factory=lambda: SimpleNamespace(entry=SimpleNamespace(digest="sha256:" + "0" * 64)))
    read: list[int] = field(default_factory=list)

    def read_chunk(self, index: int) -> tuple[bytes, bytes]:
        self.read.append(index)
        return b"chunk", bytes(32)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as made:
        yield made


def sending(reads: Any, *, missing: range) -> Sending:
    return Sending(reads, "upload", missing, lambda: True, Pace())


def test_a_chunk_waits_until_what_is_before_it_is_on_disk(pool: ThreadPoolExecutor) -> None:
    reads = Reads()
    chunks = sending(reads, missing=range(100, CHUNKS))
    for _ in range(AHEAD):
        next(chunks)
    waiting = pool.submit(next, chunks)
    assert reads.read == list(range(100, 100 + AHEAD))
    chunks.acknowledge(101)
    waiting.result(timeout=60)
    assert reads.read[-1] == 100 + AHEAD


def test_what_waits_ends_with_the_stream(pool: ThreadPoolExecutor) -> None:
    reads = Reads()
    chunks = sending(reads, missing=range(CHUNKS))
    sent = pool.submit(list, chunks)
    chunks.close()
    assert len(sent.result(timeout=60)) <= AHEAD


def test_a_small_file_goes_at_once() -> None:
    reads = Reads()
    assert len(list(sending(reads, missing=range(8)))) == 8
