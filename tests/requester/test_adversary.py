"""Broker and provider that lie consistently, with their own keys: the machine neither breaks nor accepts.

Lies are the rows of `test_checks`, one or two at a time, heard in any order.
"""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from chain.base.hashing import Tag
from chain.base.merkle import EMPTY_ROOT
from chain.ledger.terms.outcome import Cause
from requester.purchase import events as e
from requester.purchase.phases import Phase
from tests.requester.test_checks import AWARD_ROWS, BLOB_ROWS, BOOK_ROWS, DELIVERY_ROWS, Spoil
from tests.requester.test_machine import Shell, look, replay
from tests.requester.world import BROKER, CHAIN, World, change

LIES: list[Spoil] = [
    spoil
    for rows in (AWARD_ROWS, BOOK_ROWS, DELIVERY_ROWS, BLOB_ROWS)
    for name, number, spoil in rows
    if number > 1 and "second" not in name and "runner-up" not in name and "step" not in name
]
"""All but those that change what the requester itself signed, and those of longer jobs."""


def empty_the_book(world: World) -> None:
    world.book_body = change(world.book_body, bids=(), last=bytes(32), root=EMPTY_ROOT)
    world.award = BROKER.sign(Tag.AWARD, CHAIN, change(world.award_body, book=EMPTY_ROOT))


def deliver_no_records(world: World) -> None:
    world.records = ()


def tell_all(world: World, order: list[int]) -> Shell:
    shell = Shell(world)
    items: list[Any] = [world.closed, world.awarded, world.opened, world.delivered, shell.found, shell.lease()]
    shell.tell(e.Restarted(), e.Submitted())
    for index in order:
        shell.tell(items[index])
    for item in items:
        shell.tell(item)
    return shell


@given(
    lies=st.lists(st.sampled_from([*LIES, empty_the_book, deliver_no_records]), min_size=1, max_size=2),
    order=st.permutations(range(6)),
)
def test_lies_are_refused_and_break_nothing(lies: list[Spoil], order: list[int]) -> None:
    world = World(causes=(Cause.OK,))
    _ = world.order
    for lie in lies:
        try:
            lie(world)
        except IndexError:
            return  # two lies that do not fit together: the second wants what the first took away
    shell = tell_all(world, order)
    accepted = [effect for effect in shell.asked if isinstance(effect, e.PostAcceptance)]
    if shell.machine.phase is Phase.REFUSED:
        assert shell.machine.rule.startswith("check.")
    assert not accepted or is_honest(world)
    assert look(replay(shell)) == look(shell.machine)


@given(order=st.permutations(range(6)))
def test_the_truth_is_accepted_in_whatever_order_it_is_heard(order: list[int]) -> None:
    shell = tell_all(World(), order)
    accepted = [effect for effect in shell.asked if isinstance(effect, e.PostAcceptance)]
    assert len(accepted) == 1
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
