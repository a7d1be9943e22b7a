"""Numbered checks of a delivery: receipt, new records, storage receipt (20-34, 38), the blobs they name (35-37, 48).

A delivery covers a prefix of its lease's range and brings the records that are new since the one before (R5). Records
carry no signature: the provider's, on the receipt, covers them by their root. So a root that does not fit says nothing
about the provider, but everything else that is wrong with records under a root that fits is its own doing. Each other
number is covered by a signature of the party that answers for it (R8, R9). Not here: award and book (`checks`), what
the provenance says (`verify`), what is done about a failure (`lots`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

from broker.protocol.jobs import LOG_MARGIN, MAX_ERROR_BYTES, JobSpec, compute_log_limit
from broker.protocol.provenance import compute_provenance_limit
from chain.base.codec import encode
from chain.base.hashing import Tag, compute_digest
from chain.base.keys import Signed
from chain.base.merkle import Frontier
from chain.ledger.terms.agreement import Award, Bid, Kind, Order, compute_lease_id
from chain.ledger.terms.outcome import Cause, Usage
from chain.ledger.terms.work import (
    Receipt,
    SegmentRecord,
    StorageReceipt,
    compute_receipt_id,
    is_final,
)
from requester.purchase.checking import Blame, Check, is_signed_by

EMPTY = compute_digest(b"")
"""Digest of the empty blob: what a record names where there is no error, or a receipt where there is no log."""

MAX_LATE_MS = 60_000
"""How far behind deadline and grace the clock of a provider may say that it finished."""


@dataclass(frozen=True)
class Prefix:
    """What is verified of a lease so far: a frontier over its records, the last of them, and the sum of their usage."""

    frontier: Frontier = field(default_factory=Frontier)
    last: SegmentRecord | None = None
    usage: Usage = field(default_factory=Usage)

    @property
    def count(self) -> int:
        """Records so far."""
        return self.frontier.size

    def extend(self, records: Sequence[SegmentRecord]) -> Prefix:
        """The prefix with these records behind it; this one stays as it is."""
        frontier = self.frontier.copy()
        for record in records:
            frontier.append(encode(record))
        usage = sum((record.usage for record in records), self.usage)
        return Prefix(frontier, records[-1] if records else self.last, usage)


@dataclass(frozen=True)
class DeliveryFacts:
    """A delivery beside its award. `before` is what was verified before it, `records` are those from number `since` of
    the lease on, `items` the digests of a `map`'s items. `found` maps digests of blobs that are at hand, and match, to
    their sizes.
    """

    chain: bytes
    order: Order
    spec: JobSpec
    award: Award
    bid: Bid
    receipt: Signed[Receipt]
    storage: Signed[StorageReceipt]
    since: int
    records: tuple[SegmentRecord, ...]
    items: tuple[bytes, ...] = ()
    before: Prefix = field(default_factory=Prefix)
    found: Mapping[bytes, int] = field(default_factory=dict)

    @property
    def body(self) -> Receipt:
        """The receipt's body."""
        return self.receipt.body

    @cached_property
    def new(self) -> tuple[SegmentRecord, ...]:
        """The records that were not verified before."""
        return self.records[max(0, self.before.count - self.since) :]

    @cached_property
    def after(self) -> Prefix:
        """What is verified once this delivery is."""
        return self.before.extend(self.new)

    @cached_property
    def lease(self) -> bytes:
        """Id of the lease the award opens."""
        return compute_lease_id(self.chain, self.award)


def _is_range_right(facts: DeliveryFacts) -> bool:
    return facts.body.first == facts.award.first and 0 < facts.body.count <= facts.award.count


def _is_continued(facts: DeliveryFacts) -> bool:
    """R5: nothing is left out between what is here and what came, and both together are what the receipt counts."""
    return facts.since <= facts.before.count <= facts.body.count == facts.since + len(facts.records)


def _are_records_of_lease(facts: DeliveryFacts) -> bool:
    return all(record.lease == facts.lease and record.provider == facts.bid.provider for record in facts.new)


def _are_indices_right(facts: DeliveryFacts) -> bool:
    first = facts.award.first + facts.before.count
    return [record.index for record in facts.new] == list(range(first, first + len(facts.new)))


def _are_inputs_right(facts: DeliveryFacts) -> bool:
    """R5: a `map` reads its items; else the first input is the start digest and each other the output before it."""
    if facts.order.kind is Kind.MAP:
        first = facts.award.first + facts.before.count
        return [record.input for record in facts.new] == list(facts.items[first : first + len(facts.new)])
    last = facts.before.last
    start = facts.award.start if last is None else last.output
    if facts.new and facts.new[0].input != start:
        return False
    return all(after.input == before.output for before, after in pairwise(facts.new))


def _is_cause_right(facts: DeliveryFacts) -> bool:
    """R9: all records before the last are `ok`, the receipt's cause is the last one's, `host` is never final."""
    records = (facts.before.last, *facts.new) if facts.before.last else facts.new
    causes = [record.cause for record in records]
    if not causes or any(cause is not Cause.OK for cause in causes[:-1]):
        return False
    return facts.body.cause is causes[-1] is not Cause.HOST


def _compute_last_finish(order: Order) -> int:
    """When the last work of an order that counts can have been finished (R4): no promise has to reach beyond it."""
    return order.deadline + order.windows.grace


def _is_kept_long_enough(facts: DeliveryFacts) -> bool:
    """Only as far as work can count: a finish beyond that is its signer's doing, and no holder's."""
    finished = min(facts.body.finished, _compute_last_finish(facts.order))
    return facts.storage.body.kept_until >= finished + facts.order.windows.acceptance


def _is_storage_mine(facts: DeliveryFacts) -> bool:
    body = facts.storage.body
    if body.holder not in (*facts.order.holders, *facts.bid.holders):
        return False
    return is_signed_by(facts.storage, Tag.STORAGE, facts.chain, body.holder)


def _is_storage_of_receipt(facts: DeliveryFacts) -> bool:
    body = facts.storage.body
    return body.lease == facts.lease and body.receipt == compute_receipt_id(facts.chain, facts.body)


DELIVERY_CHECKS: tuple[Check[DeliveryFacts], ...] = (
    Check(
        20,
        "receipt signature",
        "the receipt is signed by the provider that won",
        lambda f: is_signed_by(f.receipt, Tag.RECEIPT, f.chain, f.bid.provider),
        Blame.TELLER,
    ),
    Check(
        21,
        "receipt lease",
        "the receipt is for this lease and by this provider",
        lambda f: f.body.lease == f.lease and f.body.provider == f.bid.provider,
    ),
    Check(22, "receipt range", "the receipt begins where the award does and ends within it", _is_range_right),
    Check(
        23,
        "prefix",
        "the records that came go on where those before them end, and end where the receipt does",
        _is_continued,
        Blame.TELLER,
    ),
    Check(
        26,
        "records root",
        "the receipt's root is the one over these records",
        lambda f: f.body.records == f.after.frontier.root,
        Blame.TELLER,
    ),
    Check(24, "record lease", "each record names this lease and this provider", _are_records_of_lease),
    Check(25, "indices", "the records' indices follow each other without a gap", _are_indices_right),
    Check(
        27,
        "inputs",
        "each record read what it had to: its item, the start of the range, or the output before it",
        _are_inputs_right,
    ),
    Check(28, "cause", "the cause is the last record's, and all before it are ok", _is_cause_right),
    Check(30, "usage", "the receipt's usage is the sum of its records", lambda f: f.after.usage == f.body.usage),
    Check(
        31,
        "runtime",
        "the work ran under the runtime that was ordered",
        lambda f: f.body.environment.runtime == f.order.runtime,
    ),
    Check(
        38,
        "finish",
        "the receipt was finished before the order's time was over",
        lambda f: f.body.finished <= _compute_last_finish(f.order) + MAX_LATE_MS,
    ),
    Check(
        32,
        "storage signature",
        "the storage receipt is signed by a holder that order or bid names",
        _is_storage_mine,
        Blame.TELLER,
    ),
    Check(
        33,
        "storage receipt",
        "the storage receipt is for this lease and this receipt",
        _is_storage_of_receipt,
        Blame.TELLER,
    ),
    Check(
        34,
        "storage time",
        "the holder keeps the outputs until the acceptance window is over",
        _is_kept_long_enough,
        Blame.TELLER,
    ),
)
"""The root (26) stands before the records it covers: under another one they say nothing."""


# ---- blobs ----


def _are_outputs_here(facts: DeliveryFacts) -> bool:
    limit = facts.spec.resources.output_bytes
    return all(_is_here(facts, record.output, limit) for record in facts.new)


def _are_errors_here(facts: DeliveryFacts) -> bool:
    """A failed segment names the digest of its traceback (R9); an ok one names that of the empty blob."""
    if any(record.cause is Cause.OK and record.error != EMPTY for record in facts.new):
        return False
    return all(_is_here(facts, record.error, MAX_ERROR_BYTES) for record in facts.new)


def _is_provenance_here(facts: DeliveryFacts) -> bool:
    """Only a receipt of the whole range, or with a final cause, has one."""
    if facts.body.provenance == EMPTY:
        return not is_final(facts.body, facts.award.count)
    return _is_here(facts, facts.body.provenance, compute_provenance_limit(facts.body.count))


def _is_here(facts: DeliveryFacts, digest: bytes, limit: int) -> bool:
    return digest == EMPTY or facts.found.get(digest, limit + 1) <= limit


BLOB_CHECKS: tuple[Check[DeliveryFacts], ...] = (
    Check(35, "outputs", "each output is here, matches its digest and keeps to its limit", _are_outputs_here),
    Check(36, "errors", "each failed segment's error text is here and matches its digest", _are_errors_here),
    Check(
        37,
        "log",
        "the log is here, matches its digest and keeps to its limit",
        lambda f: _is_here(f, f.body.log, compute_log_limit(f.spec, f.award.count) + LOG_MARGIN),
    ),
    Check(48, "provenance", "the provenance of finished work is here and keeps to its limit", _is_provenance_here),
)
"""Run once all the blobs are here: all else is checked before a byte of them is asked for."""


def list_needed(receipt: Receipt, records: Iterable[SegmentRecord]) -> tuple[bytes, ...]:
    """Digests of all blobs that a receipt and these records name, without the empty one, each once."""
    named = [digest for record in records for digest in (record.output, record.error)]
    named += [receipt.log, receipt.provenance]
    return tuple(dict.fromkeys(digest for digest in named if digest != EMPTY))


def compute_largest(spec: JobSpec, segments: int) -> int:
    """Bytes of the largest blob that a lease of so many segments may name."""
    limits = spec.resources
    log = compute_log_limit(spec, segments) + LOG_MARGIN
    return max(limits.output_bytes, MAX_ERROR_BYTES, log, compute_provenance_limit(segments))
