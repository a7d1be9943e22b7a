"""A stateful market: any order of openings, longer receipts, calls, answers, settles, deliveries, cancels, returns,
gaps that are served again, transfers and pauses.

After each block: every credit is accounted for, nothing is negative, locked + paid <= cap, no segment is covered twice,
what is set aside is what live leases hold, and a second ledger that got the block as bytes has the same root.
"""

from __future__ import annotations

from typing import Any

from hypothesis import event, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule

from chain.base.codec import decode, encode
from chain.base.errors import Refused
from chain.base.hashing import Tag
from chain.base.units import MICRO
from chain.ledger.blocks import Block, compute_block_id
from chain.ledger.entries import LeaseState
from chain.ledger.ledger import Ledger
from chain.ledger.rules.table import ROWS, Event
from chain.ledger.terms.agreement import Order, compute_lease_id, compute_order_id
from chain.ledger.terms.outcome import Cause
from chain.ledger.terms.work import Span
from chain.ledger.transactions import (
    Answer,
    Call,
    Cancel,
    Deliver,
    Extend,
    GiveBack,
    RegisterProvider,
    Settle,
    SignedTransaction,
    Transfer,
)
from tests.chain.ledger.world import HOUR, MINUTE, WINDOWS, World, make_params, salt

EVENTS: dict[type, Event] = {
    Settle: Event.SETTLE,
    Extend: Event.RECEIPT,
    Call: Event.CALL,
    Answer: Event.ANSWER,
    Deliver: Event.DELIVER,
    Cancel: Event.CANCEL,
    GiveBack: Event.RETURN,
}
PARTIES = st.sampled_from(["requester", "provider", "rival", "broker", "treasury"])
EDGES = [WINDOWS.start, WINDOWS.start + 1, WINDOWS.acceptance, WINDOWS.acceptance + 1]
PAUSES = [1, 500, MINUTE, WINDOWS.grace + 1, *EDGES, 20 * MINUTE]


class Market(RuleBasedStateMachine):
    """Blocks of at most a few transactions; refused ones must change nothing and name a rule."""

    orders = Bundle("orders")
    leases = Bundle("leases")

    def __init__(self) -> None:
        super().__init__()
        self.w = World(make_params(quota=100_000, block_timers=2), bond=40 * MICRO)
        self.mirror = Ledger(self.w.genesis)
        self.ids: list[bytes] = []
        self.signed: dict[bytes, Order] = {}
        self.accepted: dict[bytes, int] = {}
        self.waiting: list[SignedTransaction] = []
        self.step = 1
        self.follow()

    def follow(self) -> None:
        """Let the mirror carry out what the market committed, from bytes."""
        for block in self.w.history[self.mirror.head.height :]:
            applied = self.mirror.apply(decode(encode(block), Block))
            self.mirror.commit(applied.id)

    @initialize(target=leases, segments=st.integers(1, 6), weighted=st.booleans())
    def first_lease(self, segments: int, weighted: bool) -> Any:
        order = self.sign_order(segments, weighted, 0, 1_000, 200, HOUR)
        return self.open_lease(order, "provider", 333_331, 10_000, (0, 6))

    @rule(
        target=leases,
        segments=st.integers(1, 6),
        weighted=st.booleans(),
        damages=st.sampled_from([1_000, 0, 10_000]),
        commission=st.sampled_from([200, 0, 3_333]),
        provider=st.sampled_from(["provider", "rival"]),
    )
    def another_lease(self, segments: int, weighted: bool, damages: int, commission: int, provider: str) -> Any:
        order = self.sign_order(segments, weighted, 0, damages, commission, HOUR)
        return self.open_lease(order, provider, 333_331, 10_000, (0, 6))

    @rule(
        target=orders,
        segments=st.integers(1, 6),
        weighted=st.booleans(),
        slack=st.sampled_from([0, 0, 1, -1, MICRO]),
        damages=st.sampled_from([1_000, 0, 1, 10_000]),
        commission=st.sampled_from([0, 1, 200, 3_333]),
        runs=st.sampled_from([15 * MINUTE, HOUR]),
    )
    def sign_order(self, segments: int, weighted: bool, slack: int, damages: int, commission: int, runs: int) -> Any:
        self.step += 1
        weights = tuple(range(1, segments + 1)) if weighted else ()
        whole = 333_331 * (sum(weights) or segments)
        order = self.w.order(
            segments=segments,
            weights=weights,
            segment_wall=MINUTE,
            cap=whole + whole * commission // 10_000 + slack,
            limit=400_000,
            damages=damages,
            commission=commission,
            deadline=self.w.now + runs,
            closes=self.w.now + runs,
            expiry=self.w.now + runs // 2,
            watcher=self.w.key("watcher"),
            salt=salt("market", self.step),
        )
        self.signed[compute_order_id(self.w.chain_id, order)] = order
        return order

    @rule(
        target=leases,
        order=orders,
        provider=st.sampled_from(["provider", "rival"]),
        price=st.sampled_from([333_331, 100_003, 0, 400_001]),
        bond=st.sampled_from([10_000, 20_000, 1_000, 0]),
        part=st.just((0, 6)) | st.tuples(st.integers(0, 5), st.integers(1, 6)),
    )
    def open_lease(self, order: Order, provider: str, price: int, bond: int, part: tuple[int, int]) -> Any:
        self.step += 1
        first = part[0] % order.segments
        count = min(part[1], order.segments - first)
        bid = self.w.bid(order, provider, price=price, bond=bond, valid_until=self.w.now + MINUTE, salt=salt(self.step))
        award = self.w.award(order, bid, first=first, count=count, commission=order.commission)
        self.send("broker", self.w.opening(order, bid, award, provider))
        lease = compute_lease_id(self.w.chain_id, award)
        if self.w.ledger.lease(lease) is None:
            return multiple()
        event("opened")
        self.ids.append(lease)
        return lease

    @rule(
        lease=leases,
        sender=PARTIES,
        count=st.integers(0, 6) | st.just(6),
        cause=st.sampled_from([Cause.OK, Cause.OK, Cause.OOM, Cause.HOST]),
        accept=st.just([True] * 6) | st.lists(st.booleans(), min_size=6, max_size=6),
        release=st.booleans(),
        watcher=st.booleans(),
    )
    def settle(
        self, lease: bytes, sender: str, count: int, cause: Cause, accept: list[bool], release: bool, watcher: bool
    ) -> None:
        record = self.w.lease(lease)
        count = min(count, record.terms.count)
        receipt = self.w.receipt(record, count, cause=cause)
        chosen = tuple(Span(receipt.first + i, 1) for i in range(count) if accept[i])
        signer = "watcher" if watcher else "requester"
        body = self.w.settle(record, receipt, segments=chosen, release=release, signer=self.w.key(signer))
        if watcher:
            body = Settle(body.receipt, self.w.sign("watcher", Tag.ACCEPTANCE, body.acceptance.body))
        if self.send(sender, body, record.id):
            self.accepted[lease] = len(chosen)

    @rule(lease=leases, sender=PARTIES, count=st.integers(0, 6), cause=st.sampled_from([Cause.OK] * 5 + [Cause.OOM]))
    def extend(self, lease: bytes, sender: str, count: int, cause: Cause) -> None:
        record = self.w.lease(lease)
        body = self.w.extend(record, min(count, record.terms.count), cause=cause)
        served = record.served
        if self.send(sender, body, lease):
            assert self.w.lease(lease).served == body.receipt.body.count > served

    @rule(lease=leases, sender=st.sampled_from(["requester", "broker", "broker", "rival"]))
    def call(self, lease: bytes, sender: str) -> None:
        called = self.w.lease(lease).called
        if self.send(sender, Call(lease), lease):
            assert called is None or self.w.now >= called + MINUTE

    @rule(lease=leases, sender=st.sampled_from(["provider", "provider", "rival"]), off=st.sampled_from([0, 0, 0, 1]))
    def answer(self, lease: bytes, sender: str, off: int) -> None:
        self.send(sender, Answer(lease, (self.w.lease(lease).called or 0) + off), lease)

    @rule(target=leases, lease=leases, provider=st.sampled_from(["provider", "rival"]))
    def serve_gap(self, lease: bytes, provider: str) -> Any:
        """A later auction of what a lease of an order left unserved."""
        identity = self.w.lease(lease).terms.order
        order, record = self.signed[identity], self.w.ledger.order(identity)
        covered = {i for one in record.coverage for i in range(one.first, one.first + one.count)} if record else set()
        gap = [i for i in range(order.segments) if i not in covered]
        if record is None or not gap:
            return multiple()
        count = next((n for n, i in enumerate(gap) if i != gap[0] + n), len(gap))
        return self.open_lease(order, provider, 100_003, 10_000, (gap[0], count))

    @rule(lease=leases, sender=PARTIES, count=st.integers(1, 6), cause=st.sampled_from([Cause.OK, Cause.WALL]))
    def deliver(self, lease: bytes, sender: str, count: int, cause: Cause) -> None:
        record = self.w.lease(lease)
        whole = record.terms.count if cause is Cause.OK else min(count, record.terms.count)
        self.send(sender, self.w.deliver(record, self.w.receipt(record, whole, cause=cause)), record.id)

    @rule(lease=leases, sender=st.sampled_from(["requester", "requester", "provider"]))
    def cancel(self, lease: bytes, sender: str) -> None:
        self.send(sender, Cancel(lease), lease)

    @rule(lease=leases, sender=st.sampled_from(["provider", "rival", "requester"]))
    def give_back(self, lease: bytes, sender: str) -> None:
        self.send(sender, GiveBack(lease), lease)

    @rule(sender=PARTIES, to=PARTIES, amount=st.integers(0, 2_000 * MICRO))
    def transfer(self, sender: str, to: str, amount: int) -> None:
        self.send(sender, Transfer(self.w.key(to), amount))

    @rule(sender=st.sampled_from(["provider", "rival", "broker"]), bond=st.integers(0, 5 * MICRO))
    def register(self, sender: str, bond: int) -> None:
        self.send(sender, RegisterProvider(bond))

    @rule(pause=st.sampled_from(PAUSES))
    def pass_time(self, pause: int) -> None:
        self.w.block(time=self.w.now + pause)
        self.follow()

    @rule(lease=leases)
    def replay_everything(self, lease: bytes) -> None:
        """Threat row 1: whatever was said before is known, late, or refused by the state; it never moves anything
        twice.
        """
        before = self.w.ledger.supply()
        locked = self.w.lease(lease)
        for tx in self.waiting[-8:]:
            try:
                self.w.ledger.check(tx, self.w.now + 1)
            except Refused as error:
                assert error.rule.startswith(("R15.a", "lease.")), error.rule
            else:
                raise AssertionError("a transaction was taken twice")
        assert self.w.ledger.supply() == before and self.w.lease(lease) == locked

    def send(self, sender: str, body: Any, lease: bytes | None = None) -> bool:
        """One transaction on an uncommitted sibling first (it must not matter), then in a block of its own; whether it
        was taken.
        """
        tx = self.w.tx(sender, body)
        state = self.w.lease(lease).state if lease else None
        proposal = self.w.ledger.propose(self.w.ledger.head_id, self.w.frame(time=self.w.now + 2), [tx])
        proposal = self.w.ledger.propose(self.w.ledger.head_id, self.w.frame(), [tx])
        if proposal.refused:
            assert not proposal.block.transactions and "." in proposal.refused[0].error.rule
            return False
        if state is not None:
            event(f"{type(body).__name__} in {state.value}")
            assert (state, EVENTS[type(body)]) in ROWS
        self.waiting.append(tx)
        self.w.block(tx)
        self.follow()
        return True

    @invariant()
    def every_credit_is_accounted_for(self) -> None:
        self.w.ledger.check_conservation()
        self.mirror.check_conservation()
        assert self.mirror.head == self.w.ledger.head

    @invariant()
    def leases_and_orders_agree(self) -> None:
        for identity in self.ids:
            lease = self.w.lease(identity)
            terms, order = lease.terms, self.w.ledger.order(lease.terms.order)
            both = terms.price + terms.price * terms.commission // 10_000
            assert lease.locked + lease.paid + lease.commission + lease.refunded <= both
            if lease.is_live:
                assert lease.timer is not None and order is not None and order.live > 0
                segments = range(terms.first, terms.first + lease.held)
                taken = {
                    i for one in order.coverage if one.replica == 0 for i in range(one.first, one.first + one.count)
                }
                assert set(segments) <= taken
            else:
                assert lease.timer is None and lease.locked == lease.bond == 0

    @invariant()
    def no_segment_is_covered_twice(self) -> None:
        """R2: what live leases hold and what was paid for add up to the coverage, so none of it counts twice."""
        covered: dict[bytes, int] = {}
        for identity in self.ids:
            lease = self.w.lease(identity)
            taken = lease.held if lease.is_live else 0
            if lease.state is LeaseState.SETTLED:
                taken = self.accepted.get(identity, lease.served)
            covered[lease.terms.order] = covered.get(lease.terms.order, 0) + taken
        for order, taken in covered.items():
            record = self.w.ledger.order(order)
            assert record is None or sum(one.count for one in record.coverage) == taken

    def teardown(self) -> None:
        """In the end every lease ends by itself, and a restart from a snapshot comes to the same root."""
        while self.w.ledger.next_timer() is not None:
            self.w.block(time=max(self.w.now, self.w.ledger.next_timer() or 0) + 1)
        self.follow()
        totals = self.w.ledger.supply()
        assert totals.locked == 0
        assert all(not self.w.lease(identity).is_live for identity in self.ids)
        assert all(self.w.ledger.order(self.w.lease(identity).terms.order) is None for identity in self.ids)
        snapshot = self.w.ledger.export()
        again = Ledger.load(self.w.genesis, snapshot.entries.items(), snapshot.header, snapshot.recent)
        assert again.head_id == self.mirror.head_id == compute_block_id(self.w.chain_id, snapshot.header)


TestMarket = Market.TestCase
TestMarket.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
