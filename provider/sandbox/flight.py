"""One job in its sandbox, from launch to the last trace gone.

What ends a job is decided by the first limit it passes, or else by how it ended (`verdict.py`). Not here: the plan
(`plan.py`), and what is heard of the job while it runs (`hearing.py`).
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

from chain.ledger.terms.outcome import Cause
from provider.sandbox.cgroups import Cgroup, CgroupTree, Reading
from provider.sandbox.hearing import Hearing
from provider.sandbox.inputs import Inputs
from provider.sandbox.inside import wire
from provider.sandbox.launch import Launched, launch
from provider.sandbox.meter import CgroupMeter, Meter, TreeMeter
from provider.sandbox.plan import Plan
from provider.sandbox.spec import Ended, SandboxEvent, SegmentDone, Started, Task
from provider.sandbox.spool import Spool
from provider.sandbox.streams import read_available, write_available
from provider.sandbox.verdict import judge

__all__ = ["Flight", "discard"]

_SETUP_S: Final = 10.0
"""Bubblewrap takes 10 ms to set up; a host that needs this long is not going to."""
_GONE_S: Final = 30.0
"""A killed process leaves within milliseconds; giving back a full memory may take seconds."""
_PAUSE_S: Final = 0.001
_MAX_INFO: Final = 4096


class Flight:
    """Carries out one plan for one task. `collect` gives its events, `Ended` last; `stop` ends it early. `spool` is the
    folder for long outputs.
    """

    def __init__(self, plan: Plan, task: Task, inputs: Inputs, spool: Path, tree: CgroupTree | None, name: str) -> None:
        self._plan, self._task, self._inputs, self._tree, self._name = plan, task, inputs, tree, name
        self._loop = asyncio.get_running_loop()
        self._events: list[SandboxEvent] = []
        self._heard = asyncio.Event()
        self._launched: Launched | None = None
        self._group: Cgroup | None = None
        self._meter: Meter | None = None
        self._info = b""
        self._init = -1
        self._verdict: tuple[Cause, str] | None = None
        self._gone = asyncio.Event()
        self._hearing = Hearing(task, plan.caps, inputs, Spool(spool, name), self._say, self._end)
        self._account = self._hearing.account

    async def collect(self) -> list[SandboxEvent]:
        """All events since the last call, at least one."""
        await self._heard.wait()
        self._heard.clear()
        events = [await self._complete(one) if isinstance(one, SegmentDone) else one for one in self._events[:]]
        del self._events[: len(events)]
        if self._events:
            self._heard.set()
        return events

    async def _complete(self, done: SegmentDone) -> SegmentDone:
        if done.input_digest:
            return done
        return msgspec.structs.replace(done, input_digest=await self._inputs.hash(done.index))

    def discard(self) -> None:
        """Removes the outputs of segments that were not collected."""
        discard(self._events)

    async def fly(self) -> None:
        """Runs the job to its end. Nothing of it is left when this returns, also when it is cancelled."""
        try:
            await self._set_up()
            await self._gone.wait()
        except (OSError, TimeoutError, ValueError) as error:
            self._verdict = self._verdict or (Cause.HOST, f"the sandbox could not be set up: {error}")
        except asyncio.CancelledError:
            self.stop("the provider is shutting down")
            raise
        finally:
            try:
                await self._tear_down()
            finally:
                self._hearing.discard()
                self._say(self._make_ended())

    def stop(self, why: str) -> None:
        """Ends the job, if it has not ended by itself."""
        self._end(Cause.HOST, why)

    # ---- set-up ----

    async def _set_up(self) -> None:
        plan = self._plan
        if plan.cgroup is not None and self._tree is not None:
            self._group = self._tree.create(self._name, plan.cgroup)
        self._launched = launched = launch(plan, self._inputs.file)
        self._loop.add_reader(launched.pidfd, self._gone.set)
        pid = await self._read_info(launched)
        if self._group is not None:
            # Takes the kernel milliseconds in which Python starts; the job's code comes later, with the task.
            await asyncio.to_thread(self._group.add, pid)
        self._meter = CgroupMeter(self._group) if self._group is not None else TreeMeter(pid)
        instant = time.time_ns() // 1_000_000
        self._say(Started(instant))
        self._inputs.begin_hashing()
        if self._verdict is None:
            self._hand_over(launched)
            self._hearing.begin(launched, self._meter, instant)
        else:
            self._kill()

    async def _read_info(self, launched: Launched) -> int:
        """Waits for the whole of bubblewrap's word on process 1 and takes hold of it: killing before that leaves
        processes behind (trap 5).
        """
        deadline = self._loop.time() + _SETUP_S
        while b"}" not in self._info:
            data, closed = read_available(launched.ends["info"], _MAX_INFO)
            self._info += data
            if closed or len(self._info) > _MAX_INFO:
                raise OSError("bubblewrap ended before the sandbox stood")
            if not data:
                await self._until_readable(launched.ends["info"], deadline)
        pid = int(json.loads(self._info)["child-pid"])
        self._init = os.pidfd_open(pid)
        return pid

    async def _until_readable(self, descriptor: int, deadline: float) -> None:
        """Waits for data or the other end's closing; TimeoutError at the deadline."""
        readable = asyncio.Event()
        self._loop.add_reader(descriptor, readable.set)
        try:
            async with asyncio.timeout_at(deadline):
                await readable.wait()
        finally:
            self._loop.remove_reader(descriptor)

    def _hand_over(self, launched: Launched) -> None:
        task = self._task
        header: dict[str, object] = {
            "kind": task.kind.value,
            "entry": task.entry.value,
            "function": task.function,
            "order_id": task.order_id,
            "first": task.first,
            "count": task.count,
            "seed": task.seed,
            "output_bytes": self._plan.caps.output_bytes,
            "rlimits": [[one.name, one.soft, one.hard] for one in self._plan.rlimits],
        }
        self._unsent = memoryview(wire.encode_task(header, task.code))
        self._loop.add_writer(launched.ends["task"], self._on_task)

    # ---- while it runs ----

    def _on_task(self) -> None:
        launched = self._launched
        if launched is None:
            return
        self._unsent, closed = write_available(launched.ends["task"], self._unsent)
        if closed or not self._unsent:
            self._loop.remove_writer(launched.ends["task"])
            launched.close("task")

    def _say(self, event: SandboxEvent) -> None:
        self._events.append(event)
        self._heard.set()

    # ---- the end ----

    def _end(self, cause: Cause, detail: str) -> None:
        """The first reason counts. Kills the job, if it stands."""
        if self._verdict is None:
            self._verdict = (cause, detail)
        self._hearing.stop()
        self._kill()

    def _kill(self) -> None:
        if self._init >= 0:
            _signal(self._init)

    async def _tear_down(self) -> None:
        launched = self._launched
        if launched is not None:
            await self._await_gone(launched)
        await self._clear_group()
        if launched is not None:
            if "task" in launched.ends:
                self._loop.remove_writer(launched.ends["task"])
            await self._hearing.finish(launched)
            self._reap(launched)
        self._settle()
        if self._group is not None:
            await self._remove_group(self._group)

    async def _await_gone(self, launched: Launched) -> None:
        """Kills process 1 and waits until bubblewrap and it have left."""
        if self._init < 0 and not self._gone.is_set():
            try:
                await self._read_info(launched)
            except (OSError, TimeoutError, ValueError):
                _signal(launched.pidfd)  # it never told of a process 1: nothing of the job has run
        if not self._gone.is_set():
            self._kill()
        try:
            await asyncio.wait_for(self._gone.wait(), _GONE_S)
        except TimeoutError:
            self._verdict = (Cause.HOST, "the job could not be killed")
            _signal(launched.pidfd)
            await self._gone.wait()
        self._loop.remove_reader(launched.pidfd)
        if self._init >= 0:
            deadline = self._loop.time() + _GONE_S
            left = select.poll()  # select.select can't tell of descriptors from 1,024 on
            left.register(self._init, select.POLLIN)
            while not left.poll(0) and self._loop.time() < deadline:
                self._kill()
                await asyncio.sleep(_PAUSE_S)
            os.close(self._init)
            self._init = -1

    async def _clear_group(self) -> None:
        deadline = self._loop.time() + _GONE_S
        while self._group is not None and self._group.kill() and self._loop.time() < deadline:
            await asyncio.sleep(_PAUSE_S)

    async def _remove_group(self, group: Cgroup) -> None:
        """The kernel may hold a group for a moment after its last process; what stays is swept at the next start."""
        for _ in range(100):
            if group.remove():
                return
            await asyncio.sleep(_PAUSE_S)

    def _reap(self, launched: Launched) -> None:
        """Collects bubblewrap's exit status and the kernel's figures."""
        _, status, rusage = os.wait4(launched.process.pid, 0)
        launched.process.returncode = os.waitstatus_to_exitcode(status)
        if self._meter is not None:
            final = self._meter.finish(rusage)
            seen = self._account.reading
            self._account.reading = Reading(
                max(final.cpu_us, seen.cpu_us),
                max(final.peak_bytes, seen.peak_bytes),
                max(final.oom_kills, seen.oom_kills),
            )
        launched.close()

    def _settle(self) -> None:
        """Finds the cause where no limit was passed, and reports the segment that did not come to its end."""
        if self._verdict is None:
            self._verdict = self._judge_end()
        cause, detail = self._verdict
        if cause not in (Cause.OK, Cause.HOST) and not self._hearing.failed:
            self._hearing.report(cause, detail)

    def _judge_end(self) -> tuple[Cause, str]:
        evidence, closed = self._hearing.get_evidence(), self._hearing.closed
        if closed is not None and closed.outcome != wire.OK:
            return judge(closed.outcome, closed.number, evidence)
        code = self._launched.process.returncode if self._launched is not None else 0
        if closed is not None:
            return judge(wire.EXITED, 0, evidence)
        if evidence.oom_kills or code > 128:  # bubblewrap tells process 1's signal as 128 + its number
            return judge(wire.SIGNALED, code - 128, evidence)
        if code == 0:  # process 1 leaves so only when it has said its last word: the job saw to it that nobody heard it
            return Cause.OUTPUT, "the job meddled with the result stream"
        return Cause.HOST, f"the harness ended with exit status {code} and said nothing"

    def _make_ended(self) -> Ended:
        cause, detail = self._verdict or (Cause.HOST, "")
        return Ended(cause, self._account.get_total(self._loop.time() * 1000), detail, self._plan.level)


def discard(events: Iterable[SandboxEvent]) -> None:
    """Removes the long outputs of segments that nobody takes."""
    for event in events:
        if isinstance(event, SegmentDone) and event.spooled is not None:
            event.spooled.unlink(missing_ok=True)


def _signal(pidfd: int) -> None:
    """Kills by descriptor: it can't name another process by now. Popen.kill would reap, and lose the figures."""
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        pass
