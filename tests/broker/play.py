"""One auction played by hand: events in, effects kept, replayable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from broker.auction.events import (
    AuctionEvent,
    BidArrived,
    Cancelled,
    DeclineArrived,
    DeliveryArrived,
    Notify,
    OpenFinal,
    OrderPosted,
)
from broker.auction.machine import Auction
from broker.auction.matching import Survey
from broker.protocol.api import (
    Cancellation,
)
from broker.protocol.messages import Reason
from chain.base.codec import encode
from chain.base.hashing import Tag
from chain.ledger.terms.agreement import Order, compute_order_id
from tests.broker.world import (
    BROKER,
    CHAIN,
    HOUSE,
    NOW,
    PROVIDERS,
    REQUESTER,
    RICH,
    make_bid,
    make_decline,
    make_delivery,
    make_order,
    make_spec,
    make_survey,
    sign_order,
)

ORDER = make_order()


class Play:
    """A machine, what it was told, and what it wanted done."""

    def __init__(self, order: Order = ORDER, survey: Survey | None = None) -> None:
        self.order = order
        self.auction = Auction(BROKER, HOUSE)
        self.now = NOW
        self.told: list[tuple[AuctionEvent | None, int]] = []
        self.effects: list[Any] = []
        self.tell(OrderPosted(sign_order(order), make_spec(), survey or make_survey(*PROVIDERS[:2]), RICH))

    def tell(self, event: AuctionEvent, later: int = 0) -> list[Any]:
        """As the driver: due deadlines first, then the event. Events go through their stored form."""
        self.now += later
        got = self.wake()
        stored: AuctionEvent = msgspec.msgpack.decode(encode(event), type=AuctionEvent)
        self.told.append((stored, self.now))
        got += self.auction.handle(stored, self.now)
        self.effects += got
        return got

    def wake(self, later: int = 0) -> list[Any]:
        self.now += later
        due = self.auction.wake_at()
        if due is None or due > self.now:
            return []
        self.told.append((None, self.now))
        got = list(self.auction.wake(self.now))
        self.effects += got if later else []
        return got

    def replay(self) -> Auction:
        auction = Auction(BROKER, HOUSE)
        for event, now in self.told:
            if event is None:
                auction.wake(now)
            else:
                auction.handle(event, now)
        return auction

    def bid(self, number: int = 0, price: int = 1_000_000, **changes: Any) -> list[Any]:
        return self.tell(BidArrived(make_bid(self.order, PROVIDERS[number], price=price, **changes), True))

    def decline(self, number: int = 0, reason: Reason = Reason.BUSY, nearest: int = 0) -> list[Any]:
        return self.tell(DeclineArrived(make_decline(self.order, PROVIDERS[number], reason, nearest)))

    def lease(self) -> bytes:
        return self.auction.lease

    def open(self) -> list[Any]:
        return self.tell(OpenFinal(self.lease(), 5))

    def delivery(self, **changes: Any) -> Any:
        award = self.auction.award
        assert award is not None and self.auction.winner is not None
        signer = next(one for one in PROVIDERS if one.key == self.auction.winner.body.provider)
        return make_delivery(award.body, signer, **changes)

    def deliver(self, **changes: Any) -> list[Any]:
        return self.tell(DeliveryArrived(self.lease(), self.delivery(**changes), 100))


def kinds(effects: Sequence[Any]) -> list[type]:
    return [type(one.news) if isinstance(one, Notify) else type(one) for one in effects]


def opening() -> Play:
    play = Play()
    play.bid(0)
    play.bid(1, 2_000_000)
    return play


def leased() -> Play:
    play = opening()
    play.open()
    return play


def cancel() -> Cancelled:
    body = Cancellation(compute_order_id(CHAIN, ORDER), REQUESTER.key, NOW)
    return Cancelled(REQUESTER.sign(Tag.CANCELLATION, CHAIN, body))
