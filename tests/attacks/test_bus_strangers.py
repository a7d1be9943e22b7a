"""What anybody can say on the bus must neither fill the broker's journal nor its directory, nor stand in a book."""

from __future__ import annotations

import asyncio
from pathlib import Path

from msgspec.structs import replace

from broker.auction.rounds import MAX_ANSWERS
from broker.protocol import topics
from broker.protocol.api import Closed, Opened, Unmatched
from broker.protocol.messages import Announcement, Reason
from broker.service.listener import MAX_LEARNING
from chain.base.codec import encode
from chain.base.keys import Signer
from chain.runtime.clock import SystemClock
from tests.broker.market import Market, Seller, eventually, follow, open_market
from tests.broker.world import CHAIN, PROVIDERS, make_bid, make_decline, make_offer, make_order, make_submission, say

STRANGERS = [Signer(bytes([0x80 + number]) * 32) for number in range(4)]


def count_events(market: Market) -> int:
    journal = market.node.parts.journal
    return sum(len(journal.load(name)) for name in journal.names())


async def test_declines_of_strangers_are_no_offers_of_the_market(tmp_path: Path) -> None:
    """Else a key that costs nothing tells a requester that somebody would have worked for next to nothing."""
    async with open_market(tmp_path) as market:
        seller = await market.add_seller()
        order = make_order(SystemClock().now())
        order_id = await market.client().submit(make_submission(order=order))
        await seller.hear(Announcement)
        for stranger in STRANGERS:
            await seller.say(make_decline(order, stranger, Reason.PRICE, 1, "cheap"))
        await seller.say(make_decline(order, PROVIDERS[0], Reason.PRICE, 5_000_000, "dear"))
        news = await follow(market.client(), order_id, Unmatched)
        [unmatched] = [one for one in news if isinstance(one, Unmatched)]
        [closed] = [one for one in news if isinstance(one, Closed)]
        assert unmatched.lowest == 5_000_000
        assert {one.body.provider for one in (*unmatched.declines, *closed.book.body.declines)} == {PROVIDERS[0].key}


async def test_answers_after_the_close_are_not_stored(tmp_path: Path) -> None:
    """Each would wait for the disk, for as long as the lease lives."""
    async with open_market(tmp_path) as market:
        seller = await market.add_seller()
        order = make_order(SystemClock().now())
        order_id = await market.client().submit(make_submission(order=order))
        await seller.hear(Announcement)
        await seller.say(make_bid(order, seller.signer))
        await follow(market.client(), order_id, Opened)
        before = count_events(market)
        for number in range(50):
            await seller.say(make_bid(order, seller.signer, salt=number.to_bytes(16, "big")))
            await seller.say(make_decline(order, seller.signer, Reason.BUSY, number, "busy"))
        await say_last(market, seller)
        assert count_events(market) == before


async def test_a_flood_of_answers_to_an_open_round_is_not_stored(tmp_path: Path) -> None:
    """Each would wait for the disk, and be read again with every start of the broker."""
    async with open_market(tmp_path) as market:
        seller, rival = await market.add_seller(), await market.add_seller(PROVIDERS[1])
        order = make_order(SystemClock().now(), closes=SystemClock().now() + 30_000)
        order_id = await market.client().submit(make_submission(order=order))
        await rival.hear(Announcement)
        before = count_events(market)
        for number in range(100):
            salt = number.to_bytes(16, "big")
            await seller.say(make_bid(order, seller.signer, price=2_000_000, salt=salt))
            await seller.say(make_decline(order, seller.signer, Reason.BUSY, number, "busy"))
            await seller.say(make_bid(order, STRANGERS[number % 4], price=1, salt=salt))
        await say_last(market, seller)
        await eventually(lambda: not market.node.listener._learning)
        assert count_events(market) == before + MAX_ANSWERS
        await rival.say(make_bid(order, rival.signer))
        news = await follow(market.client(), order_id, Opened)
        [closed] = [one for one in news if isinstance(one, Closed)]
        assert [one.body.provider for one in closed.book.body.bids] == [seller.signer.key, rival.signer.key]
        assert market.chain.opened[0].bid.body.provider == rival.signer.key


async def test_offers_of_strangers_leave_room_for_providers(tmp_path: Path) -> None:
    """A broker that is busy asking the chain who they are keeps none of them meanwhile."""
    async with open_market(tmp_path) as market:
        seller = await market.add_seller()
        now = SystemClock().now()
        for number in range(2 * MAX_LEARNING):
            stranger = Signer(number.to_bytes(32, "big"))
            await seller.say(say(stranger, make_offer(now, stranger)))
        await say_last(market, seller)
        assert len(market.node.parts.directory) <= MAX_LEARNING + 1
        assert seller.signer.key in set(market.node.parts.directory)


async def test_nobody_takes_a_rival_out_of_an_auction(tmp_path: Path) -> None:
    """An empty presence, a farewell signed by another key, a farewell of a key that is nobody: the rival is awaited all
    the same, and its bid wins.
    """
    async with open_market(tmp_path) as market:
        seller, rival = await market.add_seller(), await market.add_seller(PROVIDERS[1])
        order = make_order(SystemClock().now(), closes=SystemClock().now() + 30_000)
        order_id = await market.client().submit(make_submission(order=order))
        await rival.hear(Announcement)
        topic = topics.presence(CHAIN, rival.signer.key)
        farewell = make_offer(SystemClock().now() + 1_000, rival.signer, slots=0)
        forged = replace(say(rival.signer, farewell), signature=say(seller.signer, farewell).signature)
        dropped = market.node.listener.dropped
        await seller.bus.publish(topic, b"", retain=True)
        await seller.bus.publish(topic, encode(forged), retain=True)
        await seller.bus.publish(topic, encode(say(STRANGERS[0], make_offer(0, STRANGERS[0], slots=0))))
        await seller.say(make_bid(order, seller.signer, price=2_000_000))
        await eventually(lambda: market.node.listener.dropped == dropped + 2)
        assert rival.signer.key in {offer.provider for offer in market.node.desk.list_offers()}
        assert market.node.desk.live[order_id].auction.round is not None
        await rival.say(make_bid(order, rival.signer))
        await follow(market.client(), order_id, Opened)
        assert market.chain.opened[0].bid.body.provider == rival.signer.key


async def test_an_old_offer_said_again_does_not_bring_its_provider_back(tmp_path: Path) -> None:
    async with open_market(tmp_path) as market:
        seller, gone = await market.add_seller(), await market.add_seller(PROVIDERS[1])
        topic = topics.presence(CHAIN, gone.signer.key)
        old = market.hub.retained[topic]
        farewell = make_offer(SystemClock().now() + 1_000, gone.signer, slots=0)
        await gone.bus.publish(topic, encode(say(gone.signer, farewell)), retain=True)
        await eventually(lambda: len(market.node.desk.list_offers()) == 1)
        await seller.bus.publish(topic, old, retain=True)
        await say_last(market, seller)
        assert [one.provider for one in market.node.desk.list_offers()] == [seller.signer.key]


async def test_farewells_of_strangers_take_no_place(tmp_path: Path) -> None:
    async with open_market(tmp_path) as market:
        seller = await market.add_seller()
        for stranger in STRANGERS:
            await seller.say(say(stranger, make_offer(SystemClock().now(), stranger, slots=0)))
        await say_last(market, seller)
        assert list(market.node.parts.directory) == [seller.signer.key]


async def say_last(market: Market, seller: Seller) -> None:
    """Return once the broker has heard all that was said before."""
    dropped = market.node.listener.dropped
    await seller.say(say(seller.signer, make_offer(0, seller.signer, valid_until=1)))
    await eventually(lambda: market.node.listener.dropped > dropped)
    await asyncio.sleep(0)
