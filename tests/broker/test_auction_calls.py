"""Providers that vanish are called and what they did is saved; an order is taken back in every phase (R5, R6)."""

from __future__ import annotations

from typing import Any

import pytest

from broker.auction.events import (
    Blame,
    Cancelled,
    Inquire,
    OpenDelayed,
    OpenRefused,
    ProviderBack,
    ProviderLeft,
    Restarted,
    SubmitCall,
    SubmitExtend,
    SubmitOpen,
    Withdraw,
)
from broker.auction.lots import CALL_PATIENCE, CALL_PAUSE
from broker.protocol.api import Failed, Left, Opened
from chain.base.codec import encode
from chain.base.merkle import is_consistent
from chain.ledger.terms.work import compute_records_root
from tests.broker.play import cancel, find_end, kinds, make_map, start_map, start_train
from tests.broker.world import PROVIDERS

# Calls


def test_a_provider_that_is_gone_is_called_and_what_it_did_is_saved() -> None:
    play = start_train(20)
    play.hand_in(3)
    play.change("open", 3)
    play.hand_in(7)
    assert play.tell(ProviderLeft(PROVIDERS[0].key)) == []
    assert play.wake(CALL_PATIENCE - 1) == []
    extend, call = play.wake(1)
    assert (type(extend), type(call)) == (SubmitExtend, SubmitCall)
    assert (extend.lease, call.lease) == (play.lease(), play.lease())
    body, records = extend.body, play.lot().handed.records
    assert body.receipt.body.count == 7
    roots = compute_records_root(records[:3]), body.receipt.body.records
    assert is_consistent(3, roots[0], 7, roots[1], body.proof)
    assert body.storage.body.receipt in play.lot().receipts
    assert play.auction.wake_at() == play.now + CALL_PAUSE
    play.change("called", 7)
    assert play.auction.wake_at() is None
    assert Inquire in kinds(play.change("delivered", 7))


def test_what_does_not_go_on_from_the_receipt_on_the_chain_is_not_sent_there() -> None:
    """It was never handed in here, so no proof leads on from it: its provider is called all the same."""
    play = start_train(20)
    play.hand_in(7)
    play.change("open", 5)
    play.tell(ProviderLeft(PROVIDERS[0].key))
    assert kinds(play.wake(CALL_PATIENCE)) == [SubmitCall]


CALLS: list[tuple[str, Any, bool]] = [
    ("silent", lambda play: None, True),
    ("back again", lambda play: play.tell(ProviderBack(PROVIDERS[0].key)), False),
    ("all handed in", lambda play: play.hand_in(20), False),
    ("called by another", lambda play: play.change("called"), False),
    ("being cancelled", lambda play: play.change("cancelling"), False),
    ("over", lambda play: play.change("returned"), False),
]


@pytest.mark.parametrize(("do", "called"), [row[1:] for row in CALLS], ids=[row[0] for row in CALLS])
def test_who_is_called(do: Any, called: bool) -> None:
    play = start_train(20)
    play.tell(ProviderLeft(PROVIDERS[0].key))
    do(play)
    assert (SubmitCall in kinds(play.wake(CALL_PATIENCE))) is called


def test_nobody_is_called_twice_in_a_minute() -> None:
    play = start_train(20)
    play.tell(ProviderLeft(PROVIDERS[0].key))
    play.wake(CALL_PATIENCE)
    play.change("called")
    play.change("open")
    assert play.wake(CALL_PAUSE - 1) == []
    assert kinds(play.wake(1)) == [SubmitCall]


def test_a_call_under_way_is_the_same_after_a_restart() -> None:
    play = start_train(20)
    play.hand_in(4)
    play.tell(ProviderLeft(PROVIDERS[0].key))
    sent = play.wake(CALL_PATIENCE)
    again = [one for one in play.replay().handle(Restarted(), play.now) if isinstance(one, SubmitExtend | SubmitCall)]
    assert [encode(one) for one in again] == [encode(one) for one in sent]
    late = play.replay().handle(Restarted(), play.now + CALL_PAUSE)
    assert SubmitCall not in kinds(late)


# Cancel


def test_cancel_while_two_leases_run() -> None:
    play = start_map()
    play.hand_in(2, 0)
    assert play.tell(cancel(play.order)) == []
    assert play.tell(cancel(play.order)) == []
    play.change("cancelling", 0, 0)
    play.change("cancelling", 0, 1)
    assert kinds(play.change("delivered", 2, 0)) == [Left]
    assert kinds(play.change("cancelled", 0, 1)) == [Left]
    play.change("settled", 2, 0)
    assert (find_end(play).state, find_end(play).text) == (
        "partly",
        "2 of 10 segments are served; taken back by the requester",
    )


def test_cancel_while_a_gap_is_auctioned() -> None:
    play = start_map()
    play.hand_in(2, 0)
    play.change("delivered", 2, 0)
    play.survey_again(PROVIDERS[2])
    assert kinds(play.tell(cancel(play.order))) == [Withdraw]
    assert play.bid(2) == []
    assert play.auction.wake_at() is None


def test_cancel_before_the_answer_who_fits() -> None:
    play = start_map()
    play.hand_in(2, 0)
    play.change("delivered", 2, 0)
    assert play.tell(cancel(play.order)) == []
    assert play.survey_again(PROVIDERS[2]) == []


@pytest.mark.parametrize("blame", [Blame.WINNER, Blame.BROKER])
def test_cancel_while_a_lease_is_opened(blame: Blame) -> None:
    """What was sent can't be called back; what is refused is not tried again."""
    play = make_map(10)
    for number in range(3):
        play.bid(number)
    play.tell(cancel(play.order))
    play.tell(OpenDelayed(play.lease(0), "away"))
    assert kinds(play.wait()) == [SubmitOpen]
    assert kinds(play.tell(OpenRefused(play.lease(1), blame, "R3.x", "no"))) == [Failed]
    assert Opened in kinds(play.open(0))
    play.change("cancelled", 0, 0)
    assert find_end(play).state == "cancelled"


def test_a_lease_cancelled_on_the_chain_alone_is_not_offered_again() -> None:
    play = start_train()
    play.change("cancelling")
    play.hand_in(3)
    play.change("delivered", 3)
    play.change("settled", 3)
    assert "a lease was cancelled by the requester" in find_end(play).text


def test_a_cancelled_order_without_a_lease_is_withdrawn() -> None:
    play = make_map(10)
    for number in range(3):
        play.bid(number)
    play.tell(Cancelled(cancel(play.order).cancellation))
    play.tell(OpenRefused(play.lease(0), Blame.WINNER, "R3.x", "no"))
    play.tell(OpenRefused(play.lease(1), Blame.WINNER, "R3.x", "no"))
    assert find_end(play).state == "withdrawn"
