"""Numbered checks of a delivery: receipt, records, storage receipt (20-34), and the blobs they name (35-37).

Each number is covered by a signature of the party that answers for it (R5, R8, R9). Not here: award and book
(`checks`), what is done about a failure (`machine`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from broker.protocol.api import Delivery
from broker.protocol.jobs import JobSpec
from chain.base.hashing import Tag, compute_digest
from chain.base.keys import Signed
from chain.ledger.terms.agreement import Award, Bid, Kind, Order, compute_lease_id
from chain.ledger.terms.outcome import Cause, Usage
from chain.ledger.terms.work import (
    Receipt,
    SegmentRecord,
    StorageReceipt,
    compute_receipt_id,
    compute_records_root,
    is_final,
)
from requester.purchase.checking import Check, is_signed_by

EMPTY = compute_digest(b"")
"""Digest of the empty blob: what a record names where there is no error, or a receipt where there is no log."""


@dataclass(frozen=True)
class DeliveryFacts:
    """A delivery beside its award. `found` maps digests of blobs that are at hand, and match, to their sizes."""

    chain: bytes
    order: Order
    spec: JobSpec
    award: Award
    bid: Bid
    delivery: Delivery
    storage: Signed[StorageReceipt]
    found: Mapping[bytes, int]

    @property
    def receipt(self) -> Receipt:
        """The receipt's body."""
        return self.delivery.receipt.body

    @property
    def records(self) -> tuple[SegmentRecord, ...]:
        """The records' bodies, as they were sent."""
        return tuple(signed.body for signed in self.delivery.records)

    @property
    def lease(self) -> bytes:
        """Id of the lease the award opens."""
        return compute_lease_id(self.chain, self.award)


def _are_records_signed(facts: DeliveryFacts) -> bool:
    key = facts.bid.provider
    return all(is_signed_by(signed, Tag.SEGMENT, facts.chain, key) for signed in facts.delivery.records)


def _are_records_of_lease(facts: DeliveryFacts) -> bool:
    return all(record.lease == facts.lease and record.provider == facts.bid.provider for record in facts.records)


def _are_indices_right(facts: DeliveryFacts) -> bool:
    first = facts.award.first
    return [record.index for record in facts.records] == list(range(first, first + len(facts.records)))


def _are_inputs_right(facts: DeliveryFacts) -> bool:
    """R5: the first input is the start digest; in a `train` each input is the output before it."""
    if facts.order.kind is Kind.MAP:
        return True
    if facts.records[0].input != facts.award.start:
        return False
    return all(after.input == before.output for before, after in pairwise(facts.records))


def _is_cause_right(facts: DeliveryFacts) -> bool:
    """R9: all records before the last are `ok`, the receipt's cause is the last one's, `host` is never final."""
    causes = [record.cause for record in facts.records]
    return all(cause is Cause.OK for cause in causes[:-1]) and facts.receipt.cause is causes[-1] is not Cause.HOST


def _is_usage_sum(facts: DeliveryFacts) -> bool:
    return sum((record.usage for record in facts.records), Usage()) == facts.receipt.usage


def _are_outputs_here(facts: DeliveryFacts) -> bool:
    limit = facts.spec.resources.output_bytes
    return all(_is_here(facts, record.output, limit) for record in facts.records)


def _are_errors_here(facts: DeliveryFacts) -> bool:
    """A failed segment names the digest of its traceback (R9); an ok one names that of the empty blob."""
    if any(record.cause is Cause.OK and record.error != EMPTY for record in facts.records):
        return False
    return all(_is_here(facts, record.error, MAX_ERROR_BYTES) for record in facts.records)


def _is_here(facts: DeliveryFacts, digest: bytes, limit: int) -> bool:
    return digest == EMPTY or facts.found.get(digest, limit + 1) <= limit


def _is_storage_mine(facts: DeliveryFacts) -> bool:
    body = facts.storage.body
    if body.holder not in (*facts.order.holders, *facts.bid.holders):
        return False
    return is_signed_by(facts.storage, Tag.STORAGE, facts.chain, body.holder)


def _is_storage_of_receipt(facts: DeliveryFacts) -> bool:
    body = facts.storage.body
    return body.lease == facts.lease and body.receipt == compute_receipt_id(facts.chain, facts.receipt)


MAX_ERROR_BYTES = 1 << 20
"""Largest traceback that is taken."""

LOG_MARGIN = 4_096
"""Bytes by which a log may pass its limit: the notice that says it was cut."""

DELIVERY_CHECKS: tuple[Check[DeliveryFacts], ...] = (
    Check(
        20,
        "receipt signature",
        "the receipt is signed by the provider that won",
        lambda f: is_signed_by(f.delivery.receipt, Tag.RECEIPT, f.chain, f.bid.provider),
    ),
    Check(
        21,
        "receipt lease",
        "the receipt is for this lease and by this provider",
        lambda f: f.receipt.lease == f.lease and f.receipt.provider == f.bid.provider,
    ),
    Check(
        22,
        "receipt range",
        "the receipt begins where the award does and counts the records that came",
        lambda f: (
            f.receipt.first == f.award.first
            and 0 < f.receipt.count == len(f.records)
            and f.receipt.count <= f.award.count
        ),
    ),
    Check(23, "record signatures", "each segment record is signed by the provider", _are_records_signed),
    Check(24, "record lease", "each record names this lease and this provider", _are_records_of_lease),
    Check(25, "indices", "the records' indices follow each other without a gap", _are_indices_right),
    Check(
        26,
        "records root",
        "the receipt's root is the one over these records",
        lambda f: f.receipt.records == compute_records_root(f.records),
    ),
    Check(
        27,
        "start digest",
        "the work began from the input that was awarded, and each step from the last",
        _are_inputs_right,
    ),
    Check(28, "cause", "the cause is the last record's, and all before it are ok", _is_cause_right),
    Check(
        29,
        "final",
        "the receipt covers the whole range or ends by a cause of R9",
        lambda f: is_final(f.receipt, f.award.count),
    ),
    Check(30, "usage", "the receipt's usage is the sum of its records", _is_usage_sum),
    Check(
        31,
        "runtime",
        "the work ran under the runtime that was ordered",
        lambda f: f.receipt.environment.runtime == f.order.runtime,
    ),
    Check(
        32, "storage signature", "the storage receipt is signed by a holder that order or bid names", _is_storage_mine
    ),
    Check(33, "storage receipt", "the storage receipt is for this lease and this receipt", _is_storage_of_receipt),
    Check(
        34,
        "storage time",
        "the holder keeps the outputs until the acceptance window is over",
        lambda f: f.storage.body.kept_until >= f.receipt.finished + f.order.windows.acceptance,
    ),
)

BLOB_CHECKS: tuple[Check[DeliveryFacts], ...] = (
    Check(35, "outputs", "each output is here, matches its digest and keeps to its limit", _are_outputs_here),
    Check(36, "errors", "each failed segment's error text is here and matches its digest", _are_errors_here),
    Check(
        37,
        "log",
        "the log is here, matches its digest and keeps to its limit",
        lambda f: _is_here(f, f.receipt.log, f.spec.resources.log_bytes + LOG_MARGIN),
    ),
)
"""Run once the blobs were fetched: all else is checked before a byte of them is asked for."""


def list_needed(delivery: Delivery) -> tuple[bytes, ...]:
    """Digests of all blobs a delivery names, without the empty one, each once."""
    named = [delivery.receipt.body.log]
    for signed in delivery.records:
        named += [signed.body.output, signed.body.error]
    return tuple(dict.fromkeys(digest for digest in named if digest != EMPTY))
