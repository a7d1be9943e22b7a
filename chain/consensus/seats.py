"""The seats of an epoch: who signs, who leads which slot, how many make a quorum (R16 a).

Scope: a fixed list. Not here: how the list changes (R16 e), what is signed (`messages`), how genesis writes it down
(`chain.ledger.genesis`).
"""

from __future__ import annotations

from collections.abc import Sequence

from chain.base.errors import Refused
from chain.consensus.messages import MAX_SEATS

__all__ = ["SUPPORTED_SEATS", "Seats", "check_supported"]

SUPPORTED_SEATS = 1
"""Most seats this release runs: the engine has no messages between seats yet, and half a protocol would not be safe."""


class Seats:
    """The keys of one epoch, in the order of their places. Raises `Refused` under `R16.seats` for none, too many, or
    one key twice.
    """

    __slots__ = ("epoch", "keys", "quorum")

    def __init__(self, epoch: int, keys: Sequence[bytes]) -> None:
        if not 1 <= len(keys) <= MAX_SEATS or len(set(keys)) != len(keys):
            raise Refused(
                f"{len(keys)} seats; there are 1 to {MAX_SEATS}, each with a key of its own", rule="R16.seats"
            )
        self.epoch = epoch
        self.keys = tuple(keys)
        self.quorum = 2 * len(keys) // 3 + 1

    def get_leader(self, slot: int) -> int:
        """Place of the seat that proposes in `slot`: they take turns."""
        return slot % len(self.keys)

    def find(self, key: bytes) -> int:
        """Place of a key. Raises `Refused` under `R16.no-seat`."""
        if key not in self.keys:
            raise Refused("this key has no seat on this chain; use the seat key that genesis names", rule="R16.no-seat")
        return self.keys.index(key)


def check_supported(seats: Seats) -> Seats:
    """The seats, if this release can run as one of them; else raises `Refused` under `R16.seats-unsupported`."""
    if len(seats.keys) > SUPPORTED_SEATS:
        message = f"genesis names {len(seats.keys)} seats; this release runs chains of {SUPPORTED_SEATS}"
        raise Refused(message, rule="R16.seats-unsupported")
    return seats
