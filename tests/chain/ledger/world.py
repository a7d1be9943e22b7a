"""A small world for ledger tests: named signers, one chain, and short ways to make blocks and the objects people sign.

Every amount and instant has a default under which the honest path works; a test names only what it is about.
"""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from chain.base.errors import Refused
from chain.base.hashing import Tag
from chain.base.keys import Signed, Signer
from chain.base.merkle import compute_root, prove_consistency
from chain.base.units import MICRO
from chain.consensus.beacon import compute_beacon
from chain.ledger.blocks import Block
from chain.ledger.entries import LeaseRecord
from chain.ledger.genesis import Genesis, Params, Seat, make_genesis
from chain.ledger.ledger import Committed, Frame, Ledger
from chain.ledger.terms.agreement import (
    Award,
    AwardRule,
    Bid,
    Kind,
    Order,
    Windows,
    compute_bid_id,
    compute_lease_id,
    compute_order_id,
)
from chain.ledger.terms.outcome import Cause, Usage
from chain.ledger.terms.work import Acceptance, Environment, Receipt, Span, StorageReceipt, compute_receipt_id
from chain.ledger.transactions import (
    Answer,
    Body,
    Call,
    Cancel,
    Deliver,
    Extend,
    GiveBack,
    Open,
    RegisterProvider,
    Settle,
    SignedTransaction,
    sign_transaction,
)

START = 1_700_000_000_000
MINUTE = 60_000
HOUR = 60 * MINUTE
WINDOWS = Windows(30_000, 10_000, 600_000, 10_000, 60_000, 60_000, 60_000)
NAMES = ("seat", "treasury", "requester", "provider", "rival", "broker", "watcher", "holder", "stranger")


def digest(*parts: Any) -> bytes:
    """32 bytes made of anything that prints."""
    return hashlib.sha256(repr(parts).encode()).digest()


def salt(*parts: Any) -> bytes:
    """16 bytes made of anything that prints."""
    return digest(*parts)[:16]


SIGNERS = {name: Signer(digest("seed", name)) for name in NAMES}


def make_params(**changes: Any) -> Params:
    """Constants with a fee that shows in sums."""
    return Params(**{"fee": 1_000, **changes})


def make_test_genesis(params: Params | None = None, rich: int = 1_000 * MICRO) -> Genesis:
    """One seat; everyone but the watcher, the holder and the stranger has `rich` micro-credits."""
    seat = Seat(SIGNERS["seat"].key, digest("beacon"))
    funded = ("treasury", "requester", "provider", "rival", "broker")
    balances = [(SIGNERS[name].key, rich) for name in funded]
    return make_genesis("test", START, [seat], balances, params or make_params())


def make_leaves(count: int) -> list[bytes]:
    """What stands for the records of the first `count` segments."""
    return [b"record %d" % index for index in range(count)]


class World:
    """One ledger, and time that stands still unless a block moves it."""

    def __init__(self, params: Params | None = None, *, bond: int = 100 * MICRO) -> None:
        self.genesis = make_test_genesis(params)
        self.ledger = Ledger(self.genesis)
        self.chain_id = self.ledger.chain_id
        self.count = 0
        self.commits: list[Committed] = []
        if bond:
            self.block(*(self.tx(name, RegisterProvider(bond)) for name in ("provider", "rival")))

    @property
    def history(self) -> list[Block]:
        """Blocks committed so far."""
        return [committed.block for committed in self.commits]

    @property
    def now(self) -> int:
        """Time of the head."""
        return self.ledger.head.time

    def key(self, name: str) -> bytes:
        """Account of a named signer."""
        return SIGNERS[name].key

    def name(self, key: bytes) -> str:
        """Whose key this is."""
        return next(name for name, signer in SIGNERS.items() if signer.key == key)

    def sign(self, name: str, tag: Tag, body: Any) -> Signed[Any]:
        """Sign under a tag on this chain."""
        return SIGNERS[name].sign(tag, self.chain_id, body)

    def tx(self, sender: str, body: Body, *, valid: int | None = None, salted: Any = None) -> SignedTransaction:
        """A transaction, by default valid for a minute and unlike any before."""
        self.count += 1
        mark = salt("tx", self.count if salted is None else salted)
        return sign_transaction(SIGNERS[sender], self.chain_id, body, valid or self.now + MINUTE, mark)

    def frame(self, parent: bytes | None = None, *, time: int | None = None, slot: int | None = None) -> Frame:
        """What consensus would say of the next block."""
        head = self.ledger.head if parent is None else self.ledger._get_tip(parent).header
        reveal = digest("reveal", head.slot)
        return Frame(
            epoch=head.epoch,
            slot=head.slot + 1 if slot is None else slot,
            time=head.time + 1 if time is None else time,
            reveal=reveal,
            beacon=compute_beacon(self.chain_id, head.beacon, reveal),
            seats=head.seats,
            seats_changed=head.seats_changed,
        )

    def propose(self, *txs: SignedTransaction, parent: bytes | None = None, time: int | None = None) -> Block:
        """A block in which every transaction must succeed; raises the first refusal."""
        tip = parent or self.ledger.head_id
        proposal = self.ledger.propose(tip, self.frame(parent, time=time), txs)
        if proposal.refused:
            raise proposal.refused[0].error
        return proposal.block

    def block(self, *txs: SignedTransaction, time: int | None = None) -> Committed:
        """Propose, apply, commit, and count every credit."""
        block = self.propose(*txs, time=time)
        applied = self.ledger.apply(block)
        committed = self.ledger.commit(applied.id)
        self.commits.append(committed)
        self.ledger.check_conservation()
        return committed

    def send(self, sender: str, body: Body, *, time: int | None = None) -> Committed:
        """One transaction in a block of its own."""
        return self.block(self.tx(sender, body), time=time)

    def refusal(self, sender: str, body: Body, *, time: int | None = None) -> str:
        """The rule that refuses a transaction, "" if none does. Nothing changes either way."""
        at = self.now + 1 if time is None else time
        try:
            self.ledger.check(self.tx(sender, body, valid=at + MINUTE), at)
        except Refused as error:
            return error.rule
        return ""

    def balance(self, name: str) -> int:
        """Free micro-credits of a named account."""
        account = self.ledger.account(self.key(name))
        return account.balance if account else 0

    def bond(self, name: str) -> int:
        """Registered bond of a named provider."""
        provider = self.ledger.provider(self.key(name))
        return provider.bond if provider else 0

    def order(self, **changes: Any) -> Order:
        """Ten segments at 1 credit each at most, cap 20 credits."""
        fields: dict[str, Any] = {
            "requester": self.key("requester"),
            "auctioneer": self.key("broker"),
            "watcher": None,
            "holders": (self.key("holder"),),
            "job": digest("job"),
            "runtime": digest("runtime"),
            "kind": Kind.TRAIN,
            "start": digest("start"),
            "segments": 10,
            "weights": (),
            "segment_wall": MINUTE,
            "replicas": 1,
            "cap": 20 * MICRO,
            "limit": MICRO,
            "commission": 200,
            "rule": AwardRule.LOWEST,
            "comparator": "exact",
            "panel": 0,
            "deposit": 0,
            "damages": 1_000,
            "windows": WINDOWS,
            "closes": self.now + 2_000,
            "deadline": self.now + HOUR,
            "expiry": self.now + 2 * HOUR,
            "salt": salt("order"),
        }
        return Order(**{**fields, **changes})

    def bid(self, order: Order, provider: str = "provider", /, **changes: Any) -> Bid:
        """900,000 micro-credits a segment, a bond of the whole price."""
        fields: dict[str, Any] = {
            "order": compute_order_id(self.chain_id, order),
            "provider": self.key(provider),
            "price": 900_000,
            "lanes": 1,
            "earliest": self.now,
            "bond": 10_000,
            "holders": (),
            "valid_until": self.now + 30_000,
            "salt": salt("bid", provider),
        }
        return Bid(**{**fields, **changes})

    def award(self, order: Order, bid: Bid, /, **changes: Any) -> Award:
        """The whole range of replica 0 at the bid's price, commission 2 %."""
        fields: dict[str, Any] = {
            "order": compute_order_id(self.chain_id, order),
            "bid": compute_bid_id(self.chain_id, bid),
            "replica": 0,
            "first": 0,
            "count": order.segments,
            "price": bid.price,
            "commission": 200,
            "book": digest("book"),
            "start": order.start,
            "runner_up": None,
            "closed": self.now,
            "valid_until": self.now + MINUTE,
        }
        return Award(**{**fields, **changes})

    def opening(self, order: Order, bid: Bid, award: Award, provider: str = "provider") -> Open:
        """The three signatures of a lease."""
        return Open(
            self.sign("requester", Tag.ORDER, order),
            self.sign("broker", Tag.AWARD, award),
            self.sign(provider, Tag.BID, bid),
        )

    def open_lease(self, **order_changes: Any) -> LeaseRecord:
        """Open the default lease (order changed as told) in a block of its own."""
        order = self.order(**order_changes)
        bid = self.bid(order)
        award = self.award(order, bid)
        self.send("broker", self.opening(order, bid, award))
        return self.lease(compute_lease_id(self.chain_id, award))

    def lease(self, identity: bytes) -> LeaseRecord:
        """A lease that must exist."""
        lease = self.ledger.lease(identity)
        assert lease is not None
        return lease

    def receipt(self, lease: LeaseRecord, count: int | None = None, /, **changes: Any) -> Receipt:
        """A receipt for the whole range, all ok; shorter ones are prefixes of longer ones."""
        count = lease.terms.count if count is None else count
        fields: dict[str, Any] = {
            "lease": lease.id,
            "provider": lease.terms.provider,
            "first": lease.terms.first,
            "count": count,
            "records": compute_root(make_leaves(count)),
            "cause": Cause.OK,
            "usage": Usage(),
            "environment": Environment("ns", digest("runtime"), 1, "openblas"),
            "log": digest("log"),
            "provenance": digest("provenance"),
            "finished": self.now,
        }
        return Receipt(**{**fields, **changes})

    def acceptance(self, lease: LeaseRecord, receipt: Receipt, /, **changes: Any) -> Acceptance:
        """The requester accepts all segments of a receipt."""
        spans = (Span(receipt.first, receipt.count),) if receipt.count else ()
        fields: dict[str, Any] = {
            "lease": lease.id,
            "receipt": compute_receipt_id(self.chain_id, receipt),
            "signer": self.key("requester"),
            "segments": spans,
            "release": False,
        }
        return Acceptance(**{**fields, **changes})

    def settle(self, lease: LeaseRecord, receipt: Receipt | None = None, /, **acceptance: Any) -> Settle:
        """A settle of a receipt (by default the whole range), accepted as told."""
        receipt = receipt or self.receipt(lease)
        accepted = self.acceptance(lease, receipt, **acceptance)
        return Settle(
            self.sign(self.name(lease.terms.provider), Tag.RECEIPT, receipt),
            self.sign("requester", Tag.ACCEPTANCE, accepted),
        )

    def storage(self, lease: LeaseRecord, receipt: Receipt, /, **changes: Any) -> StorageReceipt:
        """The holder keeps what the receipt commits to for a day."""
        fields: dict[str, Any] = {
            "holder": self.key("holder"),
            "lease": lease.id,
            "receipt": compute_receipt_id(self.chain_id, receipt),
            "size": 1_000,
            "kept_until": self.now + 24 * HOUR,
        }
        return StorageReceipt(**{**fields, **changes})

    def deliver(self, lease: LeaseRecord, receipt: Receipt | None = None, /, **storage: Any) -> Deliver:
        """A delivery of a receipt (by default the whole range)."""
        receipt = receipt or self.receipt(lease)
        kept = self.storage(lease, receipt, **storage)
        return Deliver(
            self.sign(self.name(lease.terms.provider), Tag.RECEIPT, receipt),
            self.sign("holder", Tag.STORAGE, kept),
            self.prove(lease, receipt),
        )

    def extend(self, lease: LeaseRecord, count: int, /, **changes: Any) -> Extend:
        """A receipt of the first `count` segments, with what proves that it goes on."""
        receipt = self.receipt(lease, count, **changes)
        kept = self.storage(lease, receipt)
        return Extend(
            self.sign(self.name(lease.terms.provider), Tag.RECEIPT, receipt),
            self.sign("holder", Tag.STORAGE, kept),
            self.prove(lease, receipt),
        )

    def prove(self, lease: LeaseRecord, receipt: Receipt) -> tuple[bytes, ...]:
        """The consistency proof from the receipt on the chain, where there is one and it is no longer."""
        served = self.lease(lease.id).served
        return prove_consistency(make_leaves(receipt.count), served) if 0 < served <= receipt.count else ()

    def call(self, lease: LeaseRecord) -> Call:
        """A call for a sign of life."""
        return Call(lease.id)

    def answer(self, lease: LeaseRecord) -> Answer:
        """The answer to the last call on the chain."""
        return Answer(lease.id, self.lease(lease.id).called or 0)

    def cancel(self, lease: LeaseRecord) -> Cancel:
        """The requester's cancel."""
        return Cancel(lease.id)

    def give_back(self, lease: LeaseRecord) -> GiveBack:
        """The provider's return."""
        return GiveBack(lease.id)

    def put_lease(self, lease: LeaseRecord, **changes: Any) -> None:
        """Change a committed lease behind the rules' back, to reach states that no transaction leads to yet."""
        self.ledger._head.state.entries[b"l" + lease.id] = msgspec.structs.replace(lease, **changes)
