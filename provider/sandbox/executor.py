"""The door of the sandbox: runs a task on a slot and tells what happens.

There is no way past the plan: every job runs under what `build_plan` returns for this host. Closing the iterator, or
cancelling whoever reads it, ends the job, and returns only when nothing of it is left.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

import msgspec

from broker.protocol import folders
from broker.protocol.jobs import Entry
from broker.protocol.refusals import BadValue
from chain.base.errors import Refused, Unavailable
from chain.ledger.terms.agreement import Kind
from provider.sandbox.abilities import HostAbilities
from provider.sandbox.cgroups import sweep
from provider.sandbox.flight import Flight, discard
from provider.sandbox.inputs import Inputs
from provider.sandbox.inside.program import MAIN
from provider.sandbox.plan import Plan, build_plan
from provider.sandbox.pool import Pool
from provider.sandbox.runtimes import RuntimeImage
from provider.sandbox.spec import MAX_SEGMENTS, Ended, SandboxEvent, Task, make_usual_task
from provider.sandbox.spool import Spool
from provider.sandbox.standing import Standing
from provider.sandbox.users import BLOCK

__all__ = ["Sandbox", "carry_out", "check_task"]


class Sandbox:
    """Runs hostile tasks, one per slot at a time. Up to `warm` sandboxes stand ahead of their tasks, once `warm_up` was
    called.
    """

    def __init__(self, image: RuntimeImage, host: HostAbilities, *, slots: int, warm: int = 0) -> None:
        if host.level is None:
            raise Unavailable(f"this host can't sandbox: {'; '.join(host.reasons)}", rule="sandbox.level")
        self._image = image
        self._host = host
        self._free = set(range(slots))
        self._slots = slots
        self._names = itertools.count()
        if host.cgroup is not None:
            sweep(host.cgroup)
        users = max(0, min(slots + warm, BLOCK - slots)) if warm else 0
        first_uid = None if host.uid_base is None else host.uid_base + slots
        mould = build_plan(image, host, make_usual_task(), 0).compute_mould()
        self.pool = Pool(warm, mould, host.cgroup, first_uid, users)

    def plan(self, task: Task, slot: int) -> Plan:
        """What `run` would carry out. Raises `Refused` where the task is no task."""
        check_task(task)
        if not 0 <= slot < self._slots:
            raise Refused(f"slot {slot} of {self._slots}", rule="sandbox.slot")
        return build_plan(self._image, self._host, task, slot)

    async def run(self, task: Task, slot: int, spool: Path) -> AsyncGenerator[SandboxEvent, None]:
        """Events of the task's stay, `Ended` last. Outputs too long for memory go into files below `spool`.

        Raises `Refused` for a task that is none and for a slot in use (`sandbox.slot`).
        """
        async with aclosing(self.batches(task, slot, spool)) as batches:
            async for events in batches:
                untaken = iter(events)
                try:
                    for event in untaken:
                        yield event
                finally:
                    discard(untaken)

    async def batches(self, task: Task, slot: int, spool: Path) -> AsyncGenerator[list[SandboxEvent], None]:
        """The same events in lists, never empty, of all that are there at once: small segments end by the thousand."""
        plan = self.plan(task, slot)
        if slot not in self._free:
            raise Refused(f"slot {slot} is in use", rule="sandbox.slot")
        self._free.discard(slot)
        standing, user = self.pool.take(plan) or (None, -1)
        try:
            name = f"slot-{slot}-{next(self._names)}"
            if standing is not None:
                plan = msgspec.structs.replace(plan, uid=standing.plan.uid)
            async with aclosing(carry_out(plan, task, self._host, name, spool, standing)) as batches:
                async for events in batches:
                    yield events
        finally:
            self._free.add(slot)
            if standing is not None:
                self.pool.give_back(user)

    def warm_up(self) -> None:
        """Begin to stand up sandboxes ahead."""
        self.pool.fill()

    async def close(self) -> None:
        """Ends what stands ahead and removes what the daemon itself made. Call it when no task runs."""
        await self.pool.close()
        if self._host.cgroup is not None:
            self._host.cgroup.remove_family()


def check_task(task: Task) -> None:
    """Raises `Refused` where a task can't be run at all. Its inputs are looked at when it runs."""
    if not 0 < task.count <= MAX_SEGMENTS or not 0 <= task.first < 2**32 - task.count:
        raise Refused(f"segments {task.first} + {task.count} are out of range", rule="sandbox.range")
    if task.kind == Kind.RUN and (task.first, task.count) != (0, 1):
        raise Refused("a run is one segment", rule="sandbox.range")
    if task.entry != Entry.FUNCTION and task.kind != Kind.RUN and not task.function:
        raise Refused(f"a {task.kind} of a {task.entry} names no function", rule="sandbox.entry")
    if task.entry == Entry.FOLDER:
        try:
            files = folders.unpack_folder(task.code)
        except BadValue as error:
            raise Refused(f"the code is no folder: {error}", rule="sandbox.folder") from error
        if MAIN not in files:
            raise Refused(f"the folder has no {MAIN}, which is the script that is run", rule="sandbox.folder")


async def carry_out(
    plan: Plan, task: Task, host: HostAbilities, name: str, spool: Path, standing: Standing | None = None
) -> AsyncGenerator[list[SandboxEvent], None]:
    """Carries out a plan, in a sandbox that stands already if one is given; that is then used up. `Sandbox.batches` is
    the production path to it; tests give it plans with one guard less.
    """
    try:
        inputs = Inputs(task)
    except BaseException:
        if standing is not None:
            await standing.discard()
        raise
    used = standing or Standing(plan, host.cgroup, name)
    flight = Flight(plan, task, inputs, Spool(spool, name), used, warm=standing is not None)
    flying = asyncio.create_task(flight.fly(), name=f"sandbox {name}")
    ended = False
    try:
        while not ended:
            events = await flight.collect()
            ended = isinstance(events[-1], Ended)
            yield events
    finally:
        try:
            await _settle(flight, flying)
        finally:
            flight.discard()
            await inputs.close()


async def _settle(flight: Flight, flying: asyncio.Task[None]) -> None:
    """Waits until nothing is left, however often the waiting itself is cancelled."""
    cancelled = False
    if not flying.done():
        flight.stop("the provider ended it")
    while not flying.done():
        try:
            await asyncio.wait([flying])
        except asyncio.CancelledError:
            cancelled = True
    if not flying.cancelled() and (error := flying.exception()) is not None:
        raise error
    if cancelled:
        raise asyncio.CancelledError
