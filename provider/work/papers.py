"""The papers of a lease: signed segment records and the one receipt over them (R5, R9).

The papers never contradict themselves: a record once signed for an index is the record of that index, and after the
receipt nothing is signed any more. So no two inconsistent receipts, and for `train` no two adjacent records whose
output and input differ, can leave this provider.
"""

from __future__ import annotations

from chain.base.errors import Fault
from chain.base.hashing import Tag, compute_digest
from chain.base.keys import Signed, Signer
from chain.ledger.terms.agreement import Kind
from chain.ledger.terms.outcome import Cause, Usage
from chain.ledger.terms.work import (
    Acceptance,
    Environment,
    Receipt,
    SegmentRecord,
    compute_receipt_id,
    compute_records_root,
    is_final,
)
from provider.work.events import LeaseOpened, RunEnded, SegmentRan

EMPTY = compute_digest(b"")
"""Digest of the empty blob: no traceback, no provenance statement."""

_CORE = 1_000
"""Millicores of one core."""


class Papers:
    """Records and receipt of one lease."""

    def __init__(self, signer: Signer, chain_id: bytes, opened: LeaseOpened) -> None:
        self.records: list[Signed[SegmentRecord]] = []
        self.receipt: Signed[Receipt] | None = None
        self._signer = signer
        self._chain_id = chain_id
        self._opened = opened

    @property
    def done(self) -> int:
        """How many segments have a record."""
        return len(self.records)

    @property
    def cause(self) -> Cause:
        """`ok` while all segments are, else the last one's."""
        return self.records[-1].body.cause if self.records else Cause.OK

    @property
    def is_complete(self) -> bool:
        """Whether no further segment may follow: the whole range, or ended by a cause of R9."""
        return self.done == self._opened.count or self.cause is not Cause.OK

    def find_contradiction(self, ran: SegmentRan) -> str:
        """Why a record of this segment would contradict what was signed or ordered; empty where it would not."""
        if self.receipt is not None or self.is_complete:
            return "the range is closed"
        if ran.index != self._opened.first + self.done:
            return f"segment {ran.index} where {self._opened.first + self.done} is next"
        if ran.cause is Cause.HOST:
            return "a host failure is no segment (R9)"
        order = self._opened.announcement.order.body
        start = order.start
        if order.kind is Kind.RUN and ran.input != start:
            return "another input than the order's start digest (R5)"
        if order.kind is Kind.TRAIN and ran.input != (self.records[-1].body.output if self.records else ran.input):
            return "another input than the output of the segment before (R5)"
        return ""

    def add_record(self, ran: SegmentRan) -> Signed[SegmentRecord]:
        """Sign the record of the next segment. Raises `Fault` for a contradiction (ask `find_contradiction` first)."""
        why = self.find_contradiction(ran)
        if why:
            raise Fault(f"no record: {why}", rule="R5.record")
        record = SegmentRecord(
            lease=self._opened.lease,
            index=ran.index,
            provider=self._signer.key,
            input=ran.input,
            output=ran.output,
            error=ran.error,
            cause=ran.cause,
            usage=ran.usage,
            started=ran.started,
            dispatch=ran.dispatch,
        )
        signed = self._signer.sign(Tag.SEGMENT, self._chain_id, record)
        self.records.append(signed)
        return signed

    def sign_receipt(self, ended: RunEnded) -> Signed[Receipt]:
        """The receipt over all records so far; the same one for ever after. Raises `Fault` where there is no record."""
        if self.receipt is not None:
            return self.receipt
        if not self.records:
            raise Fault("a receipt covers at least one segment", rule="R5.empty")
        bodies = [record.body for record in self.records]
        spec = self._opened.announcement.spec
        receipt = Receipt(
            lease=self._opened.lease,
            provider=self._signer.key,
            first=self._opened.first,
            count=len(bodies),
            records=compute_records_root(bodies),
            cause=self.cause,
            usage=sum((body.usage for body in bodies), Usage()),
            environment=Environment(
                level=ended.level,
                runtime=self._opened.announcement.order.body.runtime,
                threads=max(1, spec.resources.millicores // _CORE),
                blas=ended.blas,
            ),
            log=ended.log,
            provenance=EMPTY,
            finished=ended.finished,
        )
        self.receipt = self._signer.sign(Tag.RECEIPT, self._chain_id, receipt)
        return self.receipt

    @property
    def is_deliverable(self) -> bool:
        """Whether silence may accept the receipt: the whole range or a final exit cause (R8)."""
        return self.receipt is not None and is_final(self.receipt.body, self._opened.count)

    def find_objection(self, signed: Signed[Acceptance]) -> str:
        """Why an acceptance is not worth a settle: not on this receipt, not by who may accept, or not of every
        segment (R7). Its signature is the caller's to check.
        """
        body, order = signed.body, self._opened.announcement.order.body
        if self.receipt is None or body.receipt != compute_receipt_id(self._chain_id, self.receipt.body):
            return "it is on another receipt"
        if body.lease != self._opened.lease:
            return "it is on another lease"
        if body.signer not in (order.requester, order.watcher):
            return "it is by somebody who may not accept"
        covered = sum(span.count for span in body.segments)
        first, end, receipt = self._opened.first, 0, self.receipt.body
        for span in body.segments:
            if span.first < max(first, end) or span.first + span.count > first + receipt.count:
                return "its spans are not within the receipt, ascending and disjoint"
            end = span.first + span.count
        return "" if covered == receipt.count else "it leaves segments out; silence accepts them all"
