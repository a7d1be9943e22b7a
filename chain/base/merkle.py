"""Merkle trees of RFC 6962 section 2.1: roots, audit paths, consistency proofs.

Leaves are hashed as SHA-256(0x00 || leaf), nodes as SHA-256(0x01 || left || right); the empty root is SHA-256(""). A
root is always spoken of together with its size (R18).
The verifiers follow RFC 9162 sections 2.1.3.2 and 2.1.4.2.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from chain.base.errors import Fault

EMPTY_ROOT = hashlib.sha256(b"").digest()
"""Root of the tree without leaves."""


def compute_leaf(data: bytes) -> bytes:
    """Hash of one leaf's bytes."""
    return hashlib.sha256(b"\x00" + data).digest()


def compute_node(left: bytes, right: bytes) -> bytes:
    """Hash of an inner node."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def compute_root(leaves: Sequence[bytes]) -> bytes:
    """Root over the leaves' bytes, in order."""
    return _root([compute_leaf(leaf) for leaf in leaves])


def prove_inclusion(leaves: Sequence[bytes], index: int) -> tuple[bytes, ...]:
    """Audit path of leaf `index` (RFC 6962 section 2.1.1). Raises `Fault` where there is no such leaf."""
    if not 0 <= index < len(leaves):
        raise Fault(f"no leaf {index} of {len(leaves)}", rule="merkle.index")
    return tuple(_path([compute_leaf(leaf) for leaf in leaves], index))


def prove_consistency(leaves: Sequence[bytes], size: int) -> tuple[bytes, ...]:
    """Proof that the first `size` leaves are a prefix of all (RFC 6962 section 2.1.2). Raises `Fault` unless 0 < size
    <= len(leaves).
    """
    if not 0 < size <= len(leaves):
        raise Fault(f"no prefix of {size} in {len(leaves)} leaves", rule="merkle.index")
    return tuple(_subproof([compute_leaf(leaf) for leaf in leaves], size, whole=True))


def is_included(leaf: bytes, index: int, size: int, path: Sequence[bytes], root: bytes) -> bool:
    """Whether `leaf` stands at `index` of the tree of `size` leaves with this root."""
    if not 0 <= index < size:
        return False
    position, last, current = index, size - 1, compute_leaf(leaf)
    for sibling in path:
        if last == 0:
            return False
        if position & 1 or position == last:
            current = compute_node(sibling, current)
            while not position & 1 and position:
                position, last = position >> 1, last >> 1
        else:
            current = compute_node(current, sibling)
        position, last = position >> 1, last >> 1
    return last == 0 and current == root


def is_consistent(old_size: int, old_root: bytes, size: int, root: bytes, proof: Sequence[bytes]) -> bool:
    """Whether the tree (`old_size`, `old_root`) is a prefix of (`size`, `root`)."""
    if not 0 < old_size <= size:
        return False
    if old_size == size:
        return not proof and old_root == root
    path = list(proof)
    if old_size & (old_size - 1) == 0:
        path.insert(0, old_root)
    if not path:
        return False
    return _replay_consistency(old_size - 1, size - 1, path) == (old_root, root)


class Frontier:
    """Root over a list that only grows, without keeping the list: of each whole subtree the right edge needs, its hash
    alone (RFC 6962 section 2.1), one for every bit that is set in the size.
    """

    __slots__ = ("_peaks", "_size")

    def __init__(self, leaves: Iterable[bytes] = ()) -> None:
        """A frontier after these leaves."""
        self._peaks: list[bytes] = []
        self._size = 0
        for leaf in leaves:
            self.append(leaf)

    @property
    def size(self) -> int:
        """Leaves so far."""
        return self._size

    @property
    def root(self) -> bytes:
        """`compute_root` of the leaves so far."""
        if not self._peaks:
            return EMPTY_ROOT
        root = self._peaks[-1]
        for peak in reversed(self._peaks[:-1]):
            root = compute_node(peak, root)
        return root

    def append(self, leaf: bytes) -> None:
        """Add a leaf's bytes at the end."""
        current, size = compute_leaf(leaf), self._size
        while size & 1:
            current, size = compute_node(self._peaks.pop(), current), size >> 1
        self._peaks.append(current)
        self._size += 1

    def copy(self) -> Frontier:
        """Another one that stands at the same place and grows by itself."""
        twin = Frontier()
        twin._peaks, twin._size = list(self._peaks), self._size
        return twin


def _replay_consistency(position: int, last: int, path: Sequence[bytes]) -> tuple[bytes, bytes] | None:
    while position & 1:
        position, last = position >> 1, last >> 1
    old = new = path[0]
    for sibling in path[1:]:
        if last == 0:
            return None
        if position & 1 or position == last:
            old, new = compute_node(sibling, old), compute_node(sibling, new)
            while not position & 1 and position:
                position, last = position >> 1, last >> 1
        else:
            new = compute_node(new, sibling)
        position, last = position >> 1, last >> 1
    return (old, new) if last == 0 else None


def _split(size: int) -> int:
    """The largest power of two smaller than `size`."""
    return 1 << ((size - 1).bit_length() - 1)


def _root(hashes: Sequence[bytes]) -> bytes:
    if not hashes:
        return EMPTY_ROOT
    level = list(hashes)
    while len(level) > 1:
        paired = [compute_node(level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
        level = paired + ([level[-1]] if len(level) & 1 else [])
    return level[0]


def _path(hashes: Sequence[bytes], index: int) -> list[bytes]:
    if len(hashes) == 1:
        return []
    k = _split(len(hashes))
    if index < k:
        return [*_path(hashes[:k], index), _root(hashes[k:])]
    return [*_path(hashes[k:], index - k), _root(hashes[:k])]


def _subproof(hashes: Sequence[bytes], size: int, *, whole: bool) -> list[bytes]:
    if size == len(hashes):
        return [] if whole else [_root(hashes)]
    k = _split(len(hashes))
    if size <= k:
        return [*_subproof(hashes[:k], size, whole=whole), _root(hashes[k:])]
    return [*_subproof(hashes[k:], size - k, whole=False), _root(hashes[:k])]
