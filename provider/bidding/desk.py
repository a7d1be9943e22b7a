"""The desk answers an announced order with a bid or a decline, and keeps what its bids promise.

A bid is valid until the auction's close and a little more (the capacity stays booked that long), never longer than
the order could still be opened (R3 c, d). Not here: storing a bid before it is sent, the bus, what happens once a
lease is open (`provider.work`).
"""

from __future__ import annotations

import msgspec

from broker.auction.matching import find_mismatches
from broker.protocol.jobs import JobSpec
from broker.protocol.messages import Announcement, Decline, Offer, Reason
from chain.base.hashing import Tag
from chain.base.keys import Signed, Signer
from chain.base.units import checked, compute_share, format_credits
from chain.ledger.terms.agreement import AwardRule, Bid, Order
from provider.bidding.capacity import Booking, Capacity, Need, Pool, Request
from provider.bidding.policy import Policy, Refusal, check_announcement, compute_bond, find_refusal
from provider.bidding.pricing import Prices, compute_price

VALID_MS = 10_000
"""How long after the order's close a bid stays valid, at most (design.md section 4)."""

LEARN_MS = 2_000
"""How long after a bid's end a lease may still become known: block time and clocks differ, blocks take time."""

OVERHEAD_MS = 5_000
"""Fetching, starting and tearing down, on top of the wall limits."""

DELIVER_MS = 5_000
"""Between the end of the work and the deadline: storing the outputs, and the transaction."""


class Rates(msgspec.Struct, frozen=True):
    """What the desk goes by: prices, house rules, the pool it may promise."""

    prices: Prices
    policy: Policy
    pool: Pool


class Funds(msgspec.Struct, frozen=True):
    """What the chain says of this provider, in micro-credits: registered bond, part of it set aside, sum of prices
    locked in its open leases.
    """

    bond: int
    set_aside: int
    exposed: int


class Promise(msgspec.Struct, frozen=True, array_like=True):
    """A bid and all that is needed to serve it, kept on disk before the bid is sent."""

    announcement: Announcement
    bid: Signed[Bid]


class BidMade(msgspec.Struct, frozen=True):
    """A bid: store `promise`, then send its bid."""

    promise: Promise
    booking: Booking


class Declined(msgspec.Struct, frozen=True):
    """A signed refusal to be sent."""

    decline: Signed[Decline]


class Desk:
    """Answers announcements for one provider. `capacity` is also used by whoever starts the work."""

    def __init__(self, signer: Signer, chain_id: bytes, rates: Rates) -> None:
        self.capacity = Capacity(rates.pool)
        self._signer = signer
        self._chain_id = chain_id
        self._rates = rates
        self._stakes: dict[bytes, tuple[int, int]] = {}

    def answer(
        self, announcement: Announcement, offer: Offer, funds: Funds, now: int, salt: bytes
    ) -> BidMade | Declined | None:
        """A bid with its booking, or a decline; None for an order that was answered with a bid before. `salt` is 16
        random bytes.

        Raises `Refused` where the announcement does not hold together: nothing is to be answered.
        """
        order_id = check_announcement(announcement, self._chain_id, now)
        if self.capacity.get(order_id) is not None:
            return None
        order, spec = announcement.order.body, announcement.spec
        price = compute_price(self._rates.prices, spec.resources, order.segment_wall)
        refusal = (
            find_refusal(self._rates.policy, self._signer.key, announcement, now)
            or _find_misfit(offer, order, spec, now)
            or _find_price_refusal(order, price)
            or self._find_bond_refusal(order, price, funds, now)
        )
        if refusal is None:
            made = self._bid(order_id, announcement, price, now, salt)
            if isinstance(made, BidMade):
                self._stakes[order_id] = _compute_stake(order, price)
                return made
            refusal = made
        return Declined(self._sign_decline(order_id, refusal))

    def recover(self, promise: Promise, order_id: bytes, now: int) -> bool:
        """Book a bid of an earlier life again, if it can still open a lease."""
        order, bid = promise.announcement.order.body, promise.bid.body
        request = make_request(order_id, order, promise.announcement.spec, bid.valid_until)
        if request.runs_out < now or self.capacity.reserve(request, now) is None:
            return False
        self._stakes[order_id] = _compute_stake(order, bid.price)
        return True

    def confirm(self, promise: Promise, order_id: bytes, now: int) -> None:
        """A lease of this order is open: its booking stays until `release`, the chain counts its stake from now on."""
        if not self.capacity.confirm(order_id, now):
            order, valid_until = promise.announcement.order.body, promise.bid.body.valid_until
            self.capacity.adopt(make_request(order_id, order, promise.announcement.spec, valid_until), now)
        self._stakes.pop(order_id, None)

    def release(self, order_id: bytes) -> None:
        """The bid lost, was withdrawn, or its lease is over."""
        self.capacity.release(order_id)
        self._stakes.pop(order_id, None)

    def forget(self, now: int) -> list[bytes]:
        """Orders whose bids ran out unanswered: their promises may be dropped."""
        self.capacity.expire(now)
        gone = [order_id for order_id in self._stakes if self.capacity.get(order_id) is None]
        for order_id in gone:
            del self._stakes[order_id]
        return gone

    def _bid(self, order_id: bytes, announcement: Announcement, price: int, now: int, salt: bytes) -> BidMade | Refusal:
        order, spec = announcement.order.body, announcement.spec
        valid_until = compute_validity(order)
        if valid_until <= announcement.closes:
            need = order.windows.start + compute_work(order) + LEARN_MS + DELIVER_MS
            text = f"the deadline leaves too little time: {need} ms from the close of the auction are needed"
            return Refusal(Reason.DEADLINE, need, text)
        request = make_request(order_id, order, spec, valid_until)
        earliest = self.capacity.find_start(request.need, announcement.closes, request.duration, now)
        booking = self.capacity.reserve(request, now)
        if booking is None:
            late = self.capacity.find_start(request.need, request.ready, request.duration, now) + request.duration
            missing = max(0, late - request.due)
            text = f"no room before the deadline; by present plans it would have to be {missing} ms later"
            return Refusal(Reason.BUSY, missing, text)
        holders = () if announcement.broker in order.holders else (announcement.broker,)
        start = min(earliest, booking.start)
        bid = Bid(order_id, self._signer.key, price, 1, start, compute_bond(order), holders, valid_until, salt)
        return BidMade(Promise(announcement, self._signer.sign(Tag.BID, self._chain_id, bid)), booking)

    def _find_bond_refusal(self, order: Order, price: int, funds: Funds, now: int) -> Refusal | None:
        """R3 (e): the bond must be free; R14: prices locked in open leases stay within the registered bond (leverage
        1).
        """
        self.forget(now)
        bond, stake = _compute_stake(order, price)
        free = funds.bond - funds.set_aside - sum(other for other, _ in self._stakes.values())
        room = funds.bond - funds.exposed - sum(other for _, other in self._stakes.values())
        if bond <= free and stake <= room:
            return None
        nearest = max(0, min(room, free))
        need = format_credits(max(bond, stake))
        text = f"the bond covers {format_credits(nearest)} more credits at present, this order needs {need}"
        return Refusal(Reason.BOND, nearest, text)

    def _sign_decline(self, order_id: bytes, refusal: Refusal) -> Signed[Decline]:
        body = Decline(order_id, self._signer.key, refusal.reason, refusal.nearest, refusal.text)
        return self._signer.sign(Tag.DECLINE, self._chain_id, body)


def compute_work(order: Order) -> int:
    """Longest time the whole range takes on one lane, in milliseconds."""
    return checked(order.segments * order.segment_wall, "time for the work")


def compute_validity(order: Order) -> int:
    """Until when a bid on `order` is valid: as long as its lease could open (R3 c, d) and be served from a standing
    start, at most `VALID_MS` after the close.
    """
    openable = order.deadline - order.windows.start - compute_work(order)
    servable = order.deadline - DELIVER_MS - OVERHEAD_MS - compute_work(order) - LEARN_MS
    return max(0, min(order.closes + VALID_MS, openable, servable))


def make_request(order_id: bytes, order: Order, spec: JobSpec, valid_until: int) -> Request:
    """What has to be booked for a bid on the whole of `order`."""
    resources = spec.resources
    runs_out = valid_until + LEARN_MS
    return Request(
        key=order_id,
        need=Need(resources.memory_bytes, resources.millicores),
        ready=runs_out,
        duration=OVERHEAD_MS + compute_work(order),
        due=order.deadline - DELIVER_MS,
        runs_out=runs_out,
    )


def _find_price_refusal(order: Order, price: int) -> Refusal | None:
    if price <= order.limit:
        return None
    asked, limit = format_credits(price), format_credits(order.limit)
    text = f"{asked} credits per segment is the price here, the order's limit is {limit}"
    return Refusal(Reason.PRICE, price, text)


def _compute_stake(order: Order, price: int) -> tuple[int, int]:
    """Bond set aside and price locked if this bid wins; under `second` the price may be the order's limit (R3 b)."""
    highest = order.limit if order.rule is AwardRule.SECOND else price
    total = checked(highest * (sum(order.weights) if order.weights else order.segments), "price")
    return compute_share(total, compute_bond(order)), total


def _find_misfit(offer: Offer, order: Order, spec: JobSpec, now: int) -> Refusal | None:
    """The first clause of the order that the standing offer does not meet."""
    mismatches = find_mismatches(offer, order, spec, now)
    return Refusal(mismatches[0].reason, mismatches[0].nearest, mismatches[0].text) if mismatches else None
