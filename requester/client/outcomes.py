"""The errors by which a job leaves its caller without a value, or without all of them; each says what happened."""

from __future__ import annotations

from typing import Any

from chain.base.errors import Refused, TallyError
from chain.base.units import format_credits
from chain.ledger.terms.outcome import Cause
from chain.ledger.terms.work import SegmentRecord
from requester.client.texts import escape_line, show_size, show_span
from requester.purchase.documents import Documents

PACKAGE_HINT = "; name what the job imports by --package, or packages=(…): then only who has it bids"


class NoBid(Refused):
    """Nobody bid. `lowest` is the lowest price per segment at which someone would have (0: nobody at any price)."""

    def __init__(self, text: str, lowest: int) -> None:
        super().__init__(f"no bid: {text}", rule="auction.unmatched")
        self.lowest = lowest


class JobFailed(TallyError):
    """The job itself failed, or some of its segments have no value; segments that failed are paid (R9).

    `cause` is that of the first failure as its receipt has it, `host` where none failed and some were not served;
    `figure` says how much of what; `traceback` is the end of the job's own, hostile text as it came; `cost` is in
    micro-credits, commission included. `result` is what a `map` or `train` did bring (a `MapResult` or `TrainResult`);
    `partial=True` returns it instead.
    """

    def __init__(
        self,
        job: str,
        cause: Cause,
        figure: str,
        traceback: str,
        *,
        cost: int = 0,
        settled: bool = True,
        result: Any = None,
    ) -> None:
        paid = f"{format_credits(cost)} credits {'paid' if settled else 'to be paid'}"
        paid += ": a failed segment is paid" if cause is not Cause.HOST else ""
        lacking = result is not None and cause is Cause.HOST
        head = "the job is incomplete" if lacking else f"the job failed ({cause.value})"
        came = 0 if result is None else result.came
        rest = f"; `partial=True`, or `--partial`, gives what came ({came} value{'s' * (came > 1)})" if came else ""
        super().__init__(f"{head}: {figure}; {paid}{rest}", rule=f"job.{cause.value}")
        self.cost = cost
        self.job = job
        self.cause = cause
        self.figure = figure
        self.traceback = traceback
        self.result = result


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
            last = escape_line(lines[-1], limit=500) if lines else "it left with a status other than 0"
            return last + PACKAGE_HINT if last.startswith("ModuleNotFoundError") else last
