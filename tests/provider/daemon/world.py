"""A market of doubles around one real daemon: chain, broker, bus and executor that can fail and be inspected."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from broker.bus import LocalBus, LocalHub, Will
from broker.protocol import topics
from broker.protocol.api import Delivery
from broker.protocol.jobs import JobSpec, Level
from broker.protocol.messages import Announcement, Decline, Offer, Progress, read_from_provider, sign_message
from chain.base.codec import encode
from chain.base.errors import Fault, Refused, Unavailable
from chain.base.hashing import Tag, compute_digest
from chain.base.keys import Signed, Signer
from chain.ledger.terms.agreement import Award, Bid, Order, compute_lease_id, compute_order_id
from chain.ledger.terms.outcome import Cause, Usage
from chain.ledger.terms.work import Acceptance, StorageReceipt, compute_receipt_id
from chain.ledger.transactions import (
    Deliver,
    GiveBack,
    RegisterProvider,
    Settle,
    SignedTransaction,
    compute_transaction_id,
)
from chain.rpc.schema import AccountView, ChainInfo, EventsPage, LeaseView, LedgerEvent, TxOutcome
from chain.runtime.clock import SystemClock
from provider.daemon.daemon import Daemon
from provider.daemon.links import Gear, Host
from provider.daemon.settings import ProviderSettings
from provider.daemon.workspace import Workspace
from provider.sandbox.spec import Ended, LogChunk, SandboxEvent, SegmentDone, Started, Task
from provider.work.events import LeaseState
from provider.work.machine import Patience
from tests.provider import scene

CREDIT = 1_000_000
QUICK = Patience(acceptance=200, start=500, deadline=500, overhead=100)


class FakeChain:
    """Accounts and leases as the provider sees them. While `down` every call fails; `submitted` is what was tried."""

    def __init__(self) -> None:
        self.clock = SystemClock()
        self.accounts: dict[bytes, AccountView] = {}
        self.views: dict[bytes, LeaseView] = {}
        self.final: dict[bytes, TxOutcome] = {}
        self.submitted: list[Any] = []
        self.done: Counter[tuple[str, str]] = Counter()
        self.down = False
        self.refuse: dict[type, str] = {}
        self.fee = 1_000
        self._log: list[LedgerEvent] = []
        self._news = asyncio.Condition()

    def fund(self, key: bytes, balance: int, bond: int = 0) -> None:
        self.accounts[key] = AccountView(
            key=key.hex(), known=True, balance=balance, provider=bond > 0, bond=bond, set_aside=0
        )

    def _check(self) -> None:
        if self.down:
            raise Unavailable("no chain node answers", rule="chain.unreachable")

    async def info(self) -> ChainInfo:
        self._check()
        return ChainInfo(
            version=1, software="fake", chain=scene.CHAIN.hex(), name="testnet", height=len(self._log),
            time=self.clock.now(), seats=1, fee=self.fee, deposit=10_000, min_bond=CREDIT, private=False,
        )  # fmt: skip

    async def account(self, key: bytes) -> AccountView:
        self._check()
        unknown = AccountView(key=key.hex(), known=False, balance=0, provider=False, bond=0, set_aside=0)
        return self.accounts.get(key, unknown)

    async def lease(self, lease: bytes) -> LeaseView | None:
        self._check()
        return self.views.get(lease)

    async def leases(
        self,
        provider: bytes | None = None,
        requester: bytes | None = None,
        order: bytes | None = None,
        live: bool | None = None,
    ) -> list[LeaseView]:
        self._check()
        return [view for view in self.views.values() if LeaseState(view.state).is_live is live]

    async def events(self, topics: Sequence[bytes], after: int, wait_ms: int = 0) -> EventsPage:
        self._check()
        async with self._news:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_ms / 1000):
                    await self._news.wait_for(lambda: len(self._log) > after or self.down)
        self._check()
        return EventsPage(next=len(self._log), events=self._log[after:])

    async def submit(self, tx: SignedTransaction, wait_ms: int = 10_000) -> TxOutcome:
        body, tx_id = tx.body.body, compute_transaction_id(tx.body)
        self.submitted.append(body)
        self._check()
        if tx_id in self.final:
            return self.final[tx_id]
        rule = self.refuse.get(type(body))
        if rule is not None:
            raise Refused("refused by the test", rule=rule)
        await self._apply(tx.body.sender, body)
        self.final[tx_id] = TxOutcome(id=tx_id.hex(), height=len(self._log), time=self.clock.now())
        return self.final[tx_id]

    async def _apply(self, sender: bytes, body: Any) -> None:
        match body:
            case RegisterProvider(bond):
                account = self.accounts[sender]
                self.fund(sender, account.balance - bond - self.fee, account.bond + bond)
            case Settle(receipt, acceptance):
                assert acceptance.body.receipt == compute_receipt_id(scene.CHAIN, receipt.body)
                await self._end(receipt.body.lease, LeaseState.SETTLED)
            case Deliver(receipt, _):
                await self._end(receipt.body.lease, LeaseState.DELIVERED)
            case GiveBack(lease):
                await self._end(lease, LeaseState.RETURNED)
            case _:
                raise Refused("not in this test", rule="test.body")

    async def _end(self, lease: bytes, state: LeaseState) -> None:
        view = self.views.get(lease)
        if view is None or not LeaseState(view.state).is_live or view.state == state.value:
            raise Refused("the lease is not live", rule="lease.unknown")
        self.done[lease.hex(), state.value] += 1
        await self.move(lease, state)

    async def move(self, lease: bytes, state: LeaseState) -> None:
        """Change a lease's state in a new block."""
        view = msgspec.structs.replace(self.views[lease], state=state.value)
        self.views[lease] = view
        await self.happen(view)

    async def happen(self, view: LeaseView) -> None:
        self.views[bytes.fromhex(view.id)] = view
        event = LedgerEvent(height=len(self._log) + 1, time=self.clock.now(), kind="lease", tx="", lease=view)
        async with self._news:
            self._log.append(event)
            self._news.notify_all()

    async def fail(self, down: bool = True) -> None:
        async with self._news:
            self.down = down
            self._news.notify_all()


class FakeBroker:
    """Blobs, deliveries and acceptances; accepts for the requester at once while `accepting`."""

    def __init__(self) -> None:
        self.blobs: dict[bytes, bytes] = {}
        self.deliveries: dict[bytes, Delivery] = {}
        self.down = False
        self.accepting = True
        self.refuse = ""
        self.fetched: Counter[bytes] = Counter()

    def _check(self) -> None:
        if self.down:
            raise Unavailable("no broker answers", rule="broker.unreachable")

    async def get_blob(self, digest: bytes, max_bytes: int) -> bytes:
        await asyncio.sleep(0)
        self._check()
        self.fetched[digest] += 1
        if digest not in self.blobs:
            raise Refused("no such blob", rule="blob.unknown")
        if len(self.blobs[digest]) > max_bytes:
            raise Refused("too long", rule="blob.size")
        return self.blobs[digest]

    async def put_blob(self, data: bytes) -> bytes:
        self._check()
        self.blobs[compute_digest(data)] = data
        return compute_digest(data)

    async def deliver(self, lease: bytes, delivery: Delivery) -> Signed[StorageReceipt]:
        await asyncio.sleep(0)
        self._check()
        if self.refuse:
            raise Refused("refused by the test", rule=self.refuse)
        for blob in delivery.blobs:
            self.blobs[compute_digest(blob)] = blob
        named = {delivery.receipt.body.log, *(one.body.output for one in delivery.records)} - {scene.EMPTY}
        assert named <= set(self.blobs), "a blob was not handed in"
        before = self.deliveries.setdefault(lease, delivery)
        assert encode(before.receipt) == encode(delivery.receipt), "two receipts of one lease"
        return scene.store(delivery.receipt)

    async def acceptance(self, lease: bytes, wait_ms: int) -> Signed[Acceptance] | None:
        await asyncio.sleep(0.01)
        self._check()
        if not self.accepting or lease not in self.deliveries:
            return None
        return scene.accept(self.deliveries[lease].receipt)


class FakeExecutor:
    """Runs what `script` says; knows what runs, what ran, and what was ended from outside."""

    def __init__(self) -> None:
        self.running: set[int] = set()
        self.most = 0
        self.ran: Counter[bytes] = Counter()
        self.ended_early = 0
        self.hold: asyncio.Event | None = None
        self.causes: list[Cause] = []
        self.log = b"hello\n"
        self.closed = False

    async def run(self, task: Task, slot: int) -> AsyncGenerator[SandboxEvent, None]:
        assert slot not in self.running, "a slot is used twice at once"
        self.running.add(slot)
        self.most = max(self.most, len(self.running))
        self.ran[task.order_id] += 1
        finished = False
        try:
            cause = self.causes.pop(0) if self.causes else Cause.OK
            if cause is Cause.HOST:
                finished = True
                yield Ended(Cause.HOST, Usage(), "the host failed", "")
                return
            yield Started(0)
            yield LogChunk("out", self.log)
            if self.hold is not None:
                await self.hold.wait()
            await asyncio.sleep(0.002)
            output = b"output of " + task.inputs if cause is Cause.OK else b""
            error = "" if cause is Cause.OK else "Traceback"
            if cause is not Cause.OOM:  # as when the whole sandbox is killed
                yield SegmentDone(0, cause, compute_digest(task.inputs), output, error, Usage(cpu_ms=1), 5)
            finished = True
            yield Ended(cause, Usage(cpu_ms=1), "" if cause is Cause.OK else f"it was {cause}", "ns")
        finally:
            self.ended_early += not finished
            self.running.discard(slot)

    def close(self) -> None:
        self.closed = True


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
        self.daemon = Daemon(gear, self.settings, scene.BROKER.key)
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
            if topic.endswith("presence"):
                self.offers.append(data)
            else:
                self.heard.append(read_from_provider(data, scene.CHAIN))

    # The other side

    def make_order(self, name: str = "order", span: int = 600_000, **changes: Any) -> Order:
        now = self.chain.clock.now()
        times = {"closes": now + 2_000, "deadline": now + span, "expiry": now + 2 * span}
        return scene.make_order(name, **times | changes)

    def make_orders(self, count: int, span: int) -> list[Order]:
        """Orders of the same moment."""
        now = self.chain.clock.now()
        times: dict[str, Any] = {"closes": now + 2_000, "deadline": now + span, "expiry": now + 2 * span}
        return [scene.make_order(f"order {number}", **times) for number in range(count)]

    async def say(self, body: Any, topic: str | None = None, signer: Signer = scene.BROKER) -> None:
        data = body if isinstance(body, bytes) else sign_message(signer, scene.CHAIN, body)
        self.hub.send(topic or topics.orders(scene.CHAIN), data, retain=False)
        await asyncio.sleep(0)

    async def announce(self, order: Order, spec: JobSpec = scene.SPEC) -> Announcement:
        announcement = scene.announce(order, spec)
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

    async def get_bid(self, order: Order, spec: JobSpec = scene.SPEC) -> Signed[Bid]:
        await self.announce(order, spec)
        await until(lambda: bool(self.bids(order)))
        return self.bids(order)[-1]

    async def open_lease(self, order: Order, *, award: bool = True, spec: JobSpec = scene.SPEC) -> bytes:
        """Let our bid win; returns the lease."""
        bid = await self.get_bid(order, spec)
        signed = scene.make_award(order, bid)
        if award:
            await self.say(signed, topics.down(scene.CHAIN, scene.PROVIDER.key))
        return await self.open_award(order, signed)

    async def open_award(self, order: Order, award: Award) -> bytes:
        lease = compute_lease_id(scene.CHAIN, award)
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
        provider=scene.PROVIDER.key.hex(), auctioneer=order.auctioneer.hex(), state="open", replica=0, first=0,
        count=award.count, price=award.price, commission_bps=100, locked=award.price, bond=award.price // 10, paid=0,
        commission=0, refunded=0, burned=0, opened=now, deadline=order.deadline, timer=order.deadline, receipt="",
        served=0,
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
