"""Documents as packed sequences of tokens, mixed into batches.

Sequences come with document ids, and iterators yield `(batch, state)`: resuming is starting from `state`. No torch
here, and no tokenizer: tokens arrive as lists of integers.

Shapes: B batch, T sequence length.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from common.errors import MalformedError


@dataclass(frozen=True, slots=True)
class Batch:
    """What a training step reads; all int64 [B, T].

    `targets_BT` is the next token everywhere: each document starts after an end-of-text token, and ends by predicting
    one. `document_ids_BT` tells the documents of a row apart, so attention need not cross them; `part_ids_BT` tells the
    parts of patchworks apart too. `sources_B` is the index of the source a row comes from.
    """

    input_ids_BT: NDArray[np.int64]
    targets_BT: NDArray[np.int64]
    document_ids_BT: NDArray[np.int64]
    part_ids_BT: NDArray[np.int64]
    sources_B: NDArray[np.int64]


class PackedText:
    """A source of fixed-length sequences: documents end to end, in an order that `seed` and the epoch decide.

    Sequence `i` of all eternity is a pure function of the documents, the seed and `i`, so a reader can start anywhere.
    """

    def __init__(
        self,
        documents: Sequence[Sequence[int]],
        *,
        sequence_length: int,
        eos_token_id: int,
        seed: int,
        name: str = "text",
        patchworks: Sequence[Sequence[Sequence[int]]] = (),
    ) -> None:
        """Pack `documents`, each a list of token ids without end-of-text, and `patchworks`, each a list of parts that
        make one document.

        Raises:
            MalformedError: the tokens do not fill one sequence; the message says how many there are and are needed.
        """
        if sequence_length < 1:
            raise ValueError(f"sequence_length is {sequence_length}")
        whole = [[tokens] for tokens in documents] + [list(parts) for parts in patchworks]
        num_tokens = sum(1 + sum(map(len, parts)) for parts in whole)
        if num_tokens < sequence_length + 1:
            raise MalformedError(
                f"{name}: {num_tokens:,} tokens are too few; one sequence needs {sequence_length + 1:,}. "
                "Add documents or choose a smaller sequence_length"
            )
        self._documents = [np.array([eos_token_id, *chain.from_iterable(parts)], np.int32) for parts in whole]
        self._begins = [_begins(parts) for parts in whole]
        self._eos_token_id = eos_token_id
        self.sequence_length, self._seed = sequence_length, seed
        self.num_tokens = num_tokens
        self.num_sequences = num_tokens // sequence_length
        self._epoch = -1
        self._tokens = np.zeros(0, np.int32)
        self._ids = np.zeros(0, np.int32)
        self._part_ids = np.zeros(0, np.int32)
        self._order = np.zeros(0, np.int64)

    def sequence(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
        """Tokens [T + 1], document ids [T] and part ids [T] of sequence `index`, counted through all epochs."""
        epoch, position = divmod(index, self.num_sequences)
        if epoch != self._epoch:
            self._lay_out(epoch)
        start = int(self._order[position]) * self.sequence_length
        end = start + self.sequence_length
        return self._tokens[start : end + 1], self._ids[start:end], self._part_ids[start:end]

    def _lay_out(self, epoch: int) -> None:
        random = np.random.default_rng([self._seed, epoch])
        order = random.permutation(len(self._documents))
        documents = [self._documents[i] for i in order]
        # The last document predicts its end too, and a tail shorter than a sequence is left for another epoch's order.
        self._tokens = np.concatenate([*documents, np.array([self._eos_token_id], np.int32)])
        self._ids = np.repeat(np.arange(len(documents), dtype=np.int32), [len(tokens) for tokens in documents])
        self._part_ids = np.concatenate([self._begins[i] for i in order]).cumsum(dtype=np.int32)
        self._order = random.permutation(self.num_sequences)
        self._epoch = epoch


def _begins(parts: Sequence[Sequence[int]]) -> NDArray[np.int8]:
    """1 where a part of a document begins, else 0; the first one with the end-of-text token before it."""
    begins = np.zeros(1 + sum(map(len, parts)), np.int8)
    begins[0] = 1
    begins[1 + np.cumsum([len(part) for part in parts[:-1]], dtype=np.int64)] = 1
    return begins


@dataclass(frozen=True, slots=True)
class MixtureState:
    """Where a mixture stands: the sequences taken from each source so far."""

    consumed: tuple[int, ...]


def batches(
    sources: Sequence[PackedText], *, shares: Sequence[float], batch_size: int, state: MixtureState | None = None
) -> Iterator[tuple[Batch, MixtureState]]:
    """Endless batches that mix `sources` by `shares`, each with the state after it.

    Shares hold exactly in the long run and to within one sequence in every batch: after n sequences, source i has given
    floor(n * share_i), and the first source what is left.

    Raises:
        ValueError: shares and sources do not match, or do not sum to 1.
    """
    if len(shares) != len(sources) or abs(sum(shares) - 1) > 1e-9 or min(shares) < 0 or batch_size < 1:
        raise ValueError(f"shares {shares} for {len(sources)} source(s), batch_size {batch_size}")
    consumed = state.consumed if state else (0,) * len(sources)
    if len(consumed) != len(sources):
        raise ValueError(f"state has {len(consumed)} sources, not {len(sources)}")
    while True:
        total = sum(consumed) + batch_size
        others = [int(total * share + 1e-9) for share in shares[1:]]
        upto = (total - sum(others), *others)
        yield _batch(sources, consumed, upto), MixtureState(upto)
        consumed = upto


def _batch(sources: Sequence[PackedText], consumed: tuple[int, ...], upto: tuple[int, ...]) -> Batch:
    rows = [(i, index) for i in range(len(sources)) for index in range(consumed[i], upto[i])]
    sequences = [sources[i].sequence(index) for i, index in rows]
    tokens, document_ids, part_ids = (np.stack(arrays).astype(np.int64) for arrays in zip(*sequences, strict=True))
    return Batch(
        input_ids_BT=tokens[:, :-1],
        targets_BT=tokens[:, 1:],
        document_ids_BT=document_ids,
        part_ids_BT=part_ids,
        sources_B=np.array([i for i, _ in rows], np.int64),
    )
