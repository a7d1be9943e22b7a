"""The engine of one seat: told as steps, and run against a host that answers in any order Hypothesis likes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chain.base.errors import Refused
from chain.base.hashing import Tag, compute_digest
from chain.base.keys import Signer
from chain.consensus.engine import (
    BuildBlock,
    Built,
    CommitBlock,
    Committed,
    Engine,
    EngineEffect,
    EngineEvent,
    NothingBuilt,
    SignVote,
    Started,
    StoreBlock,
    VoteSigned,
    WorkSeen,
)
from chain.consensus.messages import SeatSignature, Step, Vote
from chain.consensus.seats import Seats
from chain.consensus.tally import verify_certificate

CHAIN = bytes(31) + b"\x07"
SIGNER = Signer(b"s" * 32)
SEATS = Seats(0, [SIGNER.key])
GENESIS = compute_digest(b"genesis")
NOW = 1_000_000


def name_block(slot: int) -> bytes:
    return compute_digest(b"block %d" % slot)


def sign(vote: Vote) -> VoteSigned:
    return VoteSigned(SIGNER.sign(Tag.VOTE, CHAIN, vote))


def start(pending: bool = False, timer: int | None = None, now: int = NOW) -> tuple[Engine, Sequence[EngineEffect]]:
    engine = Engine(SEATS, 0)
    return engine, engine.handle(Started(0, GENESIS, pending, timer), now)


def test_a_slot_goes_build_notarise_finalize_commit() -> None:
    engine, effects = start()
    assert effects == ()
    assert engine.handle(WorkSeen(), NOW) == (BuildBlock(1, GENESIS),)
    block = name_block(1)
    notarise, finalize = Vote(Step.NOTARISE, 0, 1, block), Vote(Step.FINALIZE, 0, 1, block)
    assert engine.handle(Built(1, block, b"data"), NOW) == (StoreBlock(block, b"data"), SignVote(notarise))
    assert engine.handle(sign(notarise), NOW) == (SignVote(finalize),)
    (commit,) = engine.handle(sign(finalize), NOW)
    assert isinstance(commit, CommitBlock)
    assert (commit.slot, commit.block) == (1, block)
    assert verify_certificate(commit.certificate, SEATS, CHAIN) == finalize
    assert commit.certificate.signatures == (SeatSignature(0, sign(finalize).vote.signature),)
    assert engine.handle(Committed(1, False, None), NOW) == ()
    assert engine.wake_at() is None


def run_slot(engine: Engine, slot: int, *, pending: bool = False, timer: int | None = None) -> Sequence[EngineEffect]:
    block = name_block(slot)
    engine.handle(Built(slot, block, b""), NOW)
    engine.handle(sign(Vote(Step.NOTARISE, 0, slot, block)), NOW)
    engine.handle(sign(Vote(Step.FINALIZE, 0, slot, block)), NOW)
    return engine.handle(Committed(slot, pending, timer), NOW)


def test_work_left_begins_the_next_slot_on_the_block_just_committed() -> None:
    engine, effects = start(pending=True)
    assert effects == (BuildBlock(1, GENESIS),)
    assert run_slot(engine, 1, pending=True) == (BuildBlock(2, name_block(1)),)
    assert run_slot(engine, 2) == ()


def test_work_that_comes_while_a_slot_runs_waits_for_the_host_to_name_it() -> None:
    engine, _ = start(pending=True)
    assert engine.handle(WorkSeen(), NOW) == ()
    assert run_slot(engine, 1, pending=True) == (BuildBlock(2, name_block(1)),)


def test_an_idle_chain_is_silent() -> None:
    """R16 (d): no beat, no empty block."""
    engine, _ = start()
    assert engine.wake_at() is None
    assert engine.wake(NOW + 10**9) == ()


@pytest.mark.parametrize(("ahead", "begins"), [(-1, False), (0, False), (1, True), (2, True)])
def test_a_ledger_timer_is_work_once_block_time_can_be_past_it(ahead: int, begins: bool) -> None:
    """R1: a timer is due if deadline < block time."""
    engine, _ = start(timer=NOW + 50)
    assert engine.wake_at() == NOW + 51
    assert bool(engine.wake(NOW + 50 + ahead)) is begins


def test_a_timer_long_past_begins_at_once() -> None:
    assert start(timer=NOW - 1)[1] == (BuildBlock(1, GENESIS),)


def test_before_it_is_started_nothing_happens() -> None:
    engine = Engine(SEATS, 0)
    assert engine.wake_at() is None
    assert engine.wake(NOW) == engine.handle(WorkSeen(), NOW) == ()


def test_nothing_built_goes_to_rest_until_there_is_work_again() -> None:
    engine, _ = start(pending=True)
    assert engine.handle(NothingBuilt(1, False, None, None), NOW) == ()
    assert engine.handle(WorkSeen(), NOW) == (BuildBlock(1, GENESIS),)


def test_the_clock_may_hold_a_block_back() -> None:
    """R1: block time at most 500 ms ahead of the seat's clock; work that comes meanwhile does not hurry it."""
    engine, _ = start(pending=True)
    assert engine.handle(NothingBuilt(1, True, None, NOW + 70), NOW) == ()
    assert engine.wake_at() == NOW + 70
    assert engine.handle(WorkSeen(), NOW + 69) == engine.wake(NOW + 69) == ()
    assert engine.wake(NOW + 70) == (BuildBlock(1, GENESIS),)
    assert engine.wake_at() is None


STALE: list[EngineEvent] = [
    Built(2, name_block(2), b""),
    Built(0, name_block(0), b""),
    NothingBuilt(2, True, None, None),
    sign(Vote(Step.NOTARISE, 0, 1, name_block(1))),
    sign(Vote(Step.FINALIZE, 0, 1, name_block(1))),
    Committed(1, True, None),
]


@pytest.mark.parametrize("event", STALE, ids=lambda event: type(event).__name__)
def test_an_answer_nobody_waits_for_changes_nothing(event: EngineEvent) -> None:
    engine, _ = start(pending=True)
    assert engine.handle(event, NOW) == ()
    assert engine.handle(Built(1, name_block(1), b""), NOW) != ()


@pytest.mark.parametrize(
    "vote",
    [
        Vote(Step.NOTARISE, 0, 1, name_block(9)),
        Vote(Step.NOTARISE, 0, 2, name_block(1)),
        Vote(Step.NOTARISE, 5, 1, name_block(1)),
    ],
)
def test_a_vote_for_something_else_counts_for_nothing(vote: Vote) -> None:
    engine, _ = start(pending=True)
    engine.handle(Built(1, name_block(1), b""), NOW)
    assert engine.handle(sign(vote), NOW) == ()


def test_more_seats_are_refused_by_name() -> None:
    seats = Seats(0, [Signer(bytes([n]) * 32).key for n in range(4)])
    with pytest.raises(Refused) as caught:
        Engine(seats, 0)
    assert caught.value.rule == "R16.seats-unsupported"


class Host:
    """Answers the engine's effects late and in its own time; checks what an honest seat never does."""

    def __init__(self) -> None:
        self.answers: list[EngineEvent] = []
        self.votes: dict[tuple[int, Step], bytes] = {}
        self.stored: set[bytes] = set()
        self.final: list[tuple[int, bytes]] = [(0, GENESIS)]

    def perform(self, effects: Sequence[EngineEffect], choice: Any) -> None:
        for effect in effects:
            match effect:
                case BuildBlock(slot, parent):
                    assert (slot, parent) == (self.final[-1][0] + 1, self.final[-1][1])
                    self.answers.append(choice(slot))
                case StoreBlock(block):
                    self.stored.add(block)
                case SignVote(vote):
                    assert vote.block in self.stored
                    assert self.votes.setdefault((vote.slot, vote.step), vote.block) == vote.block
                    self.answers.append(sign(vote))
                case CommitBlock(slot, block, certificate):
                    vote = verify_certificate(certificate, SEATS, CHAIN)
                    assert (vote.step, vote.slot, vote.block) == (Step.FINALIZE, slot, block)
                    self.final.append((slot, block))
                    self.answers.append(Committed(slot, False, None))


@given(st.data())
def test_slots_follow_each_other_and_no_slot_is_signed_twice(data: st.DataObject) -> None:
    engine, host, now = Engine(SEATS, 0), Host(), NOW

    def choose(slot: int) -> EngineEvent:
        if data.draw(st.booleans()):
            return Built(slot, compute_digest(b"%d of %d" % (slot, data.draw(st.integers(0, 3)))), b"")
        retry_at = data.draw(st.none() | st.integers(now, now + 20))
        return NothingBuilt(slot, data.draw(st.booleans()) and retry_at is not None, None, retry_at)

    host.perform(engine.handle(Started(0, GENESIS, False, None), now), choose)
    for _ in range(data.draw(st.integers(0, 40))):
        now += data.draw(st.integers(0, 10))
        wake_at = engine.wake_at()
        if wake_at is not None and wake_at <= now:
            host.perform(engine.wake(now), choose)
        answer_now: bool = data.draw(st.booleans())
        if host.answers and answer_now:
            host.perform(engine.handle(host.answers.pop(0), now), choose)
        else:
            host.perform(engine.handle(WorkSeen(), now), choose)
    assert [slot for slot, _ in host.final] == list(range(len(host.final)))
