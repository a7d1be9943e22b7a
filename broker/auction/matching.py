"""Does a provider's offer fit an order? One clause per `Reason`, each with the nearest value the provider could do.

The broker uses it to know whom to expect, a provider to decide whether to bid at all, and both to explain a refusal
(design.md section 4). Price, policy and momentary load are the provider's own: here `busy` means that it has no slot
at all, and `price` is never found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, NamedTuple

import msgspec

from broker.protocol.jobs import JobSpec, Resources
from broker.protocol.messages import Offer, Reason, Tariff
from chain.base.codec import Record
from chain.base.keys import Key
from chain.base.units import Amount
from chain.ledger.terms.agreement import Order

MAX_MISFITS = 64
"""Providers that don't fit and are remembered for the explanation."""

GIB = 1 << 30

Text = Annotated[str, msgspec.Meta(max_length=500)]


class Mismatch(Record, frozen=True, tag="mismatch"):
    """One clause that fails. `nearest` in the reason's unit: bytes, millicores, ms, micro-credits; 0 where there is
    none (`runtime`, `level`). `asked` is what the order wants in the same unit.
    """

    reason: Reason
    asked: Amount
    nearest: Amount
    text: Text


class Misfit(Record, frozen=True, tag="misfit"):
    """A provider whose offer does not fit, with every clause that fails."""

    provider: Key
    mismatches: tuple[Mismatch, ...]


class Survey(Record, frozen=True, tag="survey"):
    """Who is known to fit an order at the moment it is announced, and why the others don't."""

    matching: tuple[Key, ...]
    misfits: Annotated[tuple[Misfit, ...], msgspec.Meta(max_length=MAX_MISFITS)]


class Wanted(NamedTuple):
    """What an offer is held against: the order, its spec, the present Instant, the longest span on offer."""

    order: Order
    spec: JobSpec
    now: int
    segments: int


def find_mismatches(
    offer: Offer, order: Order, spec: JobSpec, now: int, segments: int | None = None
) -> tuple[Mismatch, ...]:
    """Every clause of the order that the offer does not meet at Instant `now`; empty if it fits.

    `segments` is the longest span on offer, by default the whole order. A bidder must be able to serve all of it in
    time: among how many bids it will be divided nobody knows before the close, and one that is alone gets all.
    """
    wanted = Wanted(order, spec, now, order.segments if segments is None else segments)
    return tuple(found for clause in _CLAUSES if (found := clause(offer, wanted)) is not None)


def survey(offers: Iterable[Offer], order: Order, spec: JobSpec, now: int, segments: int | None = None) -> Survey:
    """Sort the offers that still stand at `now` into those that fit a part of `segments` (by default all) and those
    that don't. Parties of the order are left out (R3 f).
    """
    matching: list[bytes] = []
    misfits: list[Misfit] = []
    for offer in offers:
        if offer.valid_until < now or offer.provider in (order.requester, order.auctioneer):
            continue
        mismatches = find_mismatches(offer, order, spec, now, segments)
        if not mismatches:
            matching.append(offer.provider)
        elif len(misfits) < MAX_MISFITS:
            misfits.append(Misfit(offer.provider, mismatches))
    return Survey(tuple(sorted(matching)), tuple(misfits))


def compute_duration(order: Order, lanes: int, segments: int | None = None) -> int:
    """Milliseconds that a part of so many segments (by default all) may take with so many lanes, the start window
    included (R3 d).
    """
    turns = -(-(order.segments if segments is None else segments) // max(lanes, 1))
    return order.windows.start + turns * order.segment_wall


def compute_list_price(tariff: Tariff, resources: Resources, segment_wall: int) -> int:
    """Micro-credits per segment by a provider's list: base, cores and memory for the whole wall limit (milliseconds),
    each rounded up. What it bids may differ.
    """
    cores = -(-tariff.core_second * resources.millicores * segment_wall // 1_000_000)
    memory = -(-tariff.gib_second * resources.memory_bytes * segment_wall // (GIB * 1_000))
    return tariff.base + cores + memory


def show_bytes(size: int) -> str:
    """Bytes for people: `512 MiB`, `17.58 GiB`; four digits, rounded down, so that what is advised does fit."""
    whole, unit = 1, "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < whole << 10:
            break
        whole, unit = whole << 10, larger
    digits = max(0, 4 - len(str(size // whole))) if whole > 1 else 0
    scaled = size * 10**digits // whole
    parts = f"{scaled // 10**digits}.{scaled % 10**digits:0{digits}}" if digits else str(scaled)
    return f"{parts.rstrip('0').rstrip('.') if digits else parts} {unit}"


def show_span(milliseconds: int) -> str:
    """A span for people, exact: `48 h`, `90 s`, `0.25 s`."""
    for unit, size in (("h", 3_600_000), ("min", 60_000)):
        if milliseconds >= 2 * size and milliseconds % size == 0:
            return f"{milliseconds // size} {unit}"
    return f"{_show_thousandths(milliseconds)} s"


def show_cores(millicores: int) -> str:
    """Cores for people, exact: `1 core`, `0.5 cores`."""
    return f"{_show_thousandths(millicores)} core{'' if millicores == 1_000 else 's'}"


def _show_thousandths(number: int) -> str:
    return f"{number // 1_000}.{number % 1_000:03}".rstrip("0").rstrip(".")


def _runtime(offer: Offer, wanted: Wanted) -> Mismatch | None:
    runtime = wanted.spec.runtime
    pythons = sorted({one.python for one in offer.runtimes})
    same = [one for one in offer.runtimes if one.python == runtime.python]
    if any(set(runtime.packages) <= set(one.packages) for one in same):
        return None
    if not same:
        text = f"needs Python {runtime.python}; here is {', '.join(pythons) or 'none'}"
    else:
        missing = min((sorted(set(runtime.packages) - set(one.packages)) for one in same), key=len)
        text = f"needs the package{'s' * (len(missing) > 1)} {', '.join(missing)}"
    return Mismatch(Reason.RUNTIME, 0, 0, text[:500])


def _memory(offer: Offer, wanted: Wanted) -> Mismatch | None:
    asked = wanted.spec.resources.memory_bytes
    if asked <= offer.memory_bytes:
        return None
    text = f"asks for {show_bytes(asked)} of memory; at most {show_bytes(offer.memory_bytes)} here"
    return Mismatch(Reason.MEMORY, asked, offer.memory_bytes, text)


def _cores(offer: Offer, wanted: Wanted) -> Mismatch | None:
    asked = wanted.spec.resources.millicores
    if asked <= offer.millicores:
        return None
    text = f"asks for {show_cores(asked)}; at most {show_cores(offer.millicores)} here"
    return Mismatch(Reason.CORES, asked, offer.millicores, text)


def _level(offer: Offer, wanted: Wanted) -> Mismatch | None:
    if wanted.spec.level.rank <= offer.level.rank:
        return None
    text = f"asks for isolation {wanted.spec.level}; {offer.level} here"
    return Mismatch(Reason.LEVEL, wanted.spec.level.rank, offer.level.rank, text)


def _wall(offer: Offer, wanted: Wanted) -> Mismatch | None:
    if wanted.order.segment_wall <= offer.segment_wall:
        return None
    text = f"a segment may take {show_span(wanted.order.segment_wall)}; at most {show_span(offer.segment_wall)} here"
    return Mismatch(Reason.WALL, wanted.order.segment_wall, offer.segment_wall, text)


def _busy(offer: Offer, wanted: Wanted) -> Mismatch | None:
    return Mismatch(Reason.BUSY, 1, 0, "takes no jobs at present") if offer.slots == 0 else None


def _deadline(offer: Offer, wanted: Wanted) -> Mismatch | None:
    needed = compute_duration(wanted.order, offer.slots, wanted.segments)
    left = max(0, wanted.order.deadline - wanted.now)
    if needed <= left:
        return None
    lanes = "1 lane" if offer.slots == 1 else f"{offer.slots} lanes"
    text = f"may take {show_span(needed)} with {lanes}; the deadline is {show_span(left)} away"
    return Mismatch(Reason.DEADLINE, left, needed, text)


def _bond(offer: Offer, wanted: Wanted) -> Mismatch | None:
    if offer.bond_free > 0 or (wanted.order.damages == 0 and wanted.order.panel == 0):
        return None
    return Mismatch(Reason.BOND, 1, 0, "has no bond that is free")


_Clause = Callable[[Offer, Wanted], Mismatch | None]
_CLAUSES: tuple[_Clause, ...] = (_runtime, _memory, _cores, _level, _wall, _busy, _deadline, _bond)


def iterate_reasons() -> Iterator[str]:
    """Names of the clauses, in the order in which they are looked at."""
    return (clause.__name__.removeprefix("_") for clause in _CLAUSES)
