"""The engine: when to propose, what to vote, when a block is final (R16), as one machine over block ids and bytes.

Scope: a chain of one seat, which leads every slot and is its own quorum. A slot still takes the whole way of
Simplex: build, vote notarise, on the
notarisation vote finalize, on the finalization commit; so more seats add messages and the 3-Delta timer, not another
order of things. A slot begins only when
there is work (R16 d): a pending transaction or a due timer of the ledger; an idle chain is silent.

The host does all else: builds and executes blocks, guards and makes signatures, writes before anything leaves. Not
here: what a block holds, dummy votes, evidence.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import ClassVar, assert_never

from chain.base.codec import Record
from chain.base.hashing import Digest
from chain.base.units import Height, Instant
from chain.consensus.messages import Certificate, SignedVote, Step, Vote
from chain.consensus.seats import Seats, check_supported
from chain.consensus.tally import Tally

__all__ = [
    "BuildBlock",
    "Built",
    "CommitBlock",
    "Committed",
    "Engine",
    "EngineEffect",
    "EngineEvent",
    "NothingBuilt",
    "SignVote",
    "Started",
    "StoreBlock",
    "VoteSigned",
    "WorkSeen",
]


class Started(Record, frozen=True, tag="started"):
    """The host stands at a final block (genesis: slot 0) with this work before it. First event of every run."""

    durable: ClassVar[bool] = False
    slot: Height
    block: Digest
    pending: bool
    timer: Instant | None


class WorkSeen(Record, frozen=True, tag="work"):
    """Transactions came in."""

    durable: ClassVar[bool] = False


class Built(Record, frozen=True, tag="built"):
    """Answer to `BuildBlock`: a valid block, executed by the host."""

    durable: ClassVar[bool] = False
    slot: Height
    block: Digest
    data: bytes


class NothingBuilt(Record, frozen=True, tag="nothing"):
    """Answer to `BuildBlock`: none of the work makes a block; `retry_at` where only the clock forbids it (R1)."""

    durable: ClassVar[bool] = False
    slot: Height
    pending: bool
    timer: Instant | None
    retry_at: Instant | None


class VoteSigned(Record, frozen=True, tag="signed-vote"):
    """Answer to `SignVote`: the guard agreed."""

    durable: ClassVar[bool] = False
    vote: SignedVote


class Committed(Record, frozen=True, tag="committed"):
    """Answer to `CommitBlock`: it is on disk. With the work that is left."""

    durable: ClassVar[bool] = False
    slot: Height
    pending: bool
    timer: Instant | None


EngineEvent = Started | WorkSeen | Built | NothingBuilt | VoteSigned | Committed
"""The closed union of events. None is kept in a journal: the chain's store is the engine's memory, and `Started`
brings it back.
"""


class BuildBlock(Record, frozen=True, tag="build"):
    """Build a block for `slot` on `parent`, execute it, answer `Built` or `NothingBuilt`."""

    slot: Height
    parent: Digest


class StoreBlock(Record, frozen=True, tag="store"):
    """Keep a block, so that it is on disk before any vote for it leaves."""

    block: Digest
    data: bytes


class SignVote(Record, frozen=True, tag="sign"):
    """Check the vote against the guard, record it, sign it, in one transaction; answer `VoteSigned`. A refusal of
    the guard stops the seat.
    """

    vote: Vote


class CommitBlock(Record, frozen=True, tag="commit"):
    """The block is final: commit it to the ledger, write everything, then tell those who wait; answer `Committed`."""

    slot: Height
    block: Digest
    certificate: Certificate


EngineEffect = BuildBlock | StoreBlock | SignVote | CommitBlock
"""The closed union of effects."""


class Phase(Enum):
    """What the engine waits for within a slot."""

    IDLE = "idle"
    BUILDING = "building"
    VOTING = "voting"
    COMMITTING = "committing"


class Engine:
    """The seat at place `seat` of `seats`. Raises `Refused` under `R16.seats-unsupported` for more seats than this
    release runs.
    """

    def __init__(self, seats: Seats, seat: int) -> None:
        self._seats = check_supported(seats)
        self._seat = seat
        self._tally = Tally(seats)
        self._phase = Phase.IDLE
        self._final: tuple[int, bytes] | None = None
        self._proposed = b""
        self._pending = False
        self._timer: int | None = None
        self._retry_at: int | None = None

    def handle(self, event: EngineEvent, now: int) -> Sequence[EngineEffect]:
        """Take one event; see the effects for what the host must do."""
        match event:
            case Started():
                self._final = (event.slot, event.block)
                return self._rest(event.pending, event.timer, None, now)
            case WorkSeen():
                self._pending = True
                return self._begin(now)
            case Built():
                return self._process_built(event)
            case NothingBuilt():
                if self._is_current(event.slot, Phase.BUILDING):
                    return self._rest(event.pending, event.timer, event.retry_at, now)
                return ()
            case VoteSigned():
                return self._process_vote(event.vote)
            case Committed():
                return self._process_committed(event, now)
            case _:
                assert_never(event)

    def wake_at(self) -> int | None:
        """When idle: just behind the ledger's next timer, or when the clock allows the next block. None while a slot
        runs: the host answers.
        """
        if self._final is None or self._phase is not Phase.IDLE:
            return None
        if self._retry_at is not None:
            return self._retry_at
        return None if self._timer is None else self._timer + 1

    def wake(self, now: int) -> Sequence[EngineEffect]:
        """Begin a slot if its reason has come."""
        return self._begin(now)

    def _begin(self, now: int) -> Sequence[EngineEffect]:
        """R16 (d): only with work. R1: a timer is due when block time is past it, and that is a reason to propose."""
        if self._final is None or self._phase is not Phase.IDLE:
            return ()
        if self._retry_at is not None and now < self._retry_at:
            return ()
        if not self._pending and (self._timer is None or now <= self._timer):
            return ()
        self._phase, self._retry_at = Phase.BUILDING, None
        slot, block = self._final
        return (BuildBlock(slot + 1, block),)

    def _process_built(self, event: Built) -> Sequence[EngineEffect]:
        """R16 (b): vote for the first valid proposal of the slot; here it is our own and we hold it."""
        if not self._is_current(event.slot, Phase.BUILDING):
            return ()
        self._phase, self._proposed = Phase.VOTING, event.block
        return (
            StoreBlock(event.block, event.data),
            SignVote(Vote(Step.NOTARISE, self._seats.epoch, event.slot, event.block)),
        )

    def _process_vote(self, signed: SignedVote) -> Sequence[EngineEffect]:
        """R16 (b), (c): on the notarisation sign finalize; with a quorum of finalize the block is final."""
        vote = signed.body
        if not self._is_current(vote.slot, Phase.VOTING) or vote.block != self._proposed:
            return ()
        certificate = self._tally.add(self._seat, signed)
        if certificate is None:
            return ()
        if vote.step is Step.NOTARISE:
            return (SignVote(Vote(Step.FINALIZE, vote.epoch, vote.slot, vote.block)),)
        self._phase = Phase.COMMITTING
        return (CommitBlock(vote.slot, vote.block, certificate),)

    def _process_committed(self, event: Committed, now: int) -> Sequence[EngineEffect]:
        if not self._is_current(event.slot, Phase.COMMITTING):
            return ()
        self._final = (event.slot, self._proposed)
        self._tally.forget(event.slot)
        return self._rest(event.pending, event.timer, None, now)

    def _rest(self, pending: bool, timer: int | None, retry_at: int | None, now: int) -> Sequence[EngineEffect]:
        self._phase = Phase.IDLE
        self._pending, self._timer, self._retry_at = pending, timer, retry_at
        return self._begin(now)

    def _is_current(self, slot: int, phase: Phase) -> bool:
        return self._final is not None and slot == self._final[0] + 1 and self._phase is phase
