"""Broker and provider that lie consistently, with their own keys: the machine neither breaks nor accepts, and what is
only the broker's doing is not held against the provider.

Lies are the rows of `spoilers`, one or two at a time, heard in any order, and forgeries beside the genuine thing.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.protocol.api import Announced, Failed, Left
from chain.base.hashing import Tag, compute_digest
from chain.base.merkle import EMPTY_ROOT
from chain.ledger.terms.agreement import compute_lease_id
from chain.ledger.terms.outcome import Cause
from chain.ledger.terms.work import Span
from requester.purchase import events as e
from requester.purchase import machine, rounds
from requester.purchase.machine import MAX_NOISE
from requester.purchase.phases import Phase
from tests.requester.shell import Shell, end, kinds, look, make_found, replay, see, up_to_delivery
from tests.requester.spoilers import AWARD_ROWS, BLOB_ROWS, BOOK_ROWS, DELIVERY_ROWS, SHARE_ROWS, Spoil
from tests.requester.world import BROKER, CHAIN, NOW, RIVAL, World, change

# ---- what its signer answers for is never accepted ----


def wrong_price(world: World) -> None:
    world.award = BROKER.sign(Tag.AWARD, CHAIN, change(world.award_body, price=1_000_001))


def wrong_book(world: World) -> None:
    world.book = BROKER.sign(Tag.BOOK, CHAIN, change(world.book_body, last=bytes([1] * 32)))


def wrong_usage(world: World) -> None:
    world.receipt_body = change(world.receipt_body, usage=change(world.usage, cpu_ms=1))


def error_of_success(world: World) -> None:
    world.record_bodies = (change(world.record_bodies[0], error=compute_digest(world.log)),)


def finish_far_ahead(world: World) -> None:
    """No holder's promise reaches so far: it is not its teller who bent that."""
    world.receipt_body = change(world.receipt_body, finished=NOW + 10**13)


FAULTS = [
    (wrong_price, "check.7"),
    (wrong_book, "check.17"),
    (wrong_usage, "check.30"),
    (error_of_success, "check.36"),
    (finish_far_ahead, "check.38"),
]


@pytest.mark.parametrize(("spoil", "rule"), FAULTS)
def test_what_fails_a_check_is_never_accepted(spoil: Any, rule: str) -> None:
    world = World()
    spoil(world)
    shell = up_to_delivery(world)
    shell.tell(make_found(world), e.Restarted(), see(world), world.delivered, World().delivered)
    assert (shell.machine.phase, shell.machine.rule) == (Phase.REFUSED, rule)
    assert shell.get(e.PostAcceptance) == []
    assert [effect.rule for effect in shell.get(e.TellPhase)][-1] == rule
    shell.tell(see(world, "settled", 9))
    assert (shell.machine.phase, shell.machine.rule) == (Phase.REFUSED, rule)


def test_a_refused_delivery_stays_refused_however_the_lease_ends() -> None:
    world = World()
    wrong_usage(world)
    shell = up_to_delivery(world)
    shell.tell(see(world, "expired", 9))
    assert (shell.machine.phase, shell.machine.rule) == (Phase.REFUSED, "check.30")


# ---- what its teller may have bent is ignored, and the genuine one still counts ----


def forge_award(world: World) -> Any:
    return change(world.awarded, award=RIVAL.sign(Tag.AWARD, CHAIN, world.award_body))


def forge_bid(world: World) -> Any:
    return change(world.awarded, bid=world.bids[0])


def forge_lease(world: World) -> Any:
    return change(world.awarded, lease=bytes(32))


def forge_book(world: World) -> Any:
    return change(world.closed, book=RIVAL.sign(Tag.BOOK, CHAIN, world.book_body))


def forge_other_book(world: World) -> Any:
    return change(world.closed, book=BROKER.sign(Tag.BOOK, CHAIN, change(world.book_body, order=bytes(32))))


def forge_receipt(world: World) -> Any:
    receipt = RIVAL.sign(Tag.RECEIPT, CHAIN, world.receipt_body)
    return change(world.delivered, delivery=change(world.delivery, receipt=receipt))


def forge_record(world: World) -> Any:
    records = (change(world.records[0], output=compute_digest(world.log)),)
    return change(world.delivered, delivery=change(world.delivery, records=records))


def forge_nothing(world: World) -> Any:
    return change(world.delivered, delivery=change(world.delivery, records=()))


def forge_storage(world: World) -> Any:
    return change(world.delivered, storage=RIVAL.sign(Tag.STORAGE, CHAIN, world.storage_body))


def forge_time(world: World) -> Any:
    body = change(world.storage_body, kept_until=NOW)
    return change(world.delivered, storage=BROKER.sign(Tag.STORAGE, CHAIN, body))


FORGERIES = [
    (forge_award, "check.2"),
    (forge_bid, "check.6"),
    (forge_lease, "check.12"),
    (forge_book, "check.13"),
    (forge_other_book, "check.14"),
    (forge_receipt, "check.20"),
    (forge_record, "check.26"),
    (forge_nothing, "check.23"),
    (forge_storage, "check.32"),
    (forge_time, "check.34"),
]


@pytest.mark.parametrize(("forge", "rule"), FORGERIES)
@pytest.mark.parametrize("before", [True, False], ids=["first", "last"])
def test_a_forgery_by_the_broker_is_ignored_and_the_genuine_one_counts(forge: Any, rule: str, *, before: bool) -> None:
    shell = Shell()
    w, lie = shell.world, forge(shell.world)
    shell.tell(e.Restarted(), e.Submitted())
    for genuine in (w.closed, w.awarded, w.opened, w.delivered):
        told = (lie, genuine) if before else (genuine, lie)
        shell.tell(*(told if type(genuine) is type(lie) else (genuine,)))
    troubles = [effect.rule for effect in shell.get(e.TellTrouble)]
    assert shell.machine.noise > 0, "what it tells in vain is counted"
    assert troubles == ([rule] if before or rule in ("check.2", "check.6", "check.12") else [])
    shell.tell(make_found(w))
    assert shell.machine.phase is Phase.ACCEPTED
    assert shell.machine.documents.leases[0].receipt == w.receipt


def test_a_broker_that_repeats_itself_without_end_is_heard_no_more() -> None:
    shell = up_to_delivery()
    w = shell.world
    for _ in range(MAX_NOISE // 2 + 1):
        shell.machine.handle(e.Heard(w.delivered, 1), NOW)
    assert shell.machine.deaf
    asked = shell.machine.handle(e.Restarted(), NOW)
    assert e.Listen not in kinds(asked)
    assert e.WatchChain in kinds(asked)
    assert shell.machine.handle(e.Heard(end(), 2), NOW) == []
    shell.feed(make_found(w), see(w, "settled", 9))
    assert shell.machine.phase is Phase.SETTLED


# ---- one or two lies at a time, in any order ----

LONGER = ("second", "runner-up", "step", "midst", "out", "gap", "host", "span", "part", "round", "trace", "error text")
"""Words in the names of rows that need a longer job, or change what the requester itself signed."""

LIES: list[Spoil] = [
    spoil
    for rows in (AWARD_ROWS, BOOK_ROWS, SHARE_ROWS, DELIVERY_ROWS, BLOB_ROWS)
    for name, number, spoil in rows
    if number > 1 and not any(word in name for word in LONGER)
]


def empty_the_book(world: World) -> None:
    world.book_body = change(world.book_body, bids=(), last=bytes(32), root=EMPTY_ROOT)
    world.award = BROKER.sign(Tag.AWARD, CHAIN, change(world.award_body, book=EMPTY_ROOT))


def tell_all(world: World, order: list[int]) -> Shell:
    shell = Shell(world)
    items: list[Any] = [world.closed, world.awarded, world.opened, world.delivered, make_found(world), see(world)]
    shell.tell(e.Restarted(), e.Submitted())
    for index in order:
        shell.tell(items[index])
    for item in items:
        shell.tell(item)
    return shell


@given(
    lies=st.lists(st.sampled_from([*LIES, empty_the_book]), min_size=1, max_size=2),
    order=st.permutations(range(6)),
)
def test_lies_are_refused_and_break_nothing(lies: list[Spoil], order: list[int]) -> None:
    world = World(causes=(Cause.OK,))
    _ = world.order
    for lie in lies:
        try:
            lie(world)
        except (IndexError, KeyError, StopIteration):
            return  # two lies that do not fit together: the second wants what the first took away
    shell = tell_all(world, order)
    if shell.machine.phase is Phase.REFUSED:
        assert shell.machine.rule.startswith("check.")
    assert not shell.get(e.PostAcceptance) or is_honest(world)
    assert look(replay(shell)) == look(shell.machine)


@given(order=st.permutations(range(6)))
def test_the_truth_is_accepted_in_whatever_order_it_is_heard(order: list[int]) -> None:
    shell = tell_all(World(), order)
    assert len(shell.get(e.PostAcceptance)) == 1
    assert shell.machine.phase is Phase.ACCEPTED


def is_honest(world: World) -> bool:
    """Whether the lies cancelled out, or touched nothing that a job without failure has."""
    truth = World()
    pairs = (
        (world.award, truth.award),
        (world.book, truth.book),
        (world.bid, truth.bid),
        (world.receipt, truth.receipt),
        (world.records, truth.records),
        (world.storage, truth.storage),
    )
    return all(told == true for told, true in pairs)


# ---- bounds ----


def later_close(world: World, number: int) -> Any:
    return Announced(NOW, 1, (Span(0, 1),), 1, NOW + 10_000 + number)


def other_count(world: World, number: int) -> Any:
    return Left(NOW, world.lease, "returned", number % 2)


def other_rule(world: World, number: int) -> Any:
    return Failed(NOW, world.lease, f"R{number % 2}")


@pytest.mark.parametrize("say", [later_close, other_count, other_rule])
def test_a_broker_that_changes_its_mind_for_ever_is_not_listened_to(say: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of its words is news, and each is kept in the journal: it must not be filled by them."""
    monkeypatch.setattr(machine, "MAX_NOISE", 50)
    world = World()
    shell = Shell(world)
    shell.tell(e.Restarted(), e.Submitted(), later_close(world, -1), world.closed, world.awarded)
    for number in range(40):
        shell.tell(say(world, number))
    assert not shell.machine.deaf
    for number in range(40, 60):
        shell.tell(say(world, number))
    assert shell.get(e.StopListening)


def test_rounds_leases_and_early_deliveries_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is beyond the bounds is noise, and changes nothing."""
    for name in ("MAX_BOOKS", "MAX_LOTS", "MAX_EARLY"):
        monkeypatch.setattr(rounds, name, 1)
    first = World()
    second = first.also(round=1, first=0, causes=(Cause.OK,))
    second.bids = (second.bids[0],)
    shell = Shell(first, second)
    shell.tell(e.Restarted(), e.Submitted(), first.delivered)
    noise = [shell.machine.noise]
    for item in (second.delivered, first.closed, second.closed, first.awarded, second.awarded):
        shell.tell(item)
        noise.append(shell.machine.noise)
    assert noise == [0, 2, 2, 3, 3, 4]
    shell.tell(see(second))
    assert [lot.lease for lot in shell.machine.lots] == [first.lease]
    shell.tell(make_found(first))
    assert shell.machine.phase is Phase.ACCEPTED


def test_what_waits_in_all_leases_together_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Awards that have to wait, each with deliveries that nobody checks: beyond the bound they are noise."""
    monkeypatch.setattr(rounds, "MAX_WAITING", 12)
    first = World()
    shell = Shell(first)
    shell.tell(e.Restarted(), e.Submitted(), first.closed, first.awarded)
    for number in range(1, 9):
        award = change(first.award_body, valid_until=first.award_body.valid_until + number)
        lease = compute_lease_id(CHAIN, award)
        lie = change(first.receipt, body=change(first.receipt_body, lease=lease))
        delivered = change(first.delivered, delivery=change(first.delivery, receipt=lie))
        awarded = change(first.awarded, award=BROKER.sign(Tag.AWARD, CHAIN, award), lease=lease)
        shell.tell(*((delivered, awarded) if number % 2 else (awarded, delivered)))
    assert sum(lot.held for lot in shell.machine.lots) == 12
    assert shell.machine.noise == 2 * 2
    shell.tell(first.delivered)
    assert shell.get(e.FetchBlobs), "what need not wait is not held up by what waits"
