"""Whoever holds a genuine case but no key changes it in every way that helps, and mends every hash, root and id after
it. Each forgery is refused by the number of the check that it cannot mend, with no network and an empty home.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NoReturn

import pytest

from broker.protocol.provenance import WorkFacts
from chain.ledger.genesis import write_genesis
from chain.ledger.terms.agreement import Kind
from chain.ledger.terms.work import Span
from requester.cli.app import run
from tests.attacks.case_chain import ALICE, EMPTY, change
from tests.attacks.case_forged_ends import ENDS
from tests.attacks.case_forged_papers import AWARDS, WORK
from tests.attacks.case_hand import Forge, Hand
from tests.attacks.case_world import Play, play_cheap_broker, play_failure, play_map, play_run, play_train, play_watched

PLAYS: dict[str, Callable[[], Play]] = {
    "run": cache(play_run),
    "map": cache(play_map),
    "train": cache(play_train),
    "failure": cache(play_failure),
    "watched": cache(play_watched),
    "cheap broker": cache(play_cheap_broker),
}


@cache
def play_other(name: str) -> Play:
    """Another genuine job of the same parties on the same chain, later."""
    return play_run(PLAYS[name]().chain, b"another order...")


def take_up(name: str) -> Hand:
    return Hand(PLAYS[name](), play_other(name))


ROWS = [*AWARDS, *WORK, *ENDS]


@pytest.fixture(autouse=True)
def nothing_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty home, nothing in the environment, no network."""
    for name in ("TALLY_BROKER", "TALLY_CHAIN", "TALLY_KEY", "TALLY_GENESIS", "TALLY_PASSPHRASE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TALLY_HOME", str(tmp_path / "home"))

    def refuse(*_: object, **__: object) -> NoReturn:
        raise AssertionError("somebody asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


Verify = Callable[[Hand], list[int]]


@pytest.fixture
def verify(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Verify:
    """Runs `tally verify` on what a hand makes; gives the numbers of the checks that fail, in their order."""

    def list_failed(hand: Hand) -> list[int]:
        path, genesis = tmp_path / "forged.case", tmp_path / "genesis.json"
        path.write_bytes(hand.write())
        genesis.write_text(write_genesis(hand.genesis))
        code = run(["verify", str(path), "--genesis", str(genesis), "--json"])
        found = json.loads(capsys.readouterr().out)
        failed = [one["number"] for one in found["checks"] if not one["passed"] and not one["skipped"]]
        assert (code, found["verified"]) == ((1, False) if failed else (0, True))
        assert found["verified"] or not found["leases"], "nothing is said of a case that is not verified"
        assert not (tmp_path / "home").exists()
        return failed

    return list_failed


@pytest.mark.parametrize("name", PLAYS)
@pytest.mark.parametrize("outputs", [False, True])
def test_the_genuine_case_is_verified(name: str, outputs: bool, verify: Verify) -> None:
    hand = take_up(name)
    hand.outputs = outputs
    assert verify(hand) == []


@pytest.mark.parametrize(("name", "kind", "forge", "number"), ROWS, ids=[row[0] for row in ROWS])
def test_a_forgery_is_refused_by_the_number_of_its_check(
    name: str, kind: str, forge: Forge, number: int, verify: Verify
) -> None:
    hand = take_up(kind)
    forge(hand)
    assert verify(hand)[:1] == [number], name


def test_no_two_forgeries_have_one_name() -> None:
    assert len({row[0] for row in ROWS}) == len(ROWS) >= 30


LIES: list[tuple[str, Callable[[WorkFacts], WorkFacts]]] = [
    ("other subjects", lambda f: replace(f, records=tuple(change(one, output=EMPTY) for one in f.records))),
    ("another order", lambda f: replace(f, order_id=EMPTY)),
    ("another lease", lambda f: replace(f, lease=EMPTY)),
    ("a stronger level", lambda f: replace(f, environment=change(f.environment, level="vm"))),
    ("another end", lambda f: replace(f, finished=f.finished + 1)),
]


@pytest.mark.parametrize(("name", "lie"), LIES, ids=[row[0] for row in LIES])
def test_what_a_provider_signs_in_a_provenance_has_to_be_true(
    name: str, lie: Callable[[WorkFacts], WorkFacts], verify: Verify
) -> None:
    """The provider has its key: receipt, acceptance and settle agree on an envelope that says something else."""
    play = Play(Kind.RUN, 1, lie=lie)
    (lease,) = play.hold_round((Span(0, 1),), [(ALICE, 1_000_000)])
    play.finish(lease)
    assert verify(Hand(play, play)) == [49], name


def test_work_that_the_chain_never_judged_is_no_part_of_a_case(verify: Verify) -> None:
    """The provider has its key and a storage receipt, but handed in too late: its failure would be told as proved."""
    play = Play(Kind.RUN, 1)
    (lease,) = play.hold_round((Span(0, 1),), [(ALICE, 1_000_000)])
    play.work(lease, failing=0)
    play.write_receipt(lease, final=True)
    play.note(lease, play.chain.wait(play.order.body.deadline - play.chain.now + 1_000))
    assert verify(Hand(play, play)) == [53]
    lease.receipt, lease.storage, lease.records = None, None, []
    assert verify(Hand(play, play)) == []
