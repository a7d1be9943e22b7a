"""What the broker takes from outside, as numbered checks that change nothing: orders, cancellations, deliveries,
acceptances (R2, R3, R5, R7, R12 f).

Signatures first are cheap here: shape and names before them cost less still. What only the ledger can know (bonds,
headroom of an order) is the chain's to refuse.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from broker.protocol.api import Cancellation, Delivery, Submission
from broker.protocol.jobs import (
    LOG_MARGIN,
    MAX_ERROR_BYTES,
    JobSpec,
    compute_job_digest,
    compute_log_limit,
    compute_runtime_digest,
)
from broker.protocol.messages import MAX_MESSAGE_BYTES
from broker.protocol.provenance import compute_provenance_limit
from chain.base.codec import Record, encode
from chain.base.errors import Refused
from chain.base.hashing import Digest, Tag, compute_digest
from chain.base.keys import Key, Signed, check_key, verify
from chain.base.merkle import Frontier
from chain.base.units import Amount, Bps, Millis
from chain.ledger.rules.opening import check_order
from chain.ledger.terms.agreement import Award, Bid, Kind, Order
from chain.ledger.terms.outcome import Cause
from chain.ledger.terms.work import (
    Acceptance,
    Receipt,
    SegmentRecord,
    Span,
    check_accepted_spans,
    compute_receipt_id,
    is_final,
)

MAX_AUCTION = 600_000
"""Milliseconds that an auction may stay open."""

MAX_DEADLINE = 90 * 24 * 3_600_000
"""Milliseconds that a deadline may lie ahead: outputs of prefixes are kept until then and for the retention."""

MAX_SEGMENTS = 65_536
"""Segments of one order: the broker has the records of all of them in memory until the job is over."""

ANNOUNCED_BESIDE = 6_144
"""Bytes of an announcement besides order and spec: at most 256 spans, names, signatures."""

MANY_DELIVERIES = 4_096
"""Receipts of one lease behind which …"""

MANY_RECORDS = 16
"""… a prefix has to bring so many records more: so receipts of a lease stay below 8,192 while its segments may be
many more. A final receipt is always taken.
"""

MAX_AHEAD = 60_000
"""Milliseconds that a receipt's finish may lie ahead of our clock: clocks differ, but no work is done tomorrow."""

MAX_ACCEPTANCES = 16
"""Different acceptances of one lease: each stays in journal and memory until the job is over. An honest requester signs
one.
"""

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
    _check_size(submission)
    if order.replicas != 1:
        raise Refused("only one replica per order is done so far", rule="order.replicas")
    # 3. Time: the auction is open, and an end follows its close.
    if not now < order.closes <= now + MAX_AUCTION:
        raise Refused(f"the auction has to close within {MAX_AUCTION} ms from now", rule="order.closes")
    if not order.closes < order.deadline <= order.expiry:
        raise Refused("closes, deadline and expiry have to follow one another", rule="order.deadline")
    if order.deadline > now + MAX_DEADLINE:
        raise Refused(f"the deadline has to be within {MAX_DEADLINE} ms from now", rule="order.deadline")
    if order.windows.acceptance + order.windows.grace > house.retention:
        text = f"outputs are kept {house.retention} ms behind the deadline here; grace and acceptance window are longer"
        raise Refused(text, rule="order.acceptance")
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


def _check_size(submission: Submission) -> None:
    order = submission.order.body
    if order.segments > (1 if order.kind is Kind.RUN else MAX_SEGMENTS):
        raise Refused(f"a run is one segment, other jobs at most {MAX_SEGMENTS}", rule="order.segments")
    if len(encode(submission.order)) + len(encode(submission.spec)) > MAX_MESSAGE_BYTES - ANNOUNCED_BESIDE:
        raise Refused("order and job spec do not fit one message on the bus; use fewer weights", rule="order.size")


def check_cancellation(chain_id: bytes, order: Order, order_id: bytes, signed: Signed[Cancellation]) -> None:
    """Raise `Refused` unless the requester takes this very order back."""
    if signed.body.order != order_id or signed.body.requester != order.requester:
        raise Refused("the cancellation is not for this order by its requester", rule="cancellation.order")
    verify(signed, Tag.CANCELLATION, chain_id, order.requester)


class Agreed(NamedTuple):
    """What a lease was awarded for."""

    lease: bytes
    award: Award
    bid: Bid
    kind: Kind


class HandedIn:
    """What was handed in of one lease: the records of its longest prefix, the tree over them, and the receipts."""

    def __init__(self) -> None:
        self.records: list[SegmentRecord] = []
        self.tree = Frontier()
        self.deliveries = 0
        self.final: Receipt | None = None

    def add(self, delivery: Delivery, count: int) -> None:
        """Take a checked and trimmed delivery of a lease of `count` segments."""
        for record in delivery.records:
            self.records.append(record)
            self.tree.append(encode(record))
        self.deliveries += 1
        if is_final(delivery.receipt.body, count):
            self.final = delivery.receipt.body


def check_delivery(chain_id: bytes, agreed: Agreed, known: HandedIn, delivery: Delivery, now: int) -> Delivery:
    """The delivery as it is kept at `now`: without blobs, and without records that are here already. Raises `Refused`
    unless receipt and records go on from what was handed in, belong to the lease, and are the provider's (R5, R9).
    """
    receipt, award = delivery.receipt.body, agreed.award
    # 1. The receipt is for this lease, says what comes with it, and was finished by now.
    _check_claim(agreed, delivery, now)
    # 2. It goes on from what is here.
    new = _check_continues(known, delivery)
    final = is_final(receipt, award.count)
    if not final and known.deliveries >= MANY_DELIVERIES and len(new) < MANY_RECORDS:
        text = f"behind {MANY_DELIVERIES} receipts a prefix brings at least {MANY_RECORDS} records"
        raise Refused(text, rule="delivery.many")
    # 3. Records are in order, of this lease and provider, each going on from the one before.
    for index, record in enumerate(new, award.first + len(known.records)):
        _check_record(record, agreed, index)
    _check_inputs(agreed, known, new)
    # 4. All went well but at most the last; the receipt ends as that one does, and says so only when it is final.
    if any(record.cause is not Cause.OK for record in new[:-1]):
        raise Refused("behind a segment that failed comes no other", rule="R9.cause")
    if new[-1].cause is not receipt.cause or receipt.cause is Cause.HOST:
        raise Refused("the receipt's cause is not that of its last record, or is the host's", rule="R5.cause")
    if not final and (receipt.log != EMPTY or receipt.provenance != EMPTY):
        raise Refused("only a final receipt names log and provenance", rule="R5.log")
    if final and receipt.provenance == EMPTY:
        raise Refused("a final receipt names its provenance", rule="R5.provenance")
    # 5. The root is over all of them.
    tree = known.tree.copy()
    for record in new:
        tree.append(encode(record))
    if tree.root != receipt.records:
        raise Refused("the receipt's root is not over these records", rule="R5.root")
    # 6. Signed by the provider: the receipt commits to the records.
    verify(delivery.receipt, Tag.RECEIPT, chain_id, agreed.bid.provider)
    return Delivery(delivery.receipt, len(known.records), new, ())


def _check_claim(agreed: Agreed, delivery: Delivery, now: int) -> None:
    receipt, award = delivery.receipt.body, agreed.award
    if receipt.lease != agreed.lease or receipt.provider != agreed.bid.provider:
        raise Refused("the receipt is for another lease or provider", rule="R5.lease")
    if receipt.first != award.first or not 0 < receipt.count <= award.count:
        raise Refused("the receipt is for no prefix of the lease's range", rule="R5.prefix")
    if delivery.since + len(delivery.records) != receipt.count:
        text = f"{len(delivery.records)} records behind {delivery.since} with a receipt over {receipt.count}"
        raise Refused(text, rule="R5.count")
    # Our storage receipt promises an end that is reckoned from the deadline, not from this.
    if receipt.finished > now + MAX_AHEAD:
        raise Refused(f"the receipt was finished more than {MAX_AHEAD} ms ahead of now", rule="delivery.finished")


def _check_continues(known: HandedIn, delivery: Delivery) -> tuple[SegmentRecord, ...]:
    """The records that are new."""
    since, here = delivery.since, len(known.records)
    if since > here:
        raise Refused(f"records from {here} of the lease on are missing", rule="R5.since")
    overlap = here - since
    if list(delivery.records[:overlap]) != known.records[since : since + len(delivery.records)]:
        raise Refused("a record is another than was handed in before", rule="R5.overlap")
    if known.final is not None or len(delivery.records) <= overlap:
        raise Refused(f"a receipt over {here} segments is here, or a final one", rule="R5.shorter")
    return delivery.records[overlap:]


def check_sizes(spec: JobSpec, segments: int, delivery: Delivery, sizes: Mapping[bytes, int]) -> None:
    """Raise `Refused` unless the blobs of a delivery that was checked, of a lease on so many segments, keep to what the
    order allows: the limits by which its requester takes them (checks 35 to 37 and 48). They count as the requester's
    from here on, so that what an order adds is bounded by what it asked for.
    """
    receipt, records = delivery.receipt.body, delivery.records
    rows = (
        ("output", spec.resources.output_bytes, [record.output for record in records]),
        ("error", MAX_ERROR_BYTES, [record.error for record in records]),
        ("log", compute_log_limit(spec, segments) + LOG_MARGIN, [receipt.log]),
        ("provenance", compute_provenance_limit(receipt.count), [receipt.provenance]),
    )
    for name, limit, digests in rows:
        largest = max(sizes.get(digest, 0) for digest in digests)
        if largest > limit:
            text = f"the {name} has {largest} bytes, the order allows {limit}; hand in what keeps to its limits"
            raise Refused(text, rule=f"delivery.{name}")


def list_delivered_blobs(delivery: Delivery) -> tuple[bytes, ...]:
    """Digests of all blobs that a receipt and its records name, without the empty one, sorted."""
    return tuple(sorted(set(_read_digests(delivery)) - {EMPTY}))


class Acceptable(NamedTuple):
    """What of a lease may be accepted: the ranges of its receipts by their ids; and what was accepted before."""

    ranges: Mapping[bytes, Span]
    accepted: Collection[Signed[Acceptance]]


def check_acceptance(
    chain_id: bytes, order: Order, lease: bytes, handed: Acceptable, signed: Signed[Acceptance]
) -> None:
    """Raise `Refused` unless requester or watcher accepts one of the lease's receipts that the broker has, within the
    range of that receipt. One that was taken before is taken again.
    """
    acceptance = signed.body
    if acceptance.lease != lease or acceptance.receipt not in handed.ranges:
        raise Refused("the acceptance is for no receipt that the broker has", rule="R7.receipt")
    if acceptance.signer not in (order.requester, order.watcher):
        raise Refused("only the requester or its watcher accepts", rule="R7.signer")
    check_accepted_spans(acceptance.segments, handed.ranges[acceptance.receipt])  # a settle would be refused otherwise
    if len(handed.accepted) >= MAX_ACCEPTANCES and signed not in handed.accepted:
        text = f"{MAX_ACCEPTANCES} acceptances of this lease are here; settle with one of them"
        raise Refused(text, rule="acceptance.many")
    verify(signed, Tag.ACCEPTANCE, chain_id, acceptance.signer)


def compute_delivery_id(chain_id: bytes, delivery: Delivery) -> bytes:
    """Id of the receipt that a delivery brings."""
    return compute_receipt_id(chain_id, delivery.receipt.body)


def _check_record(record: SegmentRecord, agreed: Agreed, index: int) -> None:
    if record.lease != agreed.lease or record.provider != agreed.bid.provider:
        raise Refused("a record is of another lease or provider", rule="R5.record")
    if record.index != index:
        raise Refused(f"record {record.index} stands where {index} belongs", rule="R5.index")
    if record.cause is Cause.OK and record.error != EMPTY:
        raise Refused(f"segment {index} went well and names an error text", rule="R9.error")


def _check_inputs(agreed: Agreed, known: HandedIn, new: Sequence[SegmentRecord]) -> None:
    """R5: the start the award names, and for a `train` each segment from the state before. What a `map` read only who
    has the items can tell.
    """
    if agreed.kind is Kind.MAP:
        return
    before = known.records[-1].output if known.records else agreed.award.start
    for record in new:
        if record.input != before:
            rule = "R5.start" if record.index == agreed.award.first else "R5.chain"
            raise Refused(f"segment {record.index} did not begin with the state before it", rule=rule)
        before = record.output


def _read_digests(delivery: Delivery) -> Iterator[bytes]:
    yield delivery.receipt.body.log
    yield delivery.receipt.body.provenance
    for record in delivery.records:
        yield record.output
        yield record.error
