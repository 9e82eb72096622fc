"""The log's arithmetic: RFC 6962 hashes, and proofs built from stored hashes and verified without them.

Tree, inclusion and consistency proofs: RFC 6962 section 2.1; verification: RFC 9162 sections 2.1.3.2 and 2.1.4.2.
Complete subtrees are stored once, in the order in which appending leaves completes them (the "stored hash" layout of
the published transparent log design), so a log only ever appends rows. Pure: what is stored where is the caller's
`read`. All hashes are 32 bytes. Signed checkpoints are in `note.py`.
"""

from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from typing import Final

from common.errors import VerificationError

HASH_BYTES: Final = 32
EMPTY_ROOT: Final = sha256(b"").digest()
MAX_SIZE: Final = 2**63 - 1

ReadHashes = Callable[[Sequence[int]], Sequence[bytes]]
"""Stored hashes by stored hash index, in the order asked for."""

_Range = tuple[int, int]  # leaves [start, end), always one that a split of RFC 6962 makes


def leaf_hash(data: bytes) -> bytes:
    """Hash of one entry."""
    return sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash of an inner node over its two children's hashes."""
    return sha256(b"\x01" + left + right).digest()


def stored_hash_index(level: int, n: int) -> int:
    """Where the hash of the `n`-th complete subtree of 2**level leaves is stored: as its last leaf completes it."""
    last_leaf = ((n + 1) << level) - 1
    return stored_hash_count(last_leaf) + level


def stored_hash_count(size: int) -> int:
    """How many hashes a tree of `size` leaves stores: one for each complete subtree."""
    return 2 * size - size.bit_count()


def hashes_to_append(leaf_index: int, leaf_hash: bytes, read: ReadHashes) -> list[bytes]:
    """The hashes to store, from `stored_hash_count(leaf_index)` on, when the leaf `leaf_index` is appended.

    The leaf's own hash comes first, then one for every subtree this leaf completes, smallest first.

    Raises:
        ValueError: `leaf_index` is negative.
        VerificationError: `read` returned something else than the hashes asked for.
    """
    if leaf_index < 0:
        raise ValueError(f"leaf index {leaf_index} is negative")
    num_completed = (~leaf_index & (leaf_index + 1)).bit_length() - 1  # trailing one bits
    left_siblings = [stored_hash_index(level, (leaf_index >> level) - 1) for level in range(num_completed)]
    hashes = [leaf_hash]
    for sibling in _read(left_siblings, read):
        hashes.append(node_hash(sibling, hashes[-1]))
    return hashes


def tree_hash(size: int, read: ReadHashes) -> bytes:
    """Root hash of the first `size` leaves.

    Raises:
        ValueError: `size` is negative.
        VerificationError: `read` returned something else than the hashes asked for.
    """
    if size < 0:
        raise ValueError(f"tree size {size} is negative")
    return _range_hashes([(0, size)], read)[0] if size else EMPTY_ROOT


def inclusion_proof(index: int, size: int, read: ReadHashes) -> tuple[bytes, ...]:
    """Proof that leaf `index` is in the tree of `size` leaves, the leaf's sibling first (RFC 6962 section 2.1.1).

    Raises:
        ValueError: the tree has no such leaf.
        VerificationError: `read` returned something else than the hashes asked for.
    """
    if not 0 <= index < size:
        raise ValueError(f"leaf index {index} is not in a tree of size {size}")
    siblings: list[_Range] = []
    start, end = 0, size
    while end - start > 1:
        middle = _split(start, end)
        if index < middle:
            siblings.append((middle, end))
            end = middle
        else:
            siblings.append((start, middle))
            start = middle
    return tuple(_range_hashes(siblings[::-1], read))


def consistency_proof(old_size: int, new_size: int, read: ReadHashes) -> tuple[bytes, ...]:
    """Proof that the tree of `old_size` leaves is a prefix of the one of `new_size` (RFC 6962 section 2.1.2).

    Empty for equal sizes and for `old_size` 0.

    Raises:
        ValueError: not 0 <= old_size <= new_size.
        VerificationError: `read` returned something else than the hashes asked for.
    """
    if not 0 <= old_size <= new_size:
        raise ValueError(f"a tree of size {old_size} is no prefix of one of size {new_size}")
    if old_size == 0:
        return ()
    siblings: list[_Range] = []
    start, end = 0, new_size
    while end != old_size:
        middle = _split(start, end)
        if old_size <= middle:
            siblings.append((middle, end))
            end = middle
        else:
            siblings.append((start, middle))
            start = middle
    if start > 0:  # else what is left is the old tree itself, whose root the verifier holds
        siblings.append((start, end))
    return tuple(_range_hashes(siblings[::-1], read))


def verify_inclusion(*, index: int, size: int, leaf: bytes, proof: Sequence[bytes], root: bytes) -> None:
    """Check that the leaf hash `leaf` stands at `index` in the tree of `size` leaves with root hash `root`.

    `size` and `root` come from one signed checkpoint; the proof alone does not bind a root to its size.

    Raises:
        VerificationError: it is not proven: wrong leaf, index, size, root, or a proof that is wrong, short or long.
    """
    _check_size(size)
    if not 0 <= index < size:
        raise VerificationError(f"inclusion: leaf index {index} is not in a tree of size {size}")
    _check_hashes("inclusion", (leaf, root, *proof))
    num_inner = (
        index ^ (size - 1)
    ).bit_length()  # below, siblings on both sides; above, the right edge: left ones only
    expected = num_inner + (index >> num_inner).bit_count()
    if len(proof) != expected:
        raise VerificationError(f"inclusion: proof of {len(proof)} hashes, expected {expected}")
    computed = leaf
    for level, sibling in enumerate(proof):
        is_right = level >= num_inner or index >> level & 1
        computed = node_hash(sibling, computed) if is_right else node_hash(computed, sibling)
    if computed != root:
        raise VerificationError(f"inclusion: leaf {index} leads to root {computed.hex()}, not {root.hex()}")


def verify_consistency(
    *, old_size: int, old_root: bytes, new_size: int, new_root: bytes, proof: Sequence[bytes]
) -> None:
    """Check that the tree of `old_size` leaves is a prefix of the tree of `new_size` leaves.

    Each size and its root come from one signed checkpoint; the proof alone does not bind a root to its size.

    Raises:
        VerificationError: it is not proven: wrong sizes or roots, or a proof that is wrong, short or long.
    """
    _check_size(new_size)
    if not 0 <= old_size <= new_size:
        raise VerificationError(f"consistency: a tree of size {old_size} is no prefix of one of size {new_size}")
    _check_hashes("consistency", (old_root, new_root, *proof))
    for size, root in ((old_size, old_root), (new_size, new_root)):
        if size == 0 and root != EMPTY_ROOT:
            raise VerificationError(f"consistency: {root.hex()} is not the root of the empty tree")
    if old_size in (0, new_size):
        if proof:
            raise VerificationError(f"consistency: proof of {len(proof)} hashes, expected none")
        if old_size == new_size and old_root != new_root:
            raise VerificationError(f"consistency: two roots at size {old_size}: {old_root.hex()}, {new_root.hex()}")
        return
    computed_old, computed_new = _consistency_roots(old_size, old_root, new_size, proof)
    if computed_old != old_root:
        raise VerificationError(f"consistency: old root is {computed_old.hex()}, not {old_root.hex()}")
    if computed_new != new_root:
        raise VerificationError(f"consistency: new root is {computed_new.hex()}, not {new_root.hex()}")


class RunningRoot:
    """Root hash of leaves appended one by one, keeping one hash for each complete subtree on the right edge."""

    __slots__ = ("_edge", "_size")

    def __init__(self) -> None:
        self._edge: list[bytes] = []  # widest subtree first
        self._size = 0

    @classmethod
    def load(cls, size: int, read: ReadHashes) -> "RunningRoot":
        """Go on from a stored tree of `size` leaves.

        Raises:
            VerificationError: `read` returned something else than the hashes asked for.
        """
        running = cls()
        running._edge, running._size = list(_read(list(_subtrees(0, size)), read)), size
        return running

    def copy(self) -> "RunningRoot":
        """Another one that stands where this one does."""
        other = RunningRoot()
        other._edge, other._size = self._edge.copy(), self._size
        return other

    @property
    def size(self) -> int:
        """Number of leaves appended so far."""
        return self._size

    @property
    def root(self) -> bytes:
        """Root hash of the leaves appended so far."""
        return _fold(self._edge) if self._edge else EMPTY_ROOT

    def stored(self) -> dict[int, bytes]:
        """The hashes that are kept, by stored hash index: with those that come after, all that proofs of later leaves
        need."""
        return dict(zip(_subtrees(0, self._size), self._edge, strict=True))

    def append(self, leaf_hash: bytes) -> list[bytes]:
        """Append one leaf by its hash; returns the hashes to store for it, as `hashes_to_append`."""
        completed = [leaf_hash]
        size = self._size
        while size & 1:
            completed.append(sha256(b"\x01" + self._edge.pop() + completed[-1]).digest())
            size >>= 1
        self._edge.append(completed[-1])
        self._size += 1
        return completed


def _split(start: int, end: int) -> int:
    """Where RFC 6962 splits the leaves [start, end): after the largest power of two smaller than their number."""
    return start + (1 << ((end - start - 1).bit_length() - 1))


def _subtrees(start: int, end: int) -> Iterator[int]:
    """Stored hash indexes of the complete subtrees that make up the leaves [start, end), widest first."""
    num_left = end - start
    while num_left:
        level = num_left.bit_length() - 1
        yield stored_hash_index(level, start >> level)
        start += 1 << level
        num_left -= 1 << level


def _range_hashes(ranges: Sequence[_Range], read: ReadHashes) -> list[bytes]:
    """Hash of every range, with one read for all of them."""
    indexes = [list(_subtrees(start, end)) for start, end in ranges]
    stored = iter(_read([index for subtrees in indexes for index in subtrees], read))
    return [_fold([next(stored) for _ in subtrees]) for subtrees in indexes]


def _fold(subtrees: Sequence[bytes]) -> bytes:
    """Hash over complete subtrees, widest first; there is at least one."""
    computed = subtrees[-1]
    for left in reversed(subtrees[:-1]):
        computed = node_hash(left, computed)
    return computed


def _read(indexes: Sequence[int], read: ReadHashes) -> Sequence[bytes]:
    """The stored hashes asked for: a reader that drops or cuts some must not shift a proof silently."""
    if not indexes:
        return ()
    hashes = read(indexes)
    if len(hashes) != len(indexes):
        raise VerificationError(f"asked for {len(indexes)} stored hashes, got {len(hashes)}")
    _check_hashes("stored hashes", hashes)
    return hashes


def _check_size(size: int) -> None:
    if not 0 <= size <= MAX_SIZE:
        raise VerificationError(f"tree size {size} is not between 0 and {MAX_SIZE}")


def _check_hashes(what: str, hashes: Sequence[bytes]) -> None:
    for candidate in hashes:
        if len(candidate) != HASH_BYTES:
            raise VerificationError(f"{what}: a hash of {len(candidate)} bytes, expected {HASH_BYTES}")


def _consistency_roots(old_size: int, old_root: bytes, new_size: int, proof: Sequence[bytes]) -> tuple[bytes, bytes]:
    """Both roots that `proof` leads to (RFC 9162 section 2.1.4.2), for 0 < old_size < new_size."""
    # The widest complete subtree ending where the old tree ends: the proof's first hash, or the old tree itself.
    old_node, new_node = old_size - 1, new_size - 1
    num_shared = (~old_node & (old_node + 1)).bit_length() - 1  # trailing one bits
    old_node, new_node = old_node >> num_shared, new_node >> num_shared
    path = list(proof) if old_node else [old_root, *proof]
    if not path:
        raise VerificationError("consistency: the proof is empty")
    computed_old = computed_new = path[0]
    for sibling in path[1:]:
        if new_node == 0:
            raise VerificationError(f"consistency: proof of {len(proof)} hashes is too long")
        if old_node & 1 or old_node == new_node:
            computed_old = node_hash(sibling, computed_old)
            computed_new = node_hash(sibling, computed_new)
            while old_node and not old_node & 1:  # the right edge has no sibling here
                old_node, new_node = old_node >> 1, new_node >> 1
        else:
            computed_new = node_hash(computed_new, sibling)
        old_node, new_node = old_node >> 1, new_node >> 1
    if new_node:
        raise VerificationError(f"consistency: proof of {len(proof)} hashes is too short")
    return computed_old, computed_new
