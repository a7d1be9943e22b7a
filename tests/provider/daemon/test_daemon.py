"""The daemon among doubles: whatever fails around it, each lease ends properly and is paid at most once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from broker.protocol import topics
from broker.protocol.messages import Reason, Withdrawal
from chain.base.hashing import compute_digest
from chain.ledger.terms.agreement import compute_order_id
from chain.ledger.terms.outcome import Cause
from chain.ledger.transactions import Deliver, GiveBack, Settle
from provider.bidding.pricing import make_tariff
from provider.work.events import LeaseState
from provider.work.phases import Phase
from tests.provider import scene
from tests.provider.daemon.world import World, sign_acceptance, until


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """A running provider, stopped at the end; it must leave no task behind."""
    world = World(tmp_path / "provider")
    await world.start()
    yield world
    await world.stop()
    await world.close()
    await asyncio.sleep(0)
    left = [task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    assert not left, "tasks outlive the daemon"
    assert not world.executor.running, "a job outlives the daemon"


async def test_a_job_goes_from_announcement_to_payment(world: World) -> None:
    order = world.make_order()
    lease = await world.open_lease(order)
    await world.wait_state(lease, LeaseState.SETTLED)
    await world.wait_gone(lease)
    delivery = world.broker.deliveries[lease]
    assert delivery.receipt.body.log == compute_digest(world.executor.log)
    assert delivery.receipt.body.environment.level == "ns"
    frames = world.progress(lease)
    assert b"".join(frame.log for frame in frames) == world.executor.log
    assert [record for frame in frames for record in frame.records] == list(delivery.records)
    assert world.executor.ran == {compute_order_id(scene.CHAIN, order): 1}
    assert world.chain.done == {(lease.hex(), "settled"): 1}
    assert world.workspace.journal.names() == [] and not list((world.folder / "leases").iterdir())


async def test_an_offer_says_what_is_here_and_goes_with_the_daemon(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.start()
    offer = world.hub.retained[topics.presence(scene.CHAIN, scene.PROVIDER.key)]
    await until(lambda: bool(world.offers))
    said = world.read_offer()
    assert (said.slots, said.millicores, said.runtimes) == (2, 2_000, (scene.RUNTIME,))
    assert said.bond_free == 1_000_000_000 and said.sequence < said.valid_until <= said.sequence + 15_000
    assert said.prices == make_tariff(world.settings.prices)
    await world.stop()
    await until(lambda: world.wills == 1)
    await world.close()
    farewell = world.read_offer()
    assert offer and farewell.slots == 0 and farewell.sequence > said.sequence, "nobody waits for it any more"


async def test_twenty_orders_at_once_on_two_slots_are_all_served(world: World) -> None:
    orders = [world.make_order(f"order {number}") for number in range(20)]
    leases = await asyncio.gather(*(world.open_lease(order) for order in orders))
    for lease in leases:
        await world.wait_state(lease, LeaseState.SETTLED)
    assert world.executor.most == 2
    assert sum(world.executor.ran.values()) == 20
    assert set(world.chain.done.values()) == {1} and len(world.chain.done) == 20


async def test_an_order_that_cannot_wait_is_declined_as_busy(world: World) -> None:
    orders = world.make_orders(5, 47_000)
    for order in orders:
        await world.announce(order)
    await until(lambda: all(world.bids(order) or world.declines(order) for order in orders))
    answers = [[one.reason for one in world.declines(order)] for order in orders]
    assert answers[:2] == [[], []] and answers[-1] == [Reason.BUSY]


async def test_an_order_declined_as_busy_gets_a_bid_if_room_is_made_before_its_auction_closes(world: World) -> None:
    orders = world.make_orders(5, 47_000)
    for order in orders[:4]:
        await world.get_bid(order)
    await world.announce(orders[4])
    await until(lambda: bool(world.declines(orders[4])))
    await world.announce(orders[4])
    await world.say(Withdrawal(compute_order_id(scene.CHAIN, orders[0]), "off"))
    await until(lambda: bool(world.bids(orders[4])))
    assert len(world.declines(orders[4])) == 1


async def test_an_auction_that_closed_gets_no_late_bid(world: World) -> None:
    orders = world.make_orders(6, 47_000)
    for order in orders[:4]:
        await world.get_bid(order)
    await world.announce(orders[4])
    await until(lambda: bool(world.declines(orders[4])))
    await world.say(Withdrawal(compute_order_id(scene.CHAIN, orders[4]), "unmatched"))
    await world.say(Withdrawal(compute_order_id(scene.CHAIN, orders[0]), "off"))
    await world.get_bid(orders[5])
    assert not world.bids(orders[4])


async def test_work_begins_only_with_the_chain_and_inputs_come_with_the_award(world: World) -> None:
    order = world.make_order()
    bid = await world.get_bid(order)
    award = scene.make_award(order, bid)
    await world.say(award, topics.down(scene.CHAIN, scene.PROVIDER.key))
    await until(lambda: sum(world.broker.fetched.values()) == 2)
    assert not world.daemon.leases and not world.executor.ran
    lease = await world.open_award(order, award, bid)
    await world.wait_state(lease, LeaseState.SETTLED)
    assert set(world.broker.fetched.values()) == {1}, "fetched twice"


async def test_a_lease_that_no_award_announced_is_served_too(world: World) -> None:
    lease = await world.open_lease(world.make_order(), award=False)
    await world.wait_state(lease, LeaseState.SETTLED)


async def test_a_vanished_requester_pays_by_silence(world: World) -> None:
    world.broker.accepting = False
    lease = await world.open_lease(world.make_order())
    await world.wait_state(lease, LeaseState.DELIVERED)
    world.broker.accepting = True
    await world.wait_state(lease, LeaseState.SETTLED)


async def test_an_acceptance_may_come_over_the_bus(world: World) -> None:
    world.broker.accepting = False
    lease = await world.open_lease(world.make_order())
    await until(lambda: lease in world.broker.deliveries)
    await world.say(sign_acceptance(world.broker.deliveries[lease]), topics.down(scene.CHAIN, scene.PROVIDER.key))
    await world.wait_state(lease, LeaseState.SETTLED)


@pytest.mark.parametrize("cause", [Cause.PROGRAM, Cause.OOM, Cause.WALL])
async def test_a_job_that_fails_is_paid_for_its_segment(world: World, cause: Cause) -> None:
    world.executor.causes = [cause]
    lease = await world.open_lease(world.make_order())
    await world.wait_state(lease, LeaseState.SETTLED)
    [record] = world.broker.deliveries[lease].records
    assert record.cause is cause and world.broker.blobs[record.error]


async def test_a_host_that_fails_once_is_tried_again_and_twice_is_given_back(world: World) -> None:
    world.executor.causes = [Cause.HOST]
    lease = await world.open_lease(world.make_order("once"))
    await world.wait_state(lease, LeaseState.SETTLED)
    world.executor.causes = [Cause.HOST, Cause.HOST]
    lease = await world.open_lease(world.make_order("twice"))
    await world.wait_state(lease, LeaseState.RETURNED)
    await world.wait_gone(lease)


async def test_a_lease_whose_step_breaks_is_given_back_and_others_go_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_down(*_: object) -> None:
        raise RuntimeError("a mistake of ours")

    with monkeypatch.context() as broken:
        broken.setattr("provider.daemon.running.lay_out", break_down)
        lease = await world.open_lease(world.make_order("broken"))
        await world.wait_state(lease, LeaseState.RETURNED)
    await world.wait_state(await world.open_lease(world.make_order("whole")), LeaseState.SETTLED)


async def test_inputs_that_never_come_are_given_back_before_the_start_window_ends(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = world.daemon.counter.desk
    hasty = msgspec.structs.replace(desk._rates.policy, start=1_000)  # so that the window ends while the test waits
    monkeypatch.setattr(desk, "_rates", msgspec.structs.replace(desk._rates, policy=hasty))
    world.broker.blobs.clear()
    windows = scene.WINDOWS.__class__(1_000, 1, 1_000, 1, 1, 1, 1)
    lease = await world.open_lease(world.make_order(windows=windows))
    await world.wait_state(lease, LeaseState.RETURNED)
    assert not world.executor.ran


async def test_outages_cost_time_and_nothing_else(world: World) -> None:
    world.executor.hold = asyncio.Event()
    lease = await world.open_lease(world.make_order())
    await until(lambda: bool(world.executor.running))
    world.broker.down = True
    await world.chain.fail()
    world.executor.hold.set()
    await until(lambda: world.daemon.leases[lease].machine.phase is Phase.POSTING)
    world.broker.down = False
    await until(lambda: any(isinstance(body, Settle) for body in world.chain.submitted))
    await world.chain.fail(down=False)
    await world.wait_state(lease, LeaseState.SETTLED)
    assert world.chain.done == {(lease.hex(), "settled"): 1}


async def test_a_cancelled_lease_is_stopped_at_once(world: World) -> None:
    world.executor.hold = asyncio.Event()
    lease = await world.open_lease(world.make_order())
    await until(lambda: bool(world.executor.running))
    await world.chain.move(lease, LeaseState.CANCELLING)
    await until(lambda: not world.executor.running)
    await world.chain.move(lease, LeaseState.CANCELLED)
    await world.wait_gone(lease)
    assert world.executor.ended_early == 1 and not world.chain.submitted


async def test_a_lease_on_a_bid_that_is_not_known_is_given_back(world: World) -> None:
    order = world.make_order()
    lease = await world.open_award(order, scene.make_award(order, scene.make_bid(order)))
    await world.wait_state(lease, LeaseState.RETURNED)


async def test_a_lost_or_withdrawn_bid_frees_its_place(world: World) -> None:
    orders = world.make_orders(7, 47_000)
    bids = [await world.get_bid(order) for order in orders[:4]]
    await world.announce(orders[6])
    await until(lambda: bool(world.declines(orders[6])))
    other = scene.make_award(orders[0], scene.make_bid(orders[0]))
    assert other.bid != scene.make_award(orders[0], bids[0]).bid
    await world.say(Withdrawal(compute_order_id(scene.CHAIN, orders[6]), "off"))
    await world.say(other)
    await world.say(Withdrawal(compute_order_id(scene.CHAIN, orders[1]), "off"))
    for order in orders[4:6]:
        await world.get_bid(order)
    assert set(world.workspace.load_promises()) == {compute_order_id(scene.CHAIN, order) for order in orders[2:6]}


async def test_the_same_announcement_gets_the_same_bid_again(world: World) -> None:
    order = world.make_order()
    first = await world.get_bid(order)
    await world.announce(order)
    await until(lambda: len(world.bids(order)) == 2)
    assert world.bids(order) == [first, first]


async def test_outputs_longer_than_the_broker_takes_are_declined_beforehand(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.max_blob = scene.RESOURCES.output_bytes - 1
    await world.start()
    order = world.make_order()
    await world.announce(order)
    await until(lambda: bool(world.declines(order)))
    assert [one.reason for one in world.declines(order)] == [Reason.POLICY]
    await world.stop()
    await world.close()


async def test_what_is_not_genuine_is_not_heeded(world: World) -> None:
    order = world.make_order()
    stranger = scene.make_signer("stranger")
    await world.say(scene.announce(order), signer=stranger)
    await world.say(scene.announce(order, signer=stranger))
    await world.say(b"\xc1 no message at all")
    await world.say(scene.announce(world.make_order("mine", auctioneer=stranger.key), broker=stranger.key))
    good = world.make_order("good")
    await world.get_bid(good)
    assert not world.bids(order) and not world.declines(order)


async def test_a_refused_settle_becomes_a_delivery(world: World) -> None:
    world.chain.refuse[Settle] = "R7.receipt"
    lease = await world.open_lease(world.make_order())
    await world.wait_state(lease, LeaseState.DELIVERED)
    assert sum(isinstance(body, Settle) for body in world.chain.submitted) == 1


async def test_what_the_chain_refuses_for_a_while_is_tried_again(world: World) -> None:
    world.chain.refuse[Settle] = "R15.c.quota"
    lease = await world.open_lease(world.make_order())
    await until(lambda: sum(isinstance(body, Settle) for body in world.chain.submitted) >= 2)
    world.chain.refuse.clear()
    await world.wait_state(lease, LeaseState.SETTLED)


async def test_a_receipt_that_the_broker_refuses_for_good_is_given_back(world: World) -> None:
    world.broker.refuse = "R5.root"
    lease = await world.open_lease(world.make_order())
    await world.wait_state(lease, LeaseState.RETURNED)


async def test_shutdown_gives_back_what_cannot_end(tmp_path: Path) -> None:
    world = World(tmp_path, drain_s=1)
    world.executor.hold = asyncio.Event()
    await world.start()
    lease = await world.open_lease(world.make_order())
    await until(lambda: bool(world.executor.running))
    await world.stop()
    assert world.chain.views[lease].state == "returned" and world.executor.ended_early == 1
    assert any(isinstance(body, GiveBack) for body in world.chain.submitted)
    await world.close()


async def test_shutdown_lets_a_short_job_end_and_delivers_it(tmp_path: Path) -> None:
    world = World(tmp_path, drain_s=5)
    world.broker.accepting = False
    world.executor.hold = asyncio.Event()
    await world.start()
    lease = await world.open_lease(world.make_order())
    await until(lambda: bool(world.executor.running))
    stopping = asyncio.create_task(world.stop())
    await asyncio.sleep(0)
    world.executor.hold.set()
    await stopping
    assert world.chain.views[lease].state == "delivered"
    assert any(isinstance(body, Deliver) for body in world.chain.submitted)
    await world.close()
