"""Leases through a running node: the happy path, and deadlines that fire on a chain where nobody sends anything."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from chain.base.units import MICRO
from chain.ledger.ledger import Ledger
from chain.ledger.terms.agreement import compute_lease_id, compute_order_id
from chain.ledger.transactions import Open, RegisterProvider, Transfer
from chain.rpc.client import ChainClient
from chain.rpc.schema import LedgerEvent
from chain.runtime.clock import SystemClock
from tests.chain.ledger.world import SIGNERS, WINDOWS
from tests.chain.ledger.world import World as Market
from tests.chain.node.world import Payer, World, make_folder, run_world


class LiveMarket(Market):
    """The ledger tests' signers and terms, on a node's chain and clock."""

    def __init__(self, world: World) -> None:
        self.genesis, self.ledger, self.chain_id = world.genesis, world.node.ledger, world.treasury.chain_id
        self.count, self.client = 0, world.client

    @property
    def now(self) -> int:
        return SystemClock().now()

    async def submit(self, sender: str, body: Any) -> None:
        await self.client.submit(self.tx(sender, body))

    async def fund(self, treasury: Payer) -> None:
        for name in ("requester", "provider", "broker"):
            await self.client.submit(treasury.sign(Transfer(self.key(name), 100 * MICRO)))
        await self.submit("provider", RegisterProvider(20 * MICRO))

    def agree(self, **changes: Any) -> tuple[Open, bytes, bytes]:
        """An opening, its lease's id and its order's."""
        order = self.order(**changes)
        bid = self.bid(order)
        award = self.award(order, bid)
        opening = self.opening(order, bid, award)
        return opening, compute_lease_id(self.chain_id, award), compute_order_id(self.chain_id, order)


async def follow(client: ChainClient, topic: bytes, until: str) -> list[LedgerEvent]:
    """All events of a topic up to the one whose lease state or kind is `until`."""
    seen: list[LedgerEvent] = []
    after = 0
    while not any(until in (event.kind, event.lease.state if event.lease else "") for event in seen):
        page = await client.events([topic], after, wait_ms=20_000)
        seen += page.events
        after = page.next
    return seen


async def test_open_and_settle_are_seen_by_all_parties(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    async with run_world(folder) as world:
        market = LiveMarket(world)
        await market.fund(world.treasury)
        opening, lease, order = market.agree()
        await market.submit("broker", opening)
        view = await world.client.lease(lease)
        assert view is not None
        assert (view.state, view.price, view.locked, view.bond) == ("open", 9 * MICRO, 9_180_000, 9 * MICRO)
        mandate = await world.client.order(order)
        assert mandate is not None
        assert (mandate.locked, mandate.paid, mandate.cap) == (9_180_000, 0, 20 * MICRO)
        provider = SIGNERS["provider"].key
        assert await world.client.leases(provider=provider, live=True) == [view]
        await market.submit("provider", market.settle(market.lease(lease)))
        for topic in (lease, order, *(SIGNERS[name].key for name in ("requester", "provider", "broker"))):
            events = await follow(world.client, topic, "settled")
            assert [event.lease.state for event in events if event.lease] == ["open", "settled"]
        ended = await world.client.lease(lease)
        assert ended is not None
        assert (ended.state, ended.paid, ended.locked) == ("settled", 9 * MICRO, 0)
        assert await world.client.leases(provider=provider, live=True) == []
        assert await world.client.leases(requester=SIGNERS["requester"].key, live=False) == [ended]
    async with run_world(folder) as world:
        assert await world.client.lease(lease) == ended
        assert (await follow(world.client, lease, "settled"))[-1].lease == ended


async def test_deadlines_fire_by_themselves_on_an_idle_chain(tmp_path: Path) -> None:
    """R1: a due timer is a reason to propose; nobody sends anything after the opening."""
    async with run_world(make_folder(tmp_path)) as world:
        market = LiveMarket(world)
        await market.fund(world.treasury)
        now = market.now
        windows = dict(zip(WINDOWS.__struct_fields__, (100, 10_000, 1, 1, 1, 1, 1), strict=True))
        opening, lease, order = market.agree(
            windows=type(WINDOWS)(**windows), segment_wall=1, segments=10, deadline=now + 2_000, expiry=now + 2_200
        )
        await market.submit("broker", opening)
        async with asyncio.timeout(60):
            events = await follow(world.client, order, "order")
        assert [(event.kind, event.lease.state if event.lease else "") for event in events] == [
            ("lease", "open"),
            ("lease", "expired"),
            ("order", ""),
        ]
        assert all(event.tx == "" for event in events[1:])
        assert (events[1].time > now + 2_000, events[2].time > now + 2_200) == (True, True)
        assert await world.client.order(order) is None
        height = (await world.client.info()).height
        assert height == events[-1].height
        account = await world.client.account(SIGNERS["requester"].key)
        assert account.balance == 100 * MICRO + 900_000
        ended = await world.client.lease(lease)
        assert ended is not None
        assert (ended.refunded, ended.burned) == (9_180_000, 8_100_000)


async def test_a_ledger_that_replays_all_blocks_stands_where_the_node_stands(tmp_path: Path) -> None:
    async with run_world(make_folder(tmp_path)) as world:
        market = LiveMarket(world)
        await market.fund(world.treasury)
        opening, lease, _ = market.agree()
        await market.submit("broker", opening)
        await market.submit("provider", market.deliver(market.lease(lease)))
        replayed = Ledger(world.genesis)
        for height in range(1, world.node.ledger.head.height + 1):
            final = world.node.store.get_block(height)
            assert final is not None
            committed = replayed.commit(replayed.apply(final.block).id)
            assert (committed.id, committed.recent) == (final.id, final.recent)
        assert replayed.export() == world.node.ledger.export()
        replayed.check_conservation()
