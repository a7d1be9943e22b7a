"""A small market for tests of the broker: keys, one order, bids, receipts, and a chain that is not one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

from broker.auction.admission import EMPTY, House, Means
from broker.auction.matching import Survey
from broker.protocol.api import PROTOCOL_VERSION, Delivery, Submission
from broker.protocol.jobs import (
    Entry,
    JobSpec,
    Level,
    Resources,
    Runtime,
    compute_job_digest,
    compute_runtime_digest,
)
from broker.protocol.messages import TAGS, Decline, Offer, Reason, Tariff
from chain.base.errors import Refused, Unavailable
from chain.base.hashing import Tag, compute_digest
from chain.base.keys import Signed, Signer
from chain.ledger.terms.agreement import (
    Award,
    AwardRule,
    Bid,
    Kind,
    Order,
    Windows,
    compute_lease_id,
    compute_order_id,
)
from chain.ledger.terms.outcome import Cause, Usage
from chain.ledger.terms.work import (
    Acceptance,
    Environment,
    Receipt,
    SegmentRecord,
    Span,
    compute_receipt_id,
    compute_records_root,
)
from chain.ledger.transactions import Call, Extend, Open, SignedTransaction
from chain.rpc.schema import AccountView, ChainInfo, EventsPage, LeaseView, LedgerEvent, TxOutcome

CHAIN = bytes(range(32))
REQUESTER = Signer(b"r" * 32)
BROKER = Signer(b"b" * 32)
STRANGER = Signer(b"s" * 32)
PROVIDERS = tuple(Signer(bytes([number]) * 32) for number in range(1, 9))
HOUSE = House(CHAIN, BROKER.key, 100, 7 * 24 * 3_600_000)
NOW = 1_800_000_000_000
CODE, INPUTS, OUTPUT, LOG = b"code of the job", b"inputs of the job", b"its output", b"its log\n"
PROVENANCE = b"its provenance"
WINDOWS = Windows(30_000, 10_000, 600_000, 10_000, 60_000, 60_000, 60_000)
RESOURCES = Resources(1 << 28, 10_000, 1_000, 16, 64, 1 << 20, 16, 1 << 20, 1 << 26, 1 << 20)
RICH = Means(10**12, 0)


def make_spec(**changes: Any) -> JobSpec:
    """A job spec."""
    spec = JobSpec(
        title="a job",
        kind=Kind.RUN,
        entry=Entry.FUNCTION,
        code=compute_digest(CODE),
        code_bytes=len(CODE),
        inputs=compute_digest(INPUTS),
        input_bytes=len(INPUTS),
        runtime=Runtime("3.11", ("numpy",)),
        resources=RESOURCES,
        level=Level.NS,
        seed=7,
        function="",
        parallelism=1,
        tolerance=0,
    )
    return replace(spec, **changes)


def make_order(now: int = NOW, spec: JobSpec | None = None, **changes: Any) -> Order:
    """An order that fits `make_spec` (as a `map` where it has more than one segment), signed at `now`: limit 2 credits
    a segment, cap 3.
    """
    spec = spec or make_spec(kind=Kind.MAP if changes.get("segments", 1) > 1 else Kind.RUN)
    order = Order(
        requester=REQUESTER.key,
        auctioneer=BROKER.key,
        watcher=None,
        holders=(BROKER.key,),
        job=compute_job_digest(CHAIN, spec),
        runtime=compute_runtime_digest(CHAIN, spec.runtime),
        kind=spec.kind,
        start=spec.inputs,
        segments=1,
        weights=(),
        segment_wall=60_000,
        replicas=1,
        cap=3_000_000,
        limit=2_000_000,
        commission=200,
        rule=AwardRule.LOWEST,
        comparator="exact",
        panel=0,
        deposit=0,
        damages=1_000,
        windows=WINDOWS,
        closes=now + 2_000,
        deadline=now + 200_000,
        expiry=now + 800_000,
        salt=b"0123456789abcdef",
    )
    return replace(order, **changes)


def sign_order(order: Order, signer: Signer = REQUESTER) -> Signed[Order]:
    """The requester's mandate."""
    return signer.sign(Tag.ORDER, CHAIN, order)


def make_bid(order: Order, signer: Signer = PROVIDERS[0], **changes: Any) -> Signed[Bid]:
    """A bid at one credit that fits."""
    bid = Bid(
        order=compute_order_id(CHAIN, order),
        provider=signer.key,
        price=1_000_000,
        lanes=1,
        earliest=order.closes,
        bond=1_000,
        holders=(),
        valid_until=order.closes + 10_000,
        salt=b"fedcba9876543210",
    )
    return signer.sign(Tag.BID, CHAIN, replace(bid, **changes))


def make_decline(
    order: Order, signer: Signer = PROVIDERS[0], reason: Reason = Reason.BUSY, nearest: int = 0, text: str = "busy"
) -> Signed[Decline]:
    """A refusal."""
    return signer.sign(Tag.DECLINE, CHAIN, Decline(compute_order_id(CHAIN, order), signer.key, reason, nearest, text))


def make_offer(now: int = NOW, signer: Signer = PROVIDERS[0], **changes: Any) -> Offer:
    """An offer that `make_order` fits."""
    offer = Offer(
        provider=signer.key,
        sequence=now,
        valid_until=now + 60_000,
        runtimes=(Runtime("3.11", ("numpy", "scipy")),),
        level=Level.NS_CGROUP,
        slots=2,
        memory_bytes=1 << 30,
        millicores=2_000,
        segment_wall=3_600_000,
        bond_free=10_000_000,
        prices=Tariff(1_000, 10, 2),
    )
    return replace(offer, **changes)


def make_survey(*matching: Signer) -> Survey:
    """Everybody named fits."""
    return Survey(tuple(sorted(one.key for one in matching)), ())


def make_submission(
    now: int = NOW, order: Order | None = None, blobs: Sequence[bytes] = (CODE, INPUTS), spec: JobSpec | None = None
) -> Submission:
    """An order with its spec and blobs."""
    return Submission(PROTOCOL_VERSION, sign_order(order or make_order(now)), spec or make_spec(), tuple(blobs))


def make_state(index: int) -> bytes:
    """What a `train` is after segment `index`."""
    return b"state %d" % index


def make_records(
    award: Award, signer: Signer = PROVIDERS[0], count: int | None = None, kind: Kind = Kind.MAP, **last: Any
) -> list[SegmentRecord]:
    """The first `count` records of a lease: each with the same output, or of a `train`; `last` changes the last one."""
    records: list[SegmentRecord] = []
    before = award.start
    for index in range(award.first, award.first + (award.count if count is None else count)):
        output = compute_digest(make_state(index) if kind is Kind.TRAIN else OUTPUT)
        records.append(
            SegmentRecord(
                lease=compute_lease_id(CHAIN, award),
                index=index,
                provider=signer.key,
                input=before,
                output=output,
                error=EMPTY,
                cause=Cause.OK,
                usage=Usage(5, 1000, 9, 10, 10),
                started=NOW,
                dispatch="generic",
            )
        )
        before = output if kind is Kind.TRAIN else award.start
    records[-1] = replace(records[-1], **last)
    return records


def sign_delivery(
    award: Award, made: Sequence[SegmentRecord], signer: Signer = PROVIDERS[0], since: int = 0, **changes: Any
) -> Delivery:
    """A receipt over these records of a lease, of which those from `since` on come along; without blobs."""
    final = len(made) == award.count or (bool(made) and made[-1].cause is not Cause.OK)
    receipt = Receipt(
        lease=compute_lease_id(CHAIN, award),
        provider=signer.key,
        first=award.first,
        count=len(made),
        records=compute_records_root(made),
        cause=made[-1].cause if made else Cause.OK,
        usage=Usage(5, 1000, 9, 10, 10),
        environment=Environment("ns", bytes(32), 1, "openblas"),
        log=compute_digest(LOG) if final else EMPTY,
        provenance=compute_digest(PROVENANCE) if final else EMPTY,
        finished=award.closed + 50,
    )
    signed = signer.sign(Tag.RECEIPT, CHAIN, replace(receipt, **changes))
    return Delivery(signed, since, tuple(made[since:]), ())


def make_delivery(
    award: Award,
    signer: Signer = PROVIDERS[0],
    blobs: Sequence[bytes] = (OUTPUT, LOG, PROVENANCE),
    **changes: Any,
) -> Delivery:
    """A whole receipt over all segments, each with the same output, and small blobs."""
    return replace(sign_delivery(award, make_records(award, signer), signer, **changes), blobs=tuple(blobs))


def make_acceptance(delivery: Delivery, signer: Signer = REQUESTER, **changes: Any) -> Signed[Acceptance]:
    """Everything is good."""
    receipt = delivery.receipt.body
    acceptance = Acceptance(
        lease=receipt.lease,
        receipt=compute_receipt_id(CHAIN, receipt),
        signer=signer.key,
        segments=(Span(receipt.first, receipt.count),),
        release=False,
    )
    return signer.sign(Tag.ACCEPTANCE, CHAIN, replace(acceptance, **changes))


def say(signer: Signer, body: Any) -> Any:
    """A signed bus message."""
    return signer.sign(TAGS[type(body)], CHAIN, body)


class FakeChain:
    """What the broker needs of a chain: balances, who is a provider, leases that open and end. `away` makes it silent,
    `refuse` is a rule under which openings are refused, one per entry.
    """

    url = "fake:"

    def __init__(self) -> None:
        self.balances = {REQUESTER.key: 10_000_000, BROKER.key: 1_000_000}
        self.providers = {one.key for one in PROVIDERS}
        self.leases: dict[bytes, LeaseView] = {}
        self.opened: list[Open] = []
        self.sent: list[Extend | Call] = []
        self.refuse: list[str] = []
        self.away = False
        self.height = 1
        self._events: list[LedgerEvent] = []
        self._changed = asyncio.Condition()

    def _check(self) -> None:
        if self.away:
            raise Unavailable("away", rule="chain.unreachable")

    async def info(self) -> ChainInfo:
        self._check()
        return ChainInfo(
            version=1,
            software="fake",
            chain=CHAIN.hex(),
            name="fake",
            height=self.height,
            time=0,
            seats=1,
            fee=1_000,
            deposit=10_000,
            min_bond=1_000_000,
            private=False,
        )

    async def account(self, key: bytes) -> AccountView:
        self._check()
        balance = self.balances.get(key, 0)
        return AccountView(
            key=key.hex(),
            known=key in self.balances or key in self.providers,
            balance=balance,
            provider=key in self.providers,
            bond=0,
            set_aside=0,
        )

    async def submit(self, tx: SignedTransaction, wait_ms: int = 10_000) -> TxOutcome:
        self._check()
        if self.refuse:
            rule = self.refuse.pop(0)
            raise Refused("refused by the test", rule=rule)
        body = tx.body.body
        if isinstance(body, Extend | Call):
            self.sent.append(body)
            return TxOutcome(id="00" * 32, height=self.height, time=0)
        assert isinstance(body, Open)
        lease = compute_lease_id(CHAIN, body.award.body)
        if lease in self.leases:
            raise Refused("the bid has opened a lease before", rule="R3.c.used")
        self.opened.append(body)
        await self.move(lease, make_view(lease, body, "open"))
        return TxOutcome(id="00" * 32, height=self.height, time=0)

    async def lease(self, lease: bytes) -> LeaseView | None:
        self._check()
        return self.leases.get(lease)

    async def events(self, topics: Sequence[bytes], after: int, wait_ms: int = 0) -> EventsPage:
        self._check()
        async with self._changed:
            while not any(event.height > after for event in self._events):
                await self._changed.wait()
                self._check()
        return EventsPage(next=self.height, events=[event for event in self._events if event.height > after])

    async def close(self) -> None:
        pass

    async def move(self, lease: bytes, view: LeaseView) -> None:
        """A block in which a lease changes."""
        self.height += 1
        self.leases[lease] = view
        self._events.append(LedgerEvent(height=self.height, time=0, kind="lease", tx="", lease=view))
        async with self._changed:
            self._changed.notify_all()

    async def end(self, lease: bytes, state: str = "settled", **changes: Any) -> None:
        """The lease is over, or what else is said of it; its receipt covers all segments unless it says less."""
        view = self.leases[lease]
        served = view.count if state in ("settled", "delivered") else 0
        facts = {"state": state, "served": served, "held": view.count, **changes}
        await self.move(lease, replace(view, **facts))


def make_view(lease: bytes, body: Open, state: str) -> LeaseView:
    """A lease as the chain shows it."""
    award, order = body.award.body, body.order.body
    texts: dict[str, Any] = dict.fromkeys(("award", "receipt", "cause", "start"), "")
    facts = texts | {
        "id": lease.hex(),
        "order": award.order.hex(),
        "requester": order.requester.hex(),
        "provider": body.bid.body.provider.hex(),
        "auctioneer": order.auctioneer.hex(),
        "state": state,
        "first": award.first,
        "count": award.count,
        "held": award.count,
        "price": award.price,
        "commission_bps": award.commission,
    }
    return LeaseView(**{name: facts.get(name, 0) for name in LeaseView.__struct_fields__})
