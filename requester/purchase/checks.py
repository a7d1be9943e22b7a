"""Numbered checks of what a requester is sent: award and bid (1-12), the book of a round (13-18, 47), and what
follows from it (19, 46).

A requester trusts nobody: each number it acts on is covered by a signature of the party that answers for it (R3, R5,
R7, R8, R12). How a book is divided is `broker.auction.scoring`, the one rule that the broker runs too. The rows are
data; `checking` runs them. Not here: deliveries (`deliveries`) and proofs from the chain (`verify`).
"""

from __future__ import annotations

from dataclasses import dataclass

from broker.auction.scoring import Share, divide, replace_share
from broker.protocol.jobs import JobSpec, compute_job_digest, compute_runtime_digest
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
from chain.ledger.terms.work import Span
from requester.purchase.checking import Blame, Check, is_signed_by
from requester.purchase.order import compute_cost


@dataclass(frozen=True)
class AwardFacts:
    """An award as it was heard, beside what was ordered. `start` is what its range has to start from: the order's start
    for a `map` and for segment 0, else the output of the record before, None where that is not known.
    """

    chain: bytes
    order: Signed[Order]
    spec: JobSpec
    award: Signed[Award]
    bid: Signed[Bid]
    lease: bytes
    start: bytes | None


@dataclass(frozen=True)
class BookFacts:
    """The book of a round, beside the order. `round` is which it is said to be of; None where it may say so itself."""

    chain: bytes
    order: Order
    order_id: bytes
    book: Signed[Book]
    round: int | None = None


@dataclass(frozen=True)
class ShareFacts:
    """An award beside the book it was drawn from, both already checked.

    `failed` are ids of bids whose award the chain refused to open, `used` those of all other bids that were awarded a
    part of this round.
    """

    chain: bytes
    order: Order
    spec: JobSpec
    award: Award
    book: Book
    failed: frozenset[bytes] = frozenset()
    used: frozenset[bytes] = frozenset()


# ---- award and bid ----


def is_order_mine(chain: bytes, order: Signed[Order], spec: JobSpec) -> bool:
    """Whether its requester signed the order, and this is the job spec that it names."""
    body = order.body
    if body.job != compute_job_digest(chain, spec) or body.kind is not spec.kind:
        return False
    if body.runtime != compute_runtime_digest(chain, spec.runtime):
        return False
    return is_signed_by(order, Tag.ORDER, chain, body.requester)


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


def _is_provider_fit(facts: AwardFacts) -> bool:
    """R3 e, f: a third party, with bond enough for the damages of its part at the awarded price."""
    order, award, bid = facts.order.body, facts.award.body, facts.bid.body
    if bid.provider in (order.requester, order.auctioneer):
        return False
    total = award.price * award.count
    return total * bid.bond // BPS >= total * order.damages // BPS


AWARD_CHECKS: tuple[Check[AwardFacts], ...] = (
    Check(
        1,
        "order",
        "the order is signed by its requester and names this job spec",
        lambda f: is_order_mine(f.chain, f.order, f.spec),
    ),
    Check(
        2,
        "award signature",
        "the award is signed by the auctioneer the order names",
        lambda f: is_signed_by(f.award, Tag.AWARD, f.chain, f.order.body.auctioneer),
        Blame.TELLER,
    ),
    Check(
        3,
        "award order",
        "the award names this order",
        lambda f: f.award.body.order == compute_order_id(f.chain, f.order.body),
        Blame.TELLER,
    ),
    Check(4, "award range", "the award's range and replica lie within the order", _is_range_ordered),
    Check(
        5,
        "bid signature",
        "the winning bid is signed by its provider",
        lambda f: is_signed_by(f.bid, Tag.BID, f.chain, f.bid.body.provider),
        Blame.TELLER,
    ),
    Check(
        6,
        "bid",
        "the award names this bid, and the bid this order",
        lambda f: f.award.body.bid == compute_bid_id(f.chain, f.bid.body) and f.bid.body.order == f.award.body.order,
        Blame.TELLER,
    ),
    Check(7, "price", "the awarded price follows the order's award rule", _is_price_awarded),
    Check(8, "runner-up", "the runner-up's bid is signed and for this order", _is_runner_up_real),
    Check(9, "cap", "price and commission stay within the order's limits and its cap", _is_within_cap),
    Check(
        10,
        "start digest",
        "the range starts from what was ordered, or from the output of the record before it",
        lambda f: f.award.body.start == f.start,
    ),
    Check(
        11,
        "provider",
        "the provider is neither requester nor auctioneer, and its bond covers the damages",
        _is_provider_fit,
    ),
    Check(
        12,
        "lease id",
        "the lease is the one this award opens",
        lambda f: f.lease == compute_lease_id(f.chain, f.award.body),
        Blame.TELLER,
    ),
)


# ---- book ----


def compute_awarded_price(order: Order, bid: Bid, runner_up: Signed[Bid] | None) -> int:
    """What the winner is paid per segment by the order's rule (R3 b, R12 a)."""
    if order.rule is AwardRule.LOWEST:
        return bid.price
    return max(bid.price, min(order.limit, runner_up.body.price if runner_up else order.limit))


def find_share(facts: ShareFacts) -> Share | None:
    """The share of the round's book that the award has to be, by who has its range (R12 a); None where nobody has.

    At first the book is divided. A part whose bid did not open its lease goes to the best bid that has had no part of
    the round. Which of several such came first is not asked: the best of those that never had one, and the one that has
    it, is the same at any time.
    """
    order, spec, book, award = facts.order, facts.spec, facts.book, facts.award
    shares = divide(order, spec, book.spans, book.bids, award.commission, book.closed)
    share = next((one for one in shares if (one.first, one.count) == (award.first, award.count)), None)
    if share is None or compute_bid_id(facts.chain, share.bid.body) not in facts.failed:
        return share
    had = facts.used | facts.failed | {compute_bid_id(facts.chain, one.bid.body) for one in shares}
    gone = frozenset(one.signature for one in book.bids if compute_bid_id(facts.chain, one.body) in had)
    return replace_share(order, spec, Span(award.first, award.count), book, award.commission, gone)


def compute_last_acknowledgement(chain: bytes, order: bytes, number: int, bids: tuple[Signed[Bid], ...]) -> bytes:
    """Id of the last link of the chain of acknowledgements over `bids` of round `number` (R12 b); zeros without."""
    previous = bytes(32)
    for sequence, signed in enumerate(bids):
        link = Acknowledgement(order, number, sequence, compute_bid_id(chain, signed.body), previous)
        previous = compute_id(Tag.ACKNOWLEDGEMENT, chain, link)
    return previous


def _are_bids_real(facts: BookFacts) -> bool:
    seen: set[bytes] = set()
    for signed in facts.book.body.bids:
        bid = signed.body
        if bid.order != facts.order_id or bid.provider in seen:
            return False
        if not is_signed_by(signed, Tag.BID, facts.chain, bid.provider):
            return False
        seen.add(bid.provider)
    return True


def _are_declines_real(facts: BookFacts) -> bool:
    return all(
        signed.body.order == facts.order_id and is_signed_by(signed, Tag.DECLINE, facts.chain, signed.body.provider)
        for signed in facts.book.body.declines
    )


def _are_spans_right(facts: BookFacts) -> bool:
    """The first round offers the whole order, every one ascending, disjoint spans of it."""
    book, segments = facts.book.body, facts.order.segments
    if book.round == 0:
        return book.spans == (Span(0, segments),)
    end = 0
    for span in book.spans:
        if span.count == 0 or span.first < end:
            return False
        end = span.first + span.count
    return end <= segments


def _is_winner_right(facts: ShareFacts) -> bool:
    share, award = find_share(facts), facts.award
    if share is None:
        return False
    wins = compute_bid_id(facts.chain, share.bid.body) == award.bid
    return wins and (share.price, share.runner_up) == (award.price, award.runner_up)


BOOK_CHECKS: tuple[Check[BookFacts], ...] = (
    Check(
        13,
        "book signature",
        "the book is signed by the auctioneer",
        lambda f: is_signed_by(f.book, Tag.BOOK, f.chain, f.order.auctioneer),
        Blame.TELLER,
    ),
    Check(
        14,
        "book order",
        "the book is of this order and of the round it stands for",
        lambda f: f.book.body.order == f.order_id and f.round in (None, f.book.body.round),
        Blame.TELLER,
    ),
    Check(
        15,
        "book root",
        "the book's root is over its bids",
        lambda f: f.book.body.root == compute_root([encode(signed) for signed in f.book.body.bids]),
    ),
    Check(16, "bids", "each bid is signed, for this order, one per provider", _are_bids_real),
    Check(
        17,
        "acknowledgements",
        "the chain of acknowledgements over the bids ends where the book says",
        lambda f: (
            f.book.body.last == compute_last_acknowledgement(f.chain, f.order_id, f.book.body.round, f.book.body.bids)
        ),
    ),
    Check(18, "declines", "each decline is signed and for this order", _are_declines_real),
    Check(47, "spans", "the spans on offer ascend within the order, in round 0 the whole of it", _are_spans_right),
)

SHARE_CHECKS: tuple[Check[ShareFacts], ...] = (
    Check(
        46,
        "award book",
        "the award names the root of its round's book, and when that was closed",
        lambda f: (f.award.book, f.award.closed) == (f.book.root, f.book.closed),
    ),
    Check(19, "winner", "the range goes to the bid that should have it by the order's rule", _is_winner_right),
)
