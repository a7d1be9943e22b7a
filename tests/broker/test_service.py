"""The broker end to end over a fake chain: an order becomes a lease, a receipt reaches the requester, an acceptance the
provider; nothing is lost when the process ends at any of these points.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from broker.auction.book import check_book
from broker.protocol.api import (
    Accepted,
    Advanced,
    Announced,
    Awarded,
    Cancellation,
    Closed,
    Delivered,
    Ended,
    Left,
    Opened,
    Unmatched,
)
from broker.protocol.messages import Acknowledgement, Announcement, Book, Progress, Reason, Withdrawal
from broker.service import custody as custody_module
from chain.base.errors import Refused, Unavailable
from chain.base.hashing import Tag, compute_digest
from chain.base.keys import verify
from chain.base.units import MICRO
from chain.ledger.terms.agreement import Award, compute_bid_id, compute_lease_id, compute_order_id
from chain.ledger.terms.work import Acceptance, Span
from chain.runtime.clock import SystemClock
from tests.broker.market import Market, Seller, eventually, follow, open_market
from tests.broker.world import (
    BROKER,
    CHAIN,
    INPUTS,
    LOG,
    OUTPUT,
    PROVENANCE,
    PROVIDERS,
    REQUESTER,
    STRANGER,
    make_acceptance,
    make_bid,
    make_decline,
    make_delivery,
    make_order,
    make_submission,
    say,
)


def now() -> int:
    return SystemClock().now()


async def open_lease(market: Market, seller: Seller) -> tuple[bytes, Award]:
    """One order up to its open lease."""
    order = make_order(now())
    order_id = await market.client().submit(make_submission(order=order))
    announcement = await seller.hear(Announcement)
    assert announcement.order.body == order
    await seller.say(make_bid(order, seller.signer))
    await follow(market.client(), order_id, Opened)
    return order_id, await seller.hear(Award)


async def test_an_order_becomes_a_paid_lease(tmp_path: Path) -> None:
    async with open_market(tmp_path) as market:
        seller = await market.add_seller()
        requester, provider = market.client(), market.client(PROVIDERS[0])
        order_id, award = await open_lease(market, seller)
        lease = compute_lease_id(CHAIN, award)
        assert (await seller.hear(Acknowledgement)).sequence == 0
        assert (await seller.hear(Book)).root == award.book
        assert await provider.get_blob(compute_digest(INPUTS), 1000) == INPUTS
        await seller.say(say(PROVIDERS[0], Progress(lease, PROVIDERS[0].key, 0, 0, 1, (), 0, b"hello")))
        await follow(requester, order_id, Advanced)
        delivery = make_delivery(award)
        storage = await provider.deliver(lease, delivery)
        size = len(OUTPUT) + len(LOG) + len(PROVENANCE)
        assert verify(storage, Tag.STORAGE, CHAIN, BROKER.key).size == size
        assert await provider.deliver(lease, delivery) == storage
        assert await provider.acceptance(lease, 0) is None
        acceptance = make_acceptance(delivery)
        await requester.accept(lease, acceptance)
        assert await provider.acceptance(lease, 5_000) == acceptance
        assert await seller.hear(Acceptance) == acceptance.body
        await market.chain.end(lease)
        seen = await follow(requester, order_id, Ended)
        documents = [type(one) for one in seen if not isinstance(one, Advanced)]
        assert documents == [Announced, Closed, Awarded, Opened, Delivered, Accepted, Left, Ended]
        assert check_book(CHAIN, BROKER.key, seen[1].book).bids
        await eventually(lambda: not market.node.desk.live)
        assert [one.state for one in await requester.orders()] == ["settled"]
        assert [type(one) for one in (await requester.events(order_id, 0, 0)).items] == documents
        assert await requester.get_blob(compute_digest(OUTPUT), 1000) == OUTPUT
        assert await provider.acceptance(lease, 0) == acceptance
        assert await provider.deliver(lease, delivery) == storage


@pytest.mark.parametrize("moment", ["announced", "opened", "delivered", "accepted"])
async def test_a_job_survives_the_end_of_the_broker(tmp_path: Path, moment: str) -> None:
    """Stopping a node writes nothing, so that this is a kill at the named point."""
    async with open_market(tmp_path) as market:

        async def pass_by(name: str) -> None:
            if name == moment:
                await market.stop_node()
                await market.start_node()

        seller = await market.add_seller()
        order = make_order(now(), closes=now() + 30_000)
        order_id = await market.client().submit(make_submission(order=order))
        await seller.hear(Announcement)
        await pass_by("announced")
        await seller.say(make_bid(order))
        seen = await follow(market.client(), order_id, Opened)
        award = next(one.award.body for one in seen if isinstance(one, Awarded))
        lease = compute_lease_id(CHAIN, award)
        await pass_by("opened")
        delivery = make_delivery(award)
        storage = await market.client(PROVIDERS[0]).deliver(lease, delivery)
        await pass_by("delivered")
        assert await market.client(PROVIDERS[0]).deliver(lease, delivery) == storage
        await market.client().accept(lease, make_acceptance(delivery))
        await pass_by("accepted")
        assert await market.client(PROVIDERS[0]).acceptance(lease, 5_000) == make_acceptance(delivery)
        await market.chain.end(lease)
        seen = await follow(market.client(), order_id, Ended)
        assert [one.state for one in seen if isinstance(one, Ended)] == ["settled"]
        assert len(market.chain.opened) == 1


async def test_who_holds_which_blob_follows_from_the_journal(tmp_path: Path) -> None:
    """A power cut may take the rows of custody; bytes and journal it can't."""
    async with open_market(tmp_path) as market:
        seller = await market.add_seller()
        _, award = await open_lease(market, seller)
        delivery = make_delivery(award)
        await market.client(PROVIDERS[0]).deliver(compute_lease_id(CHAIN, award), delivery)
        await market.stop_node()
        for path in tmp_path.glob("blobs.db*"):
            path.unlink()
        await market.start_node()
        for signer in (REQUESTER, PROVIDERS[0]):
            for data in (INPUTS, OUTPUT, LOG):
                assert await market.client(signer).get_blob(compute_digest(data), 1_000) == data
        custody, made = market.node.parts.custody, len(OUTPUT) + len(LOG) + len(PROVENANCE)
        assert custody.compute_held(PROVIDERS[0].key) == 0
        assert custody.compute_held(REQUESTER.key, custody_module.OUTPUT) == made


async def test_the_lease_ended_while_the_broker_was_away(tmp_path: Path) -> None:
    async with open_market(tmp_path) as market:
        seller = await market.add_seller()
        order_id, award = await open_lease(market, seller)
        await market.stop_node()
        await market.chain.end(compute_lease_id(CHAIN, award), "settled")
        await market.start_node()
        seen = await follow(market.client(), order_id, Ended)
        assert seen[-1].state == "settled"


async def test_the_chain_is_away_when_a_lease_should_open(tmp_path: Path) -> None:
    async with open_market(tmp_path) as market:
        seller = await market.add_seller()
        order = make_order(now())
        order_id = await market.client().submit(make_submission(order=order))
        await seller.hear(Announcement)
        market.chain.away = True
        await seller.say(make_bid(order))
        await follow(market.client(), order_id, Awarded)
        market.chain.away = False
        await follow(market.client(), order_id, Opened)
        assert len(market.chain.opened) == 1


async def test_the_next_bid_is_tried_when_the_chain_refuses_the_winner(tmp_path: Path) -> None:
    async with open_market(tmp_path) as market:
        first, second = await market.add_seller(), await market.add_seller(PROVIDERS[1])
        order = make_order(now())
        order_id = await market.client().submit(make_submission(order=order))
        market.chain.refuse = ["R3.e.set-aside"]
        await first.say(make_bid(order, price=500_000))
        await second.say(make_bid(order, PROVIDERS[1], price=900_000))
        seen = await follow(market.client(), order_id, Opened)
        winners = [one.bid.body.provider for one in seen if isinstance(one, Awarded)]
        assert winners == [PROVIDERS[0].key, PROVIDERS[1].key]
        assert (await first.hear(Award)).price == 500_000


async def test_nobody_bids_and_the_requester_learns_the_lowest_price(tmp_path: Path) -> None:
    async with open_market(tmp_path) as market:
        first, second = await market.add_seller(), await market.add_seller(PROVIDERS[1])
        order = make_order(now())
        order_id = await market.client().submit(make_submission(order=order))
        await first.say(make_decline(order, PROVIDERS[0], Reason.PRICE, 5_000_000, "dear"))
        await second.say(make_decline(order, PROVIDERS[1], Reason.PRICE, 4_000_000, "dear"))
        seen = await follow(market.client(), order_id, Ended)
        unmatched = next(one for one in seen if isinstance(one, Unmatched))
        assert unmatched.lowest == 4_000_000
        assert "the lowest price at which someone would have bid is 4 credits" in unmatched.text
        assert len(unmatched.declines) == 2
        assert (await first.hear(Withdrawal)).order == order_id


async def test_a_cancelled_order_is_withdrawn(tmp_path: Path) -> None:
    async with open_market(tmp_path) as market:
        seller = await market.add_seller()
        order = make_order(now())
        order_id = await market.client().submit(make_submission(order=order))
        body = Cancellation(order_id, REQUESTER.key, now())
        with pytest.raises(Refused) as refused:
            await market.client(STRANGER).cancel(STRANGER.sign(Tag.CANCELLATION, CHAIN, body))
        assert refused.value.rule == "job.unknown"
        await market.client().cancel(REQUESTER.sign(Tag.CANCELLATION, CHAIN, body))
        assert (await seller.hear(Withdrawal)).order == order_id
        assert (await follow(market.client(), order_id, Ended))[-1].state == "withdrawn"


def count_stored(market: Market, order_id: bytes) -> int:
    """Events in a job's journal."""
    return len(list(market.node.parts.journal.load(order_id.hex())))


async def test_what_is_said_again_is_not_stored_again(tmp_path: Path) -> None:
    """Each event is written, kept and replayed until the job is over."""
    async with open_market(tmp_path) as market:
        seller, requester = await market.add_seller(), market.client()
        order_id, award = await open_lease(market, seller)
        lease, delivery = compute_lease_id(CHAIN, award), make_delivery(award)
        await market.client(PROVIDERS[0]).deliver(lease, delivery)
        before = count_stored(market, order_id)
        made = [make_acceptance(delivery, segments=spans) for spans in ((), (Span(0, 1),))]
        for acceptance in 2 * made:
            await requester.accept(lease, acceptance)
        assert count_stored(market, order_id) == before + len(made)
        for number in range(3):
            body = Cancellation(order_id, REQUESTER.key, now() + number)
            await requester.cancel(REQUESTER.sign(Tag.CANCELLATION, CHAIN, body))
        assert count_stored(market, order_id) == before + len(made) + 1


async def test_acceptances_are_refused_before_they_are_stored(tmp_path: Path) -> None:
    async with open_market(tmp_path) as market:
        seller = await market.add_seller()
        order_id, award = await open_lease(market, seller)
        lease, delivery = compute_lease_id(CHAIN, award), make_delivery(award)
        await market.client(PROVIDERS[0]).deliver(lease, delivery)
        before = count_stored(market, order_id)
        with pytest.raises(Refused) as refused:
            await market.client().accept(lease, make_acceptance(delivery, segments=(Span(1, 1),)))
        assert refused.value.rule == "R7.range"
        assert count_stored(market, order_id) == before


ORDER_ROWS: list[tuple[str, dict[str, Any], str]] = [
    ("another broker", {"auctioneer": STRANGER.key}, "order.auctioneer"),
    ("another job", {"job": bytes(32)}, "order.job"),
    ("another runtime", {"runtime": bytes(32)}, "order.job"),
    ("two replicas", {"replicas": 2}, "order.replicas"),
    ("commission too low", {"commission": 99}, "order.commission"),
    ("cap above the balance", {"cap": 10_000_001}, "R12.funds"),
    ("deposit above the balance", {"deposit": 8_000_000}, "R12.funds"),
    ("weights of another length", {"weights": (1, 2)}, "order.weights"),
]


@pytest.mark.parametrize(("changes", "rule"), [row[1:] for row in ORDER_ROWS], ids=[row[0] for row in ORDER_ROWS])
async def test_an_order_is_refused_by_name(tmp_path: Path, changes: dict[str, Any], rule: str) -> None:
    async with open_market(tmp_path) as market:
        with pytest.raises(Refused) as refused:
            await market.client().submit(make_submission(order=make_order(now(), **changes)))
        assert refused.value.rule == rule
        assert not market.node.desk.live


async def test_caps_of_announced_orders_add_up(tmp_path: Path) -> None:
    """R12 f: three caps of 3 credits fit 10, a fourth does not."""
    async with open_market(tmp_path) as market:
        for number in range(3):
            await market.client().submit(make_submission(order=make_order(now(), salt=bytes([number]) * 16)))
        with pytest.raises(Refused) as refused:
            await market.client().submit(make_submission(order=make_order(now(), salt=b"x" * 16)))
        assert refused.value.rule == "R12.funds"


async def test_the_same_order_again_is_no_second_order(tmp_path: Path) -> None:
    async with open_market(tmp_path) as market:
        submission = make_submission(order=make_order(now()))
        assert await market.client().submit(submission) == await market.client().submit(submission)
        assert len(market.node.desk.live) == 1


async def test_a_broker_without_credits_says_so(tmp_path: Path) -> None:
    async with open_market(tmp_path) as market:
        market.chain.balances[BROKER.key] = 0
        await market.node.parts.ledger.check_funds()
        assert "tally-chain send" in (await market.client().info()).note
        with pytest.raises(Unavailable) as refused:
            await market.client().submit(make_submission(order=make_order(now())))
        assert refused.value.rule == "broker.funds"
        market.chain.balances[BROKER.key] = 1_000_000
        await market.client().submit(make_submission(order=make_order(now())))


@pytest.mark.parametrize(("balance", "warned"), [(99 * MICRO, True), (100 * MICRO, False)])
async def test_a_broker_with_few_credits_is_told_why_requesters_will_wait(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], balance: int, warned: bool
) -> None:
    async with open_market(tmp_path) as market:
        capsys.readouterr()
        market.chain.balances[BROKER.key] = balance
        await market.node.parts.ledger.check_funds()
        said = capsys.readouterr()
        assert ("R15 d" in said.out + said.err) == warned


async def test_a_bid_of_an_unregistered_key_is_not_taken(tmp_path: Path) -> None:
    async with open_market(tmp_path) as market:
        seller = await market.add_seller()
        stranger = await market.add_seller(STRANGER, present=False)
        order = make_order(now())
        order_id = await market.client().submit(make_submission(order=order))
        await stranger.say(make_bid(order, STRANGER, price=1))
        await seller.say(make_bid(order))
        seen = await follow(market.client(), order_id, Awarded)
        awards = [one.award.body.bid for one in seen if isinstance(one, Awarded)]
        assert awards == [compute_bid_id(CHAIN, make_bid(order).body)]
        assert compute_order_id(CHAIN, order) == order_id
