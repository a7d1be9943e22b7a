"""One job in its sandbox, from launch to the last trace gone.

What ends a job is decided by the first limit it passes, or else by how it ended (`verdict.py`). Not here: the plan
(`plan.py`), the sandbox that stands before its task is there (`standing.py`), and what is heard of the job while it
runs (`hearing.py`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

import msgspec

from chain.ledger.terms.outcome import Cause
from provider.sandbox.cgroups import Reading
from provider.sandbox.hearing import Hearing
from provider.sandbox.inputs import Inputs
from provider.sandbox.inside import wire
from provider.sandbox.launch import Launched
from provider.sandbox.plan import Plan
from provider.sandbox.spec import Ended, SandboxEvent, SegmentDone, Started, Task
from provider.sandbox.spool import Spool
from provider.sandbox.standing import Standing
from provider.sandbox.streams import write_available
from provider.sandbox.verdict import judge

__all__ = ["Flight", "discard"]


class Flight:
    """Carries out one plan for one task, in a sandbox that stands already or that is stood up for it. `collect` gives
    its events, `Ended` last; `stop` ends it early. `spool` is the folder for long outputs.
    """

    def __init__(self, plan: Plan, task: Task, inputs: Inputs, spool: Spool, standing: Standing, *, warm: bool) -> None:
        self._plan, self._task, self._inputs, self._standing, self._warm = plan, task, inputs, standing, warm
        self._loop = asyncio.get_running_loop()
        self._events: list[SandboxEvent] = []
        self._heard = asyncio.Event()
        self._verdict: tuple[Cause, str] | None = None
        self._code = 0
        self._hearing = Hearing(task, plan.caps, inputs, spool, self._say, self._end)
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
            await self._standing.gone.wait()
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
        plan, standing = self._plan, self._standing
        if not self._warm:
            await standing.stand_up()
        elif standing.group is not None and plan.cgroup is not None:
            standing.group.limit(plan.cgroup)
        launched, meter = standing.launched, standing.meter
        assert launched is not None
        assert meter is not None
        instant = time.time_ns() // 1_000_000
        self._say(Started(instant))
        self._inputs.begin_hashing()
        if self._verdict is None:
            self._hand_over(launched)
            self._hearing.begin(launched, meter, instant)
        else:
            standing.kill()

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
        launched.pass_file(self._inputs.file)
        self._unsent = memoryview(wire.encode_task(header, task.code))
        self._loop.add_writer(launched.ends["task"], self._on_task)

    # ---- while it runs ----

    def _on_task(self) -> None:
        launched = self._standing.launched
        if launched is None:
            return
        self._unsent, closed = write_available(launched.ends["task"], self._unsent)
        if closed or not self._unsent:
            # It stays open: the runner may have yet to say that it is ready.
            self._loop.remove_writer(launched.ends["task"])

    def _say(self, event: SandboxEvent) -> None:
        self._events.append(event)
        self._heard.set()

    # ---- the end ----

    def _end(self, cause: Cause, detail: str) -> None:
        """The first reason counts. Kills the job, if it stands."""
        if self._verdict is None:
            self._verdict = (cause, detail)
        self._hearing.stop()
        self._standing.kill()

    async def _tear_down(self) -> None:
        standing = self._standing
        if not await standing.end():
            self._verdict = (Cause.HOST, "the job could not be killed")
        launched = standing.launched
        if launched is not None:
            if "task" in launched.ends:
                self._loop.remove_writer(launched.ends["task"])
            await self._hearing.finish(launched)
        self._code = await standing.clear()
        self._take_figures(standing.final)
        self._settle()

    def _take_figures(self, final: Reading | None) -> None:
        """What the kernel tells at the end; figures never fall."""
        seen = self._account.reading
        if final is not None:
            self._account.reading = Reading(
                max(final.cpu_us, seen.cpu_us),
                max(final.peak_bytes, seen.peak_bytes),
                max(final.oom_kills, seen.oom_kills),
            )

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
        code = self._code
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
