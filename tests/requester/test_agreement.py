"""The requester's own sums and checks against those of broker, provider and ledger, which share no code with them.

What one side makes, the other takes; where one side refuses, so does the other; and the table of outcomes is what the
ledger would do.
"""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from broker.auction.admission import House, Means, check_delivery, check_submission
from broker.auction.book import OpenBook, check_book
from broker.auction.scoring import choose, find_fault
from broker.protocol.api import PROTOCOL_VERSION, Submission
from chain.base.errors import Refused
from chain.base.hashing import Tag
from chain.base.keys import Signed, Signer
from chain.ledger import money
from chain.ledger.entries import LeaseRecord, LeaseState, LeaseTerms
from chain.ledger.terms.agreement import Award, AwardRule, Bid, Kind, compute_bid_id
from chain.ledger.terms.outcome import FINAL_FAILURES, Cause
from chain.ledger.terms.work import is_final
from requester.purchase import checks, deliveries
from requester.purchase.checking import CheckFailed, require
from requester.purchase.order import compute_cost
from requester.purchase.quote import compute_quote
from tests.requester.world import BROKER, CHAIN, INPUT, NOW, PROVIDER, REQUESTER, World, change

BIDDERS = [Signer(bytes([number]) * 32) for number in range(50, 56)]

bids = st.lists(
    st.tuples(
        st.integers(1, 2_200_000),
        st.sampled_from([999, 1_000, 2_000]),
        st.sampled_from([999, 1_000, 12_000, 62_000, 62_001]),
        st.integers(1, 3),
    ),
    max_size=len(BIDDERS),
)


def gather(world: World, rows: list[tuple[int, int, int, int]]) -> tuple[Signed[Any], list[Signed[Bid]]]:
    """A book as the broker makes it."""
    book = OpenBook(BROKER, CHAIN, world.order_id)
    made = [
        world.make_bid(signer, price, bond=bond, valid_until=NOW + valid, lanes=lanes)
        for signer, (price, bond, valid, lanes) in zip(BIDDERS, rows, strict=False)
    ]
    for bid in made:
        assert book.take_bid(bid) is not None
    return book.close(NOW + 1_000), made


@given(rows=bids, tried=st.integers(0, 2), rule=st.sampled_from(list(AwardRule)))
def test_who_wins_at_the_broker_wins_at_the_requester(
    rows: list[tuple[int, int, int, int]], tried: int, rule: AwardRule
) -> None:
    """R12 a: also when bids that did not open are left out. The winner passes, everybody else is refused."""
    world = World(overrides={"rule": rule})
    order = world.order.body
    book, made = gather(world, rows)
    check_book(CHAIN, BROKER.key, book)
    gone = {made[index] for index in range(min(tried, len(made)))}
    choice = choose(order, made, 200, NOW + 1_000, {bid.signature for bid in gone})
    ids = frozenset(compute_bid_id(CHAIN, bid.body) for bid in gone)
    template = Award(
        order=world.order_id,
        bid=bytes(32),
        replica=0,
        first=0,
        count=1,
        price=0,
        commission=200,
        book=book.body.root,
        start=INPUT,
        runner_up=None,
        valid_until=NOW + 9_000,
    )
    facts = checks.BookFacts(CHAIN, order, template, book, ids)
    assert checks.choose_winner(facts) == ((choice.bid, choice.runner_up) if choice else None)
    for bid in made:
        award = change(template, bid=compute_bid_id(CHAIN, bid.body), price=bid.body.price)
        if choice is not None and bid == choice.bid:
            award = change(award, price=choice.price, runner_up=choice.runner_up)
            lease = checks.AwardFacts(CHAIN, world.order, world.spec, BROKER.sign(Tag.AWARD, CHAIN, award), bid, b"")
            require(checks.AWARD_CHECKS[:-1], lease)
        passed = holds(checks.BookFacts(CHAIN, order, award, book, ids))
        assert passed == (choice is not None and bid == choice.bid)


def holds(facts: checks.BookFacts) -> bool:
    try:
        require(checks.BOOK_CHECKS, facts)
    except CheckFailed:
        return False
    return True


@given(
    price=st.integers(1, 2_100_000),
    bond=st.integers(900, 1_100),
    valid=st.integers(900, 62_100),
    lanes=st.integers(1, 4),
    segments=st.integers(1, 4),
)
def test_a_bid_is_eligible_where_the_broker_finds_no_fault(
    price: int, bond: int, valid: int, lanes: int, segments: int
) -> None:
    world = World(segments=segments)
    order = world.order.body
    bid = world.make_bid(PROVIDER, price, bond=bond, valid_until=NOW + valid, lanes=lanes).body
    mine = checks.is_eligible(order, bid) and checks.is_in_time(order, bid, NOW + 1_000)
    mine = mine and compute_cost(price, segments, 200) <= order.cap
    assert mine == (find_fault(order, bid, 200, NOW + 1_000) == "")


def test_the_broker_takes_the_orders_that_are_made_here() -> None:
    world = World()
    house = House(CHAIN, BROKER.key, 200, 3_600_000)
    submission = Submission(PROTOCOL_VERSION, world.order, world.spec, ())
    assert check_submission(house, submission, Means(2_000_000, 0), NOW) == world.order.body
    for poor in (Means(1_999_999, 0), Means(2_000_000, 1)):
        try:
            check_submission(house, submission, poor, NOW)
        except Refused as refused:
            assert refused.rule == "R12.funds"
        else:
            raise AssertionError("an order above the balance was taken")


@given(cause=st.sampled_from([Cause.OK, *sorted(FINAL_FAILURES)]), kind=st.sampled_from(list(Kind)))
def test_a_delivery_the_broker_takes_passes_here_too(cause: Cause, kind: Kind) -> None:
    causes = (Cause.OK, Cause.OK, cause) if kind is not Kind.RUN else (cause,)
    world = World(causes=causes, segments=len(causes), kind=kind, prices=(300_000, 500_000))
    check_delivery(CHAIN, world.lease, world.award.body, world.bid.body, world.delivery)
    require((*deliveries.DELIVERY_CHECKS, *deliveries.BLOB_CHECKS), world.delivery_facts)
    assert is_final(world.receipt_body, len(causes))


# ---- money: the table of outcomes is what the ledger does ----


def make_lease(world: World, price: int) -> LeaseRecord:
    order = world.order.body
    total = price * order.segments
    locked = compute_cost(price, order.segments, order.commission)
    terms = LeaseTerms(
        order=world.order_id,
        award=bytes(32),
        bid=bytes(32),
        requester=REQUESTER.key,
        provider=PROVIDER.key,
        auctioneer=BROKER.key,
        requester_key=REQUESTER.key,
        provider_key=PROVIDER.key,
        watcher=None,
        holders=(),
        kind=order.kind,
        comparator=order.comparator,
        start=order.start,
        replica=0,
        first=0,
        count=order.segments,
        weights=(),
        segment_wall=order.segment_wall,
        lanes=1,
        unit=price,
        price=total,
        commission=order.commission,
        bond=total,
        damages=order.damages,
        panel=0,
        deposit=0,
        windows=order.windows,
        opened=NOW,
        height=1,
        deadline=order.deadline,
    )
    return LeaseRecord(
        id=bytes(32),
        terms=terms,
        state=LeaseState.OPEN,
        timer=None,
        receipt=None,
        held=order.segments,
        fee=0,
        locked=locked,
        bond=total,
        paid=0,
        commission=0,
        refunded=0,
        damages=0,
        burned=0,
    )


@given(cap=st.integers(100, 10**12), segments=st.integers(1, 50), share=st.integers(1, 1_000))
def test_each_outcome_shown_is_what_the_ledger_would_do(cap: int, segments: int, share: int) -> None:
    """Rows 3, 5, 6, 7, 10, 12, 13: to the unit."""
    world = World(cap=cap, segments=segments)
    order = world.order.body
    price = max(1, order.limit * share // 1_000)
    lease = make_lease(world, price)
    early = money.compute_cancel_fee(lease.terms, NOW)
    late = money.compute_cancel_fee(lease.terms, order.deadline)
    cut = money.split_cut(lease, damages=True, burn=False)
    splits = {
        "success": money.split_payment(lease, segments),
        "failure": money.split_payment(lease, segments),
        "silence": money.split_payment(lease, segments),
        "unstarted": money.split_unstarted(lease),
        "returned": cut,
        "expired": money.split_cut(lease, damages=True, burn=True),
        "cancelled early": money.split_cut(change(lease, fee=early), damages=False, burn=False),
        "cancelled late": money.split_cut(change(lease, fee=late), damages=False, burn=False),
    }
    shown = {outcome.name: outcome for outcome in compute_quote(order, price).outcomes}
    assert set(shown) == {*splits, "no bid"}
    for name, split in splits.items():
        outcome = shown[name]
        assert (outcome.provider, outcome.commission, outcome.burned, outcome.damages) == (
            split.paid,
            split.commission,
            split.burned,
            split.damages,
        ), name
        assert outcome.paid == lease.locked - split.refunded <= cap
