"""A broker and a chain in one process, with the faces of their clients: they sign what real ones would.

What the job does is a row: cause, value, traceback, log, usage. Faults are switched on by name.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from broker.protocol.api import (
    PROTOCOL_VERSION,
    Accepted,
    Advanced,
    Announced,
    Cancellation,
    Delivery,
    Ended,
    Events,
    Info,
    JobEvent,
    Submission,
    Unmatched,
)
from broker.protocol.values import pack
from chain.base.errors import Refused, Unavailable
from chain.base.hashing import Tag, compute_digest
from chain.base.keys import Signed, Signer
from chain.base.merkle import compute_root, prove_inclusion
from chain.base.units import MICRO
from chain.consensus.messages import Certificate, SeatSignature, Step, Vote
from chain.ledger.blocks import Header, compute_block_id
from chain.ledger.genesis import Seat, compute_chain_id, compute_seats_digest, make_genesis, write_genesis
from chain.ledger.terms.outcome import Cause, Usage
from chain.ledger.terms.work import Acceptance
from chain.ledger.transactions import (
    Cancel,
    Settle,
    SignedTransaction,
    compute_transaction_id,
    sign_transaction,
)
from chain.rpc.proofs import Finality, TxProof
from chain.rpc.schema import AccountView, ChainInfo, EventsPage, LeaseView, LedgerEvent, TxOutcome
from chain.runtime import keystore
from requester.client import market as module
from tests.requester.world import BROKER, NOW, PROVIDER, REQUESTER, USAGE, World

SEAT = Signer(b"s" * 32)


@dataclass
class Deed:
    """What the job does on the provider's machine."""

    value: Any = 42
    cause: Cause = Cause.OK
    trace: str = ""
    log: bytes = b"epoch 1\n"
    usage: Usage = USAGE


@dataclass
class FakeMarket:
    """Broker and chain together. `faults` holds names of client methods that find nobody there."""

    deed: Deed = field(default_factory=Deed)
    price: int = 1_000_000
    balance: int = 1_000 * MICRO
    faults: set[str] = field(default_factory=set)
    settles: bool = True
    delivers: bool = True
    inline: bool = True
    bid: bool = True

    def __post_init__(self) -> None:
        grants = [(REQUESTER.key, self.balance)] if self.balance else []
        self.genesis = make_genesis("test", NOW, [Seat(SEAT.key, bytes(32))], grants)
        self.chain = compute_chain_id(self.genesis)
        self.blobs: dict[bytes, bytes] = {}
        self.events: dict[bytes, list[JobEvent]] = {}
        self.worlds: dict[bytes, World] = {}
        self.leases: dict[bytes, LeaseView] = {}
        self.blocks: list[LedgerEvent] = []
        self.proofs: dict[bytes, TxProof] = {}
        self.submitted: list[Any] = []
        self.moved = asyncio.Event()
        self.commission = 200

    def move(self) -> None:
        """Wake every long poll."""
        self.moved.set()
        self.moved = asyncio.Event()

    async def wait(self, wait_ms: int) -> None:
        try:
            async with asyncio.timeout(wait_ms / 1000):
                await self.moved.wait()
        except TimeoutError:
            pass

    def tell(self, order: bytes, *items: JobEvent) -> None:
        self.events.setdefault(order, []).extend(items)
        self.move()

    # ---- an order's life ----

    def take(self, submission: Submission) -> bytes:
        order = submission.order.body
        output = pack(self.deed.value) if self.deed.cause is Cause.OK else b""
        world = World(
            causes=(self.deed.cause,),
            chain=self.chain,
            now=order.closes - 2_000,
            prices=(self.price, self.price + 1),
            output=output,
            trace=self.deed.trace.encode(),
            log=self.deed.log,
            usage=self.deed.usage,
        )
        world.order, world.spec = submission.order, submission.spec
        job = world.order_id
        if job in self.worlds:
            return job
        self.worlds[job] = world
        self.tell(job, Announced(world.now, 2, order.closes))
        if not self.bid:
            return job
        if self.price > order.limit:
            text = f"the lowest price at which someone would have bid is {self.price / MICRO:g} credits per segment"
            self.tell(job, Unmatched(world.now, self.price, text, ()), Ended(world.now, "unmatched", text))
            return job
        self.tell(job, world.closed, world.awarded)
        self.put_lease(world, "open", b"")
        self.tell(job, world.opened, Advanced(world.now, world.lease, 0, 1, (), 0, self.deed.log))
        if self.delivers:
            self.deliver(job)
        return job

    def deliver(self, job: bytes) -> None:
        world = self.worlds[job]
        blobs = tuple(blob for blob in world.blobs if blob)
        if self.inline:
            world.delivery = Delivery(world.receipt, world.records, blobs)
        else:
            self.blobs |= {compute_digest(blob): blob for blob in blobs}
        self.tell(job, world.delivered)

    def put_lease(self, world: World, state: str, tx: bytes) -> None:
        price = world.award.body.price
        commission = price * world.award.body.commission // 10_000
        settled = state == "settled"
        self.leases[world.lease] = view = LeaseView(
            id=world.lease.hex(),
            order=world.order_id.hex(),
            award=world.award_id.hex(),
            requester=REQUESTER.key.hex(),
            provider=PROVIDER.key.hex(),
            auctioneer=BROKER.key.hex(),
            state=state,
            replica=0,
            first=0,
            count=1,
            price=price,
            commission_bps=200,
            locked=price + commission if state == "open" else 0,
            bond=0,
            paid=price if settled else 0,
            commission=commission if settled else 0,
            refunded=0,
            burned=0,
            opened=world.now,
            deadline=world.order.body.deadline,
            timer=0,
            receipt="",
            served=0,
        )
        height = len(self.blocks) + 1
        self.blocks.append(LedgerEvent(height=height, time=world.now, kind="lease", tx=tx.hex(), lease=view))
        self.move()

    def settle(self, signed: SignedTransaction) -> TxOutcome:
        body = signed.body.body
        assert isinstance(body, Settle)
        world = next(world for world in self.worlds.values() if world.lease == body.receipt.body.lease)
        tx = compute_transaction_id(signed.body)
        self.proofs[tx] = self.prove(signed)
        self.put_lease(world, "settled", tx)
        return TxOutcome(id=tx.hex(), height=len(self.blocks), time=world.now)

    def prove(self, signed: SignedTransaction) -> TxProof:
        leaf = compute_transaction_id(signed.body)
        leaves = [leaf, bytes(32)]
        seats = compute_seats_digest(self.chain, 0, [SEAT.key])
        header = Header(
            0, 1, 9, signed.body.valid_until, bytes(32), seats, 0, compute_root(leaves), bytes(32), bytes(32), bytes(32)
        )
        vote = Vote(Step.FINALIZE, 0, 1, compute_block_id(self.chain, header))
        signature = SEAT.sign(Tag.VOTE, self.chain, vote).signature
        finality = Finality(header, (), Certificate(vote, (SeatSignature(0, signature),)))
        return TxProof(finality, signed, 0, 2, prove_inclusion(leaves, 0))

    def check(self, name: str) -> None:
        if name in self.faults:
            part, start = (
                ("broker", "tally-broker run") if name.startswith("broker") else ("chain node", "tally-chain run")
            )
            raise Unavailable(f"no {part} answers at its address; start one with `{start}`", rule=f"{name}.unreachable")


class FakeBroker:
    """The face of `BrokerClient`."""

    def __init__(self, market: FakeMarket, url: str, signer: Signer) -> None:
        self.market = market
        self.url = url
        self.signer = signer

    async def close(self) -> None: ...

    async def info(self) -> Info:
        self.market.check("broker")
        chain, key = self.market.chain.hex(), BROKER.key.hex()
        return Info(PROTOCOL_VERSION, "test", chain, key, "mqtt://", self.market.commission, 86_400_000, 1 << 30, 2)

    async def put_blob(self, data: bytes) -> bytes:
        digest = compute_digest(data)
        self.market.blobs[digest] = data
        return digest

    async def get_blob(self, digest: bytes, max_bytes: int) -> bytes:
        self.market.check("broker.blobs")
        if digest not in self.market.blobs:
            raise Refused("no such blob", rule="blob.unknown")
        return self.market.blobs[digest]

    async def submit(self, submission: Submission) -> bytes:
        self.market.check("broker.submit")
        self.market.blobs |= {compute_digest(blob): blob for blob in submission.blobs}
        self.market.submitted.append(submission)
        return self.market.take(submission)

    async def events(self, order: bytes, after: int, wait_ms: int) -> Events:
        self.market.check("broker.events")
        items = self.market.events.get(order, [])
        if len(items) <= after:
            await self.market.wait(wait_ms)
        return Events(len(items), tuple(items[after:]))

    async def cancel(self, cancellation: Signed[Cancellation]) -> None:
        job = cancellation.body.order
        if self.market.leases:
            raise Refused("a lease is being opened", rule="auction.open")
        self.market.tell(job, Ended(NOW, "withdrawn", "the requester took it back"))

    async def accept(self, lease: bytes, acceptance: Signed[Acceptance]) -> None:
        self.market.check("broker.accept")
        world = next(world for world in self.market.worlds.values() if world.lease == lease)
        self.market.tell(world.order_id, Accepted(NOW, acceptance))
        if self.market.settles:
            body = Settle(world.receipt, acceptance)
            self.market.settle(sign_transaction(PROVIDER, self.market.chain, body, NOW + 60_000, bytes(16)))


class FakeChain:
    """The face of `ChainClient`."""

    def __init__(self, market: FakeMarket, url: str) -> None:
        self.market = market
        self.url = url

    async def close(self) -> None: ...

    async def info(self) -> ChainInfo:
        self.market.check("chain")
        return ChainInfo(
            version=1,
            software="test",
            chain=self.market.chain.hex(),
            name="test",
            height=1,
            time=NOW,
            seats=1,
            fee=1_000,
            deposit=10_000,
            min_bond=MICRO,
            private=False,
        )

    async def account(self, key: bytes) -> AccountView:
        self.market.check("chain")
        mine = key == REQUESTER.key and self.market.balance > 0
        balance = self.market.balance if mine else 0
        return AccountView(key=key.hex(), known=mine, balance=balance, provider=False, bond=0, set_aside=0)

    async def events(self, topics: list[bytes], after: int, wait_ms: int = 0) -> EventsPage:
        self.market.check("chain.events")
        if len(self.market.blocks) <= after:
            await self.market.wait(wait_ms)
        wanted = {topic.hex() for topic in topics}
        found = [event for event in self.market.blocks[after:] if event.lease and event.lease.order in wanted]
        return EventsPage(next=len(self.market.blocks), events=found)

    async def leases(self, order: bytes, live: bool | None = None) -> list[LeaseView]:
        return [view for view in self.market.leases.values() if view.order == order.hex() and view.locked]

    async def submit(self, tx: SignedTransaction, wait_ms: int = 10_000) -> TxOutcome:
        self.market.check("chain.submit")
        if isinstance(tx.body.body, Cancel):
            self.market.submitted.append(tx.body.body)
            world = next(world for world in self.market.worlds.values() if world.lease == tx.body.body.lease)
            self.market.put_lease(world, "cancelled", compute_transaction_id(tx.body))
            return TxOutcome(id="", height=1, time=NOW)
        return self.market.settle(tx)

    async def proof(self, tx: bytes) -> TxProof:
        if tx not in self.market.proofs:
            raise Refused("no such transaction", rule="chain.unknown")
        return self.market.proofs[tx]


def install(market: FakeMarket, home: Path, monkeypatch: pytest.MonkeyPatch) -> FakeMarket:
    """Put the fakes in the place of the clients, and a key of the requester into a fresh home."""
    monkeypatch.setattr(module, "BrokerClient", lambda url, signer: FakeBroker(market, url, signer))
    monkeypatch.setattr(module, "ChainClient", lambda url: FakeChain(market, url))
    monkeypatch.setenv("TALLY_HOME", str(home))
    for name in ("TALLY_BROKER", "TALLY_CHAIN", "TALLY_KEY", "TALLY_GENESIS", "TALLY_PASSPHRASE"):
        monkeypatch.delenv(name, raising=False)
    folder = home / "requester"
    if not (folder / "key.pem").exists():
        keystore.save_key(folder / "key.pem", bytes([1]) * 32)
        (folder / "genesis.json").write_text(write_genesis(market.genesis))
    return market
