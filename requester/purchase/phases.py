"""Where a job stands and how a lease can end, in names and words for its owner."""

from __future__ import annotations

from enum import StrEnum

LEASE_ENDS = frozenset({"settled", "slashed", "unstarted", "returned", "expired", "cancelled", "void"})
"""States of law.md's table that a lease never leaves."""


class Phase(StrEnum):
    """Where a job stands, for its owner. From `SETTLED` on nothing more happens by itself.

    With several leases it is where the hindmost stands. `PARTLY` is over with some segments paid for and some without
    a result; every other end but `SETTLED` is one without any.
    """

    SIGNED = "signed"
    SENT = "sent"
    ANNOUNCED = "announced"
    AWARDED = "awarded"
    RUNNING = "running"
    DELIVERED = "delivered"
    ACCEPTED = "accepted"
    SETTLED = "settled"
    PARTLY = "partly"
    REJECTED = "rejected"
    UNMATCHED = "unmatched"
    WITHDRAWN = "withdrawn"
    LAPSED = "lapsed"
    REFUSED = "refused"
    LOST = "lost"
    ENDED = "ended"

    @property
    def rank(self) -> int:
        """Later phases have higher ones."""
        return _RANKS[self]

    @property
    def is_over(self) -> bool:
        """Whether waiting longer changes nothing."""
        return self.rank >= _RANKS[Phase.SETTLED]


_RANKS = {phase: rank for rank, phase in enumerate(Phase)}

LEASE_WORDS = {
    "slashed": "the provider was proved wrong; the price was refunded",
    "unstarted": "the provider gave the job back before a segment was done; 1 % of the price was burned",
    "returned": "the provider gave up before a segment was done; the price was refunded, with damages",
    "expired": "the provider missed its deadline; the price was refunded, with damages",
    "cancelled": "the job was cancelled; the provider got the cancelling fee",
    "void": "the dispute found no majority",
}
"""How a lease that is not settled ended, in words."""
