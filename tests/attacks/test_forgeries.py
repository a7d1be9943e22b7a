"""Whoever holds a genuine case but no key changes it in every way that helps, and mends every hash, root and id after
it. Each forgery is refused by the number of the check that it cannot mend, with no network and an empty home.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest

from requester.purchase.casefile import CaseReader
from requester.purchase.caseverify import verify_case
from tests.attacks.case_forged_ends import ENDS
from tests.attacks.case_forged_papers import AWARDS, WORK
from tests.attacks.case_hand import Forge, Hand
from tests.attacks.case_world import Play, play_failure, play_map, play_run, play_train

PLAYS: dict[str, Callable[[], Play]] = {
    "run": cache(play_run),
    "map": cache(play_map),
    "train": cache(play_train),
    "failure": cache(play_failure),
}


@cache
def play_other(name: str) -> Play:
    """Another genuine job of the same parties on the same chain, later."""
    return play_run(PLAYS[name]().chain, b"another order...")


def take_up(name: str) -> Hand:
    return Hand(PLAYS[name](), play_other(name))


ROWS = [*AWARDS, *WORK, *ENDS]


def list_failed(hand: Hand) -> list[int]:
    """Numbers of the checks that fail, in their order; 0 where none does but the case is not verified."""
    reader = CaseReader()
    reader.feed(hand.write())
    report = verify_case(reader.close(), hand.genesis)
    failed = [one.number for one in report.verdicts if not one.passed and not one.skipped]
    assert report.passed == (not failed)
    assert report.passed or not report.leases, "nothing is said of a case that is not verified"
    return failed


@pytest.mark.parametrize("name", PLAYS)
@pytest.mark.parametrize("outputs", [False, True])
def test_the_genuine_case_is_verified(name: str, outputs: bool) -> None:
    hand = take_up(name)
    hand.outputs = outputs
    assert list_failed(hand) == []


@pytest.mark.parametrize(("name", "kind", "forge", "number"), ROWS, ids=[row[0] for row in ROWS])
def test_a_forgery_is_refused_by_the_number_of_its_check(name: str, kind: str, forge: Forge, number: int) -> None:
    hand = take_up(kind)
    forge(hand)
    assert list_failed(hand)[:1] == [number], name
