"""Orders keep to their cap whatever the numbers, and the table of outcomes adds up."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from broker.auction.admission import MAX_SEGMENTS
from broker.protocol.jobs import compute_job_digest, compute_runtime_digest
from chain.base.codec import decode, encode
from chain.base.errors import Refused
from chain.base.units import MAX_INT
from chain.ledger.terms.agreement import AwardRule, Kind, Order
from requester.purchase.order import (
    MAX_WITHIN_MS,
    Parties,
    Terms,
    compute_cost,
    compute_least_within,
    compute_limit,
    make_order,
    make_resources,
)
from requester.purchase.quote import compute_quote, show_quote, split_range
from tests.requester.world import BROKER, CHAIN, INPUT, NOW, REQUESTER, World, make_spec

ROOT = bytes(32)
CAPS = st.integers(0, 10**15)
PARTIES = Parties(CHAIN, REQUESTER.key, BROKER.key)
SEGMENTS = st.integers(1, 2**20)
BPS = st.integers(0, 10_000)


@given(cap=CAPS, segments=SEGMENTS, commission=BPS)
@example(cap=2_000_000, segments=1, commission=200)
def test_the_limit_is_the_highest_price_within_the_cap(cap: int, segments: int, commission: int) -> None:
    """R2."""
    try:
        limit = compute_limit(cap, segments, commission)
    except Refused as refused:
        assert refused.rule == "R2.cap"
        assert compute_cost(1, segments, commission) > cap
        return
    assert compute_cost(limit, segments, commission) <= cap < compute_cost(limit + 1, segments, commission)


@given(
    cap=st.integers(1_000, 10**15),
    segments=st.integers(1, 900),
    share=st.integers(1, 1_000),
    leases=st.integers(1, 1_000),
)
def test_no_outcome_costs_more_than_the_cap(cap: int, segments: int, share: int, leases: int) -> None:
    """R2, R13: every row of the table is paid out of the cap, and to the unit by somebody."""
    spec = make_spec(Kind.TRAIN)
    terms = Terms(cap=cap, segment_wall=1_000, segments=segments)
    try:
        order = make_order(spec, terms, PARTIES, now=NOW, salt=bytes(16))
    except Refused as refused:
        assert refused.rule == "R2.cap"
        return
    quote = compute_quote(order, max(1, order.limit * share // 1_000), leases)
    assert quote.most <= cap
    assert quote.leases == min(leases, segments)
    for outcome in quote.outcomes:
        assert outcome.paid == outcome.provider + outcome.commission + outcome.burned, outcome.name
        assert min(outcome.paid, outcome.provider, outcome.commission, outcome.burned, outcome.damages) >= 0
    named = {outcome.name: outcome for outcome in quote.outcomes}
    assert named["failure"].paid <= named["success"].paid == named["silence"].paid == quote.most
    assert named["no bid"].paid == named["returned"].paid == named["expired"].paid == 0


@pytest.mark.parametrize(("cap", "rule"), [(0, "R2.cap"), (1, ""), (MAX_INT + 1, "R18.range"), (-1, "R18.range")])
def test_caps_at_the_edges(cap: int, rule: str) -> None:
    if rule:
        with pytest.raises(Refused) as refused:
            compute_limit(cap, 1, 200)
        assert refused.value.rule == rule
    else:
        assert compute_limit(cap, 1, 200) == 1


def test_an_order_says_what_was_asked_for() -> None:
    world = World()
    order, spec = world.order.body, world.spec
    assert (order.requester, order.auctioneer, order.holders) == (REQUESTER.key, BROKER.key, (BROKER.key,))
    assert order.job == compute_job_digest(CHAIN, spec)
    assert order.runtime == compute_runtime_digest(CHAIN, spec.runtime)
    assert order.start == INPUT
    assert (order.rule, order.panel, order.replicas, order.comparator) == (AwardRule.LOWEST, 0, 1, "exact")
    assert order.closes == NOW + 2_000
    assert order.deadline == NOW + 3_600_000
    assert order.expiry == order.deadline + 600_000


TIMES: list[tuple[str, int, int | None, int | None]] = [
    # what, wall limit, within, milliseconds from signing to the deadline (None: refused)
    ("an hour by default", 300_000, None, 3_600_000),
    ("the longest job that an hour is twice enough for", 1_708_000, None, 3_600_000),
    ("a longer job", 1_708_001, None, 3_600_002),
    ("the least", 300_000, 392_000, 392_000),
    ("a moment less", 300_000, 391_999, None),
    ("none at all", 300_000, 0, None),
    ("a day", 300_000, 86_400_000, 86_400_000),
]


@pytest.mark.parametrize(("wall", "within", "span"), [row[1:] for row in TIMES], ids=[row[0] for row in TIMES])
def test_the_deadline_is_as_wished_or_the_wish_is_refused(wall: int, within: int | None, span: int | None) -> None:
    terms = Terms(cap=10**6, segment_wall=wall, within=within)
    assert compute_least_within(terms) == 2_000 + 60_000 + 30_000 + wall
    if span is None:
        with pytest.raises(Refused, match="--within 392s") as refused:
            make_order(make_spec(), terms, PARTIES, now=NOW, salt=bytes(16))
        assert refused.value.rule == "order.within"
        return
    order = make_order(make_spec(), terms, PARTIES, now=NOW, salt=bytes(16))
    assert (order.deadline, order.expiry) == (NOW + span, NOW + span + 600_000)


LONG: list[tuple[str, int, int | None, int | None]] = [
    # what, segments of an hour each, within, milliseconds from signing to the deadline (None: refused)
    ("twice the least is too far", 1_100, None, MAX_WITHIN_MS),
    ("the longest wish", 1, MAX_WITHIN_MS, MAX_WITHIN_MS),
    ("a longer wish", 1, MAX_WITHIN_MS + 1, None),
    ("more than there is time for", 2_200, None, None),
]


@pytest.mark.parametrize(("segments", "within", "span"), [row[1:] for row in LONG], ids=[row[0] for row in LONG])
def test_no_deadline_is_further_than_a_broker_takes(segments: int, within: int | None, span: int | None) -> None:
    terms = Terms(cap=10**12, segment_wall=3_600_000, segments=segments, within=within)
    if span is None:
        with pytest.raises(Refused, match="the most is --within 7772400s") as refused:
            make_order(make_spec(Kind.TRAIN), terms, PARTIES, now=NOW, salt=bytes(16))
        assert refused.value.rule == "order.within"
        return
    order = make_order(make_spec(Kind.TRAIN), terms, PARTIES, now=NOW, salt=bytes(16))
    assert order.deadline == NOW + span


def test_a_deadline_beyond_all_calendars_is_shown() -> None:
    quote = compute_quote(World().order.body)
    assert "by the year 3000 or later;" in show_quote(msgspec.structs.replace(quote, deadline=MAX_INT))


FITS: list[tuple[str, Kind, int, int, bytes | None, str]] = [
    # what, kind, segments, parallelism, item root, rule (empty: taken)
    ("a run", Kind.RUN, 1, 1, None, ""),
    ("a map", Kind.MAP, 1, 4, ROOT, ""),
    ("a train", Kind.TRAIN, MAX_SEGMENTS, 1, None, ""),
    ("a run of two segments", Kind.RUN, 2, 1, None, "order.segments"),
    ("nothing", Kind.MAP, 0, 1, ROOT, "order.segments"),
    ("too many", Kind.TRAIN, MAX_SEGMENTS + 1, 1, None, "order.segments"),
    ("a divided run", Kind.RUN, 1, 2, None, "order.kind"),
    ("a divided train", Kind.TRAIN, 3, 2, None, "order.kind"),
    ("a map without items", Kind.MAP, 3, 1, None, "order.kind"),
    ("a train of items", Kind.TRAIN, 3, 1, ROOT, "order.kind"),
]


@pytest.mark.parametrize(("kind", "segments", "parallelism", "root", "rule"), [row[1:] for row in FITS])
def test_terms_fit_the_kind_of_the_job(kind: Kind, segments: int, parallelism: int, root: Any, rule: str) -> None:
    terms = Terms(cap=10**12, segment_wall=100, segments=segments, item_root=root)
    spec = make_spec(kind, parallelism)
    if rule:
        with pytest.raises(Refused) as refused:
            make_order(spec, terms, PARTIES, now=NOW, salt=bytes(16))
        assert refused.value.rule == rule
        return
    order = make_order(spec, terms, PARTIES, now=NOW, salt=bytes(16))
    assert (order.kind, order.segments) == (kind, segments)
    assert order.start == (root if kind is Kind.MAP else spec.inputs)
    assert decode(encode(order), Order) == order


@given(segments=st.integers(1, 5_000), leases=st.integers(1, 6_000))
def test_parts_are_as_even_as_can_be(segments: int, leases: int) -> None:
    parts = split_range(segments, leases)
    assert (sum(parts), len(parts)) == (segments, min(segments, leases))
    assert max(parts) - min(parts) <= 1


@given(segments=st.integers(1, 700), wall=st.integers(1, 10**7), within=st.none() | st.integers(0, MAX_WITHIN_MS))
def test_the_deadline_leaves_room_for_the_last_moment_of_opening(segments: int, wall: int, within: int | None) -> None:
    """R3 (d), for a lease that opens 60 s after the close on one lane."""
    terms = Terms(cap=10**12, segment_wall=wall, segments=segments, within=within)
    if within is not None and within < compute_least_within(terms):
        terms = msgspec.structs.replace(terms, within=compute_least_within(terms))
    order = make_order(make_spec(Kind.TRAIN), terms, PARTIES, now=NOW, salt=bytes(16))
    assert order.deadline - (order.closes + 60_000) >= order.windows.start + segments * wall


def test_cpu_time_follows_wall_time_and_cores() -> None:
    assert make_resources(1, 1_000).cpu_ms == 1_000
    assert make_resources(1, 1_000, millicores=500).cpu_ms == 500
    assert make_resources(1, 1, millicores=1).cpu_ms == 1


GOLDEN = """\
You pay at most 2 credits, 2 % commission included.
Bids up to 1.960785 credits per segment are taken, for 1 segment(s).
The work must be done by 2027-01-15 09:00:00 UTC; until then it may wait behind other jobs.
The lowest bid wins. At the highest price it takes, this is who gets what:

outcome          you pay   provider  commission  burned    you receive  when
success          2         1.960785  0.039215    0         0            every segment is done and you accept
failure          2         1.960785  0.039215    0         0            the job raises or exceeds a limit
silence          2         1.960785  0.039215    0         0            you do not answer for 10 min after delivery
no bid           0         0         0           0         0            nobody bids within the limit
cancelled early  0.196078  0.196078  0           0         0            you cancel within the start window
cancelled late   1.960785  1.960785  0           0         0            you cancel later: the price of one segment
unstarted        0.019607  0         0           0.019607  0            the provider gives it back in the start window
returned         0         0         0           0         0.196078     the provider gives up later, with nothing done
expired          0         0         0           0         0.196078     the provider misses the deadline

There is no panel: a delivered result cannot be disputed, and silence accepts it.
Chain fees are outside the cap; your own transactions pay them."""


def test_the_quote_as_it_is_shown() -> None:
    assert show_quote(compute_quote(World().order.body)) == GOLDEN


def test_the_quote_of_a_divided_map() -> None:
    """Row 6 for each lease; a failure ends each range at its first segment."""
    world = World(segments=6, kind=Kind.MAP)
    quote = compute_quote(world.order.body, leases=2)
    shown = show_quote(quote)
    price = world.order.body.limit
    named = {outcome.name: outcome for outcome in quote.outcomes}
    assert named["success"].provider == 6 * price
    assert named["failure"].provider == named["cancelled late"].provider == 2 * price
    assert named["cancelled early"].provider == 2 * min(price, 3 * price // 10)
    assert "you cancel later: the price of one segment of each lease" in shown
    assert "Each segment that is done is paid for, one that fails included; no other is." in shown
    assert "At most 2 providers serve them at a time." in shown
    assert "At most" not in show_quote(compute_quote(world.order.body))
