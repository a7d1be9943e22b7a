"""What a requester keeps of one job, as one canonical record: enough to check it again without any network."""

from __future__ import annotations

from typing import Annotated

import msgspec

from broker.protocol.api import Delivery, Unmatched
from broker.protocol.jobs import JobSpec
from broker.protocol.messages import Book
from chain.base.codec import Record
from chain.base.hashing import Digest
from chain.base.keys import Signed
from chain.ledger.terms.agreement import Award, Bid, Order
from chain.ledger.terms.work import Acceptance, StorageReceipt
from chain.rpc.proofs import TxProof
from requester.purchase.events import LeaseSeen

MAX_DOCUMENTS_BYTES = 16 << 20
"""Largest encoding: a book, the records of a long lease, a proof with its headers."""


class Documents(Record, frozen=True, kw_only=True, tag="documents"):
    """Everything signed about one job. What never came is None; a job that is not over lacks the last of them.

    `tried` are ids of bids that were awarded before and did not open; `seen` is the lease as the chain last showed it.
    """

    chain: Digest
    order: Signed[Order]
    spec: JobSpec
    lease: Annotated[bytes, msgspec.Meta(max_length=32)] = b""
    award: Signed[Award] | None = None
    bid: Signed[Bid] | None = None
    book: Signed[Book] | None = None
    tried: Annotated[tuple[Digest, ...], msgspec.Meta(max_length=256)] = ()
    unmatched: Unmatched | None = None
    delivery: Delivery | None = None
    storage: Signed[StorageReceipt] | None = None
    acceptance: Signed[Acceptance] | None = None
    seen: LeaseSeen | None = None
    proof: TxProof | None = None
