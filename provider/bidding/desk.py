"""The desk answers an announced order with a bid or a decline, and keeps what its bids promise.

A bid is valid until its round's close and a little more (the capacity stays booked that long), never longer than the
order could still be opened (R3 c, d). Nobody knows among how many bids a round is divided, so each bid is good for the
largest span on offer; once the lease is open, the booking shrinks to what was awarded. Not here: storing a bid before
it is sent, the bus, what happens once a lease is open (`provider.work`).
"""

from __future__ import annotations

import msgspec

from broker.auction.matching import find_mismatches
from broker.auction.scoring import compute_weight
from broker.protocol.jobs import JobSpec
from broker.protocol.messages import Announcement, Decline, Offer, Reason
from chain.base.hashing import Tag
from chain.base.keys import Signed, Signer
from chain.base.units import checked, compute_share, format_credits
from chain.ledger.terms.agreement import AwardRule, Bid, Order
from chain.ledger.terms.work import Span
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
        self,
        announcement: Announcement,
        offer: Offer,
        funds: Funds,
        now: int,
        salt: bytes,
        bound: int | None = None,
    ) -> BidMade | Declined | None:
        """A bid with its booking, or a decline; None for a round that was answered with a bid before. `salt` is 16
        random bytes; `bound` is the round of a bid on this order that still counts, if there is one, or a lease of it.

        Raises `Refused` where the announcement does not hold together: nothing is to be answered.
        """
        order_id = check_announcement(announcement, self._chain_id, now)
        if bound is not None and bound != announcement.round:
            text = "another part of this order is promised or under way here; once that is over there may be a bid"
            return Declined(self._sign_decline(order_id, Refusal(Reason.BUSY, 0, text)))
        if bound is not None or self.capacity.get(order_id) is not None:
            return None
        order, spec, largest = announcement.order.body, announcement.spec, find_largest(announcement)
        price = compute_price(self._rates.prices, spec.resources, order.segment_wall)
        refusal = (
            find_refusal(self._rates.policy, self._signer.key, announcement, now)
            or _find_misfit(offer, order, spec, now, largest.count)
            or _find_price_refusal(order, price)
            or self._find_bond_refusal(announcement, price, funds, now)
        )
        if refusal is None:
            made = self._bid(order_id, announcement, price, now, salt)
            if isinstance(made, BidMade):
                self._stakes[order_id] = _compute_stake(announcement, price)
                return made
            refusal = made
        return Declined(self._sign_decline(order_id, refusal))

    def recover(self, promise: Promise, order_id: bytes, now: int) -> bool:
        """Book a bid of an earlier life again, if it can still open a lease."""
        request = make_request(promise.announcement, promise.bid.body)
        if request.runs_out < now or self.capacity.reserve(request, now) is None:
            return False
        self._stakes[order_id] = _compute_stake(promise.announcement, promise.bid.body.price)
        return True

    def confirm(self, promise: Promise, order_id: bytes, count: int, now: int) -> None:
        """A lease on `count` segments of this order is open: their booking stays until `release`, the chain counts its
        stake from now on.
        """
        duration = OVERHEAD_MS + compute_work(promise.announcement.order.body, count)
        if not self.capacity.confirm(order_id, now, duration):
            request = make_request(promise.announcement, promise.bid.body)
            self.capacity.adopt(msgspec.structs.replace(request, duration=duration), now)
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
        order = announcement.order.body
        valid_until = compute_validity(announcement)
        if valid_until <= announcement.closes:
            work = compute_work(order, find_largest(announcement).count)
            need = order.windows.start + work + LEARN_MS + DELIVER_MS
            text = f"the deadline leaves too little time: {need} ms from the close of the auction are needed"
            return Refusal(Reason.DEADLINE, need, text)
        holders = () if announcement.broker in order.holders else (announcement.broker,)
        bid = Bid(order_id, self._signer.key, price, 1, 0, compute_bond(order), holders, valid_until, salt)
        request = make_request(announcement, bid)
        earliest = self.capacity.find_start(request.need, announcement.closes, request.duration, now)
        booking = self.capacity.reserve(request, now)
        if booking is None:
            late = self.capacity.find_start(request.need, request.ready, request.duration, now) + request.duration
            missing = max(0, late - request.due)
            text = f"no room before the deadline; by present plans it would have to be {missing} ms later"
            return Refusal(Reason.BUSY, missing, text)
        bid = msgspec.structs.replace(bid, earliest=min(earliest, booking.start))
        return BidMade(Promise(announcement, self._signer.sign(Tag.BID, self._chain_id, bid)), booking)

    def _find_bond_refusal(self, announcement: Announcement, price: int, funds: Funds, now: int) -> Refusal | None:
        """R3 (e): the bond must be free; R14: prices locked in open leases stay within the registered bond (leverage
        1).
        """
        self.forget(now)
        bond, stake = _compute_stake(announcement, price)
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


def find_largest(announcement: Announcement) -> Span:
    """The largest span on offer: what the only bid would be awarded."""
    return max(announcement.spans, key=lambda span: span.count)


def compute_work(order: Order, segments: int) -> int:
    """Longest time so many segments take on one lane, in milliseconds."""
    return checked(segments * order.segment_wall, "time for the work")


def compute_validity(announcement: Announcement) -> int:
    """Until when a bid on a round is valid: as long as its lease could open (R3 c, d) and be served from a standing
    start, at most `VALID_MS` after the round's close. The close may come at once: see `MAX_AUCTION_MS`.
    """
    order = announcement.order.body
    work = compute_work(order, find_largest(announcement).count)
    openable = order.deadline - order.windows.start - work
    servable = order.deadline - DELIVER_MS - OVERHEAD_MS - work - LEARN_MS
    return max(0, min(announcement.closes + VALID_MS, order.expiry, openable, servable))


def make_request(announcement: Announcement, bid: Bid) -> Request:
    """What has to be booked for a bid on the largest span of a round."""
    order, resources = announcement.order.body, announcement.spec.resources
    runs_out = bid.valid_until + LEARN_MS
    return Request(
        key=bid.order,
        need=Need(resources.memory_bytes, resources.millicores),
        ready=runs_out,
        duration=OVERHEAD_MS + compute_work(order, find_largest(announcement).count),
        due=order.deadline - DELIVER_MS,
        runs_out=runs_out,
    )


def _find_price_refusal(order: Order, price: int) -> Refusal | None:
    if price <= order.limit:
        return None
    asked, limit = format_credits(price), format_credits(order.limit)
    text = f"{asked} credits per segment is the price here, the order's limit is {limit}"
    return Refusal(Reason.PRICE, price, text)


def _compute_stake(announcement: Announcement, price: int) -> tuple[int, int]:
    """Bond set aside and price locked if this bid wins the dearest span; under `second` the price may be the order's
    limit (R3 b).
    """
    order = announcement.order.body
    highest = order.limit if order.rule is AwardRule.SECOND else price
    weight = max(compute_weight(order, span) for span in announcement.spans)
    total = checked(highest * weight, "price")
    return compute_share(total, compute_bond(order)), total


def _find_misfit(offer: Offer, order: Order, spec: JobSpec, now: int, segments: int) -> Refusal | None:
    """The first clause of the order that the standing offer does not meet for so many segments."""
    mismatches = find_mismatches(offer, order, spec, now, segments)
    return Refusal(mismatches[0].reason, mismatches[0].nearest, mismatches[0].text) if mismatches else None
