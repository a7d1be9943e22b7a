"""From the store to a result: what a job's papers, records and blobs come to, or the error that says why not."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from chain.base.errors import Refused, TallyError
from chain.ledger.terms.agreement import Kind
from chain.ledger.terms.outcome import Cause, Usage
from chain.ledger.terms.work import SegmentRecord
from requester.client.board import LeaseProgress
from requester.client.costs import Cost, read_cost, read_kept_until
from requester.client.lines import ReportReader, make_row
from requester.client.outcomes import JobEnded, JobFailed, JobPending, NoBid, describe_failure
from requester.client.results import (
    Finished,
    JobResult,
    MapResult,
    States,
    TrainResult,
    load_value,
    split_files,
)
from requester.client.texts import escape, escape_line
from requester.purchase import checks, deliveries
from requester.purchase.checking import CheckFailed
from requester.purchase.documents import Documents
from requester.purchase.phases import Phase
from requester.store.jobs import JobRow, JobStore

_COUNTED = re.compile(r"^\d+ of \d+ segments have no result: ")
"""How `requester.purchase.outcome` begins; here are other words for it, and what is missing on disk counts too."""

WITH_RESULTS = frozenset({Phase.ACCEPTED, Phase.SETTLED, Phase.PARTLY})
"""Phases in which something is there to be read."""

LEASE_CHECKS = sum(
    map(len, (checks.AWARD_CHECKS, checks.SHARE_CHECKS, deliveries.DELIVERY_CHECKS, deliveries.BLOB_CHECKS))
)
"""Checks that each accepted lease has passed."""


@dataclass(frozen=True)
class Reading:
    """All that is kept of one job."""

    store: JobStore
    row: JobRow
    documents: Documents

    @property
    def job(self) -> str:
        """The job's id in hex."""
        return self.row.id.hex()

    @cached_property
    def records(self) -> dict[bytes, tuple[SegmentRecord, ...]]:
        """Verified records by lease."""
        return self.store.load_records(self.row.id, self.documents)

    @cached_property
    def segments(self) -> dict[int, SegmentRecord]:
        """The record of each segment that has one; of several a good one."""
        found: dict[int, SegmentRecord] = {}
        for record in (record for rows in self.records.values() for record in rows):
            if record.index not in found or found[record.index].cause is not Cause.OK:
                found[record.index] = record
        return dict(sorted(found.items()))

    @cached_property
    def cost(self) -> Cost:
        """What it costs."""
        return read_cost(self.documents)

    @property
    def kept_until(self) -> int:
        """Until when the broker keeps all outputs."""
        return read_kept_until(self.documents)

    @property
    def leases(self) -> dict[str, LeaseProgress]:
        """Its leases as they were last seen."""
        found: dict[str, LeaseProgress] = {}
        for papers in self.documents.leases:
            lease, award = papers.lease.hex(), papers.award.body
            phase = "awarded" if papers.seen is None else papers.seen.state
            served = 0 if papers.receipt is None else papers.receipt.body.count
            provider = papers.bid.body.provider.hex()
            found[lease] = LeaseProgress(lease, provider, phase, award.first, award.count, served, served)
        return found

    @cached_property
    def output(self) -> tuple[str, list[dict[str, Any]]]:
        """(what it wrote, what it reported), lease by lease in the order of their segments."""
        shown: list[bytes] = []
        metrics: list[dict[str, Any]] = []
        for papers in sorted(self.documents.leases, key=lambda one: one.award.body.first):
            log = b"" if papers.receipt is None else self.store.blobs.get(papers.receipt.body.log) or b""
            reader = ReportReader()
            text, reports = reader.feed(log)
            shown += [text, reader.skip()]
            metrics += map(make_row, reports)
        return b"".join(shown).decode("utf-8", "replace"), metrics

    def read_error(self, record: SegmentRecord) -> str:
        """The traceback that a failed segment left, hostile text."""
        return (self.store.blobs.get(record.error) or b"").decode("utf-8", "replace")

    def make_common(self) -> dict[str, Any]:
        """The members that every result has."""
        documents, (log, metrics) = self.documents, self.output
        receipts = [papers.receipt.body for papers in documents.leases if papers.receipt is not None]
        return {
            "job": self.job,
            "cost": self.cost.total,
            "commission": self.cost.commission,
            "settled": self.cost.settled,
            "usage": sum((receipt.usage for receipt in receipts), Usage()),
            "log": log,
            "metrics": metrics,
            "checks": len(receipts) * LEASE_CHECKS + len(documents.books) * len(checks.BOOK_CHECKS),
            "documents": documents,
            "records": self.records,
            "blobs": self.store.blobs,
        }


def read_outcome(store: JobStore, row: JobRow, *, partial: bool = False, copy: bool = False) -> Finished:
    """The result of a job as the store has it: a `JobResult`, `MapResult` or `TrainResult` by its kind.

    Raises `JobFailed`, `NoBid`, `CheckFailed`, `JobEnded`, or `JobPending` where the job goes on. With `partial` a
    `map` or `train` of which some segments have no value is a result too; without it a `map` is one with up to
    `tolerance` failed items, all others served.
    """
    job, documents = row.id.hex(), store.load_documents(row.id)
    reading = Reading(store, row, documents)
    if row.phase in WITH_RESULTS:
        if documents.spec.kind is Kind.RUN:
            return _read_run(reading, copy=copy)
        return _read_many(reading, partial=partial, copy=copy)
    if not Phase(row.phase).is_over:
        raise JobPending(job, row.phase)
    if row.phase == Phase.UNMATCHED:
        raise NoBid(escape(row.text), documents.unmatched.lowest if documents.unmatched else 0)
    if row.phase == Phase.REFUSED:
        raise _read_check(row)
    how = row.rule.removeprefix("lease.") if row.phase == Phase.ENDED else row.phase
    raise JobEnded(job, how, row.rule, escape(row.text))


def _read_check(row: JobRow) -> TallyError:
    """A delivery that was refused: by the number of its check."""
    number = row.rule.removeprefix("check.")
    failed = CheckFailed(int(number) if number.isdigit() else 0, "delivery", escape(row.text))
    failed.message = f"{escape(row.text)}; it was not accepted and silence will accept it, there is no panel"
    return failed


def count_here(store: JobStore, row: JobRow, documents: Documents) -> int:
    """Segments whose output, or whose failure, is in the store. What was accepted was here; it is not looked for
    again.
    """
    total = documents.order.body.segments
    if row.phase in (Phase.ACCEPTED, Phase.SETTLED):
        return total
    return sum(
        record.cause is not Cause.OK or store.blobs.open(record.output) is not None
        for record in Reading(store, row, documents).segments.values()
    )


# ---- run ----


def _read_run(reading: Reading, *, copy: bool) -> JobResult:
    record = reading.segments.get(0)
    if record is None:
        raise JobEnded(
            reading.job, reading.row.phase, "result.missing", f"no record of it is in {reading.store.folder}"
        )
    if record.cause is not Cause.OK:
        raise _make_failure(reading, record)
    try:
        value = load_value(reading.store.blobs, record.output, copy=copy)
        value, files = split_files(value) if reading.documents.spec.entry == "folder" else (value, {})
    except Refused as error:
        raise JobEnded(reading.job, reading.row.phase, error.rule, error.message) from error
    packed = reading.store.blobs.open(record.output) or b""
    return JobResult(value=value, files=files, packed=packed, **reading.make_common())


def _make_failure(reading: Reading, record: SegmentRecord, result: Any = None) -> JobFailed:
    traceback = reading.read_error(record)
    figure = describe_failure(record, reading.documents, traceback)
    if result is not None:
        figure = f"segment {record.index}: {figure}"
    cost = reading.cost
    return JobFailed(reading.job, record.cause, figure, traceback, cost=cost.total, settled=cost.settled, result=result)


# ---- map and train ----


def _read_many(reading: Reading, *, partial: bool, copy: bool) -> MapResult | TrainResult:
    documents, segments = reading.documents, reading.segments
    failed = {
        index: describe_failure(record, documents, reading.read_error(record))
        for index, record in segments.items()
        if record.cause is not Cause.OK
    }
    found: MapResult | TrainResult
    if documents.spec.kind is Kind.MAP:
        found = _read_map(reading, failed, copy=copy)
    else:
        digests = [record.output for record in segments.values() if record.cause is Cause.OK]
        missing = tuple(index for index in range(documents.order.body.segments) if index not in segments)
        states = States(reading.store.blobs, digests, copy=copy)
        found = TrainResult(states=states, failed=failed, missing=missing, **reading.make_common())
    tolerated = documents.spec.tolerance if documents.spec.kind is Kind.MAP else 0
    if partial or (len(found.failed) <= tolerated and not found.missing):
        return found
    raise _describe_lack(reading, found)


def _read_map(reading: Reading, failed: dict[int, str], *, copy: bool) -> MapResult:
    values: list[Any] = [None] * reading.documents.order.body.segments
    missing = []
    for index in range(len(values)):
        record = reading.segments.get(index)
        if record is None:
            missing.append(index)
        elif record.cause is Cause.OK:
            try:
                values[index] = load_value(reading.store.blobs, record.output, copy=copy)
            except Refused as error:
                if error.rule == "result.missing":
                    missing.append(index)
                else:
                    failed = {**failed, index: error.message}
    return MapResult(
        values=values, failed=dict(sorted(failed.items())), missing=tuple(missing), **reading.make_common()
    )


def _describe_lack(reading: Reading, found: MapResult | TrainResult) -> JobFailed:
    """Why a `map` or `train` has not all its values: by the first failure, else by what was not served."""
    broken = [record for record in reading.segments.values() if record.cause is not Cause.OK]
    if broken:
        return _make_failure(reading, broken[0], found)
    total = reading.documents.order.body.segments
    lacking = len(found.missing) + len(found.failed)
    told = _COUNTED.sub("", escape_line(reading.row.text, limit=1_000))
    words = next(iter(found.failed.values()), told) or "not served"
    figure = f"{lacking} of {total} segments have no value: {words}"
    cost = reading.cost
    return JobFailed(reading.job, Cause.HOST, figure, "", cost=cost.total, settled=cost.settled, result=found)
