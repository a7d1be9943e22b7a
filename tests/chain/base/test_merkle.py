"""R18: RFC 6962 trees against the known values of Certificate Transparency's tests and against a naive recursion."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chain.base import merkle
from chain.base.errors import Fault

KNOWN_LEAVES = [
    bytes.fromhex(one)
    for one in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
KNOWN_ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
KNOWN_PATH = [
    "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
    "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
    "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
]
LEAVES = st.lists(st.binary(max_size=5), min_size=1, max_size=40, unique=True)


def sha(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


def split(size: int) -> int:
    """The largest power of two smaller than `size`."""
    k = 1
    while 2 * k < size:
        k *= 2
    return k


def hash_naively(leaves: Sequence[bytes]) -> bytes:
    """MTH of RFC 6962 section 2.1, word for word."""
    if not leaves:
        return sha()
    if len(leaves) == 1:
        return sha(b"\x00", leaves[0])
    k = split(len(leaves))
    return sha(b"\x01", hash_naively(leaves[:k]), hash_naively(leaves[k:]))


def climb_naively(leaf: bytes, index: int, size: int, path: Sequence[bytes]) -> bytes | None:
    """The root that an audit path leads to, by recursion from the top; None where its length is wrong."""
    if size == 1:
        return leaf if not path else None
    if not path:
        return None
    k, top = split(size), path[-1]
    if index < k:
        left = climb_naively(leaf, index, k, path[:-1])
        return None if left is None else sha(b"\x01", left, top)
    right = climb_naively(leaf, index - k, size - k, path[:-1])
    return None if right is None else sha(b"\x01", top, right)


@pytest.mark.parametrize("size", range(9))
def test_known_roots(size: int) -> None:
    assert merkle.compute_root(KNOWN_LEAVES[:size]).hex() == KNOWN_ROOTS[size]


def test_known_audit_path_and_consistency_proof() -> None:
    assert [one.hex() for one in merkle.prove_inclusion(KNOWN_LEAVES, 0)] == KNOWN_PATH
    assert [one.hex() for one in merkle.prove_consistency(KNOWN_LEAVES, 1)] == KNOWN_PATH


@given(st.lists(st.binary(max_size=5), max_size=70))
def test_the_root_is_that_of_the_recursion(leaves: list[bytes]) -> None:
    assert merkle.compute_root(leaves) == hash_naively(leaves)


@given(LEAVES, st.data())
def test_a_path_is_taken_exactly_where_the_recursion_leads_to_the_root(
    leaves: list[bytes], data: st.DataObject
) -> None:
    """Any claim of index and size beside the true ones; with the true size only the true index."""
    size = len(leaves)
    index = data.draw(st.integers(0, size - 1))
    path, root = merkle.prove_inclusion(leaves, index), merkle.compute_root(leaves)
    assert merkle.is_included(leaves[index], index, size, path, root)
    for other_size in range(1, size + 10):
        for other in range(other_size):
            reached = climb_naively(merkle.compute_leaf(leaves[index]), other, other_size, path)
            taken = merkle.is_included(leaves[index], other, other_size, path, root)
            assert taken == (reached == root), (other, other_size)
            if other_size == size:
                assert taken == (other == index), other


@given(LEAVES, st.data())
def test_an_altered_proof_of_inclusion_is_refused(leaves: list[bytes], data: st.DataObject) -> None:
    size = len(leaves)
    index = data.draw(st.integers(0, size - 1))
    path, root = merkle.prove_inclusion(leaves, index), merkle.compute_root(leaves)
    leaf = leaves[index]
    assert not merkle.is_included(leaf + b"x", index, size, path, root)
    assert not merkle.is_included(leaf, index, size, path, flip(root, data))
    assert not merkle.is_included(leaf, index, size, (*path, root), root)
    for number, sibling in enumerate(path):
        assert not merkle.is_included(leaf, index, size, path[:number] + path[number + 1 :], root)
        altered = (*path[:number], flip(sibling, data), *path[number + 1 :])
        assert not merkle.is_included(leaf, index, size, altered, root)
    for wrong in (-1, size, size + 1, index - size):
        assert not merkle.is_included(leaf, wrong, size, path, root)
    assert not merkle.is_included(leaf, index, 0, path, root)


@given(LEAVES, st.data())
def test_a_prefix_is_consistent_and_nothing_altered_is(leaves: list[bytes], data: st.DataObject) -> None:
    size = len(leaves)
    old = data.draw(st.integers(1, size))
    proof = merkle.prove_consistency(leaves, old)
    old_root, root = merkle.compute_root(leaves[:old]), merkle.compute_root(leaves)
    assert merkle.is_consistent(old, old_root, size, root, proof)
    assert not merkle.is_consistent(old, flip(old_root, data), size, root, proof)
    assert not merkle.is_consistent(old, old_root, size, flip(root, data), proof)
    assert not merkle.is_consistent(old, old_root, size, root, (*proof, root))
    for number, node in enumerate(proof):
        assert not merkle.is_consistent(old, old_root, size, root, proof[:number] + proof[number + 1 :])
        altered = (*proof[:number], flip(node, data), *proof[number + 1 :])
        assert not merkle.is_consistent(old, old_root, size, root, altered)


@given(LEAVES, st.data())
def test_another_history_is_not_consistent(leaves: list[bytes], data: st.DataObject) -> None:
    """Change one leaf of the prefix: neither its own proof nor the true tree's leads from the old root to it."""
    size = len(leaves)
    old = data.draw(st.integers(1, size))
    changed = data.draw(st.integers(0, old - 1))
    forked = [*leaves[:changed], leaves[changed] + b"!", *leaves[changed + 1 :]]
    old_root, root = merkle.compute_root(leaves[:old]), merkle.compute_root(forked)
    for proof in (merkle.prove_consistency(forked, old), merkle.prove_consistency(leaves, old)):
        assert not merkle.is_consistent(old, old_root, size, root, proof)


def test_all_pairs_of_small_sizes_are_proved_and_no_other_size_has_the_same_prefix() -> None:
    leaves = [bytes([number]) for number in range(20)]
    roots = [merkle.compute_root(leaves[:size]) for size in range(21)]
    for size in range(1, 21):
        for old in range(1, size + 1):
            proof = merkle.prove_consistency(leaves[:size], old)
            assert merkle.is_consistent(old, roots[old], size, roots[size], proof)
            for other in range(1, size):
                if other != old:
                    assert not merkle.is_consistent(old, roots[other], size, roots[size], proof)


def grow_naively(
    old: int, size: int, proof: Sequence[bytes], old_root: bytes, *, whole: bool = True
) -> tuple[bytes, bytes] | None:
    """The two roots that a consistency proof leads to, by SUBPROOF's own recursion from the top."""
    if old == size:
        if len(proof) != (not whole):
            return None
        root = old_root if whole else proof[0]
        return root, root
    if not proof:
        return None
    k, top = split(size), proof[-1]
    if old <= k:
        below = grow_naively(old, k, proof[:-1], old_root, whole=whole)
        return below and (below[0], sha(b"\x01", below[1], top))
    below = grow_naively(old - k, size - k, proof[:-1], old_root, whole=False)
    return below and (sha(b"\x01", top, below[0]), sha(b"\x01", top, below[1]))


def test_a_consistency_proof_is_taken_exactly_where_the_recursion_leads_to_both_roots() -> None:
    """Every true proof of small trees under every claim of sizes."""
    leaves = [bytes([number]) for number in range(10)]
    roots = [merkle.compute_root(leaves[:size]) for size in range(11)]
    for size in range(1, 11):
        for old in range(1, size + 1):
            proof = merkle.prove_consistency(leaves[:size], old)
            for claimed in range(1, 15):
                for before in range(1, claimed + 1):
                    reached = grow_naively(before, claimed, proof, roots[old])
                    taken = merkle.is_consistent(before, roots[old], claimed, roots[size], proof)
                    assert taken == (reached == (roots[old], roots[size])), (old, size, before, claimed)


@pytest.mark.parametrize("size", range(2, 12))
def test_a_proof_that_goes_on_above_the_root_is_refused(size: int) -> None:
    """One node too many, with both roots raised by it so that all hashes fit."""
    leaves = [bytes([number]) for number in range(size)]
    above = merkle.compute_leaf(b"above")
    for old in range(1, size):
        roots = [merkle.compute_node(above, merkle.compute_root(leaves[:one])) for one in (old, size)]
        proof = merkle.prove_consistency(leaves, old)
        if old & (old - 1) == 0:  # the old root itself begins the proof where it is a whole subtree
            proof = (merkle.compute_root(leaves[:old]), *proof)
        assert merkle._replay_consistency(old - 1, size - 1, proof) is not None
        assert merkle._replay_consistency(old - 1, size - 1, (*proof, above)) is None
        assert not merkle.is_consistent(old, roots[0], size, roots[1], (*proof, above))


EDGES = [(0, 0), (0, 1), (2, 1), (-1, 1), (5, 4)]


@pytest.mark.parametrize(("old", "size"), EDGES)
def test_sizes_that_cannot_be_are_not_consistent(old: int, size: int) -> None:
    assert not merkle.is_consistent(old, merkle.EMPTY_ROOT, size, merkle.EMPTY_ROOT, ())
    assert not merkle.is_consistent(old, merkle.EMPTY_ROOT, size, merkle.EMPTY_ROOT, (bytes(32),))


def test_the_same_tree_needs_no_proof_and_takes_none() -> None:
    root = merkle.compute_root(KNOWN_LEAVES)
    assert merkle.is_consistent(8, root, 8, root, ())
    assert not merkle.is_consistent(8, root, 8, root, (root,))
    assert not merkle.is_consistent(8, bytes(32), 8, root, ())


@pytest.mark.parametrize("size", [2, 3, 5, 8])
def test_an_empty_proof_never_joins_two_sizes(size: int) -> None:
    for old in range(1, size):
        assert not merkle.is_consistent(
            old, merkle.compute_root(KNOWN_LEAVES[:old]), size, merkle.compute_root(KNOWN_LEAVES[:size]), ()
        )


def test_a_leaf_is_no_node() -> None:
    """The bytes of a node as a leaf do not give the node's hash (second preimage)."""
    left, right = merkle.compute_leaf(b"a"), merkle.compute_leaf(b"b")
    assert merkle.compute_leaf(left + right) != merkle.compute_node(left, right)
    assert merkle.compute_root([left + right]) != merkle.compute_root([b"a", b"b"])


@pytest.mark.parametrize("index", [-1, 8, 100])
def test_there_is_no_path_to_a_leaf_that_is_not_there(index: int) -> None:
    with pytest.raises(Fault) as fault:
        merkle.prove_inclusion(KNOWN_LEAVES, index)
    assert fault.value.rule == "merkle.index"


@pytest.mark.parametrize("size", [-1, 0, 9])
def test_there_is_no_proof_for_a_prefix_that_is_not_one(size: int) -> None:
    with pytest.raises(Fault) as fault:
        merkle.prove_consistency(KNOWN_LEAVES, size)
    assert fault.value.rule == "merkle.index"


def flip(data: bytes, draw: st.DataObject) -> bytes:
    """One bit of `data` turned."""
    bit = draw.draw(st.integers(0, 8 * len(data) - 1))
    return (int.from_bytes(data, "big") ^ 1 << bit).to_bytes(len(data), "big")


@given(st.lists(st.binary(max_size=5), max_size=70))
def test_a_frontier_has_the_root_of_the_list_at_every_size(leaves: list[bytes]) -> None:
    frontier = merkle.Frontier()
    for size, leaf in enumerate(leaves):
        assert (frontier.size, frontier.root) == (size, hash_naively(leaves[:size]))
        frontier.append(leaf)
    assert (frontier.size, frontier.root) == (len(leaves), hash_naively(leaves))
    again = merkle.Frontier(leaves)
    assert (again.size, again.root) == (frontier.size, frontier.root)


@pytest.mark.parametrize("size", [0, 1, 2, 3, 63, 64, 65, 127, 128, 1000])
def test_a_frontier_keeps_one_hash_for_each_bit_of_its_size(size: int) -> None:
    """O(log n) memory: nothing of the leaves stays."""
    frontier = merkle.Frontier(b"%d" % n for n in range(size))
    assert len(frontier._peaks) == size.bit_count()


@given(st.lists(st.binary(max_size=5), max_size=40), LEAVES, LEAVES)
def test_copies_of_a_frontier_grow_by_themselves(start: list[bytes], one: list[bytes], other: list[bytes]) -> None:
    """A prefix that turns out wrong is dropped with its copy; what it was copied from stands as it was."""
    frontier = merkle.Frontier(start)
    twin = frontier.copy()
    for leaf in one:
        twin.append(leaf)
    assert (frontier.size, frontier.root) == (len(start), hash_naively(start))
    for leaf in other:
        frontier.append(leaf)
    assert (twin.size, twin.root) == (len(start) + len(one), hash_naively([*start, *one]))
    assert (frontier.size, frontier.root) == (len(start) + len(other), hash_naively([*start, *other]))
