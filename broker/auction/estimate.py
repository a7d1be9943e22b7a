"""What the market would say to an order, by offers and list prices, before anything is signed (design.md section 4)."""

from __future__ import annotations

from collections.abc import Sequence

from broker.auction.explanation import explain
from broker.auction.matching import compute_list_price, survey
from broker.protocol.api import Estimate, ProviderView
from broker.protocol.jobs import JobSpec
from broker.protocol.messages import Offer
from chain.base.units import MAX_INT, format_credits
from chain.ledger.terms.agreement import Order


def estimate(offers: Sequence[Offer], order: Order, spec: JobSpec, now: int) -> Estimate:
    """Who of those that offer now fits the order, at which list prices, and what would bring (more) bids.

    A list price that is no Amount is left out. The median is the lower one of two.
    """
    found = survey(offers, order, spec, now)
    matching = [offer for offer in offers if offer.provider in set(found.matching)]
    listed = sorted(compute_list_price(offer.prices, spec.resources, order.segment_wall) for offer in matching)
    prices = [price for price in listed if price <= MAX_INT]
    lowest = prices[0] if prices else 0
    advice = ""
    if lowest > order.limit:
        advice = f"the lowest list price is {format_credits(lowest)} credits per segment; raise the limit to it"
    elif found.misfits or not matching:
        advice = explain(order, spec, found, ()).text
    return Estimate(len(matching), len(offers), lowest, prices[(len(prices) - 1) // 2] if prices else 0, advice)


def show_provider(offer: Offer) -> ProviderView:
    """A standing offer as JSON shows it."""
    return ProviderView(
        key=offer.provider.hex(),
        pythons=sorted({one.python for one in offer.runtimes}),
        packages=sorted({package for one in offer.runtimes for package in one.packages}),
        level=offer.level.value,
        slots=offer.slots,
        memory_bytes=offer.memory_bytes,
        millicores=offer.millicores,
        segment_wall_ms=offer.segment_wall,
        bond_free=offer.bond_free,
        base=offer.prices.base,
        core_second=offer.prices.core_second,
        gib_second=offer.prices.gib_second,
    )
