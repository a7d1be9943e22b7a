"""Random stories of one auction: what holds in each, and that replay and restarts change nothing."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from broker.auction.book import check_book, is_equivocation
from broker.auction.events import (
    AcceptanceArrived,
    Acknowledge,
    AuctionEvent,
    BidArrived,
    Blame,
    DeclineArrived,
    DeliveryArrived,
    Inquire,
    LeaseChanged,
    OpenDelayed,
    OpenFinal,
    OpenRefused,
    ProviderBack,
    ProviderLeft,
    Restarted,
    StoreStorageReceipt,
    Surveyed,
)
from broker.auction.lots import NO_RECEIPT, LotPhase
from broker.auction.machine import Phase
from broker.auction.scoring import check_award
from broker.protocol.api import (
    Accepted,
    Announced,
    Awarded,
    Closed,
    Delivered,
    Ended,
    Failed,
    Left,
    Opened,
    Unmatched,
)
from broker.protocol.messages import Book, Reason
from chain.base.codec import encode
from chain.base.hashing import Tag, compute_digest
from chain.base.keys import verify
from chain.ledger.terms.agreement import AwardRule, Kind
from tests.broker.play import Play, cancel, find_signer, leased
from tests.broker.world import (
    BROKER,
    CHAIN,
    NOW,
    PROVIDERS,
    make_acceptance,
    make_bid,
    make_decline,
    make_order,
    make_records,
    make_spec,
    make_state,
    make_survey,
    sign_delivery,
)

# Properties

numbers = st.integers(0, len(PROVIDERS) - 1)
ANSWERS = ("bid", "bid", "bid", "decline", "left", "back", "surveyed")
OUTCOMES = ("final", "final", "winner", "requester", "broker", "silent")
PAPERS = ("deliver", "deliver", "accept", "state", "state", "cancel", "restart")
steps = st.lists(
    st.tuples(
        st.sampled_from((*["go"] * 20, *ANSWERS, *OUTCOMES, *PAPERS)),
        numbers,
        st.integers(1, 2_500_000),
        st.sampled_from([0, 1, 300, 1_000, 5_000]),
    ),
    min_size=8,
    max_size=60,
)
STATES = ("delivered", "settled", "expired", "returned", "open", "unstarted", "called", "cancelled")


def pick_lot(play: Play, number: int) -> int | None:
    return number % len(play.auction.lots) if play.auction.lots else None


def find_next(play: Play, price: int) -> str:
    """What would bring the order on."""
    auction = play.auction
    if auction.round is not None:
        return "bid"
    if auction.phase is Phase.OPENING:
        return "final"
    asked = [one.round for one in play.effects if isinstance(one, Inquire)]
    if asked and asked[-1] == auction._rounds:
        return "surveyed"
    return "deliver" if price % 3 else "state"


def make_event(play: Play, kind: str, number: int, price: int) -> AuctionEvent | None:
    """An event that could come at this moment, or None."""
    if kind == "go":
        kind, price = find_next(play, price), min(price, play.order.limit)
    signer, at = PROVIDERS[number], pick_lot(play, number)
    opening = [lot.lease for lot in play.auction.lots.values() if lot.phase is LotPhase.OPENING]
    lease = opening[number % len(opening)] if opening else bytes(32)
    match kind:
        case "bid":
            closes = play.auction.round.closes if play.auction.round else play.now
            bid = make_bid(
                play.order, signer, price=price, valid_until=closes + 10_000, salt=closes.to_bytes(16, "big")
            )
            return BidArrived(bid, price % 7 != 0)
        case "decline":
            reasons = (Reason.PRICE, Reason.BUSY, Reason.BOND, Reason.MEMORY)
            return DeclineArrived(make_decline(play.order, signer, reasons[price % 4], price))
        case "left" | "back":
            return ProviderLeft(signer.key) if kind == "left" else ProviderBack(signer.key)
        case "surveyed":
            asked = [one.round for one in play.effects if isinstance(one, Inquire)]
            return Surveyed(asked[-1], make_survey(*PROVIDERS[: number % 3])) if asked else None
        case "final":
            return OpenFinal(lease, 4)
        case "winner" | "requester" | "broker":
            return OpenRefused(lease, Blame(kind), "R3.x", "no")
        case "silent":
            return OpenDelayed(lease, "away")
        case "cancel" | "restart":
            return cancel(play.order) if kind == "cancel" else Restarted()
        case _:
            return make_paper(play, kind, at, price)


def make_paper(play: Play, kind: str, at: int | None, price: int) -> AuctionEvent | None:
    """A delivery, an acceptance or the chain's word on a lot, once there is one."""
    if at is None:
        return None
    lot = play.lot(at)
    here, signer = len(lot.handed.records), find_signer(lot)
    if kind == "deliver":
        count = min(here + 1 + price % 3, lot.part.count)
        if count <= here:
            return None
        records = make_records(lot.award.body, signer, count, play.order.kind)
        return DeliveryArrived(lot.lease, sign_delivery(lot.award.body, records, signer, since=here), 7)
    receipts = [one.delivery for one in play.auction.news if isinstance(one, Delivered)]
    mine = [one for one in receipts if one.receipt.body.lease == lot.lease]
    if kind == "accept":
        return AcceptanceArrived(make_acceptance(mine[-1])) if mine else None
    state = STATES[price % len(STATES)]
    newest = mine[price % len(mine)] if mine else None
    served = newest.receipt.body.count if newest else 0
    if state in ("delivered", "settled") and not served:
        return None
    receipt, _ = play.find_receipt(lot, served) if served else (NO_RECEIPT, "")
    held = served if state in ("delivered", "settled") else lot.part.count
    return LeaseChanged(lot.lease, state, 9, served, held, "ok" if served else "", receipt)


def check_patience(play: Play, book: Book, closes: int) -> None:
    """A round that closed early had a bid that could win, or nobody who could still make one."""
    left = {event.provider for event, _ in play.told if isinstance(event, ProviderLeft)}
    bidders = {bid.body.provider for bid in book.bids}
    passing = {one.body.provider for one in book.declines if one.body.reason in (Reason.BUSY, Reason.BOND)}
    can_win = any(bid.body.price <= play.order.limit for bid in book.bids)
    assert book.closed >= closes or can_win or not passing - bidders - left


def check_documents(play: Play) -> None:
    """What a requester sees is one of the few stories there are."""
    news = play.auction.news
    names = [type(one) for one in news]
    assert names[0] is Announced
    assert names.count(Ended) <= 1
    assert Ended not in names[:-1]
    assert names.count(Closed) <= names.count(Announced) <= names.count(Closed) + 1
    books: dict[bytes, Book] = {}
    closes: list[int] = []
    for one in news:
        if isinstance(one, Announced):
            assert one.round == len(closes)
            closes.append(one.closes)
        if isinstance(one, Closed):
            book = check_book(CHAIN, BROKER.key, one.book)
            assert book.round == len(closes) - 1
            check_patience(play, book, closes[-1])
            books[book.root] = book
        if isinstance(one, Awarded):
            body = verify(one.award, Tag.AWARD, CHAIN, BROKER.key)
            assert one.bid.body.price <= body.price <= play.order.limit
            check_award(CHAIN, play.order, play.auction.spec, books[body.book], body, used_before(play, one))
    assert not used_twice(play)
    if Unmatched in names:
        assert Opened not in names


def used_before(play: Play, award: Awarded) -> frozenset[bytes]:
    """Bids of the round that had a part before this award replaced a refused one; empty for one of the first."""
    news = play.auction.news
    at = news.index(award)
    start = max(i for i, one in enumerate(news[:at]) if isinstance(one, Closed))
    if news[at - 1 : at] and isinstance(news[at - 1], Failed):
        root = award.award.body.book
        same = [one for one in news[:at] if isinstance(one, Awarded) and one.award.body.book == root]
        return frozenset(one.bid.signature for one in same)
    assert all(isinstance(one, Closed | Awarded) for one in news[start:at])
    return frozenset()


def used_twice(play: Play) -> bool:
    """Whether a bid has two awards, or two standing lots the same segment."""
    bids = Counter(lot.bid.signature for lot in play.auction.lots.values())
    covers = Counter(
        index
        for lot in play.auction.lots.values()
        if lot.phase is not LotPhase.FAILED
        for index in range(lot.covered.first, lot.covered.first + lot.covered.count)
    )
    return any(count > 1 for count in (*bids.values(), *covers.values()))


def check_chained(play: Play) -> None:
    """A `train`'s leases go on from one another's committed states."""
    for lot in play.auction.lots.values():
        body = lot.award.body
        expected = compute_digest(make_state(body.first - 1)) if body.first else play.order.start
        assert body.start == expected


JOBS = st.sampled_from([(Kind.RUN, 1), (Kind.MAP, 7), (Kind.TRAIN, 5)])


def make_play(job: tuple[Kind, int], rule: AwardRule = AwardRule.LOWEST, matching: int = 2) -> Play:
    kind, segments = job
    spec = make_spec(kind=kind, parallelism=3, tolerance=1)
    order = make_order(spec=spec, segments=segments, rule=rule, cap=20_000_000, deadline=NOW + 700_000)
    return Play(order, make_survey(*PROVIDERS[:matching]), spec)


@given(steps, JOBS, st.sampled_from(AwardRule), st.integers(0, 3))
def test_any_story_keeps_the_rules_and_replays_to_the_byte(
    story: Any, job: tuple[Kind, int], rule: AwardRule, matching: int
) -> None:
    play = make_play(job, rule, matching)
    for kind, number, price, later in story:
        event = make_event(play, kind, number, price)
        if event is not None:
            play.tell(event, later)
    check_documents(play)
    if job[0] is Kind.TRAIN:
        check_chained(play)
    again = play.replay()
    assert encode(tuple(again.news)) == encode(tuple(play.auction.news))
    assert again.wake_at() == play.auction.wake_at()
    assert again.promised == play.auction.promised <= play.order.cap
    live, replayed = play.auction.handle(Restarted(), play.now), again.handle(Restarted(), play.now)
    assert [encode(one) for one in live] == [encode(one) for one in replayed]
    given = [one.acknowledgement.body for one in play.effects if isinstance(one, Acknowledge)]
    assert not any(is_equivocation(one, other) for one in given for other in given)
    storages = {encode(one.storage) for one in play.auction.news if isinstance(one, Delivered)}
    assert storages == {encode(one) for lot in play.auction.lots.values() for one in lot.receipts.values()}


@given(steps, JOBS)
def test_a_restart_anywhere_changes_no_document(story: Any, job: tuple[Kind, int]) -> None:
    plain, broken = make_play(job), make_play(job)
    for kind, number, price, later in story:
        event = make_event(plain, kind, number, price)
        if event is None:
            continue
        plain.tell(event, later)
        broken.auction = broken.replay()
        broken.tell(Restarted(), later)
        broken.tell(event)
        if kind in {"restart", "silent", "broker"}:
            return
    assert encode(tuple(plain.auction.news)) == encode(tuple(broken.auction.news))


def test_outputs_are_named_once() -> None:
    play = leased()
    kept = next(one for one in play.deliver() if isinstance(one, StoreStorageReceipt))
    assert list(kept.blobs) == sorted(set(kept.blobs))
    assert len(kept.blobs) == 3


def test_what_left_is_told() -> None:
    """`Left` is the newest word on a lease, `Accepted` and `Delivered` come before it."""
    play = leased()
    delivery = play.delivery()
    play.tell(DeliveryArrived(play.lease(), delivery, 5))
    play.tell(AcceptanceArrived(make_acceptance(delivery)))
    play.change("settled", 1)
    names = [type(one) for one in play.auction.news[-4:]]
    assert names == [Delivered, Accepted, Left, Ended]
