"""Who serves what, and at what price: the cheapest bids that fit, ties by the earliest acknowledgement (R3, R12 a).

`divide` is what the broker runs over a round's book, and what anybody may run again over the published one; `choose`
is the same rule for a single part. Reputation comes with a later issue.

A bid counts only if serving the *whole* order at its price would fit the cap. So any mixture of parts, over any number
of rounds, at prices of bids that count, stays within it too. Time and bond are looked at per part.
"""

from __future__ import annotations

from collections.abc import Sequence, Set

import msgspec

from broker.protocol.jobs import JobSpec
from broker.protocol.messages import Book
from chain.base.codec import Record
from chain.base.errors import Refused
from chain.base.keys import Signed
from chain.base.units import BPS, MAX_INT, Amount, Count
from chain.ledger.terms.agreement import Award, AwardRule, Bid, Few, Kind, Order, compute_bid_id
from chain.ledger.terms.work import Span

BID_GRACE = 60_000
"""A bid may be valid until at most so many milliseconds after its round's close (R3 c)."""


class Choice(Record, frozen=True, tag="choice"):
    """The winning bid, the price per segment it is awarded, and the runner-up that set it (under `second`)."""

    bid: Signed[Bid]
    price: Amount
    runner_up: Signed[Bid] | None


class Share(Record, frozen=True, tag="share"):
    """What one bid is awarded: segments `first` .. `first + count - 1` at a price; the runner-up that set the price,
    under `second`.
    """

    bid: Signed[Bid]
    price: Amount
    runner_up: Signed[Bid] | None
    first: Count
    count: Few


def compute_weight(order: Order, part: Span | None = None) -> int:
    """Sum of the weights of a part's segments, or of all: what the price per segment is multiplied with (R10)."""
    if part is None:
        return sum(order.weights) if order.weights else order.segments
    return sum(order.weights[part.first : part.first + part.count]) if order.weights else part.count


def compute_cost(order: Order, price: int, commission: int, part: Span | None = None) -> int:
    """Most that a lease of a part (or of the whole order) at `price` takes from the mandate, commission included (R2,
    R13).
    """
    total = price * compute_weight(order, part)
    return total + total * commission // BPS


def compute_least_bond(order: Order, price: int, part: Span | None = None) -> int:
    """Bond that R3 (e) asks for at this price: panel deposit and full damages."""
    total = price * compute_weight(order, part)
    dearest = price * max(order.weights, default=1)
    deposit = -(-3 * order.panel * dearest // 2)
    return deposit + total * order.damages // BPS


def find_fault(
    order: Order,
    bid: Bid,
    commission: int,
    now: int,
    price: int | None = None,
    part: Span | None = None,
    closed: int | None = None,
) -> str:
    """The name of the first rule by which a bid can't open a lease at `now`; empty if it can. `price` is what it would
    be awarded, by default its own; `part` the range, by default all; `closed` when its round closed, by default now or
    the order's close, whichever is later.

    Names: `R3.party`, `R8.holder`, `R3.limit`, `R2.cap`, `R3.validity`, `R3.time`, `R3.bond`.

    `R8.holder`: who holds its own outputs could be paid by silence for nothing, and a holder that the requester did not
    choose may be the provider under another key. So a bid adds nobody but the auctioneer as long as there are no
    disputes about what is withheld (R10).
    """
    price = bid.price if price is None else price
    closed = max(now, order.closes) if closed is None else closed
    standing = _find_standing_fault(order, bid, commission, price, (now, closed))
    return standing or _find_part_fault(order, bid, price, part or Span(0, order.segments), now)


def _find_standing_fault(order: Order, bid: Bid, commission: int, price: int, times: tuple[int, int]) -> str:
    """What is wrong with a bid whatever part it would serve; `times` are now and the close of its round."""
    now, closed = times
    if bid.provider in (order.requester, order.auctioneer):
        return "R3.party"
    if bid.provider in order.holders or not set(bid.holders) <= {*order.holders, order.auctioneer}:
        return "R8.holder"
    if price > order.limit:
        return "R3.limit"
    if price * compute_weight(order) > MAX_INT or compute_cost(order, price, commission) > order.cap:
        return "R2.cap"
    if bid.valid_until < now or bid.valid_until > closed + BID_GRACE:
        return "R3.validity"
    return ""


def _find_part_fault(order: Order, bid: Bid, price: int, part: Span, now: int) -> str:
    if order.deadline - now < order.windows.start + -(-part.count // bid.lanes) * order.segment_wall:
        return "R3.time"
    total = price * compute_weight(order, part)
    if total * bid.bond // BPS < compute_least_bond(order, price, part):
        return "R3.bond"
    return ""


def choose(
    order: Order,
    bids: Sequence[Signed[Bid]],
    commission: int,
    now: int,
    tried: Set[bytes] = frozenset(),
    part: Span | None = None,
    closed: int | None = None,
) -> Choice | None:
    """The winner of a part (by default of all) at `now` among bids in order of acknowledgement; `tried` holds
    signatures of bids that are not to be looked at, `closed` is when the round closes, by default now.

    Under `second` the price is the runner-up's, and the order's limit where there is none (R3 b); a bid that does not
    fit the cap at that price does not win.
    """
    closed = now if closed is None else closed
    fit = [
        bid
        for bid in bids
        if bid.signature not in tried and not find_fault(order, bid.body, commission, now, part=part, closed=closed)
    ]
    ranked = sorted(fit, key=_get_price)
    for place, winner in enumerate(ranked):
        choice = _price(order, winner, ranked[place + 1 :])
        if not find_fault(order, winner.body, commission, now, choice.price, part, closed):
            return choice
    return None


def divide(
    order: Order,
    spec: JobSpec,
    spans: Sequence[Span],
    bids: Sequence[Signed[Bid]],
    commission: int,
    now: int,
    tried: Set[bytes] = frozenset(),
) -> tuple[Share, ...]:
    """How the segments `spans` of a round are divided among its bids, in order of acknowledgement, as at its close
    `now`; `tried` holds signatures of bids that are not to be looked at. At most one part per bid.

    A `map` under `lowest` makes k parts: as many as `spec.parallelism` allows, as there are bids that could serve one
    segment, and segments. All else makes one. The largest part goes to the cheapest bid that has the time for it. What
    nobody takes is for a later round.
    """
    if order.kind is not Kind.MAP or order.rule is AwardRule.SECOND:
        largest = max(spans, key=lambda span: (span.count, -span.first))
        choice = choose(order, bids, commission, now, tried, largest)
        if choice is None:
            return ()
        return (Share(choice.bid, choice.price, choice.runner_up, largest.first, largest.count),)
    fit = [bid for bid in bids if bid.signature not in tried and _could_serve(order, bid.body, commission, now)]
    ranked = sorted(fit, key=_get_price)
    shares: list[Share] = []
    for part in split_spans(spans, min(spec.parallelism, len(ranked))):
        for bid in ranked:
            if not _find_part_fault(order, bid.body, bid.body.price, part, now):
                shares.append(Share(bid, bid.body.price, None, part.first, part.count))
                ranked.remove(bid)
                break
    return tuple(shares)


def _could_serve(order: Order, bid: Bid, commission: int, now: int) -> bool:
    """Whether a bid could open a lease of some part: time for one segment, and nothing else in its way."""
    in_time = order.deadline - now >= order.windows.start + order.segment_wall
    return in_time and not _find_standing_fault(order, bid, commission, bid.price, (now, now))


def split_spans(spans: Sequence[Span], number: int) -> tuple[Span, ...]:
    """At most `number` parts, none of them empty or across the end of a span, largest first, then by where they begin.

    Each further part goes to the span whose largest part is largest; a span is cut into pieces that differ by one
    segment at most, the longer ones first. With more spans than parts, the largest spans are served.
    """
    counts = [1] * len(spans)
    for _ in range(min(number, sum(span.count for span in spans)) - len(spans)):
        at = max(range(len(spans)), key=lambda i: (-(-spans[i].count // counts[i]), -i))
        counts[at] += 1
    parts = [part for span, count in zip(spans, counts, strict=True) for part in _cut(span, count)]
    parts.sort(key=lambda part: (-part.count, part.first))
    return tuple(parts[: max(number, 0)])


def _cut(span: Span, count: int) -> list[Span]:
    size, longer = divmod(span.count, count)
    parts, first = [], span.first
    for place in range(count):
        parts.append(Span(first, size + (place < longer)))
        first += parts[-1].count
    return parts


def _get_price(bid: Signed[Bid]) -> int:
    return bid.body.price


def _price(order: Order, winner: Signed[Bid], behind: Sequence[Signed[Bid]]) -> Choice:
    if order.rule is AwardRule.LOWEST:
        return Choice(winner, winner.body.price, None)
    runner = next((bid for bid in behind if bid.body.provider != winner.body.provider), None)
    return Choice(winner, min(order.limit, runner.body.price if runner else order.limit), runner)


def replace_share(
    order: Order, spec: JobSpec, part: Span, book: Book, commission: int, used: Set[bytes]
) -> Share | None:
    """Who takes a part whose award the chain refused: the next best bid of the same book, as at its close, that had no
    part of this round (`used` holds signatures).
    """
    alone = msgspec.structs.replace(spec, parallelism=1)
    shares = divide(order, alone, (part,), book.bids, commission, book.closed, used)
    return shares[0] if shares else None


def check_award(
    chain_id: bytes, order: Order, spec: JobSpec, book: Book, award: Award, used: Set[bytes] = frozenset()
) -> None:
    """Raise `Refused` (`R12.award`) unless the award follows from its round's book: one of the parts into which it is
    divided, or, where `used` names bids (signatures) whose awards did not open, what comes after them.
    """
    if award.book != book.root or award.order != book.order or award.closed != book.closed:
        raise Refused("the award names another book", rule="R12.award")
    part = Span(award.first, award.count)
    shares: Sequence[Share | None] = divide(order, spec, book.spans, book.bids, award.commission, book.closed)
    if used:
        shares = [replace_share(order, spec, part, book, award.commission, used)]
    for share in shares:
        if (
            share is not None
            and compute_bid_id(chain_id, share.bid.body) == award.bid
            and (share.price, share.first, share.count) == (award.price, award.first, award.count)
        ):
            return
    raise Refused("the award is not what follows from the book", rule="R12.award")
