"""Cases changed anywhere at random, also where only those could who hold the keys: refused, never anything else."""

from __future__ import annotations

import random
from collections.abc import Iterator
from enum import Enum
from typing import Any

import msgspec
import pytest

from chain.base.errors import Refused
from requester.purchase import checks, deliveries, endings, verify
from requester.purchase.casefile import CaseReader
from requester.purchase.caseverify import CaseReport, verify_case
from tests.attacks.case_hand import Hand
from tests.attacks.case_world import play_failure, play_map, play_run, play_train

PLAYS = [play_run(), play_map(), play_train(), play_failure()]
Path = tuple[str | int, ...]


def walk(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every value within, and where it lies."""
    yield path, value
    if isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            yield from walk(getattr(value, name), (*path, name))
    elif isinstance(value, tuple):
        for place, item in enumerate(value):
            yield from walk(item, (*path, place))


def put(value: Any, path: Path, new: Any) -> Any:
    if not path:
        return new
    step, rest = path[0], path[1:]
    if isinstance(step, int):
        return (*value[:step], put(value[step], rest, new), *value[step + 1 :])
    return msgspec.structs.replace(value, **{step: put(getattr(value, step), rest, new)})


def spoil(value: Any, drawn: random.Random) -> Any:
    """Another value of the same type, near or at the edges."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, Enum):
        return drawn.choice(list(type(value)))
    if isinstance(value, int):
        return drawn.choice([0, 1, value + 1, max(0, value - 1), 2 * value, 2**20, 2**32 - 1, 2**63 - 1])
    if isinstance(value, bytes):
        flipped = bytes([value[0] ^ 1]) + value[1:] if value else value
        return drawn.choice([bytes(len(value)), flipped, drawn.randbytes(len(value))])
    if isinstance(value, str):
        return drawn.choice(["", "x", value + "x"])
    if isinstance(value, tuple) and value:
        place = drawn.randrange(len(value))
        return drawn.choice([(*value[:place], *value[place + 1 :]), (*value, value[place]), value[::-1], ()])
    return None if isinstance(value, msgspec.Struct) else value


def change_at_random(hand: Hand, drawn: random.Random) -> None:
    """One or two values of papers and records, whatever they are."""
    for _ in range(drawn.choice([1, 1, 1, 2])):
        if drawn.random() < 0.15:
            lease = drawn.choice(list(hand.records))
            path, value = drawn.choice(list(walk(hand.records[lease])))
            hand.records[lease] = put(hand.records[lease], path, spoil(value, drawn))
        else:
            path, value = drawn.choice(list(walk(hand.documents))[1:])
            hand.documents = put(hand.documents, path, spoil(value, drawn))


def judge(hand: Hand) -> CaseReport | None:
    """What comes of it; None where it is refused as a whole, or can't even be written."""
    try:
        data = hand.write()
    except (Refused, AttributeError, TypeError):
        return None
    reader = CaseReader()
    try:
        reader.feed(data)
        return verify_case(reader.close(), hand.genesis)
    except Refused:
        return None


def try_many(count: int, drawn: random.Random) -> Iterator[tuple[Hand, CaseReport | None]]:
    for _ in range(count):
        play = drawn.choice(PLAYS)
        hand = Hand(play, play)
        change_at_random(hand, drawn)
        yield hand, judge(hand)


def check_random_forgeries(count: int, seed: int) -> None:
    """Where a change passes it changed nothing of what is claimed: some figures stand under no claim, such as the size
    of a transaction's tree, which its path does not bind, and the order in which the leases stand.
    """
    genuine = {id(play): judge(Hand(play, play)) for play in PLAYS}
    refused = 0
    for hand, report in try_many(count, random.Random(seed)):
        known = genuine[id(hand.play)]
        assert known is not None
        if report is None or not report.passed:
            refused += 1
            assert report is None or not report.leases
        else:
            assert set(report.leases) == set(known.leases)
            assert report.unserved == known.unserved
            assert hand.documents.order == hand.play.documents.order
            assert hand.records == hand.play.records
    assert refused > count * 0.9


def check_random_lies(count: int, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every signature taken as good: what those could send who hold all the keys meets checks, never a crash."""
    for module in (checks, deliveries, endings, verify):
        monkeypatch.setattr(module, "is_signed_by", lambda *_: True)
    for _, report in try_many(count, random.Random(seed)):
        assert report is None or report.passed in (True, False)


def test_random_forgeries_are_refused(seed: int) -> None:
    check_random_forgeries(300, seed)


def test_random_lies_are_met_by_checks(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    check_random_lies(300, seed, monkeypatch)


@pytest.mark.check
def test_many_random_forgeries_are_refused(seed: int) -> None:
    check_random_forgeries(3_000, seed)


@pytest.mark.check
def test_many_random_lies_are_met_by_checks(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    check_random_lies(3_000, seed, monkeypatch)
