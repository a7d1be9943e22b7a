"""Carries out what the purchase machine asks for: one job, its machine, its driver, its two long polls.

Expected failures come back as events. Not here: decisions (`requester.purchase`), blobs (`transfers`), what is told
(`telling`), and who asked for the job (`market`).
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, assert_never

from broker.protocol.api import Advanced, Delivered, Events
from broker.rpc.client import BrokerClient
from chain.base.errors import Fault, TallyError, Unavailable
from chain.base.hashing import compute_digest
from chain.base.keys import Signer
from chain.ledger.transactions import Settle, sign_transaction
from chain.rpc.schema import LeaseView, LedgerEvent
from chain.runtime.clock import Clock
from chain.runtime.driver import Driver
from requester.client.board import Board
from requester.client.telling import Teller
from requester.client.transfers import Transfers
from requester.purchase import events as e
from requester.purchase.deliveries import list_needed
from requester.purchase.documents import RecordChunk
from requester.purchase.machine import Purchase
from requester.purchase.phases import Phase
from requester.store.jobs import JobStore

if TYPE_CHECKING:
    from chain.rpc.client import ChainClient

POLL_MS = 25_000
"""How long one long poll waits for news."""

FIRST_PAUSE = 0.2
LAST_PAUSE = 10.0
"""Seconds between tries of a long poll while the other side is gone; doubled from the first to the last."""

VALID_MS = 90_000
"""How long a transaction of ours may take to be included; R15 allows 120 s."""

PROOF_SECONDS = 10.0
"""How long the proofs of how leases ended are waited for once the job is over."""

PROOF_TRIES = 4

Reply = e.PurchaseEvent | None


@dataclass(frozen=True)
class Means:
    """What a runner works with."""

    store: JobStore
    broker: BrokerClient
    chain: ChainClient
    signer: Signer
    clock: Clock


class JobRunner:
    """Drives one job until its phase is over; `wait` returns that phase. The caller owns the job in the store."""

    def __init__(self, means: Means, job: bytes, board: Board) -> None:
        documents = means.store.load_documents(job)
        self.job = job
        self.machine = Purchase(documents.chain, means.signer, documents.order, documents.spec, documents.items)
        self._means = means
        self._name = f"purchase/{job.hex()}"
        self._teller = Teller(self.machine, board, named=bool(means.store.journal.load(self._name)))
        self._transfers = Transfers(means.store.blobs, means.broker, self._teller.tell_transfer)
        self._polls: dict[str, asyncio.Task[None]] = {}
        self._proofs: dict[bytes, asyncio.Task[None]] = {}
        self._proven = {papers.lease for papers in documents.leases if papers.state is not None}
        self._moved = asyncio.Event()
        self._deaf = False
        self._driver: Driver[e.PurchaseEvent, e.PurchaseEffect] = Driver(
            self._name,
            self.machine,
            self.perform,
            journal=means.store.journal,
            events=e.PurchaseEvent,
            restarted=e.Restarted(),
            clock=means.clock,
        )
        self._driver.on_fault = lambda _error: self._moved.set()

    async def start(self) -> None:
        """Rebuild the machine from its journal and go on."""
        await self._driver.start()
        self._note()

    async def wait(self, until: Callable[[Phase], bool]) -> Phase:
        """Until the phase satisfies `until`. Raises `Fault` where the machine broke."""
        while not until(self.machine.phase):
            self._moved.clear()
            await self._moved.wait()
            if self._driver.failed is not None:
                raise Fault(f"the job's machine stopped: {self._driver.failed!r}", rule="job.machine")
        if self._proofs and self.machine.phase.is_over:
            await asyncio.wait(self._proofs.values(), timeout=PROOF_SECONDS)
        return self.machine.phase

    async def close(self) -> None:
        """Stop; the job goes on without us and can be taken up again."""
        tasks = [*self._polls.values(), *self._proofs.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._driver.close()

    # ---- effects ----

    def perform(self, effect: e.PurchaseEffect) -> Coroutine[Any, Any, Reply] | None:
        """Carry out one effect, as the driver asks."""
        match effect:
            case e.TellPhase() | e.TellProgress() | e.TellTrouble() | e.TellSegments():
                self._tell(effect)
            case e.KeepRecords():
                self._means.store.keep_records(self.job, RecordChunk(effect.lease, effect.since, effect.records))
                self._note()
            case e.Listen():
                self._poll("broker", lambda: self._listen(effect.after))
            case e.StopListening():
                self._deaf = True
            case e.WatchChain():
                self._poll("chain", self._watch)
            case e.KeepProof():
                self._keep_proof(effect)
            case _:
                return self._send(effect)
        return None

    def _send(
        self,
        effect: e.SubmitOrder | e.FetchBlobs | e.PostAcceptance | e.SubmitSettle,
    ) -> Coroutine[Any, Any, Reply]:
        match effect:
            case e.SubmitOrder():
                return self._submit(effect)
            case e.FetchBlobs():
                return self._fetch(effect)
            case e.PostAcceptance():
                lease = effect.acceptance.body.lease
                call = self._means.broker.accept(lease, effect.acceptance)
                return _reply(call, e.AcceptancePosted(lease), lambda *why: e.AcceptanceFailed(lease, *why))
            case e.SubmitSettle():
                lease = effect.receipt.body.lease
                return _reply(self._settle(effect), None, lambda *why: e.SettleFailed(lease, *why))
            case _:
                assert_never(effect)

    async def _submit(self, effect: e.SubmitOrder) -> Reply:
        try:
            await self._means.broker.submit(await self._transfers.attach(effect.submission))
        except TallyError as error:
            return e.SubmitFailed(error.rule, error.message[:2_000], again=isinstance(error, Unavailable))
        return e.Submitted()

    async def _fetch(self, effect: e.FetchBlobs) -> Reply:
        lot = next((lot for lot in self.machine.lots if lot.lease == effect.lease), None)
        sizes = {} if lot is None else {record.output: record.usage.bytes_out for record in lot.records}
        return await self._transfers.fetch(effect, sizes, self._teller.say_trouble)

    async def _settle(self, effect: e.SubmitSettle) -> None:
        now, chain = self._means.clock.now(), self.machine.chain
        body = Settle(effect.receipt, effect.acceptance)
        signed = sign_transaction(self._means.signer, chain, body, now + VALID_MS, secrets.token_bytes(16))
        await self._means.chain.submit(signed)

    # ---- proofs ----

    def _keep_proof(self, effect: e.KeepProof) -> None:
        running = self._proofs.get(effect.lease)
        if effect.lease not in self._proven and (running is None or running.done()):
            self._proofs[effect.lease] = asyncio.get_running_loop().create_task(self._prove(effect))

    async def _prove(self, effect: e.KeepProof) -> None:
        """Proofs of how a lease ended; a node that does not answer is asked again."""
        chain, pause = self._means.chain, FIRST_PAUSE
        for left in reversed(range(PROOF_TRIES)):
            try:
                proof = await chain.proof(bytes.fromhex(effect.tx)) if effect.tx else None
                state = await chain.prove_lease(effect.lease)
            except (TallyError, ValueError) as error:
                self._teller.say_trouble("proof", str(error))
                if left and isinstance(error, Unavailable):
                    await asyncio.sleep(pause)
                    pause *= 2
                    continue
                return
            self._means.store.keep_proof(self.job, effect.lease, proof, state)
            self._proven.add(effect.lease)
            return

    # ---- telling ----

    def _tell(self, effect: e.TellPhase | e.TellProgress | e.TellTrouble | e.TellSegments) -> None:
        if isinstance(effect, e.TellPhase):
            self._note()
        if not isinstance(effect, e.TellProgress):
            self._teller.look()
        self._teller.tell(effect)
        if isinstance(effect, e.TellPhase):
            self._moved.set()

    def _note(self) -> None:
        machine = self.machine
        self._means.store.update(self.job, machine.phase, (machine.rule, machine.text), machine.documents)

    # ---- long polls ----

    def _poll(self, name: str, start: Callable[[], Coroutine[Any, Any, None]]) -> None:
        running = self._polls.get(name)
        if running is None or running.done():
            self._polls[name] = asyncio.get_running_loop().create_task(start())

    async def _listen(self, after: int) -> None:
        """Hear the broker until the job is over; a restarted broker goes on where it was."""
        pause = FIRST_PAUSE
        while not self.machine.phase.is_over and not self._deaf:
            try:
                page = await self._means.broker.events(self.job, after, POLL_MS)
            except TallyError as error:
                self._teller.say_trouble(error.rule, error.message)
                await asyncio.sleep(pause)
                pause = min(pause * 2, LAST_PAUSE)
                continue
            pause = FIRST_PAUSE
            await self._hear(page, after)
            after = page.next

    async def _hear(self, page: Events, after: int) -> None:
        """Blobs first: what an event names is here when it is looked at. What none names is not kept."""
        named: set[bytes] = set()
        for item in page.items:
            if isinstance(item, Delivered):
                named.update(list_needed(item.delivery.receipt.body, item.delivery.records))
        blobs = [blob for blob in page.blobs if compute_digest(blob) in named]
        if blobs:
            await asyncio.to_thread(self._means.store.blobs.put_many, blobs)
        for item in page.items:
            if isinstance(item, Advanced):
                self._driver.post(e.Moved(item))
            else:
                self._driver.post(e.Heard(item, page.next if item is page.items[-1] else after))

    async def _watch(self) -> None:
        """Watch the chain for this order's leases until the job is over."""
        after, pause = 0, FIRST_PAUSE
        while not self.machine.phase.is_over:
            try:
                page = await self._means.chain.events([self.job], after, POLL_MS)
            except TallyError as error:
                self._teller.say_trouble(error.rule, error.message)
                await asyncio.sleep(pause)
                pause = min(pause * 2, LAST_PAUSE)
                continue
            after, pause = page.next, FIRST_PAUSE
            for event in page.events:
                if event.lease is not None:
                    self._driver.post(_read_lease(event, event.lease))
            if page.events:
                self._note()
                self._teller.look()


def _read_lease(event: LedgerEvent, lease: LeaseView) -> e.LeaseSeen:
    return e.LeaseSeen(
        lease=bytes.fromhex(lease.id),
        state=lease.state,
        first=lease.first,
        count=lease.count,
        held=lease.held,
        served=lease.served,
        receipt=bytes.fromhex(lease.receipt),
        paid=lease.paid,
        commission=lease.commission,
        refunded=lease.refunded,
        damages=lease.damages,
        burned=lease.burned,
        height=event.height,
        time=event.time,
        tx=event.tx,
    )


async def _reply(call: Awaitable[None], done: Reply, failed: Callable[[str, str], e.PurchaseEvent]) -> Reply:
    """The event that says what came of a call."""
    try:
        await call
    except TallyError as error:
        return failed(error.rule[:2_000], error.message[:2_000])
    return done
