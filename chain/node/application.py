"""Carries out the engine's effects on ledger and store, and tells those who wait for final blocks.

Order of things (store before send): a block is built and executed in memory; the guard records before it signs;
ledger and store commit; only when the disk has all of
it are waiters told and queries answered. While a block is written, transactions gather for the next. Knows no
network and no RPC.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, assert_never

from chain.base.codec import encode
from chain.base.errors import Fault, Refused, TallyError, Unavailable
from chain.consensus.beacon import BeaconChain, compute_beacon
from chain.consensus.engine import (
    BuildBlock,
    Built,
    CommitBlock,
    Committed,
    EngineEffect,
    EngineEvent,
    NothingBuilt,
    SignVote,
    Started,
    StoreBlock,
    VoteSigned,
    WorkSeen,
)
from chain.consensus.seats import Seats
from chain.ledger.blocks import Block, Header
from chain.ledger.genesis import compute_seats_digest
from chain.ledger.ledger import Frame, Ledger
from chain.ledger.mempool import Mempool
from chain.ledger.transactions import SignedTransaction, compute_transaction_id
from chain.node.views import view_event
from chain.rpc.schema import TxOutcome
from chain.runtime.clock import Clock
from chain.store.database import ChainStore, FinalBlock, StoredEvent
from chain.store.guard import SignGuard

__all__ = ["MAX_AHEAD", "Application", "Seat"]

MAX_AHEAD = 500
"""Milliseconds that a block's time may be ahead of the seat's clock (R1)."""

RETRY = 1_000
"""Milliseconds until transactions that went into no block are tried again."""


class Seat:
    """What one seat signs and reveals with."""

    def __init__(self, seats: Seats, guard: SignGuard, beacon: BeaconChain) -> None:
        self.seats = seats
        self.guard = guard
        self.beacon = beacon


class Application:
    """What stands between engine, ledger and store. Set `post` to the engine's driver before that starts."""

    def __init__(self, ledger: Ledger, store: ChainStore, seat: Seat, clock: Clock) -> None:
        self.ledger = ledger
        self.store = store
        self.mempool = Mempool()
        self.post: Callable[[EngineEvent], None] = _ignore
        self._seat = seat
        self._digest = compute_seats_digest(ledger.chain_id, seat.seats.epoch, seat.seats.keys)
        self._clock = clock
        self._blocks: dict[bytes, Block] = {}
        self._durable = asyncio.Event()
        self._durable.set()
        self._news = asyncio.Event()
        self._waiting: dict[bytes, set[asyncio.Future[TxOutcome]]] = {}
        self._stopping = False

    # ---- what the engine asks for ----

    def make_started(self) -> Started:
        """The engine's first event: where the chain stands."""
        return Started(self.ledger.head.slot, self.ledger.head_id, bool(self.mempool), self.ledger.next_timer())

    def perform(self, effect: EngineEffect) -> Coroutine[Any, Any, EngineEvent | None] | None:
        """Carry out one effect; the performer of the engine's driver."""
        match effect:
            case BuildBlock():
                self.post(self._build(effect))
            case StoreBlock():
                self._check_held(effect.block)
            case SignVote():
                self.post(VoteSigned(self._seat.guard.sign(effect.vote)))
            case CommitBlock():
                return self._commit(effect)
            case _:
                assert_never(effect)
        return None

    def _build(self, effect: BuildBlock) -> Built | NothingBuilt:
        """A block of what is pending and due. Its time is the clock's, greater than the parent's (R1)."""
        now, parent = self._clock.now(), self.ledger.head
        time = max(now, parent.time + 1)
        if time > now + MAX_AHEAD:
            return NothingBuilt(effect.slot, True, self.ledger.next_timer(), time - MAX_AHEAD)
        timer = self.ledger.next_timer()
        proposal = self.ledger.propose(effect.parent, self._make_frame(effect.slot, time), self.mempool.pending())
        for refusal in proposal.refused:
            self._drop(refusal.transaction, refusal.error)
        block = proposal.block
        if not block.transactions and (timer is None or timer >= time):
            retry_at = now + RETRY if self.mempool else None
            return NothingBuilt(effect.slot, bool(self.mempool), timer, retry_at)
        self._blocks[proposal.id] = block
        return Built(effect.slot, proposal.id, encode(block))

    def _make_frame(self, slot: int, time: int) -> Frame:
        reveal = self._seat.beacon.get_reveal(slot)
        beacon = compute_beacon(self.ledger.chain_id, self.ledger.head.beacon, reveal)
        return Frame(
            epoch=self._seat.seats.epoch,
            slot=slot,
            time=time,
            reveal=reveal,
            beacon=beacon,
            seats=self._digest,
            seats_changed=0,
        )

    def _check_held(self, block: bytes) -> None:
        """With one seat nothing leaves before the commit, whose transaction writes the block beside the guard's
        records.
        """
        if block not in self._blocks:
            raise Fault("the engine names a block that was not built here", rule="node.block")

    async def _commit(self, effect: CommitBlock) -> Committed:
        block = self._blocks.pop(effect.block)
        self._durable.clear()
        committed = self.ledger.commit(effect.block)
        ids = [compute_transaction_id(signed.body) for signed in block.transactions]
        self.mempool.remove(ids)
        final = FinalBlock(effect.block, block, effect.certificate, committed.recent)
        events = [view_event(block.header, event) for event in committed.events]
        await asyncio.to_thread(self._write, final, committed.changes, events)
        self._durable.set()
        self._tell(block.header, ids)
        return Committed(effect.slot, bool(self.mempool), self.ledger.next_timer())

    def _write(self, final: FinalBlock, changes: Mapping[bytes, bytes | None], events: Sequence[StoredEvent]) -> None:
        """One transaction: the guard's records since the last one, the block, the state, the events."""
        self.store.put_block(final, changes, events)
        self._seat.guard.decide(final.block.header.slot)
        self.store.flush()

    # ---- what clients ask for ----

    async def settle(self) -> Header:
        """The head, once everything up to it is on disk. Every query begins with this."""
        while not self._durable.is_set():
            await self._durable.wait()
        return self.ledger.head

    async def wait_for_block(self, height: int, deadline: float) -> None:
        """Return once a block above `height` is final, the loop's time is past `deadline`, or the node stops."""
        loop = asyncio.get_running_loop()
        while (await self.settle()).height <= height and loop.time() < deadline and not self._stopping:
            try:
                async with asyncio.timeout_at(deadline):
                    await self._news.wait()
            except TimeoutError:
                return

    async def submit(self, signed: SignedTransaction, wait_ms: int) -> TxOutcome:
        """Take a transaction and wait until it is final; the same one again joins the wait, or gets its outcome.

        Raises `Refused` by the rule it breaks, `Unavailable` under `chain.pending` or as the mempool does.
        """
        tx = compute_transaction_id(signed.body)
        await self.settle()
        outcome = self.get_outcome(tx)
        if outcome is not None:
            return outcome
        if tx not in self.mempool:
            self.ledger.check(signed, self._clock.now())
            self.mempool.add(signed)
        waiter: asyncio.Future[TxOutcome] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tx, set()).add(waiter)
        try:
            self.post(WorkSeen())
            async with asyncio.timeout(wait_ms / 1000):
                return await waiter
        except TimeoutError as error:
            message = f"not final within {wait_ms} ms; submit it again to go on waiting"
            raise Unavailable(message, rule="chain.pending") from error
        finally:
            self._forget_waiter(tx, waiter)

    @property
    def stopping(self) -> bool:
        """Whether those who wait should go."""
        return self._stopping

    def stop(self) -> None:
        """Send home all who wait: the node stops. Their transactions may still become final."""
        self._stopping = True
        for tx in list(self._waiting):
            self._fail(tx, Unavailable("the node stops; submit it again when it runs", rule="node.stopping"))
        self._wake()

    def get_outcome(self, tx: bytes) -> TxOutcome | None:
        """Where a final transaction stands, or None."""
        place = self.store.find_transaction(tx)
        final = self.store.get_block(place[0]) if place else None
        if final is None:
            return None
        return TxOutcome(id=tx.hex(), height=final.block.header.height, time=final.block.header.time)

    def _drop(self, tx: bytes, why: Refused) -> None:
        self.mempool.remove([tx])
        self._fail(tx, why)

    def _fail(self, tx: bytes, why: TallyError) -> None:
        for waiter in self._waiting.get(tx, ()):
            if not waiter.done():
                waiter.set_exception(why)

    def _tell(self, header: Header, ids: Sequence[bytes]) -> None:
        for tx in ids:
            outcome = TxOutcome(id=tx.hex(), height=header.height, time=header.time)
            for waiter in self._waiting.get(tx, ()):
                if not waiter.done():
                    waiter.set_result(outcome)
        self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    def _forget_waiter(self, tx: bytes, waiter: asyncio.Future[TxOutcome]) -> None:
        waiters = self._waiting.get(tx, set())
        waiters.discard(waiter)
        if not waiters:
            self._waiting.pop(tx, None)


def _ignore(_event: EngineEvent) -> None:
    """Before the driver is there."""
