"""Signatures checked by all cores while the audit goes on: what costs most of it, and needs no order.

The fold takes a signature on trust and goes on; who it has to be by is decided there. The audit ends when every one was
checked, and fails at the first entry whose signature does not hold. A log with few entries is checked as it is folded.
"""

import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from types import TracebackType
from typing import Final, Self

from common.trust.note import Note, Verifier, signature_holds

_BATCH: Final = 1024
_AHEAD: Final = 6
"""Batches that wait, at most: the fold must not run away from the checks, for memory."""

_Check = tuple[int, str, bytes, bytes, bytes]
"""The entry, whose signature, the public key, what is signed, the signature: bytes travel cheaply."""


class SignatureChecks:
    """Checks of many notes' signatures, on `workers` processes beside this one; none for what is less than a batch.

    The first `checked` entries are those that were checked before, by whoever asks.
    """

    def __init__(self, *, workers: int | None = None, checked: int = 0) -> None:
        self._workers = workers or len(os.sched_getaffinity(0))
        self._index, self.checked = 0, checked
        self._batch: list[_Check] = []
        self._running: deque[Future[tuple[int, str] | None]] = deque()
        self._pool: ProcessPoolExecutor | None = None
        self.failed: tuple[int, str] | None = None
        """The first entry whose signatures do not hold, of those that were checked, and why."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def of_entry(self, index: int) -> None:
        """What is asked for from here on belongs to this entry."""
        self._index = index

    def verify(self, note: Note, verifiers: Sequence[Verifier]) -> None:
        """Ask that every one of `verifiers` signed `note`."""
        if self._index < self.checked:
            return
        for verifier in verifiers:
            check = verifier.name, verifier.public_key, note.text.encode(), note.signature_by(verifier)
            self._batch.append((self._index, *check))
        if len(self._batch) >= _BATCH:
            self._submit()

    def finish(self) -> None:
        """Wait for everything that was asked for; `failed` is known then."""
        if self._pool is None:
            self._take(_check(self._batch))
            return
        self._submit()
        while self._running:
            self._take(self._running.popleft().result())

    def _submit(self) -> None:
        if self._pool is None:
            self._pool = ProcessPoolExecutor(self._workers, initializer=_give_way)
        self._running.append(self._pool.submit(_check, self._batch))
        self._batch = []
        while len(self._running) > _AHEAD or (self._running and self._running[0].done()):
            self._take(self._running.popleft().result())

    def _take(self, found: tuple[int, str] | None) -> None:
        if self.failed is None:
            self.failed = found


def _give_way() -> None:
    """Let the fold go first where cores are few: it cannot be shared, and checks can wait for it."""
    os.nice(5)


def _check(batch: Sequence[_Check]) -> tuple[int, str] | None:
    for index, name, public_key, message, data in batch:
        if not signature_holds(public_key, message, data):
            return index, f"the signature by {name} does not hold"
    return None
