"""An order that many leases serve one after the other: each leaves as it likes, a later auction takes up the rest.

Whatever the way, every segment is paid exactly once, no more than the cap ever leaves the requester, and the order's
record goes in the end.
"""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from chain.base.units import MICRO
from chain.ledger.entries import Cover, LeaseRecord, LeaseState
from chain.ledger.terms.agreement import Kind, Order, compute_lease_id, compute_order_id
from chain.ledger.terms.outcome import Cause
from tests.chain.ledger.world import HOUR, MINUTE, WINDOWS, World, digest, make_params, salt

WAYS = ["return", "silence", "failure", "finish"]
PLANS = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 9), st.sampled_from(WAYS), st.booleans()), min_size=1, max_size=8
)


def open_gap(w: World, order: Order, first: int, count: int, number: int) -> LeaseRecord:
    """A lease on a gap, by provider and rival in turn, at a price of its own, out of an auction that closes now."""
    provider = ("provider", "rival")[number % 2]
    price = 500_000 + 1_001 * number
    bid = w.bid(order, provider, price=price, valid_until=w.now + MINUTE, salt=salt("gap", number))
    start = order.start if order.kind is Kind.MAP or first == 0 else digest("state", first)
    award = w.award(order, bid, first=first, count=count, start=start)
    w.send("broker", w.opening(order, bid, award, provider))
    return w.lease(compute_lease_id(w.chain_id, award))


def serve(w: World, lease: LeaseRecord, served: int, way: str, accept: bool) -> int:
    """Serve some segments and leave; the segments that are paid for in the end."""
    name, count = w.name(lease.terms.provider), lease.terms.count
    served = min(served, count)
    if way == "finish":
        w.send("broker", w.settle(lease) if accept else w.deliver(lease))
        served = count
    elif way == "failure" and served:
        failed = w.receipt(lease, served, cause=Cause.PROGRAM)
        w.send("broker", w.settle(lease, failed) if accept else w.deliver(lease, failed))
    else:
        for done in range(1, served + 1):
            w.send("broker", w.extend(lease, done))
        if way == "silence":
            w.send("requester", w.call(lease))
            w.block(time=w.now + WINDOWS.answer + 1)
        else:
            w.block(time=w.now + WINDOWS.start + 1)
            w.send(name, w.give_back(lease))
        if served and accept:
            w.send("broker", w.settle(lease, w.receipt(lease, served)))
    if w.lease(lease.id).is_live:
        w.block(time=w.now + WINDOWS.acceptance + 1)
    ended = w.lease(lease.id)
    assert ended.state in (LeaseState.SETTLED, LeaseState.RETURNED, LeaseState.EXPIRED)
    assert ended.paid == served * lease.terms.unit
    return served


def list_gaps(w: World, order: Order) -> list[tuple[int, int]]:
    """What is free, as the ledger's record says."""
    record = w.ledger.order(compute_order_id(w.chain_id, order))
    taken = {i for one in record.coverage for i in range(one.first, one.first + one.count)} if record else set()
    free = [i for i in range(order.segments) if i not in taken]
    starts = [i for i in free if i - 1 not in free]
    return [(i, next(n for n in range(1, order.segments + 1) if i + n not in free)) for i in starts]


@settings(max_examples=60, deadline=None)
@given(PLANS, st.sampled_from([Kind.MAP, Kind.TRAIN]), st.integers(1, 12))
def test_every_segment_is_paid_once_however_often_its_lease_is_left(
    plan: list[tuple[int, int, str, bool]], kind: Kind, segments: int
) -> None:
    w = World(make_params(quota=10_000))
    order = w.order(
        kind=kind, segments=segments, segment_wall=1_000, deadline=w.now + 20 * HOUR, expiry=w.now + 20 * HOUR
    )
    spent: list[int] = []
    for number, (which, served, way, accept) in enumerate(plan):
        gaps = list_gaps(w, order)
        if not gaps:
            break
        first, count = gaps[which % len(gaps)]
        w.block(time=w.now + MINUTE)
        lease = open_gap(w, order, first, count, number)
        paid = serve(w, lease, served, way, accept)
        spent.append(paid * lease.terms.unit * 102 // 100)
        record = w.ledger.order(lease.terms.order)
        assert record is not None and record.locked == 0
        assert sum(one.count for one in record.coverage) == segments - sum(count for _, count in list_gaps(w, order))
    record = w.ledger.order(compute_order_id(w.chain_id, order))
    leases = w.ledger.leases(order=compute_order_id(w.chain_id, order))
    assert record is not None
    assert record.paid == sum(one.paid + one.commission for one in leases) <= order.cap
    assert sum(one.paid // one.terms.unit for one in leases) == sum(one.count for one in record.coverage)
    assert abs(record.paid - sum(spent)) <= len(spent)
    w.block(time=order.expiry + 1)
    assert w.ledger.order(compute_order_id(w.chain_id, order)) is None


def test_two_leases_of_one_order_at_a_time_lock_what_both_need() -> None:
    """R2: parallel ranges of a `map`, each with its own bid; one ends without touching the other."""
    w = World()
    order = w.order(kind=Kind.MAP)
    one, other = open_gap(w, order, 0, 5, 0), open_gap(w, order, 5, 5, 1)
    record = w.ledger.order(one.terms.order)
    assert record is not None
    assert (record.locked, record.live, record.coverage) == (one.locked + other.locked, 2, (Cover(0, 0, 10),))
    w.send("provider", w.extend(one, 2))
    w.block(time=w.now + WINDOWS.start + 1)
    w.send("provider", w.give_back(one))
    assert w.lease(other.id) == other
    assert list_gaps(w, order) == [(2, 3)]
    w.send("broker", w.settle(other))
    assert list_gaps(w, order) == [(2, 3)]
    third = open_gap(w, order, 2, 3, 3)
    w.send("broker", w.settle(third))
    w.send("broker", w.settle(one, w.receipt(one, 2)))
    record = w.ledger.order(one.terms.order)
    assert record is not None and (record.locked, record.live, record.coverage) == (0, 0, (Cover(0, 0, 10),))


def test_leases_that_are_left_again_and_again_never_exceed_the_cap() -> None:
    """R2: what was burned for leases that never started counts as paid, so the cap bounds what an order can lose."""
    w = World()
    order = w.order(segments=1, cap=MICRO, limit=MICRO)
    number, refused = 0, ""
    while not refused:
        price = 900_000 + number % 3
        bid = w.bid(order, price=price, valid_until=w.now + MINUTE, salt=salt("again", number))
        award = w.award(order, bid)
        opening: Any = w.opening(order, bid, award)
        refused = w.refusal("broker", opening)
        if not refused:
            w.send("broker", opening)
            w.send("provider", w.give_back(w.lease(compute_lease_id(w.chain_id, award))))
        number += 1
    record = w.ledger.order(compute_order_id(w.chain_id, order))
    assert refused in ("R2.cap", "R15.c.quota") and record is not None
    assert record.paid + record.locked <= order.cap
