"""Several leases per order: a book divided, what is left offered again, `train` going on from its state, calls, cancel.

Stories are tables of steps over one play; each ends in the documents a requester sees (R2, R3, R5, R6, R9).
"""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from broker.auction.book import check_book
from broker.auction.events import (
    Acknowledge,
    Announce,
    BidArrived,
    Blame,
    Finish,
    GrantInputs,
    Inquire,
    OpenRefused,
    PublishAward,
    PublishBook,
    Restarted,
    SubmitOpen,
)
from broker.auction.gaps import MAX_FRUITLESS, MAX_ROUNDS
from broker.auction.machine import MAX_ROUND, PAUSE_FIRST, PAUSE_MOST, Phase
from broker.protocol.api import Announced, Awarded, Closed, Ended, Failed, Left, Unmatched
from broker.protocol.messages import Reason
from chain.base.hashing import Tag, compute_digest
from chain.base.keys import verify
from chain.ledger.terms.agreement import AwardRule
from chain.ledger.terms.outcome import Cause
from chain.ledger.terms.work import Span
from tests.broker.play import (
    cancel,
    find_end,
    find_spans,
    kinds,
    list_lots,
    make_map,
    next_round,
    start_map,
    start_train,
)
from tests.broker.world import BROKER, CHAIN, NOW, PROVIDERS, REQUESTER, make_bid, make_state

# Dividing


def test_a_map_is_divided_and_each_part_has_its_own_lease() -> None:
    play = make_map(10)
    play.bid(0, 1_000_000)
    play.bid(1, 900_000)
    got = play.bid(2, 950_000)
    assert kinds(got)[:3] == [Acknowledge, PublishBook, Closed]
    assert kinds(got)[3:] == [GrantInputs, PublishAward, SubmitOpen, Awarded] * 2
    assert find_spans(play) == [(0, 5), (5, 5)]
    assert [lot.provider for lot in play.auction.lots.values()] == [PROVIDERS[1].key, PROVIDERS[2].key]
    assert all(verify(lot.award, Tag.AWARD, CHAIN, BROKER.key).start == play.order.start for lot in list_lots(play))
    assert {lot.award.body.closed for lot in list_lots(play)} == {NOW}


def test_whole_story_of_two_providers() -> None:
    play = start_map()
    for number in (0, 1):
        play.hand_in(3, number)
        play.hand_in(5, number)
        play.change("delivered", 5, number, held=5)
        assert play.auction.phase is not Phase.ENDED
        play.change("settled", 5, number)
    assert (find_end(play).state, find_end(play).text) == ("settled", "10 of 10 segments are served")
    assert kinds(play.effects[-2:]) == [Ended, Finish]


def test_who_did_not_win_is_freed_when_all_awards_of_the_round_are_decided() -> None:
    """Until then its bid may take the place of a refused one."""
    play = make_map(10)
    for number in range(3):
        play.bid(number, 1_000_000 + number)
    assert PublishAward not in kinds(play.open(0))
    got = play.tell(OpenRefused(play.lease(1), Blame.WINNER, "R3.e.set-aside", "no"))
    assert kinds(got) == [Failed, GrantInputs, PublishAward, SubmitOpen, Awarded]
    assert find_spans(play) == [(0, 5), (5, 5), (5, 5)]
    assert play.lot().provider == PROVIDERS[2].key
    told = [one for one in play.open() if isinstance(one, PublishAward)]
    assert [(one.provider, one.award) for one in told] == [(None, play.lot(0).award), (None, play.lot(2).award)]


def test_under_second_a_map_is_one_lease() -> None:
    play = make_map(10, rule=AwardRule.SECOND)
    for number in range(3):
        play.bid(number, 1_000_000 + number)
    assert find_spans(play) == [(0, 10)]
    assert play.lot().award.body.price == 1_000_001


# Gaps


def test_what_one_returned_is_served_by_another() -> None:
    play = start_map()
    play.hand_in(2, 0)
    got = play.change("delivered", 2, 0)
    assert kinds(got) == [Left, Inquire]
    assert (got[0].news.state, got[0].news.served, got[1].segments) == ("delivered", 2, 3)
    got = play.survey_again(PROVIDERS[1], PROVIDERS[2])
    assert kinds(got) == [Announce, Announced]
    assert got[0].announcement.body.spans == (Span(2, 3),)
    assert got[0].announcement.body.round == 1
    assert play.auction.phase is Phase.COLLECTING
    play.bid(1)
    play.bid(2, 999_999)
    assert find_spans(play)[2:] == [(2, 2), (4, 1)]
    book = [one for one in play.auction.news if isinstance(one, Closed)][-1].book
    assert check_book(CHAIN, BROKER.key, book).round == 1
    assert play.lot().award.body.closed == book.body.closed
    play.open(2)
    play.open(3)
    play.change("settled", 2, 0)
    for number in (1, 2, 3):
        play.hand_in(play.lot(number).part.count, number)
        play.change("settled", play.lot(number).part.count, number)
    assert find_end(play).state == "settled"


GAPS: list[tuple[str, list[tuple[str, int]], list[tuple[int, int]]]] = [
    # what, (state, served) of the two halves, what is offered next
    ("returned at once", [("returned", 0)], [(0, 5)]),
    ("expired", [("expired", 0)], [(0, 5)]),
    ("unstarted", [("unstarted", 0)], [(0, 5)]),
    ("cut at 3", [("delivered", 3)], [(3, 2)]),
    ("cut at 3 and paid", [("settled", 3)], [(3, 2)]),
    ("both cut", [("delivered", 3), ("delivered", 1)], [(3, 2), (6, 4)]),
    ("both gone", [("returned", 0), ("expired", 0)], [(0, 10)]),
    ("called", [("called", 0)], []),
    ("delivered whole", [("delivered", 5)], []),
]


@pytest.mark.parametrize(("changes", "offered"), [row[1:] for row in GAPS], ids=[row[0] for row in GAPS])
def test_what_is_a_gap(changes: list[tuple[str, int]], offered: list[tuple[int, int]]) -> None:
    play = start_map()
    play.auction._pause_until = None
    for number, (state, served) in enumerate(changes):
        if served:
            play.hand_in(served, number)
        play.change(state, served, number)
    if offered:
        next_round(play, 2)
    assert find_spans(play, Announced)[1:] == offered


def test_a_change_that_is_said_again_is_no_news() -> None:
    play = start_map()
    play.hand_in(2, 0)
    play.change("delivered", 2, 0)
    assert play.change("delivered", 2, 0) == []
    assert kinds(play.change("settled", 2, 0)) == [Left]


def test_a_gap_waits_while_enough_providers_work() -> None:
    """`parallelism`: a further round begins once fewer lots than that are at work."""
    play = make_map(9, parallelism=1)
    play.bid(0)
    for number in (1, 2):
        play.decline(number, Reason.PRICE)
    play.open()
    play.hand_in(3)
    assert Inquire in kinds(play.change("delivered", 3))


def test_no_more_than_parallelism_are_at_work_when_a_round_begins() -> None:
    play = start_map()
    play.hand_in(1, 0)
    play.change("delivered", 1, 0)
    next_round(play, 2, 3)
    assert find_spans(play)[2:] == [(1, 2), (3, 2)]
    play.open(2)
    play.open(3)
    assert kinds(play.change("returned", 0, 2)) == [Left]
    assert play.wake(60_000) == []
    assert Inquire in kinds(play.hand_in(5, 1))


def test_a_failed_segment_ends_its_range_and_with_tolerance_the_rest_is_offered() -> None:
    for tolerance, state in ((0, "partly"), (1, "")):
        play = start_map(tolerance=tolerance)
        play.hand_in(3, 0, Cause.PROGRAM)
        play.hand_in(5, 1)
        play.change("settled", 5, 1)
        # R9: the chain keeps the range covered until the lease is over, so nothing is offered before.
        assert play.change("delivered", 3, 0, held=5) == []
        got = kinds(play.change("settled", 3, 0))
        if state:
            assert got == [Left, Ended, Finish]
            assert (find_end(play).state, find_end(play).text) == (
                "partly",
                "8 of 10 segments are served; 1 segment failed",
            )
        else:
            assert got == [Left, Inquire]
            next_round(play, 2)
            assert find_spans(play)[2:] == [(3, 2)]


def test_a_second_failure_is_one_too_many() -> None:
    play = start_map(tolerance=1)
    for number in (0, 1):
        play.hand_in(2, number, Cause.OOM)
        play.change("settled", 2, number)
    assert kinds(play.survey_again(PROVIDERS[2])) == [Ended, Finish]
    assert (find_end(play).state, "2 segments failed" in find_end(play).text) == ("partly", True)


def test_a_round_that_is_open_when_too_many_failed_awards_nothing() -> None:
    play = start_map(tolerance=0)
    play.hand_in(1, 0)
    play.change("delivered", 1, 0)
    play.survey_again(PROVIDERS[2])
    play.hand_in(2, 1, Cause.PROGRAM)
    got = play.bid(2)
    assert kinds(got) == [Acknowledge, PublishBook, Closed]
    assert len(find_spans(play)) == 2


def test_a_failed_run_or_train_is_not_offered_again() -> None:
    play = start_train()
    play.hand_in(4, cause=Cause.PROGRAM)
    play.change("settled", 4)
    assert find_end(play).state == "settled"
    assert "1 segment failed" in find_end(play).text


# Train


def test_a_train_goes_on_from_the_last_committed_state() -> None:
    play = start_train(20)
    play.hand_in(5)
    play.hand_in(12)
    play.change("delivered", 12)
    play.survey_again(PROVIDERS[1])
    got = play.bid(1)
    award = play.lot().award.body
    assert (award.first, award.count, award.start) == (12, 8, compute_digest(make_state(11)))
    grant = next(one for one in got if isinstance(one, GrantInputs))
    assert compute_digest(make_state(11)) in grant.digests
    play.open()
    play.hand_in(8)
    play.change("settled", 12, 0)
    play.change("settled", 8, 1)
    assert find_end(play).state == "settled"


def test_a_train_whose_state_is_not_here_is_not_offered_again() -> None:
    """The receipt on the chain was never handed in: nobody could say what the next segment begins with."""
    play = start_train(20)
    play.hand_in(5)
    play.change("delivered", 7)
    play.change("settled", 7)
    assert "the state after 7 segments was not handed in here" in find_end(play).text


# Rounds that bring nothing


def test_all_providers_go_and_come_back() -> None:
    play = start_train(20)
    play.hand_in(12)
    play.change("delivered", 12)
    pauses = []
    for _ in range(7):
        play.survey_again()
        assert play.auction.round is not None
        assert play.auction.round.closes == play.now + min(play.order.closes - NOW, MAX_ROUND)
        play.wait()
        assert play.auction.phase is Phase.LEASED
        before = play.now
        assert kinds(play.wait()) == [Inquire]
        pauses.append(play.now - before)
    assert pauses == [1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000]
    assert (pauses[0], pauses[-1]) == (PAUSE_FIRST, PAUSE_MOST)
    next_round(play, 0)
    assert find_spans(play)[1:] == [(12, 8)]
    assert not any(isinstance(one, Unmatched) for one in play.auction.news)


def test_who_leaves_at_once_is_not_asked_at_once() -> None:
    """Each such turn costs the requester a part of the price (row 5): so they become rarer."""
    play = start_train()
    for pause in (1_000, 2_000, 4_000):
        assert kinds(play.change("unstarted")) == [Left]
        assert play.auction.wake_at() == play.now + pause
        next_round(play, 0)
        play.open()
    play.hand_in(1)
    assert Inquire in kinds(play.change("delivered", 1))


@pytest.mark.parametrize("state", ["unstarted", "returned", "expired"])
def test_who_only_ever_leaves_is_asked_no_more(state: str) -> None:
    """A provider that bids least in every round and serves nothing would keep all others from the work for ever."""
    play = start_train()
    for _ in range(MAX_FRUITLESS - 1):
        play.change(state)
        next_round(play, 0)
        play.open()
    play.change(state)
    play.wait()
    play.survey_again(PROVIDERS[0], PROVIDERS[1])
    assert play.auction.round is not None and play.auction.round.awaited == {PROVIDERS[1].key}
    assert play.bid(0, 1) == [], "not even acknowledged, so nothing is hidden"
    play.bid(1)
    assert play.lot().provider == PROVIDERS[1].key
    assert play.replay().news == play.auction.news


def test_who_served_something_may_leave_as_often_as_it_has_to() -> None:
    play = start_train()
    for served in range(1, MAX_FRUITLESS + 2):
        play.now += 5_000
        play.hand_in(1)
        play.change("delivered", 1)
        play.change("settled", 1)
        next_round(play, 0)
        play.open()
        assert play.lot().part.first == served


def test_work_makes_patience_new() -> None:
    play = start_train()
    for _ in range(3):
        play.change("unstarted")
        next_round(play, 0)
        play.open()
    play.hand_in(1)
    play.change("returned")
    assert play.auction.wake_at() == play.now + PAUSE_FIRST


def test_a_round_waits_as_the_first_one_did() -> None:
    play = start_map()
    play.change("returned", 0, 0)
    play.wait()
    play.survey_again(PROVIDERS[2], PROVIDERS[3])
    play.decline(2)
    play.decline(3, Reason.PRICE, 3_000_000)
    assert play.auction.phase is Phase.COLLECTING
    play.bid(2)
    assert find_spans(play)[2:] == [(0, 5)]


def test_rounds_end_with_the_time_that_one_segment_needs() -> None:
    play = start_map(deadline=NOW + 1_000_000)
    least = play.order.deadline - play.order.windows.start - play.order.segment_wall - (play.order.closes - NOW)
    play.hand_in(5, 1)
    play.change("settled", 5, 1)
    play.hand_in(1, 0)
    late = play.replay(), play.now
    play.now = least
    assert kinds(play.change("delivered", 1, 0)) == [Left, Inquire]
    play.auction, play.now = late[0], least + 1
    assert kinds(play.change("delivered", 1, 0)) == [Left]
    play.change("settled", 1, 0)
    assert (find_end(play).state, "the deadline leaves no time" in find_end(play).text) == ("partly", True)


def test_rounds_are_bounded() -> None:
    play = start_train()
    play.hand_in(1)
    play.change("delivered", 1)
    play.auction._rounds = MAX_ROUNDS - 1
    play.tell(Restarted())
    play.survey_again()
    play.wait()
    assert play.auction.wake_at() is None
    play.change("settled", 1)
    assert f"{MAX_ROUNDS} rounds" in find_end(play).text


def test_a_bid_of_an_earlier_round_does_not_count_in_a_later_one() -> None:
    """Its book was its answer; who says it again is not its provider."""
    play = start_map()
    play.change("returned", 0, 0)
    play.wait()
    play.survey_again(PROVIDERS[2])
    old = next(event for event, _ in play.told if isinstance(event, BidArrived))
    assert play.tell(old) == []


# Money


def test_what_is_promised_is_what_may_still_be_taken() -> None:
    play = make_map(10)
    cap, share = play.order.cap, 2_000_000 * 101 // 100
    assert play.auction.promised == cap
    play.bid(0)
    play.bid(1)
    play.decline(2, Reason.PRICE)
    assert play.auction.promised == cap
    play.open(0)
    assert play.auction.promised == 5 * 1_010_000
    play.open(1)
    assert play.auction.promised == 0
    play.hand_in(2, 0)
    play.change("delivered", 2, 0)
    assert play.auction.promised == 3 * share
    play.tell(cancel(play.order))
    assert play.auction.promised == 0


def test_an_order_out_of_money_goes_on_with_what_it_has() -> None:
    play = make_map(10)
    for number in range(3):
        play.bid(number)
    play.open(0)
    got = play.tell(OpenRefused(play.lease(1), Blame.REQUESTER, "R2.balance", "no"))
    assert kinds(got) == [Failed, PublishAward]
    assert Inquire not in kinds(play.wake(60_000))
    play.hand_in(5, 0)
    play.change("settled", 5, 0)
    assert (find_end(play).state, "R2.balance" in find_end(play).text) == ("settled", True)


def test_bids_of_parties_and_strangers_get_no_part() -> None:
    play = make_map(10)
    play.tell(BidArrived(make_bid(play.order, REQUESTER), True))
    play.bid(0)
    play.bid(1)
    play.decline(2, Reason.PRICE)
    assert {lot.provider for lot in list_lots(play)} == {PROVIDERS[0].key, PROVIDERS[1].key}
    assert replace(play.lot(0).part) == Span(0, 5)
