"""Numbered checks of what a requester is sent: award and bid (1-12), book (13-19).

A requester trusts nobody: each number it acts on is covered by a signature of the party that answers for it (R3, R5,
R7, R8, R12). The rows are data; `checking` runs them. Not here: deliveries (`deliveries`) and proofs from the
chain (`verify`).
"""

from __future__ import annotations

from dataclasses import dataclass

from broker.protocol.jobs import JobSpec, compute_job_digest
from broker.protocol.messages import Acknowledgement, Book
from chain.base.codec import encode
from chain.base.hashing import Tag, compute_id
from chain.base.keys import Signed
from chain.base.merkle import compute_root
from chain.base.units import BPS, MAX_INT
from chain.ledger.terms.agreement import (
    Award,
    AwardRule,
    Bid,
    Order,
    compute_bid_id,
    compute_lease_id,
    compute_order_id,
)
from requester.purchase.checking import Check, is_signed_by
from requester.purchase.order import OPENING_MS, compute_cost


@dataclass(frozen=True)
class AwardFacts:
    """An award as it was heard, beside what was ordered."""

    chain: bytes
    order: Signed[Order]
    spec: JobSpec
    award: Signed[Award]
    bid: Signed[Bid]
    lease: bytes


@dataclass(frozen=True)
class BookFacts:
    """The book of an auction, beside the award that was drawn from it (already checked). `tried` are ids of bids that
    were awarded before and did not open their lease.
    """

    chain: bytes
    order: Order
    award: Award
    book: Signed[Book]
    tried: frozenset[bytes] = frozenset()


# ---- award and bid ----


def _is_order_mine(facts: AwardFacts) -> bool:
    order = facts.order.body
    signed = is_signed_by(facts.order, Tag.ORDER, facts.chain, order.requester)
    return signed and order.job == compute_job_digest(facts.chain, facts.spec)


def _is_price_awarded(facts: AwardFacts) -> bool:
    """R3 b: its own price; under `second` the runner-up's, and the limit where there is none."""
    order, award, bid = facts.order.body, facts.award.body, facts.bid.body
    if order.rule is AwardRule.LOWEST and award.runner_up is not None:
        return False
    return award.price == compute_awarded_price(order, bid, award.runner_up)


def _is_runner_up_real(facts: AwardFacts) -> bool:
    runner_up = facts.award.body.runner_up
    if runner_up is None:
        return True
    body = runner_up.body
    own = compute_order_id(facts.chain, facts.order.body)
    return body.order == own and is_signed_by(runner_up, Tag.BID, facts.chain, body.provider)


def _is_within_cap(facts: AwardFacts) -> bool:
    order, award = facts.order.body, facts.award.body
    if award.price > order.limit or award.commission > order.commission or award.price * award.count > MAX_INT // 4:
        return False
    return compute_cost(award.price, award.count, award.commission) <= order.cap


def _is_range_ordered(facts: AwardFacts) -> bool:
    order, award = facts.order.body, facts.award.body
    return award.replica < order.replicas and award.first + award.count <= order.segments


AWARD_CHECKS: tuple[Check[AwardFacts], ...] = (
    Check(1, "order", "the order is signed by its requester and names this job spec", _is_order_mine),
    Check(
        2,
        "award signature",
        "the award is signed by the auctioneer the order names",
        lambda f: is_signed_by(f.award, Tag.AWARD, f.chain, f.order.body.auctioneer),
    ),
    Check(
        3,
        "award order",
        "the award names this order",
        lambda f: f.award.body.order == compute_order_id(f.chain, f.order.body),
    ),
    Check(4, "award range", "the award's range and replica lie within the order", _is_range_ordered),
    Check(
        5,
        "bid signature",
        "the winning bid is signed by its provider",
        lambda f: is_signed_by(f.bid, Tag.BID, f.chain, f.bid.body.provider),
    ),
    Check(
        6,
        "bid",
        "the award names this bid, and the bid this order",
        lambda f: f.award.body.bid == compute_bid_id(f.chain, f.bid.body) and f.bid.body.order == f.award.body.order,
    ),
    Check(7, "price", "the awarded price follows the order's award rule", _is_price_awarded),
    Check(8, "runner-up", "the runner-up's bid is signed and for this order", _is_runner_up_real),
    Check(9, "cap", "price and commission stay within the order's limits and its cap", _is_within_cap),
    Check(
        10,
        "start digest",
        "the first range starts from the input that was ordered",
        lambda f: f.award.body.first != 0 or f.award.body.start == f.order.body.start,
    ),
    Check(
        11,
        "provider",
        "the provider is neither requester nor auctioneer, and its bond covers the damages",
        lambda f: is_eligible(f.order.body, f.bid.body),
    ),
    Check(
        12,
        "lease id",
        "the lease is the one this award opens",
        lambda f: f.lease == compute_lease_id(f.chain, f.award.body),
    ),
)


# ---- book ----


def compute_awarded_price(order: Order, bid: Bid, runner_up: Signed[Bid] | None) -> int:
    """What the winner is paid per segment by the order's rule (R3 b, R12 a)."""
    if order.rule is AwardRule.LOWEST:
        return bid.price
    return max(bid.price, min(order.limit, runner_up.body.price if runner_up else order.limit))


def is_eligible(order: Order, bid: Bid, price: int | None = None) -> bool:
    """Whether a bid may win by its own text (R3 b, e, f): a third party's, within the limit, with bond enough at
    `price`, by default its own.
    """
    price = bid.price if price is None else price
    if bid.provider in (order.requester, order.auctioneer):
        return False
    if not 0 < bid.price <= price <= order.limit:
        return False
    total = price * order.segments
    return total * bid.bond // BPS >= total * order.damages // BPS


def is_in_time(order: Order, bid: Bid, closed: int) -> bool:
    """Whether a bid could open its lease when the auction closed: still valid, not for too long, and with time enough
    to the deadline on its lanes (R3 c, d).
    """
    work = order.windows.start + -(-order.segments // bid.lanes) * order.segment_wall
    return closed <= bid.valid_until <= order.closes + OPENING_MS and order.deadline - closed >= work


def rank_bids(facts: BookFacts) -> list[Signed[Bid]]:
    """The bids that could win, best first (R12 a): by price, among equals by acknowledgement. `tried` are left out."""
    order, book = facts.order, facts.book.body
    fit = [
        signed
        for signed in book.bids
        if _fits(facts, signed.body, signed.body.price)
        and is_in_time(order, signed.body, book.closed)
        and compute_bid_id(facts.chain, signed.body) not in facts.tried
    ]
    return sorted(fit, key=lambda signed: signed.body.price)


def _fits(facts: BookFacts, bid: Bid, price: int) -> bool:
    order = facts.order
    return is_eligible(order, bid, price) and compute_cost(price, order.segments, facts.award.commission) <= order.cap


def choose_winner(facts: BookFacts) -> tuple[Signed[Bid], Signed[Bid] | None] | None:
    """Who should win, and the runner-up that sets the price under `second`; None where nobody should. A bid that does
    not fit at the price it would be awarded makes way for the next.
    """
    ranked = rank_bids(facts)
    second = facts.order.rule is AwardRule.SECOND
    for place, signed in enumerate(ranked):
        runner_up = next(iter(ranked[place + 1 :]), None) if second else None
        if _fits(facts, signed.body, compute_awarded_price(facts.order, signed.body, runner_up)):
            return signed, runner_up
    return None


def compute_last_acknowledgement(chain: bytes, order: bytes, bids: tuple[Signed[Bid], ...]) -> bytes:
    """Id of the last link of the chain of acknowledgements over `bids` in order (R12 b); zeros without bids."""
    previous = bytes(32)
    for sequence, signed in enumerate(bids):
        link = Acknowledgement(order, sequence, compute_bid_id(chain, signed.body), previous)
        previous = compute_id(Tag.ACKNOWLEDGEMENT, chain, link)
    return previous


def _are_bids_real(facts: BookFacts) -> bool:
    seen: set[bytes] = set()
    for signed in facts.book.body.bids:
        bid = signed.body
        if bid.order != facts.award.order or bid.provider in seen:
            return False
        if not is_signed_by(signed, Tag.BID, facts.chain, bid.provider):
            return False
        seen.add(bid.provider)
    return True


def _are_declines_real(facts: BookFacts) -> bool:
    return all(
        signed.body.order == facts.award.order and is_signed_by(signed, Tag.DECLINE, facts.chain, signed.body.provider)
        for signed in facts.book.body.declines
    )


def _is_winner_right(facts: BookFacts) -> bool:
    chosen = choose_winner(facts)
    if chosen is None:
        return False
    winner, runner_up = chosen
    return compute_bid_id(facts.chain, winner.body) == facts.award.bid and runner_up == facts.award.runner_up


BOOK_CHECKS: tuple[Check[BookFacts], ...] = (
    Check(
        13,
        "book signature",
        "the book is signed by the auctioneer",
        lambda f: is_signed_by(f.book, Tag.BOOK, f.chain, f.order.auctioneer),
    ),
    Check(14, "book order", "the book is of this order", lambda f: f.book.body.order == f.award.order),
    Check(
        15,
        "book root",
        "the award names this book's root, and the root is over its bids",
        lambda f: f.award.book == f.book.body.root == compute_root([encode(signed) for signed in f.book.body.bids]),
    ),
    Check(16, "bids", "each bid is signed, for this order, one per provider", _are_bids_real),
    Check(
        17,
        "acknowledgements",
        "the chain of acknowledgements over the bids ends where the book says",
        lambda f: f.book.body.last == compute_last_acknowledgement(f.chain, f.award.order, f.book.body.bids),
    ),
    Check(18, "declines", "each decline is signed and for this order", _are_declines_real),
    Check(19, "winner", "the bid that should win by the order's rule is the one that won", _is_winner_right),
)
