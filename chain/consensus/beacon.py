"""The beacon (R17): each seat reveals a SHA-256 hash chain backwards, one value per slot; nobody can grind it.

With x(0) a secret and x(i+1) = SHA-256(x(i)), the head x(2^20) stands in genesis and slot s reveals x(2^20 - s):
anyone checks it against an earlier
reveal, nobody knows it before. beacon = H(tag, parent's beacon, reveal). Every 1,024th value is kept, so a reveal
costs one hash and now and then 1,024.

Not here: the successor chain that takes over after 2^20 slots; until it exists such a chain stops there by name
(`R17.used-up`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from chain.base.errors import Fault, Refused
from chain.base.hashing import Tag, compute_id

__all__ = ["CHAIN_SLOTS", "CHECKPOINT_SPAN", "BeaconChain", "compute_beacon", "compute_checkpoints", "verify_reveal"]

CHAIN_SLOTS = 1 << 20
"""Slots that one hash chain serves."""

CHECKPOINT_SPAN = 1024
"""Values between two that are kept: the square root of the chain's length, so that both memory (32 KiB) and work
stay small.
"""


def compute_beacon(chain_id: bytes, parent_beacon: bytes, reveal: bytes) -> bytes:
    """The beacon of a block, from its parent's and its leader's reveal."""
    return compute_id(Tag.BEACON, chain_id, (parent_beacon, reveal))


def compute_checkpoints(secret: bytes, slots: int = CHAIN_SLOTS, span: int = CHECKPOINT_SPAN) -> tuple[bytes, ...]:
    """x(0), x(span), …, x(slots): the secret first, the public head last. About a second for the whole chain."""
    values, current = [secret], secret
    for position in range(1, slots + 1):
        current = hashlib.sha256(current).digest()
        if position % span == 0:
            values.append(current)
    return tuple(values)


def verify_reveal(reveal: bytes, slot: int, earlier: bytes, earlier_slot: int) -> None:
    """Check a seat's reveal for `slot` against its earlier one (slot 0: the head in genesis). Raises `Refused` under
    `R17.reveal`.
    """
    current = reveal
    if not earlier_slot < slot <= CHAIN_SLOTS:
        raise Refused(f"slot {slot} cannot follow {earlier_slot}", rule="R17.reveal")
    for _ in range(slot - earlier_slot):
        current = hashlib.sha256(current).digest()
    if current != earlier:
        raise Refused(f"the reveal of slot {slot} does not lead to that of slot {earlier_slot}", rule="R17.reveal")


class BeaconChain:
    """A seat's own hash chain, made from the values `compute_checkpoints` gives."""

    def __init__(self, checkpoints: Sequence[bytes], span: int = CHECKPOINT_SPAN) -> None:
        self._checkpoints = tuple(checkpoints)
        self._span = span
        self._cached = -1
        self._values: list[bytes] = []

    @property
    def head(self) -> bytes:
        """The public end, which genesis names."""
        return self._checkpoints[-1]

    @property
    def slots(self) -> int:
        """How many slots it serves."""
        return (len(self._checkpoints) - 1) * self._span

    def get_reveal(self, slot: int) -> bytes:
        """The value to reveal in `slot`, from 1. Raises `Fault` under `R17.used-up` behind the last,
        `R17.checkpoints` if the kept values do not belong together.
        """
        if not 1 <= slot <= self.slots:
            message = (
                f"the beacon chain serves slots 1 to {self.slots}, this is {slot}; a successor is not supported yet"
            )
            raise Fault(message, rule="R17.used-up")
        index, offset = divmod(self.slots - slot, self._span)
        if index != self._cached:
            self._fill(index)
        return self._values[offset]

    def _fill(self, index: int) -> None:
        values = [self._checkpoints[index]]
        for _ in range(self._span):
            values.append(hashlib.sha256(values[-1]).digest())
        if values[-1] != self._checkpoints[index + 1]:
            raise Fault("the kept values of the beacon chain are damaged; delete their file", rule="R17.checkpoints")
        self._cached, self._values = index, values
