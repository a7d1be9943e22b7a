"""What a transaction or a timer did: canonical results, whose root stands in the header, and events for those who
listen.

A `Result` is signed by way of the header and therefore small; a `LedgerEvent` lives in memory and carries the whole
lease as it then stood.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, assert_never

import msgspec

from chain.base.codec import Record, encode
from chain.base.errors import Fault
from chain.base.hashing import Digest
from chain.base.keys import Key
from chain.base.merkle import compute_root
from chain.base.units import Amount, Count
from chain.ledger.entries import LeaseRecord, LeaseState


class Transferred(Record, frozen=True, tag="transferred"):
    """Credits went from one account to another."""

    sender: Key
    to: Key
    amount: Amount


class Bonded(Record, frozen=True, tag="bonded"):
    """A provider's registered bond grew by `amount`."""

    provider: Key
    amount: Amount


class LeaseMoved(Record, frozen=True, tag="leasemoved"):
    """A lease took a row of law.md's table. The figures are what has moved since it opened."""

    lease: Digest
    row: Count
    state: LeaseState
    paid: Amount
    commission: Amount
    refunded: Amount
    damages: Amount
    burned: Amount


class OrderForgotten(Record, frozen=True, tag="orderforgotten"):
    """An order's expiry has passed and no lease of it is live: its record is deleted (R2)."""

    order: Digest


Happening = Transferred | Bonded | LeaseMoved | OrderForgotten
"""The closed union of what can happen."""


class Result(Record, frozen=True, tag="result"):
    """What one transaction (`trigger` is its id) or one timer (the id of its lease or order) did, in order."""

    trigger: Digest
    timer: bool
    happened: Annotated[tuple[Happening, ...], msgspec.Meta()]


class LedgerEvent(msgspec.Struct, frozen=True, kw_only=True):
    """A happening for those who listen. `transaction` is None for a timer; `lease` is the record as it stood right
    after.
    """

    transaction: bytes | None
    happening: Happening
    lease: LeaseRecord | None = None

    @property
    def topics(self) -> frozenset[bytes]:
        """Accounts, orders and leases whom it concerns."""
        match self.happening:
            case Transferred(sender, to):
                return frozenset({sender, to})
            case Bonded(one) | OrderForgotten(one):
                return frozenset({one})
            case LeaseMoved(lease):
                return frozenset({lease, *_list_parties(self.lease)})
            case _:
                assert_never(self.happening)


def _list_parties(lease: LeaseRecord | None) -> tuple[bytes, ...]:
    if lease is None:
        raise Fault("the event of a lease carries the lease", rule="results.lease")
    return (lease.terms.order, lease.terms.requester, lease.terms.provider, lease.terms.auctioneer)


def compute_results_root(results: Sequence[Result]) -> bytes:
    """Root over the canonical results in order: timers of the block first (R16 g)."""
    return compute_root([encode(result) for result in results])
