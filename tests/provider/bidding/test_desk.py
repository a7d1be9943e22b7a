"""The desk: each order gets a bid that can be kept, or a decline that says what would help."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.protocol.jobs import Level, Runtime
from broker.protocol.messages import Announcement, Decline, Offer, Reason
from chain.base.errors import Refused
from chain.base.hashing import Tag
from chain.base.keys import verify
from chain.base.units import BPS
from chain.ledger.terms.agreement import AwardRule, Bid, Kind, compute_order_id
from provider.bidding.capacity import Pool
from provider.bidding.desk import DELIVER_MS, LEARN_MS, OVERHEAD_MS, VALID_MS, BidMade, Declined, Desk, Funds, Rates
from provider.bidding.policy import Policy, compute_bond
from provider.bidding.pricing import Prices, compute_price
from tests.provider.scene import (
    BROKER,
    CHAIN,
    MIB,
    NOW,
    OFFER,
    PROVIDER,
    REQUESTER,
    RESOURCES,
    WINDOWS,
    announce,
    make_order,
    make_signer,
    make_spec,
)

RICH = Funds(10_000_000_000, 0, 0)
SALT = bytes(range(16))
TIGHT: dict[str, Any] = {"deadline": NOW + 32_000, "windows": msgspec.structs.replace(WINDOWS, start=12_000)}
"""An order that can wait for nothing."""
PRICE = compute_price(Prices(), RESOURCES, 10_000)


def make_desk(policy: Policy | None = None, prices: Prices | None = None, pool: Pool | None = None) -> Desk:
    rates = Rates(prices or Prices(), policy or Policy(), pool or Pool(2, 4096 * MIB, 2_000))
    return Desk(PROVIDER, CHAIN, rates)


def bid_on(desk: Desk, announcement: Announcement, *, funds: Funds = RICH, offer: Offer = OFFER, now: int = NOW) -> Bid:
    made = desk.answer(announcement, offer, funds, now, SALT)
    assert isinstance(made, BidMade), made
    return verify(made.promise.bid, Tag.BID, CHAIN, PROVIDER.key)


def decline_of(desk: Desk, announcement: Announcement, *, funds: Funds = RICH, offer: Offer = OFFER) -> Decline:
    made = desk.answer(announcement, offer, funds, NOW, SALT)
    assert isinstance(made, Declined), made
    return verify(made.decline, Tag.DECLINE, CHAIN, PROVIDER.key)


def test_a_bid_names_price_bond_and_a_start_that_holds() -> None:
    order = make_order()
    bid = bid_on(make_desk(), announce(order))
    assert bid == Bid(
        compute_order_id(CHAIN, order), PROVIDER.key, PRICE, 1, order.closes, order.damages, (),
        order.closes + VALID_MS, SALT,
    )  # fmt: skip


def test_an_order_is_answered_with_one_bid() -> None:
    desk, announcement = make_desk(), announce(make_order())
    bid_on(desk, announcement)
    assert desk.answer(announcement, OFFER, RICH, NOW + 1, bytes(16)) is None


def test_a_broker_that_no_order_holder_names_is_added_by_the_bid() -> None:
    assert bid_on(make_desk(), announce(make_order(holders=()))).holders == (BROKER.key,)


SMALL_HOST = msgspec.structs.replace(OFFER, memory_bytes=256 * MIB, millicores=500, segment_wall=5_000, slots=0)
REFUSALS: list[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any], Reason, int]] = [
    # what, order, spec, desk and offer, reason, nearest
    ("memory", {}, {}, {"offer": SMALL_HOST}, Reason.MEMORY, 256 * MIB),
    ("cores", {}, {"resources": {"memory_bytes": MIB}}, {"offer": SMALL_HOST}, Reason.CORES, 500),
    ("runtime", {}, {"runtime": Runtime("2.7", ())}, {}, Reason.RUNTIME, 0),
    ("level", {}, {"level": Level.NS_CGROUP}, {}, Reason.LEVEL, 0),
    ("wall", {"segment_wall": 3_600_001, "deadline": NOW + 10**8}, {}, {}, Reason.WALL, 3_600_000),
    ("price", {"limit": PRICE - 1}, {}, {}, Reason.PRICE, PRICE),
    ("kind", {"segments": 3}, {"kind": Kind.MAP}, {"policy": Policy(kinds=frozenset({Kind.RUN}))}, Reason.POLICY, 0),
    ("segments", {"segments": 3}, {"kind": Kind.MAP}, {"policy": Policy(segments=2)}, Reason.POLICY, 0),
    ("run of many", {"segments": 3}, {}, {}, Reason.POLICY, 0),
    ("panel", {"panel": 3}, {}, {}, Reason.POLICY, 0),
    ("output", {}, {"resources": {"output_bytes": 2 << 30}}, {}, Reason.POLICY, 0),
    ("denied", {}, {}, {"policy": Policy(denied=frozenset({REQUESTER.key}))}, Reason.POLICY, 0),
    ("not allowed", {}, {}, {"policy": Policy(allowed=frozenset({BROKER.key}))}, Reason.POLICY, 0),
    ("long auction", {"closes": NOW + 45_001, "deadline": NOW + 10**6}, {}, {}, Reason.POLICY, 0),
    ("bond", {}, {}, {"funds": Funds(PRICE - 1, 0, 0)}, Reason.BOND, PRICE - 1),
    ("bond in use", {}, {}, {"funds": Funds(PRICE, PRICE - 1, 0)}, Reason.BOND, 1),
    ("exposed", {}, {}, {"funds": Funds(10 * PRICE, 0, 10 * PRICE - 5)}, Reason.BOND, 5),
    ("no room", {}, {}, {"pool": Pool(0, MIB, 1)}, Reason.BUSY, 0),
]  # fmt: skip


@pytest.mark.parametrize(
    ("order", "spec", "setting", "reason", "nearest"), [r[1:] for r in REFUSALS], ids=[r[0] for r in REFUSALS]
)
def test_a_decline_names_reason_and_nearest_offer(
    order: dict[str, Any], spec: dict[str, Any], setting: dict[str, Any], reason: Reason, nearest: int
) -> None:
    made = make_spec(**spec)
    setting = dict(setting)
    offer, funds = setting.pop("offer", OFFER), setting.pop("funds", RICH)
    announcement = announce(make_order(spec=made, **order), made)
    decline = decline_of(make_desk(**setting), announcement, offer=offer, funds=funds)
    assert (decline.reason, decline.nearest) == (reason, nearest)
    assert decline.text and decline.order == compute_order_id(CHAIN, announcement.order.body)


def test_a_tight_deadline_is_declined_with_the_time_that_would_do() -> None:
    tight = make_order(deadline=NOW + 42_000)
    decline = decline_of(make_desk(), announce(tight))
    assert decline.reason is Reason.DEADLINE
    bid_on(make_desk(), announce(make_order(deadline=tight.closes + decline.nearest)))


def test_provider_serves_neither_itself_nor_its_own_auction() -> None:
    mine = announce(make_order(requester=PROVIDER.key), signer=PROVIDER)
    assert decline_of(make_desk(), mine).reason is Reason.POLICY


CHANGED = make_spec(title="another")
FORGERIES: list[tuple[str, Announcement]] = [
    ("announcement.auctioneer", announce(make_order(auctioneer=REQUESTER.key))),
    ("announcement.spec", announce(make_order(), CHANGED)),
    ("announcement.spec", announce(make_order(kind=Kind.TRAIN))),
    ("announcement.runtime", announce(make_order(runtime=bytes(32)))),
    ("announcement.start", announce(make_order(start=bytes(32)))),
    ("announcement.closes", announce(make_order(), closes=NOW)),
    ("announcement.closes", announce(make_order(), closes=NOW + 2_001)),
    ("signature.order", announce(make_order(), signer=make_signer("stranger"))),
    ("R18.key", announce(make_order(requester=bytes(32)))),
]


@pytest.mark.parametrize(("rule", "announcement"), FORGERIES, ids=[f"{n}-{r[0]}" for n, r in enumerate(FORGERIES)])
def test_what_does_not_hold_together_is_not_answered(rule: str, announcement: Announcement) -> None:
    with pytest.raises(Refused) as caught:
        make_desk().answer(announcement, OFFER, RICH, NOW, SALT)
    assert caught.value.rule == rule


def test_twenty_orders_at_once_on_two_slots_all_get_a_bid_if_their_deadlines_allow() -> None:
    desk, length = make_desk(), OVERHEAD_MS + 10_000
    deadline = NOW + 2_000 + VALID_MS + LEARN_MS + 10 * length + DELIVER_MS
    announcements = [announce(make_order(f"order {n}", deadline=deadline)) for n in range(21)]
    bids = [bid_on(desk, announcement) for announcement in announcements[:20]]
    assert bids[0].earliest == bids[1].earliest < bids[2].earliest <= bids[19].earliest
    decline = decline_of(desk, announcements[20])
    assert decline.reason is Reason.BUSY
    later = make_order("order 20", deadline=deadline + decline.nearest)
    bid_on(desk, announce(later))
    assert decline_of(desk, announce(make_order("order 21", deadline=deadline + decline.nearest - 1))).nearest > 0


def test_an_urgent_order_goes_before_those_that_can_wait_and_promises_no_later_start() -> None:
    desk = make_desk(pool=Pool(1, 4096 * MIB, 2_000))
    patient = [make_order(f"patient {n}", deadline=NOW + 600_000) for n in range(5)]
    for order in patient:
        bid_on(desk, announce(order))
    urgent = make_order("urgent", **TIGHT)
    bid = bid_on(desk, announce(urgent))
    booking = desk.capacity.get(compute_order_id(CHAIN, urgent))
    assert booking is not None
    assert bid.earliest <= booking.start and booking.end <= booking.due
    bookings = [desk.capacity.get(compute_order_id(CHAIN, order)) for order in patient]
    assert all(one is not None and booking.end <= one.start and one.end <= one.due for one in bookings)


SPANS = st.lists(st.integers(35_000, 200_000), min_size=1, max_size=12)


@given(SPANS, st.integers(1, 3))
def test_what_a_busy_provider_names_as_nearest_deadline_gets_its_bid(spans: list[int], slots: int) -> None:
    desk = make_desk(pool=Pool(slots, 4096 * MIB, 4_000))
    windows = msgspec.structs.replace(WINDOWS, start=10_000)
    for number, span in enumerate(spans):
        order = make_order(f"order {number}", deadline=NOW + span, windows=windows)
        made = desk.answer(announce(order), OFFER, RICH, NOW, SALT)
        if isinstance(made, Declined) and made.decline.body.reason is Reason.BUSY:
            nearest = made.decline.body.nearest
            assert nearest > 0
            bid_on(desk, announce(msgspec.structs.replace(order, deadline=order.deadline + nearest)))


def test_bids_that_lost_or_ran_out_give_room_and_bond_back() -> None:
    desk, funds = make_desk(pool=Pool(1, 4096 * MIB, 2_000)), Funds(PRICE, 0, 0)
    first, second = make_order("first", **TIGHT), make_order("second", **TIGHT)
    bid_on(desk, announce(first), funds=funds)
    assert decline_of(desk, announce(second), funds=funds).reason is Reason.BOND
    assert decline_of(desk, announce(second)).reason is Reason.BUSY
    desk.release(compute_order_id(CHAIN, first))
    bid_on(desk, announce(second), funds=funds)
    later = NOW + 2_000 + VALID_MS + LEARN_MS + 1
    assert desk.forget(later) == [compute_order_id(CHAIN, second)]
    third = make_order("third", closes=later + 2_000, deadline=later + 102_000)
    bid_on(desk, announce(third), funds=funds, now=later)


def test_a_promise_of_an_earlier_life_is_booked_again_while_it_counts() -> None:
    order = make_order(**TIGHT)
    order_id = compute_order_id(CHAIN, order)
    made = make_desk().answer(announce(order), OFFER, RICH, NOW, SALT)
    assert isinstance(made, BidMade)
    again = make_desk(pool=Pool(1, 4096 * MIB, 2_000))
    assert again.recover(made.promise, order_id, NOW + 1_000)
    assert decline_of(again, announce(make_order("other", **TIGHT))).reason is Reason.BUSY
    assert not make_desk().recover(made.promise, order_id, NOW + 60_000)
    late = make_desk()
    late.confirm(made.promise, order_id, 1, NOW + 60_000)
    assert late.capacity.take([order_id], NOW + 60_000) == [order_id]


def test_a_confirmed_lease_counts_by_the_chain_and_not_twice() -> None:
    desk, order = make_desk(), make_order()
    made = desk.answer(announce(order), OFFER, Funds(2 * PRICE, 0, 0), NOW, SALT)
    assert isinstance(made, BidMade)
    desk.confirm(made.promise, compute_order_id(CHAIN, order), 1, NOW + 2_000)
    bid_on(desk, announce(make_order("second")), funds=Funds(2 * PRICE, PRICE // 10, PRICE))


def test_under_second_the_limit_is_what_counts_against_the_bond() -> None:
    second = announce(make_order(rule=AwardRule.SECOND, limit=5 * PRICE))
    assert decline_of(make_desk(), second, funds=Funds(5 * PRICE - 1, 0, 0)).reason is Reason.BOND
    bid_on(make_desk(), second, funds=Funds(5 * PRICE, 0, 0))


@given(st.integers(0, 10**6), st.integers(0, 10**4), st.integers(1, 10**5), st.integers(1, 10**6))
def test_price_covers_each_rate_and_grows_with_what_is_asked(base: int, core: int, factor: int, wall: int) -> None:
    prices = Prices(base, core, 3, factor)
    price = compute_price(prices, RESOURCES, wall)
    exact = (base + core * wall / 1_000 + 3 * wall / 1_000 / 2) * factor / BPS
    assert exact <= price <= exact + 2 * factor / BPS + 1
    assert compute_price(prices, RESOURCES, wall + 1_000) >= price


@pytest.mark.parametrize(
    ("changes", "bond"),
    [
        ({"damages": 1_000}, 1_000),
        ({"damages": 0}, 0),
        ({"damages": 0, "panel": 3}, 45_000),
        ({"damages": 500, "panel": 1, "segments": 4}, 500 + 3_750),
        ({"damages": 0, "panel": 1, "segments": 2, "weights": (1, 2)}, 10_000),
    ],
)
def test_bond_covers_damages_and_the_deposit_of_the_dearest_segment(changes: dict[str, Any], bond: int) -> None:
    assert compute_bond(make_order(**changes)) == bond
