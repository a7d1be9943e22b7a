"""What of an order is not served and by nobody under way, and whether it may be offered again (R2, R9)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from broker.auction.lots import Lot, LotPhase
from broker.protocol.jobs import JobSpec
from chain.ledger.terms.agreement import Kind, Order
from chain.ledger.terms.work import Span

MAX_ROUNDS = 256
"""Rounds of one order: each is a signed book that broker and requester keep until the job is over."""

MAX_FRUITLESS = 4
"""Leases of one order that a provider may end with nothing served; then its bids on it are taken no more. Each costs
the requester a round of time, and a part in a hundred of the lease where it was not even begun (R4).
"""


def list_fruitless(lots: Collection[Lot]) -> frozenset[bytes]:
    """Providers that only keep others from serving the order."""
    vain = Counter(lot.provider for lot in lots if lot.phase is LotPhase.OVER and not lot.served)
    return frozenset(provider for provider, number in vain.items() if number >= MAX_FRUITLESS)


def find_gaps(lots: Collection[Lot], segments: int) -> tuple[Span, ...]:
    """Segments that no lot covers, ascending."""
    covered = [lot.covered for lot in lots if lot.phase is not LotPhase.FAILED and lot.covered.count]
    gaps, end = [], 0
    for span in sorted(covered, key=lambda one: one.first):
        if span.first > end:
            gaps.append(Span(end, span.first - end))
        end = max(end, span.first + span.count)
    if end < segments:
        gaps.append(Span(end, segments - end))
    return tuple(gaps)


def find_start(lots: Collection[Lot], order: Order, first: int) -> bytes | None:
    """Digest of the first input of a range that begins at `first`; None for a `train`'s state that is not known here:
    the receipt on the chain was never handed in.
    """
    if order.kind is not Kind.TRAIN or first == 0:
        return order.start
    return next((state for lot in lots if (state := lot.get_output(first - 1)) is not None), None)


def find_failures(order: Order, spec: JobSpec, lots: Collection[Lot]) -> str:
    """That more segments failed than the order tolerates (R9); empty if not. A `run` or `train` tolerates none."""
    failed = sum(lot.failed for lot in lots)
    if failed <= (spec.tolerance if order.kind is Kind.MAP else 0):
        return ""
    return f"{failed} segment{'s' if failed > 1 else ''} failed"


def find_obstacle(order: Order, lots: Collection[Lot], gaps: Sequence[Span], rounds: int, closes: int) -> str:
    """Why these gaps are not offered in a further round that would close at `closes`; empty if they are."""
    if rounds >= MAX_ROUNDS:
        return f"it was offered in {MAX_ROUNDS} rounds"
    if order.deadline - closes < order.windows.start + order.segment_wall or closes > order.expiry:
        return "the deadline leaves no time for more"
    if find_start(lots, order, gaps[0].first) is None:
        return f"the state after {gaps[0].first} segments was not handed in here"
    return ""
