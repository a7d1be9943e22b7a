"""Who gets what in each outcome of an order, before anything is signed (`--dry-run`) and once a price is known.

Rows of law.md's table for a job whose segments weigh the same, worked out at one price per segment and for every
lease of a divided job at once. Chain fees are outside the cap and paid by whoever submits (R13).
"""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec

from chain.base.units import checked, compute_share, format_credits
from chain.ledger.terms.agreement import Order

UNSTARTED_SHARE = 100
"""Basis points of the lease price burned from each side when a job is returned unstarted (R4)."""

CANCEL_SHARE = 1_000
"""Basis points of the lease price that bound the cancelling fee in the start window (row 6)."""

FAR = 32_503_680_000_000
"""The year 3000: Instants from there on are not shown as dates."""


class Outcome(msgspec.Struct, frozen=True):
    """One way an order can end, in micro-credits: what leaves the requester, and where it goes.

    `paid` = `provider` + `commission` + `burned`; `damages` is what the provider pays the requester on top.
    """

    name: str
    when: str
    paid: int
    provider: int
    commission: int
    burned: int
    damages: int


class Quote(msgspec.Struct, frozen=True):
    """What signing an order means: the most it can cost, the highest price it takes, the Instant by which the work must
    be done, among how many leases at a time it may be divided, and each outcome at that price.
    """

    cap: int
    limit: int
    segments: int
    commission_bps: int
    deadline: int
    outcomes: tuple[Outcome, ...]
    leases: int = 1

    @property
    def most(self) -> int:
        """The most that leaves the requester in any outcome, chain fees apart. Never above the cap."""
        return max(outcome.paid for outcome in self.outcomes)


def compute_quote(order: Order, price: int | None = None, leases: int = 1) -> Quote:
    """All outcomes at `price` per segment; at the order's limit, the dearest there can be, where no price is given.

    `leases` is the most that live at a time (the spec's parallelism): parts of equal length, each priced, cancelled and
    given back by itself.
    """
    price = order.limit if price is None else price
    checked(price * order.segments, "price")
    parts = split_range(order.segments, leases)
    whole, one = _serve(order, price, parts), _serve(order, price, [1] * len(parts))
    damages = sum(compute_share(price * part, order.damages) for part in parts)
    early = sum(min(price, compute_share(price * part, CANCEL_SHARE)) for part in parts)
    burned = sum(compute_share(price * part, UNSTARTED_SHARE) for part in parts)
    failure = whole if order.segments == 1 else one
    each = "" if len(parts) == 1 else " of each lease"
    when_failed = f"the first segment{each} raises or exceeds a limit: no other is paid"
    if order.segments == 1:
        when_failed = "the job raises or exceeds a limit"
    outcomes = (
        _paid("success", "every segment is done and you accept", *whole),
        _paid("failure", when_failed, *failure),
        _paid("silence", f"you do not answer for {_span(order.windows.acceptance)} after delivery", *whole),
        _free("no bid", "nobody bids within the limit", 0),
        _paid("cancelled early", "you cancel within the start window", early, 0),
        _paid("cancelled late", f"you cancel later: the price of one segment{each}", price * len(parts), 0),
        Outcome("unstarted", "the provider gives it back in the start window", burned, 0, 0, burned, 0),
        _free("returned", "the provider gives up later, with nothing done", damages),
        _free("expired", "the provider misses the deadline", damages),
    )
    return Quote(order.cap, order.limit, order.segments, order.commission, order.deadline, outcomes, len(parts))


def split_range(segments: int, leases: int) -> list[int]:
    """Lengths of the parts when `segments` are divided among at most `leases`, as evenly as can be."""
    count = max(1, min(segments, leases))
    return [segments // count + (number < segments % count) for number in range(count)]


def _serve(order: Order, price: int, parts: list[int]) -> tuple[int, int]:
    """Price and commission of parts that are served wholly; commission is floored for each (R13)."""
    total = sum(price * part for part in parts)
    return total, sum(compute_share(price * part, order.commission) for part in parts)


def _paid(name: str, when: str, provider: int, commission: int) -> Outcome:
    return Outcome(name, when, checked(provider + commission), provider, commission, 0, 0)


def _free(name: str, when: str, damages: int) -> Outcome:
    return Outcome(name, when, 0, 0, 0, 0, damages)


def _span(milliseconds: int) -> str:
    seconds = milliseconds / 1000
    return f"{seconds / 60:g} min" if seconds >= 60 else f"{seconds:g} s"


def _show_instant(instant: int) -> str:
    if instant >= FAR:
        return "the year 3000 or later"
    return datetime.fromtimestamp(instant / 1_000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def show_quote(quote: Quote) -> str:
    """The quote as lines of text for people, amounts in credits."""
    head = [
        f"You pay at most {format_credits(quote.cap)} credits, {quote.commission_bps / 100:g} % commission included.",
        f"Bids up to {format_credits(quote.limit)} credits per segment are taken, for {quote.segments} segment(s).",
        f"The work must be done by {_show_instant(quote.deadline)}; until then it may wait behind other jobs.",
        "The lowest bid wins. At the highest price it takes, this is who gets what:",
        "",
    ]
    rows: list[tuple[str, ...]] = [("outcome", "you pay", "provider", "commission", "burned", "you receive", "when")]
    rows += [
        (
            outcome.name,
            *(
                format_credits(amount)
                for amount in (outcome.paid, outcome.provider, outcome.commission, outcome.burned, outcome.damages)
            ),
            outcome.when,
        )
        for outcome in quote.outcomes
    ]
    tail = [
        "",
        *_show_parts(quote),
        "There is no panel: a delivered result cannot be disputed, and silence accepts it.",
        "Chain fees are outside the cap; your own transactions pay them.",
    ]
    return "\n".join([*head, *show_columns(rows), *tail])


def _show_parts(quote: Quote) -> list[str]:
    """What only a job of several segments has to say."""
    if quote.segments == 1:
        return []
    divided = f" At most {quote.leases} providers serve them at a time." if quote.leases > 1 else ""
    return [f"Each segment that is done is paid for, one that fails included; no other is.{divided}"]


def show_columns(rows: list[tuple[str, ...]]) -> list[str]:
    """Rows of text with aligned columns; no trailing blanks."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
