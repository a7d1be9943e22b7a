"""How a round's book is divided among its bids: parts, who takes which, prices, and what any division keeps (R2, R3,
R12 a).
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.auction.scoring import (
    Share,
    choose,
    compute_cost,
    compute_weight,
    divide,
    find_fault,
    replace_share,
    split_spans,
)
from broker.protocol.messages import Book
from chain.base.keys import Signed, Signer
from chain.ledger.terms.agreement import AwardRule, Bid, Kind, Order
from chain.ledger.terms.work import Span
from tests.broker.world import NOW, PROVIDERS, REQUESTER, make_bid, make_order, make_spec

SPEC = make_spec(kind=Kind.MAP, parallelism=4)


def make_map_order(segments: int = 10, **changes: Any) -> Order:
    far: dict[str, Any] = {"deadline": NOW + 10**7, "expiry": NOW + 10**8, "cap": 10**12}
    return make_order(spec=SPEC, segments=segments, **{**far, **changes})


def make_bids(order: Order, *prices: int, lanes: tuple[int, ...] = ()) -> list[Signed[Bid]]:
    ways = lanes or (1,) * len(prices)
    rows = zip(PROVIDERS, prices, ways, strict=False)
    return [make_bid(order, signer, price=price, lanes=way) for signer, price, way in rows]


def show(order: Order, bids: list[Signed[Bid]], shares: tuple[Share, ...]) -> list[tuple[int, int, int]]:
    """Index of the bid, first, count of each share."""
    return [(bids.index(share.bid), share.first, share.count) for share in shares]


PARTS: list[tuple[str, list[tuple[int, int]], int, list[tuple[int, int]]]] = [
    # what, spans, number of parts, parts
    ("one part", [(0, 10)], 1, [(0, 10)]),
    ("two halves", [(0, 10)], 2, [(0, 5), (5, 5)]),
    ("the longer ones first", [(0, 10)], 4, [(0, 3), (3, 3), (6, 2), (8, 2)]),
    ("no more parts than segments", [(7, 3)], 9, [(7, 1), (8, 1), (9, 1)]),
    ("one for each span", [(0, 2), (5, 6)], 2, [(5, 6), (0, 2)]),
    ("further ones where the largest is", [(0, 2), (5, 6)], 4, [(0, 2), (5, 2), (7, 2), (9, 2)]),
    ("of equal spans the first", [(0, 4), (6, 4)], 3, [(6, 4), (0, 2), (2, 2)]),
    ("fewer parts than spans", [(0, 2), (5, 6), (20, 3)], 2, [(5, 6), (20, 3)]),
    ("none", [(0, 10)], 0, []),
]


@pytest.mark.parametrize(("spans", "number", "parts"), [row[1:] for row in PARTS], ids=[row[0] for row in PARTS])
def test_parts(spans: list[tuple[int, int]], number: int, parts: list[tuple[int, int]]) -> None:
    found = split_spans([Span(*one) for one in spans], number)
    assert [(part.first, part.count) for part in found] == parts


def test_larger_parts_go_to_cheaper_bids_and_ties_to_the_earlier() -> None:
    order = make_map_order(10)
    bids = make_bids(order, 30, 20, 25, 20)
    shares = divide(order, SPEC, [Span(0, 10)], bids, 100, NOW)
    assert show(order, bids, shares) == [(1, 0, 3), (3, 3, 3), (2, 6, 2), (0, 8, 2)]
    assert [share.price for share in shares] == [20, 20, 25, 30]


def test_no_more_parts_than_the_spec_allows_than_bids_and_than_segments() -> None:
    order = make_map_order(10)
    bids = make_bids(order, 1, 2, 3, 4, 5, 6)
    whole = [Span(0, 10)]
    assert len(divide(order, SPEC, whole, bids, 100, NOW)) == 4
    assert len(divide(order, SPEC, whole, bids[:2], 100, NOW)) == 2
    assert len(divide(order, SPEC, [Span(4, 3)], bids, 100, NOW)) == 3
    assert divide(order, SPEC, whole, [], 100, NOW) == ()


@pytest.mark.parametrize(("kind", "rule"), [(Kind.TRAIN, AwardRule.LOWEST), (Kind.MAP, AwardRule.SECOND)])
def test_a_train_and_a_second_price_are_one_part(kind: Kind, rule: AwardRule) -> None:
    order = make_map_order(10, kind=kind, rule=rule)
    bids = make_bids(order, 30, 20, 25)
    (share,) = divide(order, SPEC, [Span(0, 4), Span(4, 6)], bids, 100, NOW)
    assert (share.bid, share.first, share.count) == (bids[1], 4, 6)
    assert share.price == (25 if rule is AwardRule.SECOND else 20)


def test_a_part_goes_to_the_cheapest_that_has_the_time_for_it() -> None:
    """R3 d, with the part's count on the bid's lanes: the slow one takes none that it could not serve."""
    order = make_map_order(10, deadline=NOW + 30_000 + 3 * 60_000)
    bids = make_bids(order, 1, 2, 3, lanes=(1, 2, 4))
    spec = make_spec(kind=Kind.MAP, parallelism=2)
    shares = divide(order, spec, [Span(0, 10)], bids, 100, NOW)
    assert show(order, bids, shares) == [(1, 0, 5), (2, 5, 5)]
    shares = divide(order, spec, [Span(0, 3), Span(4, 6)], bids, 100, NOW)
    assert show(order, bids, shares) == [(1, 4, 6), (0, 0, 3)]


def test_what_nobody_has_time_for_stays_on_offer() -> None:
    order = make_map_order(10, deadline=NOW + 30_000 + 3 * 60_000)
    bids = make_bids(order, 1, 2, lanes=(1, 2))
    assert show(order, bids, divide(order, SPEC, [Span(0, 10)], bids, 100, NOW)) == [(1, 0, 5)]


def test_a_bid_counts_only_if_it_could_serve_the_whole_order_within_the_cap() -> None:
    """So any mixture of parts fits, over any number of rounds."""
    order = make_map_order(10, cap=10 * 101)
    bids = make_bids(order, 101, 100, 1)
    order_of = show(order, bids, divide(order, SPEC, [Span(0, 10)], bids, 100, NOW))
    assert [bid for bid, _, _ in order_of] == [2, 1]


def test_weights_count_for_the_part() -> None:
    order = make_map_order(3, weights=(1, 2, 4))
    assert compute_weight(order) == 7
    assert compute_weight(order, Span(1, 2)) == 6
    assert compute_cost(order, 100, 100, Span(1, 1)) == 202


def test_the_next_best_takes_the_place_of_a_refused_one() -> None:
    order = make_map_order(10)
    bids = make_bids(order, 30, 20, 25)
    book = Book(bytes(32), 0, (Span(0, 10),), tuple(bids), (), bytes(32), bytes(32), NOW)
    part = Span(5, 5)
    share = replace_share(order, SPEC, part, book, 100, {bids[1].signature})
    assert share is not None
    assert (share.bid, share.first, share.count) == (bids[2], 5, 5)
    assert replace_share(order, SPEC, part, book, 100, {bid.signature for bid in bids}) is None


rows = st.lists(
    st.tuples(st.integers(1, 40), st.integers(1, 4), st.sampled_from([999, 1_000, 2_000]), st.integers(-1, 70_000)),
    max_size=len(PROVIDERS),
)
spans = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 12)), min_size=1, max_size=5)


def lay_out(gaps: list[tuple[int, int]]) -> list[Span]:
    """Disjoint ascending spans with these distances and counts."""
    laid, end = [], 0
    for distance, count in gaps:
        laid.append(Span(end + distance, count))
        end += distance + count
    return laid


def bid_all(order: Order, drawn: list[tuple[int, int, int, int]]) -> list[Signed[Bid]]:
    return [
        make_bid(order, signer, price=price, lanes=lanes, bond=bond, valid_until=NOW + valid)
        for signer, (price, lanes, bond, valid) in zip(PROVIDERS, drawn, strict=False)
    ]


@given(rows, spans, st.integers(1, 9), st.sampled_from(list(AwardRule)), st.integers(1, 12), st.integers(0, 2))
def test_any_division_keeps_the_rules(
    drawn: list[tuple[int, int, int, int]],
    gaps: list[tuple[int, int]],
    parallelism: int,
    rule: AwardRule,
    turns: int,
    tried: int,
) -> None:
    """Parts are disjoint and inside the spans, at most one per bid; each can open its lease; together they fit the cap;
    the same comes out again; and a part of a cheaper bid is never the smaller one but for want of time, or of bond
    where small sums are floored.
    """
    laid = lay_out(gaps)
    spec = make_spec(kind=Kind.MAP, parallelism=parallelism)
    order = make_map_order(100, rule=rule, limit=35, cap=3_400, deadline=NOW + 30_000 + turns * 60_000)
    bids = bid_all(order, drawn)
    used = {bid.signature for bid in bids[:tried]}
    shares = divide(order, spec, laid, bids, 100, NOW, used)
    assert shares == divide(order, spec, laid, bids, 100, NOW, used)
    assert len(shares) <= parallelism
    assert len({share.bid.signature for share in shares} - used) == len(shares)
    for one, other in pairwise(sorted(shares, key=lambda share: share.first)):
        assert one.first + one.count <= other.first
    for share in shares:
        assert share.count > 0
        assert any(s.first <= share.first and share.first + share.count <= s.first + s.count for s in laid)
        part = Span(share.first, share.count)
        assert find_fault(order, share.bid.body, 100, NOW, share.price, part, NOW) == ""
    costs = [compute_cost(order, share.price, 100, Span(share.first, share.count)) for share in shares]
    assert sum(costs) <= order.cap
    for one, other in pairwise(shares):
        assert one.count >= other.count
        fault = find_fault(order, other.bid.body, 100, NOW, part=Span(one.first, one.count), closed=NOW)
        assert one.bid.body.price <= other.bid.body.price or fault in ("R3.time", "R3.bond")


@given(rows, st.sampled_from(list(AwardRule)), st.integers(1, 10), st.integers(1, 12))
def test_one_part_is_what_choose_says(
    drawn: list[tuple[int, int, int, int]], rule: AwardRule, segments: int, turns: int
) -> None:
    spec = make_spec(kind=Kind.MAP, parallelism=1)
    order = make_map_order(segments, rule=rule, limit=35, cap=340, deadline=NOW + 30_000 + turns * 60_000)
    bids = bid_all(order, drawn)
    choice, shares = choose(order, bids, 100, NOW), divide(order, spec, [Span(0, segments)], bids, 100, NOW)
    if choice is None:
        assert shares == ()
    else:
        assert shares == (Share(choice.bid, choice.price, choice.runner_up, 0, segments),)


def test_a_full_book_over_as_many_spans_as_a_round_has() -> None:
    """256 bids, 256 spans."""
    order = make_map_order(1_024, weights=(3,) * 1_024)
    spec = make_spec(kind=Kind.MAP, parallelism=1_000)
    bids = [make_bid(order, Signer(number.to_bytes(32)), price=1_000 - number) for number in range(256)]
    bids.append(make_bid(order, REQUESTER))
    shares = divide(order, spec, [Span(4 * number, 3) for number in range(256)], bids, 100, NOW)
    assert len(shares) == 256
    assert {share.count for share in shares} == {3}
