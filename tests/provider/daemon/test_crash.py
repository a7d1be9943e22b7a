"""`kill -9` at every point of the journal, and at random moments: after the restart each lease ends properly, once."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from broker.protocol.messages import Reason
from chain.base.errors import Fault
from chain.base.hashing import compute_digest
from chain.ledger.terms.agreement import compute_order_id
from chain.ledger.transactions import Deliver, GiveBack
from chain.runtime.database import open_database
from chain.runtime.journal import SCHEMA, Journal
from provider.daemon.workspace import STORE_VERSION, name_machine
from provider.work.events import LeaseState
from provider.work.phases import Phase
from tests.provider import scene
from tests.provider.daemon.world import World, until

POINTS = 5
"""Rows that a lease on the happy path writes: promise, opening, end of the run, stored, delivered."""


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """A provider that the test starts and kills; the last life is stopped at the end."""
    world = World(tmp_path / "provider")
    await world.start()
    yield world
    await world.stop()
    await world.close()
    assert not world.executor.running, "a job outlives the daemon"


def break_journal(world: World, after: int) -> asyncio.Event:
    """Let the row number `after` be the last thing that this life does for a lease: it is written, nothing follows."""
    journal, broken, written = world.workspace.journal, asyncio.Event(), 0
    real = Journal(journal._connection)

    def append(machine: str, now: int, event: bytes) -> None:
        nonlocal written
        if broken.is_set():
            raise Fault("this life is over", rule="test.killed")
        real.append(machine, now, event)
        written += 1
        if written == after:
            broken.set()
            raise Fault("this life is over", rule="test.killed")

    journal.append = append  # type: ignore[method-assign]  # the crash is put exactly behind a row
    journal.drop = lambda *_: None  # type: ignore[method-assign]  # as above
    return broken


@pytest.mark.parametrize("accepting", [True, False], ids=["accepted", "silence"])
@pytest.mark.parametrize("point", range(1, POINTS + 1))
async def test_killed_behind_any_row_the_job_is_paid_exactly_once(world: World, point: int, accepting: bool) -> None:
    world.broker.accepting = accepting
    broken = break_journal(world, point)
    order = world.make_order()
    await world.announce(order)
    await until(lambda: bool(world.bids(order)) or broken.is_set())
    if world.bids(order):
        award = scene.make_award(order, world.bids(order)[0])
        lease = await world.open_award(order, award)
        await until(lambda: broken.is_set() or world.chain.views[lease].state in ("settled", "delivered"))
        await world.kill()
        await world.start()
        await world.wait_state(lease, LeaseState.SETTLED if accepting else LeaseState.DELIVERED)
        assert set(world.chain.done.values()) == {1}
        assert not any(isinstance(body, GiveBack) for body in world.chain.submitted)
        assert world.executor.ran[compute_order_id(scene.CHAIN, order)] <= 2
    else:
        assert point == 1, "the bid is sent once its promise is on disk"
        await world.kill()
        await world.start()
        await world.announce(order)
        await until(lambda: bool(world.bids(order)))


RANGE_POINTS = 14
"""Rows of a range of six segments: beside the above each batch of segments, each pace and each prefix."""


@pytest.mark.parametrize("kind", ["map", "train"])
@pytest.mark.parametrize("point", range(2, RANGE_POINTS + 1))
async def test_killed_behind_any_row_of_a_range_each_segment_is_recorded_and_paid_once(
    world: World, point: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("provider.work.handing.PREFIX_MS", 3)
    order, spec = world.make_map(6) if kind == "map" else world.make_train(6)
    broken = break_journal(world, point)
    bid = await world.get_bid(order, spec)
    lease = await world.open_award(order, scene.make_award(order, bid), bid)
    await until(lambda: broken.is_set() or world.chain.views[lease].state == "settled")
    before = list(world.broker.handed[lease].records) if lease in world.broker.handed else []
    await world.kill()
    await world.start()
    await world.wait_state(lease, LeaseState.SETTLED)
    records = world.broker.handed[lease].records
    assert records[: len(before)] == before, "a record was made twice"
    assert [record.index for record in records] == list(range(6))
    assert [times for (_, state), times in world.chain.done.items() if state == "settled"] == [1]
    assert not any(isinstance(body, GiveBack) for body in world.chain.submitted)
    assert world.executor.ran[compute_order_id(scene.CHAIN, order)] <= 2


async def test_killed_at_random_moments_every_lease_ends_once(world: World, seed: int) -> None:
    chance = random.Random(seed)
    orders = [world.make_order(f"order {number}") for number in range(3)]
    leases = [await world.open_lease(order) for order in orders]
    for order, spec in (world.make_map(20, "one"), world.make_map(7, "two"), world.make_train(9)):
        leases.append(await world.open_lease(order, spec=spec))
    for _ in range(6):
        await asyncio.sleep(chance.random() * 0.02)
        await world.kill()
        await world.start()
    for lease in leases:
        await world.wait_state(lease, LeaseState.SETTLED)
    settled = {lease: times for (lease, state), times in world.chain.done.items() if state == "settled"}
    assert settled == {lease.hex(): 1 for lease in leases}
    assert set(world.chain.done.values()) == {1}, "a delivery may come before the settle, once"
    assert world.executor.most <= 2
    for lease in leases:
        await world.wait_gone(lease)
    await until(lambda: world.workspace.journal.names() == [], lambda: str(world.workspace.journal.names()))


async def test_what_happened_on_the_chain_meanwhile_is_heard_first(world: World) -> None:
    world.executor.hold = asyncio.Event()
    leases = [await world.open_lease(world.make_order(name)) for name in ("ended", "cancelled")]
    await until(lambda: len(world.executor.running) == 2)
    await world.kill()
    await world.chain.move(leases[0], LeaseState.EXPIRED)
    await world.chain.move(leases[1], LeaseState.CANCELLING)
    await world.start()
    await world.wait_gone(leases[0])
    assert world.daemon.leases[leases[1]].machine.phase is Phase.STOPPED
    assert sum(world.executor.ran.values()) == 2, "nothing of them runs again"


async def test_a_lease_that_opened_while_nobody_was_there_is_served(world: World) -> None:
    order = world.make_order()
    bid = await world.get_bid(order)
    await world.kill()
    lease = await world.open_award(order, scene.make_award(order, bid))
    await world.start()
    await world.wait_state(lease, LeaseState.SETTLED)


async def test_bids_of_an_earlier_life_still_hold_their_place(world: World) -> None:
    orders = world.make_orders(5, 47_000)
    for order in orders[:4]:
        await world.get_bid(order)
    await world.kill()
    await world.start()
    await world.announce(orders[4])
    await until(lambda: bool(world.bids(orders[4]) or world.declines(orders[4])))
    assert [one.reason for one in world.declines(orders[4])] == [Reason.BUSY]


async def test_an_output_that_was_lost_with_the_disk_is_given_back(world: World) -> None:
    world.broker.down = True
    order = world.make_order()
    bid = await world.get_bid(order)
    world.broker.down = False
    lease = await world.open_award(order, scene.make_award(order, bid))
    world.broker.accepting = False
    await until(lambda: lease in world.broker.deliveries)
    await world.kill()
    output = compute_digest(b"output of " + scene.INPUTS)
    (world.folder / "leases" / lease.hex() / output.hex()).write_bytes(b"rotten")
    drop_rows(world, lease, keep=2)
    world.broker.deliveries.clear()
    await world.start()
    await world.wait_state(lease, LeaseState.RETURNED)
    assert not any(isinstance(body, Deliver) for body in world.chain.submitted)


def drop_rows(world: World, lease: bytes, keep: int) -> None:
    """Take back the last rows of a lease's journal, as if the crash had come before them."""
    database = open_database(world.folder / "provider.db", kind="provider", version=STORE_VERSION, schema=SCHEMA)
    database.execute("DELETE FROM journal WHERE machine = ? AND sequence >= ?", (name_machine(lease), keep))
    database.close()


async def test_folders_that_belong_to_no_lease_are_swept(world: World) -> None:
    left = world.folder / "leases" / "00ff"
    left.mkdir(parents=True)
    await world.kill()
    await world.start()
    assert not left.exists()
