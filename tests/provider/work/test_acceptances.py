"""Acceptances: which are heard, what they cost who hears them, and that a lease is settled on one of them, once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from chain.base.keys import is_signature
from chain.ledger.terms.work import SegmentRecord, Span, compute_records_root
from chain.ledger.transactions import Settle
from provider.work.events import (
    AcceptanceArrived,
    AwaitAcceptance,
    LeaseState,
    PostReceipt,
    Restarted,
    Stopping,
    Submit,
    Task,
    TransactionRefused,
    WorkEvent,
)
from provider.work.phases import Phase
from provider.work.standing import MAX_WAITING
from tests.provider.scene import accept, make_signer, moved, run_ended
from tests.provider.work.life import Life, kinds
from tests.provider.work.test_machine import reach
from tests.provider.work.test_ranges import DUE, batch, begin_with, open_map

DONE = 20


def hand_in(*counts: int) -> Life:
    """A life of a range of 30 whose receipts over so many segments the holder has."""
    life = begin_with(counts[0], open_map(30))
    for number, count in enumerate(counts):
        now = DUE + 1_000 * number
        if number:
            life.tell(batch(counts[number - 1], count - counts[number - 1]), now=now - 1_000)
        life.wake(now)
        life.tell(life.stored(), now=now)
    assert [post.receipt.body.count for post in life.find(PostReceipt)] == list(counts)
    return life


def accept_prefix(life: Life, number: int, cut: int = 0, **change: Any) -> AcceptanceArrived:
    """The acceptance of hand-in `number`, in two spans where `cut` lies in it: another one for each `cut`."""
    receipt = life.find(PostReceipt)[number].receipt
    spans = (Span(0, cut), Span(cut, receipt.body.count - cut)) if cut else (Span(0, receipt.body.count),)
    return AcceptanceArrived(accept(receipt, change={"segments": spans} | change))


def find_settles(life: Life) -> list[Settle]:
    """All settles that were handed in, in order."""
    return [one.body for one in life.find(Submit) if isinstance(one.body, Settle)]


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many records were hashed for a root, each time."""
    counts: list[int] = []

    def count(records: Sequence[SegmentRecord]) -> bytes:
        counts.append(len(records))
        return compute_records_root(records)

    monkeypatch.setattr("provider.work.papers.compute_records_root", count)
    return counts


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The signatures of acceptances that were checked."""
    signatures: list[bytes] = []

    def check(key: bytes, message: bytes, signature: bytes) -> bool:
        signatures.append(signature)
        return is_signature(key, message, signature)

    monkeypatch.setattr("provider.work.standing.is_signature", check)
    return signatures


IN_VAIN: dict[str, dict[str, Any]] = {
    "of fewer segments than its receipt has": {"segments": (Span(0, DONE - 1),)},
    "on a receipt that was never made": {"receipt": bytes(32), "segments": (Span(0, DONE - 1),)},
    "on another lease": {"lease": bytes(32)},
    "by a stranger": {"signer": make_signer("stranger").key},
}


@pytest.mark.parametrize("name", IN_VAIN)
def test_an_acceptance_in_vain_costs_no_hash_of_records_and_no_signature(
    name: str, hashed: list[int], checked: list[bytes]
) -> None:
    life = hand_in(DONE)
    hashed.clear()
    for release in (True, False) * 10:
        told = AcceptanceArrived(accept(life.posted.receipt, change=IN_VAIN[name] | {"release": release}))
        assert life.tell(told, now=DUE) == []
    assert (hashed, checked) == ([], [])


def test_a_genuine_acceptance_costs_no_hash_of_records(hashed: list[int]) -> None:
    life = hand_in(DONE - 1, DONE)
    hashed.clear()
    assert life.tell(accept_prefix(life, 0), now=DUE + 1_000) == []
    assert kinds(life.tell(moved(LeaseState.DELIVERED, served=DONE - 1, held=DONE - 1)))[-1] == "submit settle"
    assert hashed == []


def test_few_acceptances_are_heard_on_which_nothing_can_be_settled_yet(checked: list[bytes]) -> None:
    life = hand_in(DONE)
    for cut in range(DONE):
        assert life.tell(accept_prefix(life, 0, cut), now=DUE) == []
    assert len(checked) == MAX_WAITING


@pytest.mark.parametrize("forged", [True, False], ids=["forged ones do not count", "genuine ones count"])
def test_the_acceptance_that_settles_is_heard_after_however_many(forged: bool) -> None:
    life = hand_in(DONE - 1, DONE)
    for cut in range(MAX_WAITING):
        told = accept_prefix(life, 0, cut)
        if forged:
            told = AcceptanceArrived(msgspec.structs.replace(told.acceptance, signature=bytes(64)))
        life.tell(told, now=DUE + 1_000)
    last = accept_prefix(life, 1)
    assert life.tell(last, now=DUE + 1_000) == []
    told_on_chain = life.tell(moved(LeaseState.DELIVERED, served=DONE, held=DONE))
    assert ("submit settle" in kinds(told_on_chain)) == forged
    if not forged:
        assert kinds(life.tell(last)) == ["submit settle"], "it need not wait any more"
    [settle] = find_settles(life)
    assert settle.acceptance == last.acceptance


def test_an_acceptance_that_waits_does_not_keep_the_whole_range_from_its_delivery() -> None:
    life = hand_in(DONE)
    life.tell(batch(DONE, 10), run_ended(), now=DUE)
    life.tell(life.stored(), now=DUE)
    assert life.work.phase is Phase.STORED
    assert life.tell(accept_prefix(life, 0), now=DUE) == []
    assert kinds(life.wake(DUE + 3_000)) == ["submit deliver"]


# One settle


def test_what_is_being_settled_is_not_settled_on_another_acceptance_as_well() -> None:
    life = reach(Phase.STORED)
    first, second = (AcceptanceArrived(accept(life.posted.receipt, change={"release": one})) for one in (False, True))
    assert kinds(life.tell(first)) == ["submit settle"]
    assert life.tell(second) == []
    assert kinds(life.tell(Restarted())) == ["submit settle", "AwaitAcceptance"]
    assert [one.acceptance for one in find_settles(life)] == [first.acceptance] * 2


def test_a_settle_that_was_refused_is_not_tried_again() -> None:
    life = reach(Phase.STORED)
    life.tell(life.accepted())
    assert kinds(life.tell(TransactionRefused(Task.SETTLE, "R7"))) == ["submit deliver"]
    assert life.tell(AcceptanceArrived(accept(life.posted.receipt, change={"release": True}))) == []
    assert kinds(life.tell(Restarted())) == ["submit deliver", "AwaitAcceptance"]
    assert kinds(life.tell(moved(LeaseState.DELIVERED))) == ["AwaitAcceptance"]


def test_a_cancel_settles_on_no_more_than_is_at_stake() -> None:
    life = hand_in(DONE)
    life.tell(accept_prefix(life, 0), now=DUE)
    told = life.tell(moved(LeaseState.CANCELLING, served=DONE - 1, held=DONE - 1), now=DUE)
    assert "submit settle" not in kinds(told), "the chain would refuse it (R5)"


STOPS: dict[str, WorkEvent] = {"cancelled": moved(LeaseState.CANCELLING), "shut down": Stopping()}


@pytest.mark.parametrize("name", STOPS)
def test_what_is_being_settled_is_not_delivered_as_well_whatever_hurries(name: str) -> None:
    early = reach(Phase.POSTING)
    early.tell(early.accepted(), STOPS[name])
    assert early.tell(early.stored()) == [AwaitAcceptance()]
    late = reach(Phase.STORED)
    late.tell(late.accepted(), STOPS[name])
    assert not [one for one in late.find(Submit) if one.task is Task.DELIVER]
