"""What providers say on the bus, turned into events: offers, bids, declines, progress.

A topic is only a hint; each message is verified against the key in its own body, and dropped without an answer if
anything about it is wrong (threats.md rows 24 to 27). Bids count only from providers that the chain knows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from broker.auction.events import BidArrived, DeclineArrived, ProviderCame, ProviderLeft
from broker.auction.machine import Phase
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


class Listener:
    """Hears the bus for a desk."""

    def __init__(self, parts: Parts, desk: Desk) -> None:
        self.dropped = 0
        self._parts = parts
        self._desk = desk
        self._task: asyncio.Task[None] | None = None
        self._learning: set[asyncio.Task[None]] = set()
        self._log = get_logger("listener")

    async def start(self) -> None:
        """Subscribe and listen."""
        chain = self._parts.house.chain
        await self._parts.bus.subscribe([topics.all_presence(chain), topics.all_up(chain)])
        self._task = asyncio.create_task(self._listen())

    async def close(self) -> None:
        """Stop listening."""
        tasks = [*self._learning, *([self._task] if self._task else [])]
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

    def _hear(self, topic: str, data: bytes) -> None:
        if not data:
            self._lose(topics.provider_of(topic))
            return
        signed: Signed[Any] = read_from_provider(data, self._parts.house.chain)
        match signed.body:
            case Offer():
                known = self._parts.directory.is_refresh(signed.body)
                self._parts.directory.take(signed.body, self._parts.clock.now())
                asked = self._learn(self._introduce(signed.body.provider, known))
                if not asked and not self._parts.ledger.knows_provider(signed.body.provider):
                    self._parts.directory.drop(signed.body.provider)  # a provider says it again
            case Bid():
                self._take_bid(signed)
            case Decline():
                self._take_decline(signed)
            case Progress():
                self._take_progress(signed.body)
            case _:
                raise Refused("a message that no provider sends", rule="bus.kind")

    def _lose(self, provider: bytes | None) -> None:
        if provider is None or not self._parts.directory.drop(provider):
            return
        for job in self._desk.collecting():
            self._desk.post(job.order_id, ProviderLeft(provider))

    def _is_open(self, order_id: bytes) -> bool:
        """Whether an answer to this order still counts: what does not is dropped before it is stored."""
        job = self._desk.get_live(order_id)
        return job is not None and job.auction.phase is Phase.COLLECTING

    def _take_bid(self, signed: Signed[Bid]) -> None:
        if not self._is_open(signed.body.order):
            return
        if self._parts.ledger.knows_provider(signed.body.provider):
            self._desk.post(signed.body.order, BidArrived(signed, True))
        else:
            self._learn(self._vouch(signed))

    def _take_decline(self, signed: Signed[Decline]) -> None:
        """Only a provider's: a decline tells a requester what the market would take, and keeps an auction open."""
        if not self._is_open(signed.body.order):
            return
        if self._parts.ledger.knows_provider(signed.body.provider):
            self._desk.post(signed.body.order, DeclineArrived(signed))
        else:
            self._learn(self._vouch_decline(signed))

    async def _vouch_decline(self, signed: Signed[Decline]) -> None:
        if await self._parts.ledger.is_provider(signed.body.provider):
            self._desk.post(signed.body.order, DeclineArrived(signed))

    async def _vouch(self, signed: Signed[Bid]) -> None:
        registered = await self._parts.ledger.is_provider(signed.body.provider)
        self._desk.post(signed.body.order, BidArrived(signed, registered))

    async def _introduce(self, provider: bytes, known: bool) -> None:
        """Ask the chain about a provider that offers; one it does not know is forgotten, a new one hears of open
        auctions.
        """
        for _ in range(LEARN_TRIES):
            try:
                if await self._parts.ledger.is_provider(provider):
                    self._greet(provider, known)
                    return
            except TallyError as error:
                self._log.debug("can't ask about a provider yet", rule=error.rule)
            await asyncio.sleep(LEARN_PAUSE)
        self._parts.directory.drop(provider)

    def _greet(self, provider: bytes, known: bool) -> None:
        if not known:
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
        if job is not None and job.provider == one.provider:
            now = self._parts.clock.now()
            job.add_progress(Advanced(now, one.lease, one.done, one.total, one.records, one.log_offset, one.log))
