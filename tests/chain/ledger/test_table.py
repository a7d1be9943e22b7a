"""law.md's table: every (state, event or timer) pair has exactly one outcome or a refusal by name; who gets what in
each row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from chain.base.errors import Fault, Refused
from chain.base.units import MICRO
from chain.ledger.entries import LIVE, Cover, LeaseRecord, LeaseState, ReceiptNote
from chain.ledger.money import split_cut
from chain.ledger.rules.table import ROWS, Event, check_row
from chain.ledger.terms.outcome import Cause
from chain.ledger.terms.work import Span
from tests.chain.ledger.world import HOUR, WINDOWS, World, digest

S, E = LeaseState, Event
PRICE, COMMISSION, BOND, DAMAGES = 9_000_000, 180_000, 9_000_000, 900_000
FEE = 1_000

SEND: dict[Event, Callable[[World, LeaseRecord], tuple[str, Any]]] = {
    E.SETTLE: lambda w, lease: ("provider", w.settle(lease)),
    E.DELIVER: lambda w, lease: ("provider", w.deliver(lease)),
    E.RECEIPT: lambda w, lease: ("rival", w.extend(lease, 3)),
    E.CALL: lambda w, lease: ("broker", w.call(lease)),
    E.ANSWER: lambda w, lease: ("provider", w.answer(lease)),
    E.CANCEL: lambda w, lease: ("requester", w.cancel(lease)),
    E.RETURN: lambda w, lease: ("provider", w.give_back(lease)),
}
"""Events that a transaction of today brings."""

OUTCOMES: dict[tuple[LeaseState, Event], LeaseState] = {
    (S.OPEN, E.SETTLE): S.SETTLED,
    (S.CALLED, E.SETTLE): S.SETTLED,
    (S.CANCELLING, E.SETTLE): S.SETTLED,
    (S.DELIVERED, E.SETTLE): S.SETTLED,
    (S.DISPUTED, E.SETTLE): S.SETTLED,
    (S.OPEN, E.RECEIPT): S.OPEN,
    (S.CALLED, E.RECEIPT): S.CALLED,
    (S.CANCELLING, E.RECEIPT): S.CANCELLING,
    (S.OPEN, E.CALL): S.CALLED,
    (S.CALLED, E.ANSWER): S.OPEN,
    (S.OPEN, E.DELIVER): S.DELIVERED,
    (S.CALLED, E.DELIVER): S.DELIVERED,
    (S.CANCELLING, E.DELIVER): S.DELIVERED,
    (S.OPEN, E.CANCEL): S.CANCELLING,
    (S.CALLED, E.CANCEL): S.CANCELLING,
    (S.OPEN, E.RETURN): S.UNSTARTED,
    (S.CALLED, E.RETURN): S.UNSTARTED,
    (S.OPEN, E.TIMER): S.EXPIRED,
    (S.CALLED, E.TIMER): S.EXPIRED,
    (S.CANCELLING, E.TIMER): S.CANCELLED,
    (S.DELIVERED, E.TIMER): S.SETTLED,
}


def bring(w: World, state: LeaseState) -> LeaseRecord:
    """A lease in `state`: by transactions where they lead there today, else set by hand."""
    lease = w.open_lease()
    match state:
        case S.CANCELLING:
            w.send("requester", w.cancel(lease))
        case S.DELIVERED:
            w.send("provider", w.deliver(lease))
        case S.CALLED:
            w.send("broker", w.call(lease))
        case S.DISPUTED:
            w.put_lease(lease, state=state)
        case S.SLASHED | S.VOID:
            w.send("provider", w.settle(lease))
            w.put_lease(w.lease(lease.id), state=state)
        case S.SETTLED:
            w.send("provider", w.settle(lease))
        case S.UNSTARTED:
            w.send("provider", w.give_back(lease))
        case S.RETURNED:
            w.send("provider", w.give_back(lease), time=lease.terms.opened + WINDOWS.start + 1)
        case S.EXPIRED:
            w.block(time=lease.terms.deadline + 1)
        case S.CANCELLED:
            w.send("requester", w.cancel(lease))
            w.block(time=w.now + WINDOWS.grace + 1)
        case S.OPEN:
            pass
    lease = w.lease(lease.id)
    assert lease.state is state
    return lease


@pytest.mark.parametrize("state", S)
@pytest.mark.parametrize("event", sorted(SEND))
def test_every_pair_has_one_outcome_or_a_named_refusal(state: LeaseState, event: Event) -> None:
    w = World()
    lease = bring(w, state)
    sender, body = SEND[event](w, lease)
    if (state, event) in OUTCOMES:
        w.send(sender, body)
        assert w.lease(lease.id).state is OUTCOMES[state, event]
    else:
        assert w.refusal(sender, body) == f"lease.{state}.{event}"


@pytest.mark.parametrize("state", S)
def test_a_timer_has_one_outcome_in_every_live_state_and_none_after(state: LeaseState) -> None:
    w = World()
    lease = bring(w, state)
    if state is S.DISPUTED:
        with pytest.raises(Fault, match=r"lease\.timer"):
            w.block(time=w.now + 3 * HOUR)
        return
    w.block(time=w.now + 3 * HOUR)
    assert w.lease(lease.id).state is OUTCOMES.get((state, E.TIMER), state)
    assert w.ledger.next_timer() is None


@pytest.mark.parametrize("state", S)
@pytest.mark.parametrize("event", E)
def test_what_the_table_does_not_list_is_refused(state: LeaseState, event: Event) -> None:
    """The rows of law.md, of later issues too; ended states take nothing."""
    lease = msgspec.structs.replace(bring(World(), S.OPEN), state=state)
    if (state, event) in ROWS:
        check_row(lease, event)
        assert state in LIVE
    else:
        with pytest.raises(Refused) as caught:
            check_row(lease, event)
        assert caught.value.rule == f"lease.{state.value}.{event.value}"


def test_the_table_has_every_row_of_the_law_once() -> None:
    rows = sorted({row for rows in ROWS.values() for row in rows})
    assert rows == list(range(2, 18))
    assert {state for state, _ in ROWS} == LIVE


# ---- who gets what -------------------------------------------------------------------------------------------------

Money = dict[str, int]


def watch(w: World, act: Callable[[], object]) -> Money:
    """What `act` changed for each party, in micro-credits."""

    def look() -> Money:
        totals = w.ledger.supply()
        names = ("requester", "provider", "broker")
        return {
            **{name: w.balance(name) for name in names},
            "bond": w.bond("provider"),
            "burned": totals.burned,
            "locked": totals.locked,
        }

    before = look()
    act()
    after = look()
    return {name: after[name] - before[name] for name in after if after[name] != before[name]}


def test_row_3_pays_the_accepted_and_refunds_the_rest() -> None:
    w = World()
    lease = w.open_lease()
    body = w.settle(lease, segments=(Span(0, 3), Span(5, 2)))
    moved = watch(w, lambda: w.send("provider", body))
    paid, commission = 5 * 900_000, 5 * 900_000 * 2 // 100
    assert moved == {
        "provider": paid - FEE,
        "broker": commission,
        "requester": PRICE + COMMISSION - paid - commission,
        "burned": FEE,
        "locked": -PRICE - COMMISSION,
    }
    ended = w.lease(lease.id)
    assert (ended.paid, ended.commission, ended.refunded, ended.damages, ended.burned) == (
        paid,
        commission,
        PRICE + COMMISSION - paid - commission,
        0,
        0,
    )
    record = w.ledger.order(lease.terms.order)
    assert record is not None
    assert record.coverage == (Cover(0, 0, 3), Cover(0, 5, 2))
    assert (record.locked, record.paid, record.live) == (0, paid + commission, 0)


@pytest.mark.parametrize(
    ("receipt", "acceptance", "damages"),
    [
        ({}, {}, 6 * 900_000 * 10 // 100),
        ({}, {"release": True}, 0),
        ({"cause": Cause.OOM}, {}, 0),
        ({"cause": Cause.HOST}, {}, 6 * 900_000 * 10 // 100),
    ],
)
def test_row_3_beyond_the_receipt_is_a_return_unless_released_or_failed(
    receipt: dict[str, Any], acceptance: dict[str, Any], damages: int
) -> None:
    """R7, R4, R9: damages from the bond, the rest of the share goes back."""
    w = World()
    lease = w.open_lease()
    body = w.settle(lease, w.receipt(lease, 4, **receipt), **acceptance)
    moved = watch(w, lambda: w.send("provider", body))
    paid, commission = 4 * 900_000, 4 * 900_000 * 2 // 100
    refunded = PRICE + COMMISSION - paid - commission
    expected = {
        "provider": paid - FEE,
        "broker": commission,
        "requester": refunded + damages,
        "burned": FEE,
        "locked": -PRICE - COMMISSION,
    }
    assert moved == expected | ({"bond": -damages} if damages else {})
    assert w.lease(lease.id).damages == damages


def test_row_5_burns_one_percent_of_each_side_while_the_start_window_lasts() -> None:
    w = World()
    lease = w.open_lease()
    end = lease.terms.opened + WINDOWS.start
    moved = watch(w, lambda: w.send("provider", w.give_back(lease), time=end))
    part = PRICE // 100
    assert moved == {
        "provider": -FEE,
        "requester": PRICE + COMMISSION - part,
        "bond": -part,
        "burned": 2 * part + FEE,
        "locked": -PRICE - COMMISSION,
    }
    record = w.ledger.order(lease.terms.order)
    assert record is not None and (record.paid, record.coverage) == (part, ())
    assert w.lease(lease.id).state is S.UNSTARTED


def test_row_5_takes_at_most_the_bond() -> None:
    """R4: a small bond bounds the provider's part."""
    w = World()
    lease = open_with(w, bond=50, damages=50)
    moved = watch(w, lambda: w.send("provider", w.give_back(lease)))
    assert moved["bond"] == -PRICE * 50 // 10_000
    assert moved["burned"] == PRICE // 100 + PRICE * 50 // 10_000 + FEE


def test_row_7_damages_and_the_rest_of_the_share_back() -> None:
    w = World()
    lease = w.open_lease()
    late = lease.terms.opened + WINDOWS.start + 1
    moved = watch(w, lambda: w.send("provider", w.give_back(lease), time=late))
    assert moved == {
        "provider": -FEE,
        "requester": PRICE + COMMISSION + DAMAGES,
        "bond": -DAMAGES,
        "burned": FEE,
        "locked": -PRICE - COMMISSION,
    }
    assert w.lease(lease.id).state is S.RETURNED


def test_row_10_damages_and_the_rest_of_the_share_burned() -> None:
    w = World()
    lease = w.open_lease()
    w.block(time=lease.terms.deadline)
    assert w.lease(lease.id).state is S.OPEN
    moved = watch(w, lambda: w.block(time=lease.terms.deadline + 1))
    assert moved == {
        "requester": PRICE + COMMISSION + DAMAGES,
        "bond": -BOND,
        "burned": BOND - DAMAGES,
        "locked": -PRICE - COMMISSION,
    }
    record = w.ledger.order(lease.terms.order)
    assert record is not None and (record.paid, record.coverage) == (0, ())


@pytest.mark.parametrize(
    ("after", "weights", "fee"),
    [
        (WINDOWS.start, (), 900_000),
        (WINDOWS.start + 1, (), 900_000),
        (WINDOWS.start, (1, 1, 1, 1, 1, 1, 1, 1, 1, 11), 1_800_000),
        (WINDOWS.start + 1, (1, 1, 1, 1, 1, 1, 1, 1, 1, 11), 9_900_000),
    ],
)
def test_rows_6_and_12_a_cancel_costs_a_fee(after: int, weights: tuple[int, ...], fee: int) -> None:
    """In the start window min(one segment, 10 % of the price), later one segment; no commission on it."""
    w = World()
    lease = w.open_lease(weights=weights, cap=30 * MICRO)
    at = lease.terms.opened + after
    moved = watch(w, lambda: w.send("requester", w.cancel(lease), time=at))
    assert moved == {"requester": -FEE, "burned": FEE}
    w.block(time=at + WINDOWS.grace)
    assert w.lease(lease.id).state is S.CANCELLING
    locked = lease.locked
    moved = watch(w, lambda: w.block(time=at + WINDOWS.grace + 1))
    assert moved == {"provider": fee, "requester": locked - fee, "locked": -locked}
    record = w.ledger.order(lease.terms.order)
    assert record is not None and (record.paid, record.coverage) == (fee, ())


@pytest.mark.parametrize("end", ["settle", "silence"])
@pytest.mark.parametrize(("count", "paid"), [(1, 900_000), (3, 2_700_000)])
def test_after_a_cancel_the_provider_gets_the_fee_or_more(end: str, count: int, paid: int) -> None:
    """Row 6 at rows 3 and 13: max(fee, price of the r segments), commission on segments only, no damages."""
    w = World()
    weights = (1, 1, 1, 1, 1, 1, 1, 1, 1, 1)
    lease = w.open_lease(weights=weights)
    w.send("requester", w.cancel(lease), time=lease.terms.opened + WINDOWS.start + 1)
    receipt = w.receipt(lease, count, cause=Cause.PROGRAM)
    start = w.balance("provider")
    if end == "settle":
        w.send("broker", w.settle(lease, receipt))
    else:
        w.send("broker", w.deliver(lease, receipt))
        w.block(time=w.now + WINDOWS.acceptance + 1)
    ended = w.lease(lease.id)
    assert ended.state is S.SETTLED and w.balance("provider") == start + paid
    assert (ended.paid, ended.commission, ended.damages) == (paid, count * 18_000, 0)


def test_after_a_cancel_a_partial_settle_costs_the_provider_nothing() -> None:
    """Row 12 over R7: the requester ended the work, so nothing beyond the receipt is a return; the fee is due."""
    w = World()
    weights = (1, 1, 1, 1, 1, 1, 1, 1, 1, 3)
    lease = w.open_lease(weights=weights)
    w.send("requester", w.cancel(lease), time=lease.terms.opened + WINDOWS.start + 1)
    bond = w.bond("provider")
    w.send("provider", w.settle(lease, w.receipt(lease, 2)))
    ended = w.lease(lease.id)
    assert (ended.paid, ended.commission, ended.damages) == (3 * 900_000, 2 * 18_000, 0)
    assert w.bond("provider") == bond


def test_row_13_silence_accepts_what_was_delivered() -> None:
    w = World()
    lease = w.open_lease()
    w.send("broker", w.deliver(lease, w.receipt(lease, 4, cause=Cause.OOM)))
    timer = w.now + WINDOWS.acceptance
    assert w.lease(lease.id).timer == timer == w.ledger.next_timer()
    w.block(time=timer)
    assert w.lease(lease.id).state is S.DELIVERED
    moved = watch(w, lambda: w.block(time=timer + 1))
    paid, commission = 4 * 900_000, 4 * 18_000
    assert moved == {
        "provider": paid,
        "broker": commission,
        "requester": PRICE + COMMISSION - paid - commission,
        "locked": -PRICE - COMMISSION,
    }
    record = w.ledger.order(lease.terms.order)
    assert record is not None and record.coverage == (Cover(0, 0, 4),)
    ended = w.lease(lease.id)
    assert ended.receipt is not None and ended.served == 4 and ended.receipt.cause is Cause.OOM


def open_with(w: World, *, bond: int, damages: int) -> LeaseRecord:
    """A lease whose bid names `bond` basis points, its order `damages`."""
    order = w.order(damages=damages)
    bid = w.bid(order, bond=bond)
    w.send("broker", w.opening(order, bid, w.award(order, bid)))
    (lease,) = w.ledger.leases(order=w.ledger.leases()[0].terms.order)
    return lease


@pytest.mark.parametrize(
    ("way", "bond_bps", "share", "burned"),
    [
        ("return", 10_000, 6 * 900_000, 0),
        ("deadline", 10_000, 6 * 900_000, 6 * 900_000 - 540_000),
        ("grace", 10_000, 6 * 900_000, 0),
        ("deadline", 1_000, 540_000, 0),
        ("silence", 10_000, 6 * 900_000, 6 * 900_000 - 540_000),
    ],
)
def test_a_cut_lease_keeps_what_was_served_until_its_end(way: str, bond_bps: int, share: int, burned: int) -> None:
    """Rows 7, 10, 12 with r > 0: unserved refunded, the served part stays locked with its share of the bond, then row
    13.
    """
    w = World()
    lease = open_with(w, bond=bond_bps, damages=1_000)
    if way == "grace":
        w.send("requester", w.cancel(lease), time=lease.terms.opened + WINDOWS.start + 1)
    w.send("rival", w.extend(lease, 4))
    if way == "silence":
        w.send("broker", w.call(lease))
    bond, burned_before = w.bond("provider"), w.ledger.supply().burned
    fees = 0
    if way == "return":
        w.send("provider", w.give_back(lease))
        fees = FEE
    else:
        w.block(time=(w.lease(lease.id).timer or 0) + 1)
    damages = 0 if way == "grace" else 540_000
    cut = w.lease(lease.id)
    served = 4 * 900_000
    assert (cut.state, cut.held, cut.locked) == (S.DELIVERED, 4, served + served * 2 // 100)
    assert cut.bond == lease.bond - share
    assert (cut.damages, cut.burned, cut.refunded) == (damages, burned, lease.locked - cut.locked)
    assert w.bond("provider") == bond - damages - burned
    assert w.ledger.supply().burned == burned_before + burned + fees
    assert cut.timer == w.now + WINDOWS.acceptance
    record = w.ledger.order(lease.terms.order)
    assert record is not None and record.coverage == (Cover(0, 0, 4),)
    w.block(time=w.now + WINDOWS.acceptance + 1)
    ended = w.lease(lease.id)
    assert (ended.state, ended.paid, ended.commission, ended.bond) == (S.SETTLED, served, served * 2 // 100, 0)
    assert w.bond("provider") == bond - damages - burned


def test_a_low_bond_share_is_kept_for_the_damages_of_what_was_served() -> None:
    """Rows 7, 10: what stays is max(its share of B, damages of its price), here the damages."""
    w = World()
    lease = open_with(w, bond=1_000, damages=1_000)
    w.put_lease(lease, receipt=ReceiptNote(digest("r"), 4, digest("records"), Cause.OK), bond=lease.bond - 300_000)
    changed = w.lease(lease.id)
    split = split_cut(changed, damages=True, burn=False)
    assert changed.bond - split.unbound == 4 * 90_000
    poor = msgspec.structs.replace(changed, bond=300_000)
    assert split_cut(poor, damages=True, burn=False).unbound == 0


@pytest.mark.parametrize(
    ("window", "late", "state"),
    [
        ("start", 0, S.UNSTARTED),
        ("start", 1, S.RETURNED),
        ("deadline", 0, S.DELIVERED),
        ("deadline", 1, S.EXPIRED),
    ],
)
def test_at_the_boundary_block_a_deadline_is_in_time(window: str, late: int, state: LeaseState) -> None:
    """R1: in time iff block time <= deadline; a block later the timer has fired before any transaction."""
    w = World()
    lease = w.open_lease()
    at = late + (lease.terms.opened + WINDOWS.start if window == "start" else lease.terms.deadline)
    body = w.give_back(lease) if window == "start" else w.deliver(lease)
    if state is S.EXPIRED:
        assert w.refusal("provider", body, time=at) == "lease.expired.deliver"
        w.block(time=at)
    else:
        w.block(w.tx("provider", body, valid=at), time=at)
    assert w.lease(lease.id).state is state
