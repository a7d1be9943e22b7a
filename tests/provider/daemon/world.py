"""A market of doubles around one real daemon: chain, broker, bus and executor that can fail and be inspected."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from broker.auction.admission import Agreed
from broker.bus import LocalBus, LocalHub, Will
from broker.protocol import topics, values
from broker.protocol.api import Delivery
from broker.protocol.jobs import JobSpec, Level, compute_item_root
from broker.protocol.messages import Announcement, Decline, Offer, Progress, read_from_provider, sign_message
from chain.base.codec import encode
from chain.base.errors import Fault
from chain.base.hashing import Tag, compute_digest
from chain.base.keys import Signed, Signer
from chain.ledger.terms.agreement import Award, Bid, Kind, Order, compute_lease_id, compute_order_id
from chain.ledger.terms.work import Span
from chain.rpc.schema import LeaseView
from chain.runtime.clock import SystemClock
from provider.daemon.daemon import Daemon
from provider.daemon.links import Gear, Host
from provider.daemon.settings import ProviderSettings
from provider.daemon.workspace import Workspace
from provider.work.events import LeaseState
from provider.work.phases import Patience
from tests.provider import scene
from tests.provider.daemon.doubles import CREDIT, FakeBroker, FakeChain, FakeExecutor

QUICK = Patience(acceptance=200, start=500, deadline=500, overhead=100, leaving=500)


class World:
    """One provider among doubles; it can be started, stopped, killed and started again on the same folder."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder
        self.chain, self.broker, self.executor, self.hub = FakeChain(), FakeBroker(), FakeExecutor(), LocalHub()
        self.settings = ProviderSettings(
            home=str(folder), slots=2, memory_mib=4_096, cores=2, **{"drain_s": 1} | settings
        )
        self.chain.fund(scene.PROVIDER.key, 0, 1_000 * CREDIT)
        self.broker.blobs |= {compute_digest(blob): blob for blob in (scene.CODE, scene.INPUTS)}
        self.host = Host(Level.NS, (scene.RUNTIME,), "avx2", "openblas")
        self.heard: list[Any] = []
        self.offers: list[bytes] = []
        self.wills = 0
        self.max_blob = 1 << 30
        self.daemon: Daemon
        self.workspace: Workspace
        self._bus: LocalBus
        self._listener: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """A new life of the daemon."""
        if self._listener is None:
            ear = LocalBus(self.hub)
            await ear.start()
            await ear.subscribe([topics.all_up(scene.CHAIN), topics.all_presence(scene.CHAIN)])
            self._listener = asyncio.create_task(self._listen(ear))
        self.workspace = Workspace(self.folder)
        self._bus = LocalBus(self.hub, Will(topics.presence(scene.CHAIN, scene.PROVIDER.key)))
        slots: asyncio.Queue[int] = asyncio.Queue()
        for slot in range(2):
            slots.put_nowait(slot)
        gear = Gear(
            signer=scene.PROVIDER, chain_id=scene.CHAIN, clock=SystemClock(), chain=self.chain, broker=self.broker,
            bus=self._bus, executor=self.executor, slots=slots, workspace=self.workspace,
            host=self.host, patience=QUICK,
        )  # fmt: skip
        self.daemon = Daemon(gear, self.settings, scene.BROKER.key, self.max_blob)
        await self.daemon.start()

    async def stop(self) -> None:
        """An orderly end."""
        await self.daemon.close()
        await self._bus.close()
        self.workspace.close()

    async def kill(self) -> None:
        """As `kill -9`: nobody is asked, nothing more is written; sandboxes die with their daemon."""
        self.daemon.counter.is_open = False
        self.workspace.journal.append = _write_nothing  # type: ignore[method-assign]  # the process is gone
        self.workspace.journal.drop = lambda *_: None  # type: ignore[method-assign]  # as above
        await self.daemon._tasks.close()
        await self.daemon.counter.close()
        for keeper in list(self.daemon.leases.values()):
            await keeper.close()
        await self._bus.close()
        self.workspace.close()

    async def close(self) -> None:
        if self._listener is not None:
            self._listener.cancel()

    async def _listen(self, ear: LocalBus) -> None:
        async for topic, data in ear.messages():
            if topic.endswith("presence") and data:
                self.offers.append(data)
            elif topic.endswith("presence"):
                self.wills += 1
            else:
                self.heard.append(read_from_provider(data, scene.CHAIN))

    # The other side

    def make_order(self, name: str = "order", span: int = 600_000, **changes: Any) -> Order:
        now = self.chain.clock.now()
        times = {"closes": now + 2_000, "deadline": now + span, "expiry": now + 2 * span}
        return scene.make_order(name, **times | changes)

    def make_map(self, items: int, name: str = "map", **changes: Any) -> tuple[Order, JobSpec]:
        """An order of a map over so many items, which lie at the broker."""
        parts = [values.pack(f"item {number}") for number in range(items)]
        return self.put_job(Kind.MAP, b"".join(values.pack_list(parts)), items, name, compute_item_root(parts), changes)

    def make_train(self, steps: int, name: str = "train", **changes: Any) -> tuple[Order, JobSpec]:
        """An order of a train of so many steps."""
        return self.put_job(Kind.TRAIN, b"state 0", steps, name, compute_digest(b"state 0"), changes)

    def put_job(
        self, kind: Kind, inputs: bytes, segments: int, name: str, start: bytes, changes: dict[str, Any]
    ) -> tuple[Order, JobSpec]:
        self.broker.blobs[compute_digest(inputs)] = inputs
        parallelism, resources = changes.pop("parallelism", 1), changes.pop("resources", None)
        spec = scene.make_spec(
            resources=resources,
            kind=kind,
            inputs=compute_digest(inputs),
            input_bytes=len(inputs),
            parallelism=parallelism,
        )
        terms: dict[str, Any] = {"spec": spec, "segments": segments, "segment_wall": 1_000, "start": start}
        return self.make_order(name, **terms | changes), spec

    def make_orders(self, count: int, span: int) -> list[Order]:
        """Orders of the same moment."""
        now = self.chain.clock.now()
        times: dict[str, Any] = {"closes": now + 2_000, "deadline": now + span, "expiry": now + 2 * span}
        return [scene.make_order(f"order {number}", **times) for number in range(count)]

    async def say(self, body: Any, topic: str | None = None, signer: Signer = scene.BROKER) -> None:
        data = body if isinstance(body, bytes) else sign_message(signer, scene.CHAIN, body)
        self.hub.send(topic or topics.orders(scene.CHAIN), data, retain=False)
        await asyncio.sleep(0)

    async def announce(self, order: Order, spec: JobSpec = scene.SPEC, **changes: Any) -> Announcement:
        announcement = scene.announce(order, spec, **changes)
        await self.say(announcement)
        return announcement

    def bids(self, order: Order) -> list[Signed[Bid]]:
        order_id = compute_order_id(scene.CHAIN, order)
        return [one for one in self.heard if isinstance(one.body, Bid) and one.body.order == order_id]

    def declines(self, order: Order) -> list[Decline]:
        order_id = compute_order_id(scene.CHAIN, order)
        return [one.body for one in self.heard if isinstance(one.body, Decline) and one.body.order == order_id]

    def progress(self, lease: bytes) -> list[Progress]:
        return [one.body for one in self.heard if isinstance(one.body, Progress) and one.body.lease == lease]

    async def get_bid(self, order: Order, spec: JobSpec = scene.SPEC, **changes: Any) -> Signed[Bid]:
        before = len(self.bids(order))
        await self.announce(order, spec, **changes)
        await until(lambda: len(self.bids(order)) > before)
        return self.bids(order)[-1]

    async def open_lease(
        self,
        order: Order,
        *,
        award: bool = True,
        spec: JobSpec = scene.SPEC,
        span: Span | None = None,
        start: bytes | None = None,
    ) -> bytes:
        """Let our bid win (a span of the order); returns the lease."""
        bid = await self.get_bid(order, spec)
        signed = scene.make_award(order, bid, span, start)
        if award:
            await self.say(signed, topics.down(scene.CHAIN, scene.PROVIDER.key))
        return await self.open_award(order, signed, bid)

    async def open_award(self, order: Order, award: Award, bid: Signed[Bid] | None = None) -> bytes:
        lease = compute_lease_id(scene.CHAIN, award)
        self.broker.agreed[lease] = Agreed(lease, award, (bid or scene.make_bid(order)).body, order.kind)
        await self.chain.happen(make_view(lease, order, award, self.chain.clock.now()))
        return lease

    async def wait_state(self, lease: bytes, state: LeaseState) -> None:
        """Until the chain has the lease in this state."""
        await until(lambda: self.chain.views[lease].state == state.value, lambda: repr(self.chain.views[lease].state))

    async def wait_gone(self, lease: bytes) -> None:
        """Until the daemon has forgotten the lease."""
        await until(lambda: lease not in self.daemon.leases and lease not in self.workspace.list_leases())

    def read_offer(self) -> Offer:
        offer = read_from_provider(self.offers[-1], scene.CHAIN).body
        assert isinstance(offer, Offer)
        return offer


def _write_nothing(machine: str, now: int, event: bytes) -> None:
    """What is not written has no effects either."""
    raise Fault("this life is over", rule="test.killed")


def make_view(lease: bytes, order: Order, award: Award, now: int) -> LeaseView:
    """An open lease as the chain shows it."""
    return LeaseView(
        id=lease.hex(), order=award.order.hex(), award="", requester=order.requester.hex(),
        provider=scene.PROVIDER.key.hex(), auctioneer=order.auctioneer.hex(), state="open", replica=0,
        first=award.first, count=award.count, price=award.price, commission_bps=100, locked=award.price,
        bond=award.price // 10, paid=0, commission=0, refunded=0, burned=0, opened=now, deadline=order.deadline,
        timer=order.deadline, receipt="", served=0, held=award.count, cause="", called=0, damages=0,
        start=award.start.hex(),
    )  # fmt: skip


async def until(condition: Callable[[], bool], tell: Callable[[], str] = str, seconds: float = 20) -> None:
    """Wait for a condition; fails loudly if it never comes."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.002)
    assert condition(), tell()


Body = Callable[[World], Awaitable[None]]


def sign_acceptance(delivery: Delivery) -> bytes:
    """The acceptance of a delivery as it goes over the bus."""
    return encode(scene.accept(delivery.receipt))


__all__ = ["CREDIT", "QUICK", "FakeBroker", "FakeChain", "FakeExecutor", "Tag", "World", "make_view", "until"]
