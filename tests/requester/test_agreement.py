"""The requester's own sums and checks against those of broker and ledger.

What one side makes, the other takes; where one side refuses, so does the other; and the table of outcomes is what the
ledger would do.
"""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from broker.auction.admission import Agreed, HandedIn, House, Means, check_delivery, check_submission
from broker.auction.book import OpenBook, check_book
from broker.auction.scoring import divide, replace_share
from broker.protocol.api import PROTOCOL_VERSION, Delivered, Submission
from chain.base.errors import Refused
from chain.base.hashing import Tag
from chain.base.keys import Signed, Signer
from chain.ledger import money
from chain.ledger.entries import LeaseRecord
from chain.ledger.terms.agreement import AwardRule, Bid, Kind, compute_bid_id
from chain.ledger.terms.outcome import FINAL_FAILURES, Cause
from chain.ledger.terms.work import Span, is_final
from requester.purchase import checks, deliveries
from requester.purchase.checking import CheckFailed, require
from requester.purchase.order import compute_cost
from requester.purchase.quote import compute_quote, split_range
from tests.requester.chainside import make_open
from tests.requester.world import BROKER, CHAIN, NOW, World, change

BIDDERS = [Signer(bytes([number]) * 32) for number in range(50, 56)]

bids = st.lists(
    st.tuples(
        st.integers(1, 700_000),
        st.sampled_from([999, 1_000, 2_000]),
        st.sampled_from([999, 1_000, 12_000, 61_000, 61_001]),
        st.integers(1, 3),
    ),
    max_size=len(BIDDERS),
)


def gather(world: World, rows: list[tuple[int, int, int, int]]) -> tuple[Signed[Any], list[Signed[Bid]]]:
    """A book as the broker makes it."""
    book = OpenBook(BROKER, CHAIN, world.order_id, 0, (Span(0, world.segments),))
    made = [
        world.make_bid(signer, price, bond=bond, valid_until=NOW + valid, lanes=lanes)
        for signer, (price, bond, valid, lanes) in zip(BIDDERS, rows, strict=False)
    ]
    for bid in made:
        assert book.take_bid(bid) is not None
    return book.close(NOW + 1_000), made


@given(
    rows=bids,
    parallelism=st.integers(1, 4),
    rule=st.sampled_from(list(AwardRule)),
    gone=st.integers(0, 3),
)
def test_who_serves_what_at_the_broker_does_so_at_the_requester(
    rows: list[tuple[int, int, int, int]], parallelism: int, rule: AwardRule, gone: int
) -> None:
    """R12 a: also when bids that did not open are replaced. Each winner passes, everybody else is refused its part."""
    world = World(overrides={"rule": rule}, segments=3, kind=Kind.MAP, parallelism=parallelism)
    order, spec = world.order.body, world.spec
    book, made = gather(world, rows)
    check_book(CHAIN, BROKER.key, book)
    require(checks.BOOK_CHECKS, checks.BookFacts(CHAIN, order, world.order_id, book))
    shares = list(divide(order, spec, book.body.spans, made, 200, book.body.closed))
    used, failed = {share.bid.signature for share in shares}, set()
    for place in range(min(gone, len(shares))):
        failed.add(compute_bid_id(CHAIN, shares[place].bid.body))
        part = Span(shares[place].first, shares[place].count)
        after = replace_share(order, spec, part, book.body, 200, used)
        if after is None:
            del shares[place:]
            break
        used.add(after.bid.signature)
        shares[place] = after
    winners = [compute_bid_id(CHAIN, share.bid.body) for share in shares]
    for share, winner in zip(shares, winners, strict=True):
        others = frozenset(one for one in winners if one != winner)
        for bid in made:
            award = change(
                world.award_body,
                bid=compute_bid_id(CHAIN, bid.body),
                first=share.first,
                count=share.count,
                price=share.price if bid == share.bid else bid.body.price,
                runner_up=share.runner_up if bid == share.bid else None,
                book=book.body.root,
                closed=book.body.closed,
            )
            facts = checks.ShareFacts(CHAIN, order, spec, award, book.body, frozenset(failed), others)
            assert holds(checks.SHARE_CHECKS, facts) == (bid == share.bid)
            if bid == share.bid:
                signed = BROKER.sign(Tag.AWARD, CHAIN, award)
                lease = checks.AwardFacts(CHAIN, world.order, spec, signed, bid, b"", order.start)
                require(checks.AWARD_CHECKS[:-1], lease)


def holds(table: Any, facts: Any) -> bool:
    try:
        require(table, facts)
    except CheckFailed:
        return False
    return True


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


@given(
    cause=st.sampled_from([Cause.OK, *sorted(FINAL_FAILURES)]),
    kind=st.sampled_from(list(Kind)),
    counts=st.sets(st.integers(1, 3)),
)
def test_prefixes_the_broker_takes_pass_here_too(cause: Cause, kind: Kind, counts: set[int]) -> None:
    """R5: with the same records left out, and the same ones sent twice."""
    causes = (Cause.OK, Cause.OK, cause) if kind is not Kind.RUN else (cause,)
    world = World(causes=causes, segments=len(causes), kind=kind, prices=(300_000, 500_000))
    agreed, known, before = Agreed(world.lease, world.award.body, world.bid.body, kind), HandedIn(), deliveries.Prefix()
    for count in sorted({*counts, len(causes)}):
        if count > len(causes):
            continue
        told: Delivered = world.prefix(count)
        kept = check_delivery(CHAIN, agreed, known, told.delivery, NOW)
        known.add(kept, len(causes))
        facts = deliveries.DeliveryFacts(
            chain=CHAIN,
            order=world.order.body,
            spec=world.spec,
            award=world.award.body,
            bid=world.bid.body,
            receipt=kept.receipt,
            storage=told.storage,
            since=kept.since,
            records=kept.records,
            items=world.items,
            before=before,
            found=world.found,
        )
        require((*deliveries.DELIVERY_CHECKS, *deliveries.BLOB_CHECKS), facts)
        before = facts.after
    assert before.frontier.root == known.tree.root
    assert is_final(world.receipt_body, len(causes))


# ---- money: the table of outcomes is what the ledger does ----


def make_lease(world: World, price: int, part: int) -> LeaseRecord:
    """A part of a job as a lease at `price`, its bond the whole of it."""
    lease = make_open(world)
    total = price * part
    terms = change(lease.terms, unit=price, price=total, count=part, bond=total, opened=NOW)
    locked = compute_cost(price, part, terms.commission)
    changed: LeaseRecord = change(lease, terms=terms, held=part, locked=locked, bond=total)
    return changed


def add(splits: list[money.Split]) -> money.Split:
    names = money.Split.__struct_fields__
    return money.Split(**{name: sum(getattr(split, name) for split in splits) for name in names})


@given(
    cap=st.integers(100, 10**12),
    segments=st.integers(1, 50),
    share=st.integers(1, 1_000),
    parallelism=st.integers(1, 8),
)
def test_each_outcome_shown_is_what_the_ledger_would_do(cap: int, segments: int, share: int, parallelism: int) -> None:
    """Rows 3, 5, 6, 7, 10, 12, 13: to the unit, for all leases of a divided job together."""
    world = World(cap=cap, segments=segments, kind=Kind.MAP, parallelism=parallelism)
    order = world.order.body
    price = max(1, order.limit * share // 1_000)
    leases = [make_lease(world, price, part) for part in split_range(segments, parallelism)]
    failed = segments if segments == 1 else 1

    def cancel(now: int) -> money.Split:
        fees = [change(lease, fee=money.compute_cancel_fee(lease.terms, now)) for lease in leases]
        return add([money.split_cut(lease, damages=False, burn=False) for lease in fees])

    splits = {
        "success": add([money.split_payment(lease, lease.held) for lease in leases]),
        "failure": add([money.split_payment(lease, failed) for lease in leases]),
        "silence": add([money.split_payment(lease, lease.held) for lease in leases]),
        "unstarted": add([money.split_unstarted(lease) for lease in leases]),
        "returned": add([money.split_cut(lease, damages=True, burn=False) for lease in leases]),
        "expired": add([money.split_cut(lease, damages=True, burn=True) for lease in leases]),
        "cancelled early": cancel(NOW),
        "cancelled late": cancel(order.deadline),
    }
    shown = {outcome.name: outcome for outcome in compute_quote(order, price, parallelism).outcomes}
    assert set(shown) == {*splits, "no bid"}
    for name, split in splits.items():
        outcome = shown[name]
        assert (outcome.provider, outcome.commission, outcome.burned, outcome.damages) == (
            split.paid,
            split.commission,
            split.burned,
            split.damages,
        ), name
        assert outcome.paid == sum(lease.locked for lease in leases) - split.refunded <= cap
