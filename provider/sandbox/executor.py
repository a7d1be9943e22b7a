"""The door of the sandbox: runs a task on a slot and tells what happens.

There is no way past the plan: every job runs under what `build_plan` returns for this host. Closing the iterator, or
cancelling whoever reads it, ends the job, and returns only when nothing of it is left.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator

from broker.protocol import values
from broker.protocol.jobs import Entry
from chain.base.errors import Refused, Unavailable
from chain.ledger.terms.agreement import Kind
from provider.sandbox.abilities import HostAbilities
from provider.sandbox.cgroups import sweep
from provider.sandbox.flight import Flight
from provider.sandbox.plan import Plan, build_plan
from provider.sandbox.runtimes import RuntimeImage
from provider.sandbox.spec import MAX_SEGMENTS, Ended, SandboxEvent, Task

__all__ = ["Sandbox", "carry_out", "check_task"]


class Sandbox:
    """Runs hostile tasks, one per slot at a time."""

    def __init__(self, image: RuntimeImage, host: HostAbilities, *, slots: int) -> None:
        if host.level is None:
            raise Unavailable(f"this host can't sandbox: {'; '.join(host.reasons)}", rule="sandbox.level")
        self._image = image
        self._host = host
        self._free = set(range(slots))
        self._slots = slots
        self._names = itertools.count()
        if host.cgroup is not None:
            sweep(host.cgroup)

    def plan(self, task: Task, slot: int) -> Plan:
        """What `run` would carry out. Raises `Refused` where the task is no task."""
        check_task(task)
        if not 0 <= slot < self._slots:
            raise Refused(f"slot {slot} of {self._slots}", rule="sandbox.slot")
        return build_plan(self._image, self._host, task, slot)

    async def run(self, task: Task, slot: int) -> AsyncGenerator[SandboxEvent, None]:
        """Events of the task's stay, `Ended` last. Raises `Refused` for a task that is none and for a slot in use
        (`sandbox.slot`).
        """
        plan = self.plan(task, slot)
        if slot not in self._free:
            raise Refused(f"slot {slot} is in use", rule="sandbox.slot")
        self._free.discard(slot)
        try:
            events = carry_out(plan, task, self._host, f"slot-{slot}-{next(self._names)}")
            try:
                async for event in events:
                    yield event
            finally:
                await events.aclose()
        finally:
            self._free.add(slot)

    def close(self) -> None:
        """Removes what the daemon itself made. Call it when no task runs."""
        if self._host.cgroup is not None:
            self._host.cgroup.remove_family()


def check_task(task: Task) -> None:
    """Raises `Refused` where a task can't be run at all."""
    if not 0 < task.count <= MAX_SEGMENTS or not 0 <= task.first < 2**32 - task.count:
        raise Refused(f"segments {task.first} + {task.count} are out of range", rule="sandbox.range")
    if task.kind == Kind.RUN and (task.first, task.count) != (0, 1):
        raise Refused("a run is one segment", rule="sandbox.range")
    if task.entry == Entry.SCRIPT and task.kind != Kind.RUN:
        raise Refused(f"a script is a run; a {task.kind} needs a function", rule="sandbox.entry")
    if task.kind == Kind.MAP:
        try:
            held = len(values.split(task.inputs))
        except values.BadValue as error:
            raise Refused(f"the inputs of a map are a packed list: {error}", rule="sandbox.inputs") from error
        if held < task.first + task.count:
            raise Refused(f"segment {task.first + task.count - 1} of {held} items", rule="sandbox.inputs")


async def carry_out(plan: Plan, task: Task, host: HostAbilities, name: str) -> AsyncGenerator[SandboxEvent, None]:
    """Carries out a plan. `Sandbox.run` is the production path to it; tests give it plans with one guard less."""
    flight = Flight(plan, task, host.cgroup, name)
    flying = asyncio.create_task(flight.fly(), name=f"sandbox {name}")
    try:
        while True:
            event = await flight.events.get()
            yield event
            if isinstance(event, Ended):
                break
    finally:
        await _settle(flight, flying)


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
