"""Genuine jobs of each kind, played on a real one-seat ledger with real signatures: the ground of the forgeries.

A `Play` is the market of one job: its owner orders, rounds are held and divided by the broker's own rule, providers
work, the ledger pays. What the requester then holds is `documents`, `records` and `blobs`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from broker.auction.scoring import Share, divide
from broker.protocol.jobs import Entry, JobSpec, Level, Runtime, compute_item_root
from broker.protocol.messages import Acknowledgement, Book, Decline, Reason
from broker.protocol.provenance import WorkFacts, make_provenance
from broker.protocol.values import pack
from chain.base.codec import encode
from chain.base.hashing import Tag, compute_digest, compute_id
from chain.base.keys import Signed, Signer
from chain.base.merkle import compute_root, prove_consistency
from chain.base.units import MICRO
from chain.ledger.ledger import Committed
from chain.ledger.terms.agreement import Award, Bid, Kind, Order, compute_bid_id, compute_lease_id, compute_order_id
from chain.ledger.terms.outcome import Cause, Usage
from chain.ledger.terms.work import (
    Acceptance,
    Environment,
    Receipt,
    SegmentRecord,
    Span,
    StorageReceipt,
    compute_receipt_id,
    compute_records_root,
)
from chain.ledger.transactions import (
    Deliver,
    Extend,
    GiveBack,
    Open,
    Settle,
)
from chain.rpc.proofs import LeaseProof, TxProof
from requester.purchase.casefile import BlobSource, CaseContent
from requester.purchase.documents import Documents, LeasePapers
from requester.purchase.events import LeaseSeen
from requester.purchase.order import Parties, Terms, make_order, make_resources
from tests.attacks.case_chain import ALICE, BOB, BROKER, EMPTY, PROVIDERS, REQUESTER, STRANGER, WATCHER, Chain, change

TRACE = b"Traceback: ValueError: no\n"
LEVEL = "ns+cgroup"


@dataclass
class Lease:
    """One lease of the play, as it grows. `earlier` proves how it stood when it opened; `prefix` is a receipt on the
    way, genuine but not the last.
    """

    round: int
    award: Signed[Award]
    bid: Signed[Bid]
    id: bytes
    records: list[SegmentRecord] = field(default_factory=list)
    receipt: Signed[Receipt] | None = None
    storage: Signed[StorageReceipt] | None = None
    acceptance: Signed[Acceptance] | None = None
    seen: LeaseSeen | None = None
    proof: TxProof | None = None
    state: LeaseProof | None = None
    earlier: LeaseProof | None = None
    prefix: tuple[Signed[Receipt], Signed[StorageReceipt]] | None = None

    @property
    def signer(self) -> Signer:
        return PROVIDERS[self.bid.body.provider]


class Play:
    """One job on a chain."""

    def __init__(
        self,
        kind: Kind,
        segments: int,
        *,
        chain: Chain | None = None,
        salt: bytes = bytes(16),
        watcher: Signer | None = None,
        lie: Callable[[WorkFacts], WorkFacts] = lambda facts: facts,
        commission: int | None = None,
        **fields: Any,
    ) -> None:
        """`watcher` accepts in the requester's place; `lie` is what providers make of their facts before they sign the
        provenance; `commission` is what the broker takes, by default all that it may; `fields` are the order's.
        """
        self.lie = lie
        self.accepting = watcher or REQUESTER
        self.chain = chain or Chain()
        self.kind, self.segments = kind, segments
        self.blobs: dict[bytes, bytes] = {}
        self.items = [pack({"item": index}) for index in range(segments)] if kind is Kind.MAP else []
        parallelism = 2 if kind is Kind.MAP else 1
        self.spec = JobSpec(
            title="a job \x1b[31m",
            kind=kind,
            entry=Entry.FUNCTION,
            function="",
            code=self.put(b"code"),
            code_bytes=4,
            inputs=self.put(b"inputs"),
            input_bytes=6,
            runtime=Runtime("3.11", ("numpy",)),
            resources=make_resources(256 << 20, 60_000),
            level=Level.NS,
            seed=7,
            parallelism=parallelism,
            tolerance=1,
        )
        root = compute_item_root(self.items) if kind is Kind.MAP else None
        terms = Terms(cap=20 * MICRO, segment_wall=60_000, segments=segments, item_root=root)
        parties = Parties(self.chain.id, REQUESTER.key, BROKER.key)
        body = make_order(self.spec, terms, parties, now=self.chain.now, salt=salt)
        body = change(body, watcher=watcher.key if watcher else None, **fields)
        self.commission = body.commission if commission is None else commission
        self.order: Signed[Order] = REQUESTER.sign(Tag.ORDER, self.chain.id, body)
        self.order_id = compute_order_id(self.chain.id, body)
        self.books: list[Signed[Book]] = []
        self.leases: list[Lease] = []

    def put(self, data: bytes) -> bytes:
        digest = compute_digest(data)
        self.blobs[digest] = data
        return digest

    # ---- auction ----

    def make_bid(self, signer: Signer, price: int, **fields: Any) -> Signed[Bid]:
        salt = compute_digest(b"bid %d" % len(self.books))[:16]
        body = Bid(self.order_id, signer.key, price, 1, self.chain.now, 2_000, (), self.chain.now + 12_000, salt)
        return signer.sign(Tag.BID, self.chain.id, change(body, **fields))

    def make_book(self, spans: Sequence[Span], bids: Sequence[Signed[Bid]], round: int) -> Signed[Book]:
        previous = bytes(32)
        for sequence, bid in enumerate(bids):
            link = Acknowledgement(self.order_id, round, sequence, compute_bid_id(self.chain.id, bid.body), previous)
            previous = compute_id(Tag.ACKNOWLEDGEMENT, self.chain.id, link)
        decline = Decline(self.order_id, STRANGER.key, Reason.PRICE, 3_000_000, "too cheap")
        body = Book(
            order=self.order_id,
            round=round,
            spans=tuple(spans),
            bids=tuple(bids),
            declines=(STRANGER.sign(Tag.DECLINE, self.chain.id, decline),),
            last=previous,
            root=compute_root([encode(bid) for bid in bids]),
            closed=self.chain.now,
        )
        return BROKER.sign(Tag.BOOK, self.chain.id, body)

    def hold_round(self, spans: Sequence[Span], prices: Sequence[tuple[Signer, int]]) -> list[Lease]:
        """An auction over some segments: book, awards by the broker's own rule, leases opened."""
        round = len(self.books)
        bids = [self.make_bid(signer, price) for signer, price in prices]
        book = self.make_book(spans, bids, round)
        self.books.append(book)
        shares = divide(self.order.body, self.spec, spans, bids, self.commission, book.body.closed)
        opened = [self.open(round, share, book.body) for share in shares]
        self.leases += opened
        return opened

    def open(self, round: int, share: Share, book: Book) -> Lease:
        goes_on = self.kind is Kind.TRAIN and share.first > 0
        award = Award(
            order=self.order_id,
            bid=compute_bid_id(self.chain.id, share.bid.body),
            replica=0,
            first=share.first,
            count=share.count,
            price=share.price,
            commission=self.commission,
            book=book.root,
            start=self.get_records()[-1].output if goes_on else self.order.body.start,
            runner_up=share.runner_up,
            closed=book.closed,
            valid_until=self.chain.now + 12_000,
        )
        signed = BROKER.sign(Tag.AWARD, self.chain.id, award)
        self.chain.send(BROKER, Open(self.order, signed, share.bid))
        identity = compute_lease_id(self.chain.id, award)
        return Lease(round, signed, share.bid, identity, earlier=self.chain.prove_lease(identity))

    def get_records(self) -> list[SegmentRecord]:
        return [record for lease in self.leases for record in lease.records]

    # ---- work ----

    def work(self, lease: Lease, count: int | None = None, failing: int | None = None) -> None:
        """Records up to `count` segments (by default all); segment `failing` raises."""
        award = lease.award.body
        for index in range(award.first + len(lease.records), award.first + (count or award.count)):
            previous = lease.records[-1].output if lease.records else award.start
            given = compute_digest(self.items[index]) if self.kind is Kind.MAP else previous
            bad = index == failing
            record = SegmentRecord(
                lease=lease.id,
                index=index,
                provider=lease.signer.key,
                input=given,
                output=EMPTY if bad else self.put(b"output %d" % index),
                error=self.put(TRACE) if bad else EMPTY,
                cause=Cause.PROGRAM if bad else Cause.OK,
                usage=Usage(100, 1 << 20, 120, 6, 8),
                started=self.chain.now,
                dispatch="x86-64",
            )
            lease.records.append(record)
            if bad:
                return

    def write_receipt(self, lease: Lease, *, final: bool) -> None:
        """Receipt over the records so far and the holder's storage receipt."""
        award, records, now = lease.award.body, tuple(lease.records), self.chain.now
        environment = Environment(LEVEL, self.order.body.runtime, 1, "openblas")
        facts = WorkFacts(self.chain.id, self.order.body, self.order_id, self.spec, lease.id, records, environment, now)
        body = Receipt(
            lease=lease.id,
            provider=lease.signer.key,
            first=award.first,
            count=len(records),
            records=compute_records_root(records),
            cause=records[-1].cause,
            usage=sum((record.usage for record in records), Usage()),
            environment=environment,
            log=self.put(b"log of %d\n" % award.first) if final else EMPTY,
            provenance=self.put(make_provenance(lease.signer, self.lie(facts))) if final else EMPTY,
            finished=now,
        )
        lease.receipt = lease.signer.sign(Tag.RECEIPT, self.chain.id, body)
        kept = self.order.body.deadline + self.order.body.windows.acceptance
        storage = StorageReceipt(BROKER.key, lease.id, compute_receipt_id(self.chain.id, body), 100, kept)
        lease.storage = BROKER.sign(Tag.STORAGE, self.chain.id, storage)

    def accept(self, lease: Lease) -> None:
        """The owner, or its watcher, accepts everything; the provider settles."""
        assert lease.receipt is not None
        body = lease.receipt.body
        spans = (Span(body.first, body.count),)
        receipt = compute_receipt_id(self.chain.id, body)
        acceptance = Acceptance(lease.id, receipt, self.accepting.key, spans, release=False)
        lease.acceptance = self.accepting.sign(Tag.ACCEPTANCE, self.chain.id, acceptance)
        self.note(lease, self.chain.send(lease.signer, Settle(lease.receipt, lease.acceptance)))

    def finish(self, lease: Lease, failing: int | None = None) -> None:
        """The whole range, accepted and settled; where it is longer, with a receipt on the way."""
        if lease.award.body.count > 1:
            self.work(lease, 1)
            self.write_receipt(lease, final=False)
            assert lease.receipt is not None
            assert lease.storage is not None
            lease.prefix = (lease.receipt, lease.storage)
        self.work(lease, failing=failing)
        self.write_receipt(lease, final=True)
        self.accept(lease)

    def leave(self, lease: Lease, served: int) -> None:
        """The provider does `served` segments, puts its prefix on the chain and gives the rest back (R4)."""
        self.work(lease, served)
        self.write_receipt(lease, final=False)
        self.extend(lease)
        self.chain.send(lease.signer, GiveBack(lease.id))

    def extend(self, lease: Lease) -> None:
        assert lease.receipt is not None
        assert lease.storage is not None
        served = self.chain.get_lease(lease.id).served
        leaves = [encode(record) for record in lease.records]
        proof = prove_consistency(leaves, served) if served else ()
        self.chain.send(lease.signer, Extend(lease.receipt, lease.storage, proof))

    def deliver(self, lease: Lease) -> None:
        """The whole range goes to the chain because nobody answers: silence will accept (R8)."""
        assert lease.receipt is not None
        assert lease.storage is not None
        self.chain.send(lease.signer, Deliver(lease.receipt, lease.storage, ()))

    def stay_silent(self, *leases: Lease) -> None:
        """The acceptance window passes (row 13)."""
        committed = self.chain.wait(self.order.body.windows.acceptance + 1)
        for lease in leases:
            self.note(lease, committed)

    def note(self, lease: Lease, committed: Committed) -> None:
        """What the requester keeps once a lease is over."""
        lease.seen = self.chain.see(lease.id, committed)
        lease.state = self.chain.prove_lease(lease.id)
        if committed.block.transactions:
            lease.proof = self.chain.prove(committed)

    # ---- what the requester holds ----

    @property
    def documents(self) -> Documents:
        fields = LeasePapers.__struct_fields__
        papers = [
            LeasePapers(lease=lease.id, **{name: getattr(lease, name) for name in fields if name != "lease"})
            for lease in self.leases
        ]
        return Documents(
            chain=self.chain.id,
            order=self.order,
            spec=self.spec,
            items=tuple(compute_digest(item) for item in self.items),
            books=tuple(self.books),
            leases=tuple(papers),
        )

    @property
    def records(self) -> dict[bytes, tuple[SegmentRecord, ...]]:
        return {lease.id: tuple(lease.records) for lease in self.leases}

    def content(self, **flags: bool) -> CaseContent:
        return CaseContent(self.documents, self.records, find_in(self.blobs), **flags)


def find_in(blobs: dict[bytes, bytes]) -> Any:
    """Where a writer of case files finds blobs that lie in memory."""

    def find(digest: bytes) -> BlobSource | None:
        data = blobs.get(digest)
        return None if data is None else BlobSource(len(data), lambda: (data,))

    return find


# ---- the four genuine jobs ----


def play_run(chain: Chain | None = None, salt: bytes = bytes(16)) -> Play:
    """One segment, the cheaper of two bids, accepted."""
    play = Play(Kind.RUN, 1, chain=chain, salt=salt)
    (lease,) = play.hold_round((Span(0, 1),), [(BOB, 1_500_000), (ALICE, 1_000_000)])
    play.finish(lease)
    return play


def play_watched() -> Play:
    """A run whose watcher accepts."""
    play = Play(Kind.RUN, 1, watcher=WATCHER)
    (lease,) = play.hold_round((Span(0, 1),), [(ALICE, 1_000_000)])
    play.finish(lease)
    return play


def play_map() -> Play:
    """Six items among two providers; one leaves after one item, which silence accepts; a third lease does the rest."""
    play = Play(Kind.MAP, 6)
    first, second = play.hold_round((Span(0, 6),), [(BOB, 1_100_000), (ALICE, 1_000_000)])
    play.leave(second, 1)
    play.finish(first)
    gap = Span(second.award.body.first + 1, second.award.body.count - 1)
    (third,) = play.hold_round((gap,), [(ALICE, 1_050_000)])
    play.finish(third)
    play.stay_silent(second)
    return play


def play_cheap_broker() -> Play:
    """Two items at two providers, the dearer of which has room under the cap only because the broker takes little."""
    play = Play(Kind.MAP, 2, commission=100, limit=9_900_000)
    for lease in play.hold_round((Span(0, 2),), [(BOB, 9_900_000), (ALICE, 1_000_000)]):
        play.finish(lease)
    return play


def play_train() -> Play:
    """Four steps; the first provider vanishes after two, another goes on from the state it left."""
    play = Play(Kind.TRAIN, 4)
    (first,) = play.hold_round((Span(0, 4),), [(BOB, 1_100_000), (ALICE, 1_000_000)])
    play.leave(first, 2)
    (second,) = play.hold_round((Span(2, 2),), [(BOB, 1_200_000)])
    play.finish(second)
    play.stay_silent(first)
    return play


def play_failure() -> Play:
    """A program that raises: paid, with its traceback (R9)."""
    play = Play(Kind.RUN, 1)
    (lease,) = play.hold_round((Span(0, 1),), [(ALICE, 1_000_000)])
    play.finish(lease, failing=0)
    return play
