"""After the work: segment records, receipts, storage receipts, acceptances (R5, R7, R8).

The leaves of a receipt's tree are the canonical encodings of its records, in order of their index (RFC 6962).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec

from chain.base.codec import Record, encode
from chain.base.errors import Refused
from chain.base.hashing import Digest, Tag, compute_id
from chain.base.keys import Key
from chain.base.merkle import compute_root
from chain.base.units import Amount, Count, Instant
from chain.ledger.terms.outcome import FINAL_FAILURES, Cause, Usage

__all__ = [
    "Acceptance",
    "Environment",
    "Receipt",
    "SegmentRecord",
    "Span",
    "StorageReceipt",
    "check_accepted_spans",
    "compute_receipt_id",
    "compute_records_root",
    "is_final",
]

Label = Annotated[str, msgspec.Meta(max_length=200)]
"""A short text for people and comparators."""


class SegmentRecord(Record, frozen=True, tag="segment"):
    """One segment as the provider ran it. `error` is the digest of the traceback text (of the empty blob where there
    is none); `dispatch` names the CPU features its numerics chose.
    """

    lease: Digest
    index: Count
    provider: Key
    input: Digest
    output: Digest
    error: Digest
    cause: Cause
    usage: Usage
    started: Instant
    dispatch: Label


class Environment(Record, frozen=True, tag="environment"):
    """Under what the work ran: isolation level, runtime, and the fixed numeric settings (threats.md trap 8)."""

    level: Label
    runtime: Digest
    threads: Count
    blas: Label


class Receipt(Record, frozen=True, tag="receipt"):
    """Root over the records of a prefix of a lease's range, signed by the provider (R5).

    `count` records from index `first`; `cause` is `ok` while all of them are, else the last one's. Records commit to
    the outputs and carry no signature of their own: this one covers them. `log` is the digest of the log, `provenance`
    that of the provenance statement's DSSE envelope; both are those of the empty blob in a receipt that is not final.
    """

    lease: Digest
    provider: Key
    first: Count
    count: Count
    records: Digest
    cause: Cause
    usage: Usage
    environment: Environment
    log: Digest
    provenance: Digest
    finished: Instant


class StorageReceipt(Record, frozen=True, tag="storage"):
    """What a holder signs: it keeps everything under `receipt` (that receipt's id), so many bytes, until an Instant
    (R8).
    """

    holder: Key
    lease: Digest
    receipt: Digest
    size: Amount
    kept_until: Instant


class Span(Record, frozen=True, tag="span"):
    """Segments `first` .. `first + count - 1`."""

    first: Count
    count: Count


class Acceptance(Record, frozen=True, tag="acceptance"):
    """What the requester (or its watcher) signs on one receipt: which of its segments are good, as ascending disjoint
    spans (R7).
    """

    lease: Digest
    receipt: Digest
    signer: Key
    segments: Annotated[tuple[Span, ...], msgspec.Meta(max_length=4096)]
    release: bool


def compute_records_root(records: Sequence[SegmentRecord]) -> bytes:
    """Root over segment records in the order given."""
    return compute_root([encode(record) for record in records])


def compute_receipt_id(chain_id: bytes, receipt: Receipt) -> bytes:
    """Id of a receipt: what acceptances and storage receipts name."""
    return compute_id(Tag.RECEIPT, chain_id, receipt)


def is_final(receipt: Receipt, count: int) -> bool:
    """Whether nothing can follow: the whole range of `count` segments, or ended by a cause of R9. What ended by `host`
    never is: its provider returns.
    """
    if receipt.cause is Cause.HOST:
        return False
    return receipt.count == count or (receipt.count > 0 and receipt.cause in FINAL_FAILURES)


def check_accepted_spans(spans: Sequence[Span], part: Span) -> None:
    """R7: what is accepted of a receipt over `part` ascends, is disjoint and lies in it. Raises `Refused`: `R7.spans`,
    `R7.range`.
    """
    position = part.first
    for span in spans:
        if span.first < position or span.count == 0:
            raise Refused("accepted spans must ascend, be disjoint and not empty", rule="R7.spans")
        position = span.first + span.count
    if position > part.first + part.count:
        raise Refused("accepts segments beyond the receipt", rule="R7.range")
