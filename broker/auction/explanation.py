"""Why nobody was awarded, said so that it helps: the lowest price at which someone would have bid, else the smallest
change of the order that would have brought a bid (design.md section 4, "no bids, no reason").

Sources: signed declines, and clauses of offers that don't fit (`broker.auction.matching`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from broker.auction.matching import Mismatch, Survey, show_bytes, show_cores, show_span
from broker.auction.scoring import compute_weight
from broker.protocol.jobs import JobSpec, Level
from broker.protocol.messages import Decline, Reason
from chain.base.codec import Record
from chain.base.keys import Signed
from chain.base.units import Amount, format_credits
from chain.ledger.terms.agreement import Bid, Order

WHOLE = 1_000_000
"""Relative changes are compared in parts per million."""

UNHELPFUL = 10**18
"""Rank of a reason that no change of the order mends, behind all others."""


class Explanation(Record, frozen=True, tag="explanation"):
    """`lowest` is the lowest price per segment at which someone would have bid (0: nobody named one)."""

    lowest: Amount
    text: str


def explain(
    order: Order, spec: JobSpec, found: Survey, declines: Sequence[Signed[Decline]], bids: Sequence[Bid] = ()
) -> Explanation:
    """What to tell a requester whose order found nobody.

    `bids` are those that could not win, and count as prices at which somebody would have worked where they exceed
    limit or cap. A provider's own decline goes before what its offer says. Among providers, those that need the
    fewest clauses changed come first, then the smallest relative change.
    """
    bodies = [signed.body for signed in declines]
    prices = [one.nearest for one in bodies if one.reason is Reason.PRICE]
    lowest = min([*prices, *(bid.price for bid in bids if _is_dear(order, bid))], default=0)
    if lowest:
        text = (
            f"the lowest price at which someone would have bid is {format_credits(lowest)} credits per segment; "
            f"the order's limit is {format_credits(order.limit)} and its cap {format_credits(order.cap)}"
        )
        return Explanation(lowest, text[:500])
    declined = {one.provider for one in bodies}
    candidates: list[tuple[Mismatch, ...]] = [(_from_decline(order, spec, one),) for one in bodies]
    candidates += [one.mismatches for one in found.misfits if one.provider not in declined]
    if not candidates:
        silent = len(found.matching)
        if silent:
            return Explanation(0, f"{silent} matching provider{'s' if silent > 1 else ''} did not answer in time")
        return Explanation(0, "no provider is connected to this broker")
    best = min(candidates, key=_rank)
    change = " and ".join(_describe(one) for one in best)
    count = len(candidates)
    who = "the only provider" if count == 1 else f"none of {count} providers"
    return Explanation(0, f"{who} {'does not fit' if count == 1 else 'fits'}; the smallest change: {change}"[:500])


def _is_dear(order: Order, bid: Bid) -> bool:
    return bid.price > order.limit or bid.price * compute_weight(order) > order.cap


def _from_decline(order: Order, spec: JobSpec, decline: Decline) -> Mismatch:
    asked = {
        Reason.MEMORY: spec.resources.memory_bytes,
        Reason.CORES: spec.resources.millicores,
        Reason.WALL: order.segment_wall,
        Reason.LEVEL: spec.level.rank,
    }.get(decline.reason, 0)
    return Mismatch(decline.reason, asked, decline.nearest, decline.text)


def _rank(mismatches: Iterable[Mismatch]) -> tuple[int, int]:
    changes = [_compute_change(one) for one in mismatches]
    return len(changes), sum(changes)


def _compute_change(one: Mismatch) -> int:
    """How far the order would have to move, in parts per million of what it asks."""
    match one.reason:
        case Reason.MEMORY | Reason.CORES | Reason.WALL if one.asked and one.nearest:
            return abs(one.asked - one.nearest) * WHOLE // one.asked
        case Reason.DEADLINE if one.nearest:
            return abs(one.nearest - one.asked) * WHOLE // max(one.asked, 1)
        case Reason.BUSY:
            return 2 * WHOLE
        case Reason.LEVEL | Reason.RUNTIME:
            return 5 * WHOLE
        case _:
            return UNHELPFUL


def _describe(one: Mismatch) -> str:
    match one.reason:
        case Reason.MEMORY if one.nearest:
            return f"ask for {show_bytes(one.nearest)} of memory instead of {show_bytes(one.asked)}"
        case Reason.CORES if one.nearest:
            return f"ask for {show_cores(one.nearest)} instead of {show_cores(one.asked)}"
        case Reason.WALL if one.nearest:
            return f"limit a segment (wall) to {show_span(one.nearest)} instead of {show_span(one.asked)}"
        case Reason.DEADLINE if one.nearest:
            return f"put the deadline (within) at least {show_span(one.nearest)} ahead"
        case Reason.LEVEL if one.nearest < len(Level):
            return f"ask for isolation (level) {list(Level)[one.nearest]}"
        case Reason.RUNTIME:
            return _describe_runtime(one.text)
        case Reason.BUSY if one.nearest:
            return f"put the deadline (within) {show_span(_round_up(one.nearest))} later, or allow a longer auction"
        case Reason.BUSY:
            return "try again later or allow a longer auction, it is busy"
        case _:
            return f"{one.reason}{_say(one.text)}"


def _describe_runtime(text: str) -> str:
    """By the words of `broker.auction.matching`; a provider may say it in others."""
    if text.startswith("needs the package"):
        return f"do without {text.removeprefix('needs ')}"
    if text.startswith("needs Python"):
        return f"ask for another Python (python){_say(text)}"
    return f"ask for another Python (python) or for fewer packages (packages){_say(text)}"


def _say(text: str) -> str:
    return f": {text}" if text else ""


def _round_up(milliseconds: int) -> int:
    """To whole seconds."""
    return -(-milliseconds // 1_000) * 1_000
