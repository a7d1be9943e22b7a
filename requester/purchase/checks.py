"""Numbered checks of what a requester is sent: award and bid (1-12), book (13-19), delivery (20-34), its blobs (35-37).

A requester trusts nobody: each number it acts on is covered by a signature of the party that answers for it (R3, R5,
R7, R8, R12). The rows are data; `checking` runs them. Not here: proofs from the chain (`verify`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from broker.protocol.api import Delivery
from broker.protocol.jobs import JobSpec, compute_job_digest
from broker.protocol.messages import Acknowledgement, Book
from chain.base.codec import encode
from chain.base.hashing import Tag, compute_digest, compute_id
from chain.base.keys import Signed
from chain.base.merkle import compute_root
from chain.base.units import MAX_INT
from chain.ledger.terms.agreement import (
    Award,
    AwardRule,
    Bid,
    Kind,
    Order,
    compute_bid_id,
    compute_lease_id,
    compute_order_id,
)
from chain.ledger.terms.outcome import Cause, Usage
from chain.ledger.terms.work import (
    Receipt,
    SegmentRecord,
    StorageReceipt,
    compute_receipt_id,
    compute_records_root,
    is_final,
)
from requester.purchase.checking import Check, is_signed_by
from requester.purchase.order import OPENING_MS, compute_cost

EMPTY = compute_digest(b"")
"""Digest of the empty blob: what a record names where there is no error, or a receipt where there is no log."""


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


@dataclass(frozen=True)
class DeliveryFacts:
    """A delivery beside its award. `found` maps digests of blobs that are at hand, and match, to their sizes."""

    chain: bytes
    order: Order
    spec: JobSpec
    award: Award
    bid: Bid
    delivery: Delivery
    storage: Signed[StorageReceipt]
    found: Mapping[bytes, int]

    @property
    def receipt(self) -> Receipt:
        """The receipt's body."""
        return self.delivery.receipt.body

    @property
    def records(self) -> tuple[SegmentRecord, ...]:
        """The records' bodies, as they were sent."""
        return tuple(signed.body for signed in self.delivery.records)

    @property
    def lease(self) -> bytes:
        """Id of the lease the award opens."""
        return compute_lease_id(self.chain, self.award)


# ---- award and bid ----


def _is_order_mine(facts: AwardFacts) -> bool:
    order = facts.order.body
    signed = is_signed_by(facts.order, Tag.ORDER, facts.chain, order.requester)
    return signed and order.job == compute_job_digest(facts.chain, facts.spec)


def _is_price_awarded(facts: AwardFacts) -> bool:
    """R3 b: its own price, or under `second` the runner-up's, where there is one."""
    order, award, bid = facts.order.body, facts.award.body, facts.bid.body
    if award.runner_up is None:
        return award.price == bid.price
    dearer = min(award.runner_up.body.price, order.limit)
    return order.rule is AwardRule.SECOND and bid.price <= award.price == dearer


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


def is_eligible(order: Order, bid: Bid) -> bool:
    """Whether a bid may win by its own text (R3 b, e, f): a third party's, within the limit, with bond enough."""
    if bid.provider in (order.requester, order.auctioneer):
        return False
    return 0 < bid.price <= order.limit and bid.bond >= order.damages


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
        if is_eligible(order, signed.body)
        and is_in_time(order, signed.body, book.closed)
        and compute_cost(signed.body.price, order.segments, facts.award.commission) <= order.cap
        and compute_bid_id(facts.chain, signed.body) not in facts.tried
    ]
    return sorted(fit, key=lambda signed: signed.body.price)


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
    ranked = rank_bids(facts)
    if not ranked or compute_bid_id(facts.chain, ranked[0].body) != facts.award.bid:
        return False
    return facts.award.runner_up is None or ranked[1:2] == [facts.award.runner_up]


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


# ---- delivery ----


def _are_records_signed(facts: DeliveryFacts) -> bool:
    key = facts.bid.provider
    return all(is_signed_by(signed, Tag.SEGMENT, facts.chain, key) for signed in facts.delivery.records)


def _are_records_of_lease(facts: DeliveryFacts) -> bool:
    return all(record.lease == facts.lease and record.provider == facts.bid.provider for record in facts.records)


def _are_indices_right(facts: DeliveryFacts) -> bool:
    first = facts.award.first
    return [record.index for record in facts.records] == list(range(first, first + len(facts.records)))


def _are_inputs_right(facts: DeliveryFacts) -> bool:
    """R5: the first input is the start digest; in a `train` each input is the output before it."""
    if facts.order.kind is Kind.MAP:
        return True
    if facts.records[0].input != facts.award.start:
        return False
    return all(after.input == before.output for before, after in pairwise(facts.records))


def _is_cause_right(facts: DeliveryFacts) -> bool:
    """R9: all records before the last are `ok`, the receipt's cause is the last one's, `host` is never final."""
    causes = [record.cause for record in facts.records]
    return all(cause is Cause.OK for cause in causes[:-1]) and facts.receipt.cause is causes[-1] is not Cause.HOST


def _is_usage_sum(facts: DeliveryFacts) -> bool:
    return sum((record.usage for record in facts.records), Usage()) == facts.receipt.usage


def _are_outputs_here(facts: DeliveryFacts) -> bool:
    limit = facts.spec.resources.output_bytes
    return all(_is_here(facts, record.output, limit) for record in facts.records)


def _are_errors_here(facts: DeliveryFacts) -> bool:
    """A failed segment names the digest of its traceback (R9); an ok one names that of the empty blob."""
    if any(record.cause is Cause.OK and record.error != EMPTY for record in facts.records):
        return False
    return all(_is_here(facts, record.error, MAX_ERROR_BYTES) for record in facts.records)


def _is_here(facts: DeliveryFacts, digest: bytes, limit: int) -> bool:
    return digest == EMPTY or facts.found.get(digest, limit + 1) <= limit


def _is_storage_mine(facts: DeliveryFacts) -> bool:
    body = facts.storage.body
    if body.holder not in (*facts.order.holders, *facts.bid.holders):
        return False
    return is_signed_by(facts.storage, Tag.STORAGE, facts.chain, body.holder)


def _is_storage_of_receipt(facts: DeliveryFacts) -> bool:
    body = facts.storage.body
    return body.lease == facts.lease and body.receipt == compute_receipt_id(facts.chain, facts.receipt)


MAX_ERROR_BYTES = 1 << 20
"""Largest traceback that is taken."""

LOG_MARGIN = 4_096
"""Bytes by which a log may pass its limit: the notice that says it was cut."""

DELIVERY_CHECKS: tuple[Check[DeliveryFacts], ...] = (
    Check(
        20,
        "receipt signature",
        "the receipt is signed by the provider that won",
        lambda f: is_signed_by(f.delivery.receipt, Tag.RECEIPT, f.chain, f.bid.provider),
    ),
    Check(
        21,
        "receipt lease",
        "the receipt is for this lease and by this provider",
        lambda f: f.receipt.lease == f.lease and f.receipt.provider == f.bid.provider,
    ),
    Check(
        22,
        "receipt range",
        "the receipt begins where the award does and counts the records that came",
        lambda f: (
            f.receipt.first == f.award.first
            and 0 < f.receipt.count == len(f.records)
            and f.receipt.count <= f.award.count
        ),
    ),
    Check(23, "record signatures", "each segment record is signed by the provider", _are_records_signed),
    Check(24, "record lease", "each record names this lease and this provider", _are_records_of_lease),
    Check(25, "indices", "the records' indices follow each other without a gap", _are_indices_right),
    Check(
        26,
        "records root",
        "the receipt's root is the one over these records",
        lambda f: f.receipt.records == compute_records_root(f.records),
    ),
    Check(
        27,
        "start digest",
        "the work began from the input that was awarded, and each step from the last",
        _are_inputs_right,
    ),
    Check(28, "cause", "the cause is the last record's, and all before it are ok", _is_cause_right),
    Check(
        29,
        "final",
        "the receipt covers the whole range or ends by a cause of R9",
        lambda f: is_final(f.receipt, f.award.count),
    ),
    Check(30, "usage", "the receipt's usage is the sum of its records", _is_usage_sum),
    Check(
        31,
        "runtime",
        "the work ran under the runtime that was ordered",
        lambda f: f.receipt.environment.runtime == f.order.runtime,
    ),
    Check(
        32, "storage signature", "the storage receipt is signed by a holder that order or bid names", _is_storage_mine
    ),
    Check(33, "storage receipt", "the storage receipt is for this lease and this receipt", _is_storage_of_receipt),
    Check(
        34,
        "storage time",
        "the holder keeps the outputs until the acceptance window is over",
        lambda f: f.storage.body.kept_until >= f.receipt.finished + f.order.windows.acceptance,
    ),
)

BLOB_CHECKS: tuple[Check[DeliveryFacts], ...] = (
    Check(35, "outputs", "each output is here, matches its digest and keeps to its limit", _are_outputs_here),
    Check(36, "errors", "each failed segment's error text is here and matches its digest", _are_errors_here),
    Check(
        37,
        "log",
        "the log is here, matches its digest and keeps to its limit",
        lambda f: _is_here(f, f.receipt.log, f.spec.resources.log_bytes + LOG_MARGIN),
    ),
)
"""Run once the blobs were fetched: all else is checked before a byte of them is asked for."""


def list_needed(delivery: Delivery) -> tuple[bytes, ...]:
    """Digests of all blobs a delivery names, without the empty one, each once."""
    named = [delivery.receipt.body.log]
    for signed in delivery.records:
        named += [signed.body.output, signed.body.error]
    return tuple(dict.fromkeys(digest for digest in named if digest != EMPTY))
