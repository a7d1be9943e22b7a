"""Rows 8, 9 and 10: a call, its answer, and what silence costs, with every boundary of R6 at t - 1, t and t + 1."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from chain.base.units import MICRO
from chain.ledger.entries import LeaseRecord, LeaseState
from chain.ledger.results import LeaseMoved
from chain.ledger.rules.calls import CALL_FEES, CALL_PAUSE
from chain.ledger.transactions import Answer, Call, Transfer
from tests.chain.ledger.world import HOUR, MINUTE, SIGNERS, WINDOWS, World, digest, make_params

WATCHER = SIGNERS["watcher"].key
FEE = 1_000


def make_called(**order: Any) -> tuple[World, LeaseRecord]:
    """A lease whose provider was just called."""
    w = World()
    lease = w.open_lease(**order)
    w.send("broker", w.call(lease))
    return w, w.lease(lease.id)


@pytest.mark.parametrize(
    ("sender", "rule"),
    [
        ("requester", ""),
        ("broker", ""),
        ("watcher", ""),
        ("provider", "lease.call.sender"),
        ("rival", "lease.call.sender"),
        ("treasury", "lease.call.sender"),
    ],
)
def test_only_requester_watcher_and_auctioneer_call(sender: str, rule: str) -> None:
    w = World()
    w.send("treasury", Transfer(WATCHER, MICRO))
    lease = w.open_lease(watcher=WATCHER)
    assert w.refusal(sender, w.call(lease)) == rule
    assert w.refusal(sender, Call(digest("no"))) == "lease.unknown"


def test_an_order_without_a_watcher_lets_no_watcher_call() -> None:
    w = World()
    w.send("treasury", Transfer(WATCHER, MICRO))
    assert w.refusal("watcher", w.call(w.open_lease())) == "lease.call.sender"


@pytest.mark.parametrize("sender", ["requester", "broker", "rival"])
def test_only_the_provider_answers(sender: str) -> None:
    w, lease = make_called()
    assert w.refusal(sender, w.answer(lease)) == "lease.answer.sender"
    assert w.refusal("provider", w.answer(lease)) == ""
    assert w.refusal("provider", Answer(digest("no"), w.now)) == "lease.unknown"


@pytest.mark.parametrize("off", [-1, 1, -HOUR])
def test_an_answer_names_its_call(off: int) -> None:
    """R6: an answer kept from an earlier call, or made in advance, is worth nothing."""
    w, lease = make_called()
    assert lease.called == w.now
    assert w.refusal("provider", Answer(lease.id, w.now + off)) == "R6.called"


def test_a_call_starts_the_answer_window_and_an_answer_ends_it() -> None:
    w = World()
    lease = w.open_lease()
    committed = w.send("broker", w.call(lease))
    called = w.lease(lease.id)
    assert (called.state, called.called, called.timer) == (LeaseState.CALLED, w.now, w.now + WINDOWS.answer)
    (event,) = committed.events
    assert isinstance(event.happening, LeaseMoved) and event.happening.row == 8
    committed = w.send("provider", w.answer(called))
    (event,) = committed.events
    assert isinstance(event.happening, LeaseMoved) and event.happening.row == 9
    opened = msgspec.structs.replace(lease, called=called.called)
    assert w.lease(lease.id) == opened
    assert w.ledger.next_timer() == lease.terms.deadline


@pytest.mark.parametrize(("late", "state"), [(-1, LeaseState.OPEN), (0, LeaseState.OPEN), (1, LeaseState.EXPIRED)])
def test_an_answer_is_in_time_up_to_the_end_of_its_window(late: int, state: LeaseState) -> None:
    """R1 at the boundary: in time iff block time <= timer; a millisecond later the lease has ended (row 10)."""
    w, lease = make_called()
    at = (lease.timer or 0) + late
    if state is LeaseState.EXPIRED:
        assert w.refusal("provider", w.answer(lease), time=at) == "lease.expired.answer"
        w.block(time=at)
    else:
        w.send("provider", w.answer(lease), time=at)
    assert w.lease(lease.id).state is state


@pytest.mark.parametrize("answered", [True, False])
@pytest.mark.parametrize(("late", "rule"), [(-1, "R6.pause"), (0, ""), (1, "")])
def test_between_two_calls_of_a_lease_lies_a_minute(late: int, rule: str, answered: bool) -> None:
    w, lease = make_called()
    called = lease.called or 0
    if answered:
        w.send("provider", w.answer(lease))
        assert w.refusal("requester", w.call(lease), time=called + CALL_PAUSE + late) == rule
    else:
        assert w.refusal("requester", w.call(lease)) == "lease.called.call"


def test_a_call_of_one_lease_is_none_of_another() -> None:
    w = World()
    order = w.order()
    leases = [open_part(w, order, first, name) for first, name in ((0, "provider"), (5, "rival"))]
    w.send("broker", w.call(leases[0]))
    assert w.refusal("broker", w.call(leases[1])) == ""
    assert w.refusal("rival", Answer(leases[1].id, w.now)) == "lease.open.answer"


def open_part(w: World, order: Any, first: int, provider: str) -> LeaseRecord:
    """A lease of five segments from `first`, served by `provider`."""
    bid = w.bid(order, provider)
    changes = {"start": order.start if first == 0 else digest("state", first)}
    award = w.award(order, bid, first=first, count=5, **changes)
    w.send("broker", w.opening(order, bid, award, provider))
    (lease,) = w.ledger.leases(order=award.order, provider=bid.provider, live=True)
    return lease


@pytest.mark.parametrize("fee", [FEE, 7])
def test_a_call_burns_ten_flat_fees_and_an_answer_one(fee: int) -> None:
    """R6, R13: outside the cap, from the caller's balance, and counted as burned."""
    w = World(make_params(fee=fee))
    lease = w.open_lease()
    balance, burned = w.balance("broker"), w.ledger.supply().burned
    w.send("broker", w.call(lease))
    assert w.balance("broker") == balance - 10 * fee == balance - (1 + CALL_FEES) * fee
    assert w.ledger.supply().burned == burned + 10 * fee
    balance = w.balance("provider")
    w.send("provider", w.answer(lease))
    assert w.balance("provider") == balance - fee
    called = w.lease(lease.id)
    assert (called.locked, called.bond, called.burned) == (lease.locked, lease.bond, 0)


def test_a_call_that_cannot_be_paid_is_refused() -> None:
    w = World()
    w.send("treasury", Transfer(WATCHER, 10 * FEE - 1 + 10_000))
    lease = w.open_lease(watcher=WATCHER)
    w.send("watcher", Transfer(w.key("treasury"), 10_000 - FEE))
    assert w.balance("watcher") == 10 * FEE - 1
    assert w.refusal("watcher", w.call(lease)) == "R13.balance"
    w.send("treasury", Transfer(WATCHER, 1))
    assert w.refusal("watcher", w.call(lease)) == ""


def test_no_answer_reaches_beyond_the_deadline() -> None:
    """Row 8: the timer is the lower of the answer window and the deadline."""
    w = World()
    lease = w.open_lease()
    w.block(time=lease.terms.deadline - 2)
    w.send("requester", w.call(lease))
    called = w.lease(lease.id)
    assert called.timer == lease.terms.deadline
    w.send("provider", w.answer(called), time=lease.terms.deadline)
    assert w.lease(lease.id).state is LeaseState.OPEN
    w.block(time=lease.terms.deadline + 1)
    assert w.lease(lease.id).state is LeaseState.EXPIRED


def test_silence_ends_a_lease_as_its_deadline_would() -> None:
    """R6, row 10: the same money, only sooner."""
    ends = []
    for called in (True, False):
        w = World()
        lease = w.open_lease()
        if called:
            w.send("broker", w.call(lease))
        w.block(time=(w.lease(lease.id).timer or 0) + 1)
        ended = w.lease(lease.id)
        record = w.ledger.order(lease.terms.order)
        assert record is not None and (record.coverage, record.live, record.locked) == ((), 0, 0)
        ends.append((msgspec.structs.replace(ended, called=None), w.bond("provider"), w.balance("requester")))
        assert w.now - lease.terms.opened < MINUTE or not called
    assert ends[0] == ends[1]
    assert ends[0][0].state is LeaseState.EXPIRED


def test_a_called_lease_may_still_be_cancelled_and_then_needs_no_answer() -> None:
    w, lease = make_called()
    w.send("requester", w.cancel(lease))
    cancelled = w.lease(lease.id)
    assert (cancelled.state, cancelled.timer) == (LeaseState.CANCELLING, w.now + WINDOWS.grace)
    assert w.refusal("provider", w.answer(lease)) == "lease.cancelling.answer"


def test_a_delivery_needs_no_answer_and_a_receipt_is_none() -> None:
    """Rows 2 and 11 in `called`: work handed in ends the wait only when it is all of it."""
    w, lease = make_called()
    w.send("provider", w.extend(lease, 4))
    extended = w.lease(lease.id)
    assert (extended.state, extended.timer, extended.served) == (LeaseState.CALLED, lease.timer, 4)
    w.send("provider", w.deliver(lease))
    assert w.lease(lease.id).state is LeaseState.DELIVERED


def test_a_call_and_its_answer_in_one_block_hold() -> None:
    """In one block transactions follow each other; the Instant of the call is the block's."""
    w = World()
    lease = w.open_lease()
    at = w.now + 1
    w.block(w.tx("broker", w.call(lease)), w.tx("provider", Answer(lease.id, at)), time=at)
    assert w.lease(lease.id).state is LeaseState.OPEN
    assert w.lease(lease.id).called == at
