"""What a broker keeps for whom, end to end over a fake chain: receipts name what their provider sent, within the limits
of the order; no requester's outputs become somebody else's.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from broker.protocol.api import Awarded, Opened
from broker.protocol.messages import Announcement
from broker.service.custody import OUTPUT as HELD_AS_OUTPUT
from chain.base.errors import Refused
from chain.base.hashing import compute_digest
from chain.ledger.terms.agreement import Award
from chain.ledger.terms.outcome import Cause
from tests.broker.market import Market, Seller, follow, open_market
from tests.broker.test_service import now, open_lease
from tests.broker.world import (
    CODE,
    INPUTS,
    LOG,
    OUTPUT,
    PROVENANCE,
    PROVIDERS,
    REQUESTER,
    STRANGER,
    make_bid,
    make_delivery,
    make_order,
    make_records,
    make_submission,
    sign_delivery,
)


async def order_again(market: Market, seller: Seller, salt: bytes) -> Award:
    """A further order like the first, up to its open lease."""
    order = make_order(now(), salt=salt, cap=2_000_000)
    order_id = await market.client().submit(make_submission(order=order))
    await seller.hear(Announcement)
    await seller.say(make_bid(order))
    seen = await follow(market.client(), order_id, Opened)
    return next(one.award.body for one in seen if isinstance(one, Awarded))


async def test_a_receipt_names_what_its_provider_sent_and_not_what_it_may_read(tmp_path: Path) -> None:
    """Equal outputs need no second sending, in the next order either; a result that is its input is sent once."""
    async with open_market(tmp_path) as market:
        seller, provider = await market.add_seller(), market.client(PROVIDERS[0])
        _, award = await open_lease(market, seller)
        delivery = make_delivery(award)
        await provider.deliver(delivery.receipt.body.lease, delivery)
        again = await order_again(market, seller, b"the second order")
        delivery = make_delivery(again, blobs=())
        await provider.deliver(delivery.receipt.body.lease, delivery)
        third = await order_again(market, seller, b"the third order.")
        named = sign_delivery(third, [replace(one, output=compute_digest(INPUTS)) for one in make_records(third)])
        with pytest.raises(Refused) as refused:
            await provider.deliver(named.receipt.body.lease, named)
        assert refused.value.rule == "blob.missing"
        await provider.put_blob(INPUTS)
        await provider.deliver(named.receipt.body.lease, named)
        assert market.node.parts.custody.compute_held(PROVIDERS[0].key) == 0


async def test_what_passes_the_orders_limits_is_not_kept(tmp_path: Path) -> None:
    """An error text of 2 MiB: neither signed for, nor counted against the requester."""
    async with open_market(tmp_path) as market:
        seller, provider = await market.add_seller(), market.client(PROVIDERS[0])
        _, award = await open_lease(market, seller)
        huge = bytes(2 << 20)
        await provider.put_blob(huge)
        failed = make_records(award, error=compute_digest(huge), cause=Cause.PROGRAM)
        delivery = replace(sign_delivery(award, failed), blobs=(OUTPUT, LOG, PROVENANCE))
        with pytest.raises(Refused) as refused:
            await provider.deliver(delivery.receipt.body.lease, delivery)
        assert refused.value.rule == "delivery.error"
        assert market.node.parts.custody.compute_held(REQUESTER.key, HELD_AS_OUTPUT) == 0


async def test_who_has_no_room_for_outputs_orders_no_more(tmp_path: Path) -> None:
    """What was ordered before is still taken, and its provider is free."""
    made = len(OUTPUT) + len(LOG) + len(PROVENANCE)
    async with open_market(tmp_path, quota_bytes=made - 1 + len(CODE) + len(INPUTS)) as market:
        seller, custody = await market.add_seller(), market.node.parts.custody
        _, award = await open_lease(market, seller)
        earlier = {compute_digest(b"results of earlier orders"): made - 1 + len(CODE)}
        custody.hand_over(earlier, STRANGER.key, REQUESTER.key, now() + 900_000)
        delivery = make_delivery(award)
        await market.client(PROVIDERS[0]).deliver(delivery.receipt.body.lease, delivery)
        assert custody.compute_held(PROVIDERS[0].key) == 0
        with pytest.raises(Refused, match="retention") as refused:
            await market.client().submit(make_submission(order=make_order(now(), salt=b"another order's.")))
        assert refused.value.rule == "order.outputs"
