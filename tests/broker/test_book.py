"""The hash chain of acknowledgements, the signed book, and the choice that follows from it (R3, R12)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from broker.auction import book as book_module
from broker.auction.book import (
    MAX_BIDS,
    MAX_SPANS,
    NOTHING,
    OpenBook,
    check_book,
    compute_book_root,
    find_hidden_bid,
    is_equivocation,
)
from broker.auction.scoring import check_award, choose, compute_cost, find_fault
from broker.protocol.messages import MAX_BOOK_BYTES, MAX_MESSAGE_BYTES, Acknowledgement, Book, Reason, read_from_broker
from chain.base.codec import encode
from chain.base.errors import Refused
from chain.base.hashing import Tag, compute_id
from chain.base.keys import Signed, Signer, verify
from chain.ledger.terms.agreement import Award, AwardRule, Bid, Order, compute_bid_id, compute_order_id
from chain.ledger.terms.work import Span
from tests.broker.world import BROKER, CHAIN, NOW, PROVIDERS, REQUESTER, make_bid, make_decline, make_order, make_spec

ORDER = make_order()
ORDER_ID = compute_order_id(CHAIN, ORDER)
WHOLE = (Span(0, 1),)


def fill(*bids: Signed[Bid]) -> tuple[OpenBook, list[Signed[Acknowledgement]]]:
    book = OpenBook(BROKER, CHAIN, ORDER_ID, 0, WHOLE)
    given = [book.take_bid(bid) for bid in bids]
    return book, [one for one in given if one is not None]


def make_bids(*prices: int) -> list[Signed[Bid]]:
    return [make_bid(ORDER, signer, price=price) for signer, price in zip(PROVIDERS, prices, strict=False)]


def test_acknowledgements_form_a_chain_that_the_book_closes() -> None:
    book, given = fill(*make_bids(3, 2, 1))
    previous = NOTHING
    for number, one in enumerate(given):
        body = verify(one, Tag.ACKNOWLEDGEMENT, CHAIN, BROKER.key)
        assert (body.sequence, body.previous, body.order) == (number, previous, ORDER_ID)
        previous = compute_id(Tag.ACKNOWLEDGEMENT, CHAIN, body)
    closed = check_book(CHAIN, BROKER.key, book.close(NOW))
    assert closed.last == previous
    assert closed.root == compute_book_root(make_bids(3, 2, 1))
    assert not any(find_hidden_bid(closed, one.body, CHAIN) for one in given)


def test_the_same_bid_again_gets_the_same_acknowledgement() -> None:
    _, given = fill(*make_bids(3), *make_bids(3))
    assert given[0] is given[1]


def test_a_second_bid_of_a_provider_is_not_taken() -> None:
    book, given = fill(*make_bids(3), *make_bids(2))
    assert (len(given), len(book.bids)) == (1, 1)


def test_an_empty_book_holds_too() -> None:
    assert check_book(CHAIN, BROKER.key, fill()[0].close(NOW)).last == NOTHING


def test_a_full_book_still_fits_one_message() -> None:
    holders = tuple(one.key for one in PROVIDERS)
    book = OpenBook(BROKER, CHAIN, ORDER_ID, 2**32 - 1, [Span(2**31 + 2 * i, 1) for i in range(MAX_SPANS)])
    taken = 0
    for number in range(MAX_BIDS + 1):
        signer = Signer(number.to_bytes(32))
        taken += book.take_bid(make_bid(ORDER, signer, holders=holders)) is not None
        book.take_decline(make_decline(ORDER, Signer((1000 + number).to_bytes(32)), text="x" * 500))
    assert 0 < taken < MAX_BIDS
    assert sum(len(encode(bid)) for bid in book.bids) <= MAX_BOOK_BYTES
    data = encode(book.close(NOW))
    assert len(data) <= MAX_MESSAGE_BYTES
    assert len(read_from_broker(data, CHAIN, BROKER.key).body.bids) == taken
    assert len(book.declines) == 256


def resign(book: Signed[Book], **changes: Any) -> Signed[Book]:
    return BROKER.sign(Tag.BOOK, CHAIN, replace(book.body, **changes))


OTHER_ORDER = make_order(salt=b"another order ..")
FORGERIES: list[tuple[str, Any, str]] = [
    ("another signer", lambda book: REQUESTER.sign(Tag.BOOK, CHAIN, book.body), "signature.book"),
    ("a bid left out", lambda book: resign(book, bids=book.body.bids[1:]), "R12.root"),
    ("two bids swapped", lambda book: resign(book, bids=book.body.bids[::-1]), "R12.root"),
    (
        "left out with its own root",
        lambda book: resign(book, bids=book.body.bids[1:], root=compute_book_root(book.body.bids[1:])),
        "R12.chain",
    ),
    (
        "swapped with its own root",
        lambda book: resign(book, bids=book.body.bids[::-1], root=compute_book_root(book.body.bids[::-1])),
        "R12.chain",
    ),
    ("spans out of order", lambda book: resign(book, spans=(Span(5, 1), Span(0, 1))), "R12.spans"),
    ("spans that overlap", lambda book: resign(book, spans=(Span(0, 2), Span(1, 1))), "R12.spans"),
    ("an empty span", lambda book: resign(book, spans=(Span(0, 0),)), "R12.spans"),
    ("another round", lambda book: resign(book, round=1), "R12.chain"),
    ("last changed", lambda book: resign(book, last=bytes(32)), "R12.chain"),
    (
        "a bid its provider never signed",
        lambda book: resign(book, bids=(replace(book.body.bids[0], signature=bytes(64)), *book.body.bids[1:])),
        "signature.bid",
    ),
    ("a bid for another order", lambda book: resign(book, bids=(make_bid(OTHER_ORDER),)), "R12.order"),
    (
        "a forged decline",
        lambda book: resign(book, declines=(replace(make_decline(ORDER), signature=bytes(64)),)),
        "signature.decline",
    ),
    ("a decline of another order", lambda book: resign(book, declines=(make_decline(OTHER_ORDER),)), "R12.order"),
]


@pytest.mark.parametrize(("forge", "rule"), [row[1:] for row in FORGERIES], ids=[row[0] for row in FORGERIES])
def test_a_forged_book_is_refused_by_name(forge: Any, rule: str) -> None:
    book, _ = fill(*make_bids(3, 2))
    with pytest.raises(Refused) as refused:
        check_book(CHAIN, BROKER.key, forge(book.close(NOW)))
    assert refused.value.rule == rule


def test_a_book_takes_so_many_bids_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(book_module, "MAX_BIDS", 2)
    book, given = fill(*make_bids(3, 2, 1))
    assert (len(book.bids), len(given)) == (2, 2)
    assert book.take_bid(make_bids(3)[0]) == given[0], "who is in it is answered still"


def test_two_heads_prove_equivocation() -> None:
    """R12 b: one predecessor, or one number, twice."""
    _, (first, second) = fill(*make_bids(3, 2))
    _, (other, later) = fill(make_bid(ORDER, PROVIDERS[5]), make_bid(ORDER, PROVIDERS[4]))
    assert later.body.previous != second.body.previous
    assert is_equivocation(second.body, later.body), "one number, though each has a predecessor of its own"
    assert is_equivocation(first.body, other.body)
    assert not is_equivocation(first.body, second.body)
    assert not is_equivocation(first.body, first.body)
    assert not is_equivocation(first.body, replace(other.body, order=bytes(32)))
    assert not is_equivocation(first.body, replace(other.body, round=1))


def test_a_hidden_bid_is_seen_by_who_holds_its_acknowledgement() -> None:
    _, given = fill(*make_bids(3, 2, 1))
    shorter, _ = fill(*make_bids(3, 2))
    closed = shorter.close(NOW).body
    assert [find_hidden_bid(closed, one.body, CHAIN) for one in given] == [False, False, True]
    moved = replace(closed, bids=closed.bids[::-1])
    assert find_hidden_bid(moved, given[0].body, CHAIN)
    assert not find_hidden_bid(replace(moved, round=1), given[0].body, CHAIN)


FAULTS: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("fits", {}, {}, ""),
    ("at the limit", {"price": 2_000_000}, {}, ""),
    ("one above the limit", {"price": 2_000_001}, {}, "R3.limit"),
    ("cap without room for commission", {"price": 1_000_000}, {"cap": 1_009_999}, "R2.cap"),
    ("cap with just that room", {"price": 1_000_000}, {"cap": 1_010_000}, ""),
    ("weights count", {"price": 1_000_000}, {"segments": 2, "weights": (1, 2), "cap": 3_029_999}, "R2.cap"),
    ("product out of range", {"price": 2**62}, {"limit": 2**63 - 1, "segments": 4, "cap": 2**63 - 1}, "R2.cap"),
    ("has run out", {"valid_until": NOW - 1}, {}, "R3.validity"),
    ("valid up to now", {"valid_until": NOW}, {}, ""),
    ("valid for long enough", {"valid_until": NOW + 62_000}, {}, ""),
    ("valid for too long", {"valid_until": NOW + 62_001}, {}, "R3.validity"),
    ("too few lanes for the deadline", {"lanes": 1, "price": 1}, {"segments": 3, "deadline": NOW + 209_999}, "R3.time"),
    ("just enough lanes", {"lanes": 2, "price": 1}, {"segments": 3, "deadline": NOW + 150_000}, ""),
    ("bond below the damages", {"bond": 999}, {}, "R3.bond"),
    ("bond below the panel's deposit", {"bond": 1_000}, {"panel": 1}, "R3.bond"),
    ("bond with the panel's deposit", {"bond": 16_000}, {"panel": 1}, ""),
]


@pytest.mark.parametrize(("bid", "order", "rule"), [row[1:] for row in FAULTS], ids=[row[0] for row in FAULTS])
def test_what_can_open_a_lease(bid: dict[str, Any], order: dict[str, Any], rule: str) -> None:
    wanted = make_order(**order)
    assert find_fault(wanted, make_bid(wanted, **bid).body, 100, NOW) == rule


@pytest.mark.parametrize("signer", [REQUESTER, BROKER], ids=["requester", "auctioneer"])
def test_no_party_serves_its_own_order(signer: Signer) -> None:
    assert find_fault(ORDER, make_bid(ORDER, signer).body, 100, NOW) == "R3.party"


@pytest.mark.parametrize(
    ("bid", "order"),
    [
        ({"holders": (PROVIDERS[0].key,)}, {}),
        ({}, {"holders": (PROVIDERS[0].key,)}),
        ({"holders": (PROVIDERS[1].key,)}, {}),  # a second key of the same owner, for all that anybody knows
        ({"holders": (BROKER.key, REQUESTER.key)}, {}),
    ],
)
def test_nobody_holds_its_own_outputs(bid: dict[str, Any], order: dict[str, Any]) -> None:
    wanted = make_order(**order)
    assert find_fault(wanted, make_bid(wanted, **bid).body, 100, NOW) == "R8.holder"


@pytest.mark.parametrize("holders", [(BROKER.key,), (PROVIDERS[2].key,), (BROKER.key, PROVIDERS[2].key)])
def test_a_bid_may_add_the_auctioneer_and_whom_the_order_names(holders: tuple[bytes, ...]) -> None:
    wanted = make_order(holders=(PROVIDERS[2].key,))
    assert find_fault(wanted, make_bid(wanted, holders=holders).body, 100, NOW) == ""


def pick(order: Order, *prices: int) -> tuple[int, int, int | None] | None:
    """Index of the winner, award price, price of the runner-up."""
    bids = [make_bid(order, signer, price=price) for signer, price in zip(PROVIDERS, prices, strict=False)]
    choice = choose(order, bids, 100, NOW)
    if choice is None:
        return None
    return bids.index(choice.bid), choice.price, choice.runner_up.body.price if choice.runner_up else None


SECOND = make_order(rule=AwardRule.SECOND)


@pytest.mark.parametrize(
    ("order", "prices", "expected"),
    [
        (ORDER, (), None),
        (ORDER, (30, 20, 25), (1, 20, None)),
        (ORDER, (20, 20, 20), (0, 20, None)),
        (ORDER, (2_000_001,), None),
        (SECOND, (30, 20, 25), (1, 25, 25)),
        (SECOND, (20, 20), (0, 20, 20)),
        (SECOND, (20,), (0, 2_000_000, None)),
        (SECOND, (20, 2_000_001), (0, 2_000_000, None)),
        (make_order(rule=AwardRule.SECOND, cap=100), (20,), None),
    ],
    ids=[
        "none",
        "lowest",
        "tie: earliest",
        "all above",
        "second",
        "second tie",
        "alone",
        "runner above",
        "cap < limit",
    ],
)
def test_who_wins_and_what_it_is_paid(order: Order, prices: tuple[int, ...], expected: Any) -> None:
    assert pick(order, *prices) == expected


orders = st.builds(
    lambda rule, limit, cap: make_order(rule=rule, limit=limit, cap=cap),
    st.sampled_from(AwardRule),
    st.integers(0, 60),
    st.integers(0, 80),
)


@given(orders, st.lists(st.integers(0, 80), max_size=8), st.integers(0, 10_000))
def test_award_is_never_below_the_bid_above_the_limit_or_beyond_the_cap(
    order: Order, prices: list[int], commission: int
) -> None:
    bids = [make_bid(order, signer, price=price) for signer, price in zip(PROVIDERS, prices, strict=False)]
    choice = choose(order, bids, commission, NOW)
    if choice is None:
        cheap = [bid for bid in bids if not find_fault(order, bid.body, commission, NOW)]
        assert not cheap or order.rule is AwardRule.SECOND
        return
    assert choice.bid.body.price <= choice.price <= order.limit
    assert compute_cost(order, choice.price, commission) <= order.cap
    better = [bid for bid in bids[: bids.index(choice.bid)] if bid.body.price <= choice.bid.body.price]
    assert all(find_fault(order, bid.body, commission, NOW) for bid in better) or order.rule is AwardRule.SECOND
    if choice.runner_up is not None:
        assert choice.price == choice.runner_up.body.price
        assert choice.runner_up.body.provider != choice.bid.body.provider


def test_tried_bids_do_not_win_again() -> None:
    bids = make_bids(20, 30)
    choice = choose(ORDER, bids, 100, NOW, {bids[0].signature})
    assert choice is not None
    assert choice.bid == bids[1]


def test_anybody_can_check_the_award() -> None:
    book, _ = fill(*make_bids(30, 20))
    closed = book.close(NOW).body
    good = Award(
        order=ORDER_ID,
        bid=compute_bid_id(CHAIN, closed.bids[1].body),
        replica=0,
        first=0,
        count=1,
        price=20,
        commission=100,
        book=closed.root,
        start=ORDER.start,
        runner_up=None,
        closed=NOW,
        valid_until=NOW + 1,
    )
    check_award(CHAIN, ORDER, make_spec(), closed, good)
    dearer = compute_bid_id(CHAIN, closed.bids[0].body)
    second = replace(good, bid=dearer, price=30)
    for bad in (replace(good, book=bytes(32)), replace(good, price=21), replace(good, closed=NOW - 1), second):
        with pytest.raises(Refused) as refused:
            check_award(CHAIN, ORDER, make_spec(), closed, bad)
        assert refused.value.rule == "R12.award"
    used = frozenset({closed.bids[1].signature})
    check_award(CHAIN, ORDER, make_spec(), closed, second, used)
    with pytest.raises(Refused):
        check_award(CHAIN, ORDER, make_spec(), closed, good, used)


def test_reasons_have_room_in_the_book() -> None:
    book, _ = fill()
    book.take_decline(make_decline(ORDER, reason=Reason.PRICE, nearest=5))
    book.take_decline(make_decline(ORDER, reason=Reason.BUSY))
    assert [one.body.reason for one in book.close(NOW).body.declines] == [Reason.PRICE]
    assert book.answered() == {PROVIDERS[0].key}
