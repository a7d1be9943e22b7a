"""One job as all its parties would sign it, with every piece open to change: the ground of the requester's tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import msgspec

from broker.protocol.api import Awarded, Closed, Delivered, Delivery, Opened
from broker.protocol.jobs import Entry, JobSpec, Level, Runtime
from broker.protocol.messages import Book, Decline, Reason
from chain.base.codec import encode
from chain.base.hashing import Tag, compute_digest
from chain.base.keys import Signed, Signer
from chain.base.merkle import compute_root
from chain.ledger.terms.agreement import (
    Award,
    Bid,
    Kind,
    Order,
    compute_award_id,
    compute_bid_id,
    compute_lease_id,
    compute_order_id,
)
from chain.ledger.terms.outcome import Cause, Usage
from chain.ledger.terms.work import (
    Environment,
    Receipt,
    SegmentRecord,
    StorageReceipt,
    compute_receipt_id,
    compute_records_root,
)
from requester.purchase import checks, deliveries
from requester.purchase.order import Parties, Terms, make_order, make_resources

NOW = 1_800_000_000_000
CHAIN = compute_digest(b"a chain")
REQUESTER, BROKER, PROVIDER, RIVAL, STRANGER = (Signer(bytes([number]) * 32) for number in range(1, 6))
OUTPUT = b"packed result"
TRACE = b"Traceback: ValueError: no"
LOG = b"epoch 1\n"
USAGE = Usage(100, 1 << 20, 120, 6, 13)
INPUT = compute_digest(b"inputs")


def change(value: Any, **fields: Any) -> Any:
    """A struct with some fields changed."""
    return msgspec.structs.replace(value, **fields)


def make_spec(kind: Kind = Kind.RUN) -> JobSpec:
    return JobSpec(
        title="a job",
        kind=kind,
        entry=Entry.FUNCTION,
        code=compute_digest(b"code"),
        code_bytes=4,
        inputs=INPUT,
        input_bytes=6,
        runtime=Runtime("3.11", ("numpy",)),
        resources=make_resources(256 << 20, 60_000),
        level=Level.NS,
        seed=7,
    )


@dataclass
class World:
    """A job with two bids, a decline, one award and a delivery of `causes`. Change a field before reading what
    depends on it."""

    causes: Sequence[Cause] = (Cause.OK,)
    segments: int = 1
    cap: int = 2_000_000
    prices: tuple[int, int] = (1_000_000, 1_500_000)
    kind: Kind = Kind.RUN
    overrides: dict[str, Any] = field(default_factory=dict)
    tried: frozenset[bytes] = frozenset()
    chain: bytes = CHAIN
    now: int = NOW
    output: bytes = OUTPUT
    trace: bytes = TRACE
    log: bytes = LOG
    usage: Usage = USAGE

    @cached_property
    def blobs(self) -> tuple[bytes, ...]:
        return self.output, self.trace, self.log

    @cached_property
    def spec(self) -> JobSpec:
        return make_spec(self.kind)

    @cached_property
    def order(self) -> Signed[Order]:
        terms = Terms(cap=self.cap, segment_wall=60_000, segments=self.segments)
        parties = Parties(self.chain, REQUESTER.key, BROKER.key)
        order = make_order(self.spec, terms, parties, now=self.now, salt=bytes(16))
        return REQUESTER.sign(Tag.ORDER, self.chain, change(order, **self.overrides))

    @cached_property
    def order_id(self) -> bytes:
        return compute_order_id(self.chain, self.order.body)

    def make_bid(self, signer: Signer, price: int, **fields: Any) -> Signed[Bid]:
        body = Bid(self.order_id, signer.key, price, 1, self.now, 2_000, (), self.now + 12_000, bytes(16))
        return signer.sign(Tag.BID, self.chain, change(body, **fields))

    @cached_property
    def bids(self) -> tuple[Signed[Bid], ...]:
        return self.make_bid(RIVAL, self.prices[1]), self.make_bid(PROVIDER, self.prices[0])

    @cached_property
    def bid(self) -> Signed[Bid]:
        return self.bids[1]

    @cached_property
    def book_body(self) -> Book:
        decline = Decline(self.order_id, STRANGER.key, Reason.PRICE, 3_000_000, "too cheap")
        return Book(
            order=self.order_id,
            bids=self.bids,
            declines=(STRANGER.sign(Tag.DECLINE, self.chain, decline),),
            last=checks.compute_last_acknowledgement(self.chain, self.order_id, self.bids),
            root=compute_root([encode(bid) for bid in self.bids]),
            closed=self.now + 1_000,
        )

    @cached_property
    def book(self) -> Signed[Book]:
        return BROKER.sign(Tag.BOOK, self.chain, self.book_body)

    @cached_property
    def award_body(self) -> Award:
        return Award(
            order=self.order_id,
            bid=compute_bid_id(self.chain, self.bid.body),
            replica=0,
            first=0,
            count=self.segments,
            price=self.bid.body.price,
            commission=self.order.body.commission,
            book=self.book_body.root,
            start=self.order.body.start,
            runner_up=None,
            valid_until=self.now + 12_000,
        )

    @cached_property
    def award(self) -> Signed[Award]:
        return BROKER.sign(Tag.AWARD, self.chain, self.award_body)

    @cached_property
    def award_id(self) -> bytes:
        return compute_award_id(self.chain, self.award.body)

    @cached_property
    def lease(self) -> bytes:
        return compute_lease_id(self.chain, self.award.body)

    @cached_property
    def record_bodies(self) -> tuple[SegmentRecord, ...]:
        output, trace = compute_digest(self.output), compute_digest(self.trace)
        return tuple(
            SegmentRecord(
                lease=self.lease,
                index=index,
                provider=PROVIDER.key,
                input=self.order.body.start if index == 0 else output,
                output=output if cause is Cause.OK else deliveries.EMPTY,
                error=deliveries.EMPTY if cause is Cause.OK else trace,
                cause=cause,
                usage=self.usage,
                started=self.now + 2_000,
                dispatch="x86-64",
            )
            for index, cause in enumerate(self.causes)
        )

    @cached_property
    def receipt_body(self) -> Receipt:
        return Receipt(
            lease=self.lease,
            provider=PROVIDER.key,
            first=0,
            count=len(self.record_bodies),
            records=compute_records_root(self.record_bodies),
            cause=self.record_bodies[-1].cause,
            usage=sum((record.usage for record in self.record_bodies), Usage()),
            environment=Environment("ns", self.order.body.runtime, 1, "openblas"),
            log=compute_digest(self.log),
            provenance=deliveries.EMPTY,
            finished=self.now + 3_000,
        )

    @cached_property
    def receipt(self) -> Signed[Receipt]:
        return PROVIDER.sign(Tag.RECEIPT, self.chain, self.receipt_body)

    @cached_property
    def records(self) -> tuple[Signed[SegmentRecord], ...]:
        return tuple(PROVIDER.sign(Tag.SEGMENT, self.chain, body) for body in self.record_bodies)

    @cached_property
    def delivery(self) -> Delivery:
        return Delivery(self.receipt, self.records, ())

    @cached_property
    def storage_body(self) -> StorageReceipt:
        receipt = compute_receipt_id(self.chain, self.receipt_body)
        return StorageReceipt(BROKER.key, self.lease, receipt, 100, self.now + 86_400_000)

    @cached_property
    def storage(self) -> Signed[StorageReceipt]:
        return BROKER.sign(Tag.STORAGE, self.chain, self.storage_body)

    @cached_property
    def found(self) -> dict[bytes, int]:
        return {compute_digest(blob): len(blob) for blob in self.blobs}

    # ---- facts and events ----

    @property
    def award_facts(self) -> checks.AwardFacts:
        return checks.AwardFacts(self.chain, self.order, self.spec, self.award, self.bid, self.lease)

    @property
    def book_facts(self) -> checks.BookFacts:
        return checks.BookFacts(self.chain, self.order.body, self.award.body, self.book, self.tried)

    @property
    def delivery_facts(self) -> deliveries.DeliveryFacts:
        award, bid = self.award.body, self.bid.body
        return deliveries.DeliveryFacts(
            self.chain, self.order.body, self.spec, award, bid, self.delivery, self.storage, self.found
        )

    @property
    def closed(self) -> Closed:
        return Closed(self.now + 1_000, self.book)

    @property
    def awarded(self) -> Awarded:
        return Awarded(self.now + 1_000, self.award, self.bid, self.lease)

    @property
    def opened(self) -> Opened:
        return Opened(self.now + 1_100, self.lease)

    @property
    def delivered(self) -> Delivered:
        return Delivered(self.now + 3_000, self.delivery, self.storage)
