"""From wishes to an order: the spending mandate of R2, worked out from a job spec, a cap and a set of terms.

The cap bounds price and commission together. The limit (highest price per segment) is the largest that keeps both
within the cap, so a bid at the limit never exceeds it (R2, R13), however the segments are divided: a commission is
floored per lease. Not here: packing of code and inputs, the signature.
"""

from __future__ import annotations

import msgspec

from broker.auction.admission import MAX_DEADLINE, MAX_SEGMENTS
from broker.protocol.jobs import (
    USUAL_SHM_BYTES,
    USUAL_TMP_BYTES,
    JobSpec,
    Resources,
    compute_job_digest,
    compute_runtime_digest,
)
from chain.base.errors import Refused
from chain.base.units import BPS, checked, compute_share, format_credits
from chain.ledger.terms.agreement import AwardRule, Kind, Order, Windows

MIB = 1 << 20

AUCTION_MS = 2_000
"""Milliseconds from signing to the close of the auction, at most; it closes earlier when all have answered."""

OPENING_MS = 60_000
"""Milliseconds after the close in which an award may open its lease: the longest a bid can be valid for it (R3 c)."""

WITHIN_MS = 3_600_000
"""Milliseconds from signing to the deadline where nothing else is wished: room to queue behind others' jobs."""

MAX_WITHIN_MS = MAX_DEADLINE - 3_600_000
"""Longest from signing to the deadline: what a broker takes, whose clock may differ from ours."""

MAX_COMMISSION = 200
"""Basis points of commission that are agreed to without asking."""

DAMAGES = 1_000
"""Basis points of the unserved price that a provider owes for leaving (R4)."""

DEFAULT_WINDOWS = Windows(
    start=30_000,
    answer=10_000,
    acceptance=600_000,
    grace=10_000,
    commit=60_000,
    reveal=60_000,
    appeal=60_000,
)
"""Windows of an order whose writer says nothing else, in milliseconds."""


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """What a requester agrees to besides the work itself.

    `cap` in micro-credits; `segment_wall`, `auction` and `within` in milliseconds; `commission` and `damages` in basis
    points. `within` is from signing to the deadline; None is `WITHIN_MS`, for longer work twice the least it needs, so
    that what a provider leaves undone can be offered again. `item_root` is the root over a `map`'s items, None for
    other kinds.
    """

    cap: int
    segment_wall: int
    segments: int = 1
    item_root: bytes | None = None
    commission: int = MAX_COMMISSION
    damages: int = DAMAGES
    auction: int = AUCTION_MS
    windows: Windows = DEFAULT_WINDOWS
    within: int | None = None


class Parties(msgspec.Struct, frozen=True):
    """Whose order it is: chain id, requester's key, auctioneer's key. The auctioneer is also the holder of outputs."""

    chain: bytes
    requester: bytes
    auctioneer: bytes


def make_resources(
    memory_bytes: int, segment_wall: int, *, millicores: int = 1_000, output_bytes: int = 64 * MIB
) -> Resources:
    """Limits of one segment. CPU time is bounded by wall time on the cores asked for; the rest are the house's."""
    return Resources(
        memory_bytes=memory_bytes,
        cpu_ms=checked(max(1, segment_wall * millicores // 1_000), "cpu time"),
        millicores=millicores,
        processes=64,
        open_files=256,
        output_bytes=output_bytes,
        output_count=16,
        log_bytes=MIB,
        tmp_bytes=USUAL_TMP_BYTES,
        shm_bytes=USUAL_SHM_BYTES,
    )


def compute_cost(price: int, segments: int, commission: int) -> int:
    """What `segments` at `price` each cost, with commission in basis points (R13), in micro-credits."""
    total = checked(price * segments, "price")
    return checked(total + compute_share(total, commission), "cost")


def compute_limit(cap: int, segments: int, commission: int) -> int:
    """The highest price per segment whose cost stays within `cap` (R2).

    Raises `Refused` under `R2.cap` where not even the price of one micro-credit does.
    """
    checked(cap, "cap")
    limit = cap * BPS // (segments * (BPS + commission))
    while compute_cost(limit + 1, segments, commission) <= cap:
        limit += 1
    if limit < 1:
        raise Refused(f"a cap of {format_credits(cap)} credits pays for no segment; raise --cap", rule="R2.cap")
    return limit


def compute_least_within(terms: Terms) -> int:
    """Milliseconds from signing to the soonest deadline that works: auction, opening in its last moment, start window
    and every segment on one lane (R3 c, d).

    So also for a `map` that may be divided: who bids offers to serve whatever part of the whole it is awarded, and the
    whole is awarded to it when nobody else bids.
    """
    work = terms.windows.start + terms.segments * terms.segment_wall
    return checked(terms.auction + OPENING_MS + work, "time for the work")


def _find_within(terms: Terms) -> int:
    least = compute_least_within(terms)
    within = terms.within if terms.within is not None else max(WITHIN_MS, min(2 * least, MAX_WITHIN_MS))
    segments = f"{terms.segments} segment(s) with a wall limit of {terms.segment_wall / 1_000:g} s one after the other"
    if least > MAX_WITHIN_MS or within > MAX_WITHIN_MS:
        message = (
            f"{segments} need {least // 1_000} s, the most is --within {MAX_WITHIN_MS // 1_000}s; make it two jobs"
        )
        raise Refused(message, rule="order.within")
    if within < least:
        message = f"{within / 1_000:g} s until the deadline are too few for {segments}; the least is --within "
        raise Refused(f"{message}{-(-least // 1_000)}s", rule="order.within")
    return within


def _find_start(spec: JobSpec, terms: Terms) -> bytes:
    """Digest of what the first segment starts from: a `map`'s root over its items, else the packed inputs."""
    if not 1 <= terms.segments <= MAX_SEGMENTS:
        message = f"{terms.segments} segments; an order has at least one and at most {MAX_SEGMENTS}"
        raise Refused(message, rule="order.segments")
    if spec.kind is Kind.RUN and terms.segments != 1:
        raise Refused(f"a run has one segment, not {terms.segments}", rule="order.segments")
    if spec.kind is not Kind.MAP and spec.parallelism != 1:
        raise Refused(f"a {spec.kind.value} cannot be divided among {spec.parallelism} providers", rule="order.kind")
    if (terms.item_root is None) is (spec.kind is Kind.MAP):
        raise Refused("a map, and nothing else, starts from the root over its items", rule="order.kind")
    return spec.inputs if terms.item_root is None else terms.item_root


def make_order(spec: JobSpec, terms: Terms, parties: Parties, *, now: int, salt: bytes) -> Order:
    """The order for `spec`, to be signed at Instant `now`; `salt` is 16 random bytes.

    The deadline follows from `terms.within`; the expiry lies one acceptance window behind it. Panel size is 0: no
    disputes, silence accepts (R8, R10). Raises `Refused` under `order.within` for a deadline that leaves too little
    time or lies too far ahead, `order.segments` or `order.kind` for terms that don't fit the spec's kind, `R2.cap` for
    too small a cap.
    """
    closes = checked(now + terms.auction, "close of the auction")
    deadline = checked(now + _find_within(terms), "deadline")
    return Order(
        requester=parties.requester,
        auctioneer=parties.auctioneer,
        watcher=None,
        holders=(parties.auctioneer,),
        job=compute_job_digest(parties.chain, spec),
        runtime=compute_runtime_digest(parties.chain, spec.runtime),
        kind=spec.kind,
        start=_find_start(spec, terms),
        segments=terms.segments,
        weights=(),
        segment_wall=terms.segment_wall,
        replicas=1,
        cap=terms.cap,
        limit=compute_limit(terms.cap, terms.segments, terms.commission),
        commission=terms.commission,
        rule=AwardRule.LOWEST,
        comparator="exact",
        panel=0,
        deposit=0,
        damages=terms.damages,
        windows=terms.windows,
        closes=closes,
        deadline=deadline,
        expiry=checked(deadline + terms.windows.acceptance, "expiry"),
        salt=salt,
    )
