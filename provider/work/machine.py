"""The work machine: one lease from its opening on the chain to its end.

    new -> fetching -> queued -> running -> posting -> stored -> delivered -> ended
                 \\________\\________\\________\\______\\-> leaving -/

It runs only what the chain has opened (R3), makes one record per segment (R5, `papers`) and hands in receipts of
prefixes as the work goes (`handing`), settles on an acceptance (R7, in every live state), delivers when none came
within the patience (R8, silence accepts), and answers calls (R6). A lease that cannot be served to its end is left:
the segments that are done are handed in and put on the chain, so that they are paid for, then the rest is given back
(R4): before the start window ends that costs one part in a hundred, before the deadline it saves the rest of the
bond's share. What the chain says about the lease always wins. Not here: how anything is fetched, run, stored or sent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, assert_never

from chain.base.errors import Fault
from chain.base.keys import Signer
from chain.ledger.terms.outcome import Cause
from chain.ledger.terms.work import SegmentRecord
from provider.work.events import (
    AcceptanceArrived,
    AskSlot,
    AwaitAcceptance,
    BlobsFetched,
    Fetch,
    FetchFailed,
    Finish,
    FreeSlot,
    HolderLost,
    Kill,
    LeaseEnded,
    LeaseMoved,
    LeaseOpened,
    LeaseState,
    Report,
    Restarted,
    Run,
    RunEnded,
    SegmentsRan,
    SlotGranted,
    Stopping,
    Stored,
    StoreFailed,
    Task,
    TransactionFinal,
    TransactionRefused,
    WorkEffect,
    WorkEvent,
)
from provider.work.handing import Handing
from provider.work.papers import Papers
from provider.work.phases import ANSWERING, UNFINISHED, Patience, Phase
from provider.work.standing import Standing

Settlement = Callable[[int], Sequence[WorkEffect]]
"""What is done when a timer is due."""


class Parts(NamedTuple):
    """What there is once the lease is open."""

    opened: LeaseOpened
    papers: Papers
    handing: Handing
    standing: Standing


class Work:
    """The machine of one lease (contract: `chain.base.machine`)."""

    def __init__(self, signer: Signer, chain_id: bytes, patience: Patience | None = None) -> None:
        self.phase = Phase.NEW
        self.opened: LeaseOpened | None = None
        self.failures: list[str] = []
        self._signer = signer
        self._chain_id = chain_id
        self._patience = patience or Patience()
        self._parts: Parts | None = None
        self._attempt = 0
        self._host_failures = 0
        self._done_before = 0
        self._is_closing = False
        self._is_stopping = False
        self._leave_by = 0
        self._why = ""
        self._deliver_at: int | None = None
        self._end_state = LeaseState.VOID

    @property
    def papers(self) -> Papers | None:
        """Records and receipts, once there is a lease."""
        return self._parts.papers if self._parts is not None else None

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
                return self._move(event, now)
            case LeaseEnded():
                self._end_state = event.state
                return (*self._halt(Phase.ENDED), Finish(event.state))
            case BlobsFetched() | FetchFailed() | SlotGranted() | SegmentsRan() | RunEnded():
                return self._hear_run(event, now)
            case Stored() | StoreFailed() | HolderLost() | AcceptanceArrived():
                return self._hear_holder(event, now)
            case TransactionFinal():
                return self._return() if event.task is Task.EXTEND and self.phase is Phase.LEAVING else ()
            case TransactionRefused():
                return self._hear_refusal(event)
            case Stopping():
                return self._stop(now)
            case Restarted():
                return self._restart(now)
            case _:
                assert_never(event)

    def wake_at(self) -> int | None:
        """The soonest of: the next prefix, delivery without acceptance, last call before the deadline."""
        return min((due for due, _ in self._timers()), default=None)

    def wake(self, now: int) -> Sequence[WorkEffect]:
        """Settle what is due, the most pressing first."""
        for due, settle in self._timers():
            if due <= now:
                return settle(now)
        return ()

    def has_heard(self, event: LeaseMoved) -> bool:
        """Whether the chain's word is what is known already."""
        return self._parts is not None and self._parts.standing.is_at(event)

    @property
    def is_quiet(self) -> bool:
        """Whether the lease can be left alone: delivered (silence accepts) or over."""
        return self.phase in (Phase.DELIVERED, Phase.STOPPED, Phase.ENDED)

    def _timers(self) -> list[tuple[int, Settlement]]:
        if self._parts is None:
            return []
        opened, _, handing, standing = self._parts
        last = opened.deadline - self._patience.deadline
        if self.phase is Phase.STORED:
            return [(min(self._deliver_at, last), self._deliver)] if self._deliver_at is not None else []
        if self.phase is Phase.POSTING:
            return [] if standing.is_settling else [(self._find_end(), self._break_off)]
        if self.phase is Phase.LEAVING:
            return [(self._leave_by, self._break_off)] if handing.posted is not None else []
        if self.phase not in UNFINISHED:
            return []
        end = (self._find_end(), self._break_off) if self._is_closing else (last, self._give_up)
        due = handing.due_at()
        return [end] if due is None else [end, (due, handing.post)]

    def _find_end(self) -> int:
        """When handing in has to have ended, so that the lease can still be given back."""
        opened = self._known.opened
        return opened.deadline - self._patience.deadline // 2

    def _open(self, event: LeaseOpened) -> Sequence[WorkEffect]:
        self.opened = event
        papers = Papers(self._signer, self._chain_id, event)
        self._parts = Parts(event, papers, Handing(papers), Standing(event, papers, self._chain_id))
        self.phase = Phase.FETCHING
        window = event.announcement.order.body.windows.start
        return (Fetch(event.opened + max(window - self._patience.start, window // 2)),)

    def _finish_again(self, event: WorkEvent) -> Sequence[WorkEffect]:
        if self.opened is None or not isinstance(event, Restarted):
            return ()
        return (Finish(self._end_state),)

    def _move(self, event: LeaseMoved, now: int) -> Sequence[WorkEffect]:
        """The chain speaks: it always wins."""
        standing = self._known.standing
        was_cancelling = standing.is_cancelling
        is_called = standing.move(event)
        if event.state in (LeaseState.DELIVERED, LeaseState.DISPUTED):
            settle = self._known.standing.settle()
            if self.phase is Phase.DELIVERED:
                return settle
            listen = (AwaitAcceptance(),) if self._known.papers.done else ()
            return (*self._halt(Phase.DELIVERED), *listen, *settle)
        if is_called:
            return standing.answer() if self.phase in ANSWERING else ()
        if standing.is_cancelling and not was_cancelling:
            return (*self._cancel(now), *self._known.standing.settle())
        return ()

    def _halt(self, phase: Phase) -> tuple[WorkEffect, ...]:
        """Leave the phase for `phase`, stopping what runs for it."""
        was, self.phase = self.phase, phase
        return (Kill(), FreeSlot()) if was in UNFINISHED else ()

    # The run

    def _hear_run(
        self, event: BlobsFetched | FetchFailed | SlotGranted | SegmentsRan | RunEnded, now: int
    ) -> Sequence[WorkEffect]:
        match event:
            case BlobsFetched():
                return self._queue() if self.phase is Phase.FETCHING else ()
            case FetchFailed():
                return self._leave(event.text, now, self._find_end()) if self.phase in UNFINISHED else ()
            case SlotGranted():
                return self._run() if self.phase is Phase.QUEUED else (FreeSlot(),)
            case SegmentsRan():
                return self._record(event, now)
            case RunEnded():
                return self._end_run(event, now)
            case _:
                assert_never(event)

    def _queue(self) -> Sequence[WorkEffect]:
        self.phase = Phase.QUEUED
        return (AskSlot(),)

    def _run(self) -> Sequence[WorkEffect]:
        opened, papers = self._known.opened, self._known.papers
        self.phase = Phase.RUNNING
        return (Run(self._attempt, opened.first + papers.done, opened.count - papers.done),)

    def _record(self, event: SegmentsRan, now: int) -> tuple[WorkEffect, ...]:
        """Records of segments that ran, up to the first that would contradict."""
        opened, papers, handing, _ = self._known
        if self.phase not in UNFINISHED or event.attempt != self._attempt:
            return ()
        made: list[SegmentRecord] = []
        contradiction = ""
        for ran in event.segments:
            if papers.is_complete or ran.cause is Cause.HOST:
                break
            contradiction = papers.find_contradiction(ran)
            if contradiction:
                break
            made.append(papers.add_record(ran, event.level, event.blas))
        report = (Report(papers.done, opened.count, tuple(made)),) if made else ()
        if made:
            handing.note(now)
        if contradiction:
            why = f"the run contradicts what was signed: {contradiction}"
            return (*report, *self._leave(why, now, self._find_end()))
        return report

    def _end_run(self, event: RunEnded, now: int) -> Sequence[WorkEffect]:
        papers = self._known.papers
        if self.phase not in UNFINISHED or event.attempt != self._attempt:
            return ()
        reports = self._record(SegmentsRan(event.attempt, event.level, event.blas, event.last), now)
        if self.phase not in UNFINISHED:
            return reports
        if papers.is_complete:
            return (*reports, *self._sign(event, now))
        self.failures.append(event.detail)
        self._host_failures = 1 if papers.done > self._done_before else self._host_failures + 1
        self._done_before = papers.done
        self._attempt += 1
        if self._host_failures >= self._patience.attempts:
            return (*reports, *self._leave(f"the host failed: {event.detail}", now, self._find_end()))
        return (*reports, *self._begin_again(now))

    def _sign(self, event: RunEnded, now: int) -> Sequence[WorkEffect]:
        self._known.papers.sign_final(event)
        self.phase = Phase.POSTING
        return (FreeSlot(), *self._known.handing.post(now))

    def _begin_again(self, now: int) -> Sequence[WorkEffect]:
        """Run what is left from the first segment without a record, if the deadline allows it in the worst case."""
        opened, papers = self._known.opened, self._known.papers
        if papers.is_complete:
            return (self._close_log(),)
        wall = opened.announcement.order.body.segment_wall
        needed = (opened.count - papers.done) * wall + self._patience.overhead + self._patience.deadline
        if now + needed > opened.deadline:
            why = f"the deadline leaves no time for another run ({needed} ms)"
            return self._leave(why, now, self._find_end())
        self.phase = Phase.FETCHING
        return (FreeSlot(), Fetch(now + self._patience.start))

    def _close_log(self) -> WorkEffect:
        """All that can run did: what is wanting for the final receipt is the log."""
        opened, papers = self._known.opened, self._known.papers
        self.phase = Phase.RUNNING
        return Run(self._attempt, opened.first + papers.done, 0)

    # The holder

    def _hear_holder(
        self, event: Stored | StoreFailed | HolderLost | AcceptanceArrived, now: int
    ) -> Sequence[WorkEffect]:
        _, _, handing, standing = self._known
        match event:
            case Stored():
                return self._store(event, now)
            case StoreFailed() | HolderLost() if handing.posted is None:
                return ()
            case StoreFailed():
                return self._stop_handing(f"handing in failed: {event.text}", now)
            case HolderLost():
                if handing.lose():
                    return self._hand_in(now)
                return self._stop_handing("the holder loses what it signed for", now)
            case AcceptanceArrived():
                if not standing.accept(event.acceptance):
                    return ()
                self._deliver_at = None
                return standing.settle()
            case _:
                assert_never(event)

    def _hand_in(self, now: int) -> tuple[WorkEffect, ...]:
        """What is next where nobody waits for the pace."""
        if self.phase is Phase.LEAVING:
            return self._go_leaving(now)
        return self._known.handing.post(now) if self.phase is Phase.POSTING else ()

    def _store(self, event: Stored, now: int) -> Sequence[WorkEffect]:
        handing, standing = self._known.handing, self._known.standing
        if not handing.take(event) or self.phase not in (Phase.POSTING, Phase.LEAVING):
            return ()
        if not handing.is_whole:
            return self._hand_in(now)
        hurry = self.phase is Phase.LEAVING or standing.is_cancelling or self._is_stopping
        self.phase = Phase.STORED
        if hurry:
            return (AwaitAcceptance(), *self._deliver(now))
        if not self._known.standing.is_settling:
            self._deliver_at = now + self._patience.acceptance
        return (AwaitAcceptance(),)

    def _stop_handing(self, why: str, now: int) -> tuple[WorkEffect, ...]:
        """The holder will not have it: no more is handed in, so the lease can't be served."""
        self._known.handing.give_up()
        if self.phase in UNFINISHED or self.phase is Phase.POSTING:
            return self._leave(why, now, now)
        return self._go_leaving(now) if self.phase is Phase.LEAVING else ()

    def _deliver(self, now: int) -> tuple[WorkEffect, ...]:
        self._deliver_at = None
        kept = self._known.handing.kept
        if kept is None or self._known.standing.is_settling:
            return ()
        return self._known.standing.deliver(*kept, "no acceptance within the patience")

    # Refusals, cancel, stop

    def _hear_refusal(self, event: TransactionRefused) -> Sequence[WorkEffect]:
        """A settle that is refused gives way to delivery; a delivery that is refused to a return; a refused return to
        the chain's own timers.
        """
        standing = self._known.standing
        self.failures.append(f"{event.task.value} refused by {event.rule}")
        again = standing.refuse(event.task)
        match event.task:
            case Task.SETTLE:
                return self._redeliver() if not standing.was_asked(Task.DELIVER) else ()
            case Task.DELIVER:
                if self.phase is not Phase.STORED or self._known.standing.is_settling:
                    return ()
                return self._redeliver() if again else self._quit(f"delivery was refused by {event.rule}")
            case Task.EXTEND:
                return self._extend() if self.phase is Phase.LEAVING else ()
            case Task.GIVE_BACK:
                if self.phase is Phase.LEAVING:
                    self.phase = Phase.STOPPED
                return ()
            case Task.ANSWER:
                return ()
            case _:
                assert_never(event.task)

    def _redeliver(self) -> tuple[WorkEffect, ...]:
        kept = self._known.handing.kept
        if self.phase is not Phase.STORED or kept is None:
            return ()
        self._deliver_at = None
        return self._known.standing.deliver(*kept, "asked again")

    def _quit(self, why: str) -> tuple[WorkEffect, ...]:
        """Nothing more can be handed in: put on the chain what it takes, then give back."""
        self.failures.append(why)
        self._known.handing.give_up()
        self._why, self.phase = why, Phase.LEAVING
        return self._extend()

    def _cancel(self, now: int) -> tuple[WorkEffect, ...]:
        """Row 6: what is finished is delivered; what is begun is stopped, its finished segments are handed in and put
        on the chain, so that they are paid for.
        """
        if self.phase is Phase.STORED:
            return self._deliver(now)
        if self.phase not in UNFINISHED:
            return ()
        grace = self._known.opened.announcement.order.body.windows.grace
        return self._leave("the requester cancelled", now, now + grace // 2)

    def _stop(self, now: int) -> Sequence[WorkEffect]:
        self._is_stopping = True
        if self.phase in UNFINISHED:
            until = min(now + self._patience.leaving, self._find_end())
            return self._leave("the provider shuts down", now, until)
        return self._deliver(now) if self.phase is Phase.STORED and self._deliver_at is not None else ()

    # Leaving

    def _give_up(self, now: int) -> tuple[WorkEffect, ...]:
        return self._leave("not finished before the deadline", now, self._find_end())

    def _break_off(self, now: int) -> tuple[WorkEffect, ...]:
        """No more time to hand anything in."""
        self._is_closing = True
        self._known.handing.give_up()
        if self.phase is Phase.LEAVING:
            return self._extend()
        return self._leave("not finished before the deadline", now, now)

    def _leave(self, why: str, now: int, until: int) -> tuple[WorkEffect, ...]:
        """Hand in until `until` what is done, put it on the chain, give back the rest (R4). A range of which only the
        log is wanting is finished instead.
        """
        papers, handing = self._known.papers, self._known.handing
        if papers.is_complete and papers.final is None and not self._is_closing and not handing.is_over:
            self._is_closing = True
            self._attempt += 1
            return (Kill(), self._close_log())
        self.failures.append(why)
        self._why, self._leave_by = why, until
        return (*self._halt(Phase.LEAVING), *self._go_leaving(now))

    def _go_leaving(self, now: int) -> tuple[WorkEffect, ...]:
        handing = self._known.handing
        if now >= self._leave_by:
            handing.give_up()
        if handing.posted is not None:
            return ()
        return handing.post(now) or self._extend()

    def _extend(self) -> tuple[WorkEffect, ...]:
        """Put on the chain what the holder keeps; then, or where nothing is kept, return."""
        kept = self._known.handing.kept
        effects = self._known.standing.extend(*kept) if kept is not None else ()
        return effects or self._return()

    def _return(self) -> tuple[WorkEffect, ...]:
        effects = self._known.standing.give_back(self._why)
        if effects:
            return effects
        self.phase = Phase.STOPPED
        return (AwaitAcceptance(),) if self._known.handing.kept is not None else ()

    def _restart(self, now: int) -> Sequence[WorkEffect]:
        """Ask again for all that is outstanding."""
        _, papers, handing, standing = self._known
        handing.restart()
        answer = standing.answer() if self.phase in ANSWERING else ()
        match self.phase:
            case Phase.FETCHING | Phase.QUEUED | Phase.RUNNING:
                self._attempt += 1
                return (*answer, *self._begin_again(now))
            case Phase.POSTING:
                return (*answer, *handing.post(now))
            case Phase.STORED | Phase.DELIVERED:
                again = self._redeliver() if standing.was_asked(Task.DELIVER) else ()
                return (*answer, *again, *self._known.standing.settle(), *((AwaitAcceptance(),) if papers.done else ()))
            case Phase.LEAVING:
                return (*answer, *self._go_leaving(now), *self._known.standing.settle())
            case Phase.STOPPED:
                return (*self._known.standing.settle(), *((AwaitAcceptance(),) if handing.kept is not None else ()))
            case Phase.NEW | Phase.ENDED:
                return ()
            case _:
                assert_never(self.phase)

    @property
    def _known(self) -> Parts:
        if self._parts is None:
            raise Fault("no lease yet", rule="work.new")
        return self._parts
