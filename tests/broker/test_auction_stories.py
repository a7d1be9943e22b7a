"""Random stories of one auction: what holds in each, and that replay and restarts change nothing."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from broker.auction.book import check_book
from broker.auction.events import (
    AcceptanceArrived,
    Acknowledge,
    AuctionEvent,
    BidArrived,
    Blame,
    DeclineArrived,
    DeliveryArrived,
    LeaseChanged,
    OpenDelayed,
    OpenFinal,
    OpenRefused,
    ProviderLeft,
    Restarted,
    StoreStorageReceipt,
)
from broker.protocol.api import (
    Accepted,
    Announced,
    Awarded,
    Closed,
    Delivered,
    Ended,
    Opened,
    Unmatched,
)
from broker.protocol.messages import Book, Reason
from chain.base.codec import encode
from chain.base.hashing import Tag
from chain.base.keys import verify
from chain.ledger.terms.agreement import AwardRule
from tests.broker.play import Play, cancel, leased
from tests.broker.world import (
    BROKER,
    CHAIN,
    NOW,
    OUTPUT,
    PROVIDERS,
    make_acceptance,
    make_bid,
    make_decline,
    make_order,
    make_survey,
)

# Properties

numbers = st.integers(0, len(PROVIDERS) - 1)
OUTCOMES = ("final", "winner", "requester", "broker", "silent")
PAPERS = ("deliver", "accept", "state", "cancel", "restart")
steps = st.lists(
    st.tuples(
        st.sampled_from(("bid", "bid", "bid", "decline", "left", *OUTCOMES, *PAPERS)),
        numbers,
        st.integers(1, 2_500_000),
        st.sampled_from([0, 1, 300, 1_000, 5_000]),
    ),
    max_size=30,
)


def make_event(play: Play, kind: str, number: int, price: int) -> AuctionEvent | None:
    """An event that could come at this moment, or None."""
    lease, signer = play.lease(), PROVIDERS[number]
    match kind:
        case "bid":
            return BidArrived(make_bid(play.order, signer, price=price), price % 7 != 0)
        case "decline":
            reasons = (Reason.PRICE, Reason.BUSY, Reason.BOND, Reason.MEMORY)
            return DeclineArrived(make_decline(play.order, signer, reasons[price % 4], price))
        case "left":
            return ProviderLeft(signer.key)
        case "final":
            return OpenFinal(lease, 4)
        case "winner" | "requester" | "broker":
            return OpenRefused(lease, Blame(kind), "R3.x", "no")
        case "silent":
            return OpenDelayed(lease, "away")
        case "state":
            return LeaseChanged(lease, ["delivered", "settled", "expired"][number % 3], 9)
        case "cancel" | "restart":
            return cancel() if kind == "cancel" else Restarted()
        case _:
            return make_paper(play, kind, NOW + number)


def make_paper(play: Play, kind: str, finished: int) -> AuctionEvent | None:
    """A delivery or an acceptance, once there is an award."""
    if play.auction.award is None:
        return None
    if kind == "deliver":
        return DeliveryArrived(play.lease(), play.delivery(finished=finished), 7)
    return AcceptanceArrived(make_acceptance(play.delivery(finished=finished)))


def check_patience(play: Play, book: Book) -> None:
    """An auction that closed early had a bid that could win, or nobody who could still make one."""
    left = {event.provider for event, _ in play.told if isinstance(event, ProviderLeft)}
    bidders = {bid.body.provider for bid in book.bids}
    passing = {one.body.provider for one in book.declines if one.body.reason in (Reason.BUSY, Reason.BOND)}
    can_win = any(bid.body.price <= play.order.limit for bid in book.bids)
    assert book.closed >= play.order.closes or can_win or not passing - bidders - left


def check_documents(play: Play) -> None:
    """What a requester sees is one of the few stories there are."""
    news = play.auction.news
    names = [type(one) for one in news]
    assert names[0] is Announced
    assert names.count(Closed) <= 1
    assert names.count(Ended) <= 1
    assert Ended not in names[:-1]
    assert names.count(Opened) <= 1
    closed = next((one for one in news if isinstance(one, Closed)), None)
    if closed is None:
        assert not {Awarded, Unmatched, Opened, Delivered, Accepted} & set(names)
        return
    book = check_book(CHAIN, BROKER.key, closed.book)
    assert book.closed <= play.order.closes or play.now >= play.order.closes
    check_patience(play, book)
    prices = {bid.body.provider: bid.body.price for bid in book.bids}
    for one in news:
        if isinstance(one, Awarded):
            body = verify(one.award, Tag.AWARD, CHAIN, BROKER.key)
            assert prices[one.bid.body.provider] <= body.price <= play.order.limit
            assert body.book == book.root


@given(steps, st.sampled_from(AwardRule), st.integers(0, 3))
def test_any_story_keeps_the_rules_and_replays_to_the_byte(story: Any, rule: AwardRule, matching: int) -> None:
    play = Play(make_order(rule=rule), make_survey(*PROVIDERS[:matching]))
    for kind, number, price, later in story:
        event = make_event(play, kind, number, price)
        if event is not None:
            play.tell(event, later)
        check_documents(play)
    again = play.replay()
    assert encode(tuple(again.news)) == encode(tuple(play.auction.news))
    assert again.wake_at() == play.auction.wake_at()
    assert again.receipts == play.auction.receipts
    live, replayed = play.auction.handle(Restarted(), play.now), again.handle(Restarted(), play.now)
    assert [encode(one) for one in live] == [encode(one) for one in replayed]
    acknowledgements = {one.acknowledgement.body.sequence: one for one in play.effects if isinstance(one, Acknowledge)}
    assert len({encode(one.acknowledgement) for one in acknowledgements.values()}) == len(acknowledgements)
    storages = [one for one in play.auction.news if isinstance(one, Delivered)]
    assert {encode(one.storage) for one in storages} == {encode(one) for one in play.auction.receipts.values()}


@given(steps)
def test_a_restart_anywhere_changes_no_document(story: Any) -> None:
    plain, broken = Play(), Play()
    for kind, number, price, later in story:
        event = make_event(plain, kind, number, price)
        if event is None:
            continue
        plain.tell(event, later)
        broken.auction = broken.replay()
        broken.tell(Restarted(), later)
        broken.tell(event)
        silent = {"restart", "silent", "broker"}
        if kind in silent:
            return
    assert encode(tuple(plain.auction.news)) == encode(tuple(broken.auction.news))


def test_outputs_are_named_once() -> None:
    play = leased()
    kept = next(one for one in play.deliver(output=OUTPUT) if isinstance(one, StoreStorageReceipt))
    assert list(kept.blobs) == sorted(set(kept.blobs))
    assert len(kept.blobs) == 2
    assert replace(kept, until=0).until == 0
