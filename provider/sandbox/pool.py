"""Sandboxes that stand ahead of their tasks: Python has started and loaded what such a task loads, and waits.

Each is for one task and never used again. The pool stands up what the last tasks would have needed, in their number and
mix, so that it follows what is asked of it; a task that none fits stands up its own. Kernel users are the pool's own
while a sandbox of it stands or works, so that no two share one (threats.md A20). Not here: how many are affordable (the
shell says), and what a task makes of one (`flight.py`).
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter, deque
from typing import Final

import msgspec

from chain.runtime.logs import get_logger
from provider.sandbox.cgroups import CgroupTree
from provider.sandbox.plan import Plan
from provider.sandbox.standing import Standing

__all__ = ["LEAST_MEMORY", "Pool"]

LEAST_MEMORY: Final = 128 << 20
"""Bytes of memory that a task at least asks for, if it is to get one: what stands has used some already, with NumPy
some 40 MB, and a group's limit can't be set below what it uses.
"""
_REST_S: Final = 0.1
"""How long what was asked for has to itself before the next is stood up."""
_TRIES: Final = 3
"""Failures in a row behind which no more are stood up: the host has become unable to, and tasks will say why."""


class Pool:
    """At most `size` that stand. `first_uid` is the first of the kernel users that are the pool's, None where the
    daemon is not root; `mould` is what stands before the first task has come.
    """

    def __init__(self, size: int, mould: Plan, tree: CgroupTree | None, first_uid: int | None, users: int) -> None:
        self.size = min(size, users)
        self._tree = tree
        self._first_uid = first_uid
        self._users = set(range(users))
        self._standing: list[tuple[Standing, int]] = []
        self._asked: deque[Plan] = deque([mould] * self.size, maxlen=self.size)
        self._names = itertools.count()
        self._filling: asyncio.Task[None] | None = None
        self._failures = 0
        self._closed = False
        self._log = get_logger("pool")

    def __len__(self) -> int:
        return len(self._standing)

    def take(self, plan: Plan) -> tuple[Standing, int] | None:
        """A sandbox for a task with this plan, and the number of its user, which `give_back` frees; None where none
        fits. What is asked for is what is stood up next.
        """
        if not self.size or _get_memory(plan) < LEAST_MEMORY:
            return None
        mould = plan.compute_mould()
        self._asked.append(mould)
        for place, (standing, _) in enumerate(self._standing):
            if standing.plan.compute_mould() == mould and not standing.gone.is_set():
                taken = self._standing.pop(place)
                self.fill()
                return taken
        self.fill()
        return None

    def give_back(self, user: int) -> None:
        """A sandbox that was taken has left."""
        self._users.add(user)
        self.fill()

    def fill(self) -> None:
        """Begin to stand up what is missing, one after the other."""
        idle = self._filling is None or self._filling.done()
        if self.size and idle and not self._closed and self._failures < _TRIES:
            self._filling = asyncio.get_running_loop().create_task(self._fill(), name="sandbox pool")

    async def settle(self) -> None:
        """Wait until nothing is missing, or no more can be stood up."""
        while self._filling is not None and not self._filling.done():
            await asyncio.wait([self._filling])

    async def close(self) -> None:
        """End all that stand."""
        self._closed = True
        if self._filling is not None:
            self._filling.cancel()
            await asyncio.wait([self._filling])
        while self._standing:
            await self._drop(*self._standing.pop())

    # ---- filling ----

    async def _fill(self) -> None:
        await asyncio.sleep(_REST_S)
        while self._failures < _TRIES:
            await self._drop_useless()
            mould = self._find_missing()
            if mould is None or not self._users or len(self._standing) >= self.size:
                return
            await self._add(mould, self._users.pop())

    async def _drop_useless(self) -> None:
        """What has died, and what nobody would have needed lately while something else is missing."""
        wanted = Counter(self._asked)
        for one in list(self._standing):
            mould = one[0].plan.compute_mould()
            wanted[mould] -= 1
            if one in self._standing and (one[0].gone.is_set() or wanted[mould] < 0):
                self._standing.remove(one)
                await self._drop(*one)

    def _find_missing(self) -> Plan | None:
        missing = Counter(self._asked)
        missing.subtract(Counter(standing.plan.compute_mould() for standing, _ in self._standing))
        return next((mould for mould in self._asked if missing[mould] > 0), None)

    async def _add(self, mould: Plan, user: int) -> None:
        uid = None if self._first_uid is None else self._first_uid + user
        standing = Standing(msgspec.structs.replace(mould, uid=uid), self._tree, f"warm-{next(self._names)}")
        try:
            await standing.stand_up()
            await standing.until_ready()
        except (OSError, TimeoutError, ValueError) as error:
            self._failures += 1
            self._log.warning("a sandbox could not be stood up ahead", error=str(error))
            await self._drop(standing, user)
        except asyncio.CancelledError:
            await self._drop(standing, user)
            raise
        else:
            self._failures = 0
            self._standing.append((standing, user))

    async def _drop(self, standing: Standing, user: int) -> None:
        await standing.discard()
        self._users.add(user)


def _get_memory(plan: Plan) -> int:
    limit = plan.cgroup.memory_bytes if plan.cgroup is not None else plan.caps.polled_bytes
    return LEAST_MEMORY if limit is None else limit
