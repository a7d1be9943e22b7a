"""The work machine: one lease from its opening on the chain to its end.

    new -> fetching -> queued -> running -> posting -> stored -> delivered -> ended
                 \\________\\________\\________\\______\\-> leaving -/

It runs only what the chain has opened (R3), signs one record per segment and one receipt (R5, `papers`), settles on
an acceptance (R7, in every live state), delivers when none came within the patience (R8, silence accepts), and gives
the lease back when it cannot be served (R4): before the start window ends that costs one part in a hundred, before
the deadline it saves the rest of the bond's share. What the chain says about the lease always wins. Not here: how
anything is fetched, run, stored or sent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import assert_never

import msgspec

from chain.base.errors import Fault
from chain.base.hashing import Tag, compute_signed_bytes
from chain.base.keys import Signed, Signer, is_signature
from chain.ledger.terms.outcome import Cause
from chain.ledger.terms.work import Acceptance, StorageReceipt
from chain.ledger.transactions import Deliver, GiveBack, Settle
from provider.work.events import (
    AcceptanceArrived,
    AskSlot,
    AwaitAcceptance,
    BlobsFetched,
    Fetch,
    FetchFailed,
    Finish,
    FreeSlot,
    Kill,
    LeaseEnded,
    LeaseMoved,
    LeaseOpened,
    LeaseState,
    PostReceipt,
    Report,
    Restarted,
    Run,
    RunEnded,
    SegmentRan,
    SlotGranted,
    Stopping,
    Stored,
    StoreFailed,
    Submit,
    Task,
    TransactionFinal,
    TransactionRefused,
    WorkEffect,
    WorkEvent,
)
from provider.work.papers import Papers


class Phase(StrEnum):
    """Where the work stands."""

    NEW = "new"
    FETCHING = "fetching"
    QUEUED = "queued"
    RUNNING = "running"
    POSTING = "posting"
    STORED = "stored"
    DELIVERED = "delivered"
    STOPPED = "stopped"
    LEAVING = "leaving"
    ENDED = "ended"


UNFINISHED = frozenset({Phase.FETCHING, Phase.QUEUED, Phase.RUNNING})
"""Phases in which there is no receipt yet."""

UNDELIVERED = UNFINISHED | {Phase.POSTING, Phase.STORED}
"""Phases in which the deadline still threatens."""


class Patience(msgspec.Struct, frozen=True):
    """Milliseconds: how long to wait for an acceptance before delivering; before the start window's end and before
    the deadline to give up; what a re-run needs beside its wall limits. `attempts` is how often a job is tried on a
    failing host.
    """

    acceptance: int = 3_000
    start: int = 5_000
    deadline: int = 4_000
    overhead: int = 1_000
    attempts: int = 2


class Work:
    """The machine of one lease (contract: `chain.base.machine`)."""

    def __init__(self, signer: Signer, chain_id: bytes, patience: Patience | None = None) -> None:
        self.phase = Phase.NEW
        self.opened: LeaseOpened | None = None
        self.papers: Papers | None = None
        self.failures: list[str] = []
        self._signer = signer
        self._chain_id = chain_id
        self._patience = patience or Patience()
        self._attempt = 0
        self._host_failures = 0
        self._cancelling = False
        self._storage: Signed[StorageReceipt] | None = None
        self._acceptance: Signed[Acceptance] | None = None
        self._deliver_at: int | None = None
        self._delivering = False
        self._refused: set[Task] = set()
        self._end_state = LeaseState.VOID

    def handle(self, event: WorkEvent, now: int) -> Sequence[WorkEffect]:
        """See `chain.base.machine.Machine`. What does not fit the phase is ignored: late news of an earlier attempt,
        repeated news of the chain.
        """
        if isinstance(event, LeaseOpened):
            return self._open(event) if self.phase is Phase.NEW else ()
        if self.opened is None or self.phase is Phase.ENDED:
            return self._finish_again(event)
        match event:
            case LeaseMoved():
                return self._move(event.state)
            case LeaseEnded():
                self._end_state = event.state
                return (*self._halt(Phase.ENDED), Finish(event.state))
            case BlobsFetched() | FetchFailed() | SlotGranted() | SegmentRan() | RunEnded():
                return self._hear_run(event, now)
            case Stored() | StoreFailed() | AcceptanceArrived():
                return self._hear_holder(event, now)
            case TransactionFinal():
                return ()
            case TransactionRefused():
                return self._hear_refusal(event)
            case Stopping():
                return self._stop()
            case Restarted():
                return self._restart(now)
            case _:
                assert_never(event)

    def wake_at(self) -> int | None:
        """The sooner of: delivery without acceptance, last call before the deadline."""
        return min((due for due, _ in self._timers()), default=None)

    def wake(self, now: int) -> Sequence[WorkEffect]:
        """Settle what is due."""
        for due, settle in self._timers():
            if due <= now:
                return settle()
        return ()

    @property
    def is_quiet(self) -> bool:
        """Whether the lease can be left alone: delivered (silence accepts) or over."""
        return self.phase in (Phase.DELIVERED, Phase.STOPPED, Phase.ENDED)

    def _timers(self) -> list[tuple[int, Callable[[], Sequence[WorkEffect]]]]:
        if self.opened is None:
            return []
        timers: list[tuple[int, Callable[[], Sequence[WorkEffect]]]] = []
        last = self.opened.deadline - self._patience.deadline
        if self.phase is Phase.STORED and self._deliver_at is not None:
            timers.append((min(self._deliver_at, last), self._deliver))
        if self.phase in UNFINISHED or (self.phase is Phase.POSTING and not self._is_settling):
            timers.append((last, self._give_up))
        return timers

    def _open(self, event: LeaseOpened) -> Sequence[WorkEffect]:
        self.opened = event
        self.papers = Papers(self._signer, self._chain_id, event)
        self.phase = Phase.FETCHING
        window = event.announcement.order.body.windows.start
        return (Fetch(event.opened + max(window - self._patience.start, window // 2)),)

    def _finish_again(self, event: WorkEvent) -> Sequence[WorkEffect]:
        if self.opened is None or not isinstance(event, Restarted):
            return ()
        return (Finish(self._end_state),)

    def _move(self, state: LeaseState) -> Sequence[WorkEffect]:
        """The chain speaks: it always wins."""
        if state is LeaseState.CANCELLING and not self._cancelling:
            self._cancelling = True
            return self._cancel()
        if state in (LeaseState.DELIVERED, LeaseState.DISPUTED) and self.phase is not Phase.DELIVERED:
            return self._halt(Phase.DELIVERED)
        return ()

    def _halt(self, phase: Phase) -> tuple[WorkEffect, ...]:
        """Leave the phase for `phase`, stopping what runs for it."""
        was, self.phase = self.phase, phase
        return (Kill(), FreeSlot()) if was in UNFINISHED else ()

    def _hear_run(
        self, event: BlobsFetched | FetchFailed | SlotGranted | SegmentRan | RunEnded, now: int
    ) -> Sequence[WorkEffect]:
        match event:
            case BlobsFetched():
                return self._queue() if self.phase is Phase.FETCHING else ()
            case FetchFailed():
                return self._leave(f"inputs missing: {event.text}") if self.phase in UNFINISHED else ()
            case SlotGranted():
                return self._run() if self.phase is Phase.QUEUED else (FreeSlot(),)
            case SegmentRan():
                return self._record(event)
            case RunEnded():
                return self._end_run(event, now)
            case _:
                assert_never(event)

    def _queue(self) -> Sequence[WorkEffect]:
        self.phase = Phase.QUEUED
        return (AskSlot(),)

    def _run(self) -> Sequence[WorkEffect]:
        opened, papers = self._known()
        self.phase = Phase.RUNNING
        return (Run(self._attempt, opened.first + papers.done, opened.count - papers.done),)

    def _record(self, event: SegmentRan) -> Sequence[WorkEffect]:
        opened, papers = self._known()
        if self.phase not in UNFINISHED or event.attempt != self._attempt:
            return ()
        if event.cause is Cause.HOST:
            return ()
        contradiction = papers.find_contradiction(event)
        if contradiction:
            return self._leave(f"the run contradicts what was signed: {contradiction}")
        return (Report(papers.done + 1, opened.count, papers.add_record(event)),)

    def _end_run(self, event: RunEnded, now: int) -> Sequence[WorkEffect]:
        _, papers = self._known()
        if self.phase not in UNFINISHED or event.attempt != self._attempt:
            return ()
        reports = self._record(event.last) if event.last is not None else ()
        if self.phase not in UNFINISHED:
            return reports
        if papers.is_complete:
            return (*reports, *self._sign(event))
        self.failures.append(event.detail)
        self._host_failures += 1
        self._attempt += 1
        if self._host_failures >= self._patience.attempts:
            return (*reports, *self._leave(f"the host failed: {event.detail}"))
        return (*reports, *self._begin_again(now))

    def _sign(self, event: RunEnded) -> Sequence[WorkEffect]:
        _, papers = self._known()
        self.phase = Phase.POSTING
        return (FreeSlot(), PostReceipt(papers.sign_receipt(event), tuple(papers.records)))

    def _begin_again(self, now: int) -> Sequence[WorkEffect]:
        """Run what is left from the first segment without a record, if the deadline allows it in the worst case."""
        opened, papers = self._known()
        if papers.is_complete:
            self.phase = Phase.RUNNING
            return (Run(self._attempt, opened.first + papers.done, 0),)
        wall = opened.announcement.order.body.segment_wall
        needed = (opened.count - papers.done) * wall + self._patience.overhead + self._patience.deadline
        if now + needed > opened.deadline:
            return self._leave(f"the deadline leaves no time for another run ({needed} ms)")
        self.phase = Phase.FETCHING
        return (FreeSlot(), Fetch(now + self._patience.start))

    def _hear_holder(self, event: Stored | StoreFailed | AcceptanceArrived, now: int) -> Sequence[WorkEffect]:
        match event:
            case Stored():
                return self._store(event.storage, now)
            case StoreFailed():
                return self._leave(f"handing in failed: {event.text}") if self.phase is Phase.POSTING else ()
            case AcceptanceArrived():
                return self._accept(event.acceptance)
            case _:
                assert_never(event)

    def _store(self, storage: Signed[StorageReceipt], now: int) -> Sequence[WorkEffect]:
        _, papers = self._known()
        if self.phase is not Phase.POSTING:
            return ()
        self.phase = Phase.STORED
        self._storage = storage
        if papers.is_deliverable and not self._is_settling:
            self._deliver_at = now if self._cancelling else now + self._patience.acceptance
        return (AwaitAcceptance(), *(self._deliver() if self._cancelling else ()))

    def _accept(self, signed: Signed[Acceptance]) -> Sequence[WorkEffect]:
        """Settle (R7) if the acceptance is genuine and covers all that the receipt does."""
        _, papers = self._known()
        if papers.receipt is None or self._acceptance is not None or papers.find_objection(signed):
            return ()
        message = compute_signed_bytes(Tag.ACCEPTANCE, self._chain_id, signed.body)
        if not is_signature(signed.body.signer, message, signed.signature):
            return ()
        self._acceptance = signed
        self._deliver_at = None
        return self._settle()

    def _settle(self) -> tuple[WorkEffect, ...]:
        _, papers = self._known()
        if papers.receipt is None or self._acceptance is None or Task.SETTLE in self._refused:
            return ()
        return (Submit(Task.SETTLE, Settle(papers.receipt, self._acceptance), "accepted"),)

    @property
    def _is_settling(self) -> bool:
        return self._acceptance is not None and Task.SETTLE not in self._refused

    def _deliver(self) -> tuple[WorkEffect, ...]:
        _, papers = self._known()
        self._deliver_at = None
        if papers.receipt is None or self._storage is None or Task.DELIVER in self._refused:
            return ()
        self._delivering = True
        return (Submit(Task.DELIVER, Deliver(papers.receipt, self._storage), "no acceptance within the patience"),)

    def _hear_refusal(self, event: TransactionRefused) -> Sequence[WorkEffect]:
        """A settle that is refused gives way to delivery; a delivery that is refused to a return; a refused return to
        the chain's own timers.
        """
        self._refused.add(event.task)
        self.failures.append(f"{event.task.value} refused by {event.rule}")
        match event.task:
            case Task.SETTLE:
                return self._deliver() if self.phase is Phase.STORED and not self._delivering else ()
            case Task.DELIVER:
                if self.phase is not Phase.STORED or self._is_settling:
                    return ()
                return self._leave(f"delivery was refused by {event.rule}")
            case Task.GIVE_BACK:
                if self.phase is Phase.LEAVING:
                    self.phase = Phase.STOPPED
                return ()
            case _:
                assert_never(event.task)

    def _cancel(self) -> Sequence[WorkEffect]:
        """Row 6: what is finished is delivered, what was begun is handed in for whatever the requester accepts of it,
        the rest is stopped.
        """
        if self.phase is Phase.STORED:
            return self._deliver()
        return self._halt(Phase.STOPPED) if self.phase in UNFINISHED else ()

    def _stop(self) -> Sequence[WorkEffect]:
        if self.phase in UNFINISHED:
            return self._leave("the provider shuts down")
        return self._deliver() if self.phase is Phase.STORED and self._deliver_at is not None else ()

    def _leave(self, why: str) -> tuple[WorkEffect, ...]:
        """Give the lease back (R4)."""
        opened, _ = self._known()
        self.failures.append(why)
        halted = self._halt(Phase.LEAVING)
        if Task.GIVE_BACK in self._refused:
            self.phase = Phase.STOPPED
            return halted
        return (*halted, Submit(Task.GIVE_BACK, GiveBack(opened.lease), why))

    def _give_up(self) -> tuple[WorkEffect, ...]:
        return self._leave("not finished before the deadline")

    def _restart(self, now: int) -> Sequence[WorkEffect]:
        """Ask again for all that is outstanding."""
        _, papers = self._known()
        match self.phase:
            case Phase.FETCHING | Phase.QUEUED | Phase.RUNNING:
                self._attempt += 1
                return self._begin_again(now)
            case Phase.POSTING:
                receipt = papers.receipt
                return () if receipt is None else (PostReceipt(receipt, tuple(papers.records)),)
            case Phase.STORED | Phase.DELIVERED:
                again = self._deliver() if self._delivering and self.phase is Phase.STORED else ()
                return (*again, *self._settle(), *((AwaitAcceptance(),) if papers.receipt is not None else ()))
            case Phase.LEAVING:
                return (
                    Submit(Task.GIVE_BACK, GiveBack(self._known()[0].lease), "the provider was restarted"),
                    *self._settle(),
                )
            case Phase.STOPPED:
                return self._settle()
            case Phase.NEW | Phase.ENDED:
                return ()
            case _:
                assert_never(self.phase)

    def _known(self) -> tuple[LeaseOpened, Papers]:
        if self.opened is None or self.papers is None:
            raise Fault("no lease yet", rule="work.new")
        return self.opened, self.papers
