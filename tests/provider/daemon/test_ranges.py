"""The daemon with maps and trains among doubles: prefixes, partial work, calls, rounds, and requesters that cheat."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from broker.protocol import values
from broker.protocol.jobs import compute_item_root
from broker.protocol.messages import Book, Reason
from chain.base.errors import Refused
from chain.base.hashing import compute_digest
from chain.base.merkle import compute_root
from chain.ledger.terms.agreement import Kind, compute_order_id
from chain.ledger.terms.outcome import Cause
from chain.ledger.terms.work import Span, is_final
from chain.ledger.transactions import Extend, GiveBack, Settle
from provider.daemon.folder import CUT
from provider.daemon.inputs import check_items
from provider.daemon.running import Gathering
from provider.work.events import MAX_BATCH, LeaseState, SegmentsRan
from provider.work.phases import Phase
from tests.provider import scene
from tests.provider.daemon.world import World, until


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """A running provider, stopped at the end."""
    world = World(tmp_path / "provider")
    await world.start()
    yield world
    await world.stop()
    await world.close()
    assert not world.executor.running, "a job outlives the daemon"


def outputs_of(world: World, lease: bytes) -> list[bytes]:
    """The outputs that were handed in, in order of their segments."""
    return [world.broker.blobs[record.output] for record in world.broker.handed[lease].records]


async def stop_behind(world: World, lease: bytes, done: int) -> None:
    """Until so many segments are done and handed in, and the sandbox waits."""
    await until(lambda: lease in world.broker.handed and len(world.broker.handed[lease].records) == done)


# Ranges


async def test_a_map_is_served_item_by_item_and_paid(world: World) -> None:
    order, spec = world.make_map(7)
    lease = await world.open_lease(order, spec=spec)
    await world.wait_state(lease, LeaseState.SETTLED)
    assert outputs_of(world, lease) == [b"output of " + values.pack(f"item {number}") for number in range(7)]
    frames = world.progress(lease)
    assert [record.index for frame in frames for record in frame.records] == list(range(7))
    assert is_final(world.broker.deliveries[lease].receipt.body, 7)
    await world.wait_gone(lease)


async def test_a_part_of_a_map_takes_its_own_items(world: World) -> None:
    order, spec = world.make_map(9)
    lease = await world.open_lease(order, spec=spec, span=Span(4, 3))
    await world.wait_state(lease, LeaseState.SETTLED)
    assert [record.index for record in world.broker.handed[lease].records] == [4, 5, 6]
    assert outputs_of(world, lease) == [b"output of " + values.pack(f"item {number}") for number in (4, 5, 6)]
    task = world.executor.tasks[0]
    assert (task.first, task.count) == (4, 3) and task.limits.output_count >= 3


async def test_prefixes_are_handed_in_as_the_work_goes(world: World) -> None:
    world.executor.hold, world.executor.stop_at = asyncio.Event(), 2
    order, spec = world.make_map(5)
    lease = await world.open_lease(order, spec=spec)
    await stop_behind(world, lease, 2)
    prefix = world.broker.deliveries[lease].receipt.body
    assert (prefix.count, prefix.log, prefix.provenance) == (2, scene.EMPTY, scene.EMPTY)
    world.executor.hold.set()
    await world.wait_state(lease, LeaseState.SETTLED)
    posts = world.broker.posts
    assert [post.since for post in posts] == [sum(len(one.records) for one in posts[:n]) for n in range(len(posts))]
    assert posts[-1].receipt.body.log == compute_digest(world.executor.log)


async def test_the_log_of_a_range_is_cut_where_its_requester_would_refuse_it(world: World) -> None:
    """Each segment may write `log_bytes`; a run that is begun again writes more than all of them may."""
    world.executor.log = b"0123456789" * 3 + b"and more"
    order, spec = world.make_map(3, resources={"log_bytes": 10})
    lease = await world.open_lease(order, spec=spec)
    await world.wait_state(lease, LeaseState.SETTLED)
    log = world.broker.blobs[world.broker.deliveries[lease].receipt.body.log]
    assert log == b"0123456789" * 3 + CUT


async def test_many_small_segments_are_few_events(world: World) -> None:
    world.executor.batch = 400
    order, spec = world.make_map(1_000, segment_wall=100)
    lease = await world.open_lease(order, spec=spec)
    await world.wait_state(lease, LeaseState.SETTLED)
    assert len(world.broker.handed[lease].records) == 1_000
    assert world.executor.tasks[0].limits.output_count == 1_000, "one output per segment"
    frames = world.progress(lease)
    assert sum(len(frame.records) for frame in frames) == 1_000 and len(frames) <= 1_000 // 16


async def test_a_failed_segment_ends_the_range_and_is_paid(world: World) -> None:
    world.executor.causes = [Cause.PROGRAM]
    order, spec = world.make_map(3)
    lease = await world.open_lease(order, spec=spec)
    await world.wait_state(lease, LeaseState.SETTLED)
    *good, bad = world.broker.handed[lease].records
    assert [record.cause for record in good] == [Cause.OK] * 2
    assert bad.cause is Cause.PROGRAM and world.broker.blobs[bad.error] == b"Traceback"


async def test_a_train_hands_on_its_states(world: World) -> None:
    order, spec = world.make_train(4)
    lease = await world.open_lease(order, spec=spec)
    await world.wait_state(lease, LeaseState.SETTLED)
    records = world.broker.handed[lease].records
    assert [record.input for record in records[1:]] == [record.output for record in records[:-1]]
    assert outputs_of(world, lease)[-1] == b"state 4"


async def test_a_train_that_somebody_began_goes_on_from_the_committed_state(world: World) -> None:
    state = b"state 2 of somebody else"
    world.broker.blobs[compute_digest(state)] = state
    order, spec = world.make_train(4)
    lease = await world.open_lease(order, spec=spec, span=Span(2, 2), start=compute_digest(state))
    await world.wait_state(lease, LeaseState.SETTLED)
    assert world.executor.tasks[0].inputs.name == compute_digest(state).hex()
    assert world.broker.handed[lease].records[0].input == compute_digest(state)
    assert spec.inputs not in world.broker.fetched, "the first state is not needed"


async def test_large_outputs_go_from_file_to_file(world: World) -> None:
    world.executor.large = True
    order, spec = world.make_train(3)
    lease = await world.open_lease(order, spec=spec)
    await world.wait_state(lease, LeaseState.SETTLED)
    assert len(world.broker.files) == 3 and outputs_of(world, lease) == [b"state 1", b"state 2", b"state 3"]


# Killed and begun again


@pytest.mark.parametrize("kind", ["map", "train"])
@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
async def test_a_killed_range_goes_on_behind_the_last_record(world: World, kind: str, large: bool) -> None:
    world.executor.hold, world.executor.stop_at, world.executor.large = asyncio.Event(), 3, large
    order, spec = world.make_map(5) if kind == "map" else world.make_train(5)
    lease = await world.open_lease(order, spec=spec)
    await stop_behind(world, lease, 3)
    before = list(world.broker.handed[lease].records)
    await world.kill()
    left = world.folder / "leases" / lease.hex() / "spool" / "left"
    left.parent.mkdir(exist_ok=True)
    left.write_bytes(b"half an output")
    await world.start()
    await until(lambda: len(world.executor.tasks) == 2)
    assert not left.exists(), "what a run left behind is removed before the next"
    world.executor.hold.set()
    await world.wait_state(lease, LeaseState.SETTLED)
    assert (world.executor.tasks[-1].first, world.executor.tasks[-1].count) == (3, 2)
    assert world.broker.handed[lease].records[:3] == before
    assert set(world.chain.done.values()) == {1}
    assert not any(isinstance(body, GiveBack) for body in world.chain.submitted)


async def test_a_holder_that_lost_everything_gets_it_again(world: World) -> None:
    world.executor.hold, world.executor.stop_at = asyncio.Event(), 3
    order, spec = world.make_map(5)
    lease = await world.open_lease(order, spec=spec)
    await stop_behind(world, lease, 3)
    del world.broker.handed[lease], world.broker.deliveries[lease]
    world.broker.posts.clear()
    world.executor.hold.set()
    await world.wait_state(lease, LeaseState.SETTLED)
    assert world.broker.posts[0].since == 0 and len(world.broker.handed[lease].records) == 5


# Leaving


async def test_shutdown_saves_the_segments_that_are_done(tmp_path: Path) -> None:
    world = World(tmp_path, drain_s=1)
    world.executor.hold, world.executor.stop_at = asyncio.Event(), 3
    await world.start()
    order, spec = world.make_map(5)
    lease = await world.open_lease(order, spec=spec)
    await until(lambda: lease in world.daemon.leases and len(world.broker.blobs) > 4)
    await world.stop()
    view = world.chain.views[lease]
    assert (view.state, view.served, view.held) == ("delivered", 3, 3)
    assert [type(body) for body in world.chain.submitted] == [Extend, GiveBack]
    await world.close()


async def test_the_part_that_was_saved_is_settled_when_it_is_accepted(world: World) -> None:
    world.executor.hold, world.executor.stop_at = asyncio.Event(), 3
    world.broker.accepting = False
    order, spec = world.make_map(5)
    lease = await world.open_lease(order, spec=spec)
    await stop_behind(world, lease, 3)
    world.executor.causes = [Cause.HOST]
    world.daemon.leases[lease].stop()
    await world.wait_state(lease, LeaseState.DELIVERED)
    assert not any(isinstance(body, Settle) for body in world.chain.submitted)
    world.broker.accepting = True
    await world.wait_state(lease, LeaseState.SETTLED)
    await world.wait_gone(lease)


async def test_a_cancelled_map_saves_what_is_done_and_returns_nothing(world: World) -> None:
    world.executor.hold, world.executor.stop_at = asyncio.Event(), 2
    world.broker.accepting = False
    order, spec = world.make_map(5)
    lease = await world.open_lease(order, spec=spec)
    await stop_behind(world, lease, 2)
    await world.chain.move(lease, LeaseState.CANCELLING)
    await until(lambda: world.chain.views[lease].served == 2)
    await until(lambda: world.daemon.leases[lease].machine.phase is Phase.STOPPED)
    assert [type(body) for body in world.chain.submitted] == [Extend] and not world.executor.running


async def test_a_call_is_answered_while_it_works_and_after_a_restart(world: World) -> None:
    world.executor.hold = asyncio.Event()
    lease = await world.open_lease(world.make_order())
    await until(lambda: bool(world.executor.running))
    await call(world, lease, 77)
    await until(lambda: world.chain.answered == [77])
    await world.kill()
    await call(world, lease, 99)
    await world.start()
    await until(lambda: 99 in world.chain.answered)
    world.executor.hold.set()
    await world.wait_state(lease, LeaseState.SETTLED)


async def test_a_lease_that_was_called_before_it_was_heard_of_is_answered_and_served(world: World) -> None:
    order = world.make_order()
    bid = await world.get_bid(order)
    await world.kill()
    lease = await world.open_award(order, scene.make_award(order, bid), bid)
    await call(world, lease, 55)
    await world.start()
    await until(lambda: world.chain.answered == [55])
    await world.wait_state(lease, LeaseState.SETTLED)


async def test_a_lease_with_receipts_that_are_not_known_here_is_not_begun_anew(world: World) -> None:
    order, spec = world.make_map(5)
    bid = await world.get_bid(order, spec)
    await world.kill()
    lease = await world.open_award(order, scene.make_award(order, bid), bid)
    await world.chain.happen(msgspec.structs.replace(world.chain.views[lease], served=2))
    await world.start()
    await until(lambda: any(isinstance(body, GiveBack) for body in world.chain.submitted))
    assert not world.executor.ran, "records made twice would be two inconsistent receipts (R5)"


async def test_killed_between_extension_and_return_the_return_follows(world: World) -> None:
    world.executor.hold, world.executor.stop_at = asyncio.Event(), 3
    world.broker.accepting = False
    world.chain.refuse[GiveBack] = "R15.c.quota"
    order, spec = world.make_map(5)
    lease = await world.open_lease(order, spec=spec)
    await stop_behind(world, lease, 3)
    world.daemon.leases[lease].stop()
    await until(lambda: any(isinstance(body, GiveBack) for body in world.chain.submitted))
    await world.kill()
    world.chain.refuse.clear()
    world.chain.final.clear()
    await world.start()
    await world.wait_state(lease, LeaseState.DELIVERED)
    assert world.chain.views[lease].held == 3


async def call(world: World, lease: bytes, at: int) -> None:
    """Row 8."""
    await world.chain.happen(msgspec.structs.replace(world.chain.views[lease], state="called", called=at))


async def test_what_the_broker_put_on_the_chain_is_continued(world: World) -> None:
    world.executor.hold, world.executor.stop_at = asyncio.Event(), 2
    order, spec = world.make_map(5)
    lease = await world.open_lease(order, spec=spec)
    await stop_behind(world, lease, 2)
    prefix = world.broker.deliveries[lease].receipt.body
    world.chain.receipts[lease] = prefix
    await world.chain.happen(msgspec.structs.replace(world.chain.views[lease], served=2, receipt="00"))
    world.executor.stop_at = 4
    world.broker.accepting = False
    world.executor.hold.set()
    await world.wait_state(lease, LeaseState.DELIVERED)
    [deliver] = [body for body in world.chain.submitted if hasattr(body, "proof")]
    assert deliver.proof, "a consistency proof from what stands there (R5)"


async def test_a_proof_that_came_too_late_is_made_anew(world: World) -> None:
    world.executor.hold, world.executor.stop_at = asyncio.Event(), 2
    world.broker.accepting = False
    order, spec = world.make_map(4)
    lease = await world.open_lease(order, spec=spec)
    await stop_behind(world, lease, 2)
    world.chain.receipts[lease] = world.broker.deliveries[lease].receipt.body
    world.chain.views[lease] = msgspec.structs.replace(world.chain.views[lease], served=2)  # the news is on its way
    world.executor.hold.set()
    await world.wait_state(lease, LeaseState.DELIVERED)
    assert [bool(body.proof) for body in world.chain.submitted] == [False, True]


# Rounds


async def announce_round(world: World, order: Any, spec: Any, number: int, spans: tuple[Span, ...]) -> None:
    closes = world.chain.clock.now() + 20_000
    await world.announce(order, spec, round=number, spans=spans, closes=closes)


async def test_a_later_round_waits_for_the_lease_of_the_order_that_runs(world: World) -> None:
    world.executor.hold = asyncio.Event()
    order, spec = world.make_map(6, parallelism=2)
    lease = await world.open_lease(order, spec=spec, span=Span(0, 3))
    await until(lambda: bool(world.executor.running))
    await announce_round(world, order, spec, 1, (Span(3, 3),))
    await until(lambda: bool(world.declines(order)))
    assert [one.reason for one in world.declines(order)] == [Reason.BUSY] and len(world.bids(order)) == 1
    await announce_round(world, order, spec, 1, (Span(3, 3),))
    world.executor.hold.set()
    await until(lambda: len(world.bids(order)) == 2)
    await world.wait_gone(lease)
    award = scene.make_award(order, world.bids(order)[-1], Span(3, 3))
    second = await world.open_award(order, award, world.bids(order)[-1])
    await world.wait_state(second, LeaseState.SETTLED)
    assert [record.index for record in world.broker.handed[second].records] == [3, 4, 5]
    assert len(world.declines(order)) == 1, "declined once"


async def test_a_round_whose_book_is_published_gets_no_late_bid(world: World) -> None:
    world.executor.hold = asyncio.Event()
    order, spec = world.make_map(6, parallelism=2)
    lease = await world.open_lease(order, spec=spec, span=Span(0, 3))
    await announce_round(world, order, spec, 1, (Span(3, 3),))
    await until(lambda: bool(world.declines(order)))
    order_id = compute_order_id(scene.CHAIN, order)
    closed = Book(order_id, 1, (Span(3, 3),), (), (), bytes(32), compute_root([]), world.chain.clock.now())
    await world.say(closed)
    world.executor.hold.set()
    await world.wait_state(lease, LeaseState.SETTLED)
    await world.wait_gone(lease)
    other = world.make_order("other")
    await world.get_bid(other)
    assert len(world.bids(order)) == 1


async def test_a_bid_holds_its_place_until_nothing_of_the_order_is_left(world: World) -> None:
    order, spec = world.make_map(6, parallelism=3)
    await world.get_bid(order, spec)
    order_id = compute_order_id(scene.CHAIN, order)
    stranger = scene.make_bid(order)
    for first in (0, 0, 2):
        await world.say(scene.make_award(order, stranger, Span(first, 2)))
    await world.get_bid(world.make_order("other"))
    assert order_id in world.daemon.counter.promises, "two segments may still be ours"
    await world.say(scene.make_award(order, stranger, Span(4, 2)))
    await until(lambda: order_id not in world.daemon.counter.promises)


async def test_a_second_lease_on_one_bid_is_given_back(world: World) -> None:
    world.executor.hold = asyncio.Event()
    order, spec = world.make_map(6, parallelism=2)
    bid = await world.get_bid(order, spec)
    first = await world.open_award(order, scene.make_award(order, bid, Span(0, 3)), bid)
    second = await world.open_award(order, scene.make_award(order, bid, Span(3, 3)), bid)
    await world.wait_state(second, LeaseState.RETURNED)
    world.executor.hold.set()
    await world.wait_state(first, LeaseState.SETTLED)


async def test_rounds_that_are_forged_are_not_heeded(world: World) -> None:
    order, spec = world.make_map(6)
    for spans in ((Span(3, 9),), (Span(4, 2), Span(0, 2)), (Span(0, 0),)):
        await announce_round(world, order, spec, 1, spans)
    await world.announce(order, spec, spans=(Span(0, 5),))
    await world.announce(order, spec, round=1, spans=(Span(0, 6),), closes=world.chain.clock.now() + 600_000)
    await world.get_bid(world.make_order("good"))
    assert not world.bids(order) and not world.declines(order)


# Inputs that are not what the order names


async def test_items_that_are_not_those_of_the_order_are_not_run(world: World) -> None:
    order, spec = world.make_map(3, start=compute_item_root([values.pack("other")]))
    lease = await world.open_lease(order, spec=spec)
    await world.wait_state(lease, LeaseState.RETURNED)
    assert not world.executor.ran and lease not in world.broker.deliveries


async def test_a_state_that_is_not_its_digest_is_not_run(world: World) -> None:
    start = compute_digest(b"the state")
    world.broker.blobs[start] = b"another state"
    order, spec = world.make_train(4)
    lease = await world.open_lease(order, spec=spec, span=Span(2, 2), start=start)
    await world.wait_state(lease, LeaseState.RETURNED)
    assert not world.executor.ran


async def test_a_state_longer_than_the_job_may_give_out_is_not_fetched(world: World) -> None:
    state = bytes(2_000)
    world.broker.blobs[compute_digest(state)] = state
    order, spec = world.make_train(4)
    spec = msgspec.structs.replace(spec, resources=msgspec.structs.replace(spec.resources, output_bytes=1_000))
    order = world.make_order("tight", spec=spec, segments=4, segment_wall=1_000)
    lease = await world.open_lease(order, spec=spec, span=Span(2, 2), start=compute_digest(state))
    await world.wait_state(lease, LeaseState.RETURNED)


ITEMS = [values.pack(number) for number in range(3)]
PACKED = b"".join(bytes(part) for part in values.pack_list(ITEMS))
LISTS = {
    "empty": b"",
    "no list": values.pack({"a": 1}),
    "cut": PACKED[:-1],
    "one too many": b"".join(bytes(part) for part in values.pack_list([*ITEMS, values.pack(9)])),
    "other order": b"".join(bytes(part) for part in values.pack_list(ITEMS[::-1])),
    "random": bytes(range(256)) * 4,
}


@pytest.mark.parametrize("name", LISTS)
def test_only_the_items_of_the_order_pass(tmp_path: Path, name: str) -> None:
    path = tmp_path / "items"
    order = scene.make_order(kind=Kind.MAP, segments=3, start=compute_item_root(ITEMS))
    path.write_bytes(PACKED)
    check_items(path, order)
    path.write_bytes(LISTS[name])
    with pytest.raises(Refused) as caught:
        check_items(path, order)
    assert caught.value.rule == "inputs.items"


@pytest.mark.parametrize("segments", [2, 4])
def test_an_order_over_another_number_of_items_than_it_names_is_not_run(tmp_path: Path, segments: int) -> None:
    path = tmp_path / "items"
    path.write_bytes(PACKED)
    with pytest.raises(Refused, match=f"3 items where the order has {segments}"):
        check_items(path, scene.make_order(kind=Kind.MAP, segments=segments, start=compute_item_root(ITEMS)))


# Events of many segments


async def test_segments_that_follow_closely_are_told_together_and_slow_ones_at_once() -> None:
    told: list[int] = []
    gathering = Gathering(SegmentsRan(0, "ns", "openblas", ()), lambda event: told.append(len(event.segments)))
    gathering.add([scene.make_segment(0)])
    assert told == [1], "after a pause at once"
    for index in range(1, 6):
        gathering.add([scene.make_segment(index)])
    assert told == [1]
    await until(lambda: len(told) == 2)
    assert told == [1, 5]
    gathering.add([scene.make_segment(index) for index in range(6, 606)])
    assert told[2:] == [MAX_BATCH, MAX_BATCH], "an event holds so many"
    gathering.add([scene.make_segment(606)], hold=True)
    assert [one.index for one in gathering.take()] == list(range(518, 607)) and gathering.take() == ()


async def test_a_run_that_was_ended_tells_nothing_more() -> None:
    told: list[SegmentsRan] = []
    gathering = Gathering(SegmentsRan(0, "ns", "openblas", ()), told.append)
    for index in range(2):
        gathering.add([scene.make_segment(index)])
    timer = gathering._timer
    gathering.close()
    assert timer is not None and timer.cancelled()
    assert len(told) == 1 and gathering.take() == ()
