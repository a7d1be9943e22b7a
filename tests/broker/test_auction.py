"""The auction machine: closing, award, opening, relay, ends, and that a replay equals the live run (design.md
section 4, R12, R3).
"""

from __future__ import annotations

from typing import Any

import pytest

from broker.auction.admission import Means, compute_delivery_id
from broker.auction.events import (
    AcceptanceArrived,
    Acknowledge,
    Announce,
    BidArrived,
    Blame,
    DeclineArrived,
    Finish,
    GrantInputs,
    LeaseChanged,
    OpenDelayed,
    OpenFinal,
    OpenRefused,
    OrderPosted,
    PassAcceptance,
    ProviderCame,
    ProviderLeft,
    PublishAward,
    PublishBook,
    Restarted,
    StoreStorageReceipt,
    SubmitOpen,
    WatchLease,
    Withdraw,
    find_blame,
)
from broker.auction.lots import ENDS, NO_RECEIPT, RETRY_FIRST, RETRY_MOST, TX_VALIDITY
from broker.auction.machine import Auction, Phase
from broker.auction.matching import Misfit, Mismatch, Survey
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
from broker.protocol.messages import Reason
from chain.base.hashing import Tag
from chain.base.keys import verify
from chain.ledger.terms.agreement import compute_lease_id
from tests.broker.play import ORDER, Play, cancel, find_end, kinds, leased, opening
from tests.broker.world import (
    BROKER,
    CHAIN,
    HOUSE,
    NOW,
    PROVIDERS,
    RICH,
    make_acceptance,
    make_bid,
    make_decline,
    make_order,
    make_spec,
    make_survey,
    sign_order,
)


def test_the_whole_way() -> None:
    play = Play()
    assert kinds(play.effects) == [Announce, Announced]
    assert kinds(play.bid(0)) == [Acknowledge]
    closing = play.bid(1, 2_000_000)
    assert kinds(closing) == [Acknowledge, PublishBook, Closed, GrantInputs, PublishAward, SubmitOpen, Awarded]
    award = play.lot().award
    assert verify(award, Tag.AWARD, CHAIN, BROKER.key).price == 1_000_000
    assert play.lease() == compute_lease_id(CHAIN, award.body)
    assert kinds(play.open()) == [Opened, PublishAward, WatchLease]
    assert kinds(play.deliver()) == [StoreStorageReceipt, Delivered]
    acceptance = make_acceptance(play.delivery())
    assert kinds(play.tell(AcceptanceArrived(acceptance))) == [PassAcceptance, Accepted]
    assert kinds(play.change("delivered", 1)) == []
    assert kinds(play.change("settled", 1)) == [Left, Ended, Finish]
    assert find_end(play).state == "settled"
    assert play.auction.phase is Phase.ENDED


# Closing


def test_it_closes_when_the_last_that_matches_has_answered() -> None:
    play = Play(survey=make_survey(*PROVIDERS[:3]))
    play.bid(0)
    play.decline(1)
    assert PublishBook not in kinds(play.bid(5))
    assert PublishBook in kinds(play.decline(2))


def test_it_closes_at_the_deadline_and_not_before() -> None:
    play = Play()
    play.bid(0)
    assert play.auction.wake_at() == ORDER.closes
    assert play.wake(ORDER.closes - NOW - 1) == []
    assert PublishBook in kinds(play.wake(1))


def test_a_bid_at_the_deadline_comes_behind_it() -> None:
    play = Play()
    got = play.tell(BidArrived(make_bid(ORDER), True), later=ORDER.closes - NOW)
    assert kinds(got) == [PublishBook, Closed, Unmatched, Withdraw, Ended, Finish]


def test_who_left_is_not_waited_for() -> None:
    play = Play()
    play.bid(0)
    assert PublishBook in kinds(play.tell(ProviderLeft(PROVIDERS[1].key)))


def test_who_comes_later_hears_the_announcement_too() -> None:
    play = Play()
    play.bid(0)
    (sent,) = play.auction.handle(ProviderCame(PROVIDERS[5].key), NOW)
    assert sent == Announce(play.effects[0].announcement, PROVIDERS[5].key)
    assert play.auction.handle(ProviderCame(PROVIDERS[0].key), NOW) == ()
    assert opening().auction.handle(ProviderCame(PROVIDERS[5].key), NOW) == ()
    assert not ProviderCame.durable


def test_with_nobody_that_matches_it_waits_for_those_who_say_why() -> None:
    misfit = Misfit(PROVIDERS[4].key, (Mismatch(Reason.MEMORY, 2, 1, "x"),))
    play = Play(survey=Survey((), (misfit,)))
    assert PublishBook in kinds(play.decline(4, Reason.MEMORY))


DEAR = ORDER.limit + 1
Answer = tuple[str, int, Any]
WAITS: list[tuple[str, list[Answer], bool]] = [
    # what, answers in turn (who, and the price or reason), whether the auction is still open behind the last
    ("all busy", [("decline", 0, Reason.BUSY), ("decline", 1, Reason.BUSY)], True),
    ("no bond free", [("decline", 0, Reason.BOND), ("decline", 1, Reason.BOND)], True),
    ("one busy, one too dear", [("decline", 0, Reason.BUSY), ("decline", 1, Reason.PRICE)], True),
    ("one too dear, one busy", [("decline", 0, Reason.PRICE), ("decline", 1, Reason.BUSY)], True),
    ("none for a passing reason", [("decline", 0, Reason.PRICE), ("decline", 1, Reason.MEMORY)], False),
    ("a bid beside a busy one", [("decline", 0, Reason.BUSY), ("bid", 1, 1)], False),
    ("a busy one behind a bid", [("bid", 1, 1), ("decline", 0, Reason.BUSY)], False),
    ("a bid above the limit", [("decline", 0, Reason.BUSY), ("bid", 1, DEAR)], True),
    ("busy again after its bid", [("bid", 0, DEAR), ("decline", 0, Reason.BUSY), ("decline", 1, Reason.PRICE)], False),
    ("the busy one left", [("decline", 0, Reason.BUSY), ("decline", 1, Reason.PRICE), ("left", 0, 0)], False),
    ("one of two busy ones left", [("decline", 0, Reason.BUSY), ("decline", 1, Reason.BUSY), ("left", 0, 0)], True),
    ("room is made", [("decline", 0, Reason.BUSY), ("decline", 1, Reason.BUSY), ("bid", 1, 1)], False),
    ("a stranger bids", [("decline", 0, Reason.BUSY), ("decline", 1, Reason.BUSY), ("bid", 5, 1)], False),
    (
        "the only hope is too dear",
        [("decline", 0, Reason.BUSY), ("decline", 1, Reason.PRICE), ("bid", 0, DEAR)],
        False,
    ),
    ("somebody is awaited", [("decline", 0, Reason.BUSY), ("bid", 5, 1)], True),
    ("its first reason counts", [("decline", 0, Reason.PRICE), ("decline", 0, Reason.BUSY), ("left", 1, 0)], False),
]


@pytest.mark.parametrize(("answers", "is_open"), [row[1:] for row in WAITS], ids=[row[0] for row in WAITS])
def test_while_only_time_can_bring_a_bid_it_stays_open(answers: list[Answer], is_open: bool) -> None:
    play = Play()
    for what, number, detail in answers:
        assert play.auction.phase is Phase.COLLECTING
        match what:
            case "bid":
                play.bid(number, detail)
            case "decline":
                play.decline(number, detail)
            case _:
                play.tell(ProviderLeft(PROVIDERS[number].key))
    assert (play.auction.phase is Phase.COLLECTING) is is_open
    again = play.replay()
    assert (again.phase, again.wake_at()) == (play.auction.phase, play.auction.wake_at())
    if is_open:
        assert play.wake(ORDER.closes - play.now - 1) == []
        assert PublishBook in kinds(play.wake(1))


def test_room_made_in_time_is_leased_and_else_the_order_is_unmatched() -> None:
    late, played = Play(), Play()
    for play in (late, played):
        play.decline(0)
        play.decline(1)
    assert SubmitOpen in kinds(played.bid(1))
    assert kinds(late.wake(ORDER.closes - NOW)) == [PublishBook, Closed, Unmatched, Withdraw, Ended, Finish]


def test_with_nobody_at_all_it_waits_for_the_deadline() -> None:
    play = Play(survey=Survey((), ()))
    play.decline(4)
    assert play.auction.phase is Phase.COLLECTING
    assert kinds(play.bid(5)) == [Acknowledge]
    assert SubmitOpen in kinds(play.wake(ORDER.closes - NOW))


IGNORED: list[tuple[str, Any]] = [
    ("a bid for another order", lambda: BidArrived(make_bid(make_order(salt=bytes(16))), True)),
    ("a bid of an unregistered key", lambda: BidArrived(make_bid(ORDER), False)),
    ("a decline of another order", lambda: DeclineArrived(make_decline(make_order(salt=bytes(16))))),
    ("a lease that is not ours", lambda: OpenFinal(bytes(32), 1)),
    ("a change before the lease", lambda: LeaseChanged(bytes(32), "settled", 1, 1, 1, "ok", NO_RECEIPT)),
    ("an order again", lambda: OrderPosted(sign_order(ORDER), make_spec(), make_survey(), RICH)),
]


@pytest.mark.parametrize("make", [row[1] for row in IGNORED], ids=[row[0] for row in IGNORED])
def test_what_does_not_belong_changes_nothing(make: Any) -> None:
    play = Play()
    assert play.tell(make()) == []
    assert (play.auction.phase, len(play.auction.news)) == (Phase.COLLECTING, 1)


def test_late_answers_change_nothing() -> None:
    play = opening()
    assert play.bid(2, 1) == play.decline(3) == play.tell(ProviderLeft(PROVIDERS[0].key)) == []


def test_means_are_looked_at_once_more() -> None:
    """R12 f: two orders admitted at one moment can't both have the same credits."""
    auction = Auction(BROKER, HOUSE)
    posted = OrderPosted(sign_order(ORDER), make_spec(), make_survey(), Means(3_000_000, 1))
    assert kinds(auction.handle(posted, NOW)) == [Ended, Finish]
    assert auction.promised == 0


def test_what_is_promised_while_the_chain_has_not_locked_it() -> None:
    play = Play()
    assert play.auction.promised == ORDER.cap
    play.bid(0)
    play.bid(1)
    assert play.auction.promised == ORDER.cap
    play.open()
    assert play.auction.promised == 0


# Opening


def refuse(play: Play, rule: str) -> list[Any]:
    return play.tell(OpenRefused(play.lease(), find_blame(rule), rule, "said the chain"))


@pytest.mark.parametrize(
    ("rule", "blame"),
    [
        ("R3.e.set-aside", Blame.WINNER),
        ("R14.leverage", Blame.WINNER),
        ("R18.key", Blame.WINNER),
        ("R2.balance", Blame.REQUESTER),
        ("R1.window", Blame.REQUESTER),
        ("R6.answer", Blame.REQUESTER),
        ("R10.panel", Blame.REQUESTER),
        ("R13.balance", Blame.BROKER),
        ("R15.a.validity", Blame.BROKER),
        ("mempool.full", Blame.BROKER),
    ],
)
def test_whose_reason_a_refusal_is(rule: str, blame: Blame) -> None:
    assert find_blame(rule) is blame


def test_the_next_bid_is_tried_and_at_last_nobody_is_left() -> None:
    play = opening()
    first = play.lease()
    got = refuse(play, "R3.e.set-aside")
    assert kinds(got) == [Failed, GrantInputs, PublishAward, SubmitOpen, Awarded]
    assert (got[0].news.lease, got[0].news.rule) == (first, "R3.e.set-aside")
    assert play.lease() != first
    got = refuse(play, "R3.c.validity")
    assert kinds(got) == [Failed, Unmatched, Withdraw, Ended, Finish]
    assert "2 bids, but none could open a lease: R3.c.validity, R3.e.set-aside" in got[1].news.text


def test_an_order_the_chain_refuses_is_off() -> None:
    play = opening()
    got = refuse(play, "R2.balance")
    assert kinds(got) == [Failed, Withdraw, Ended, Finish]
    assert got[2].news.state == "refused"
    assert "R2.balance: said the chain" in got[2].news.text


def test_time_runs_out_for_the_next_bid() -> None:
    """ "While time allows": a bid that has run out has its turn, so that everybody can work out who comes next, and
    fails at once: nothing is opened with it, and its provider gets no inputs.
    """
    play = opening()
    play.now += 20_000
    got = refuse(play, "R3.e.set-aside")
    assert kinds(got) == [Failed, Awarded, Failed, Unmatched, Withdraw, Ended, Finish]
    assert [one.news.rule for one in got if kinds([one]) == [Failed]] == ["R3.e.set-aside", "R3.validity"]


@pytest.mark.parametrize("delayed", [True, False], ids=["silence", "our own fault"])
def test_tries_are_repeated_ever_more_slowly(delayed: bool) -> None:
    play = opening()
    pause = RETRY_FIRST
    for _ in range(6):
        silent = OpenDelayed(play.lease(), "away")
        play.tell(silent if delayed else OpenRefused(play.lease(), Blame.BROKER, "R13.balance", "no credits"))
        assert play.auction.wake_at() == play.now + pause
        assert kinds(play.wake(pause)) == [SubmitOpen]
        assert play.auction.wake_at() is None
        pause = min(pause * 2, RETRY_MOST)


def test_a_retry_is_the_same_transaction_until_it_has_run_out() -> None:
    play = opening()
    untils = []
    for _ in range(12):
        play.tell(OpenDelayed(play.lease(), "away"))
        submit = play.wake((play.auction.wake_at() or 0) - play.now)[0]
        untils.append((submit.valid_until, play.now))
    assert all(until > now for until, now in untils)
    assert len({until for until, _ in untils}) == 2
    assert min(until for until, _ in untils) == NOW + TX_VALIDITY


def test_our_own_fault_ends_with_the_award() -> None:
    play = opening()
    play.now += 60_001
    got = play.tell(OpenRefused(play.lease(), Blame.BROKER, "R13.balance", "no credits"))
    assert kinds(got) == [Failed, Withdraw, Ended, Finish]
    assert "the broker could not open the lease: no credits" in got[2].news.text


def test_silence_ends_only_when_nothing_sent_can_open_a_lease_any_more() -> None:
    play = opening()
    play.now = ORDER.expiry + TX_VALIDITY
    assert kinds(play.tell(OpenDelayed(play.lease(), "away"))) == []
    play.wake(RETRY_FIRST)
    assert kinds(play.tell(OpenDelayed(play.lease(), "away"))) == [Failed, Withdraw, Ended, Finish]


# The lease


def test_a_receipt_again_is_neither_news_nor_another_storage_receipt() -> None:
    play = leased()
    play.deliver()
    before = dict(play.lot().receipts)
    assert play.deliver() == []
    assert play.lot().receipts == before


def test_storage_receipts_name_size_and_time() -> None:
    play = leased()
    play.deliver()
    (storage,) = play.lot().receipts.values()
    body = verify(storage, Tag.STORAGE, CHAIN, BROKER.key)
    assert (body.lease, body.receipt) == (play.lease(), compute_delivery_id(CHAIN, play.delivery()))
    assert (body.size, body.kept_until) == (100, play.order.deadline + HOUSE.retention)


def test_a_receipt_may_overtake_the_news_that_the_lease_is_open() -> None:
    play = opening()
    assert kinds(play.deliver()) == [StoreStorageReceipt, Delivered]
    assert kinds(play.open()) == [Opened, PublishAward, WatchLease]


def test_an_acceptance_needs_a_receipt_and_is_passed_on_once() -> None:
    play = leased()
    acceptance = AcceptanceArrived(make_acceptance(play.delivery()))
    assert play.tell(acceptance) == []
    play.deliver()
    assert kinds(play.tell(acceptance)) == [PassAcceptance, Accepted]
    assert play.tell(acceptance) == []
    other = AcceptanceArrived(make_acceptance(play.delivery(), segments=()))
    assert kinds(play.tell(other)) == [PassAcceptance, Accepted]
    assert play.tell(acceptance) == []
    assert play.lot().acceptance == other.acceptance


@pytest.mark.parametrize("state", ["open", "called", "cancelling", "delivered", "disputed", *sorted(ENDS)])
def test_only_the_last_states_of_a_lease_end_a_job(state: str) -> None:
    """With no time for another round, that is."""
    play = Play(make_order(deadline=NOW + 95_000))
    play.bid(0)
    play.bid(1)
    play.open()
    play.now += 5_000
    got = play.change(state, 1, held=1)
    assert kinds(got) == ([Left, Ended, Finish] if state in ENDS else [])
    if state in ENDS:
        assert find_end(play).state == state


def test_an_order_is_taken_back_while_its_auction_is_open() -> None:
    assert kinds(Play().tell(cancel())) == [Withdraw, Ended, Finish]
    assert Play().tell(cancel())[1].news.state == "withdrawn"


# Restarts


def delivered() -> Play:
    play = leased()
    play.deliver()
    return play


def accepted() -> Play:
    play = delivered()
    play.tell(AcceptanceArrived(make_acceptance(play.delivery())))
    return play


def ended() -> Play:
    play = accepted()
    play.change("settled", 1)
    return play


RESTARTS: list[tuple[Any, list[type]]] = [
    (Play, [Announce]),
    (opening, [PublishBook, GrantInputs, PublishAward, SubmitOpen]),
    (leased, [GrantInputs, PublishAward, PublishAward, WatchLease]),
    (delivered, [GrantInputs, PublishAward, PublishAward, WatchLease, StoreStorageReceipt]),
    (accepted, [GrantInputs, PublishAward, PublishAward, WatchLease, StoreStorageReceipt, PassAcceptance]),
    (ended, [Finish]),
]


@pytest.mark.parametrize(("make", "expected"), RESTARTS, ids=[row[0].__name__ for row in RESTARTS])
def test_after_a_restart_it_asks_again_for_what_is_outstanding(make: Any, expected: list[type]) -> None:
    play = make()
    before = list(play.effects)
    again = play.replay()
    assert again.news == play.auction.news
    effects = list(again.handle(Restarted(), play.now))
    assert kinds(effects) == expected
    assert all(one in before for one in effects)


def test_a_restart_before_anything_asks_for_nothing() -> None:
    assert list(Auction(BROKER, HOUSE).handle(Restarted(), NOW)) == []
