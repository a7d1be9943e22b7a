"""The world around a sandboxed job, for tests: who runs it, a canary outside, a listener, a secret file, and what is
left afterwards.

A job runs as root with a cgroup, as root without one, and as an ordinary user (a forked child that gives up its
rights).
"""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import cloudpickle
import msgspec
import pytest

from broker.protocol import values
from broker.protocol.jobs import Entry
from chain.ledger.terms.agreement import Kind
from chain.ledger.terms.outcome import Cause, Usage
from provider.sandbox.abilities import HostAbilities
from provider.sandbox.executor import carry_out
from provider.sandbox.plan import Plan, build_plan
from provider.sandbox.probe import probe
from provider.sandbox.runtimes import RuntimeImage
from provider.sandbox.spec import Ended, Limits, LogChunk, SandboxEvent, SegmentDone, Task
from tests.provider.sandbox import bodies

cloudpickle.register_pickle_by_value(bodies)

T = TypeVar("T")

FIRST_UID = 65_000 - 4 * (os.getpid() % 64 + 1)
"""Users of this run alone, so that two runs at once leave each other's processes alone: two slots, then the ordinary
user's.
"""
ORDINARY_UID = FIRST_UID + 2
MIB = 1 << 20

LIMITS = Limits(
    memory_bytes=128 * MIB,
    cpu_ms=10_000,
    wall_ms=20_000,
    processes=16,
    open_files=64,
    output_bytes=4 * MIB,
    output_count=64,
    log_bytes=1 << 16,
    tmp_bytes=8 * MIB,
    shm_bytes=2 * MIB,
)

WHO = ("root+cgroup", "root", "user")


def make_task(body: Callable[..., object] | str, *args: object, limits: Limits = LIMITS, **kwargs: object) -> Task:
    """A run of a function or of a script's source."""
    script = isinstance(body, str)
    code = body.encode() if isinstance(body, str) else cloudpickle.dumps(body)
    entry = Entry.SCRIPT if script else Entry.FUNCTION
    return Task(Kind.RUN, b"o" * 32, 0, 1, code, entry, values.pack((args, kwargs)), limits, seed=7)


def make_series(kind: Kind, body: Callable[..., object], inputs: object, first: int, count: int) -> Task:
    """A map or train task."""
    limits = msgspec.structs.replace(LIMITS, cpu_ms=20_000)
    return Task(
        kind, b"o" * 32, first, count, cloudpickle.dumps(body), Entry.FUNCTION, values.pack(inputs), limits, seed=7
    )


@dataclass
class Outcome:
    """What a stay reported."""

    events: list[SandboxEvent] = field(default_factory=list)

    @property
    def ended(self) -> Ended:
        last = self.events[-1]
        assert isinstance(last, Ended)
        assert sum(isinstance(event, Ended) for event in self.events) == 1
        return last

    @property
    def cause(self) -> Cause:
        return self.ended.cause

    @property
    def usage(self) -> Usage:
        return self.ended.usage

    @property
    def segments(self) -> list[SegmentDone]:
        return [event for event in self.events if isinstance(event, SegmentDone)]

    @property
    def value(self) -> Any:
        """The value of the only segment; an AssertionError that shows the events where there is none."""
        assert self.segments and self.segments[0].cause == Cause.OK, self.events
        return values.unpack(self.segments[0].output)

    @property
    def values(self) -> list[Any]:
        return [values.unpack(one.output) for one in self.segments if one.cause == Cause.OK]

    def log(self, stream: str = "out") -> bytes:
        return b"".join(event.data for event in self.events if isinstance(event, LogChunk) and event.stream == stream)


@dataclass(frozen=True)
class Host:
    """One way to run jobs."""

    who: str
    image: RuntimeImage
    abilities: HostAbilities

    @property
    def uid(self) -> int:
        """Kernel user of the jobs of slot 0."""
        if self.who == "user":
            return ORDINARY_UID if os.geteuid() == 0 else os.geteuid()
        return FIRST_UID

    def plan(self, task: Task) -> Plan:
        return build_plan(self.image, self.abilities, task, 0)

    def run(self, task: Task, change: Callable[[Plan], Plan] = lambda plan: plan) -> Outcome:
        """Carries out the task's plan, changed or not."""
        plan = change(self.plan(task))

        async def collect() -> list[SandboxEvent]:
            return [event async for event in carry_out(plan, task, self.abilities, f"test-{time.monotonic_ns()}")]

        return Outcome(self.do(collect))

    def do(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Runs a coroutine as whoever runs the jobs."""
        if self.who == "user" and os.geteuid() == 0:
            return run_as(ORDINARY_UID, lambda: asyncio.run(work()))
        return asyncio.run(work())


def run_as(uid: int, work: Callable[[], T]) -> T:
    """Does some work in a child that has become another user for good, and gives its result or raises its error."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            answer = pickle.dumps((True, work()))
        except BaseException as error:  # noqa: BLE001  # the parent raises it
            answer = pickle.dumps((False, f"{type(error).__name__}: {error}"))
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(answer)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        received = pipe.read()
    os.waitpid(pid, 0)
    well, result = pickle.loads(received)
    if not well:
        raise AssertionError(result)
    return result  # type: ignore[no-any-return]  # pickle knows no types


def find_host(who: str, image: RuntimeImage) -> Host:
    """The host for a way of running jobs; skips by name what this machine can't give."""
    if who != "user" and os.geteuid() != 0:
        pytest.skip("kernel: only root can give each slot a user of its own")
    cgroups = who == "root+cgroup"
    seeker = Host(who, image, HostAbilities(None, "", ""))
    abilities = seeker.do(lambda: probe(image, first_uid=FIRST_UID, cgroups=cgroups))
    if abilities.level is None or (cgroups and abilities.cgroup is None):
        pytest.skip(f"kernel: {'; '.join(abilities.reasons)}")
    return Host(who, image, abilities)


@contextmanager
def canary(uid: int) -> Iterator[int]:
    """A process of the job's own user, outside the sandbox: it must outlive the job."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        if os.geteuid() == 0:
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
        signal.alarm(60)
        os.write(writer, b"!")
        while True:
            signal.pause()
    os.read(reader, 1)
    os.close(reader)
    os.close(writer)
    try:
        yield pid
    finally:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        os.waitpid(pid, 0)


def is_alive(pid: int) -> bool:
    """Whether a process runs: it is no zombie, and no SIGKILL waits for it."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return False
    fields = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    doomed = any(int(fields[name], 16) >> (signal.SIGKILL - 1) & 1 for name in ("SigPnd", "ShdPnd"))
    return fields["State"][0] not in "ZX" and not doomed


def list_processes(uid: int) -> set[int]:
    """Living processes of a kernel user."""
    found = set()
    for path in Path("/proc").iterdir():
        try:
            if path.name.isdigit() and path.stat().st_uid == uid and is_alive(int(path.name)):
                found.add(int(path.name))
        except OSError:
            continue
    return found


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    """Whether a condition comes true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
