"""What the broker takes from outside, as numbered checks that change nothing: orders, cancellations, deliveries,
acceptances (R2, R3, R5, R7, R12 f).

Signatures first are cheap here: shape and names before them cost less still. What only the ledger can know (bonds,
headroom of an order) is the chain's to refuse.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from broker.protocol.api import Cancellation, Delivery, Submission
from broker.protocol.jobs import compute_job_digest, compute_runtime_digest
from chain.base.codec import Record
from chain.base.errors import Refused
from chain.base.hashing import Digest, Tag, compute_digest
from chain.base.keys import Key, Signed, check_key, verify
from chain.base.units import Amount, Bps, Millis
from chain.ledger.rules.opening import check_order
from chain.ledger.terms.agreement import Award, Bid, Order
from chain.ledger.terms.work import (
    Acceptance,
    SegmentRecord,
    compute_receipt_id,
    compute_records_root,
)

MAX_AUCTION = 600_000
"""Milliseconds that an auction may stay open."""

EMPTY = compute_digest(b"")
"""Digest that stands for "nothing here"; nobody has to store it."""


class House(Record, frozen=True, tag="house"):
    """The broker as the checks know it: chain, own key, commission in basis points, how long outputs are kept."""

    chain: Digest
    broker: Key
    commission: Bps
    retention: Millis


class Means(Record, frozen=True, tag="means"):
    """What the requester can pay: `free` is its balance on the chain, `promised` what its other announced orders may
    take of it (R12 f).
    """

    free: Amount
    promised: Amount


def check_submission(house: House, submission: Submission, means: Means, now: int) -> Order:
    """The order, if it can be announced; raises `Refused` under the rule it breaks."""
    order, spec = submission.order.body, submission.spec
    # 1. It is for this broker, and the spec is the one the order names.
    if order.auctioneer != house.broker:
        raise Refused("the order names another auctioneer than this broker", rule="order.auctioneer")
    if compute_job_digest(house.chain, spec) != order.job:
        raise Refused("the job spec is not the one the order names", rule="order.job")
    if compute_runtime_digest(house.chain, spec.runtime) != order.runtime or spec.kind is not order.kind:
        raise Refused("runtime or kind of the job spec are not those of the order", rule="order.job")
    if order.weights and len(order.weights) != order.segments:
        raise Refused("weights are one per segment, or none", rule="order.weights")
    # 2. What this release can do, and what the chain would open at all: nobody bids in vain, no sum leaves its range.
    check_order(order)
    if order.replicas != 1:
        raise Refused("only one replica per order is done so far", rule="order.replicas")
    # 3. Time: the auction is open, and an end follows its close.
    if not now < order.closes <= now + MAX_AUCTION:
        raise Refused(f"the auction has to close within {MAX_AUCTION} ms from now", rule="order.closes")
    if not order.closes < order.deadline <= order.expiry:
        raise Refused("closes, deadline and expiry have to follow one another", rule="order.deadline")
    # 4. Money: our commission is allowed, and the cap is there to be locked.
    if house.commission > order.commission:
        raise Refused(
            f"the broker takes {house.commission} basis points, the order allows {order.commission}",
            rule="order.commission",
        )
    needed = order.cap + order.deposit
    if needed + means.promised > means.free:
        raise Refused(
            f"the order may take {needed} micro-credits, other announced orders {means.promised}, "
            f"and the requester has {means.free}: pay in first or lower the cap",
            rule="R12.funds",
        )
    # 5. Signed by the requester, whose key is a proper one.
    verify(submission.order, Tag.ORDER, house.chain, check_key(order.requester))
    return order


def check_cancellation(chain_id: bytes, order: Order, order_id: bytes, signed: Signed[Cancellation]) -> None:
    """Raise `Refused` unless the requester takes this very order back."""
    if signed.body.order != order_id or signed.body.requester != order.requester:
        raise Refused("the cancellation is not for this order by its requester", rule="cancellation.order")
    verify(signed, Tag.CANCELLATION, chain_id, order.requester)


def check_delivery(chain_id: bytes, lease: bytes, award: Award, bid: Bid, delivery: Delivery) -> None:
    """Raise `Refused` unless receipt and records are whole, belong to the lease, and are the provider's (R5)."""
    receipt = delivery.receipt.body
    # 1. The receipt is for this lease and says what comes with it.
    if receipt.lease != lease or receipt.provider != bid.provider:
        raise Refused("the receipt is for another lease or provider", rule="R5.lease")
    if receipt.first != award.first or not 0 < receipt.count <= award.count:
        raise Refused("the receipt is for no prefix of the lease's range", rule="R5.prefix")
    if len(delivery.records) != receipt.count:
        raise Refused(f"{len(delivery.records)} records with a receipt over {receipt.count}", rule="R5.count")
    # 2. Records are in order, of this lease and provider, beginning with the range's first input.
    bodies = [record.body for record in delivery.records]
    for index, record in enumerate(bodies, receipt.first):
        _check_record(record, lease, bid.provider, index)
    if award.first == 0 and bodies[0].input != award.start:
        raise Refused("the first record names another input than the award", rule="R5.start")
    # 3. The root is over them, the receipt ends as its last record does.
    if compute_records_root(bodies) != receipt.records:
        raise Refused("the receipt's root is not over these records", rule="R5.root")
    if bodies[-1].cause is not receipt.cause:
        raise Refused("the receipt's cause is not that of its last record", rule="R5.cause")
    # 4. Signatures.
    verify(delivery.receipt, Tag.RECEIPT, chain_id, bid.provider)
    for signed in delivery.records:
        verify(signed, Tag.SEGMENT, chain_id, bid.provider)


def list_delivered_blobs(delivery: Delivery) -> tuple[bytes, ...]:
    """Digests of all blobs that a receipt and its records name, without the empty one, sorted."""
    return tuple(sorted(set(_read_digests(delivery)) - {EMPTY}))


def check_acceptance(
    chain_id: bytes, order: Order, lease: bytes, receipts: Sequence[bytes], signed: Signed[Acceptance]
) -> None:
    """Raise `Refused` unless requester or watcher accepts one of the lease's receipts (ids) that the broker has."""
    acceptance = signed.body
    if acceptance.lease != lease or acceptance.receipt not in receipts:
        raise Refused("the acceptance is for no receipt that the broker has", rule="R7.receipt")
    if acceptance.signer not in (order.requester, order.watcher):
        raise Refused("only the requester or its watcher accepts", rule="R7.signer")
    verify(signed, Tag.ACCEPTANCE, chain_id, acceptance.signer)


def compute_delivery_id(chain_id: bytes, delivery: Delivery) -> bytes:
    """Id of the receipt that a delivery brings."""
    return compute_receipt_id(chain_id, delivery.receipt.body)


def _check_record(record: SegmentRecord, lease: bytes, provider: bytes, index: int) -> None:
    if record.lease != lease or record.provider != provider:
        raise Refused("a record is of another lease or provider", rule="R5.record")
    if record.index != index:
        raise Refused(f"record {record.index} stands where {index} belongs", rule="R5.index")


def _read_digests(delivery: Delivery) -> Iterator[bytes]:
    yield delivery.receipt.body.log
    yield delivery.receipt.body.provenance
    for record in delivery.records:
        yield record.body.output
        yield record.body.error
