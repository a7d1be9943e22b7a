"""Ids of recent transactions, per block and outside the state tree (R15 a), and what each account sent in that
window (R15 c, d).

A transaction is valid for at most 120 s after the time of the block that holds it, so a block's ids are forgotten
once that span has passed. What is remembered depends on block times alone,
never on when somebody tidied up.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from typing import Annotated

import msgspec

from chain.base.codec import Record
from chain.base.errors import Fault
from chain.base.hashing import Digest
from chain.base.keys import Key
from chain.base.units import Count, Instant
from chain.ledger.transactions import MAX_VALIDITY


class Sent(Record, frozen=True, tag="sentid"):
    """A remembered transaction: its id, its sender, and how many signatures it counts for (the outer one and the
    inner ones).
    """

    id: Digest
    sender: Key
    signatures: Count


class BlockIds(Record, frozen=True, tag="blockids"):
    """What one block adds to the window. `time` is the block's."""

    time: Instant
    sent: Annotated[tuple[Sent, ...], msgspec.Meta()]


class Recent:
    """The window as of one block: committed blocks in the root, uncommitted ones as overlays.

    A root keeps blocks (`kept`, oldest first); an overlay what its own block sent (`own`). Both index ids and spent
    signatures by sender.
    """

    __slots__ = ("ids", "kept", "own", "parent", "spent", "time")

    def __init__(self, time: int, parent: Recent | None = None) -> None:
        """An empty root, or the overlay of one new block with this time."""
        self.time = time
        self.parent = parent
        self.own: list[Sent] = []
        self.kept: deque[BlockIds] = deque()
        self.ids: set[bytes] = set()
        self.spent: Counter[bytes] = Counter()

    @classmethod
    def load(cls, time: int, blocks: Iterable[BlockIds]) -> Recent:
        """The root at the head's `time` from what `blocks` (oldest first) hold."""
        recent = cls(time)
        for block in blocks:
            recent._append(block)
        recent._forget()
        return recent

    def child(self, time: int) -> Recent:
        """The overlay of a block at `time`."""
        return Recent(time, self)

    def add(self, sent: Sent) -> None:
        """Remember a transaction of this overlay's block."""
        self.own.append(sent)
        self.ids.add(sent.id)
        self.spent[sent.sender] += sent.signatures

    def export(self) -> BlockIds:
        """What this overlay's block adds."""
        return BlockIds(self.time, tuple(self.own))

    def knows(self, transaction: bytes) -> bool:
        """Whether a block of this branch holds the transaction (R15 a)."""
        return any(transaction in layer.ids for layer in self._layers())

    def count_spent(self, sender: bytes) -> int:
        """Signatures that `sender` had checked in the window (R15 c, d)."""
        return sum(_count_layer(layer, sender, self.time) for layer in self._layers())

    def commit(self) -> None:
        """Fold this overlay into the root, which must be its parent; this object is the root from now on."""
        root, block = self.parent, self.export()
        if root is None or root.parent is not None:
            raise Fault("only a child of the root can be committed", rule="recent.commit")
        self.kept, self.ids, self.spent = root.kept, root.ids, root.spent
        self.own, self.parent = [], None
        self._append(block)
        self._forget()

    def blocks(self) -> tuple[BlockIds, ...]:
        """What a snapshot of a root carries, oldest first."""
        return tuple(self.kept)

    def _layers(self) -> Iterator[Recent]:
        layer: Recent | None = self
        while layer is not None:
            yield layer
            layer = layer.parent

    def _append(self, block: BlockIds) -> None:
        self.kept.append(block)
        self.ids.update(sent.id for sent in block.sent)
        for sent in block.sent:
            self.spent[sent.sender] += sent.signatures

    def _forget(self) -> None:
        while self.kept and self.kept[0].time + MAX_VALIDITY < self.time:
            for sent in self.kept.popleft().sent:
                self.ids.discard(sent.id)
                self.spent[sent.sender] -= sent.signatures
                if not self.spent[sent.sender]:
                    del self.spent[sent.sender]


def _count_layer(layer: Recent, sender: bytes, now: int) -> int:
    """What `sender` spent in one layer, as far as it still lies in the window at `now`."""
    if layer.parent is not None:
        return layer.spent[sender] if layer.time + MAX_VALIDITY >= now else 0
    gone = 0
    for block in layer.kept:
        if block.time + MAX_VALIDITY >= now:
            break
        gone += sum(sent.signatures for sent in block.sent if sent.sender == sender)
    return layer.spent[sender] - gone
