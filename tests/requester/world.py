"""One job as all its parties would sign it, with every piece open to change: the ground of the requester's tests.

A `World` is one lease of the job. Others of the same job are made by `also`: they share order, spec and, in the same
round, the book.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import msgspec

from broker.protocol.api import Awarded, Closed, Delivered, Delivery, Failed, Left, Opened
from broker.protocol.jobs import Entry, JobSpec, Level, Runtime
from broker.protocol.messages import Book, Decline, Reason
from broker.protocol.provenance import WorkFacts, make_provenance
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
from chain.ledger.terms.outcome import FINAL_FAILURES, Cause, Usage
from chain.ledger.terms.work import (
    Environment,
    Receipt,
    SegmentRecord,
    Span,
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


def make_spec(kind: Kind = Kind.RUN, parallelism: int = 1, tolerance: int = 0) -> JobSpec:
    return JobSpec(
        title="a job",
        kind=kind,
        entry=Entry.FUNCTION,
        function="",
        code=compute_digest(b"code"),
        code_bytes=4,
        inputs=INPUT,
        input_bytes=6,
        runtime=Runtime("3.11", ("numpy",)),
        resources=make_resources(256 << 20, 60_000),
        level=Level.NS,
        seed=7,
        parallelism=parallelism,
        tolerance=tolerance,
    )


def make_items(kind: Kind, segments: int) -> tuple[bytes, ...]:
    """Digests of a map's items; other kinds have none."""
    return tuple(compute_digest(b"item %d" % index) for index in range(segments)) if kind is Kind.MAP else ()


@dataclass
class World:
    """A lease of `causes`, with two bids in its book and a decline. Change a field before reading what depends on it.

    `prices` are those of the rival's (second) and the provider's bid. `first` and `count` say which part of the order
    this lease is; `start` what it starts from, by default the order's start.
    """

    causes: Sequence[Cause] = (Cause.OK,)
    segments: int = 1
    cap: int = 2_000_000
    prices: tuple[int, int] = (1_000_000, 1_500_000)
    kind: Kind = Kind.RUN
    overrides: dict[str, Any] = field(default_factory=dict)
    chain: bytes = CHAIN
    now: int = NOW
    output: bytes = OUTPUT
    trace: bytes = TRACE
    log: bytes = LOG
    usage: Usage = USAGE
    parallelism: int = 1
    winner: Signer = PROVIDER
    round: int = 0
    first: int = 0
    count: int | None = None
    start: bytes | None = None
    outputs: Callable[[int], bytes] | None = None
    failed: frozenset[bytes] = frozenset()
    used: frozenset[bytes] = frozenset()

    def also(self, **fields: Any) -> World:
        """Another lease of this job: by the rival, of what this one left, unless said otherwise."""
        shared = {"order": self.order, "spec": self.spec, "items": self.items}
        settings = {name: getattr(self, name) for name in self.__dataclass_fields__}
        other = World(**(settings | {"first": len(self.causes), "winner": RIVAL} | fields))
        for name, value in shared.items():
            setattr(other, name, value)
        if other.round == self.round:
            other.bids, other.book_body = self.bids, self.book_body
        return other

    # ---- order ----

    @cached_property
    def spec(self) -> JobSpec:
        return make_spec(self.kind, self.parallelism)

    @cached_property
    def items(self) -> tuple[bytes, ...]:
        return make_items(self.kind, self.segments)

    @cached_property
    def order(self) -> Signed[Order]:
        root = compute_root(self.items) if self.items else None
        terms = Terms(cap=self.cap, segment_wall=60_000, segments=self.segments, item_root=root)
        parties = Parties(self.chain, REQUESTER.key, BROKER.key)
        order = make_order(self.spec, terms, parties, now=self.now, salt=bytes(16))
        return REQUESTER.sign(Tag.ORDER, self.chain, change(order, **self.overrides))

    @cached_property
    def order_id(self) -> bytes:
        return compute_order_id(self.chain, self.order.body)

    # ---- auction ----

    @property
    def closes(self) -> int:
        """When this round closed: each a minute after the one before."""
        return self.now + 1_000 + 60_000 * self.round

    def make_bid(self, signer: Signer, price: int, **fields: Any) -> Signed[Bid]:
        until = self.closes + 11_000
        body = Bid(self.order_id, signer.key, price, 1, self.now, 2_000, (), until, bytes([self.round] * 16))
        return signer.sign(Tag.BID, self.chain, change(body, **fields))

    @cached_property
    def bids(self) -> tuple[Signed[Bid], ...]:
        return self.make_bid(RIVAL, self.prices[1]), self.make_bid(PROVIDER, self.prices[0])

    @cached_property
    def bid(self) -> Signed[Bid]:
        return next(bid for bid in self.bids if bid.body.provider == self.winner.key)

    @cached_property
    def spans(self) -> tuple[Span, ...]:
        if self.round == 0:
            return (Span(0, self.segments),)
        return (Span(self.first, self.segments - self.first if self.count is None else self.count),)

    @cached_property
    def book_body(self) -> Book:
        decline = Decline(self.order_id, STRANGER.key, Reason.PRICE, 3_000_000, "too cheap")
        return Book(
            order=self.order_id,
            round=self.round,
            spans=self.spans,
            bids=self.bids,
            declines=(STRANGER.sign(Tag.DECLINE, self.chain, decline),),
            last=checks.compute_last_acknowledgement(self.chain, self.order_id, self.round, self.bids),
            root=compute_root([encode(bid) for bid in self.bids]),
            closed=self.closes,
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
            first=self.first,
            count=self.segments - self.first if self.count is None else self.count,
            price=self.bid.body.price,
            commission=self.order.body.commission,
            book=self.book_body.root,
            start=self.order.body.start if self.start is None else self.start,
            runner_up=None,
            closed=self.book_body.closed,
            valid_until=self.closes + 60_000,
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

    # ---- work ----

    def get_output(self, index: int) -> bytes:
        """The packed output of a segment of the order."""
        if self.outputs is not None:
            return self.outputs(index)
        return self.output if self.segments == 1 else self.output + b" %d" % index

    @cached_property
    def record_bodies(self) -> tuple[SegmentRecord, ...]:
        records: list[SegmentRecord] = []
        for index, cause in enumerate(self.causes, self.first):
            before = records[-1].output if records else self.award_body.start
            records.append(
                SegmentRecord(
                    lease=self.lease,
                    index=index,
                    provider=self.winner.key,
                    input=self.items[index] if self.items else before,
                    output=compute_digest(self.get_output(index)) if cause is Cause.OK else deliveries.EMPTY,
                    error=deliveries.EMPTY if cause is Cause.OK else compute_digest(self.trace),
                    cause=cause,
                    usage=self.usage,
                    started=self.now + 2_000,
                    dispatch="x86-64",
                )
            )
        return tuple(records)

    @property
    def is_final(self) -> bool:
        """Whether these causes are all of the range, or end it."""
        return len(self.causes) == self.award_body.count or self.causes[-1] in FINAL_FAILURES

    @cached_property
    def environment(self) -> Environment:
        return Environment("ns", self.order.body.runtime, 1, "openblas")

    @cached_property
    def provenance(self) -> bytes:
        facts = WorkFacts(
            chain=self.chain,
            order=self.order.body,
            order_id=self.order_id,
            spec=self.spec,
            lease=self.lease,
            records=self.record_bodies,
            environment=self.environment,
            finished=self.now + 3_000,
        )
        return make_provenance(self.winner, facts)

    def make_receipt(self, records: Sequence[SegmentRecord], *, final: bool) -> Receipt:
        """A receipt over a prefix of the records."""
        return Receipt(
            lease=self.lease,
            provider=self.winner.key,
            first=self.first,
            count=len(records),
            records=compute_records_root(records),
            cause=records[-1].cause,
            usage=sum((record.usage for record in records), Usage()),
            environment=self.environment,
            log=compute_digest(self.log) if final else deliveries.EMPTY,
            provenance=compute_digest(self.provenance) if final else deliveries.EMPTY,
            finished=self.now + 3_000,
        )

    @cached_property
    def receipt_body(self) -> Receipt:
        return self.make_receipt(self.record_bodies, final=self.is_final)

    @cached_property
    def receipt(self) -> Signed[Receipt]:
        return self.winner.sign(Tag.RECEIPT, self.chain, self.receipt_body)

    @cached_property
    def since(self) -> int:
        return 0

    @cached_property
    def records(self) -> tuple[SegmentRecord, ...]:
        return self.record_bodies[self.since :]

    @cached_property
    def delivery(self) -> Delivery:
        return Delivery(self.receipt, self.since, self.records, ())

    def make_storage(self, receipt: Receipt) -> StorageReceipt:
        named = compute_receipt_id(self.chain, receipt)
        return StorageReceipt(BROKER.key, self.lease, named, 100, self.now + 86_400_000)

    @cached_property
    def storage_body(self) -> StorageReceipt:
        return self.make_storage(self.receipt_body)

    @cached_property
    def storage(self) -> Signed[StorageReceipt]:
        return BROKER.sign(Tag.STORAGE, self.chain, self.storage_body)

    @cached_property
    def blobs(self) -> dict[str, bytes]:
        """Every blob by what it is; outputs by the segment's index."""
        outputs = {str(one.index): self.get_output(one.index) for one in self.record_bodies if one.cause is Cause.OK}
        return {"trace": self.trace, "log": self.log, "provenance": self.provenance, **outputs}

    @cached_property
    def found(self) -> dict[bytes, int]:
        return {compute_digest(blob): len(blob) for blob in self.blobs.values()}

    # ---- facts and events ----

    @property
    def award_facts(self) -> checks.AwardFacts:
        start = self.order.body.start if self.start is None else self.start
        return checks.AwardFacts(self.chain, self.order, self.spec, self.award, self.bid, self.lease, start)

    @property
    def book_facts(self) -> checks.BookFacts:
        return checks.BookFacts(self.chain, self.order.body, self.order_id, self.book, self.round)

    @property
    def share_facts(self) -> checks.ShareFacts:
        order, award, book = self.order.body, self.award.body, self.book.body
        return checks.ShareFacts(self.chain, order, self.spec, award, book, self.failed, self.used)

    @property
    def delivery_facts(self) -> deliveries.DeliveryFacts:
        return deliveries.DeliveryFacts(
            chain=self.chain,
            order=self.order.body,
            spec=self.spec,
            award=self.award.body,
            bid=self.bid.body,
            receipt=self.delivery.receipt,
            storage=self.storage,
            since=self.delivery.since,
            records=self.delivery.records,
            items=self.items,
            before=deliveries.Prefix().extend(self.record_bodies[: self.since]),
            found=self.found,
        )

    @property
    def closed(self) -> Closed:
        return Closed(self.closes, self.book)

    @property
    def awarded(self) -> Awarded:
        return Awarded(self.closes, self.award, self.bid, self.lease)

    @property
    def opened(self) -> Opened:
        return Opened(self.closes + 100, self.lease)

    @property
    def delivered(self) -> Delivered:
        return Delivered(self.now + 3_000, self.delivery, self.storage)

    def prefix(self, count: int, since: int = 0) -> Delivered:
        """A delivery of the first `count` segments, with the records from number `since` on; final where it can be."""
        records = self.record_bodies[:count]
        final = count == self.award_body.count or records[-1].cause in FINAL_FAILURES
        body = self.make_receipt(records, final=final)
        receipt = self.winner.sign(Tag.RECEIPT, self.chain, body)
        storage = BROKER.sign(Tag.STORAGE, self.chain, self.make_storage(body))
        return Delivered(self.now + 3_000, Delivery(receipt, since, records[since:], ()), storage)

    def make_left(self, state: str, served: int) -> Left:
        return Left(self.now + 4_000, self.lease, state, served)

    def make_failed(self, rule: str = "R14.bond") -> Failed:
        return Failed(self.now + 2_000, self.lease, rule)
