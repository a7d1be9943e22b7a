"""Hands of one work machine: what its effects mean in files, messages, transactions and sandboxes.

One `LeaseKeeper` per lease: it owns the machine's driver. Effects that wait run as tasks of their own and end with an
event; `Kill` cancels the fetch or run, and nothing of it is heard afterwards. Not here: when a lease opens or ends on
the chain (`daemon`), who gets a slot (`office`), how it is run (`running`) and handed in (`handover`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, assert_never

from broker.protocol import topics
from broker.protocol.messages import Progress, sign_message
from chain.base.errors import Fault, Refused, TallyError, Unavailable
from chain.base.keys import Signed
from chain.ledger.terms.work import Acceptance
from chain.rpc.schema import LeaseView
from chain.runtime.driver import Driver
from chain.runtime.logs import get_logger, show_job
from provider.daemon.handover import HandOver
from provider.daemon.inputs import fetch_inputs
from provider.daemon.links import Backoff, Gear, TaskSet
from provider.daemon.progress import Reporter
from provider.daemon.running import Running
from provider.daemon.transactions import Submitter
from provider.daemon.workspace import name_machine
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
    SlotGranted,
    Stopping,
    Submit,
    TransactionFinal,
    TransactionRefused,
    WorkEffect,
    WorkEvent,
)
from provider.work.events import Task as LeaseTask
from provider.work.machine import Work
from provider.work.phases import Phase

Step = Callable[[], Coroutine[Any, Any, WorkEvent | None]]
"""Something that takes time and ends with an event."""

WAIT_MS = 20_000
"""One long poll for an acceptance."""


class Office:
    """What a lease asks of those who know the others: a slot, its return, and its own end."""

    def ask_slot(self, order_id: bytes, grant: Callable[[], None]) -> None:
        """Call `grant` once it is this order's turn."""
        raise NotImplementedError

    def free_slot(self, order_id: bytes) -> None:
        """The order's slot and booking are free, or no longer wanted."""
        raise NotImplementedError

    def retire(self, lease: bytes, state: LeaseState) -> None:
        """The lease is over: forget it once its events are handled."""
        raise NotImplementedError


class LeaseKeeper:
    """Runs one lease from its opening to its end."""

    def __init__(self, gear: Gear, office: Office, opened: LeaseOpened) -> None:
        self.opened = opened
        self.order_id = opened.bid.body.order
        self.machine = Work(gear.signer, gear.chain_id, gear.patience)
        self.folder = gear.workspace.open_folder(opened.lease)
        self.log = get_logger("work").bind(job=show_job(self.order_id), lease=opened.lease.hex()[:16])
        self._gear = gear
        self._office = office
        self._tasks = TaskSet()
        self._work: asyncio.Task[None] | None = None
        self._listener: asyncio.Task[None] | None = None
        self._heard: Signed[Acceptance] | None = None
        self._submitter = Submitter(gear.signer, gear.chain_id, gear.chain, gear.clock)
        self._reporter = Reporter(opened.lease, gear.signer.key, opened.count, self._send_progress)
        self._running = Running(gear, opened, self.folder, self._reporter, self._post)
        events: Any = WorkEvent
        self.driver: Driver[WorkEvent, WorkEffect] = Driver(
            name_machine(opened.lease),
            self.machine,
            self._perform,
            journal=gear.workspace.journal,
            events=events,
            restarted=Restarted(),
            clock=gear.clock,
        )

    def begin(self) -> None:
        """The lease is new."""
        self.driver.post(self.opened)

    def replay(self) -> Phase:
        """The daemon lives again: where the work stood."""
        self.driver.replay()
        return self.machine.phase

    def resume(self, view: LeaseView | None) -> None:
        """Go on after `replay`: hear what the chain says first."""
        if view is not None:
            self.move(view)
        self.driver.post(Restarted())

    def stop(self) -> None:
        """The daemon shuts down: give back what is not finished."""
        self.driver.post(Stopping())

    def move(self, view: LeaseView) -> None:
        """The chain says how the lease stands; what is known is not heard again."""
        event = read_view(view)
        if isinstance(event, LeaseEnded) or not self.machine.has_heard(event):
            self.driver.post(event)

    def hear_acceptance(self, acceptance: Signed[Acceptance]) -> None:
        """Somebody brought an acceptance; the same one is heard once."""
        if acceptance != self._heard:
            self._heard = acceptance
            self.driver.post(AcceptanceArrived(acceptance))

    async def close(self) -> None:
        """Stop everything that runs for the lease; the journal stays."""
        self._reporter.close()
        self._kill()
        await self._tasks.close()
        await self.driver.close()

    def _post(self, event: WorkEvent) -> None:
        self.driver.post(event)

    def _perform(self, effect: WorkEffect) -> Coroutine[Any, Any, WorkEvent | None] | None:
        match effect:
            case Fetch():
                self._start(partial(self._fetch, effect.until))
            case AskSlot():
                self._office.ask_slot(self.order_id, lambda: self.driver.post(SlotGranted()))
            case Run():
                self._start(partial(self._run, effect))
            case Kill():
                self._kill()
            case Report():
                self._reporter.add_records(effect.done, effect.records)
            case FreeSlot():
                self._office.free_slot(self.order_id)
            case PostReceipt():
                if effect.provenance:
                    self._reporter.flush()
                self._tasks.start(self._tell(partial(HandOver(self._gear, self.opened, self.folder).post, effect)))
            case AwaitAcceptance():
                self._listen()
            case Submit():
                self.log.info("submits", what=effect.task.value, why=effect.why)
                self._tasks.start(self._tell(partial(self._submit, effect)))
            case Finish():
                self._office.retire(self.opened.lease, effect.state)
            case _:
                assert_never(effect)
        return None

    # Tasks

    def _start(self, work: Step) -> None:
        """Fetch or run: one at a time, to be killed."""
        self._kill()
        self._work = self._tasks.start(self._tell(work))

    def _kill(self) -> None:
        if self._work is not None:
            self._work.cancel()
            self._work = None

    async def _tell(self, work: Step) -> None:
        try:
            event = await work()
        except Exception as error:  # one lease must not take the others along
            self.log.error("a step of the lease broke; it is given back", error=repr(error), exc_info=error)
            self.driver.post(Stopping())
            return
        if event is not None:
            self.driver.post(event)

    # Inputs and the run

    async def _fetch(self, until: int) -> WorkEvent:
        try:
            async with asyncio.timeout(max(0, until - self._gear.clock.now()) / 1_000):
                await fetch_inputs(self._gear, self.opened.lease, self.opened.announcement, self._find_state())
        except (TallyError, OSError) as error:
            return FetchFailed(str(error)[:1_000])
        except TimeoutError:
            return FetchFailed("code or inputs did not come before the start window ended")
        return BlobsFetched()

    async def _run(self, effect: Run) -> WorkEvent:
        return await self._running.run(effect, self._find_state())

    def _find_state(self) -> bytes:
        """What the next segment of a `train` begins with: the last committed state, which is on disk here."""
        papers = self.machine.papers
        return papers.records[-1].output if papers is not None and papers.records else self.opened.start

    # Bus, acceptance, chain

    def _send_progress(self, frame: Progress) -> None:
        gear = self._gear
        data = sign_message(gear.signer, gear.chain_id, frame)
        self._tasks.start(gear.bus.publish(topics.up(gear.chain_id, gear.signer.key), data, expiry_s=60))

    def _listen(self) -> None:
        if self._listener is None or self._listener.done():
            self._listener = self._tasks.start(self._await_acceptance())

    async def _await_acceptance(self) -> None:
        backoff = Backoff()
        while True:
            try:
                acceptance = await self._gear.broker.acceptance(self.opened.lease, WAIT_MS)
            except TallyError as error:
                self.log.debug("no word of the acceptance", why=str(error))
                await backoff.wait()
                continue
            if acceptance is not None:
                self.hear_acceptance(acceptance)
                return

    async def _submit(self, effect: Submit) -> WorkEvent:
        try:
            await self._submitter.submit(effect.body)
        except Refused as error:
            self.log.warning("refused by the chain", what=effect.task.value, rule=error.rule, why=error.message)
            return await self._explain(effect, error)
        self.log.info("final", what=effect.task.value)
        return TransactionFinal(effect.task)

    async def _explain(self, effect: Submit, refusal: Refused) -> WorkEvent:
        """Whether the chain refused because the lease has moved on meanwhile."""
        backoff = Backoff()
        while True:
            try:
                view = await self._gear.chain.lease(self.opened.lease)
            except (Unavailable, Fault):
                await backoff.wait()
                continue
            if view is not None:
                event = read_view(view)
                over = isinstance(event, LeaseEnded) or event.state is LeaseState.DELIVERED
                if isinstance(event, LeaseEnded) or (over and effect.task is not LeaseTask.SETTLE):
                    return event
                self.move(view)
            return TransactionRefused(effect.task, refusal.rule)


def read_view(view: LeaseView) -> LeaseMoved | LeaseEnded:
    """The event that tells a machine of its lease as the chain has it."""
    state = LeaseState(view.state)
    return LeaseMoved(state, view.served, view.held, view.called) if state.is_live else LeaseEnded(state)
