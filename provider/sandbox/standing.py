"""A sandbox that stands and waits for its task: bubblewrap and process 1, in their cgroup, held by descriptors.

No code of a job is in it yet. It is given one task (`flight.py`) or none (`pool.py`), and ends for good either way. Not
here: the plan (`plan.py`), and what is done with a task.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
from typing import Final

from provider.sandbox.cgroups import Cgroup, CgroupTree, Reading
from provider.sandbox.launch import Launched, launch
from provider.sandbox.meter import CgroupMeter, Meter, TreeMeter
from provider.sandbox.plan import Plan
from provider.sandbox.streams import read_available

__all__ = ["Standing"]

_SETUP_S: Final = 10.0
"""Bubblewrap takes 10 ms to set up; a host that needs this long is not going to."""
_GONE_S: Final = 30.0
"""A killed process leaves within milliseconds; giving back a full memory may take seconds."""
_PAUSE_S: Final = 0.001
_MAX_INFO: Final = 4096


class Standing:
    """One sandbox from launch to the last trace gone. `gone` is set once bubblewrap has left, whoever ended it."""

    def __init__(self, plan: Plan, tree: CgroupTree | None, name: str) -> None:
        self.plan = plan
        self.gone = asyncio.Event()
        self.launched: Launched | None = None
        self.group: Cgroup | None = None
        self.meter: Meter | None = None
        self.final: Reading | None = None
        """The kernel's figures, once it has left."""
        self._tree, self._name = tree, name
        self._loop = asyncio.get_running_loop()
        self._info = b""
        self._init = -1

    async def stand_up(self) -> None:
        """Starts it; process 1 then loads what the plan says and waits. Raises OSError, TimeoutError or ValueError
        where it can't be set up; also then, and where this is cancelled, `end` and `clear` take away what there is.
        """
        plan = self.plan
        if plan.cgroup is not None and self._tree is not None:
            self.group = self._tree.create(self._name, plan.cgroup)
        self.launched = launch(plan)
        self._loop.add_reader(self.launched.pidfd, self.gone.set)
        pid = await self._read_info(self.launched)
        if self.group is not None:
            # Takes the kernel milliseconds in which Python starts; the job's code comes later, with the task.
            await asyncio.to_thread(self.group.add, pid)
        self.meter = CgroupMeter(self.group) if self.group is not None else TreeMeter(pid)

    async def until_ready(self) -> None:
        """Waits until its runner has loaded what the plan says. Raises OSError or TimeoutError where it does not."""
        assert self.launched is not None
        task = self.launched.ends["task"]
        await self._until_readable(task, self._loop.time() + _SETUP_S)
        if not read_available(task, 1)[0]:
            raise OSError("the runner ended before it was ready")

    def kill(self) -> None:
        """Kills process 1, and so all that is below it, if it is known by now."""
        if self._init >= 0:
            _signal(self._init)

    async def end(self) -> bool:
        """Kills process 1 and waits until bubblewrap, it and all in the group have left. False where it could not be
        killed in time, and bubblewrap was.
        """
        killed = True
        if self.launched is not None:
            killed = await self._await_gone(self.launched)
        deadline = self._loop.time() + _GONE_S
        while self.group is not None and self.group.kill() and self._loop.time() < deadline:
            await asyncio.sleep(_PAUSE_S)
        return killed

    async def clear(self) -> int:
        """Behind `end`: collects bubblewrap's exit status, which is returned, and the kernel's figures; closes what is
        open; removes the group.
        """
        code = 0
        if self.launched is not None:
            code = self._reap(self.launched)
        for _ in range(100):  # the kernel may hold a group for a moment; what stays is swept at the next start
            if self.group is None or self.group.remove():
                break
            await asyncio.sleep(_PAUSE_S)
        return code

    async def discard(self) -> None:
        """Ends it for good."""
        await self.end()
        await self.clear()

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

    async def _await_gone(self, launched: Launched) -> bool:
        if self._init < 0 and not self.gone.is_set():
            try:
                await self._read_info(launched)
            except (OSError, TimeoutError, ValueError):
                _signal(launched.pidfd)  # it never told of a process 1: nothing of the job has run
        killed = True
        if not self.gone.is_set():
            self.kill()
        try:
            await asyncio.wait_for(self.gone.wait(), _GONE_S)
        except TimeoutError:
            killed = False
            _signal(launched.pidfd)
            await self.gone.wait()
        self._loop.remove_reader(launched.pidfd)
        if self._init >= 0:
            deadline = self._loop.time() + _GONE_S
            left = select.poll()  # select.select can't tell of descriptors from 1,024 on
            left.register(self._init, select.POLLIN)
            while not left.poll(0) and self._loop.time() < deadline:
                self.kill()
                await asyncio.sleep(_PAUSE_S)
            os.close(self._init)
            self._init = -1
        return killed

    def _reap(self, launched: Launched) -> int:
        _, status, rusage = os.wait4(launched.process.pid, 0)
        launched.process.returncode = os.waitstatus_to_exitcode(status)
        if self.meter is not None:
            self.final = self.meter.finish(rusage)
        launched.close()
        return launched.process.returncode


def _signal(pidfd: int) -> None:
    """Kills by descriptor: it can't name another process by now. Popen.kill would reap, and lose the figures."""
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        pass
