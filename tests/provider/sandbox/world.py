"""The world around a sandboxed job, for tests: who runs it, a canary outside, a listener, a secret file, and what is
left afterwards.

A job runs as root with a cgroup, as root without one, and as an ordinary user (a forked child that gives up its
rights).
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import os
import pickle
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import cloudpickle
import msgspec
import pytest

from broker.protocol import folders, values
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

FIRST_UID = 65_528 - 8 * (os.getpid() % 64 + 1)
"""Users of this run alone, so that two runs at once leave each other's processes alone: those of slots and of what
stands ahead, then the ordinary user's.
"""
ORDINARY_UID = FIRST_UID + 7
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


@functools.cache
def get_folder() -> Path:
    """A folder of this run that every user can enter: inputs lie there, and long outputs."""
    folder = Path(tempfile.mkdtemp(prefix="tallystick-test-", dir="/tmp"))
    folder.chmod(0o777)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def write_inputs(parts: Iterable[bytes | memoryview]) -> Path:
    """A file of inputs."""
    handle, path = tempfile.mkstemp(prefix="inputs-", dir=get_folder())
    with os.fdopen(handle, "wb") as file:
        file.writelines(parts)
    os.chmod(path, 0o644)
    return Path(path)


def make_task(body: Callable[..., object] | str, *args: object, limits: Limits = LIMITS, **kwargs: object) -> Task:
    """A run of a function or of a script's source."""
    script = isinstance(body, str)
    code = body.encode() if isinstance(body, str) else cloudpickle.dumps(body)
    entry = Entry.SCRIPT if script else Entry.FUNCTION
    inputs = write_inputs(values.pack_parts((args, kwargs)))
    return Task(Kind.RUN, b"o" * 32, 0, 1, code, entry, "", inputs, limits, seed=7)


def make_series(
    kind: Kind, body: Callable[..., object] | str, inputs: Any, first: int, count: int, function: str = ""
) -> Task:
    """A map or train task of a function, or of what a script defines as `function`."""
    limits = msgspec.structs.replace(LIMITS, cpu_ms=20_000)
    items = [values.pack_parts(one) for one in inputs] if kind == Kind.MAP else []
    packed = values.pack_list(items) if kind == Kind.MAP else values.pack_parts(inputs)
    code = body.encode() if isinstance(body, str) else cloudpickle.dumps(body)
    entry = Entry.SCRIPT if isinstance(body, str) else Entry.FUNCTION
    return Task(kind, b"o" * 32, first, count, code, entry, function, write_inputs(packed), limits, seed=7)


def make_folder(files: dict[str, bytes], *args: object, limits: Limits = LIMITS, **kwargs: object) -> Task:
    """A run of a folder."""
    task = make_task("", *args, limits=limits, **kwargs)
    return msgspec.structs.replace(task, entry=Entry.FOLDER, code=folders.pack_folder(files))


def read_output(done: SegmentDone) -> Any:
    """The value of a segment, wherever it lies."""
    return values.unpack(done.output if done.spooled is None else done.spooled.read_bytes())


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
        return read_output(self.segments[0])

    @property
    def values(self) -> list[Any]:
        return [read_output(one) for one in self.segments if one.cause == Cause.OK]

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

    def run(self, task: Task, change: Callable[[Plan], Plan] = lambda plan: plan, spool: Path | None = None) -> Outcome:
        """Carries out the task's plan, changed or not."""
        plan, folder = change(self.plan(task)), spool or get_folder()

        async def collect() -> list[SandboxEvent]:
            stay = carry_out(plan, task, self.abilities, f"test-{time.monotonic_ns()}", folder)
            return [event async for events in stay for event in events]

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
