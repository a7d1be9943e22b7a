"""Integers with a meaning: credits, instants, basis points.

No float ever stands for money or time. All divisions round down; the remainder stays with the requester (R13).
Formatting here is for people;
whatever is signed holds the integers.
"""

from __future__ import annotations

import re
from typing import Annotated

import msgspec

from chain.base.errors import Refused

MICRO = 1_000_000
"""Micro-credits in one credit."""

MAX_INT = 2**63 - 1
"""The largest Amount or Instant (R18)."""

BPS = 10_000
"""Basis points in a whole."""

Amount = Annotated[int, msgspec.Meta(ge=0, le=MAX_INT)]
"""Money in micro-credits."""

Instant = Annotated[int, msgspec.Meta(ge=0, le=MAX_INT)]
"""Milliseconds since the Unix epoch."""

Millis = Annotated[int, msgspec.Meta(ge=0, le=MAX_INT)]
"""A span of time in milliseconds."""

Height = Annotated[int, msgspec.Meta(ge=0, le=MAX_INT)]
"""Number of a block; genesis is 0."""

Count = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]
"""How many of something."""

Bps = Annotated[int, msgspec.Meta(ge=0, le=BPS * 100)]
"""A share in basis points; bonds may exceed the whole."""

_CREDITS = re.compile(r"([0-9]{1,13})(?:\.([0-9]{1,6}))?")


def checked(value: int, what: str = "amount") -> int:
    """Return `value` if it is an int in 0..2^63-1 (R18), else raise `Refused` under `R18.range`."""
    if type(value) is not int or not 0 <= value <= MAX_INT:
        raise Refused(f"{what} {value!r} is outside 0..2^63-1", rule="R18.range")
    return value


def compute_share(amount: int, bps: int) -> int:
    """`floor(amount x bps / 10,000)`, checked (R13)."""
    return checked(amount * bps // BPS)


def parse_credits(text: str) -> int:
    """Micro-credits of a decimal text such as `1.5`; raises `Refused` under `units.credits` for any other form, under
    `R18.range` for more than 2^63-1.
    """
    match = _CREDITS.fullmatch(text.strip())
    if match is None:
        raise Refused(
            f"{text!r} is no amount of credits; write for example 2 or 0.25, with at most six decimals",
            rule="units.credits",
        )
    return checked(int(match[1]) * MICRO + int((match[2] or "").ljust(6, "0")))


def format_credits(amount: int) -> str:
    """Decimal text of micro-credits without trailing zeros: 1_500_000 -> `1.5`."""
    sign, amount = ("-", -amount) if amount < 0 else ("", amount)
    whole, rest = divmod(amount, MICRO)
    return f"{sign}{whole}.{rest:06d}".rstrip("0").rstrip(".")
