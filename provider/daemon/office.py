"""The office: hears the broker, answers orders with bids and declines, and gives out slots.

A promise is on disk before its bid is sent. A bid is answered by an award (to us or to another), by a withdrawal, or
by running out. Awards are only hints: they let inputs be fetched ahead; work begins when the chain has the lease
(R3). An order that finds no room is declined at once and kept in mind: if room is made before its auction closes, it
gets a bid after all.

One part of an order at a time: while a bid on it, or a lease of it, is ours, its later rounds find no room here.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

from broker.protocol import topics
from broker.protocol.messages import (
    PASSING,
    Acknowledgement,
    Announcement,
    Book,
    Decline,
    Offer,
    Withdrawal,
    read_from_broker,
)
from chain.base.codec import encode
from chain.base.errors import Refused, TallyError
from chain.base.keys import Signed
from chain.ledger.terms.agreement import Award, compute_bid_id, compute_lease_id, compute_order_id
from chain.ledger.terms.work import Acceptance
from chain.runtime.logs import get_logger, show_job
from provider.bidding.desk import BidMade, Desk, Funds, Promise, Rates
from provider.daemon.inputs import fetch_inputs
from provider.daemon.links import Gear, TaskSet

FORGET_SECONDS = 2.0
"""How often bids that ran out are looked for."""

MAX_SLEEP_MS = 5_000
"""Longest sleep before waiting jobs are looked at again."""


HOLD_MS = 250
"""How long before an auction's close a bid on an order that found no room would still come in time."""

MAX_HELD = 256
"""Most orders that wait for room."""


class Counter:
    """Bids, promises and slots of one provider. `get_funds` says what the chain holds of ours, `hear_acceptance`
    takes acceptances, `is_leased` knows leases.
    """

    def __init__(self, gear: Gear, rates: Rates, broker: bytes, offer: Offer) -> None:
        self.desk = Desk(gear.signer, gear.chain_id, rates)
        self.promises: dict[bytes, Promise] = {}
        self.offer = offer
        self.funds = Funds(0, 0, 0)
        self.is_open = False
        self.on_acceptance: Callable[[Signed[Acceptance]], None] = lambda _: None
        self._gear = gear
        self._broker = broker
        self._tasks = TaskSet()
        self._waiting: dict[bytes, Callable[[], None]] = {}
        self._leased: dict[bytes, int] = {}
        self._taken: dict[bytes, dict[int, int]] = {}
        self._ahead: dict[bytes, tuple[bytes, asyncio.Task[None]]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._granting = False
        self._held: dict[bytes, Announcement] = {}
        self._hold_timer: asyncio.TimerHandle | None = None
        self._retrying = False
        self._log = get_logger("office")

    def load(self) -> None:
        """Read the promises of an earlier life."""
        self.promises = self._gear.workspace.load_promises()

    def adopt(self, promise: Promise, count: int) -> None:
        """A lease of an earlier life, on so many segments, still needs its slot."""
        order_id = promise.bid.body.order
        self.promises[order_id] = promise
        self._leased[order_id] = count
        self.desk.confirm(promise, order_id, count, self._gear.clock.now())

    def recover(self) -> None:
        """Book the bids of an earlier life again; forget those that can open no lease any more."""
        now = self._gear.clock.now()
        for order_id, promise in list(self.promises.items()):
            if order_id not in self._leased and not self.desk.recover(promise, order_id, now):
                self._drop(order_id)

    async def close(self) -> None:
        """Stop fetching ahead and handing out slots."""
        self.is_open = False
        for timer in (self._timer, self._hold_timer):
            if timer is not None:
                timer.cancel()
        self._held.clear()
        await self._tasks.close()

    # The bus

    async def listen(self) -> None:
        """Hear the bus until it is closed."""
        async for topic, data in self._gear.bus.messages():
            try:
                await self.hear(data)
            except Refused as error:
                self._log.info("not heeded", topic=topic, why=str(error))
            except TallyError as error:
                self._log.warning("not answered", topic=topic, why=str(error))

    async def hear(self, data: bytes) -> None:
        """One message of the broker. Raises `Refused` for what is not genuine or does not hold together."""
        signed = read_from_broker(data, self._gear.chain_id, self._broker)
        body = signed.body
        match body:
            case Announcement():
                await self._answer(body)
            case Award():
                self._hear_award(body)
            case Withdrawal():
                self._held.pop(body.order, None)
                if body.order in self.promises and body.order not in self._leased:
                    self._drop(body.order)
            case Acceptance():
                self.on_acceptance(signed)
            case Book():
                held = self._held.get(body.order)
                if held is not None and held.round <= body.round:
                    del self._held[body.order]
            case Acknowledgement():
                pass
            case _:
                raise Refused(f"a {type(body).__name__} is not for providers", rule="bus.kind")

    async def _answer(self, announcement: Announcement) -> None:
        gear = self._gear
        if not self.is_open or announcement.broker != self._broker:
            return
        now = gear.clock.now()
        self._forget()
        promise = self.promises.get(compute_order_id(gear.chain_id, announcement.order.body))
        bound = promise.announcement.round if promise is not None else None
        made = self.desk.answer(announcement, self.offer, self.funds, now, os.urandom(16), bound)
        if made is None:
            await self._repeat(announcement)
        elif isinstance(made, BidMade):
            await self._send_bid(made.promise, now)
        else:
            await self._send_decline(made.decline, announcement, now)

    async def _send_decline(self, decline: Signed[Decline], announcement: Announcement, now: int) -> None:
        """Decline at once, so that nobody waits for us; where room may be made, bid after all if it is in time."""
        gear, body = self._gear, decline.body
        held = self._held.get(body.order)
        known = held is not None and held.round == announcement.round
        may_pass = body.reason in PASSING and now < announcement.closes - HOLD_MS
        if not may_pass:
            self._held.pop(body.order, None)
        elif not known and (held is not None or len(self._held) < MAX_HELD):
            self._held[body.order] = announcement
            self._wake_held()
        if not known:
            await gear.bus.publish(topics.up(gear.chain_id, gear.signer.key), encode(decline), expiry_s=60)
            self._log.info("declines", job=show_job(body.order), reason=body.reason.value, text=body.text)

    async def _send_bid(self, promise: Promise, now: int) -> None:
        gear, bid = self._gear, promise.bid
        self._held.pop(bid.body.order, None)
        self.promises[bid.body.order] = promise
        self._taken.pop(bid.body.order, None)
        gear.workspace.store_promise(bid.body.order, promise, now)
        await gear.bus.publish(topics.up(gear.chain_id, gear.signer.key), encode(bid), expiry_s=60)
        self._log.info("bids", job=show_job(bid.body.order), price=bid.body.price)

    # Orders that find no room at present

    def _wake_held(self) -> None:
        """Forget held orders as their auctions close; whenever room is made they are looked at before."""
        if self._hold_timer is not None:
            self._hold_timer.cancel()
            self._hold_timer = None
        if self._held:
            due = min(announcement.closes for announcement in self._held.values()) - HOLD_MS
            delay = max(0, due - self._gear.clock.now()) / 1_000
            self._hold_timer = asyncio.get_running_loop().call_later(delay, self._retry_held)

    def _retry_held(self) -> None:
        if self._held and not self._retrying:
            self._retrying = True
            self._tasks.start(self._answer_held())

    async def _answer_held(self) -> None:
        try:
            for order_id, announcement in list(self._held.items()):
                if announcement.closes <= self._gear.clock.now():
                    self._held.pop(order_id, None)
                    continue
                await self._answer(announcement)
        finally:
            self._retrying = False
        self._wake_held()

    async def _repeat(self, announcement: Announcement) -> None:
        """The same order again: the broker was restarted, or our bid got lost. It gets the same bid."""
        gear = self._gear
        for promise in self.promises.values():
            known = promise.announcement
            if (known.order, known.round) == (announcement.order, announcement.round):
                up = topics.up(gear.chain_id, gear.signer.key)
                await gear.bus.publish(up, encode(promise.bid), expiry_s=60)

    def _hear_award(self, award: Award) -> None:
        promise = self.promises.get(award.order)
        if promise is None or award.order in self._leased:
            return
        if award.bid != compute_bid_id(self._gear.chain_id, promise.bid.body):
            self._hear_other(promise, award)
        elif award.order not in self._ahead:
            lease = compute_lease_id(self._gear.chain_id, award)
            self._ahead[award.order] = (lease, self._tasks.start(self._fetch_ahead(promise, lease, award.start)))

    def _hear_other(self, promise: Promise, award: Award) -> None:
        """Somebody else serves a part of what we bid on. Our bid is answered once nothing of it is left."""
        spans = promise.announcement.spans
        if not any(span.first <= award.first < span.first + span.count for span in spans):
            return
        taken = self._taken.setdefault(award.order, {})
        taken[award.first] = award.count
        if sum(taken.values()) >= sum(span.count for span in spans):
            self._drop(award.order)

    async def _fetch_ahead(self, promise: Promise, lease: bytes, start: bytes) -> None:
        try:
            await fetch_inputs(self._gear, lease, promise.announcement, start)
        except (TallyError, OSError) as error:
            self._log.info("not fetched ahead", why=str(error))

    # Leases and slots

    def take_promise(self, order_id: bytes, count: int) -> Promise | None:
        """A lease on so many segments of this order is open: its promise moves to the lease's own journal, its booking
        shrinks to them. None where no bid is known that is not used yet.
        """
        promise = self.promises.get(order_id) if order_id not in self._leased else None
        if promise is not None:
            self._leased[order_id] = count
            self.desk.confirm(promise, order_id, count, self._gear.clock.now())
        return promise

    def ask_slot(self, order_id: bytes, grant: Callable[[], None]) -> None:
        """Call `grant` once it is this order's turn. A second try of a job is booked again."""
        promise = self.promises.get(order_id)
        if promise is not None and self.desk.capacity.get(order_id) is None:
            self.desk.confirm(promise, order_id, self._leased.get(order_id, 1), self._gear.clock.now())
        self._waiting[order_id] = grant
        self._grant_soon()

    def free_slot(self, order_id: bytes) -> None:
        """The order's slot and booking are free, or no longer wanted."""
        self._waiting.pop(order_id, None)
        self.desk.release(order_id)
        self._grant_soon()

    def end_lease(self, order_id: bytes) -> None:
        """The lease is over."""
        self.free_slot(order_id)
        self._leased.pop(order_id, None)
        self._taken.pop(order_id, None)
        if self.promises.pop(order_id, None) is not None:
            self._gear.workspace.drop_promise(order_id)
        self._ahead.pop(order_id, None)

    def _grant_soon(self) -> None:
        if not self._granting:
            self._granting = True
            asyncio.get_running_loop().call_soon(self._grant)

    def _grant(self) -> None:
        self._granting = False
        self._retry_held()
        now = self._gear.clock.now()
        for order_id in self.desk.capacity.take(self._waiting, now):
            self._waiting.pop(order_id)()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = self.desk.capacity.wake_at(now)
        if self._waiting:
            delay = MAX_SLEEP_MS if due is None else min(due - now, MAX_SLEEP_MS)
            self._timer = asyncio.get_running_loop().call_later(delay / 1_000, self._grant)

    def _forget(self) -> None:
        for order_id in self.desk.forget(self._gear.clock.now()):
            if order_id not in self._leased:
                self._drop(order_id)

    def _drop(self, order_id: bytes) -> None:
        """A bid is answered by no: its promise is void."""
        self.desk.release(order_id)
        self.promises.pop(order_id, None)
        self._taken.pop(order_id, None)
        self._gear.workspace.drop_promise(order_id)
        lease, task = self._ahead.pop(order_id, (b"", None))
        if task is not None:
            task.cancel()
            self._gear.workspace.remove_folder(lease)
        self._grant_soon()

    async def keep_forgetting(self) -> None:
        """Drop bids that ran out, for as long as the daemon runs."""
        while True:
            await asyncio.sleep(FORGET_SECONDS)
            self._forget()
