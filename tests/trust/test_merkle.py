"""The log's arithmetic against RFC 6962's own recursive definitions, for every small tree and some larger ones."""

from collections.abc import Sequence
from functools import cache
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import VerificationError
from common.trust import merkle

MAX_LEAVES = 256
LARGE = 700
LEAVES = [sha256(b"\x00" + f"entry {i}".encode()).digest() for i in range(LARGE)]

Shape = tuple[str, ...]


# The definitions of RFC 6962 section 2.1, word by word, over the leaves [start, end).


def largest_power_below(n: int) -> int:
    power = 1
    while power * 2 < n:
        power *= 2
    return power


@cache
def reference_root(start: int, end: int) -> bytes:
    if start == end:
        return sha256(b"").digest()
    if end - start == 1:
        return LEAVES[start]
    middle = start + largest_power_below(end - start)
    return sha256(b"\x01" + reference_root(start, middle) + reference_root(middle, end)).digest()


def reference_path(index: int, start: int, end: int) -> list[tuple[str, bytes]]:
    """Siblings of the leaf `start + index`, each with the side it is on."""
    if end - start == 1:
        return []
    k = largest_power_below(end - start)
    if index < k:
        return [*reference_path(index, start, start + k), ("right", reference_root(start + k, end))]
    return [*reference_path(index - k, start + k, end), ("left", reference_root(start, start + k))]


def reference_subproof(m: int, start: int, end: int, *, is_whole: bool) -> list[tuple[str, bytes]]:
    n = end - start
    if m == n:
        return [] if is_whole else [("first", reference_root(start, end))]
    k = largest_power_below(n)
    if m <= k:
        rest = reference_subproof(m, start, start + k, is_whole=is_whole)
        return [*rest, ("right", reference_root(start + k, end))]
    rest = reference_subproof(m - k, start + k, end, is_whole=False)
    return [*rest, ("left", reference_root(start, start + k))]


def hashes(path: Sequence[tuple[str, bytes]]) -> tuple[bytes, ...]:
    return tuple(hashed for _, hashed in path)


def shape(path: Sequence[tuple[str, bytes]]) -> Shape:
    return tuple(side for side, _ in path)


def stored(size: int) -> list[bytes]:
    store: list[bytes] = []

    def read_back(indexes: Sequence[int]) -> list[bytes]:
        return [store[i] for i in indexes]

    for index in range(size):
        store += merkle.hashes_to_append(index, LEAVES[index], read_back)
    return store


STORE = stored(LARGE)


def read(indexes: Sequence[int]) -> list[bytes]:
    return [STORE[i] for i in indexes]


def flips(data: bytes) -> list[bytes]:
    return [bytes([*data[:i], data[i] ^ 1 << bit, *data[i + 1 :]]) for i in range(len(data)) for bit in range(8)]


def inclusion_holds(index: int, size: int, leaf: bytes, proof: Sequence[bytes], root: bytes) -> bool:
    try:
        merkle.verify_inclusion(index=index, size=size, leaf=leaf, proof=proof, root=root)
    except VerificationError:
        return False
    return True


def consistency_of(old_size: int, old_root: bytes, new_size: int, new_root: bytes, *proof: bytes) -> None:
    merkle.verify_consistency(old_size=old_size, old_root=old_root, new_size=new_size, new_root=new_root, proof=proof)


def consistency_holds(old_size: int, old_root: bytes, new_size: int, new_root: bytes, *proof: bytes) -> bool:
    try:
        consistency_of(old_size, old_root, new_size, new_root, *proof)
    except VerificationError:
        return False
    return True


def test_published_roots() -> None:
    """The test vectors of Certificate Transparency's reference implementation."""
    entries = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
    roots = [
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    ]
    running = merkle.RunningRoot()
    computed = []
    for entry in entries:
        running.append(merkle.leaf_hash(bytes.fromhex(entry)))
        computed.append(running.root.hex())
    assert computed == roots


def test_empty_root_is_the_published_one() -> None:
    assert merkle.EMPTY_ROOT.hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_leaf_and_node_hashes_are_separated() -> None:
    left, right = LEAVES[:2]
    assert merkle.leaf_hash(left + right) != merkle.node_hash(left, right)


def test_stored_hash_layout() -> None:
    """Each appended leaf stores its own hash, then every subtree it completes: written out for eight leaves."""
    order = [(0, 0), (0, 1), (1, 0), (0, 2), (0, 3), (1, 1), (2, 0)]
    order += [(0, 4), (0, 5), (1, 2), (0, 6), (0, 7), (1, 3), (2, 1), (3, 0)]
    assert [merkle.stored_hash_index(level, n) for level, n in order] == list(range(len(order)))


def test_every_complete_subtree_is_stored_where_the_index_says() -> None:
    where = {}
    for level in range(MAX_LEAVES.bit_length()):
        for n in range(MAX_LEAVES >> level):
            where[merkle.stored_hash_index(level, n)] = reference_root(n << level, (n + 1) << level)
    count = merkle.stored_hash_count(MAX_LEAVES)
    assert [where[index] for index in range(count)] == STORE[:count]
    assert len(where) == count


@pytest.mark.parametrize("size", range(MAX_LEAVES + 1))
def test_a_log_stores_as_many_hashes_as_counted(size: int) -> None:
    assert merkle.stored_hash_count(size) == len(stored(size))


def test_every_root_up_to_64_leaves() -> None:
    running = merkle.RunningRoot()
    for size in range(MAX_LEAVES + 1):
        assert merkle.tree_hash(size, read) == running.root == reference_root(0, size)
        assert running.size == size
        running.append(LEAVES[size])


@pytest.mark.parametrize("size", range(1, MAX_LEAVES + 1))
def test_every_inclusion_proof(size: int) -> None:
    root = reference_root(0, size)
    for index in range(size):
        proof = merkle.inclusion_proof(index, size, read)
        assert proof == hashes(reference_path(index, 0, size))
        merkle.verify_inclusion(index=index, size=size, leaf=LEAVES[index], proof=proof, root=root)
        with pytest.raises(VerificationError):
            merkle.verify_inclusion(index=index, size=size, leaf=LEAVES[index + 1], proof=proof, root=root)


@pytest.mark.parametrize("new_size", range(MAX_LEAVES + 1))
def test_every_consistency_proof(new_size: int) -> None:
    new_root = reference_root(0, new_size)
    for old_size in range(new_size + 1):
        proof = merkle.consistency_proof(old_size, new_size, read)
        expected = hashes(reference_subproof(old_size, 0, new_size, is_whole=True)) if old_size else ()
        assert proof == expected
        old_root, other = reference_root(0, old_size), LEAVES[-1]
        merkle.verify_consistency(
            old_size=old_size, old_root=old_root, new_size=new_size, new_root=new_root, proof=proof
        )
        with pytest.raises(VerificationError):
            merkle.verify_consistency(
                old_size=old_size, old_root=other, new_size=new_size, new_root=new_root, proof=proof
            )
        if 0 < old_size < new_size:
            with pytest.raises(VerificationError):
                merkle.verify_consistency(
                    old_size=old_size, old_root=old_root, new_size=new_size, new_root=other, proof=proof
                )


@given(st.data())
def test_larger_trees(data: st.DataObject) -> None:
    new_size = data.draw(st.integers(1, LARGE))
    old_size = data.draw(st.integers(0, new_size))
    index = data.draw(st.integers(0, new_size - 1))
    old_root, new_root = merkle.tree_hash(old_size, read), merkle.tree_hash(new_size, read)
    assert new_root == reference_root(0, new_size)
    proof = merkle.inclusion_proof(index, new_size, read)
    merkle.verify_inclusion(index=index, size=new_size, leaf=LEAVES[index], proof=proof, root=new_root)
    proof = merkle.consistency_proof(old_size, new_size, read)
    merkle.verify_consistency(old_size=old_size, old_root=old_root, new_size=new_size, new_root=new_root, proof=proof)


EVERY_BIT_UP_TO = 32


@pytest.mark.parametrize("size", range(1, EVERY_BIT_UP_TO + 1))
def test_every_flipped_bit_of_every_inclusion_proof_is_refused(size: int) -> None:
    root = reference_root(0, size)
    for index in range(size):
        leaf, proof = LEAVES[index], merkle.inclusion_proof(index, size, read)
        assert inclusion_holds(index, size, leaf, proof, root)
        assert not any(inclusion_holds(index, size, flipped, proof, root) for flipped in flips(leaf))
        assert not any(inclusion_holds(index, size, leaf, proof, flipped) for flipped in flips(root))
        for i, each in enumerate(proof):
            for flipped in flips(each):
                assert not inclusion_holds(index, size, leaf, (*proof[:i], flipped, *proof[i + 1 :]), root)


@pytest.mark.parametrize("size", range(1, EVERY_BIT_UP_TO + 1))
def test_every_flipped_bit_of_every_consistency_proof_is_refused(size: int) -> None:
    root = reference_root(0, size)
    for old_size in range(1, size):
        old_root, proof = reference_root(0, old_size), merkle.consistency_proof(old_size, size, read)
        assert consistency_holds(old_size, old_root, size, root, *proof)
        assert not any(consistency_holds(old_size, flipped, size, root, *proof) for flipped in flips(old_root))
        assert not any(consistency_holds(old_size, old_root, size, flipped, *proof) for flipped in flips(root))
        for i, each in enumerate(proof):
            for flipped in flips(each):
                assert not consistency_holds(old_size, old_root, size, root, *proof[:i], flipped, *proof[i + 1 :])


INCLUSION_SAMPLE = [(0, 1), (1, 2), (2, 3), (4, 7), (12, 13), (5, 33), (63, 64)]
CONSISTENCY_SAMPLE = [(1, 2), (3, 4), (4, 7), (6, 8), (12, 13), (21, 64), (32, 33)]


@pytest.mark.parametrize(("index", "size"), INCLUSION_SAMPLE)
def test_inclusion_refuses_every_flipped_bit(index: int, size: int) -> None:
    leaf, root = LEAVES[index], reference_root(0, size)
    proof = merkle.inclusion_proof(index, size, read)
    attempts = [(flipped, proof, root) for flipped in flips(leaf)]
    attempts += [(leaf, proof, flipped) for flipped in flips(root)]
    for i in range(len(proof)):
        attempts += [(leaf, (*proof[:i], flipped, *proof[i + 1 :]), root) for flipped in flips(proof[i])]
    for bad_leaf, bad_proof, bad_root in attempts:
        with pytest.raises(VerificationError, match="leads to root"):
            merkle.verify_inclusion(index=index, size=size, leaf=bad_leaf, proof=bad_proof, root=bad_root)


@pytest.mark.parametrize(("old_size", "new_size"), CONSISTENCY_SAMPLE)
def test_consistency_refuses_every_flipped_bit(old_size: int, new_size: int) -> None:
    old_root, new_root = reference_root(0, old_size), reference_root(0, new_size)
    proof = merkle.consistency_proof(old_size, new_size, read)
    attempts = [(flipped, new_root, proof) for flipped in flips(old_root)]
    attempts += [(old_root, flipped, proof) for flipped in flips(new_root)]
    for i in range(len(proof)):
        attempts += [(old_root, new_root, (*proof[:i], flipped, *proof[i + 1 :])) for flipped in flips(proof[i])]
    for bad_old, bad_new, bad_proof in attempts:
        with pytest.raises(VerificationError, match="root is"):
            merkle.verify_consistency(
                old_size=old_size, old_root=bad_old, new_size=new_size, new_root=bad_new, proof=bad_proof
            )


@pytest.mark.parametrize(("index", "size"), INCLUSION_SAMPLE)
def test_inclusion_refuses_a_proof_of_another_length(index: int, size: int) -> None:
    root, proof = reference_root(0, size), merkle.inclusion_proof(index, size, read)
    for wrong in (proof[:-1], proof[1:], (*proof, root), (root, *proof), (*proof, *proof)):
        if wrong != proof:
            with pytest.raises(VerificationError, match="inclusion: proof of"):
                merkle.verify_inclusion(index=index, size=size, leaf=LEAVES[index], proof=wrong, root=root)


@pytest.mark.parametrize(("old_size", "new_size"), CONSISTENCY_SAMPLE)
def test_consistency_refuses_a_proof_of_another_length(old_size: int, new_size: int) -> None:
    old_root, new_root = reference_root(0, old_size), reference_root(0, new_size)
    proof = merkle.consistency_proof(old_size, new_size, read)
    for wrong in ((), proof[:-1], (*proof, new_root), (*proof, *proof)):
        with pytest.raises(VerificationError, match=r"empty|short|long"):
            merkle.verify_consistency(
                old_size=old_size, old_root=old_root, new_size=new_size, new_root=new_root, proof=wrong
            )


def test_inclusion_at_another_index_or_size_holds_only_for_the_same_path() -> None:
    """An index is never mistaken; a size only for one whose path has the same turns: the signed checkpoint binds it."""
    for size in range(1, 18):
        for index in range(size):
            path, root = reference_path(index, 0, size), reference_root(0, size)
            for other_size in range(1, 20):
                for other in range(other_size):
                    accepted = inclusion_holds(other, other_size, LEAVES[index], hashes(path), root)
                    assert accepted == (shape(reference_path(other, 0, other_size)) == shape(path))
                    assert not (accepted and other != index and other_size == size)


def test_consistency_of_other_sizes_holds_only_for_the_same_path() -> None:
    shapes = {
        (old, new): shape(reference_subproof(old, 0, new, is_whole=True))
        for new in range(2, 18)
        for old in range(1, new)
    }
    for (old, new), path_shape in shapes.items():
        proof = hashes(reference_subproof(old, 0, new, is_whole=True))
        old_root, new_root = reference_root(0, old), reference_root(0, new)
        for (other_old, other_new), other_shape in shapes.items():
            accepted = consistency_holds(other_old, old_root, other_new, new_root, *proof)
            assert accepted == (other_shape == path_shape)


@pytest.mark.parametrize(("index", "size"), [(-1, 4), (4, 4), (5, 4), (0, 0), (0, -1), (0, 2**63)])
def test_inclusion_refuses_indexes_outside_the_tree(index: int, size: int) -> None:
    with pytest.raises(VerificationError, match=r"not in a tree|tree size"):
        merkle.verify_inclusion(index=index, size=size, leaf=LEAVES[0], proof=(), root=LEAVES[0])


@pytest.mark.parametrize(("old_size", "new_size"), [(-1, 4), (5, 4), (0, -1), (1, 2**63)])
def test_consistency_refuses_impossible_sizes(old_size: int, new_size: int) -> None:
    with pytest.raises(VerificationError, match=r"no prefix|tree size"):
        merkle.verify_consistency(
            old_size=old_size, old_root=LEAVES[0], new_size=new_size, new_root=LEAVES[0], proof=()
        )


def test_consistency_from_the_empty_tree_takes_no_proof() -> None:
    consistency_of(0, merkle.EMPTY_ROOT, 3, reference_root(0, 3))
    with pytest.raises(VerificationError, match="expected none"):
        consistency_of(0, merkle.EMPTY_ROOT, 3, reference_root(0, 3), LEAVES[0])


def test_consistency_refuses_another_root_of_the_empty_tree() -> None:
    with pytest.raises(VerificationError, match="empty tree"):
        consistency_of(0, LEAVES[0], 3, reference_root(0, 3))
    with pytest.raises(VerificationError, match="empty tree"):
        consistency_of(0, merkle.EMPTY_ROOT, 0, LEAVES[0])


def test_consistency_refuses_two_roots_of_one_size() -> None:
    with pytest.raises(VerificationError, match="two roots at size 3"):
        consistency_of(3, reference_root(0, 3), 3, LEAVES[0])
    with pytest.raises(VerificationError, match="expected none"):
        consistency_of(3, reference_root(0, 3), 3, reference_root(0, 3), LEAVES[0])


@pytest.mark.parametrize("wrong", [b"", bytes(31), bytes(33)])
def test_verification_refuses_hashes_of_another_length(wrong: bytes) -> None:
    good = LEAVES[0]
    for leaf, proof, root in ((wrong, good, good), (good, wrong, good), (good, good, wrong)):
        with pytest.raises(VerificationError, match=f"a hash of {len(wrong)} bytes"):
            merkle.verify_inclusion(index=0, size=2, leaf=leaf, proof=(proof,), root=root)
    for old_root, new_root, hashed in ((wrong, good, good), (good, wrong, good), (good, good, wrong)):
        with pytest.raises(VerificationError, match=f"a hash of {len(wrong)} bytes"):
            consistency_of(1, old_root, 2, new_root, hashed)


def test_building_refuses_what_the_tree_does_not_have() -> None:
    for index, size in ((-1, 3), (3, 3), (0, 0)):
        with pytest.raises(ValueError, match="not in a tree"):
            merkle.inclusion_proof(index, size, read)
    for old_size, new_size in ((-1, 3), (4, 3)):
        with pytest.raises(ValueError, match="no prefix"):
            merkle.consistency_proof(old_size, new_size, read)
    with pytest.raises(ValueError, match="negative"):
        merkle.tree_hash(-1, read)
    with pytest.raises(ValueError, match="negative"):
        merkle.hashes_to_append(-1, LEAVES[0], read)


@pytest.mark.parametrize(
    "broken",
    [lambda wanted: read(wanted)[:-1], lambda wanted: [*read(wanted), LEAVES[0]], lambda wanted: [b""] * len(wanted)],
)
def test_a_reader_that_returns_something_else_is_noticed(broken: merkle.ReadHashes) -> None:
    for build in (
        lambda: merkle.tree_hash(7, broken),
        lambda: merkle.inclusion_proof(3, 7, broken),
        lambda: merkle.consistency_proof(3, 7, broken),
        lambda: merkle.hashes_to_append(7, LEAVES[7], broken),
    ):
        with pytest.raises(VerificationError, match="stored hashes"):
            build()


def test_every_operation_reads_at_most_once() -> None:
    calls: list[int] = []

    def counting(indexes: Sequence[int]) -> list[bytes]:
        calls.append(len(indexes))
        return read(indexes)

    for build in (
        lambda: merkle.tree_hash(LARGE - 1, counting),
        lambda: merkle.inclusion_proof(333, LARGE - 1, counting),
        lambda: merkle.consistency_proof(333, LARGE - 1, counting),
        lambda: merkle.hashes_to_append(511, LEAVES[511], counting),
    ):
        calls.clear()
        build()
        assert len(calls) == 1
        assert calls[0] <= 2 * LARGE.bit_length()
