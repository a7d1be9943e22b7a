"""What the routes add to the desk: small blobs that ride with events, and what the market says of itself."""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace

from broker.protocol.api import INLINE_BYTES, Delivered, Enquiry
from chain.base.hashing import compute_digest
from chain.runtime.clock import SystemClock
from tests.broker.market import open_market
from tests.broker.test_service import open_lease
from tests.broker.world import (
    LOG,
    OUTPUT,
    PROVENANCE,
    PROVIDERS,
    make_delivery,
    make_order,
    make_records,
    make_spec,
    sign_delivery,
)


async def test_events_carry_the_small_blobs_that_deliveries_name(tmp_path: Path) -> None:
    async with open_market(tmp_path) as market:
        seller = await market.add_seller()
        order_id, award = await open_lease(market, seller)
        delivery = make_delivery(award)
        before = await market.client().events(order_id, 0, 0)
        assert before.blobs == ()
        await market.client(PROVIDERS[0]).deliver(delivery.receipt.body.lease, delivery)
        page = await market.client().events(order_id, before.next, 5_000)
        told = [one.delivery for one in page.items if isinstance(one, Delivered)]
        assert [one.blobs for one in told] == [()]
        assert set(page.blobs) == {OUTPUT, LOG, PROVENANCE}
        after = await market.client().events(order_id, page.next, 0)
        assert after.blobs == ()


async def test_what_does_not_fit_into_a_page_is_fetched(tmp_path: Path) -> None:
    """Large outputs do not ride along; small ones do as far as `INLINE_BYTES` go."""
    async with open_market(tmp_path) as market:
        seller, provider = await market.add_seller(), market.client(PROVIDERS[0])
        order_id, award = await open_lease(market, seller)
        large = bytes(INLINE_BYTES + 1)
        await provider.put_blob(large)
        named = [replace(one, output=compute_digest(large)) for one in make_records(award)]
        delivery = replace(sign_delivery(award, named), blobs=(LOG, PROVENANCE))
        await provider.deliver(delivery.receipt.body.lease, delivery)
        page = await market.client().events(order_id, 0, 5_000)
        assert set(page.blobs) == {LOG, PROVENANCE}
        found = await market.client().get_many([compute_digest(large), compute_digest(LOG)], len(large) + len(LOG))
        assert list(found.values()) == [large, LOG]


async def test_providers_and_estimates_come_as_the_desk_says_them(tmp_path: Path) -> None:
    async with open_market(tmp_path) as market:
        assert await market.client().providers() == []
        await market.add_seller()
        views = await market.client().providers()
        assert [one.key for one in views] == [PROVIDERS[0].key.hex()]
        spec = make_spec()
        enquiry = Enquiry(make_order(SystemClock().now(), spec), spec)
        estimate = await market.client().estimate(enquiry)
        assert (estimate.matching, estimate.providers) == (1, 1)
