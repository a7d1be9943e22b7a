"""A broker node over a fake chain and an in-process bus, with a requester's and a provider's hands."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import aiohttp

from broker.bus import LocalBus, LocalHub
from broker.protocol import topics
from broker.protocol.api import JobEvent
from broker.protocol.messages import Acknowledgement, Announcement, Book, Withdrawal, read_from_broker
from broker.rpc.client import BrokerClient
from broker.service.node import BrokerNode, Outside
from broker.service.settings import BrokerSettings
from chain.base.codec import encode
from chain.base.keys import Signer
from chain.ledger.terms.agreement import Award
from chain.runtime.clock import SystemClock
from tests.broker.world import BROKER, CHAIN, PROVIDERS, REQUESTER, FakeChain, make_offer, say

T = TypeVar("T")

PATIENCE = 10.0
"""Seconds after which a test that waits has failed."""


class Seller:
    """A provider's hands on the bus and on HTTP."""

    def __init__(self, hub: LocalHub, signer: Signer) -> None:
        self.signer = signer
        self.heard: list[Any] = []
        self.bus = LocalBus(hub)
        self._reader: asyncio.Task[None] | None = None
        self._news = asyncio.Event()

    async def start(self, present: bool = True) -> None:
        await self.bus.start()
        await self.bus.subscribe([topics.orders(CHAIN), topics.down(CHAIN, self.signer.key)])
        self._reader = asyncio.create_task(self._read())
        if present:
            offer = make_offer(SystemClock().now(), self.signer)
            await self.bus.publish(
                topics.presence(CHAIN, self.signer.key), encode(say(self.signer, offer)), retain=True
            )

    async def say(self, signed: Any) -> None:
        await self.bus.publish(topics.up(CHAIN, self.signer.key), encode(signed))

    async def hear(self, kind: type[T]) -> T:
        """The first message of a kind that was not taken before."""
        async with asyncio.timeout(PATIENCE):
            while True:
                for message in self.heard:
                    if isinstance(message.body, kind):
                        self.heard.remove(message)
                        return message.body
                self._news.clear()
                await self._news.wait()

    async def close(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        await self.bus.close()

    async def _read(self) -> None:
        async for _, data in self.bus.messages():
            self.heard.append(read_from_broker(data, CHAIN, BROKER.key))
            self._news.set()


class Market:
    """All of it. `home` outlives the node, so that it can be started again."""

    def __init__(self, home: Path, **settings: Any) -> None:
        self.chain = FakeChain()
        self.hub = LocalHub()
        self.settings = BrokerSettings(home=str(home), listen="127.0.0.1:0", **settings)
        self.node: BrokerNode
        self.session: aiohttp.ClientSession
        self._bus: LocalBus
        self._sellers: list[Seller] = []

    async def start_node(self) -> None:
        self._bus = LocalBus(self.hub)
        await self._bus.start()
        self.node = BrokerNode(self.settings, BROKER, Outside(self.chain, self._bus, "local:"))
        await self.node.start(await self.chain.info())

    async def stop_node(self) -> None:
        await self.node.close()
        await self._bus.close()

    async def add_seller(self, signer: Signer = PROVIDERS[0], *, present: bool = True) -> Seller:
        """A provider who is there and known to the broker."""
        seller = Seller(self.hub, signer)
        await seller.start(present)
        self._sellers.append(seller)
        ledger, directory = self.node.parts.ledger, self.node.parts.directory
        await eventually(lambda: not present or (signer.key in set(directory) and ledger.knows_provider(signer.key)))
        return seller

    def client(self, signer: Signer = REQUESTER) -> BrokerClient:
        return BrokerClient(self.node.url, signer, self.session)

    async def close(self) -> None:
        for seller in self._sellers:
            await seller.close()
        await self.stop_node()


@asynccontextmanager
async def open_market(home: Path, **settings: Any) -> AsyncIterator[Market]:
    """A market with a running node."""
    market = Market(home, **settings)
    async with aiohttp.ClientSession() as market.session:
        await market.start_node()
        try:
            yield market
        finally:
            await market.close()


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds; fails after `PATIENCE`."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.002)


async def follow(client: BrokerClient, order_id: bytes, until: type[JobEvent], after: int = 0) -> list[Any]:
    """Events of a job up to the first of a kind."""
    seen: list[Any] = []
    async with asyncio.timeout(PATIENCE):
        while not any(isinstance(one, until) for one in seen):
            page = await client.events(order_id, after, 5_000)
            seen += page.items
            after = page.next
    return seen


__all__ = [
    "Acknowledgement",
    "Announcement",
    "Award",
    "Book",
    "Market",
    "Seller",
    "Withdrawal",
    "eventually",
    "follow",
    "open_market",
]
