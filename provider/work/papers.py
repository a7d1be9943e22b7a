"""The papers of a lease: its segment records and the receipts over their prefixes (R5, R9).

The papers never contradict themselves: a record once made for an index is the record of that index, the receipt over
a prefix is always the same one, and after the final receipt nothing is added. So no two inconsistent receipts, and for
`train` no two adjacent records whose output and input differ, can leave this provider.
"""

from __future__ import annotations

from broker.protocol.provenance import WorkFacts, make_provenance
from chain.base.codec import encode
from chain.base.errors import Fault
from chain.base.hashing import Tag, compute_digest
from chain.base.keys import Signed, Signer
from chain.base.merkle import Frontier, prove_consistency
from chain.base.units import MAX_INT
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
"""Digest of the empty blob: no traceback; log and provenance of a receipt that is not final."""

_CORE = 1_000
"""Millicores of one core."""


class Papers:
    """Records and receipts of one lease."""

    def __init__(self, signer: Signer, chain_id: bytes, opened: LeaseOpened) -> None:
        self.records: list[SegmentRecord] = []
        self.final: Signed[Receipt] | None = None
        self.provenance = b""
        self._signer = signer
        self._chain_id = chain_id
        self._opened = opened
        self._frontier = Frontier()
        self._usage = Usage()
        self._environments: list[tuple[int, Environment]] = []
        self._receipts: dict[bytes, Signed[Receipt]] = {}

    @property
    def done(self) -> int:
        """How many segments have a record."""
        return len(self.records)

    @property
    def cause(self) -> Cause:
        """`ok` while all segments are, else the last one's."""
        return self.records[-1].cause if self.records else Cause.OK

    @property
    def is_complete(self) -> bool:
        """Whether no further segment may follow: the whole range, or ended by a cause of R9."""
        return self.done == self._opened.count or self.cause is not Cause.OK

    def find_contradiction(self, ran: SegmentRan) -> str:
        """Why a record of this segment would contradict what was done or ordered; empty where it would not."""
        if self.is_complete:
            return "the range is closed"
        if ran.index != self._opened.first + self.done:
            return f"segment {ran.index} where {self._opened.first + self.done} is next"
        if ran.cause is Cause.HOST:
            return "a host failure is no segment (R9)"
        kind = self._opened.announcement.order.body.kind
        if kind is not Kind.MAP and ran.input != (self.records[-1].output if self.records else self._opened.start):
            return "another input than the start digest, or than the output of the segment before (R5)"
        return ""

    def add_record(self, ran: SegmentRan, level: str, blas: str) -> SegmentRecord:
        """The record of the next segment. Raises `Fault` for a contradiction (ask `find_contradiction` first)."""
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
        environment = self._describe(level, blas)
        if not self._environments or self._environments[-1][1] != environment:
            self._environments.append((self.done, environment))
        self.records.append(record)
        self._frontier.append(encode(record))
        self._usage = self._usage + ran.usage
        return record

    def sign_prefix(self, count: int) -> Signed[Receipt]:
        """The receipt over the first `count` records, which is never final; for the same count always the same. Raises
        `Fault` where these records take a final receipt, or are not there.
        """
        if not 0 < count <= self.done:
            raise Fault(f"a receipt over {count} of {self.done} records", rule="R5.empty")
        last = self.records[count - 1]
        if count == self._opened.count or last.cause is not Cause.OK:
            raise Fault("the receipt over these records is the final one", rule="R5.final")
        finished = min(last.started + last.usage.wall_ms, MAX_INT)
        return self._sign(count, EMPTY, EMPTY, finished)

    def sign_final(self, ended: RunEnded) -> Signed[Receipt]:
        """The receipt over all records, of a range that is complete; the same one for ever after."""
        if self.final is not None:
            return self.final
        if not self.is_complete or not self.records:
            raise Fault("only the receipt of a whole range, or of one that a segment ended, is final", rule="R5.empty")
        announcement, bid = self._opened.announcement, self._opened.bid.body
        self.provenance = make_provenance(
            self._signer,
            WorkFacts(
                chain=self._chain_id,
                order=announcement.order.body,
                order_id=bid.order,
                spec=announcement.spec,
                lease=self._opened.lease,
                records=self.records,
                environment=self._find_environment(self.done),
                finished=ended.finished,
            ),
        )
        self.final = self._sign(self.done, ended.log, compute_digest(self.provenance), ended.finished)
        return self.final

    def prove(self, old: int, new: int) -> tuple[bytes, ...]:
        """That the receipt over the first `new` records continues the one over the first `old` (R5); nothing where
        there is none, or where it is not one of ours.
        """
        if not 0 < old <= new <= self.done:
            return ()
        return prove_consistency([encode(record) for record in self.records[:new]], old)

    def find_accepted(self, signed: Signed[Acceptance]) -> Signed[Receipt] | None:
        """Our receipt that an acceptance accepts wholly, by somebody who may: None where it is on one that was never
        made, or leaves segments out (silence accepts them all). Its signature is the caller's to check.
        """
        # No receipt is made here to compare with: a requester may send as many acceptances as it likes, and each would
        # cost the hashes of all records. One that was not made cannot have been accepted either.
        body, order = signed.body, self._opened.announcement.order.body
        receipt = self._receipts.get(body.receipt)
        if receipt is None or body.lease != self._opened.lease or body.signer not in (order.requester, order.watcher):
            return None
        end = self._opened.first
        for span in body.segments:
            if span.first != end or span.count == 0:
                return None
            end += span.count
        return receipt if end == self._opened.first + receipt.body.count else None

    def _sign(self, count: int, log: bytes, provenance: bytes, finished: int) -> Signed[Receipt]:
        whole = count == self.done
        covered = self.records[:count]
        receipt = Receipt(
            lease=self._opened.lease,
            provider=self._signer.key,
            first=self._opened.first,
            count=count,
            records=self._frontier.root if whole else compute_records_root(covered),
            cause=covered[-1].cause,
            usage=self._usage if whole else sum((record.usage for record in covered), Usage()),
            environment=self._find_environment(count),
            log=log,
            provenance=provenance,
            finished=finished,
        )
        signed = self._signer.sign(Tag.RECEIPT, self._chain_id, receipt)
        self._receipts[compute_receipt_id(self._chain_id, receipt)] = signed
        return signed

    def _find_environment(self, count: int) -> Environment:
        """Under what the last of the first `count` records came about."""
        return next(environment for begun, environment in reversed(self._environments) if begun < count)

    def _describe(self, level: str, blas: str) -> Environment:
        announcement = self._opened.announcement
        return Environment(
            level=level,
            runtime=announcement.order.body.runtime,
            threads=max(1, announcement.spec.resources.millicores // _CORE),
            blas=blas,
        )


def is_settled_by(receipt: Receipt, held: int) -> bool:
    """Whether a whole acceptance of this receipt ends a lease with so many segments at stake and harms nobody: beyond
    one that is not final, settling would be a return with damages (R7).
    """
    return receipt.count <= held and is_final(receipt, held)
