"""What providers say on the bus, turned into events: offers, bids, declines, progress.

A topic is only a hint; each message is verified against the key in its own body, and dropped without an answer if
anything about it is wrong (threats.md rows 24 to 27). Bids count only from providers that the chain knows. Who is
there follows from signed offers alone: a provider leaves by an offer without slots, or when its offer runs out; an
empty presence, which anybody can send, says nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from broker.auction.events import BidArrived, DeclineArrived, ProviderBack, ProviderCame, ProviderLeft
from broker.protocol import topics
from broker.protocol.api import Advanced
from broker.protocol.messages import Decline, Offer, Progress, read_from_provider
from broker.service.desk import Desk, Parts
from chain.base.errors import Refused, TallyError
from chain.base.keys import Signed
from chain.ledger.terms.agreement import Bid
from chain.runtime.logs import get_logger

LEARN_TRIES = 20
"""How often the chain is asked whether a provider that offers is registered."""

LEARN_PAUSE = 0.5
"""Seconds between them."""

MAX_LEARNING = 256
"""Questions of that kind at one time; more are dropped, a provider says its offer again."""

LOOK_PAUSE = 1.0
"""Seconds between two looks at whose offer has run out."""

LOOK_GRACE = 10.0
"""Seconds after the start in which nobody is taken for gone: offers have to be heard first."""


class Listener:
    """Hears the bus for a desk."""

    def __init__(self, parts: Parts, desk: Desk) -> None:
        self.dropped = 0
        self._parts = parts
        self._desk = desk
        self._tasks: list[asyncio.Task[None]] = []
        self._heard_all = False
        self._learning: set[asyncio.Task[None]] = set()
        self._log = get_logger("listener")

    async def start(self) -> None:
        """Subscribe and listen."""
        chain = self._parts.house.chain
        await self._parts.bus.subscribe([topics.all_presence(chain), topics.all_up(chain)])
        self._tasks = [asyncio.create_task(work) for work in (self._listen(), self._watch())]

    async def close(self) -> None:
        """Stop listening."""
        tasks = [*self._learning, *self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _listen(self) -> None:
        async for topic, data in self._parts.bus.messages():
            try:
                self._hear(topic, data)
            except Refused as error:
                self.dropped += 1
                self._log.debug("dropped a message", topic=topic, rule=error.rule, why=error.message)

    async def _watch(self) -> None:
        """Notice offers that run out."""
        await asyncio.sleep(LOOK_GRACE)
        self._heard_all = True
        while True:
            self.look()
            await asyncio.sleep(LOOK_PAUSE)

    def look(self) -> None:
        """Tell each job which of those it depends on are gone, and which are back."""
        now, directory = self._parts.clock.now(), self._parts.directory
        for job in list(self._desk.live.values()):
            for provider in job.list_providers():
                there = directory.is_there(provider, now)
                if there and job.auction.misses(provider):
                    self._desk.post(job.order_id, ProviderBack(provider))
                elif not there and self._heard_all and job.auction.expects(provider):
                    self._desk.post(job.order_id, ProviderLeft(provider))

    def _hear(self, topic: str, data: bytes) -> None:
        if not data:
            raise Refused("a presence that nobody signed", rule="bus.unsigned")
        signed: Signed[Any] = read_from_provider(data, self._parts.house.chain)
        match signed.body:
            case Offer():
                self._take_offer(signed.body)
            case Bid():
                self._take_bid(signed)
            case Decline():
                self._take_decline(signed)
            case Progress():
                self._take_progress(signed.body)
            case _:
                raise Refused("a message that no provider sends", rule="bus.kind")

    def _take_offer(self, offer: Offer) -> None:
        directory, provider = self._parts.directory, offer.provider
        known = directory.is_refresh(offer)
        if offer.slots == 0 and provider not in directory:
            return
        directory.take(offer, self._parts.clock.now())
        if offer.slots == 0:
            self._part(provider)
            return
        asked = self._learn(self._introduce(provider, known))
        if not asked and not self._parts.ledger.knows_provider(provider):
            directory.drop(provider)  # a provider says it again

    def _part(self, provider: bytes) -> None:
        """A provider said farewell: no job waits for the next look."""
        for job in list(self._desk.live.values()):
            if job.auction.expects(provider):
                self._desk.post(job.order_id, ProviderLeft(provider))

    def _is_open(self, answer: Bid | Decline) -> bool:
        """Whether an answer to this order still counts: what does not is dropped before it is stored."""
        job = self._desk.get_live(answer.order)
        return job is not None and job.auction.round is not None and job.auction.round.hears(answer.provider)

    def _take_bid(self, signed: Signed[Bid]) -> None:
        if not self._is_open(signed.body):
            return
        if self._parts.ledger.knows_provider(signed.body.provider):
            self._desk.post(signed.body.order, BidArrived(signed, True))
        else:
            self._learn(self._vouch(signed))

    def _take_decline(self, signed: Signed[Decline]) -> None:
        """Only a provider's: a decline tells a requester what the market would take, and keeps an auction open."""
        if not self._is_open(signed.body):
            return
        if self._parts.ledger.knows_provider(signed.body.provider):
            self._desk.post(signed.body.order, DeclineArrived(signed))
        else:
            self._learn(self._vouch_decline(signed))

    async def _vouch_decline(self, signed: Signed[Decline]) -> None:
        if await self._parts.ledger.is_provider(signed.body.provider) and self._is_open(signed.body):
            self._desk.post(signed.body.order, DeclineArrived(signed))

    async def _vouch(self, signed: Signed[Bid]) -> None:
        if await self._parts.ledger.is_provider(signed.body.provider) and self._is_open(signed.body):
            self._desk.post(signed.body.order, BidArrived(signed, True))

    async def _introduce(self, provider: bytes, known: bool) -> None:
        """Ask the chain about a provider that offers; one it does not know is forgotten, a new one hears of open
        auctions.
        """
        for _ in range(LEARN_TRIES):
            try:
                if await self._parts.ledger.is_provider(provider):
                    if not known:
                        self._greet(provider)
                    return
            except TallyError as error:
                self._log.debug("can't ask about a provider yet", rule=error.rule)
            await asyncio.sleep(LEARN_PAUSE)
        self._parts.directory.drop(provider)

    def _greet(self, provider: bytes) -> None:
        self.look()
        for job in self._desk.collecting():
            self._desk.post(job.order_id, ProviderCame(provider))

    def _learn(self, work: Coroutine[Any, Any, None]) -> bool:
        """Whether there is room for one more question."""
        if len(self._learning) >= MAX_LEARNING:
            work.close()
            return False
        task = asyncio.create_task(self._guard(work))
        self._learning.add(task)
        task.add_done_callback(self._learning.discard)
        return True

    async def _guard(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except TallyError as error:
            self._log.debug("dropped a message", rule=error.rule, why=error.message)

    def _take_progress(self, one: Progress) -> None:
        job = self._desk.find_live_lease(one.lease)
        if job is not None and job.leases.get(one.lease) == one.provider:
            now = self._parts.clock.now()
            job.add_progress(Advanced(now, one.lease, one.done, one.total, one.records, one.log_offset, one.log))
