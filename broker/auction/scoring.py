"""Which bid wins: the lowest price among those that fit, ties by the earliest acknowledgement (R3, R12 a).

`choose` is what the broker runs and what anybody may run again over a published book. Weights of segments and the
order's cap are looked at here; reputation comes with a later issue.
"""

from __future__ import annotations

from collections.abc import Sequence, Set

from broker.protocol.messages import Book
from chain.base.codec import Record
from chain.base.errors import Refused
from chain.base.hashing import Digest
from chain.base.keys import Signed
from chain.base.units import BPS, MAX_INT, Amount
from chain.ledger.terms.agreement import Award, AwardRule, Bid, Order, compute_bid_id

BID_GRACE = 60_000
"""A bid may be valid until at most so many milliseconds after the auction's close (R3 c)."""


class Choice(Record, frozen=True, tag="choice"):
    """The winning bid, the price per segment it is awarded, and the runner-up that set it (under `second`)."""

    bid: Signed[Bid]
    price: Amount
    runner_up: Signed[Bid] | None


def compute_weight(order: Order) -> int:
    """Sum of the order's weights: what the price per segment is multiplied with (R10)."""
    return sum(order.weights) if order.weights else order.segments


def compute_cost(order: Order, price: int, commission: int) -> int:
    """Most that a lease of the whole order at `price` takes from the mandate, commission included (R2, R13)."""
    total = price * compute_weight(order)
    return total + total * commission // BPS


def compute_least_bond(order: Order, price: int) -> int:
    """Bond that R3 (e) asks for at this price: panel deposit and full damages."""
    total = price * compute_weight(order)
    dearest = price * max(order.weights, default=1)
    deposit = -(-3 * order.panel * dearest // 2)
    return deposit + total * order.damages // BPS


def find_fault(order: Order, bid: Bid, commission: int, now: int, price: int | None = None) -> str:
    """The name of the first rule by which a bid can't open a lease at `now`; empty if it can. `price` is what it would
    be awarded, by default its own.

    Names: `R3.party`, `R3.limit`, `R2.cap`, `R3.validity`, `R3.time`, `R3.bond`.
    """
    price = bid.price if price is None else price
    total = price * compute_weight(order)
    if bid.provider in (order.requester, order.auctioneer):
        return "R3.party"
    if price > order.limit:
        return "R3.limit"
    if total > MAX_INT or compute_cost(order, price, commission) > order.cap:
        return "R2.cap"
    if bid.valid_until < now or bid.valid_until > order.closes + BID_GRACE:
        return "R3.validity"
    if order.deadline - now < order.windows.start + -(-order.segments // bid.lanes) * order.segment_wall:
        return "R3.time"
    if total * bid.bond // BPS < compute_least_bond(order, price):
        return "R3.bond"
    return ""


def choose(
    order: Order, bids: Sequence[Signed[Bid]], commission: int, now: int, tried: Set[Digest] = frozenset()
) -> Choice | None:
    """The winner at `now` among bids in order of acknowledgement; `tried` holds signatures of bids that failed to open.

    Under `second` the price is the runner-up's, and the order's limit where there is none (R3 b); a bid that does not
    fit the cap at that price does not win.
    """
    fit = [bid for bid in bids if bid.signature not in tried and not find_fault(order, bid.body, commission, now)]
    ranked = sorted(fit, key=lambda bid: bid.body.price)
    for place, winner in enumerate(ranked):
        choice = _price(order, winner, ranked[place + 1 :])
        if not find_fault(order, winner.body, commission, now, choice.price):
            return choice
    return None


def _price(order: Order, winner: Signed[Bid], behind: Sequence[Signed[Bid]]) -> Choice:
    if order.rule is AwardRule.LOWEST:
        return Choice(winner, winner.body.price, None)
    runner = next((bid for bid in behind if bid.body.provider != winner.body.provider), None)
    return Choice(winner, min(order.limit, runner.body.price if runner else order.limit), runner)


def check_award(chain_id: bytes, order: Order, book: Book, award: Award) -> None:
    """Raise `Refused` (`R12.award`) unless the award follows from the book: a bid of it, none that fits being cheaper
    or as cheap and earlier. An award after a failed opening may name a later bid: the requester sees both.
    """
    if award.book != book.root or award.order != book.order:
        raise Refused("the award names another book", rule="R12.award")
    choice = choose(order, book.bids, award.commission, book.closed)
    if choice is None or compute_bid_id(chain_id, choice.bid.body) != award.bid or choice.price != award.price:
        raise Refused("the award is not what follows from the book", rule="R12.award")
