"""What a requester asks for by default is what a provider of the default settings can promise."""

from __future__ import annotations

import msgspec

from broker.auction.scoring import BID_GRACE, find_fault
from chain.base.units import parse_credits
from provider.bidding.desk import DELIVER_MS, OVERHEAD_MS, BidMade, Desk, Funds, Rates
from provider.daemon.settings import ProviderSettings
from requester.client.wishes import Wishes
from requester.purchase.order import Parties, make_resources
from requester.purchase.order import make_order as make_wished
from tests.provider.scene import BROKER, CHAIN, MIB, NOW, OFFER, PROVIDER, REQUESTER, announce, make_spec


def test_twenty_default_orders_fit_a_default_provider_of_two_slots() -> None:
    """R3 d and e, R14: time, bond and leverage hold for all of them until the last moment of opening."""
    settings = ProviderSettings(slots=2, cores=2, memory_mib=2_048)
    desk = Desk(PROVIDER, CHAIN, Rates(settings.prices, settings.policy, settings.pool))
    bond = parse_credits(settings.bond)
    wishes = Wishes(cap=1)
    spec = make_spec(resources=msgspec.structs.asdict(make_resources(512 * MIB, 300_000)))
    terms, parties = wishes.make_terms(200), Parties(CHAIN, REQUESTER.key, BROKER.key)
    orders = [make_wished(spec, terms, parties, now=NOW, salt=bytes([n]) * 16) for n in range(20)]
    made = [desk.answer(announce(order, spec), OFFER, Funds(bond, 0, 0), NOW, bytes(16)) for order in orders]
    bids = [one.promise.bid.body for one in made if isinstance(one, BidMade)]
    assert len(bids) == len(orders)
    assert sum(bid.price for bid in bids) <= bond
    for order, bid in zip(orders, bids, strict=True):
        assert order.closes < bid.valid_until <= order.closes + BID_GRACE
        assert find_fault(order, bid, 200, bid.valid_until) == ""
        booking = desk.capacity.get(bid.order)
        assert booking is not None
        assert bid.earliest <= booking.start >= bid.valid_until
        assert booking.start + order.segment_wall + OVERHEAD_MS + DELIVER_MS <= order.deadline
