"""Keeps a handful of processes alive: starts them, waits until each is ready, restarts what dies and says so, ends
all of them in reverse order.

A part is ready when it has written its ready file (its address). Each part runs in a session of its own, so that
Ctrl-C reaches the supervisor alone, and is killed by the kernel if the supervisor
itself is (Linux).
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from chain.base.errors import Unavailable
from chain.runtime.processes import end_process

READY_SECONDS = 60.0
"""How long a part may take until it is ready; the first provider builds its runtime in that time."""

STOP_SECONDS = 10.0
"""How long a part may take to shut down before it is killed."""

MOST_RESTARTS = 5
"""A part that dies more often than this is given up."""

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


@dataclass(frozen=True)
class Part:
    """A process to keep alive. `command` is given the address of its last life (None at first), so that a restart
    listens where it listened before.
    """

    name: str
    command: Callable[[str | None], Sequence[str]]
    ready: Path
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)


class Running:
    """A started part: its process and address."""

    def __init__(self, part: Part) -> None:
        self.part = part
        self.address: str | None = None
        self.process: asyncio.subprocess.Process | None = None
        self.restarts = 0

    @property
    def pid(self) -> int:
        """Process id of the present life."""
        return self.process.pid if self.process is not None else 0


class Supervisor:
    """Owns the running parts. `say` is told about deaths and restarts, a line each."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.running: dict[str, Running] = {}
        self.restarts: list[str] = []
        self._say = say
        self._watchers: set[asyncio.Task[None]] = set()
        self._stopping = False

    async def start(self, part: Part) -> str:
        """Start `part` and return its address. Raises `Unavailable` (`demo.part`) with the end of its log where it
        does not become ready.
        """
        running = Running(part)
        self.running[part.name] = running
        await self._launch(running)
        watcher = asyncio.get_running_loop().create_task(self._watch(running))
        self._watchers.add(watcher)
        watcher.add_done_callback(self._watchers.discard)
        return running.address or ""

    async def stop(self) -> None:
        """End all parts, the last started first."""
        self._stopping = True
        for watcher in list(self._watchers):
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        for running in reversed(self.running.values()):
            if running.process is not None:
                await end_process(running.process, STOP_SECONDS)

    async def _launch(self, running: Running) -> None:
        part = running.part
        part.ready.unlink(missing_ok=True)
        with part.log.open("ab") as log:
            running.process = await asyncio.create_subprocess_exec(
                *part.command(running.address),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **part.environment},
                start_new_session=True,
                preexec_fn=die_with_parent,  # one prctl, and no thread of ours holds a lock it needs
            )
        try:
            async with asyncio.timeout(READY_SECONDS):
                while not (address := _read_address(part)):
                    if running.process.returncode is not None:
                        raise _not_ready(part, f"ended with exit code {running.process.returncode}")
                    await asyncio.sleep(0.01)
        except TimeoutError as error:
            raise _not_ready(part, f"was not ready after {READY_SECONDS:.0f} s") from error
        running.address = address

    async def _watch(self, running: Running) -> None:
        while running.process is not None:
            code = await running.process.wait()
            if self._stopping:
                return
            running.restarts += 1
            line = f"{running.part.name} died ({show_exit(code)})"
            if running.restarts > MOST_RESTARTS:
                self._say(f"{line}; given up after {MOST_RESTARTS} restarts")
                return
            try:
                await self._launch(running)
            except Unavailable as error:
                self._say(f"{line}; {error.message}")
                continue
            self.restarts.append(running.part.name)
            self._say(f"{line}; restarted")


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies (Linux; elsewhere nothing)."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def show_exit(code: int) -> str:
    """`exit 3` or the name of the signal."""
    return signal.Signals(-code).name if code < 0 else f"exit {code}"


def _read_address(part: Part) -> str:
    """What the ready file says; empty while it is not there or not written yet."""
    return part.ready.read_text(encoding="utf-8").strip() if part.ready.exists() else ""


def _not_ready(part: Part, what: str) -> Unavailable:
    tail = part.log.read_text(encoding="utf-8", errors="replace")[-1500:].strip() if part.log.exists() else ""
    return Unavailable(f"{part.name} {what}; its log ends:\n{tail}", rule="demo.part")
