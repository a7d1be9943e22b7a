"""Hands of one work machine: what its effects mean in files, messages, transactions and sandboxes.

One `LeaseKeeper` per lease: it owns the machine's driver. Effects that wait run as tasks of their own and end with an
event; `Kill` cancels the fetch or run, and nothing of it is heard afterwards. Not here: when a lease opens or ends on
the chain (`daemon`), who gets a slot (`office`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from functools import partial
from typing import Any, assert_never

from broker.protocol import topics
from broker.protocol.messages import Progress, sign_message
from chain.base.errors import Fault, Refused, TallyError, Unavailable
from chain.base.hashing import compute_digest
from chain.base.keys import Signed
from chain.ledger.terms.agreement import Kind
from chain.ledger.terms.outcome import Cause, Usage
from chain.ledger.terms.work import Acceptance
from chain.runtime.driver import Driver
from chain.runtime.logs import get_logger, show_job
from provider.daemon.handover import HandOver
from provider.daemon.links import Backoff, Gear, TaskSet
from provider.daemon.progress import TICK_MS, Reporter
from provider.daemon.transactions import Submitter
from provider.daemon.workspace import name_machine
from provider.sandbox.spec import Ended, Limits, LogChunk, SegmentDone, Started, Task
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
    Submit,
    TransactionFinal,
    TransactionRefused,
    WorkEffect,
    WorkEvent,
)
from provider.work.events import Task as LeaseTask
from provider.work.machine import Phase, Work

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

    def resume(self, state: LeaseState | None) -> None:
        """Go on after `replay`: hear what the chain says first."""
        if state is not None and state is not LeaseState.OPEN:
            self.move(state)
        self.driver.post(Restarted())

    def stop(self) -> None:
        """The daemon shuts down: give back what is not finished."""
        self.driver.post(Stopping())

    def move(self, state: LeaseState) -> None:
        """The chain says the lease is in this state."""
        self.driver.post(read_state(state))

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
                self._reporter.add_record(effect.done, effect.record)
            case FreeSlot():
                self._office.free_slot(self.order_id)
            case PostReceipt():
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
        except Exception as error:  # one lease must not take the others along; its timers end it
            self.log.error("a step of the lease broke", error=repr(error), exc_info=error)
            return
        if event is not None:
            self.driver.post(event)

    # Inputs

    async def _fetch(self, until: int) -> WorkEvent:
        spec = self.opened.announcement.spec
        try:
            async with asyncio.timeout(max(0, until - self._gear.clock.now()) / 1_000):
                await asyncio.gather(
                    fetch_blob(self._gear, self.opened.lease, spec.code, spec.code_bytes),
                    fetch_blob(self._gear, self.opened.lease, spec.inputs, spec.input_bytes),
                )
        except TallyError as error:
            return FetchFailed(str(error)[:1_000])
        except TimeoutError:
            return FetchFailed("code or inputs did not come before the start window ended")
        return BlobsFetched()

    # The run

    async def _run(self, effect: Run) -> WorkEvent:
        fresh = effect.first == self.opened.first and effect.count > 0
        self.folder.begin_log(fresh=fresh)
        now = self._gear.clock.now()
        self._reporter.begin(len(self.folder.log), max(0, now - self.opened.opened) // TICK_MS)
        if effect.count == 0:
            return self._end_run(effect.attempt, Ended(Cause.OK, Usage(), "", self._gear.host.level.value))
        slot = await self._gear.slots.get()
        try:
            return await self._run_task(effect, self._make_task(effect), slot)
        except (TallyError, OSError) as error:
            self.log.error("the sandbox failed", error=str(error))
            return self._end_run(effect.attempt, Ended(Cause.HOST, Usage(), str(error), ""))
        finally:
            self._gear.slots.put_nowait(slot)

    async def _run_task(self, effect: Run, task: Task, slot: int) -> WorkEvent:
        done, last = 0, None
        async with aclosing(self._gear.executor.run(task, slot)) as events:
            async for event in events:
                match event:
                    case Started():
                        self.log.info("runs", slot=slot, segments=task.count)
                    case LogChunk():
                        self.folder.log += event.data
                        self._reporter.add_log(event.data)
                    case SegmentDone():
                        done += 1
                        last = self._read_segment(effect.attempt, event)
                        if done < task.count and event.cause is Cause.OK:
                            self.driver.post(last)
                            last = None
                    case Ended():
                        if last is None and done < task.count and event.cause not in (Cause.OK, Cause.HOST):
                            last = self._read_segment(effect.attempt, self._make_lost(effect, task, event, done))
                        return self._end_run(effect.attempt, event, last)
                    case _:
                        assert_never(event)
        raise Fault("the sandbox ended without a word", rule="sandbox.silent")

    def _read_segment(self, attempt: int, done: SegmentDone) -> SegmentRan:
        """What a segment left goes to the disk, what it was goes to the machine."""
        output = self.folder.put(done.output)
        error = self.folder.put(done.error.encode(errors="replace"))
        self.folder.keep_log()
        return SegmentRan(
            attempt=attempt,
            index=done.index,
            input=done.input_digest,
            output=output,
            error=error,
            cause=done.cause,
            usage=done.usage,
            started=done.started_ms,
            dispatch=self._gear.host.dispatch,
        )

    def _make_lost(self, effect: Run, task: Task, ended: Ended, done: int) -> SegmentDone:
        """The sandbox ended by the job's own doing before the segment could report: it is a segment all the same
        (R9).
        """
        digest, now = compute_digest(task.inputs), self._gear.clock.now()
        return SegmentDone(effect.first + done, ended.cause, digest, b"", ended.detail, ended.usage, now)

    def _end_run(self, attempt: int, ended: Ended, last: SegmentRan | None = None) -> RunEnded:
        self.folder.keep_log()
        self.log.info("ended", cause=ended.cause.value, detail=ended.detail)
        return RunEnded(
            attempt=attempt,
            cause=ended.cause,
            detail=ended.detail[:1_000],
            level=ended.level,
            blas=self._gear.host.blas,
            log=self.folder.put(bytes(self.folder.log)),
            finished=self._gear.clock.now(),
            last=last,
        )

    def _make_task(self, effect: Run) -> Task:
        announcement = self.opened.announcement
        spec, order = announcement.spec, announcement.order.body
        papers = self.machine.papers
        state = spec.inputs
        if spec.kind is Kind.TRAIN and papers is not None and papers.records:
            state = papers.records[-1].body.output
        code, inputs = self.folder.get(spec.code), self.folder.get(state)
        if code is None or inputs is None:
            raise Unavailable("code or inputs are no longer on disk", rule="workspace.missing")
        resources = spec.resources
        limits = Limits(
            memory_bytes=resources.memory_bytes,
            cpu_ms=resources.cpu_ms,
            wall_ms=order.segment_wall,
            processes=resources.processes,
            open_files=resources.open_files,
            output_bytes=resources.output_bytes,
            output_count=resources.output_count,
            log_bytes=resources.log_bytes,
            tmp_bytes=resources.tmp_bytes,
            shm_bytes=resources.shm_bytes,
            millicores=resources.millicores,
        )
        return Task(
            kind=spec.kind,
            order_id=self.order_id,
            first=effect.first,
            count=effect.count,
            code=code,
            entry=spec.entry,
            inputs=inputs,
            limits=limits,
            seed=spec.seed,
        )

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
                state = LeaseState(view.state)
                if not state.is_live or (state is LeaseState.DELIVERED and effect.task is not LeaseTask.SETTLE):
                    return read_state(state)
            return TransactionRefused(effect.task, refusal.rule)


def read_state(state: LeaseState) -> LeaseMoved | LeaseEnded:
    """The event that tells a machine of its lease's state."""
    return LeaseMoved(state) if state.is_live else LeaseEnded(state)


async def fetch_blob(gear: Gear, lease: bytes, digest: bytes, size: int) -> None:
    """Bring one blob into a lease's folder, waiting for a broker that is away or has not granted it yet. Raises
    `Refused` or `Fault` where waiting can't help.
    """
    folder, backoff = gear.workspace.open_folder(lease), Backoff()
    async with folder.get_lock(digest):
        while folder.get(digest) is None:
            try:
                folder.put(await gear.broker.get_blob(digest, size))
            except Unavailable:
                await backoff.wait()
            except Refused as error:
                if error.rule == "blob.size":
                    raise
                await backoff.wait()
