"""Who gets how much: the arithmetic of R4 and R13, as pure functions from a lease to a `Split`.

Integers only, floor everywhere, remainder to the requester. A `Split` names every unit that leaves the lease; what
it does not name stays locked. Not here: moving
anything (`chain.ledger.rules.leases`).
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from chain.base.units import BPS, checked, compute_share
from chain.ledger.entries import LeaseRecord, LeaseTerms
from chain.ledger.terms.work import Span

UNSTARTED_BPS = 100
"""1 % of the price, burned from each side when a lease never started (R4)."""

CANCEL_BPS = 1_000
"""10 % of the price bounds the fee of a cancel in the start window (row 6)."""


class Split(msgspec.Struct, frozen=True, kw_only=True):
    """What leaves a lease. Of the requester's lock: `paid` to the provider, `commission` to the auctioneer,
    `refunded`, `burned`.

    Of the provider's bond: `damages` to the requester, `forfeited` (burned), `released` (back to the free part of
    the bond).
    """

    paid: int = 0
    commission: int = 0
    refunded: int = 0
    burned: int = 0
    damages: int = 0
    forfeited: int = 0
    released: int = 0

    @property
    def unlocked(self) -> int:
        """What leaves the requester's lock."""
        return self.paid + self.commission + self.refunded + self.burned

    @property
    def unbound(self) -> int:
        """What leaves the provider's bond."""
        return self.damages + self.forfeited + self.released


def compute_weight(terms: LeaseTerms, first: int, count: int) -> int:
    """Weight of `count` segments from absolute index `first`; without weights each weighs one (R10)."""
    if not terms.weights:
        return count
    offset = first - terms.first
    return sum(terms.weights[offset : offset + count])


def compute_prefix_weight(terms: LeaseTerms, count: int) -> int:
    """Weight of the first `count` segments of the lease."""
    return compute_weight(terms, terms.first, count)


def compute_dearest(terms: LeaseTerms) -> int:
    """Price of the dearest segment: the `one segment` of row 6."""
    return terms.unit * max(terms.weights, default=1)


def compute_commission(paid: int, bps: int) -> int:
    """Commission on finally paid segments (R13)."""
    return compute_share(paid, bps)


def compute_cancel_fee(terms: LeaseTerms, now: int) -> int:
    """Row 6: in the start window min(one segment, 10 % of the price), later one segment."""
    dearest = compute_dearest(terms)
    if now <= terms.opened + terms.windows.start:
        return min(dearest, compute_share(terms.price, CANCEL_BPS))
    return dearest


def compute_damages(lease: LeaseRecord, share: int, weight: int) -> int:
    """R4: min(unserved share, floor(unserved price x damages_bps / 10,000)); `weight` is that of the unserved
    segments.
    """
    return min(share, lease.terms.unit * weight * lease.terms.damages // BPS)


def split_payment(lease: LeaseRecord, weight: int, *, unserved: int = 0) -> Split:
    """Rows 3 and 13: segments of `weight` are paid, the rest is refunded, the bond returns but for the damages on
    `unserved` weight (R7).
    """
    price = lease.terms.unit * weight
    paid = max(lease.fee, price)
    commission = compute_commission(price, lease.terms.commission)
    share = lease.bond * unserved // compute_prefix_weight(lease.terms, lease.held)
    damages = compute_damages(lease, share, unserved)
    return Split(
        paid=checked(paid),
        commission=commission,
        refunded=checked(lease.locked - paid - commission),
        damages=damages,
        released=checked(lease.bond - damages),
    )


def split_unstarted(lease: LeaseRecord) -> Split:
    """Row 5: 1 % burned from each side, the provider's part at most its bond; nothing changes hands (R4)."""
    part = compute_share(lease.terms.price, UNSTARTED_BPS)
    forfeited = min(part, lease.bond)
    return Split(burned=part, refunded=lease.locked - part, forfeited=forfeited, released=lease.bond - forfeited)


def split_cut(lease: LeaseRecord, *, damages: bool, burn: bool) -> Split:
    """Rows 7, 10, 12: only the unserved part moves.

    What was served stays locked with max(its share of the bond, damages of its price). With nothing served, all
    ends: after a cancel the fee is paid. `burn` says where the rest
    of the unserved share goes: burned on a missed deadline, else back to the provider (R4).
    """
    terms = lease.terms
    whole, served = compute_prefix_weight(terms, lease.held), compute_prefix_weight(terms, lease.served)
    unserved = whole - served
    price = terms.unit * served
    keep = max(lease.fee, price) + compute_commission(price, terms.commission) if served else 0
    paid = 0 if served else lease.fee
    share = lease.bond * unserved // whole
    if served:
        kept = max(lease.bond - share, price * terms.damages // BPS)
        share = lease.bond - min(kept, lease.bond)
    due = compute_damages(lease, share, unserved) if damages else 0
    rest = share - due
    return Split(
        paid=paid,
        refunded=checked(lease.locked - keep - paid),
        damages=due,
        forfeited=rest if burn else 0,
        released=0 if burn else rest,
    )


def compute_spans_weight(terms: LeaseTerms, spans: Iterable[Span]) -> int:
    """Weight of all segments in `spans` (absolute indices)."""
    return sum(compute_weight(terms, span.first, span.count) for span in spans)
