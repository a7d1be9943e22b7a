"""One provider's market, made to measure: announcements, promises, leases, fixed by names."""

from __future__ import annotations

from typing import Any

import msgspec

from broker.protocol.jobs import Entry, JobSpec, Level, Resources, Runtime, compute_job_digest, compute_runtime_digest
from broker.protocol.messages import Announcement, Offer, Tariff
from chain.base.hashing import Tag, compute_digest
from chain.base.keys import Signed, Signer
from chain.ledger.terms.agreement import (
    Award,
    AwardRule,
    Bid,
    Kind,
    Order,
    Windows,
    compute_bid_id,
    compute_lease_id,
    compute_order_id,
)
from chain.ledger.terms.outcome import Cause, Usage
from chain.ledger.terms.work import Acceptance, Receipt, Span, StorageReceipt, compute_receipt_id
from provider.work.events import LeaseMoved, LeaseOpened, LeaseState, RunEnded, SegmentRan, SegmentsRan

NOW = 1_800_000_000_000
MIB = 1 << 20
CODE, INPUTS, OUTPUT, LOG = b"code", b"inputs", b"output", b"a log\n"
EMPTY = compute_digest(b"")


def make_signer(name: str) -> Signer:
    return Signer(compute_digest(name.encode()))


CHAIN = compute_digest(b"a chain")
REQUESTER, PROVIDER, BROKER = make_signer("requester"), make_signer("provider"), make_signer("broker")
RUNTIME = Runtime("3.11", ("numpy",))
WINDOWS = Windows(30_000, 10_000, 600_000, 10_000, 60_000, 60_000, 60_000)
RESOURCES = Resources(512 * MIB, 60_000, 1_000, 64, 256, 64 * MIB, 16, MIB, 256 * MIB, 64 * MIB)
SPEC = JobSpec(
    "a job", Kind.RUN, Entry.FUNCTION, "", compute_digest(CODE), len(CODE), compute_digest(INPUTS), len(INPUTS),
    RUNTIME, RESOURCES, Level.NS, 0, 1, 0,
)  # fmt: skip
OFFER = Offer(
    PROVIDER.key, NOW, NOW + 600_000, (RUNTIME,), Level.NS, 2, 4096 * MIB, 2_000, 3_600_000, 10_000_000,
    Tariff(1_000, 10, 2),
)  # fmt: skip


def make_spec(*, resources: dict[str, int] | None = None, **changes: Any) -> JobSpec:
    """The sample job, with changes to it and to its resources."""
    spec = msgspec.structs.replace(SPEC, **changes)
    return msgspec.structs.replace(spec, resources=msgspec.structs.replace(RESOURCES, **(resources or {})))


def make_order(name: str = "order", spec: JobSpec = SPEC, **changes: Any) -> Order:
    """The sample order for `spec`; `name` makes it another one."""
    order = Order(
        requester=REQUESTER.key, auctioneer=BROKER.key, watcher=None, holders=(BROKER.key,),
        job=compute_job_digest(CHAIN, spec), runtime=compute_runtime_digest(CHAIN, spec.runtime), kind=spec.kind,
        start=spec.inputs, segments=1, weights=(), segment_wall=10_000, replicas=1, cap=10_000_000, limit=2_000_000,
        commission=200, rule=AwardRule.LOWEST, comparator="exact", panel=0, deposit=0, damages=1_000, windows=WINDOWS,
        closes=NOW + 2_000, deadline=NOW + 102_000, expiry=NOW + 702_000, salt=compute_digest(name.encode())[:16],
    )  # fmt: skip
    return msgspec.structs.replace(order, **changes)


def announce(order: Order, spec: JobSpec = SPEC, signer: Signer = REQUESTER, **changes: Any) -> Announcement:
    """The announcement of an order by its auctioneer, the order signed by `signer`."""
    signed, spans = signer.sign(Tag.ORDER, CHAIN, order), (Span(0, order.segments),)
    announcement = Announcement(BROKER.key, signed, spec, 0, spans, order.closes)
    return msgspec.structs.replace(announcement, **changes)


def make_bid(order: Order) -> Signed[Bid]:
    bid = Bid(
        compute_order_id(CHAIN, order), PROVIDER.key, 1_000_000, 1, order.closes, 1_000, (), order.closes + 10_000,
        bytes(16),
    )  # fmt: skip
    return PROVIDER.sign(Tag.BID, CHAIN, bid)


def make_award(order: Order, bid: Signed[Bid], span: Span | None = None, start: bytes | None = None) -> Award:
    """What the auctioneer signs when this bid wins the whole order, or a span of it that begins with `start`."""
    first, count = (span.first, span.count) if span else (0, order.segments)
    return Award(
        bid.body.order, compute_bid_id(CHAIN, bid.body), 0, first, count, bid.body.price, 100, bytes(32),
        start or order.start, None, order.closes, bid.body.valid_until,
    )  # fmt: skip


def open_lease(
    order: Order | None = None, spec: JobSpec = SPEC, span: Span | None = None, start: bytes | None = None
) -> LeaseOpened:
    """The event of a lease on the whole of an order (or on a span of it), opened at its close."""
    order = order or make_order(spec=spec)
    bid = make_bid(order)
    award = make_award(order, bid, span, start)
    lease, announcement = compute_lease_id(CHAIN, award), announce(order, spec)
    return LeaseOpened(lease, announcement, bid, award.first, award.count, award.start, order.closes, order.deadline)


def make_segment(index: int = 0, *, input: bytes = INPUTS, output: bytes = OUTPUT, **changes: Any) -> SegmentRan:
    """A segment that went well, with changes; `input` and `output` are the blobs."""
    cause = changes.pop("cause", Cause.OK)
    usage = Usage(5, 6, 7, len(input), len(output))
    return SegmentRan(
        index, compute_digest(input), compute_digest(output), changes.pop("error", EMPTY), cause, usage,
        NOW + 3_000 + index, "avx2", **changes,
    )  # fmt: skip


def ran(attempt: int = 0, index: int = 0, **changes: Any) -> SegmentsRan:
    """The event of one segment that went well, with changes."""
    return SegmentsRan(attempt, "ns", "openblas", (make_segment(index, **changes),))


def moved(state: LeaseState, served: int = 0, held: int = 1, called: int = 0) -> LeaseMoved:
    """The event of a lease that changed on the chain."""
    return LeaseMoved(state, served, held, called)


def run_ended(attempt: int = 0, cause: Cause = Cause.OK, finished: int = NOW + 4_000) -> RunEnded:
    return RunEnded(
        attempt, cause, "" if cause is Cause.OK else f"it was {cause}", "ns", "openblas", compute_digest(LOG), finished
    )


def store(receipt: Signed[Receipt]) -> Signed[StorageReceipt]:
    """What the broker signs when it holds everything under a receipt."""
    body = StorageReceipt(BROKER.key, receipt.body.lease, compute_receipt_id(CHAIN, receipt.body), 10, NOW + 86_400_000)
    return BROKER.sign(Tag.STORAGE, CHAIN, body)


def accept(
    receipt: Signed[Receipt], signer: Signer = REQUESTER, change: dict[str, Any] | None = None
) -> Signed[Acceptance]:
    """What a requester signs who accepts all of a receipt, with changes."""
    body = receipt.body
    spans = (Span(body.first, body.count),)
    acceptance = Acceptance(body.lease, compute_receipt_id(CHAIN, body), signer.key, spans, False)
    return signer.sign(Tag.ACCEPTANCE, CHAIN, msgspec.structs.replace(acceptance, **(change or {})))
