"""Chain, broker and sandbox as a provider sees them: doubles that can fail and be inspected."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from broker.auction.admission import Agreed, HandedIn, check_delivery, list_delivered_blobs
from broker.protocol import values
from broker.protocol.api import Delivery
from chain.base.codec import encode
from chain.base.errors import Fault, Refused, Unavailable
from chain.base.hashing import compute_digest
from chain.base.keys import Signed
from chain.base.merkle import is_consistent
from chain.ledger.terms.agreement import Kind
from chain.ledger.terms.outcome import Cause, Usage
from chain.ledger.terms.work import Acceptance, Receipt, StorageReceipt, compute_receipt_id
from chain.ledger.transactions import (
    Answer,
    Deliver,
    Extend,
    GiveBack,
    RegisterProvider,
    Settle,
    SignedTransaction,
    compute_transaction_id,
)
from chain.rpc.schema import AccountView, ChainInfo, EventsPage, LeaseView, LedgerEvent, TxOutcome
from chain.runtime.clock import SystemClock
from provider.sandbox.spec import Ended, LogChunk, SandboxEvent, SegmentDone, Started, Task
from provider.work.events import LeaseState
from tests.provider import scene

CREDIT = 1_000_000


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
        self.answered: list[int] = []
        self.served: dict[bytes, int] = {}
        self.receipts: dict[bytes, Receipt] = {}
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
            case Deliver(receipt, _, proof):
                if (receipt.body.lease in self.receipts) != bool(proof):
                    raise Refused("not with its proof", rule="R5.proof")
                await self._end(receipt.body.lease, LeaseState.DELIVERED)
            case Extend(receipt, _, proof):
                await self._extend(receipt.body, proof)
            case Answer(lease, called):
                assert self.views[lease].called == called
                self.answered.append(called)
                await self.move(lease, LeaseState.OPEN)
            case GiveBack(lease):
                view = self.views[lease]
                self.served[lease] = view.served
                if view.served:
                    self.views[lease] = msgspec.structs.replace(view, held=view.served)
                await self._end(lease, LeaseState.DELIVERED if view.served else LeaseState.RETURNED)
            case _:
                raise Refused("not in this test", rule="test.body")

    async def _extend(self, receipt: Receipt, proof: tuple[bytes, ...]) -> None:
        view, known = self.views[receipt.lease], self.receipts.get(receipt.lease)
        if receipt.count <= view.served or (known is None) != (proof == ()):
            raise Refused("not longer, or not with its proof", rule="R5.proof")
        if known is not None and not is_consistent(known.count, known.records, receipt.count, receipt.records, proof):
            raise Refused("does not continue what is here", rule="R5.proof")
        self.receipts[receipt.lease] = receipt
        await self.happen(msgspec.structs.replace(view, served=receipt.count))

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
    """Blobs, deliveries and acceptances; accepts for the requester at once while `accepting`. What is handed in is
    checked as the real one does.
    """

    def __init__(self) -> None:
        self.blobs: dict[bytes, bytes] = {}
        self.agreed: dict[bytes, Agreed] = {}
        self.handed: dict[bytes, HandedIn] = {}
        self.deliveries: dict[bytes, Delivery] = {}
        self.posts: list[Delivery] = []
        self.down = False
        self.accepting = True
        self.refuse = ""
        self.fetched: Counter[bytes] = Counter()
        self.files: list[bytes] = []
        self.parcels: list[int] = []

    def _check(self) -> None:
        if self.down:
            raise Unavailable("no broker answers", rule="broker.unreachable")

    async def get_blob(self, digest: bytes, max_bytes: int) -> bytes:
        await asyncio.sleep(0)
        self._check()
        self.fetched[digest] += 1
        if digest not in self.blobs:
            raise Refused("no such blob", rule="blob.unknown")
        data = self.blobs[digest]
        if len(data) > max_bytes:
            raise Refused("too long", rule="blob.size")
        if compute_digest(data) != digest:
            raise Fault("sent other bytes", rule="blob.digest")
        return data

    async def get_file(
        self, digest: bytes, path: Path, max_bytes: int, on_progress: Callable[[int, int], None] | None = None
    ) -> int:
        return path.write_bytes(await self.get_blob(digest, max_bytes))

    async def put_many(self, blobs: Iterable[bytes]) -> tuple[bytes, ...]:
        self._check()
        taken = {compute_digest(blob): blob for blob in blobs}
        self.parcels.append(len(taken))
        self.blobs |= taken
        return tuple(taken)

    async def put_file(
        self, path: Path, digest: bytes, size: int, on_progress: Callable[[int, int], None] | None = None
    ) -> None:
        self._check()
        data = path.read_bytes()
        if (compute_digest(data), len(data)) != (digest, size):
            raise Refused("the file is another by now", rule="blob.digest")
        self.files.append(digest)
        self.blobs[digest] = data

    async def deliver(self, lease: bytes, delivery: Delivery) -> Signed[StorageReceipt]:
        await asyncio.sleep(0)
        self._check()
        if self.refuse:
            raise Refused("refused by the test", rule=self.refuse)
        for blob in delivery.blobs:
            self.blobs[compute_digest(blob)] = blob
        assert set(list_delivered_blobs(delivery)) <= set(self.blobs), "a blob was not handed in"
        known = self.handed.setdefault(lease, HandedIn())
        if lease in self.deliveries and encode(self.deliveries[lease].receipt) == encode(delivery.receipt):
            return scene.store(delivery.receipt)
        finished = delivery.receipt.body.finished
        new = check_delivery(scene.CHAIN, self.agreed[lease], known, delivery, finished)
        known.add(new, self.agreed[lease].award.count)
        self.posts.append(delivery)
        self.deliveries[lease] = delivery
        return scene.store(delivery.receipt)

    async def acceptance(self, lease: bytes, wait_ms: int) -> Signed[Acceptance] | None:
        await asyncio.sleep(0.01)
        self._check()
        if not self.accepting or lease not in self.deliveries:
            return None
        return scene.accept(self.deliveries[lease].receipt)


class FakeExecutor:
    """Runs what it is told; knows what runs, what ran, and what was ended from outside. After `stop_at` segments of a
    stay it waits for `hold`.
    """

    def __init__(self) -> None:
        self.running: set[int] = set()
        self.most = 0
        self.ran: Counter[bytes] = Counter()
        self.tasks: list[Task] = []
        self.ended_early = 0
        self.hold: asyncio.Event | None = None
        self.stop_at = 0
        self.batch = 1
        self.large = False
        self.causes: list[Cause] = []
        self.log = b"hello\n"
        self.closed = False

    async def batches(self, task: Task, slot: int, spool: Path) -> AsyncGenerator[list[SandboxEvent], None]:
        assert slot not in self.running, "a slot is used twice at once"
        self.running.add(slot)
        self.most = max(self.most, len(self.running))
        self.ran[task.order_id] += 1
        self.tasks.append(task)
        finished = False
        try:
            cause = self.causes.pop(0) if self.causes else Cause.OK
            if cause is Cause.HOST:
                finished = True
                yield [Ended(Cause.HOST, Usage(), "the host failed", "")]
                return
            yield [Started(0), LogChunk("out", self.log)]
            state, last = read_inputs(task), task.first + task.count - 1
            for first in range(task.first, last + 1, self.batch):
                if self.hold is not None and first - task.first >= self.stop_at:
                    await self.hold.wait()
                await asyncio.sleep(0.002)
                events: list[SandboxEvent] = []
                for index in range(first, min(first + self.batch, last + 1)):
                    given = state[index] if isinstance(state, list) else state
                    made = b"output of " + given if task.kind is not Kind.TRAIN else b"state %d" % (index + 1)
                    ended = cause if index == last else Cause.OK
                    events.append(self._finish(index, ended, given, made, spool))
                    state = state if isinstance(state, list) else made
                yield events
            finished = True
            yield [Ended(cause, Usage(cpu_ms=1), "" if cause is Cause.OK else f"it was {cause}", "ns")]
        finally:
            self.ended_early += not finished
            self.running.discard(slot)

    def _finish(self, index: int, cause: Cause, given: bytes, made: bytes, spool: Path) -> SegmentDone:
        output = made if cause is Cause.OK else b""
        error = "" if cause is Cause.OK else "Traceback"
        path, digest = None, compute_digest(output)
        if self.large and output:
            spool.mkdir(parents=True, exist_ok=True)
            path = spool / f"{index}.output"
            path.write_bytes(output)
        return SegmentDone(
            index, cause, compute_digest(given), b"" if path else output, path, digest, len(output), error,
            Usage(cpu_ms=1), 5 + index,
        )  # fmt: skip

    def close(self) -> None:
        self.closed = True


def read_inputs(task: Task) -> bytes | list[bytes]:
    """The items of a map; what the first segment begins with otherwise."""
    data = task.inputs.read_bytes()
    return [bytes(item) for item in values.split(data)] if task.kind is Kind.MAP else data
