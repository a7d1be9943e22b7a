"""What a job leaves its caller with: a result, or an error that says what happened, with its figures."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from broker.protocol.values import BadValue, unpack
from chain.base.errors import Refused, TallyError
from chain.base.keys import Signed
from chain.base.units import format_credits
from chain.ledger.genesis import Genesis
from chain.ledger.terms.outcome import Cause, Usage
from chain.ledger.terms.work import Receipt, SegmentRecord
from requester.client.settings import load_genesis
from requester.client.texts import escape, escape_line, show_size, show_span
from requester.purchase import checks, deliveries
from requester.purchase.checking import CheckFailed, Verdict
from requester.purchase.documents import Documents
from requester.purchase.phases import LEASE_ENDS, Phase
from requester.purchase.verify import verify_job
from requester.store.jobs import JobRow, JobStore


class NoBid(Refused):
    """Nobody bid. `lowest` is the lowest price per segment at which someone would have (0: nobody at any price)."""

    def __init__(self, text: str, lowest: int) -> None:
        super().__init__(f"no bid: {text}", rule="auction.unmatched")
        self.lowest = lowest


class JobFailed(TallyError):
    """The job itself failed; its segment is paid (R9). `cause` as in the receipt; `figure` says how much of what;
    `traceback` is the end of the job's own, hostile text as it came; `cost` is in micro-credits, commission included.
    """

    def __init__(
        self, job: str, cause: Cause, figure: str, traceback: str, *, cost: int = 0, settled: bool = True
    ) -> None:
        paid = f"{format_credits(cost)} credits {'paid' if settled else 'to be paid'}: a failed segment is paid"
        super().__init__(f"the job failed ({cause.value}): {figure}; {paid}", rule=f"job.{cause.value}")
        self.cost = cost
        self.job = job
        self.cause = cause
        self.figure = figure
        self.traceback = traceback


class JobEnded(TallyError):
    """The job is over without a result: withdrawn, lapsed, rejected, or its lease ended. `phase` says which."""

    def __init__(self, job: str, phase: str, rule: str, text: str) -> None:
        super().__init__(f"the job ended without a result ({phase}): {text}", rule=rule or f"job.{phase}")
        self.job = job
        self.phase = phase


class JobPending(TallyError):
    """The job is not over yet."""

    def __init__(self, job: str, phase: str) -> None:
        super().__init__(
            f"job {job[:16]} is not over yet ({phase}); `tally result {job[:16]}` waits for it", rule="job.pending"
        )
        self.job = job
        self.phase = phase


@dataclass(frozen=True)
class JobResult:
    """A finished job: plain values and NumPy arrays, what it cost, and the proof of it.

    `cost` is what left the requester in micro-credits, commission included, as a final block shows it (as the award
    says where `settled` is False). `checks` counts the checks that passed.
    """

    value: Any
    job: str
    provider: bytes
    cost: int
    commission: int
    settled: bool
    usage: Usage
    log: str
    checks: int
    documents: Documents = field(repr=False)
    _blobs: dict[bytes, bytes] = field(repr=False, default_factory=dict)

    @property
    def receipt(self) -> Signed[Receipt]:
        """The provider's signed receipt."""
        assert self.documents.delivery is not None
        return self.documents.delivery.receipt

    @property
    def packed(self) -> bytes:
        """The output as it was received and checked."""
        assert self.documents.delivery is not None
        return self._blobs.get(self.documents.delivery.records[-1].body.output, b"")

    @property
    def credits(self) -> str:
        """The cost as decimal credits."""
        return format_credits(self.cost)

    def verify(self, genesis: Genesis | str | Path) -> list[Verdict]:
        """Check everything again, offline, with nothing but the genesis (or the path of its file). Raises `Refused` for
        a file that can't be read.
        """
        known = genesis if isinstance(genesis, Genesis) else load_genesis(Path(genesis))
        return verify_job(self.documents, self._blobs, known)


def read_outcome(store: JobStore, row: JobRow) -> JobResult:
    """The result of a job as the store has it.

    Raises `JobFailed`, `NoBid`, `CheckFailed`, `JobEnded`, or `JobPending` where the job goes on.
    """
    job, documents = row.id.hex(), store.load_documents(row.id)
    if row.phase in (Phase.ACCEPTED, Phase.SETTLED):
        return _read_result(store, job, documents)
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


def _read_result(store: JobStore, job: str, documents: Documents) -> JobResult:
    assert documents.delivery is not None
    blobs = dict(store.load_blobs(documents))
    receipt = documents.delivery.receipt.body
    last = documents.delivery.records[-1].body
    cost, commission, settled = read_cost(documents)
    if receipt.cause is not Cause.OK:
        traceback = blobs.get(last.error, b"").decode("utf-8", "replace")
        figure = describe_failure(last, documents, traceback)
        raise JobFailed(job, receipt.cause, figure, traceback, cost=cost, settled=settled)
    packed = blobs.get(last.output)
    if packed is None:
        raise JobEnded(job, "accepted", "result.missing", f"its output is no longer in {store.folder}")
    try:
        value = unpack(packed)
    except BadValue as error:
        raise JobEnded(job, "accepted", "result.form", f"the output cannot be read: {escape(str(error))}") from error
    return JobResult(
        value=value,
        job=job,
        provider=receipt.provider,
        cost=cost,
        commission=commission,
        settled=settled,
        usage=receipt.usage,
        log=blobs.get(receipt.log, b"").decode("utf-8", "replace"),
        checks=CHECKED,
        documents=documents,
        _blobs=blobs,
    )


CHECKED = sum(map(len, (checks.AWARD_CHECKS, checks.BOOK_CHECKS, deliveries.DELIVERY_CHECKS, deliveries.BLOB_CHECKS)))
"""How many checks an accepted delivery has passed."""


def read_cost(documents: Documents) -> tuple[int, int, bool]:
    """(cost, commission, settled): from the chain where the lease is over, else as the award would have it."""
    seen, award = documents.seen, documents.award
    if seen is not None and seen.state in LEASE_ENDS:
        return seen.paid + seen.commission, seen.commission, True
    if award is None:
        return 0, 0, False
    price = award.body.price * award.body.count
    commission = price * award.body.commission // 10_000
    return price + commission, commission, False


def describe_failure(record: SegmentRecord, documents: Documents, traceback: str = "") -> str:
    """The figure of a failed segment in words: what it used of what it was allowed, or the last line it left."""
    limits, used = documents.spec.resources, record.usage
    match record.cause:
        case Cause.OOM:
            allowed = show_size(limits.memory_bytes)
            return f"out of memory: it used {show_size(used.peak_bytes)} of {allowed}; raise --memory"
        case Cause.CPU:
            return f"out of CPU time: it used {show_span(used.cpu_ms)} of {show_span(limits.cpu_ms)}; raise --wall"
        case Cause.WALL:
            allowed = show_span(documents.order.body.segment_wall)
            return f"out of time: it ran {show_span(used.wall_ms)} of {allowed}; raise --wall"
        case Cause.OUTPUT:
            return f"its output exceeds {show_size(limits.output_bytes)}; raise --output"
        case Cause.LOG:
            return f"it wrote more than {show_size(limits.log_bytes)} to stdout and stderr; write less"
        case Cause.POLICY:
            return "it did what the sandbox forbids"
        case Cause.SIGNAL:
            return "a signal ended it"
        case _:
            lines = traceback.strip().splitlines()
            return escape_line(lines[-1], limit=500) if lines else "it left with a status other than 0"
