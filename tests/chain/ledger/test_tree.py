"""The authenticated map against a naive model: root, proofs, shape, sharing (R18)."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chain.base.hashing import Tag, compute_digest, compute_id
from chain.base.merkle import EMPTY_ROOT
from chain.ledger.tree import Branch, Leaf, MapProof, Node, StateTree, Witness, get_hash

CHAIN = hashlib.sha256(b"chain").digest()
TREE = StateTree(CHAIN)
KEYS = st.integers(0, 40).map(lambda number: b"a%d" % number)
VALUES = st.binary(max_size=4)
MAPS = st.dictionaries(KEYS, VALUES, max_size=30)
CHANGES = st.dictionaries(KEYS, st.none() | VALUES, max_size=20)


def compute_naive_root(entries: dict[bytes, bytes]) -> bytes:
    """The root by definition: hash the set of (place, value) below each prefix, a lone entry being its own subtree."""

    def below(leaves: dict[str, bytes], depth: int) -> bytes:
        if not leaves:
            return hashlib.sha256(b"").digest()
        if len(leaves) == 1:
            return next(iter(leaves.values()))
        halves = [{bits: leaf for bits, leaf in leaves.items() if bits[depth] == side} for side in "01"]
        return compute_id(Tag.STATE_NODE, CHAIN, tuple(below(half, depth + 1) for half in halves))

    leaves = {}
    for key, value in entries.items():
        place = compute_id(Tag.STATE_KEY, CHAIN, key)
        leaf = compute_id(Tag.STATE_LEAF, CHAIN, (place, hashlib.sha256(value).digest()))
        leaves[f"{int.from_bytes(place, 'big'):0256b}"] = leaf
    return below(leaves, 0)


def build(entries: dict[bytes, bytes]) -> Node:
    return TREE.update(None, entries)


@given(MAPS)
def test_the_root_is_the_naive_one(entries: dict[bytes, bytes]) -> None:
    assert get_hash(build(entries)) == compute_naive_root(entries)


@given(MAPS, st.lists(CHANGES, max_size=4))
def test_updates_lead_where_a_fresh_tree_does(
    entries: dict[bytes, bytes], steps: list[dict[bytes, bytes | None]]
) -> None:
    """Whatever the order of changes and deletions, the shape is that of the set; the tree before is untouched."""
    node, model = build(entries), dict(entries)
    for changes in steps:
        before, old = node, get_hash(node)
        node = TREE.update(node, changes)
        for key, value in changes.items():
            if value is None:
                model.pop(key, None)
            else:
                model[key] = value
        assert node == build(model)
        assert get_hash(node) == compute_naive_root(model)
        assert get_hash(before) == old


@given(MAPS, KEYS, VALUES)
def test_presence_and_absence_are_proved_and_never_both(entries: dict[bytes, bytes], key: bytes, other: bytes) -> None:
    node = build(entries)
    root, proof = get_hash(node), TREE.prove(node, key)
    if key in entries:
        assert TREE.is_present(root, key, entries[key], proof)
        assert not TREE.is_absent(root, key, proof)
        assert TREE.is_present(root, key, other, proof) == (other == entries[key])
    else:
        assert TREE.is_absent(root, key, proof)
        assert not TREE.is_present(root, key, other, proof)


@given(st.dictionaries(KEYS, VALUES, min_size=2, max_size=30), st.data())
def test_a_changed_proof_proves_nothing(entries: dict[bytes, bytes], data: st.DataObject) -> None:
    node = build(entries)
    key = data.draw(st.sampled_from(sorted(entries)))
    root, proof = get_hash(node), TREE.prove(node, key)
    position = data.draw(st.integers(0, len(proof.siblings) - 1))
    siblings = list(proof.siblings)
    siblings[position] = compute_digest(siblings[position])
    value = entries[key]
    assert not TREE.is_present(root, key, value, MapProof(tuple(siblings), None))
    assert not TREE.is_present(root, key, value, MapProof(proof.siblings[:-1], None))
    assert not TREE.is_present(root, key, value, MapProof((*proof.siblings, EMPTY_ROOT), None))
    assert not TREE.is_present(compute_digest(root), key, value, proof)


def test_absence_is_not_proved_by_the_key_itself_or_by_a_leaf_elsewhere() -> None:
    entries = {b"a%d" % number: b"x" for number in range(50)}
    node = build(entries)
    root, proof = get_hash(node), TREE.prove(node, b"a1")
    own = Witness(TREE.compute_place(b"a1"), compute_digest(b"x"))
    assert not TREE.is_absent(root, b"a1", MapProof(proof.siblings, own))
    # Another leaf's honest path does not speak for a key whose place differs within that path.
    for other in entries:
        path = TREE.prove(node, other)
        witness = Witness(TREE.compute_place(other), compute_digest(b"x"))
        assert not TREE.is_absent(root, b"a1", MapProof(path.siblings, witness))
    missing = TREE.prove(node, b"nowhere")
    if missing.witness is not None:
        forged = Witness(missing.witness.place, compute_digest(b"y"))
        assert not TREE.is_absent(root, b"nowhere", MapProof(missing.siblings, forged))


def test_a_proof_is_worthless_on_another_chain() -> None:
    """Threat row 2."""
    node = build({b"a1": b"x", b"a2": b"y"})
    other = StateTree(compute_digest(b"other chain"))
    assert get_hash(other.update(None, {b"a1": b"x", b"a2": b"y"})) != get_hash(node)
    assert not other.is_present(get_hash(node), b"a1", b"x", TREE.prove(node, b"a1"))


def test_the_empty_map() -> None:
    assert get_hash(None) == EMPTY_ROOT == hashlib.sha256(b"").digest()
    assert TREE.update(None, {}) is None
    assert TREE.update(None, {b"a1": None}) is None
    assert TREE.is_absent(EMPTY_ROOT, b"a1", TREE.prove(None, b"a1"))


def test_untouched_subtrees_are_shared() -> None:
    node = build({b"a%d" % number: b"x" for number in range(64)})
    changed = TREE.update(node, {b"a1": b"y"})

    def collect(one: Node) -> set[int]:
        if isinstance(one, Branch):
            return {id(one)} | collect(one.left) | collect(one.right)
        return {id(one)} if isinstance(one, Leaf) else set()

    assert len(collect(changed) - collect(node)) <= 20


@pytest.mark.parametrize("depth", [8, 9])
def test_places_that_agree_in_their_first_bits_still_part(depth: int) -> None:
    """Two keys found by search whose places share a long prefix."""
    seen: dict[int, bytes] = {}
    for number in range(10_000):
        key = b"a%d" % number
        prefix = int.from_bytes(TREE.compute_place(key), "big") >> (256 - depth)
        if prefix in seen:
            entries = {key: b"x", seen[prefix]: b"y"}
            node = build(entries)
            assert get_hash(node) == compute_naive_root(entries)
            assert len(TREE.prove(node, key).siblings) > depth
            assert TREE.update(node, {key: None}) == build({seen[prefix]: b"y"})
            return
        seen[prefix] = key
    pytest.fail("no two keys share a prefix")
