"""Rounds of an order: what may be announced, for how much a bid has to be good, one part of an order at a time."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.auction.matching import compute_list_price
from broker.auction.scoring import BID_GRACE, find_fault
from broker.protocol.messages import PASSING, Announcement, Reason
from chain.base.errors import Refused
from chain.base.hashing import Tag
from chain.base.keys import verify
from chain.base.units import BPS
from chain.ledger.terms.agreement import Bid, Kind, compute_order_id
from chain.ledger.terms.work import Span
from provider.bidding.capacity import Pool
from provider.bidding.desk import DELIVER_MS, LEARN_MS, OVERHEAD_MS, VALID_MS, BidMade, Declined, Desk, Funds, Rates
from provider.bidding.policy import MAX_AUCTION_MS, Policy
from provider.bidding.pricing import Prices, compute_price, make_tariff
from tests.provider.scene import CHAIN, MIB, NOW, OFFER, PROVIDER, RESOURCES, announce, make_order, make_spec

RICH = Funds(10_000_000_000, 0, 0)
MAP, TRAIN = make_spec(kind=Kind.MAP), make_spec(kind=Kind.TRAIN)
LATER = NOW + 20_000
"""When a later round is announced: the order's own auction closed long ago."""

WALL = 1_000


def make_desk(pool: Pool | None = None) -> Desk:
    return Desk(PROVIDER, CHAIN, Rates(Prices(), Policy(), pool or Pool(2, 4096 * MIB, 2_000)))


def offer_round(number: int = 1, spans: tuple[Span, ...] = (Span(6, 4),), **changes: Any) -> Announcement:
    """A later round of a map of ten segments."""
    order = make_order(spec=MAP, segments=10, segment_wall=WALL, **changes)
    return announce(order, MAP, round=number, spans=spans, closes=LATER + 2_000)


def bid_on(desk: Desk, announcement: Announcement, now: int = LATER, funds: Funds = RICH) -> Bid:
    made = desk.answer(announcement, OFFER, funds, now, bytes(16))
    assert isinstance(made, BidMade), made
    return verify(made.promise.bid, Tag.BID, CHAIN, PROVIDER.key)


def test_a_later_round_may_close_behind_the_order_and_its_bids_are_valid_from_then() -> None:
    announcement = offer_round()
    bid = bid_on(make_desk(), announcement)
    assert announcement.closes > announcement.order.body.closes
    assert bid.valid_until == announcement.closes + VALID_MS
    order = announcement.order.body
    assert find_fault(order, bid, 200, LATER, part=Span(6, 4), closed=LATER) == ""


@given(st.integers(1, MAX_AUCTION_MS))
def test_a_round_that_closes_at_once_takes_the_bid_too(span: int) -> None:
    announcement = msgspec.structs.replace(offer_round(deadline=LATER + 600_000), closes=LATER + span)
    bid = bid_on(make_desk(), announcement)
    assert announcement.closes < bid.valid_until <= LATER + BID_GRACE


@pytest.mark.parametrize(
    ("spec", "changes"),
    [
        (MAP, {"spans": (Span(0, 9),)}),
        (MAP, {"spans": (Span(0, 11),)}),
        (MAP, {"spans": (Span(0, 5), Span(5, 5))}),
        (MAP, {"round": 1, "spans": (Span(9, 2),)}),
        (MAP, {"round": 1, "spans": (Span(3, 0),)}),
        (MAP, {"round": 1, "spans": (Span(4, 2), Span(1, 1))}),
        (MAP, {"round": 1, "spans": (Span(4, 2), Span(5, 2))}),
        (TRAIN, {"round": 1, "spans": (Span(4, 2),)}),
        (TRAIN, {"round": 1, "spans": (Span(4, 2), Span(8, 2))}),
    ],
    ids=[
        "less in round 0", "more in round 0", "pieces in round 0", "beyond the order", "empty", "backwards",
        "overlapping", "the middle of a train", "pieces of a train",
    ],
)  # fmt: skip
def test_spans_that_the_order_has_not_are_not_answered(spec: Any, changes: dict[str, Any]) -> None:
    order = make_order(spec=spec, segments=10, segment_wall=WALL)
    with pytest.raises(Refused) as caught:
        make_desk().answer(announce(order, spec, **changes), OFFER, RICH, NOW, bytes(16))
    assert caught.value.rule == "announcement.spans"


@pytest.mark.parametrize(
    ("rule", "now", "changes"),
    [
        ("announcement.closes", LATER + 2_000, {}),
        ("announcement.closes", LATER, {"closes": LATER + MAX_AUCTION_MS + 1}),
        ("announcement.closes", LATER, {"round": 0, "spans": (Span(0, 10),)}),
        ("announcement.expiry", NOW + 702_000, {"closes": NOW + 703_000}),
    ],
    ids=["over", "too long", "round 0 behind the order's close", "expired"],
)
def test_a_round_at_the_wrong_time_is_not_answered(rule: str, now: int, changes: dict[str, Any]) -> None:
    announcement = msgspec.structs.replace(offer_round(), **changes)
    with pytest.raises(Refused) as caught:
        make_desk().answer(announcement, OFFER, RICH, now, bytes(16))
    assert caught.value.rule == rule


def test_a_bid_is_good_for_the_largest_span_and_the_booking_shrinks_to_the_award() -> None:
    desk = make_desk()
    announcement = offer_round(spans=(Span(0, 2), Span(3, 5), Span(9, 1)))
    made = desk.answer(announcement, OFFER, RICH, LATER, bytes(16))
    assert isinstance(made, BidMade) and made.booking.duration == OVERHEAD_MS + 5 * WALL
    desk.confirm(made.promise, made.promise.bid.body.order, 2, LATER + 3_000)
    booked = desk.capacity.get(made.promise.bid.body.order)
    assert booked is not None and booked.duration == OVERHEAD_MS + 2 * WALL


def test_a_span_that_would_miss_the_deadline_is_declined_and_a_shorter_one_is_not() -> None:
    close = LATER + 2_000
    tight = {"deadline": close + OVERHEAD_MS + DELIVER_MS + LEARN_MS + 1_000 + 4 * WALL, "windows": short_start()}
    bid_on(make_desk(), offer_round(spans=(Span(0, 4), Span(5, 3)), **tight))
    made = make_desk().answer(offer_round(spans=(Span(0, 5),), **tight), OFFER, RICH, LATER, bytes(16))
    assert isinstance(made, Declined) and made.decline.body.reason in (Reason.BUSY, Reason.DEADLINE)


def short_start() -> Any:
    return msgspec.structs.replace(make_order().windows, start=10_000)


def test_the_bond_covers_the_dearest_span() -> None:
    price = compute_price(Prices(), RESOURCES, WALL)
    whole = offer_round(spans=(Span(0, 2), Span(3, 5)), weights=(1, 1, 1, 1, 1, 1, 1, 1, 9, 1))
    made = make_desk().answer(whole, OFFER, Funds(5 * price, 0, 0), LATER, bytes(16))
    assert isinstance(made, BidMade), "five segments of weight one"
    dear = offer_round(spans=(Span(0, 5), Span(8, 1)), weights=(1, 1, 1, 1, 1, 1, 1, 1, 9, 1))
    made = make_desk().answer(dear, OFFER, Funds(9 * price - 1, 0, 0), LATER, bytes(16))
    assert isinstance(made, Declined) and made.decline.body.reason is Reason.BOND


@pytest.mark.parametrize("bound", [0, 2])
def test_one_part_of_an_order_at_a_time(bound: int) -> None:
    made = make_desk().answer(offer_round(), OFFER, RICH, LATER, bytes(16), bound)
    assert isinstance(made, Declined)
    assert made.decline.body.reason is Reason.BUSY and Reason.BUSY in PASSING


def test_the_same_round_is_answered_once() -> None:
    desk, announcement = make_desk(), offer_round()
    bid_on(desk, announcement)
    assert desk.answer(announcement, OFFER, RICH, LATER, bytes(16)) is None
    assert make_desk().answer(announcement, OFFER, RICH, LATER, bytes(16), 1) is None


def test_a_forged_round_is_an_error_even_while_another_one_is_under_way() -> None:
    with pytest.raises(Refused):
        make_desk().answer(offer_round(spans=(Span(9, 9),)), OFFER, RICH, LATER, bytes(16), 0)


def test_a_promise_of_a_later_round_is_booked_again() -> None:
    desk, announcement = make_desk(), offer_round()
    made = desk.answer(announcement, OFFER, RICH, LATER, bytes(16))
    assert isinstance(made, BidMade)
    order_id = compute_order_id(CHAIN, announcement.order.body)
    again = make_desk()
    assert again.recover(made.promise, order_id, LATER + 1_000)
    booked = again.capacity.get(order_id)
    assert booked is not None and booked.duration == OVERHEAD_MS + 4 * WALL
    assert not make_desk().recover(made.promise, order_id, LATER + 30_000)


RATE = st.integers(0, 10**6)


@given(RATE, RATE, RATE, st.integers(1, 10**5), st.integers(1, 10**6))
def test_rounding_alone_makes_a_bid_dearer_than_the_list(
    base: int, core: int, gib: int, factor: int, wall: int
) -> None:
    prices = Prices(base, core, gib, factor)
    listed = compute_list_price(make_tariff(prices), RESOURCES, wall)
    assert compute_price(prices, RESOURCES, wall) <= listed + 2 * factor // BPS + 1
