"""What a segment costs here: a base price and rates for what it may take at most, times a factor.

Micro-credits throughout, integers, rounded up (the provider's own choice; what the ledger pays is rounded by R13).
The wall limit counts in full: it is what the slot is kept for.
"""

from __future__ import annotations

import msgspec

from broker.protocol.jobs import Resources
from broker.protocol.messages import Tariff
from chain.base.units import BPS, checked

GIB = 1 << 30


class Prices(msgspec.Struct, frozen=True):
    """Micro-credits per segment, per core and second, per GiB and second; the factor in basis points applies to their
    sum.
    """

    base: int = 1_000
    core_second: int = 10
    gib_second: int = 2
    factor: int = BPS


def compute_price(prices: Prices, resources: Resources, segment_wall: int) -> int:
    """Price per segment for these limits and a wall limit in milliseconds. Raises `Refused` under `R18.range` where
    it is no Amount.
    """
    cores = _round_up(prices.core_second * resources.millicores * segment_wall, 1_000_000)
    memory = _round_up(prices.gib_second * resources.memory_bytes * segment_wall, GIB * 1_000)
    return checked(_round_up((prices.base + cores + memory) * prices.factor, BPS), "price")


def make_tariff(prices: Prices) -> Tariff:
    """The list prices that an offer names: each rate with the factor applied, rounded up: a bid is dearer by its own
    rounding at most. Raises `Refused` under `R18.range` where one is no Amount.
    """
    rates = (prices.base, prices.core_second, prices.gib_second)
    return Tariff(*(checked(_round_up(rate * prices.factor, BPS), "list price") for rate in rates))


def _round_up(amount: int, divisor: int) -> int:
    return -(-amount // divisor)
