"""Starting and ending: slots, cancelling at any moment, a daemon that is killed, hosts that can't, and nothing left
behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import signal
import time
from pathlib import Path

import msgspec
import pytest

from broker.protocol import folders, values
from broker.protocol.jobs import Entry
from chain.base.errors import Refused, Unavailable
from chain.ledger.terms.agreement import Kind
from chain.ledger.terms.outcome import Cause
from provider.sandbox.abilities import HostAbilities
from provider.sandbox.cgroups import get_family, sweep
from provider.sandbox.executor import Sandbox, carry_out, check_task
from provider.sandbox.inputs import Inputs
from provider.sandbox.plan import build_plan
from provider.sandbox.spec import Ended, LogChunk, SandboxEvent, Started, Task
from tests.provider.sandbox import bodies
from tests.provider.sandbox.world import (
    Host,
    Outcome,
    get_folder,
    list_processes,
    make_series,
    make_task,
    wait_until,
    write_inputs,
)


def count_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def list_groups(host: Host) -> list[Path]:
    tree = host.abilities.cgroup
    if tree is None:
        return []
    return [path for _, folder in tree.folders for path in (Path(folder) / tree.family).glob("*/")]


async def collect(sandbox: Sandbox, task: Task, slot: int) -> Outcome:
    return Outcome([event async for event in sandbox.run(task, slot, get_folder())])


async def test_two_slots_at_once(best: Host) -> None:
    sandbox = Sandbox(best.image, best.abilities, slots=2)
    task = make_task("import os, time\ntime.sleep(0.3)\nresult = os.getpid()")
    first, second = await asyncio.gather(collect(sandbox, task, 0), collect(sandbox, task, 1))
    assert first.cause == second.cause == Cause.OK
    if best.abilities.uid_base is not None:
        assert sandbox.plan(task, 1).uid == best.abilities.uid_base + 1


async def test_a_slot_holds_one_job(best: Host) -> None:
    sandbox = Sandbox(best.image, best.abilities, slots=1)
    running = sandbox.run(make_task(bodies.sleep_long), 0, get_folder())
    assert isinstance(await anext(running), Started)
    with pytest.raises(Refused, match="slot 0 is in use"):
        await collect(sandbox, make_task("result = 1"), 0)
    with pytest.raises(Refused, match="slot 1 of 1"):
        await collect(sandbox, make_task("result = 1"), 1)
    await running.aclose()
    assert (await collect(sandbox, make_task("result = 1"), 0)).cause == Cause.OK


def test_closing_the_iterator_leaves_nothing(host: Host) -> None:
    async def run_and_close() -> tuple[int, int]:
        before = count_descriptors()
        stay = carry_out(host.plan(task), task, host.abilities, "closing", get_folder())
        async for events in stay:
            if any(isinstance(event, LogChunk) for event in events):
                break
        await stay.aclose()
        return before, count_descriptors()

    task = make_task(bodies.sleep_loud)
    living = list_processes(host.uid)
    before, after = host.do(run_and_close)
    assert after <= before + 3, "what the loop itself opens at first use"
    assert list_processes(host.uid) - living == set()
    assert list_groups(host) == []


@pytest.mark.parametrize("round_", range(8))
def test_cancelling_at_any_moment_leaves_nothing(round_: int, best: Host, seed: int) -> None:
    async def run_and_cancel() -> None:
        async def consume() -> None:
            async for _ in carry_out(best.plan(task), task, best.abilities, f"cancelled-{round_}", get_folder()):
                pass

        running = asyncio.create_task(consume())
        await asyncio.sleep(delay)
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running

    task = make_task(bodies.sleep_loud)
    delay = random.Random(seed).random() * (0.01 if round_ % 2 else 0.15)
    living = list_processes(best.uid)
    best.do(run_and_cancel)
    assert list_processes(best.uid) - living == set()
    assert list_groups(best) == []


def test_a_loop_that_is_shut_down_leaves_nothing(best: Host) -> None:
    """`asyncio.run` cancels every task at its end, the sandbox's own among them."""

    async def abandon() -> None:
        stay = carry_out(best.plan(task), task, best.abilities, "abandoned", get_folder())
        assert isinstance((await anext(stay))[0], Started)

    task = make_task(bodies.sleep_loud)
    living = list_processes(best.uid)
    best.do(abandon)
    assert list_processes(best.uid) - living == set()
    assert list_groups(best) == []


def be_daemon(host: Host, ready: int) -> None:
    """The body of a forked daemon that runs a job of another slot, so that only its own processes are counted."""
    tree = host.abilities.cgroup
    if tree is not None:
        tree = msgspec.structs.replace(tree, family=get_family(os.getpid()))
    if host.who == "user" and os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(*[host.uid + 1] * 3)
        os.setresuid(*[host.uid + 1] * 3)
    abilities = msgspec.structs.replace(host.abilities, cgroup=tree)
    task = make_task(bodies.sleep_loud)

    async def run() -> None:
        plan = build_plan(host.image, abilities, task, 1)
        async for events in carry_out(plan, task, abilities, "orphan", get_folder()):
            if any(isinstance(event, LogChunk) for event in events):
                os.write(ready, b"!")

    asyncio.run(run())


def test_a_killed_daemon_leaves_no_process(host: Host) -> None:
    reader, writer = os.pipe()
    daemon = os.fork()
    if daemon == 0:
        try:
            be_daemon(host, writer)
        finally:
            os._exit(1)
    os.close(writer)
    assert os.read(reader, 1) == b"!", "the daemon ended early"
    os.close(reader)
    family = get_family(daemon)
    uid = host.uid + 1
    assert len(list_processes(uid)) >= 10
    os.kill(daemon, signal.SIGKILL)
    os.waitpid(daemon, 0)
    assert wait_until(lambda: not list_processes(uid))
    if host.abilities.cgroup is not None:
        folders = [Path(folder) / family for _, folder in host.abilities.cgroup.folders]
        assert all(folder.is_dir() for folder in folders), "groups outlive a killed daemon"
        sweep(host.abilities.cgroup)
        assert not any(folder.exists() for folder in folders), "and are swept at the next start"


def test_a_host_that_cant_sandbox_takes_no_job(best: Host) -> None:
    cant = HostAbilities(None, "x86_64", "", reasons=("bubblewrap is missing",))
    with pytest.raises(Unavailable, match="can't sandbox: bubblewrap is missing"):
        Sandbox(best.image, cant, slots=1)


def test_what_fails_before_the_job_is_the_hosts_fault(best: Host) -> None:
    task = make_task("result = 1")
    for broken in ({"bwrap": "/nowhere/bwrap"}, {"command": ("/py/bin/nothing",)}, {"bwrap": "/bin/false"}):
        outcome = best.run(task, lambda plan: msgspec.structs.replace(plan, **broken))  # noqa: B023  # called at once
        assert outcome.cause == Cause.HOST, (broken, outcome.events)
        assert outcome.segments == []
        assert outcome.ended.detail
    assert list_groups(best) == []


def test_a_silent_bubblewrap_is_given_up(best: Host, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    silent = tmp_path / "bwrap"
    silent.write_text("#!/bin/sh\nexec sleep 60\n")
    silent.chmod(0o755)
    monkeypatch.setattr("provider.sandbox.standing._SETUP_S", 0.2)
    plan = msgspec.structs.replace(best.plan(make_task("result = 1")), bwrap=str(silent), uid=None)
    outcome = best.run(make_task("result = 1"), lambda _: plan)
    assert outcome.cause == Cause.HOST


TASKS: dict[str, tuple[dict[str, object], str]] = {
    "no segments": ({"count": 0}, "sandbox.range"),
    "a run of two": ({"count": 2}, "sandbox.range"),
    "a run from the middle": ({"first": 1}, "sandbox.range"),
    "negative": ({"first": -1}, "sandbox.range"),
    "far too many": ({"kind": Kind.TRAIN, "count": 2**21}, "sandbox.range"),
    "a map of a script without a function": ({"kind": Kind.MAP}, "sandbox.entry"),
    "a folder that is none": ({"entry": Entry.FOLDER, "code": b"x"}, "sandbox.folder"),
    "a folder without its script": (
        {"entry": Entry.FOLDER, "code": folders.pack_folder({"job.py": b""})},
        "sandbox.folder",
    ),
    **{
        f"a folder with {name!r}": (
            {"entry": Entry.FOLDER, "code": values.pack({name: b"", "main.py": b""})},
            "sandbox.folder",
        )
        for name in ("../main.py", "/etc/passwd", "a/../../b", ".profile", "a//b", "a\nb", "MAIN.py")
    },
}


@pytest.mark.parametrize("name", TASKS)
def test_what_is_no_task_is_refused(name: str) -> None:
    changes, rule = TASKS[name]
    with pytest.raises(Refused) as caught:
        check_task(msgspec.structs.replace(make_task("result = 1"), **changes))
    assert caught.value.rule == rule


@pytest.mark.parametrize("held", [values.pack([1, 2]), b"".join(values.pack_list([values.pack(1)])), b""])
async def test_a_map_needs_its_items(held: bytes) -> None:
    task = make_series(Kind.MAP, bodies.double, [], 0, 2)
    with pytest.raises(Refused) as caught:
        Inputs(msgspec.structs.replace(task, inputs=write_inputs([held])))
    assert caught.value.rule == "sandbox.inputs"


async def test_inputs_that_are_not_there_are_refused(best: Host) -> None:
    sandbox = Sandbox(best.image, best.abilities, slots=1)
    task = msgspec.structs.replace(make_task("result = 1"), inputs=Path("/nowhere/inputs"))
    with pytest.raises(Refused) as caught:
        await collect(sandbox, task, 0)
    assert caught.value.rule == "sandbox.inputs"
    assert (await collect(sandbox, make_task("result = 1"), 0)).cause == Cause.OK, "the slot is free again"


@pytest.mark.check
@pytest.mark.timeout(600)
def test_two_hundred_jobs_leave_no_trace(best: Host) -> None:
    async def run_many() -> tuple[int, int]:
        sandbox = Sandbox(best.image, best.abilities, slots=2)
        await collect(sandbox, make_task("result = 1"), 0)
        gc.collect()  # what other tests left is not to be closed meanwhile
        before = count_descriptors()
        for _ in range(100):
            outcomes = await asyncio.gather(*(collect(sandbox, make_task("result = 1"), slot) for slot in (0, 1)))
            assert {one.cause for one in outcomes} == {Cause.OK}
        return before, count_descriptors()

    before, after = best.do(run_many)
    assert after == before
    assert list_groups(best) == []


@pytest.mark.check
@pytest.mark.timeout(600)
def test_stops_at_a_hundred_random_moments(best: Host, seed: int) -> None:
    """Killing too early leaves processes of bubblewrap that nobody can end (threats.md 1.3, trap 5)."""
    chance = random.Random(seed)

    async def run_and_stop() -> None:
        task = make_task(bodies.sleep_loud)

        async def consume() -> list[SandboxEvent]:
            name = f"stop-{time.monotonic_ns()}"
            stay = carry_out(best.plan(task), task, best.abilities, name, get_folder())
            return [event async for events in stay for event in events]

        running = asyncio.create_task(consume())
        await asyncio.sleep(chance.random() * 0.03)
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            events = await running
            assert isinstance(events[-1], Ended)

    living = list_processes(best.uid)
    for _ in range(100):
        best.do(run_and_stop)
    assert list_processes(best.uid) - living == set()
