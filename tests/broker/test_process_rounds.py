"""A `map` and a `train` of several leases against a real chain and a real MQTT server, the broker killed at named
points: each segment is paid once, each job ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from msgspec.structs import replace

from broker.bus import MqttBus, Will
from broker.protocol import topics
from broker.protocol.api import PROTOCOL_VERSION, Awarded, Ended, Left, Opened, Submission
from broker.protocol.messages import Announcement, Reason, read_from_broker
from broker.rpc.client import BrokerClient
from chain.base.codec import encode
from chain.base.hashing import Tag, compute_digest
from chain.base.keys import Signed, Signer
from chain.ledger.terms.agreement import Award, Kind, Order, compute_lease_id
from chain.ledger.terms.work import StorageReceipt
from chain.ledger.transactions import Extend, GiveBack, RegisterProvider, Settle, Transfer
from chain.runtime.keystore import load_key
from tests.broker import world
from tests.broker.test_process import PATIENCE, Parts, follow, now, patiently
from tests.broker.test_process import parts as parts
from tests.broker.test_process import real_chain as real_chain
from tests.broker.world import CODE, INPUTS, LOG, OUTPUT, PROVENANCE, PROVIDERS, REQUESTER, make_state

SEGMENTS = 6


class Seller:
    """A provider's hands: its bus, its place at the broker, its account."""

    def __init__(self, parts: Parts, signer: Signer, bus: MqttBus) -> None:
        self.signer = signer
        self.bus = bus
        self.client = BrokerClient(parts.urls["broker"], signer)
        self._chain = parts.chain_id

    async def offer(self, **changes: Any) -> None:
        """Say what is on offer, or farewell."""
        offer = world.make_offer(now(), self.signer, valid_until=now() + 600_000, **changes)
        signed = self.signer.sign(Tag.OFFER, self._chain, offer)
        await self.bus.publish(topics.presence(self._chain, self.signer.key), encode(signed), retain=True)

    async def bid(self, order: Order, closes: int, price: int) -> None:
        """Bid in a round that closes then."""
        salt = closes.to_bytes(16, "big")
        bid = world.make_bid(order, self.signer, price=price, valid_until=closes + 10_000, salt=salt)
        await self.bus.publish(topics.up(self._chain, self.signer.key), encode(bid))

    async def decline(self, order: Order) -> None:
        """Not this time."""
        declined = world.make_decline(order, self.signer, Reason.PRICE, 9_000_000)
        await self.bus.publish(topics.up(self._chain, self.signer.key), encode(declined))

    async def hear_round(self, number: int) -> Announcement:
        """The announcement of a round."""
        async with asyncio.timeout(PATIENCE):
            async for _, data in self.bus.messages():
                body = read_from_broker(data, self._chain, world.BROKER.key).body
                if isinstance(body, Announcement) and body.round == number:
                    return body
        raise AssertionError("the bus was closed")

    async def hand_in(self, award: Award, count: int, kind: Kind, since: int = 0) -> tuple[Any, Signed[StorageReceipt]]:
        """A receipt over the first records of a lease, again and again until the broker has it."""
        made = world.make_records(award, self.signer, count, kind)
        states = [make_state(record.index) for record in made]
        delivery = world.sign_delivery(award, made, self.signer, since)
        delivery = replace(delivery, blobs=(OUTPUT, LOG, PROVENANCE, *states))
        storage = await patiently(lambda: self.client.deliver(compute_lease_id(self._chain, award), delivery))
        return delivery, storage


@asynccontextmanager
async def open_stalls(parts: Parts) -> AsyncIterator[list[Seller]]:
    """Two registered providers that offer."""
    treasury = load_key(parts.folder / "chain" / "treasury.pem")
    await parts.send(treasury, Transfer(PROVIDERS[1].key, 100_000_000))
    await parts.send(PROVIDERS[1], RegisterProvider(20_000_000))
    await parts.send(PROVIDERS[0], RegisterProvider(10_000_000))
    url = (await parts.client(REQUESTER).info()).bus
    async with AsyncExitStack() as stack:
        sellers = []
        for number, signer in enumerate(PROVIDERS[:2]):
            bus = MqttBus(url, f"provider-{number}", Will(topics.presence(parts.chain_id, signer.key)))
            stack.push_async_callback(bus.close)
            await bus.start()
            await bus.subscribe([topics.orders(parts.chain_id), topics.down(parts.chain_id, signer.key)])
            sellers.append(Seller(parts, signer, bus))
            stack.push_async_callback(sellers[-1].client.close)
            await sellers[-1].offer()
        await wait_for_providers(parts, 2)
        yield sellers


async def wait_for_providers(parts: Parts, number: int) -> None:
    requester = parts.client(REQUESTER)
    async with asyncio.timeout(PATIENCE), requester:
        while len(await patiently(requester.providers)) != number:
            await asyncio.sleep(0.05)


async def start_job(parts: Parts, sellers: list[Seller], kind: Kind) -> tuple[bytes, Order, list[Award]]:
    """An order whose leases stand: a half each of a `map`, all of a `train` with the first."""
    spec = world.make_spec(kind=kind, parallelism=2)
    facts: dict[str, Any] = {"auctioneer": world.BROKER.key, "holders": (world.BROKER.key,), "cap": 20_000_000}
    times: dict[str, Any] = {"closes": now() + 8_000, "deadline": now() + 3_000_000, "expiry": now() + 4_000_000}
    order = world.make_order(spec=spec, segments=SEGMENTS, **facts, **times)
    requester = parts.client(REQUESTER)
    async with requester:
        submission = Submission(PROTOCOL_VERSION, world.sign_order(order), spec, (CODE, INPUTS))
        order_id = await requester.submit(submission)
        for number, seller in enumerate(sellers):
            await seller.hear_round(0)
            await seller.bid(order, order.closes, 900_000 + number)
        seen = await follow(requester, order_id, Opened)
        wanted = 2 if kind is Kind.MAP else 1
        awards = [one.award.body for one in seen if isinstance(one, Awarded)]
        assert len(awards) == wanted
        async with asyncio.timeout(PATIENCE):
            while sum(isinstance(one, Opened) for one in seen) < wanted:
                seen = list((await requester.events(order_id, 0, 0)).items)
                await asyncio.sleep(0.02)
    return order_id, order, awards


async def find_award(parts: Parts, order_id: bytes, number: int) -> Award:
    """The award of this number, once its lease stands."""
    requester = parts.client(REQUESTER)
    async with asyncio.timeout(PATIENCE), requester:
        while True:
            items = (await patiently(lambda: requester.events(order_id, 0, 0))).items
            awards = [one for one in items if isinstance(one, Awarded)]
            opened = {one.lease for one in items if isinstance(one, Opened)}
            if len(awards) > number and awards[number].lease in opened:
                return awards[number].award.body
            await asyncio.sleep(0.05)


async def settle(parts: Parts, order_id: bytes, papers: list[tuple[Seller, Any]]) -> Ended:
    """Everything is accepted and paid."""
    requester = parts.client(REQUESTER)
    async with requester:
        for seller, delivery in papers:
            acceptance = world.make_acceptance(delivery)
            lease = delivery.receipt.body.lease
            await patiently(lambda lease=lease, acceptance=acceptance: requester.accept(lease, acceptance))
            await parts.send(seller.signer, Settle(delivery.receipt, acceptance))
        seen = await follow(requester, order_id, Ended)
    ended: Ended = seen[-1]
    return ended


async def check_money(parts: Parts, order_id: bytes, prices: dict[int, int]) -> None:
    """Each segment was paid once, at the price of who served it, and no credit is lost."""
    leases = await parts.chain.leases(order=order_id)
    assert {view.state for view in leases} == {"settled"}
    assert sum(view.paid for view in leases) == sum(prices[number] for number in prices)
    order = await parts.chain.order(order_id)
    assert order is not None
    assert order.locked == 0
    supply = await parts.chain.supply()
    assert supply.total + supply.burned == supply.genesis


@pytest.mark.check
@pytest.mark.parametrize("moment", ["leased", "prefix", "returned", "offered", "reopened", "delivered"])
async def test_a_map_of_which_one_part_is_returned(real_chain: Parts, moment: str) -> None:
    parts = real_chain

    async def pass_by(name: str) -> None:
        if name == moment:
            await parts.kill_broker()
            await wait_for_providers(parts, 2)

    async with open_stalls(parts) as sellers:
        first, second = sellers
        order_id, order, awards = await start_job(parts, sellers, Kind.MAP)
        await pass_by("leased")
        part, storage = await first.hand_in(awards[0], 1, Kind.MAP)
        await pass_by("prefix")
        await parts.send(first.signer, Extend(part.receipt, storage, ()))
        await parts.send(first.signer, GiveBack(part.receipt.body.lease))
        await pass_by("returned")
        offered = await second.hear_round(1)
        assert [(one.first, one.count) for one in offered.spans] == [(1, 2)]
        await pass_by("offered")
        await first.decline(order)
        await second.bid(order, offered.closes, 1_000_000)
        award = await find_award(parts, order_id, 2)
        await pass_by("reopened")
        papers = [(first, part)]
        for one in (awards[1], award):
            papers.append((second, (await second.hand_in(one, one.count, Kind.MAP))[0]))
        await pass_by("delivered")
        ended = await settle(parts, order_id, papers)
        assert (ended.state, ended.text) == ("settled", "6 of 6 segments are served")
        prices = {0: 900_000, 1: 1_000_000, 2: 1_000_000, 3: 900_001, 4: 900_001, 5: 900_001}
        await check_money(parts, order_id, prices)


@pytest.mark.check
@pytest.mark.parametrize("moment", ["", "prefix", "gone", "cut", "reopened"])
async def test_a_train_whose_provider_vanishes(real_chain: Parts, moment: str) -> None:
    """The broker puts its prefix on the chain, calls it, and lets another go on from the last committed state."""
    parts = real_chain

    async def pass_by(name: str, there: int = 1) -> None:
        if name == moment:
            await parts.kill_broker()
            await wait_for_providers(parts, there)

    async with open_stalls(parts) as sellers:
        first, second = sellers
        order_id, order, awards = await start_job(parts, sellers, Kind.TRAIN)
        await first.hand_in(awards[0], 2, Kind.TRAIN)
        part, _ = await first.hand_in(awards[0], 3, Kind.TRAIN, since=2)
        await pass_by("prefix", 2)
        await first.offer(slots=0)
        await wait_for_providers(parts, 1)
        await pass_by("gone")
        seen = await follow(parts.client(REQUESTER), order_id, Left)
        left = next(one for one in seen if isinstance(one, Left))  # its page may bring what follows too
        assert (left.state, left.served) == ("delivered", 3)
        await pass_by("cut")
        offered = await second.hear_round(1)
        await second.bid(order, offered.closes, 1_000_000)
        award = await find_award(parts, order_id, 1)
        assert (award.first, award.start) == (3, compute_digest(make_state(2)))
        await pass_by("reopened")
        state = await patiently(lambda: second.client.get_blob(award.start, 1_000))
        assert state == make_state(2)
        last, _ = await second.hand_in(award, award.count, Kind.TRAIN)
        ended = await settle(parts, order_id, [(first, part), (second, last)])
        assert (ended.state, ended.text) == ("settled", "6 of 6 segments are served")
        await check_money(parts, order_id, dict(enumerate([900_000] * 3 + [1_000_000] * 3)))
