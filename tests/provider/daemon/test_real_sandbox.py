"""The daemon with the real sandbox: code in, records, log and outputs out, and nothing left behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import cloudpickle
import numpy
import pytest

from broker.protocol import values
from broker.protocol.jobs import Runtime, compute_item_root
from chain.base.hashing import compute_digest
from chain.ledger.terms.agreement import Kind
from chain.ledger.terms.outcome import Cause
from provider.daemon.host import describe, examine, open_sandbox
from provider.daemon.settings import ProviderSettings
from provider.work.events import LeaseState
from tests.provider import scene
from tests.provider.daemon.world import World, until


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """A provider with this host's own sandbox."""
    image, abilities = await examine(ProviderSettings(home=str(tmp_path)))
    if abilities.level is None:
        pytest.skip(f"kernel: {abilities.reasons}")
    world = World(tmp_path / "provider")
    sandbox = open_sandbox(image, abilities, 2)
    world.executor = sandbox  # type: ignore[assignment]  # the real thing in place of its double
    world.host = describe(image, abilities)
    await world.start()
    yield world
    await world.stop()
    await world.close()
    await sandbox.close()


def make_job(world: World, function: Any, *arguments: Any) -> Any:
    """Order and spec of a function, its blobs at the broker."""
    code, inputs = cloudpickle.dumps(function), values.pack((arguments, {}))
    for blob in (code, inputs):
        world.broker.blobs[compute_digest(blob)] = blob
    runtime = Runtime(world.host.runtimes[0].python, ("numpy",))
    return scene.make_spec(
        code=compute_digest(code), code_bytes=len(code), inputs=compute_digest(inputs), input_bytes=len(inputs),
        runtime=runtime,
    )  # fmt: skip


async def run_job(world: World, spec: Any) -> tuple[bytes, Any]:
    order = world.make_order(spec=spec)
    lease = await world.open_lease(order, spec=spec)
    await world.wait_state(lease, LeaseState.SETTLED)
    return lease, world.broker.deliveries[lease]


async def test_a_function_runs_in_the_sandbox_and_is_paid(world: World) -> None:
    def add(one: int, two: int) -> int:
        print("adding")
        return one + two

    _, delivery = await run_job(world, make_job(world, add, 2, 3))
    [record] = delivery.records
    assert values.unpack(world.broker.blobs[record.output]) == 5
    assert world.broker.blobs[delivery.receipt.body.log] == b"adding\n"
    assert record.cause is Cause.OK and delivery.receipt.body.environment.level == world.host.level


async def test_a_function_that_raises_is_paid_and_its_traceback_shown(world: World) -> None:
    def fail() -> None:
        raise ValueError("the data is wrong")

    _, delivery = await run_job(world, make_job(world, fail))
    [record] = delivery.records
    assert record.cause is Cause.PROGRAM
    assert b"ValueError: the data is wrong" in world.broker.blobs[record.error]


async def test_a_job_over_its_memory_is_named_so(world: World) -> None:
    def hoard() -> int:
        return len(bytearray(2 << 30))

    _, delivery = await run_job(world, make_job(world, hoard))
    [record] = delivery.records
    assert record.cause in (Cause.OOM, Cause.PROGRAM) and delivery.receipt.body.cause is record.cause


def put_job(world: World, kind: Kind, function: Any, inputs: bytes) -> Any:
    """The job spec of a map or train, its blobs at the broker."""
    code = cloudpickle.dumps(function)
    for blob in (code, inputs):
        world.broker.blobs[compute_digest(blob)] = blob
    runtime = Runtime(world.host.runtimes[0].python, ("numpy",))
    return scene.make_spec(
        kind=kind, code=compute_digest(code), code_bytes=len(code), inputs=compute_digest(inputs),
        input_bytes=len(inputs), runtime=runtime,
    )  # fmt: skip


async def test_a_map_runs_item_by_item(world: World) -> None:
    def square(item: int) -> int:
        return item * item

    items = [values.pack(number) for number in range(40)]
    spec = put_job(world, Kind.MAP, square, b"".join(bytes(part) for part in values.pack_list(items)))
    order = world.make_order(spec=spec, segments=40, segment_wall=5_000, start=compute_item_root(items))
    lease = await world.open_lease(order, spec=spec)
    await world.wait_state(lease, LeaseState.SETTLED)
    records = world.broker.handed[lease].records
    assert [values.unpack(world.broker.blobs[record.output]) for record in records] == [n * n for n in range(40)]
    assert [record.input for record in records] == [compute_digest(item) for item in items]


async def test_a_train_keeps_large_states_in_files_and_goes_on_after_a_kill(world: World) -> None:
    def step(state: Any, index: int) -> Any:
        import time

        time.sleep(0.1)
        return state + 1

    state = values.pack(numpy.zeros(100_000))
    spec = put_job(world, Kind.TRAIN, step, state)
    order = world.make_order(spec=spec, segments=6, segment_wall=5_000, start=spec.inputs)
    lease = await world.open_lease(order, spec=spec)
    await until(lambda: lease in world.broker.handed and len(world.broker.handed[lease].records) >= 2)
    await world.kill()
    await world.start()
    await world.wait_state(lease, LeaseState.SETTLED)
    records = world.broker.handed[lease].records
    assert [record.input for record in records] == [spec.inputs, *(record.output for record in records[:-1])]
    assert values.unpack(world.broker.blobs[records[-1].output])[0] == 6.0
    assert len(world.broker.files) >= 6, "800 kB each"


async def test_a_running_job_ends_with_the_daemon(world: World) -> None:
    def linger() -> None:
        import time

        print("here", flush=True)
        time.sleep(60)

    spec = make_job(world, linger)
    order = world.make_order(spec=spec)
    lease = await world.open_lease(order, spec=spec)
    await until(lambda: any(b"here" in frame.log for frame in world.progress(lease)))
    await asyncio.wait_for(world.daemon.close(), 30)
    assert world.chain.views[lease].state == "returned"
