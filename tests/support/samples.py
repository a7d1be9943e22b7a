"""One sample of every object that somebody signs, and of those that are only hashed or carried, with fixed values.

Every optional field is set and every list has an element, so that a flipped byte can lie anywhere. Keys come from
fixed seeds. The golden vectors are made of the same samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from broker.protocol import api, jobs, messages
from chain.base.codec import decode
from chain.base.hashing import Tag
from chain.base.keys import Signed, Signer, verify
from chain.consensus.messages import Certificate, SeatSignature, Step, Vote
from chain.ledger import transactions as tx
from chain.ledger.blocks import Block, Header
from chain.ledger.terms import agreement, outcome, work
from chain.ledger.tree import MapProof, Witness
from chain.rpc.proofs import Finality, LeaseProof, TxProof

Door = Callable[[bytes, bytes], Any]
"""What takes bytes from somebody (with the chain id): decodes, verifies, returns the signed object or refuses."""


def compute_seed(name: str) -> bytes:
    """The fixed 32-byte seed of a test's party."""
    return hashlib.sha256(f"test seed of {name}".encode()).digest()


def compute_filler(name: str, size: int = 32) -> bytes:
    """Fixed bytes that look like a digest."""
    return hashlib.sha256(name.encode()).digest()[:size]


SEEDS = {name: compute_seed(name) for name in ("requester", "provider", "broker", "watcher", "holder", "seat")}
PARTIES = {name: Signer(seed) for name, seed in SEEDS.items()}
REQUESTER, PROVIDER, BROKER = PARTIES["requester"], PARTIES["provider"], PARTIES["broker"]
CHAIN = compute_filler("chain id")
OTHER_CHAIN = compute_filler("another chain id")
NOW = 1_800_000_000_000


@dataclass(frozen=True)
class Sample:
    """A body, the tag it is signed under and by whom, and the door through which it comes in signed."""

    name: str
    tag: Tag
    body: Any
    by: str
    door: Door

    @property
    def signed(self) -> Signed[Any]:
        return PARTIES[self.by].sign(self.tag, CHAIN, self.body)


def make_door(kind: Any, tag: Tag, key_of: Callable[[Any], bytes]) -> Door:
    """Decode as `Signed[kind]` and verify under `tag`, as every reader of such an object does."""

    def door(data: bytes, chain_id: bytes) -> Any:
        signed = decode(data, Signed[kind])
        verify(signed, tag, chain_id, key_of(signed.body))
        return signed

    return door


def hear_broker(data: bytes, chain_id: bytes) -> Any:
    return messages.read_from_broker(data, chain_id, BROKER.key)


WINDOWS = agreement.Windows(30_000, 10_000, 600_000, 10_000, 60_000, 60_000, 60_000)
RUNTIME = jobs.Runtime("3.11", ("numpy", "scikit-learn"))
RESOURCES = jobs.Resources(1 << 30, 60_000, 1000, 32, 256, 1 << 24, 16, 1 << 20, 1 << 26, 1 << 26)
SPEC = jobs.JobSpec(
    "digits", agreement.Kind.TRAIN, jobs.Entry.FOLDER, "step", compute_filler("code"), 4_096,
    compute_filler("inputs"), 65_536, RUNTIME, RESOURCES, jobs.Level.NS_CGROUP, 7, 4, 1,
)  # fmt: skip
ORDER = agreement.Order(
    requester=REQUESTER.key, auctioneer=BROKER.key, watcher=PARTIES["watcher"].key, holders=(PARTIES["holder"].key,),
    job=jobs.compute_job_digest(CHAIN, SPEC), runtime=jobs.compute_runtime_digest(CHAIN, RUNTIME),
    kind=agreement.Kind.TRAIN, start=compute_filler("start"), segments=3, weights=(1, 2, 3), segment_wall=60_000,
    replicas=1, cap=10_000_000, limit=2_000_000, commission=200, rule=agreement.AwardRule.SECOND, comparator="exact",
    panel=0, deposit=500_000, damages=1_000, windows=WINDOWS, closes=NOW + 2_000, deadline=NOW + 300_000,
    expiry=NOW + 900_000, salt=compute_filler("order", 16),
)  # fmt: skip
ORDER_ID = agreement.compute_order_id(CHAIN, ORDER)
BID = agreement.Bid(
    ORDER_ID, PROVIDER.key, 1_500_000, 2, NOW + 2_500, 5_000, (PARTIES["holder"].key,), NOW + 12_000,
    compute_filler("bid", 16),
)  # fmt: skip
RUNNER_UP = agreement.Bid(
    ORDER_ID, PARTIES["holder"].key, 1_700_000, 1, NOW + 2_500, 5_000, (), NOW + 12_000, compute_filler("second", 16)
)
AWARD = agreement.Award(
    ORDER_ID, agreement.compute_bid_id(CHAIN, BID), 0, 0, 3, 1_700_000, 100, compute_filler("book"),
    compute_filler("start"), PARTIES["holder"].sign(Tag.BID, CHAIN, RUNNER_UP), NOW + 2_000, NOW + 60_000,
)  # fmt: skip
LEASE = agreement.compute_lease_id(CHAIN, AWARD)
USAGE = outcome.Usage(1_200, 300_000_000, 1_500, 65_536, 131_072)
RECORD = work.SegmentRecord(
    LEASE, 1, PROVIDER.key, compute_filler("input"), compute_filler("output"), compute_filler("error"),
    outcome.Cause.OK, USAGE, NOW + 3_000, "AVX2",
)  # fmt: skip
RECEIPT = work.Receipt(
    LEASE, PROVIDER.key, 0, 3, work.compute_records_root([RECORD]), outcome.Cause.OK, USAGE,
    work.Environment("ns+cgroup", compute_filler("runtime"), 1, "openblas"), compute_filler("log"),
    compute_filler("provenance"), NOW + 9_000,
)  # fmt: skip
RECEIPT_ID = work.compute_receipt_id(CHAIN, RECEIPT)
STORAGE = work.StorageReceipt(PARTIES["holder"].key, LEASE, RECEIPT_ID, 131_072, NOW + 86_400_000)
ACCEPTANCE = work.Acceptance(LEASE, RECEIPT_ID, REQUESTER.key, (work.Span(0, 2), work.Span(2, 1)), False)
DECLINE = messages.Decline(ORDER_ID, PROVIDER.key, messages.Reason.PRICE, 2_500_000, "the lowest price is 2.5 credits")

SIGNED_ORDER = REQUESTER.sign(Tag.ORDER, CHAIN, ORDER)
SIGNED_BID = PROVIDER.sign(Tag.BID, CHAIN, BID)
SIGNED_AWARD = BROKER.sign(Tag.AWARD, CHAIN, AWARD)
SIGNED_RECEIPT = PROVIDER.sign(Tag.RECEIPT, CHAIN, RECEIPT)
SIGNED_STORAGE = PARTIES["holder"].sign(Tag.STORAGE, CHAIN, STORAGE)
SIGNED_ACCEPTANCE = REQUESTER.sign(Tag.ACCEPTANCE, CHAIN, ACCEPTANCE)

BODIES: dict[str, tx.Body] = {
    "transfer": tx.Transfer(PROVIDER.key, 25_000_000),
    "register": tx.RegisterProvider(5_000_000),
    "open": tx.Open(SIGNED_ORDER, SIGNED_AWARD, SIGNED_BID),
    "settle": tx.Settle(SIGNED_RECEIPT, SIGNED_ACCEPTANCE),
    "deliver": tx.Deliver(SIGNED_RECEIPT, SIGNED_STORAGE, (compute_filler("node"),)),
    "extend": tx.Extend(SIGNED_RECEIPT, SIGNED_STORAGE, (compute_filler("node"), compute_filler("another node"))),
    "call": tx.Call(LEASE),
    "answer": tx.Answer(LEASE, NOW + 4_000),
    "cancel": tx.Cancel(LEASE),
    "return": tx.GiveBack(LEASE),
}


def make_transaction(body: tx.Body) -> tx.Transaction:
    """The frame around a body, as its provider sends it."""
    return tx.Transaction(CHAIN, PROVIDER.key, NOW + 60_000, compute_filler("salt", 16), body)


def list_transactions() -> list[Sample]:
    door = make_door(tx.Transaction, Tag.TX, lambda body: bytes(body.sender))
    return [
        Sample(f"transaction {name}", Tag.TX, make_transaction(body), "provider", door) for name, body in BODIES.items()
    ]


TERMS = [
    Sample("order", Tag.ORDER, ORDER, "requester", make_door(agreement.Order, Tag.ORDER, lambda one: one.requester)),
    Sample("bid", Tag.BID, BID, "provider", messages.read_from_provider),
    Sample("award", Tag.AWARD, AWARD, "broker", hear_broker),
    Sample("receipt", Tag.RECEIPT, RECEIPT, "provider",
           make_door(work.Receipt, Tag.RECEIPT, lambda one: one.provider)),
    Sample("storage", Tag.STORAGE, STORAGE, "holder",
           make_door(work.StorageReceipt, Tag.STORAGE, lambda one: one.holder)),
    Sample("acceptance", Tag.ACCEPTANCE, ACCEPTANCE, "requester", hear_broker),
]  # fmt: skip
BUS = [
    Sample("offer", Tag.OFFER, messages.Offer(
        PROVIDER.key, NOW, NOW + 60_000, (RUNTIME,), jobs.Level.NS_CGROUP, 2, 4 << 30, 2_000, 120_000, 50_000_000,
        messages.Tariff(1_000, 2_000, 3_000),
    ), "provider", messages.read_from_provider),
    Sample("announcement", Tag.ANNOUNCEMENT,
           messages.Announcement(BROKER.key, SIGNED_ORDER, SPEC, 1, (work.Span(1, 2),), NOW + 2_000),
           "broker", hear_broker),
    Sample("decline", Tag.DECLINE, DECLINE, "provider", messages.read_from_provider),
    Sample("acknowledgement", Tag.ACKNOWLEDGEMENT,
           messages.Acknowledgement(ORDER_ID, 1, 2, AWARD.bid, compute_filler("previous")), "broker", hear_broker),
    Sample("book", Tag.BOOK, messages.Book(
        ORDER_ID, 1, (work.Span(1, 2),), (SIGNED_BID,), (PROVIDER.sign(Tag.DECLINE, CHAIN, DECLINE),),
        compute_filler("last"), compute_filler("root"), NOW + 2_000,
    ), "broker", hear_broker),
    Sample("withdrawal", Tag.WITHDRAWAL, messages.Withdrawal(ORDER_ID, "no award"), "broker", hear_broker),
    Sample("progress", Tag.PROGRESS,
           messages.Progress(LEASE, PROVIDER.key, 4, 1, 3, (RECORD,), 120, b"epoch 1\n"),
           "provider", messages.read_from_provider),
    Sample("cancellation", Tag.CANCELLATION, api.Cancellation(ORDER_ID, REQUESTER.key, NOW + 1_000), "requester",
           make_door(api.Cancellation, Tag.CANCELLATION, lambda one: one.requester)),
]  # fmt: skip
VOTE = Vote(Step.FINALIZE, 1, 42, compute_filler("block"))
CONSENSUS = [
    Sample("vote", Tag.VOTE, VOTE, "seat", make_door(Vote, Tag.VOTE, lambda _: PARTIES["seat"].key)),
]
SIGNED = [*TERMS, *BUS, *CONSENSUS, *list_transactions()]
"""Every object that somebody signs."""

HEADER = Header(
    1, 42, 41, NOW, compute_filler("parent"), compute_filler("seats"), 0, compute_filler("transactions"),
    compute_filler("results"), compute_filler("state"), compute_filler("beacon"),
)  # fmt: skip
HASHED: list[tuple[str, Tag, Any]] = [
    ("header", Tag.BLOCK, HEADER),
    ("lease", Tag.LEASE, AWARD),
    ("job", Tag.JOB, SPEC),
    ("runtime", Tag.RUNTIME, RUNTIME),
]
"""Objects with an id that nobody signs as such."""

SIGNED_TX = PROVIDER.sign(Tag.TX, CHAIN, make_transaction(BODIES["settle"]))
DELIVERY = api.Delivery(SIGNED_RECEIPT, 2, (RECORD,), (b"output",))
FINALITY = Finality(HEADER, (HEADER,), Certificate(VOTE, (SeatSignature(0, bytes(64)),)))
CARRIED: list[Any] = [
    Block(HEADER, compute_filler("reveal"), (SIGNED_TX,)),
    FINALITY,
    TxProof(FINALITY, SIGNED_TX, 0, 1, (compute_filler("sibling"),)),
    LeaseProof(FINALITY, b"l" + LEASE, b"record", MapProof(
        (compute_filler("sibling"),), Witness(compute_filler("place"), compute_filler("value")),
    )),
    api.Submission(2, SIGNED_ORDER, SPEC, (b"code",)),
    api.Parcel((b"one", b"two")),
    api.Wanted((compute_filler("wanted"),)),
    api.Enquiry(ORDER, SPEC),
    DELIVERY,
    api.Events(7, (
        api.Announced(NOW, 1, (work.Span(1, 2),), 3, NOW + 2_000),
        api.Closed(NOW, PARTIES["broker"].sign(Tag.BOOK, CHAIN, BUS[4].body)),
        api.Unmatched(NOW, 1, "raise the cap", (PROVIDER.sign(Tag.DECLINE, CHAIN, DECLINE),)),
        api.Awarded(NOW, SIGNED_AWARD, SIGNED_BID, LEASE),
        api.Failed(NOW, LEASE, "R2.balance"),
        api.Opened(NOW, LEASE),
        api.Advanced(NOW, LEASE, 1, 3, (RECORD,), 0, b"log"),
        api.Delivered(NOW, DELIVERY, SIGNED_STORAGE),
        api.Accepted(NOW, SIGNED_ACCEPTANCE),
        api.Left(NOW, LEASE, "delivered", 2),
        api.Ended(NOW, "settled", ""),
    ), (b"output",)),
]  # fmt: skip
"""Canonical objects that only carry signed ones."""

EVERYTHING: list[tuple[str, Any, Any]] = [
    *((one.name, Signed[type(one.body)], one.signed) for one in SIGNED),  # type: ignore[misc]  # a type made here
    *((name, type(body), body) for name, _, body in HASHED),
    *((type(body).__name__, type(body), body) for body in CARRIED),
]
"""(name, type to decode as, value) of all samples."""


def list_names() -> list[str]:
    return [one.name for one in SIGNED]
