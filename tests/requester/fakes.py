"""A broker and a chain in one process, with the faces of their clients: they sign what real ones would.

What the job does is a row: cause, values, traceback, log, usage. A map is divided between two providers where its spec
allows. Faults are switched on by name.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
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
    Ended,
    Enquiry,
    Estimate,
    Events,
    Info,
    JobEvent,
    ProviderView,
    Submission,
    Unmatched,
)
from broker.protocol.values import pack, split
from chain.base.errors import Refused, Unavailable
from chain.base.hashing import compute_digest
from chain.base.keys import Signed, Signer
from chain.base.units import MICRO
from chain.ledger.entries import LeaseRecord, LeaseState
from chain.ledger.genesis import Seat, compute_chain_id, make_genesis, write_genesis
from chain.ledger.terms.agreement import Kind
from chain.ledger.terms.outcome import Cause, Usage
from chain.ledger.terms.work import Acceptance, Span
from chain.ledger.transactions import Cancel, Settle, SignedTransaction, compute_transaction_id, sign_transaction
from chain.rpc.proofs import LeaseProof, TxProof
from chain.rpc.schema import AccountView, ChainInfo, EventsPage, LeaseView, LedgerEvent, TxOutcome
from chain.runtime import keystore
from requester.client import connection as module
from tests.requester.chainside import (
    CHAIN_ID,
    GENESIS,
    SEAT,
    end_unserved,
    make_open,
    prove_record,
    prove_transaction,
    settle,
)
from tests.requester.world import BROKER, NOW, PROVIDER, REQUESTER, RIVAL, USAGE, World

BALANCE = 1_000 * MICRO


@dataclass
class Deed:
    """What the job does on the providers' machines: `values` by the segment's index where there are several, `cause`
    at segment `fails`.
    """

    value: Any = 42
    cause: Cause = Cause.OK
    trace: str = ""
    log: bytes = b"epoch 1\n"
    usage: Usage = USAGE
    values: Callable[[int], Any] | None = None
    fails: int = 0

    def pack(self, index: int) -> bytes:
        """The packed output of a segment."""
        return pack(self.value if self.values is None else self.values(index))


@dataclass
class FakeMarket:
    """Broker and chain together. `faults` holds names of client methods that find nobody there; with `step` segments
    are handed in so many at a time.
    """

    deed: Deed = field(default_factory=Deed)
    price: int = 1_000_000
    balance: int = BALANCE
    faults: set[str] = field(default_factory=set)
    settles: bool = True
    delivers: bool = True
    inline: bool = True
    bid: bool = True
    step: int = 0

    def __post_init__(self) -> None:
        grants = [(REQUESTER.key, self.balance)] if self.balance else []
        whole = self.balance == BALANCE
        self.genesis = GENESIS if whole else make_genesis("test", NOW, [Seat(SEAT.key, bytes(32))], grants)
        self.chain = CHAIN_ID if whole else compute_chain_id(self.genesis)
        self.blobs: dict[bytes, bytes] = {}
        self.events: dict[bytes, list[JobEvent]] = {}
        self.pages: dict[bytes, bytes] = {}
        self.worlds: dict[bytes, list[World]] = {}
        self.records: dict[bytes, LeaseRecord] = {}
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
        worlds = self.divide(submission)
        job = worlds[0].order_id
        if job in self.worlds:
            return job
        order, now = submission.order.body, worlds[0].now
        self.worlds[job] = worlds
        self.tell(job, Announced(now, 0, (Span(0, order.segments),), 2, order.closes))
        if not self.bid:
            return job
        if self.price > order.limit:
            text = f"the lowest price at which someone would have bid is {self.price / MICRO:g} credits per segment"
            self.tell(job, Unmatched(now, self.price, text, ()), Ended(now, "unmatched", text))
            return job
        self.tell(job, worlds[0].closed, *(world.awarded for world in worlds))
        for world in worlds:
            self.put_lease(make_open(world), b"")
            progress = Advanced(now, world.lease, 0, world.award_body.count, (), 0, self.deed.log)
            self.tell(job, world.opened, progress)
        if self.delivers:
            self.deliver(job)
        return job

    def divide(self, submission: Submission) -> list[World]:
        """The leases of an order, by the rule of `divide`: the cheaper provider has the first part."""
        order, spec = submission.order.body, submission.spec
        parts = min(spec.parallelism, 2, order.segments) if order.kind is Kind.MAP else 1
        count = -(-order.segments // parts)
        world = World(
            causes=self.list_causes(0, count),
            segments=order.segments,
            kind=order.kind,
            parallelism=spec.parallelism,
            count=count,
            chain=self.chain,
            now=order.closes - 2_000,
            prices=(self.price, self.price + 1),
            outputs=self.deed.pack,
            trace=self.deed.trace.encode(),
            log=self.deed.log,
            usage=self.deed.usage,
        )
        world.order, world.spec = submission.order, spec
        if order.kind is Kind.MAP:
            world.items = tuple(compute_digest(bytes(item)) for item in split(self.blobs[spec.inputs]))
        if parts == 1:
            return [world]
        rest = order.segments - count
        return [world, world.also(first=count, count=rest, causes=self.list_causes(count, rest), winner=RIVAL)]

    def list_causes(self, first: int, count: int) -> tuple[Cause, ...]:
        """How the segments of a part end: nothing follows the one that fails."""
        fails = self.deed.fails - first
        if self.deed.cause is Cause.OK or not 0 <= fails < count:
            return (Cause.OK,) * count
        return (*(Cause.OK,) * fails, self.deed.cause)

    def deliver(self, job: bytes) -> None:
        """Hand in all work that is left: at once, or `step` by `step`; blobs go with the page or are to be fetched."""
        for world in self.worlds[job]:
            done, whole = 0, len(world.causes)
            for blob in world.blobs.values():
                target = self.pages if self.inline else self.blobs
                target[compute_digest(blob)] = blob
            while done < whole:
                count = min(whole, done + (self.step or whole))
                self.tell(job, world.prefix(count, done))
                done = count

    def put_lease(self, record: LeaseRecord, tx: bytes) -> None:
        """A block in which a lease changed."""
        terms = record.terms
        self.records[record.id] = record
        self.leases[record.id] = view = LeaseView(
            id=record.id.hex(),
            order=terms.order.hex(),
            award=terms.award.hex(),
            requester=terms.requester.hex(),
            provider=terms.provider.hex(),
            auctioneer=terms.auctioneer.hex(),
            state=record.state.value,
            replica=terms.replica,
            first=terms.first,
            count=terms.count,
            price=terms.price,
            commission_bps=terms.commission,
            locked=record.locked,
            bond=record.bond,
            paid=record.paid,
            commission=record.commission,
            refunded=record.refunded,
            burned=record.burned,
            opened=terms.opened,
            deadline=terms.deadline,
            timer=record.timer or 0,
            receipt="" if record.receipt is None else record.receipt.id.hex(),
            served=record.served,
            held=record.held,
            cause="" if record.receipt is None else record.receipt.cause.value,
            called=0,
            damages=record.damages,
            start=terms.start.hex(),
        )
        proof = self.proofs.get(tx)
        time = terms.opened if proof is None else proof.finality.header.time
        height = len(self.blocks) + 1
        self.blocks.append(LedgerEvent(height=height, time=time, kind="lease", tx=tx.hex(), lease=view))
        self.move()

    def find(self, lease: bytes) -> World:
        """The world of a lease."""
        return next(world for worlds in self.worlds.values() for world in worlds if world.lease == lease)

    def carry_out(self, signed: SignedTransaction) -> TxOutcome:
        """A transaction in a block of its own; where the job is over, the broker says so."""
        body, tx = signed.body.body, compute_transaction_id(signed.body)
        self.proofs[tx] = prove_transaction(signed)
        if isinstance(body, Settle):
            world = self.find(body.receipt.body.lease)
            record = settle(world, body.receipt.body)
        else:
            assert isinstance(body, Cancel)
            world, record = self.find(body.lease), end_unserved(self.find(body.lease), LeaseState.CANCELLED)
        if self.records[world.lease].state is LeaseState.OPEN:
            self.put_lease(record, tx)
        worlds = self.worlds[world.order_id]
        states = {self.records[one.lease].state for one in worlds}
        if LeaseState.OPEN not in states:
            served = sum(self.records[one.lease].served for one in worlds)
            state = "settled" if served == world.segments else "partly" if served else record.state.value
            self.tell(world.order_id, Ended(NOW, state, ""))
        return TxOutcome(id=tx.hex(), height=len(self.blocks), time=world.now)

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

    async def put_many(self, blobs: Iterable[bytes]) -> tuple[bytes, ...]:
        return tuple([await self.put_blob(blob) for blob in blobs])

    async def put_file(self, path: Path, digest: bytes, size: int, on_progress: Any = None) -> None:
        data = path.read_bytes()
        assert (compute_digest(data), len(data)) == (digest, size)
        await self.put_blob(data)
        if on_progress is not None:
            on_progress(size, size)

    async def get_blob(self, digest: bytes, max_bytes: int) -> bytes:
        self.market.check("broker.blobs")
        if digest not in self.market.blobs:
            raise Refused("no such blob", rule="blob.unknown")
        if len(self.market.blobs[digest]) > max_bytes:
            raise Refused("the blob exceeds what was to be taken", rule="blob.size")
        return self.market.blobs[digest]

    async def get_many(self, digests: Sequence[bytes], max_bytes: int) -> dict[bytes, bytes]:
        self.market.check("broker.blobs")
        found = {digest: self.market.blobs[digest] for digest in digests if digest in self.market.blobs}
        if sum(map(len, found.values())) > max_bytes:
            raise Refused("the blobs together exceed what was to be taken", rule="blob.size")
        return found

    async def get_file(self, digest: bytes, path: Path, max_bytes: int, on_progress: Any = None) -> int:
        data = await self.get_blob(digest, max_bytes)
        path.write_bytes(data)
        if on_progress is not None:
            on_progress(len(data), len(data))
        return len(data)

    async def estimate(self, enquiry: Enquiry) -> Estimate:
        self.market.check("broker.estimate")
        matching = 2 if self.market.bid and self.market.price <= enquiry.order.limit else 0
        advice = "" if matching else f"a limit of {self.market.price / MICRO:g} credits per segment"
        lowest, median = (self.market.price, self.market.price + 1) if matching else (0, 0)
        return Estimate(matching, 2, lowest, median, advice)

    async def providers(self) -> list[ProviderView]:
        self.market.check("broker.providers")
        row = (["3.11"], ["numpy"], "ns+cgroup", 2, 4 << 30, 4_000, 3_600_000, 100 * MICRO, 1_000, 2_000, 3_000)
        return [ProviderView(PROVIDER.key.hex(), *row), ProviderView(RIVAL.key.hex(), *row)]

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
        return Events(len(items), tuple(items[after:]), tuple(self.market.pages.values()))

    async def cancel(self, cancellation: Signed[Cancellation]) -> None:
        job = cancellation.body.order
        if self.market.leases:
            raise Refused("a lease is being opened", rule="auction.open")
        self.market.tell(job, Ended(NOW, "withdrawn", "the requester took it back"))

    async def accept(self, lease: bytes, acceptance: Signed[Acceptance]) -> None:
        self.market.check("broker.accept")
        world = self.market.find(lease)
        self.market.tell(world.order_id, Accepted(NOW, acceptance))
        if self.market.settles:
            body = Settle(world.receipt, acceptance)
            self.market.carry_out(
                sign_transaction(world.winner, self.market.chain, body, NOW + 60_000, bytes(16)),
            )


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
        return self.market.carry_out(tx)

    async def proof(self, tx: bytes) -> TxProof:
        if tx not in self.market.proofs:
            raise Refused("no such transaction", rule="chain.unknown")
        return self.market.proofs[tx]

    async def prove_lease(self, lease: bytes) -> LeaseProof:
        if lease not in self.market.records:
            raise Refused("no such lease", rule="chain.unknown")
        return prove_record(self.market.records[lease])


def install(market: FakeMarket, home: Path, monkeypatch: pytest.MonkeyPatch) -> FakeMarket:
    """Put the fakes in the place of the clients, and a key of the requester into a fresh home."""
    monkeypatch.setattr(module, "make_broker_client", lambda url, signer: FakeBroker(market, url, signer))
    monkeypatch.setattr(module, "make_chain_client", lambda url: FakeChain(market, url))
    monkeypatch.setenv("TALLY_HOME", str(home))
    for name in ("TALLY_BROKER", "TALLY_CHAIN", "TALLY_KEY", "TALLY_GENESIS", "TALLY_PASSPHRASE"):
        monkeypatch.delenv(name, raising=False)
    folder = home / "requester"
    if not (folder / "key.pem").exists():
        keystore.save_key(folder / "key.pem", bytes([1]) * 32)
        (folder / "genesis.json").write_text(write_genesis(market.genesis))
    return market
