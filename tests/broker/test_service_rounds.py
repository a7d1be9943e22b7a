"""Several leases per order, end to end over a fake chain: parts, gaps, calls, presence, estimates; and who may do what
with which lease.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from broker.auction import lots
from broker.protocol import topics
from broker.protocol.api import Advanced, Announced, Awarded, Closed, Delivered, Ended, Enquiry, Left, Opened
from broker.protocol.jobs import JobSpec
from broker.protocol.messages import Announcement, Progress, Reason
from broker.service import desk as desk_module
from broker.service import listener as listener_module
from chain.base.codec import encode
from chain.base.errors import Refused, Unavailable
from chain.base.hashing import compute_digest
from chain.ledger.terms.agreement import Award, Kind, Order, compute_lease_id
from chain.ledger.terms.work import compute_receipt_id
from chain.ledger.transactions import Call, Extend
from chain.runtime.clock import SystemClock
from tests.broker.market import Market, Seller, eventually, follow, open_market
from tests.broker.world import (
    CHAIN,
    LOG,
    OUTPUT,
    PROVENANCE,
    PROVIDERS,
    STRANGER,
    make_acceptance,
    make_bid,
    make_decline,
    make_offer,
    make_order,
    make_records,
    make_spec,
    make_state,
    make_submission,
    say,
    sign_delivery,
)

BLOBS = (OUTPUT, LOG, PROVENANCE)


def now() -> int:
    return SystemClock().now()


def make_job(kind: Kind = Kind.MAP, segments: int = 4, **changes: Any) -> tuple[Order, JobSpec]:
    spec = make_spec(kind=kind, parallelism=2)
    far = {"closes": now() + 20_000, "deadline": now() + 900_000, "expiry": now() + 1_800_000, "cap": 9_000_000}
    return make_order(now(), spec, segments=segments, **{**far, **changes}), spec


async def start_job(market: Market, *sellers: Seller, kind: Kind = Kind.MAP) -> tuple[bytes, Order, list[Award]]:
    """An order whose parts are leased to these."""
    order, spec = make_job(kind)
    order_id = await market.client().submit(make_submission(order=order, spec=spec))
    for number, seller in enumerate(sellers):
        await seller.hear(Announcement)
        await seller.say(make_bid(order, seller.signer, price=900_000 + number))
    await eventually(lambda: len(market.chain.opened) == len(sellers))
    await eventually(lambda: not any(lot.phase == "opening" for lot in find_lots(market, order_id)))
    return order_id, order, [lot.award.body for lot in find_lots(market, order_id)]


def find_lots(market: Market, order_id: bytes) -> list[lots.Lot]:
    return list(market.node.desk.live[order_id].auction.lots.values())


async def hand_in(market: Market, award: Award, seller: Seller, count: int, since: int = 0, **last: Any) -> Any:
    """A receipt over the first records of a lease."""
    made = make_records(award, seller.signer, count, **last)
    delivery = sign_delivery(award, made, seller.signer, since=since)
    outputs = [make_state(record.index) for record in made[since:]]
    blobs = tuple(dict.fromkeys((*BLOBS, *outputs)))
    await market.client(seller.signer).deliver(compute_lease_id(CHAIN, award), replace(delivery, blobs=blobs))
    return delivery


async def cut(market: Market, delivery: Any) -> None:
    """The chain says that a lease was returned after this prefix."""
    receipt = delivery.receipt.body
    facts = {"served": receipt.count, "held": receipt.count, "cause": "ok"}
    await market.chain.end(receipt.lease, "delivered", receipt=compute_receipt_id(CHAIN, receipt).hex(), **facts)


async def settle(market: Market, delivery: Any) -> None:
    receipt = delivery.receipt.body
    facts = {"served": receipt.count, "cause": receipt.cause.value}
    await market.chain.end(receipt.lease, "settled", receipt=compute_receipt_id(CHAIN, receipt).hex(), **facts)


async def test_one_returns_and_the_other_serves_its_rest(tmp_path: Path) -> None:
    async with open_market(tmp_path) as market:
        first, second = await market.add_seller(), await market.add_seller(PROVIDERS[1])
        order_id, order, awards = await start_job(market, first, second)
        assert [(one.first, one.count) for one in awards] == [(0, 2), (2, 2)]
        part = await hand_in(market, awards[0], first, 1)
        await cut(market, part)
        offered = await second.hear(Announcement)
        assert (offered.round, [(one.first, one.count) for one in offered.spans]) == (1, [(1, 1)])
        await first.say(make_decline(order, first.signer, Reason.BUSY))
        await second.say(make_bid(order, second.signer, salt=b"another salt ...", valid_until=offered.closes + 5_000))
        await eventually(lambda: len(market.chain.opened) == 3)
        award = market.chain.opened[-1].award.body
        await eventually(lambda: find_lots(market, order_id)[-1].phase == "leased")
        await settle(market, part)
        for one in (awards[1], award):
            await settle(market, await hand_in(market, one, second, one.count))
        seen = await follow(market.client(), order_id, Ended)
        assert (seen[-1].state, seen[-1].text) == ("settled", "4 of 4 segments are served")
        assert [one.round for one in seen if isinstance(one, Announced)] == [0, 1]
        assert len([one for one in seen if isinstance(one, Left)]) == 4
        assert all(one.delivery.blobs == () for one in seen if isinstance(one, Delivered))
        await eventually(lambda: not market.node.desk.live)
        for one in (*awards, award):
            job = market.node.desk.get_lease(compute_lease_id(CHAIN, one))
            assert job.order_id == order_id


async def test_a_train_goes_on_elsewhere_after_a_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its provider says farewell and does not answer: what it did is put on the chain, and the next reads the state."""
    monkeypatch.setattr(lots, "CALL_PATIENCE", 20)
    async with open_market(tmp_path) as market:
        first, second = await market.add_seller(), await market.add_seller(PROVIDERS[1])
        order, spec = make_job(Kind.TRAIN)
        order_id = await market.client().submit(make_submission(order=order, spec=spec))
        await first.hear(Announcement)
        await first.say(make_bid(order, first.signer))
        await second.say(make_decline(order, second.signer, Reason.PRICE, 3_000_000))
        await follow(market.client(), order_id, Opened)
        award = find_lots(market, order_id)[0].award.body
        part = await hand_in(market, award, first, 3, kind=Kind.TRAIN)
        await leave(first)
        await eventually(lambda: len(market.chain.sent) == 2)
        assert {type(one) for one in market.chain.sent} == {Extend, Call}
        await cut(market, part)
        await eventually(lambda: market.node.desk.live[order_id].auction.round is not None)
        await second.hear(Announcement)
        offered = await second.hear(Announcement)
        await second.say(make_bid(order, second.signer, salt=b"another salt ...", valid_until=offered.closes + 5_000))
        await eventually(lambda: len(market.chain.opened) == 2)
        award = market.chain.opened[-1].award.body
        assert (award.first, award.start) == (3, compute_digest(make_state(2)))
        assert await market.client(second.signer).get_blob(award.start, 1_000) == make_state(2)


async def leave(seller: Seller) -> None:
    """A signed farewell."""
    farewell = make_offer(now() + 1_000, seller.signer, slots=0)
    await seller.bus.publish(
        topics.presence(CHAIN, seller.signer.key), encode(say(seller.signer, farewell)), retain=True
    )


@pytest.mark.parametrize("moment", ["leased", "prefix", "cut", "collecting", "opened"])
async def test_many_leases_survive_the_end_of_the_broker(tmp_path: Path, moment: str) -> None:
    """Stopping a node writes nothing, so that this is a kill at the named point."""
    async with open_market(tmp_path) as market:

        async def pass_by(name: str) -> None:
            if name == moment:
                await market.stop_node()
                await market.start_node()
                ledger = market.node.parts.ledger
                await eventually(lambda: all(ledger.knows_provider(one.key) for one in PROVIDERS[:2]))

        first, second = await market.add_seller(), await market.add_seller(PROVIDERS[1])
        order_id, order, awards = await start_job(market, first, second)
        await pass_by("leased")
        part = await hand_in(market, awards[0], first, 1)
        await pass_by("prefix")
        assert await hand_in(market, awards[0], first, 1) == part
        await cut(market, part)
        await pass_by("cut")
        await eventually(lambda: market.node.desk.live[order_id].auction.round is not None)
        offered = await second.hear(Announcement)
        await pass_by("collecting")
        await first.say(make_decline(order, first.signer, Reason.PRICE))
        await second.say(make_bid(order, second.signer, salt=b"another salt ...", valid_until=offered.closes + 5_000))
        await eventually(lambda: len(market.chain.opened) == 3)
        await eventually(lambda: find_lots(market, order_id)[-1].phase == "leased")
        await pass_by("opened")
        award = market.chain.opened[-1].award.body
        for one, seller in ((awards[1], second), (award, second)):
            await settle(market, await hand_in(market, one, seller, one.count))
        await settle(market, part)
        seen = await follow(market.client(), order_id, Ended)
        assert seen[-1].state == "settled"
        assert len([one for one in seen if isinstance(one, Awarded)]) == len(market.chain.opened) == 3
        assert len({one.book.body.root for one in seen if isinstance(one, Closed)}) == 2


async def test_each_lease_is_its_providers(tmp_path: Path) -> None:
    async with open_market(tmp_path) as market:
        first, second = await market.add_seller(), await market.add_seller(PROVIDERS[1])
        _, _, awards = await start_job(market, first, second)
        leases = [compute_lease_id(CHAIN, award) for award in awards]
        clients = [market.client(one.signer) for one in (first, second)]
        made = [
            sign_delivery(award, make_records(award, one.signer), one.signer)
            for award, one in zip(awards, (first, second), strict=True)
        ]
        for client, lease, delivery in zip(clients, reversed(leases), made, strict=True):
            with pytest.raises(Refused) as refused:
                await client.deliver(lease, delivery)
            assert refused.value.rule == "lease.party"
            with pytest.raises(Refused) as refused:
                await client.acceptance(lease, 0)
            assert refused.value.rule == "lease.party"
        for client, lease, delivery in zip(clients, leases, made, strict=True):
            await client.deliver(lease, replace(delivery, blobs=BLOBS))
        acceptance = make_acceptance(made[1])
        with pytest.raises(Refused) as refused:
            await market.client().accept(leases[0], acceptance)
        assert refused.value.rule == "R7.receipt"
        await market.client().accept(leases[1], acceptance)
        assert await clients[1].acceptance(leases[1], 5_000) == acceptance
        assert await clients[0].acceptance(leases[0], 0) is None


async def test_progress_is_taken_from_the_leases_own_provider(tmp_path: Path) -> None:
    async with open_market(tmp_path) as market:
        first, second = await market.add_seller(), await market.add_seller(PROVIDERS[1])
        order_id, _, awards = await start_job(market, first, second)
        lease = compute_lease_id(CHAIN, awards[1])
        for number, seller in enumerate((first, second)):
            await seller.say(say(seller.signer, Progress(lease, seller.signer.key, 0, number, 2, (), 0, b"log")))
        seen = [one for one in await follow(market.client(), order_id, Advanced) if isinstance(one, Advanced)]
        assert [(one.lease, one.done) for one in seen] == [(lease, 1)]


async def test_what_deliveries_bring_along_is_not_kept_twice(tmp_path: Path) -> None:
    """Blobs lie in the blob store; the journal has what follows from it, and only the new records."""
    async with open_market(tmp_path) as market:
        first, second = await market.add_seller(), await market.add_seller(PROVIDERS[1])
        order_id, _, awards = await start_job(market, first, second)
        await hand_in(market, awards[0], first, 1)
        await hand_in(market, awards[0], first, 2)
        journal = market.node.parts.journal
        rows = b"".join(event for _, event in journal.load(order_id.hex()))
        assert all(blob not in rows for blob in (*BLOBS, make_state(0)))
        delivered = [one.delivery for one in market.node.desk.live[order_id].documents if isinstance(one, Delivered)]
        assert [(one.since, len(one.records)) for one in delivered] == [(0, 1), (1, 1)]


async def test_records_in_memory_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk_module, "MAX_RECORDS", 1)
    async with open_market(tmp_path) as market:
        first, second = await market.add_seller(), await market.add_seller(PROVIDERS[1])
        _, _, awards = await start_job(market, first, second)
        await hand_in(market, awards[0], first, 1)
        with pytest.raises(Unavailable) as refused:
            await hand_in(market, awards[0], first, 2, 1)
        assert refused.value.rule == "delivery.busy"


async def test_a_lease_that_was_cut_takes_no_more(tmp_path: Path) -> None:
    async with open_market(tmp_path) as market:
        first, second = await market.add_seller(), await market.add_seller(PROVIDERS[1])
        order_id, _, awards = await start_job(market, first, second)
        part = await hand_in(market, awards[0], first, 1)
        await cut(market, part)
        await follow(market.client(), order_id, Left)
        with pytest.raises(Refused) as refused:
            await hand_in(market, awards[0], first, 2, 1)
        assert refused.value.rule == "lease.over"
        assert market.node.parts.custody.get_size(compute_digest(make_state(1)), first.signer.key) is None
        assert await hand_in(market, awards[0], first, 1) == part


# Presence


async def test_a_provider_whose_offer_ran_out_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener_module, "LOOK_GRACE", 0.0)
    monkeypatch.setattr(listener_module, "LOOK_PAUSE", 0.01)
    async with open_market(tmp_path) as market:
        first, second = await market.add_seller(), await market.add_seller(PROVIDERS[1], present=False)
        short = make_offer(now(), second.signer, valid_until=now() + 400)
        await second.say(say(second.signer, short))
        await eventually(lambda: market.node.parts.ledger.knows_provider(second.signer.key))
        order, spec = make_job(segments=2)
        order_id = await market.client().submit(make_submission(order=order, spec=spec))
        await first.hear(Announcement)
        await first.say(make_bid(order, first.signer))
        seen = await follow(market.client(), order_id, Closed)
        assert next(one for one in seen if isinstance(one, Announced)).expected == 2
        assert order.closes > now()


async def test_who_goes_on_offering_is_not_told_again_and_who_comes_back_is(tmp_path: Path) -> None:
    async with open_market(tmp_path) as market:
        seller = await market.add_seller()
        order, spec = make_job(segments=2)
        await market.client().submit(make_submission(order=order, spec=spec))
        await seller.hear(Announcement)
        await seller.say(say(seller.signer, make_offer(now() + 1_000, seller.signer)))
        again = make_offer(now() + 2_000, seller.signer)
        await seller.say(say(seller.signer, again))
        listener = market.node.listener
        await eventually(lambda: market.node.parts.directory.is_refresh(replace(again, sequence=again.sequence + 1)))
        await eventually(lambda: not listener._learning)
        assert not [one for one in seller.heard if isinstance(one.body, Announcement)]
        await seller.say(say(seller.signer, again))
        await seller.hear(Announcement)


async def test_a_provider_that_is_back_is_not_called(tmp_path: Path) -> None:
    async with open_market(tmp_path) as market:
        first, second = await market.add_seller(), await market.add_seller(PROVIDERS[1])
        order_id, _, _ = await start_job(market, first, second)
        lot = next(one for one in find_lots(market, order_id) if one.provider == first.signer.key)
        await leave(first)
        await eventually(lambda: lot.missing_since is not None)
        await first.say(say(first.signer, make_offer(now() + 2_000, first.signer)))
        await eventually(lambda: lot.missing_since is None)
        assert lot.wake_at() is None


# Estimates


async def test_an_estimate_says_who_fits_and_at_which_price(tmp_path: Path) -> None:
    async with open_market(tmp_path) as market:
        await market.add_seller()
        await market.add_seller(PROVIDERS[1])
        order, spec = make_job()
        found = await market.client().estimate(Enquiry(order, spec))
        assert (found.matching, found.providers) == (2, 2)
        assert found.lowest == found.median > 0
        with pytest.raises(Refused) as refused:
            await market.client(STRANGER).estimate(Enquiry(order, spec))
        assert refused.value.rule == "order.account"
        assert not market.node.desk.live


async def test_providers_are_shown_as_they_offer_themselves(tmp_path: Path) -> None:
    async with open_market(tmp_path) as market:
        seller = await market.add_seller()
        await market.add_seller(PROVIDERS[1])
        await leave(seller)
        await eventually(lambda: len(market.node.desk.list_providers()) == 1)
        (view,) = await market.client(STRANGER).providers()
        assert (view.key, view.pythons, view.packages) == (PROVIDERS[1].key.hex(), ["3.11"], ["numpy", "scipy"])
