"""Carries out what the purchase machine asks for: one job, its machine, its driver, its two long polls.

Expected failures come back as events. Not here: decisions (`requester.purchase`), and who asked for the job (`market`).
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, assert_never

import msgspec

from broker.protocol.api import INLINE_BYTES, Advanced, Delivered, JobEvent, Submission
from broker.rpc.client import BrokerClient
from chain.base.errors import Fault, Refused, TallyError, Unavailable
from chain.base.keys import Signer
from chain.ledger.transactions import Settle, sign_transaction
from chain.rpc.client import ChainClient
from chain.rpc.schema import LeaseView, LedgerEvent
from chain.runtime.clock import Clock
from chain.runtime.driver import Driver
from requester.client.news import Hooks, News
from requester.purchase import events as e
from requester.purchase.machine import Purchase
from requester.purchase.phases import LEASE_ENDS, Phase
from requester.store.jobs import JobStore

POLL_MS = 25_000
"""How long one long poll waits for news."""

FIRST_PAUSE = 0.2
LAST_PAUSE = 10.0
"""Seconds between tries of a long poll while the other side is gone; doubled from the first to the last."""

VALID_MS = 90_000
"""How long a transaction of ours may take to be included; R15 allows 120 s."""

PROOF_SECONDS = 10.0
"""How long the proof of the settlement is waited for once the job is over."""

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

    def __init__(self, means: Means, job: bytes, hooks: Hooks) -> None:
        documents = means.store.load_documents(job)
        self.job = job
        self.machine = Purchase(documents.chain, means.signer, documents.order, documents.spec)
        self._means = means
        self._hooks = hooks
        self._name = f"purchase/{job.hex()}"
        self._polls: dict[str, asyncio.Task[None]] = {}
        self._proofs: list[asyncio.Task[None]] = []
        self._moved = asyncio.Event()
        self._shown = 0
        self._named = False
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
        self._named = bool(self._means.store.journal.load(self._name))
        await self._driver.start()
        self._note()

    async def wait(self, until: Callable[[Phase], bool]) -> Phase:
        """Until the phase satisfies `until`. Raises `Fault` where the machine broke."""
        while not until(self.machine.phase):
            self._moved.clear()
            await self._moved.wait()
            if self._driver.failed is not None:
                raise Fault(f"the job's machine stopped: {self._driver.failed!r}", rule="job.machine")
        if self._proofs:
            await asyncio.wait(self._proofs, timeout=PROOF_SECONDS)
        return self.machine.phase

    async def close(self) -> None:
        """Stop; the job goes on without us and can be taken up again."""
        tasks = [*self._polls.values(), *self._proofs]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._driver.close()

    # ---- effects ----

    def perform(self, effect: e.PurchaseEffect) -> Coroutine[Any, Any, Reply] | None:
        """Carry out one effect, as the driver asks."""
        match effect:
            case e.TellPhase() | e.TellProgress() | e.TellTrouble():
                self._tell(effect)
            case e.Listen():
                self._poll("broker", lambda: self._listen(effect.after))
            case e.WatchChain():
                self._poll("chain", self._watch)
            case e.KeepProof():
                self._proofs.append(asyncio.get_running_loop().create_task(self._keep_proof(effect.tx)))
            case e.FetchBlobs():
                return self._fetch(effect)
            case _:
                return self._send(effect)
        return None

    def _send(
        self,
        effect: e.SubmitOrder | e.PostAcceptance | e.SubmitSettle,
    ) -> Coroutine[Any, Any, Reply]:
        match effect:
            case e.SubmitOrder():
                return self._submit(effect.submission)
            case e.PostAcceptance():
                lease = effect.acceptance.body.lease
                call = self._means.broker.accept(lease, effect.acceptance)
                return _reply(call, e.AcceptancePosted(), e.AcceptanceFailed)
            case e.SubmitSettle():
                return _reply(self._settle(effect), None, e.SettleFailed)
            case _:
                assert_never(effect)

    async def _submit(self, submission: Submission) -> Reply:
        blobs = [self._means.store.blobs.get(digest) for digest in (submission.spec.code, submission.spec.inputs)]
        here = [blob for blob in dict.fromkeys(blobs) if blob]
        try:
            if sum(map(len, here)) <= INLINE_BYTES:
                submission = msgspec.structs.replace(submission, blobs=tuple(here))
            else:
                for blob in here:
                    await self._means.broker.put_blob(blob)
            await self._means.broker.submit(submission)
        except TallyError as error:
            return e.SubmitFailed(error.rule, error.message[:2_000], again=isinstance(error, Unavailable))
        return e.Submitted()

    async def _settle(self, effect: e.SubmitSettle) -> None:
        now, chain = self._means.clock.now(), self.machine.chain
        body = Settle(effect.receipt, effect.acceptance)
        signed = sign_transaction(self._means.signer, chain, body, now + VALID_MS, secrets.token_bytes(16))
        await self._means.chain.submit(signed)

    async def _fetch(self, effect: e.FetchBlobs) -> Reply:
        found: list[e.Found] = []
        for digest in effect.digests:
            data = self._means.store.blobs.get(digest)
            if data is None:
                try:
                    data = await self._means.broker.get_blob(digest, effect.max_bytes)
                except Unavailable as error:
                    return e.FetchFailed(error.message[:2_000])
                except (Refused, Fault) as error:
                    self._hooks.tell(News("trouble", self.job.hex(), text=error.message, rule=error.rule))
                    continue
                self._means.store.blobs.put(data)
            found.append(e.Found(digest, len(data)))
        return e.BlobsFetched(tuple(found))

    async def _keep_proof(self, tx: str) -> None:
        try:
            self._means.store.keep_proof(self.job, await self._means.chain.proof(bytes.fromhex(tx)))
        except (TallyError, ValueError) as error:
            self._hooks.tell(News("trouble", self.job.hex(), text=str(error), rule="proof"))

    # ---- telling ----

    def _tell(self, effect: e.TellPhase | e.TellProgress | e.TellTrouble) -> None:
        job = self.job.hex()
        if not self._named:
            self._named = True
            self._hooks.tell(News("signed", job))
        match effect:
            case e.TellPhase():
                self._note()
                self._hooks.tell(News("phase", job, effect.phase, text=effect.text, rule=effect.rule))
                self._moved.set()
            case e.TellTrouble():
                self._hooks.tell(News("trouble", job, text=effect.text, rule=effect.rule))
            case e.TellProgress():
                self._tell_progress(effect.item)
            case _:
                assert_never(effect)

    def _tell_progress(self, item: Advanced) -> None:
        """Output that was shown already (a chunk sent twice) is not shown again."""
        fresh = item.log[max(0, self._shown - item.log_offset) :]
        self._shown = max(self._shown, item.log_offset + len(item.log))
        if fresh:
            self._hooks.tell(News("output", self.job.hex(), output=fresh))
        self._hooks.tell(News("progress", self.job.hex(), done=item.done, total=item.total))

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
        while not self.machine.phase.is_over:
            try:
                page = await self._means.broker.events(self.job, after, POLL_MS)
            except TallyError as error:
                self._hooks.tell(News("trouble", self.job.hex(), text=error.message, rule=error.rule))
                await asyncio.sleep(pause)
                pause = min(pause * 2, LAST_PAUSE)
                continue
            pause = FIRST_PAUSE
            for item in page.items:
                self._hear(item, page.next if item is page.items[-1] else after)
            after = page.next

    def _hear(self, item: JobEvent, after: int) -> None:
        if isinstance(item, Advanced):
            self._driver.post(e.Moved(item))
            return
        if isinstance(item, Delivered):
            for blob in item.delivery.blobs:
                self._means.store.blobs.put(blob)
            item = msgspec.structs.replace(item, delivery=msgspec.structs.replace(item.delivery, blobs=()))
        self._driver.post(e.Heard(item, after))

    async def _watch(self) -> None:
        """Watch the chain for this order's lease until it is over."""
        after, pause = 0, FIRST_PAUSE
        while not self._is_lease_over:
            try:
                page = await self._means.chain.events([self.job], after, POLL_MS)
            except TallyError as error:
                self._hooks.tell(News("trouble", self.job.hex(), text=error.message, rule=error.rule))
                await asyncio.sleep(pause)
                pause = min(pause * 2, LAST_PAUSE)
                continue
            after, pause = page.next, FIRST_PAUSE
            for event in page.events:
                if event.lease is not None:
                    self._driver.post(_read_lease(event, event.lease))
            if page.events:
                self._note()

    @property
    def _is_lease_over(self) -> bool:
        lease = self.machine.lease
        return lease is not None and lease.state in LEASE_ENDS


def _read_lease(event: LedgerEvent, lease: LeaseView) -> e.LeaseSeen:
    return e.LeaseSeen(
        lease=bytes.fromhex(lease.id),
        state=lease.state,
        paid=lease.paid,
        commission=lease.commission,
        refunded=lease.refunded,
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
