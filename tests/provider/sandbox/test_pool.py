"""What stands ahead of its task: it fits or is not taken, is used once, follows what is asked for, leaves nothing."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from chain.base.errors import Refused
from chain.ledger.terms.outcome import Cause
from provider.sandbox import pool as pool_module
from provider.sandbox.executor import Sandbox
from provider.sandbox.plan import Plan
from provider.sandbox.pool import LEAST_MEMORY
from provider.sandbox.spec import Started, Task
from provider.sandbox.standing import Standing
from tests.provider.sandbox import bodies
from tests.provider.sandbox.test_lifecycle import collect, count_descriptors, list_groups
from tests.provider.sandbox.world import (
    LIMITS,
    MIB,
    Host,
    get_folder,
    is_alive,
    list_processes,
    make_task,
    wait_until,
)

ROOMY = msgspec.structs.replace(LIMITS, memory_bytes=LEAST_MEMORY, tmp_bytes=16 * MIB)


def ask(body: str = "result = 1", **limits: int) -> Task:
    return make_task(body, limits=msgspec.structs.replace(ROOMY, **limits))


def count_living(host: Host) -> int:
    """Processes of all users that slots and pool have here."""
    return sum(len(list_processes(uid)) for uid in range(host.uid, host.uid + 5))


class Watch:
    """Counts sandboxes as they are stood up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.plans: list[Plan] = []
        stand_up = Standing.stand_up

        async def watched(standing: Standing) -> None:
            self.plans.append(standing.plan)
            await stand_up(standing)

        monkeypatch.setattr(Standing, "stand_up", watched)

    def list_own(self) -> list[Plan]:
        """Those that were stood up for a task of their own."""
        return [plan for plan in self.plans if plan.rlimits]


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    return Watch(monkeypatch)


@asynccontextmanager
async def open_warm(host: Host, warm: int = 1, slots: int = 1) -> AsyncIterator[Sandbox]:
    """A sandbox with a pool that stands for `ask()`."""
    sandbox = Sandbox(host.image, host.abilities, slots=slots, warm=warm)
    try:
        for _ in range(warm):
            await collect(sandbox, ask(), 0)
        await sandbox.pool.settle()
        assert len(sandbox.pool) == warm
        yield sandbox
    finally:
        await sandbox.pool.close()


async def test_a_task_is_run_in_what_stands_and_another_is_stood_up(best: Host, watch: Watch) -> None:
    async with open_warm(best) as sandbox:
        watch.plans.clear()
        running = sandbox.run(ask("import os\nresult = os.getpid()"), 0, get_folder())
        assert isinstance(await anext(running), Started)
        assert watch.list_own() == []
        assert [event async for event in running][-1].cause is Cause.OK  # type: ignore[union-attr]  # the last is Ended
        await sandbox.pool.settle()
        assert len(watch.plans) == len(sandbox.pool) == 1, "and another stands"


def test_a_job_in_what_stood_is_as_any_other(host: Host) -> None:
    """Its limits are its own, and what the harness used before is not on its account."""

    async def run() -> None:
        async with open_warm(host) as sandbox:
            assert (await collect(sandbox, make_task(bodies.mem_bomb, 400 * MIB, limits=ROOMY), 0)).cause is Cause.OOM
            await collect(sandbox, ask(), 0)
            await sandbox.pool.settle()
            outcome = await collect(sandbox, ask("import time\nwhile True: pass", cpu_ms=200), 0)
            assert outcome.cause is Cause.CPU
            await sandbox.pool.settle()
            seen = await collect(sandbox, ask("import os\nresult = [os.getpid(), os.listdir('/job')]", processes=3), 0)
            assert seen.value == [3, []]

    host.do(run)


async def test_each_is_used_once(best: Host) -> None:
    leave = "import os, sys\nresult = [os.listdir('/job'), os.listdir('/dev/shm'), getattr(sys, 'left', None)]\n"
    leave += "open('/job/left', 'w').close(); open('/dev/shm/left', 'w').close(); sys.left = 1"
    async with open_warm(best, warm=2) as sandbox:
        for _ in range(4):
            assert (await collect(sandbox, ask(leave), 0)).value == [[], [], None]
            await sandbox.pool.settle()


async def test_no_two_that_live_have_one_user(best: Host) -> None:
    """threats.md A20."""
    if best.abilities.uid_base is None:
        pytest.skip("kernel: only root can give each slot a user of its own")
    async with open_warm(best, warm=2, slots=2) as sandbox:
        working = [one.plan.uid for one, _ in sandbox.pool._standing]
        stays = [sandbox.run(ask("import time\ntime.sleep(60)"), slot, get_folder()) for slot in (0, 1)]
        for stay in stays:
            assert isinstance(await anext(stay), Started)
        await sandbox.pool.settle()
        standing = [one.plan.uid for one, _ in sandbox.pool._standing]
        used = [*working, *standing, best.abilities.uid_base, best.abilities.uid_base + 1]
        assert len(set(used)) == len(used) == 6, "those of slots are not used by what stands"
        for stay in stays:
            await stay.aclose()


async def test_what_does_not_fit_is_not_taken_and_the_pool_follows(best: Host, watch: Watch) -> None:
    async with open_warm(best) as sandbox:
        other = ask(tmp_bytes=4 * MIB)
        watch.plans.clear()
        assert (await collect(sandbox, other, 0)).cause is Cause.OK
        assert len(watch.list_own()) == 1
        await sandbox.pool.settle()
        assert [one.plan.compute_mould() for one, _ in sandbox.pool._standing] == [
            sandbox.plan(other, 0).compute_mould()
        ]
        small = ask(memory_bytes=LEAST_MEMORY - 1, tmp_bytes=4 * MIB)
        watch.plans.clear()
        assert (await collect(sandbox, small, 0)).cause is Cause.OK
        assert len(watch.list_own()) == len(watch.plans) == 1
        assert len(sandbox.pool) == 1


async def test_one_that_died_is_not_given_to_a_task(best: Host, watch: Watch) -> None:
    async with open_warm(best) as sandbox:
        [(standing, _)] = sandbox.pool._standing
        standing.kill()
        await standing.gone.wait()
        assert (await collect(sandbox, ask(), 0)).cause is Cause.OK
        await sandbox.pool.settle()
        assert [one.gone.is_set() for one, _ in sandbox.pool._standing] == [False]


async def test_one_that_dies_as_it_is_taken_is_the_hosts_fault(best: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_warm(best) as sandbox:
        [(standing, _)] = sandbox.pool._standing
        standing.kill()
        await standing.gone.wait()
        monkeypatch.setattr(standing, "gone", asyncio.Event())
        asyncio.get_running_loop().call_later(0.05, standing.gone.set)
        outcome = await collect(sandbox, ask(), 0)
        assert outcome.cause is Cause.HOST
        assert (await collect(sandbox, ask(), 0)).cause is Cause.OK


async def test_inputs_that_cannot_be_read_use_no_sandbox_up_for_good(best: Host) -> None:
    async with open_warm(best) as sandbox:
        living = count_living(best)
        with pytest.raises(Refused):
            await collect(sandbox, msgspec.structs.replace(ask(), inputs=Path("/nowhere/inputs")), 0)
        await sandbox.pool.settle()
        assert len(sandbox.pool) == 1
        assert wait_until(lambda: count_living(best) == living), "the one that was taken has left"
        assert (await collect(sandbox, ask(), 0)).cause is Cause.OK


async def test_a_host_that_cannot_any_more_is_left_in_peace(best: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[Standing] = []

    async def fail(standing: Standing) -> None:
        tries.append(standing)
        raise OSError("no more processes")

    sandbox = Sandbox(best.image, best.abilities, slots=1, warm=2)
    with monkeypatch.context() as patch:
        patch.setattr(Standing, "stand_up", fail)
        sandbox.warm_up()
        await sandbox.pool.settle()
        sandbox.warm_up()
        await sandbox.pool.settle()
    assert len(tries) == pool_module._TRIES
    assert (await collect(sandbox, ask(), 0)).cause is Cause.OK
    await sandbox.pool.close()


async def test_the_first_stand_for_what_clients_usually_ask(best: Host) -> None:
    sandbox = Sandbox(best.image, best.abilities, slots=1, warm=1)
    sandbox.warm_up()
    await sandbox.pool.settle()
    [(standing, _)] = sandbox.pool._standing
    assert standing.plan.command[-2:] == ("cloudpickle", "numpy")
    await sandbox.pool.close()


def test_closing_leaves_nothing(host: Host) -> None:
    async def open_and_close() -> tuple[int, int]:
        async with open_warm(host, warm=2):
            pass
        before = count_descriptors()
        async with open_warm(host, warm=2) as sandbox:
            sandbox.pool._standing[0][0].kill()  # one dead, one alive
        return before, count_descriptors()

    living = {uid: list_processes(uid) for uid in range(host.uid, host.uid + 5)}
    before, after = host.do(open_and_close)
    assert after == before
    assert {uid: list_processes(uid) - there for uid, there in living.items()} == {uid: set() for uid in living}
    assert list_groups(host) == []


async def test_closing_while_one_is_stood_up_leaves_nothing(best: Host) -> None:
    for pause in (0, 0.001, 0.005, 0.02):
        sandbox = Sandbox(best.image, best.abilities, slots=1, warm=1)
        sandbox.warm_up()
        await asyncio.sleep(pause)
        await sandbox.pool.close()
        sandbox.warm_up()
        assert len(sandbox.pool) == 0
    assert list_groups(best) == []


def test_what_stands_ends_with_its_daemon(best: Host) -> None:
    """kill -9 of a daemon whose pool is full."""
    reader, writer = os.pipe()
    daemon = os.fork()
    if daemon == 0:

        async def stand() -> None:
            abilities = msgspec.structs.replace(best.abilities, cgroup=None)
            sandbox = Sandbox(best.image, abilities, slots=1, warm=2)
            sandbox.warm_up()
            await sandbox.pool.settle()
            os.write(writer, bytes([len(sandbox.pool)]))
            await asyncio.sleep(60)

        try:
            asyncio.run(stand())
        finally:
            os._exit(1)
    os.close(writer)
    assert os.read(reader, 1) == b"\2"
    os.close(reader)
    children = Path(f"/proc/{daemon}/task/{daemon}/children").read_text().split()
    assert len(children) == 2
    os.kill(daemon, signal.SIGKILL)
    os.waitpid(daemon, 0)
    assert wait_until(lambda: not any(is_alive(int(pid)) for pid in children))
