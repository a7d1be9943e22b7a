"""One job in its sandbox, from launch to the last trace gone.

Events go into a queue as they happen. What ends a job is decided by the first limit it passes, or else by how it ended
(`verdict.py`). Not here: the plan (`plan.py`), the reading of frames (`frames.py`), the sums (`account.py`).
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import time
from typing import Final

from chain.ledger.terms.outcome import Cause
from provider.sandbox.account import Account
from provider.sandbox.cgroups import Cgroup, CgroupTree, Reading
from provider.sandbox.frames import Begun, Closed, Finished, FrameParser, Parsed, StreamBroken, TooMuchOutput
from provider.sandbox.inside import wire
from provider.sandbox.launch import Launched, launch
from provider.sandbox.meter import CgroupMeter, Meter, TreeMeter
from provider.sandbox.plan import Plan
from provider.sandbox.spec import MAX_ERROR_BYTES, Ended, LogChunk, SandboxEvent, Started, Task
from provider.sandbox.streams import read_available, write_available
from provider.sandbox.verdict import Evidence, judge

__all__ = ["Flight"]

_TICK_S: Final = 0.02
"""How often usage is looked at: a job passes its CPU limit by at most this much per core."""
_SETUP_S: Final = 10.0
"""Bubblewrap takes 10 ms to set up; a host that needs this long is not going to."""
_GONE_S: Final = 30.0
"""A killed process leaves within milliseconds; giving back a full memory may take seconds."""
_PAUSE_S: Final = 0.001
_CPU_SLACK_US: Final = 50_000
"""Without a cgroup CPU time is told in ticks of 10 ms, and a look is up to one tick of ours old."""
_MAX_INFO: Final = 4096


class Flight:
    """Carries out one plan for one task. `events` ends with `Ended`; `stop` ends it early."""

    def __init__(self, plan: Plan, task: Task, tree: CgroupTree | None, name: str) -> None:
        self.events: asyncio.Queue[SandboxEvent] = asyncio.Queue()
        self._plan, self._task, self._tree, self._name = plan, task, tree, name
        self._loop = asyncio.get_running_loop()
        self._launched: Launched | None = None
        self._group: Cgroup | None = None
        self._meter: Meter | None = None
        self._info = b""
        self._init = -1
        self._verdict: tuple[Cause, str] | None = None
        self._next = task.first
        self._end_index = task.first + task.count
        self._failed = False
        self._closed: Closed | None = None
        self._gone = asyncio.Event()
        self._parser = FrameParser(
            task.first, task.count, output_bytes=plan.caps.output_bytes, error_bytes=MAX_ERROR_BYTES
        )
        self._account = Account(task)
        self._timers: dict[str, asyncio.TimerHandle] = {}

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
                self.events.put_nowait(self._make_ended())

    def stop(self, why: str) -> None:
        """Ends the job, if it has not ended by itself."""
        self._end(Cause.HOST, why)

    # ---- set-up ----

    async def _set_up(self) -> None:
        plan = self._plan
        if plan.cgroup is not None and self._tree is not None:
            self._group = self._tree.create(self._name, plan.cgroup)
        self._launched = launched = launch(plan)
        self._loop.add_reader(launched.pidfd, self._gone.set)
        pid = await self._read_info(launched)
        if self._group is not None:
            # Takes the kernel milliseconds in which Python starts; the job's code comes later, with the task.
            await asyncio.to_thread(self._group.add, pid)
        self._meter = CgroupMeter(self._group) if self._group is not None else TreeMeter(pid)
        instant = time.time_ns() // 1_000_000
        self._account.begin(self._loop.time() * 1000, instant)
        self.events.put_nowait(Started(instant))
        if self._verdict is None:
            self._watch(launched)
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

    def _watch(self, launched: Launched) -> None:
        ends = launched.ends
        task = self._task
        header: dict[str, object] = {
            "kind": task.kind.value,
            "entry": task.entry.value,
            "order_id": task.order_id,
            "first": task.first,
            "count": task.count,
            "seed": task.seed,
            "rlimits": [[one.name, one.soft, one.hard] for one in self._plan.rlimits],
        }
        self._unsent = memoryview(wire.encode_task(header, task.code, task.inputs))
        self._loop.add_writer(ends["task"], self._on_task)
        self._loop.add_reader(ends["frames"], self._on_frames)
        self._loop.add_reader(ends["out"], self._on_log, "out")
        self._loop.add_reader(ends["err"], self._on_log, "err")
        self._arm_wall()
        self._tick()

    # ---- while it runs ----

    def _arm_wall(self) -> None:
        limit = self._plan.caps.wall_ms
        if "wall" in self._timers:
            self._timers["wall"].cancel()
        if limit is not None:
            why = f"wall time of {limit} ms used up"
            self._timers["wall"] = self._loop.call_later(limit / 1000, self._end, Cause.WALL, why)

    def _tick(self) -> None:
        self._timers["tick"] = self._loop.call_later(_TICK_S, self._tick)
        self._look()

    def _look(self) -> None:
        """Reads the meter and holds it against the limits."""
        if self._meter is None or self._verdict is not None:
            return
        self._account.reading = reading = self._meter.read()
        caps = self._plan.caps
        if reading.oom_kills:
            self._end(Cause.OOM, f"out of memory; peak {reading.peak_bytes} bytes")
        elif caps.polled_bytes is not None and reading.peak_bytes > caps.polled_bytes:
            self._end(Cause.OOM, f"out of memory; peak {reading.peak_bytes} bytes of {caps.polled_bytes}")
        elif caps.cpu_ms is not None and self._account.get_segment_cpu_us() >= caps.cpu_ms * 1000:
            self._end(Cause.CPU, f"CPU time of {caps.cpu_ms} ms used up")

    def _on_task(self) -> None:
        launched = self._launched
        if launched is None:
            return
        self._unsent, closed = write_available(launched.ends["task"], self._unsent)
        if closed or not self._unsent:
            self._loop.remove_writer(launched.ends["task"])
            launched.close("task")

    def _on_log(self, stream: str) -> bool:
        """Takes what was logged; whether there was something."""
        launched = self._launched
        if launched is None or stream not in launched.ends:
            return False
        data, closed = read_available(launched.ends[stream])
        if closed:
            self._loop.remove_reader(launched.ends[stream])
            launched.close(stream)
        cap = self._plan.caps.log_bytes
        if cap is not None and self._account.log_bytes + len(data) > cap:
            data = data[: max(0, cap - self._account.log_bytes)]
            self._end(Cause.LOG, f"more than {cap} bytes of log")
        self._account.count_log(len(data))
        if data:
            self.events.put_nowait(LogChunk(stream, data))
        return bool(data)

    def _on_frames(self) -> bool:
        """Takes what the harness says; whether there was something."""
        launched = self._launched
        if launched is None or "frames" not in launched.ends:
            return False
        data, closed = read_available(launched.ends["frames"])
        if closed:
            self._loop.remove_reader(launched.ends["frames"])
            launched.close("frames")
        if self._verdict is not None:
            return bool(data)
        try:
            for parsed in self._parser.feed(data):
                self._take(parsed)
        except TooMuchOutput as error:
            self._end(Cause.OUTPUT, error.message)
        except StreamBroken as error:
            self._end(Cause.OUTPUT, f"the job meddled with the result stream: {error.message}")
        return bool(data)

    def _take(self, parsed: Parsed) -> None:
        if self._verdict is not None or isinstance(parsed, Begun):
            return
        if isinstance(parsed, Closed):
            self._closed = parsed
            return
        for stream in ("out", "err"):  # what was written before the end of the segment belongs before it
            while self._on_log(stream) and self._verdict is None:
                pass
        self._look()
        if self._verdict is None:
            self._finish_segment(parsed)

    def _finish_segment(self, done: Finished) -> None:
        cap = self._plan.caps.output_count
        cause, detail = judge(done.outcome, done.number, self._get_evidence())
        if cap is not None and done.index - self._task.first >= cap:
            cause, detail = Cause.OUTPUT, f"more than {cap} outputs"
        self._report(done.index, cause, detail, done.output, done.error)
        self._failed = cause != Cause.OK
        if self._failed or self._next == self._end_index:
            self._end(cause, detail)  # nothing a job does after its last segment is of use to anybody
        else:
            self._arm_wall()

    def _report(self, index: int, cause: Cause, detail: str, output: bytes = b"", error: bytes = b"") -> None:
        self._next = index + 1
        text = error.decode("utf-8", "replace") or detail
        self.events.put_nowait(self._account.close_segment(index, cause, output, text, self._loop.time() * 1000))

    def _get_evidence(self) -> Evidence:
        reading = self._account.reading
        limit = self._plan.caps.cpu_ms
        spent = limit is not None and self._account.get_segment_cpu_us() >= limit * 1000 - _CPU_SLACK_US
        return Evidence(reading.oom_kills, reading.peak_bytes, spent, self._group is not None)

    # ---- the end ----

    def _end(self, cause: Cause, detail: str) -> None:
        """The first reason counts. Kills the job, if it stands."""
        if self._verdict is None:
            self._verdict = (cause, detail)
        self._kill()

    def _kill(self) -> None:
        if self._init >= 0:
            _signal(self._init)

    async def _tear_down(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        launched = self._launched
        if launched is not None:
            await self._await_gone(launched)
        await self._clear_group()
        if launched is not None:
            self._drain(launched)
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
            while not select.select([self._init], [], [], 0)[0] and self._loop.time() < deadline:
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

    def _drain(self, launched: Launched) -> None:
        """Takes what is left in the pipes, then closes them: whoever still holds the other end is none of ours."""
        for name in ("task", "frames", "out", "err"):
            if name in launched.ends:
                self._loop.remove_reader(launched.ends[name])
                self._loop.remove_writer(launched.ends[name])
        while self._on_frames():
            pass
        for stream in ("out", "err"):
            while self._on_log(stream):
                pass

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
        if cause not in (Cause.OK, Cause.HOST) and not self._failed:
            self._report(self._next, cause, detail)

    def _judge_end(self) -> tuple[Cause, str]:
        evidence = self._get_evidence()
        if self._closed is not None and self._closed.outcome != wire.OK:
            return judge(self._closed.outcome, self._closed.number, evidence)
        code = self._launched.process.returncode if self._launched is not None else 0
        if self._closed is not None:
            return judge(wire.EXITED, 0, evidence)
        if evidence.oom_kills or code > 128:  # bubblewrap tells process 1's signal as 128 + its number
            return judge(wire.SIGNALED, code - 128, evidence)
        if code == 0:  # process 1 leaves so only when it has said its last word: the job saw to it that nobody heard it
            return Cause.OUTPUT, "the job meddled with the result stream"
        return Cause.HOST, f"the harness ended with exit status {code} and said nothing"

    def _make_ended(self) -> Ended:
        cause, detail = self._verdict or (Cause.HOST, "")
        return Ended(cause, self._account.get_total(self._loop.time() * 1000), detail, self._plan.level)


def _signal(pidfd: int) -> None:
    """Kills by descriptor: it can't name another process by now. Popen.kill would reap, and lose the figures."""
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        pass
