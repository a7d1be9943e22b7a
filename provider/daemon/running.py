"""One run of a lease's segments in the sandbox: what it leaves goes to the disk, what it was goes to the machine.

Outputs are in the workspace before an event names them. Each event is synced to the disk, which takes longer than a
small segment: so the first one after a pause is told at once, and those that follow closely are told together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import assert_never

import msgspec

from broker.protocol.jobs import compute_log_limit
from chain.base.errors import Fault, TallyError, Unavailable
from chain.ledger.terms.outcome import Cause, Usage
from chain.runtime.logs import get_logger, show_job
from provider.daemon.folder import LeaseFolder
from provider.daemon.inputs import lay_out, name_inputs
from provider.daemon.links import Gear
from provider.daemon.progress import TICK_MS, Reporter
from provider.sandbox.spec import Ended, Limits, LogChunk, SandboxEvent, SegmentDone, Started, Task
from provider.work.events import MAX_BATCH, LeaseOpened, Run, RunEnded, SegmentRan, SegmentsRan

Post = Callable[[SegmentsRan], None]
"""Tells the lease's machine."""


GATHER_SECONDS = 0.05
"""Least time between two events, but for full ones."""


class Gathering:
    """Segments of one run on their way to the machine: `blank` is the event without any."""

    def __init__(self, blank: SegmentsRan, post: Post) -> None:
        self._blank = blank
        self._post = post
        self._segments: list[SegmentRan] = []
        self._told_at = -GATHER_SECONDS
        self._timer: asyncio.TimerHandle | None = None

    def add(self, segments: Sequence[SegmentRan], *, hold: bool = False) -> None:
        """Tell them soon; what is to `hold` waits for `take`: one event is stored sooner than two."""
        self._segments += segments
        while len(self._segments) > MAX_BATCH:
            self._tell()
        if hold:
            self._stop_timer()
        elif self._segments and self._timer is None:
            loop = asyncio.get_running_loop()
            due = self._told_at + GATHER_SECONDS
            if loop.time() >= due:
                self._tell()
            else:
                self._timer = loop.call_at(due, self._tell)

    def take(self) -> tuple[SegmentRan, ...]:
        """Those that were not told, for the run's own end; at most `MAX_BATCH`."""
        self._stop_timer()
        taken, self._segments = tuple(self._segments), []
        return taken

    def close(self) -> None:
        """Tell nothing more."""
        self.take()

    def _tell(self) -> None:
        self._stop_timer()
        self._told_at = asyncio.get_running_loop().time()
        told, self._segments = self._segments[:MAX_BATCH], self._segments[MAX_BATCH:]
        self._post(msgspec.structs.replace(self._blank, segments=tuple(told)))

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Running:
    """Carries out `Run` for one lease."""

    def __init__(self, gear: Gear, opened: LeaseOpened, folder: LeaseFolder, reporter: Reporter, post: Post) -> None:
        self._gear = gear
        self._opened = opened
        self._folder = folder
        self._reporter = reporter
        self._post = post
        self._log = get_logger("work").bind(job=show_job(opened.bid.body.order), lease=opened.lease.hex()[:16])

    async def run(self, effect: Run, state: bytes) -> RunEnded:
        """Run the segments; `state` is the digest of what the first of them begins with (`train`)."""
        folder, now = self._folder, self._gear.clock.now()
        limit = compute_log_limit(self._opened.announcement.spec, self._opened.count)
        folder.begin_log(fresh=effect.first == self._opened.first and effect.count > 0, limit=limit)
        folder.clear_spool()
        self._reporter.begin(folder.log_size, max(0, now - self._opened.opened) // TICK_MS)
        if effect.count == 0:
            return self._end(effect.attempt, Ended(Cause.OK, Usage(), "", self._level))
        slot = await self._gear.slots.get()
        try:
            return await self._run_task(effect, await self._make_task(effect, state), slot)
        except (TallyError, OSError) as error:
            self._log.error("the sandbox failed", error=str(error))
            return self._end(effect.attempt, Ended(Cause.HOST, Usage(), str(error), self._level))
        finally:
            self._gear.slots.put_nowait(slot)

    @property
    def _level(self) -> str:
        return self._gear.host.level.value

    async def _run_task(self, effect: Run, task: Task, slot: int) -> RunEnded:
        gathering = Gathering(SegmentsRan(effect.attempt, self._level, self._gear.host.blas, ()), self._post)
        done = 0
        try:
            async with aclosing(self._gear.executor.batches(task, slot, self._folder.spool)) as batches:
                async for events in batches:
                    new, ended = self._take(events)
                    done += len(new)
                    is_last = done == task.count or (bool(new) and new[-1].cause is not Cause.OK)
                    gathering.add(new, hold=is_last)
                    if ended is not None:
                        return self._end(effect.attempt, ended, gathering.take())
                    if isinstance(events[0], Started):
                        self._log.info("runs", slot=slot, segments=task.count)
        finally:
            gathering.close()
        raise Fault("the sandbox ended without a word", rule="sandbox.silent")

    def _take(self, events: Sequence[SandboxEvent]) -> tuple[list[SegmentRan], Ended | None]:
        """What came at once: outputs, tracebacks and log by one write each, the segments, the end."""
        finished: list[SegmentDone] = []
        ended = None
        for event in events:
            match event:
                case Started():
                    pass
                case LogChunk():
                    self._reporter.add_log(self._folder.add_log(event.data))
                case SegmentDone():
                    finished.append(event)
                case Ended():
                    ended = event
                case _:
                    assert_never(event)
        ran = self._keep(finished)
        self._folder.keep_log()
        return ran, ended

    def _keep(self, finished: Sequence[SegmentDone]) -> list[SegmentRan]:
        errors = [done.error.encode(errors="replace") for done in finished]
        outputs = [done.output if done.cause is Cause.OK else b"" for done in finished]
        digests = self._folder.put_many([*errors, *outputs]) if finished else []
        ran = []
        for done, error, output in zip(finished, digests, digests[len(finished) :], strict=False):
            if done.spooled is not None:
                self._folder.adopt(done.spooled, done.output_digest)
                output = done.output_digest
            ran.append(
                SegmentRan(
                    index=done.index,
                    input=done.input_digest,
                    output=output,
                    error=error,
                    cause=done.cause,
                    usage=done.usage,
                    started=done.started_ms,
                    dispatch=self._gear.host.dispatch,
                )
            )
        return ran

    def _end(self, attempt: int, ended: Ended, last: tuple[SegmentRan, ...] = ()) -> RunEnded:
        self._log.info("ended", cause=ended.cause.value, detail=ended.detail)
        return RunEnded(
            attempt=attempt,
            cause=ended.cause,
            detail=ended.detail[:1_000],
            level=ended.level or self._level,
            blas=self._gear.host.blas,
            log=self._folder.close_log(),
            finished=self._gear.clock.now(),
            last=last,
        )

    async def _make_task(self, effect: Run, state: bytes) -> Task:
        announcement = self._opened.announcement
        spec, order = announcement.spec, announcement.order.body
        digest, _ = name_inputs(announcement, state)
        inputs = await lay_out(self._folder, digest)
        code = await asyncio.to_thread(self._folder.get, spec.code)
        if code is None:
            raise Unavailable("code or inputs are no longer on disk", rule="workspace.missing")
        resources = spec.resources
        limits = Limits(
            memory_bytes=resources.memory_bytes,
            cpu_ms=resources.cpu_ms,
            wall_ms=order.segment_wall,
            processes=resources.processes,
            open_files=resources.open_files,
            output_bytes=resources.output_bytes,
            output_count=max(resources.output_count, effect.count),
            log_bytes=resources.log_bytes,
            tmp_bytes=resources.tmp_bytes,
            shm_bytes=resources.shm_bytes,
            millicores=resources.millicores,
        )
        return Task(
            kind=spec.kind,
            order_id=self._opened.bid.body.order,
            first=effect.first,
            count=effect.count,
            code=code,
            entry=spec.entry,
            function=spec.function,
            inputs=inputs,
            limits=limits,
            seed=spec.seed,
        )
