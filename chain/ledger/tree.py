"""An authenticated map: persistent sparse Merkle tree with structural sharing, and proofs of presence and absence.

The place of a key is its hash (256 bits, most significant first). A subtree with one leaf is that leaf, so the shape
depends on the set of entries alone, never on the order
of changes. An update shares all untouched nodes with the tree before, which is how several uncommitted children of
one state cost only their changes. Hashes are those of
R18: leaf = id under `STATE_LEAF` of (place, SHA-256 of the value's bytes), node = id under `STATE_NODE` of (left,
right), place = id under `STATE_KEY` of the key;
an empty subtree is SHA-256("").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated

import msgspec

from chain.base.codec import Record
from chain.base.hashing import Digest, Tag, compute_digest, compute_id, compute_signed_bytes
from chain.base.merkle import EMPTY_ROOT

DEPTH = 256
"""Bits of a place; no path is longer."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """One entry: its place and its hash (which covers place and value)."""

    place: bytes
    value: bytes
    hash: bytes


@dataclass(frozen=True, slots=True)
class Branch:
    """Two subtrees, at least two leaves below."""

    hash: bytes
    left: Leaf | Branch | None
    right: Leaf | Branch | None


Node = Leaf | Branch | None
Change = tuple[bytes, Leaf | None]


class Witness(Record, frozen=True, tag="witness"):
    """The leaf that stands where an absent key would be: its place and the digest of its value."""

    place: Digest
    value: Digest


class MapProof(Record, frozen=True, tag="mapproof"):
    """Siblings from the root down. `witness` serves absence only: the leaf found instead, None for an empty subtree."""

    siblings: Annotated[tuple[Digest, ...], msgspec.Meta(max_length=DEPTH)]
    witness: Witness | None


class StateTree:
    """Hashes and reshapes trees of one chain. Holds no tree itself."""

    __slots__ = ("_chain", "_pair")

    def __init__(self, chain_id: bytes) -> None:
        self._chain = chain_id
        # The canonical form of a pair of digests is 0x92 and two times 0xc4 0x20 with 32 bytes; spelled out here
        # since it is hashed for every node.
        self._pair = {
            tag: compute_signed_bytes(tag, chain_id, (bytes(32), bytes(32)))[:-66]
            for tag in (Tag.STATE_NODE, Tag.STATE_LEAF)
        }

    def compute_place(self, key: bytes) -> bytes:
        """Where `key` stands."""
        return compute_id(Tag.STATE_KEY, self._chain, key)

    def make_leaf(self, key: bytes, value: bytes) -> Leaf:
        """The leaf of an entry's bytes."""
        place, digest = self.compute_place(key), compute_digest(value)
        return Leaf(place, digest, self._hash_pair(Tag.STATE_LEAF, place, digest))

    def update(self, root: Node, changes: Mapping[bytes, bytes | None]) -> Node:
        """The tree after `changes` (key -> value bytes, None deletes)."""
        if not changes:
            return root
        ordered: list[Change] = [
            (self.compute_place(key), None if value is None else self.make_leaf(key, value))
            for key, value in changes.items()
        ]
        ordered.sort(key=lambda change: change[0])
        return self._merge(root, ordered, 0)

    def prove(self, root: Node, key: bytes) -> MapProof:
        """Proof that `key` is or is not in the tree."""
        place, node, siblings = self.compute_place(key), root, list[bytes]()
        while isinstance(node, Branch):
            bit = _get_bit(place, len(siblings))
            siblings.append(get_hash(node.left if bit else node.right))
            node = node.right if bit else node.left
        other = node is not None and node.place != place
        witness = Witness(node.place, node.value) if node is not None and other else None
        return MapProof(tuple(siblings), witness)

    def is_present(self, root: bytes, key: bytes, value: bytes, proof: MapProof) -> bool:
        """Whether the tree with this root holds `value` under `key`."""
        place = self.compute_place(key)
        leaf = self._hash_pair(Tag.STATE_LEAF, place, compute_digest(value))
        return proof.witness is None and self._fold(place, leaf, proof.siblings) == root

    def is_absent(self, root: bytes, key: bytes, proof: MapProof) -> bool:
        """Whether the tree with this root holds nothing under `key`."""
        place, witness = self.compute_place(key), proof.witness
        if witness is None:
            return self._fold(place, EMPTY_ROOT, proof.siblings) == root
        depth = len(proof.siblings)
        if witness.place == place or _prefix(witness.place, depth) != _prefix(place, depth):
            return False
        return self._fold(place, self._hash_pair(Tag.STATE_LEAF, witness.place, witness.value), proof.siblings) == root

    def _fold(self, place: bytes, current: bytes, siblings: Sequence[bytes]) -> bytes:
        for depth in range(len(siblings) - 1, -1, -1):
            pair = (siblings[depth], current) if _get_bit(place, depth) else (current, siblings[depth])
            current = self._hash_pair(Tag.STATE_NODE, *pair)
        return current

    def _hash_pair(self, tag: Tag, first: bytes, second: bytes) -> bytes:
        return sha256(self._pair[tag] + first + b"\xc4\x20" + second).digest()

    def _merge(self, node: Node, changes: Sequence[Change], depth: int) -> Node:
        if isinstance(node, Branch):
            cut = _find_cut(changes, depth)
            left = self._merge(node.left, changes[:cut], depth + 1) if cut else node.left
            right = self._merge(node.right, changes[cut:], depth + 1) if cut < len(changes) else node.right
            return self._join(left, right)
        leaves = [leaf for _, leaf in changes if leaf is not None]
        if node is not None and all(place != node.place for place, _ in changes):
            leaves = sorted([*leaves, node], key=lambda leaf: leaf.place)
        return self._build(leaves, depth)

    def _build(self, leaves: Sequence[Leaf], depth: int) -> Node:
        if len(leaves) < 2:
            return leaves[0] if leaves else None
        cut = _find_cut([(leaf.place, leaf) for leaf in leaves], depth)
        return self._join(self._build(leaves[:cut], depth + 1), self._build(leaves[cut:], depth + 1))

    def _join(self, left: Node, right: Node) -> Node:
        if left is None and not isinstance(right, Branch):
            return right
        if right is None and not isinstance(left, Branch):
            return left
        return Branch(self._hash_pair(Tag.STATE_NODE, get_hash(left), get_hash(right)), left, right)


def get_hash(node: Node) -> bytes:
    """Hash of a subtree, and root of a whole tree."""
    return EMPTY_ROOT if node is None else node.hash


def _get_bit(place: bytes, depth: int) -> int:
    return place[depth >> 3] >> (7 - (depth & 7)) & 1


def _prefix(place: bytes, bits: int) -> int:
    return int.from_bytes(place, "big") >> (DEPTH - bits)


def _find_cut(changes: Sequence[Change], depth: int) -> int:
    """How many of the sorted changes go left at `depth`."""
    low, high = 0, len(changes)
    while low < high:
        middle = (low + high) // 2
        if _get_bit(changes[middle][0], depth):
            high = middle
        else:
            low = middle + 1
    return low
