"""One auction played by hand: events in, effects kept, replayable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from broker.auction.admission import check_delivery
from broker.auction.events import (
    AuctionEvent,
    BidArrived,
    Cancelled,
    DeclineArrived,
    DeliveryArrived,
    Inquire,
    LeaseChanged,
    Notify,
    OpenFinal,
    OrderPosted,
    Surveyed,
)
from broker.auction.lots import NO_RECEIPT, Lot
from broker.auction.machine import Auction
from broker.auction.matching import Survey
from broker.protocol.api import Announced, Awarded, Cancellation, Delivered, Delivery, Ended
from broker.protocol.jobs import JobSpec
from broker.protocol.messages import Reason
from chain.base.codec import encode
from chain.base.hashing import Tag
from chain.base.keys import Signer
from chain.ledger.terms.agreement import Kind, Order, compute_order_id
from chain.ledger.terms.outcome import Cause
from chain.ledger.terms.work import compute_receipt_id
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
    make_records,
    make_spec,
    make_survey,
    sign_delivery,
    sign_order,
)

ORDER = make_order()


class Play:
    """A machine, what it was told, and what it wanted done."""

    def __init__(self, order: Order = ORDER, survey: Survey | None = None, spec: JobSpec | None = None) -> None:
        self.order = order
        self.auction = Auction(BROKER, HOUSE)
        self.now = NOW
        self.told: list[tuple[AuctionEvent | None, int]] = []
        self.effects: list[Any] = []
        self.survey = survey or make_survey(*PROVIDERS[:2])
        self.tell(OrderPosted(sign_order(order), spec or make_spec(kind=order.kind), self.survey, RICH))

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

    def wait(self) -> list[Any]:
        """Until the next deadline of the machine's own."""
        due = self.auction.wake_at()
        assert due is not None
        return self.wake(due - self.now)

    def replay(self) -> Auction:
        auction = Auction(BROKER, HOUSE)
        for event, now in self.told:
            if event is None:
                auction.wake(now)
            else:
                auction.handle(event, now)
        return auction

    def bid(self, number: int = 0, price: int = 1_000_000, **changes: Any) -> list[Any]:
        """A provider's bid for the present round; it stays valid a little beyond its close."""
        closes = self.auction.round.closes if self.auction.round else self.order.closes
        salt = closes.to_bytes(16, "big")
        times = {"valid_until": closes + 10_000, "salt": salt}
        return self.tell(BidArrived(make_bid(self.order, PROVIDERS[number], price=price, **{**times, **changes}), True))

    def decline(self, number: int = 0, reason: Reason = Reason.BUSY, nearest: int = 0) -> list[Any]:
        return self.tell(DeclineArrived(make_decline(self.order, PROVIDERS[number], reason, nearest)))

    def survey_again(self, *matching: Signer) -> list[Any]:
        """Answer the machine's newest question who fits."""
        asked = [one for one in self.effects if isinstance(one, Inquire)][-1]
        return self.tell(Surveyed(asked.round, make_survey(*matching)))

    def lot(self, number: int = -1) -> Lot:
        """An award, by default the newest."""
        return list(self.auction.lots.values())[number]

    def lease(self, number: int = -1) -> bytes:
        return self.lot(number).lease if self.auction.lots else bytes(32)

    def open(self, number: int = -1) -> list[Any]:
        return self.tell(OpenFinal(self.lease(number), 5))

    def delivery(self, number: int = -1, **changes: Any) -> Delivery:
        """A whole receipt, as the desk hands it on."""
        made = make_delivery(self.lot(number).award.body, find_signer(self.lot(number)), **changes)
        return replace(made, blobs=())

    def deliver(self, number: int = -1, **changes: Any) -> list[Any]:
        return self.tell(DeliveryArrived(self.lease(number), self.delivery(number, **changes), 100))

    def hand_in(self, count: int, number: int = -1, cause: Cause = Cause.OK) -> list[Any]:
        """A receipt over the first `count` segments of a lot, checked and trimmed as the desk does; `cause` is how the
        last of them ended.
        """
        lot = self.lot(number)
        records = make_records(lot.award.body, find_signer(lot), count, self.order.kind, cause=cause)
        made = sign_delivery(lot.award.body, records, find_signer(lot), since=len(lot.handed.records))
        kept = check_delivery(CHAIN, lot.agreed, lot.handed, made, self.now)
        return self.tell(DeliveryArrived(lot.lease, kept, 100))

    def change(self, state: str, served: int = 0, number: int = -1, held: int | None = None) -> list[Any]:
        """The chain's word on a lot, whose receipt there is the one over `served` segments that was handed in."""
        lot = self.lot(number)
        part = lot.part.count
        if held is None:
            held = served if state == "delivered" else part
        receipt, cause = self.find_receipt(lot, served)
        return self.tell(LeaseChanged(lot.lease, state, 9, served, held, cause, receipt))

    def find_receipt(self, lot: Lot, served: int) -> tuple[bytes, str]:
        """Id and cause of the receipt over so many segments of a lot."""
        for one in self.auction.news:
            receipt = one.delivery.receipt.body if isinstance(one, Delivered) else None
            if receipt is not None and (receipt.lease, receipt.count) == (lot.lease, served):
                return compute_receipt_id(CHAIN, receipt), receipt.cause.value
        return NO_RECEIPT, "ok" if served else ""


def find_signer(lot: Lot) -> Signer:
    return next(one for one in PROVIDERS if one.key == lot.provider)


def kinds(effects: Sequence[Any]) -> list[type]:
    return [type(one.news) if isinstance(one, Notify) else type(one) for one in effects]


def make_map(segments: int = 10, parallelism: int = 2, tolerance: int = 0, **order: Any) -> Play:
    """A `map` among several providers, three of whom fit; time enough for some rounds."""
    spec = make_spec(kind=Kind.MAP, parallelism=parallelism, tolerance=tolerance)
    far: dict[str, Any] = {"deadline": NOW + 3_000_000, "expiry": NOW + 4_000_000, "cap": 100_000_000}
    made = make_order(spec=spec, segments=segments, **{**far, **order})
    return Play(made, make_survey(*PROVIDERS[:3]), spec)


def make_train(segments: int = 20, **order: Any) -> Play:
    """A `train` that two providers could do."""
    spec = make_spec(kind=Kind.TRAIN)
    far: dict[str, Any] = {"deadline": NOW + 3_000_000, "expiry": NOW + 4_000_000, "cap": 100_000_000}
    return Play(make_order(spec=spec, segments=segments, **{**far, **order}), None, spec)


def opening() -> Play:
    play = Play()
    play.bid(0)
    play.bid(1, 2_000_000)
    return play


def leased() -> Play:
    play = opening()
    play.open()
    return play


def find_spans(play: Play, kind: type = Awarded) -> list[tuple[int, int]]:
    """Ranges of all awards, or of what was announced, in order."""
    if kind is Announced:
        return [
            (one.first, one.count) for news in play.auction.news if isinstance(news, Announced) for one in news.spans
        ]
    awards = [one.award.body for one in play.auction.news if isinstance(one, Awarded)]
    return [(award.first, award.count) for award in awards]


def find_end(play: Play) -> Ended:
    """How the job ended."""
    last = play.auction.news[-1]
    assert isinstance(last, Ended), last
    return last


def start_map(segments: int = 10, tolerance: int = 0, **order: Any) -> Play:
    """A map whose two halves are leased to the first two providers."""
    play = make_map(segments, tolerance=tolerance, **order)
    play.bid(0, 1_000_000)
    play.bid(1, 900_000)
    play.decline(2, Reason.PRICE, 3_000_000)
    play.open(0)
    play.open(1)
    return play


def start_train(segments: int = 20, **order: Any) -> Play:
    play = make_train(segments, **order)
    play.bid(0)
    play.bid(1, 1_500_000)
    play.open()
    return play


def next_round(play: Play, *bids: int) -> None:
    """Survey, announcement and bids of the next round, whatever pause comes before it."""
    if not any(isinstance(one, Inquire) and one.round == play.auction._rounds for one in play.effects):
        play.wait()
    play.survey_again(*(PROVIDERS[number] for number in bids))
    for number in bids:
        play.bid(number)


def list_lots(play: Play) -> list[Lot]:
    """All awards, oldest first."""
    return list(play.auction.lots.values())


def cancel(order: Order = ORDER) -> Cancelled:
    body = Cancellation(compute_order_id(CHAIN, order), REQUESTER.key, NOW)
    return Cancelled(REQUESTER.sign(Tag.CANCELLATION, CHAIN, body))
