"""Keeps the account of one job: which segment is running, what it has used since the last one, which input it was
given.

Pure: clock readings and meter readings come in as arguments. A segment's account runs from the end of the one before,
so that nothing a job does between two segments is free.
"""

from __future__ import annotations

import hashlib

from broker.protocol import values
from chain.ledger.terms.agreement import Kind
from chain.ledger.terms.outcome import Cause, Usage
from provider.sandbox.cgroups import Reading
from provider.sandbox.spec import SegmentDone, Task

__all__ = ["Account"]


class Account:
    """Usage of the running segment and of all of them."""

    def __init__(self, task: Task) -> None:
        self._kind = task.kind
        self._inputs = _list_inputs(task)
        self._first = task.first
        self._in_total = len(task.code) + len(task.inputs)
        self._out_total = 0
        self._base = Reading(0, 0, 0)
        self._begin_ms = 0.0
        self._instant = 0
        self._segment_begin_ms = 0.0
        self.log_bytes = 0
        self.reading = Reading(0, 0, 0)

    def begin(self, now_ms: float, instant: int) -> None:
        """The job starts: `now_ms` of a monotonic clock, `instant` of the wall clock."""
        self._begin_ms = self._segment_begin_ms = now_ms
        self._instant = instant

    def count_log(self, size: int) -> None:
        """Bytes the running segment has logged."""
        self.log_bytes += size
        self._out_total += size

    def get_segment_cpu_us(self) -> int:
        """CPU time since the end of the segment before."""
        return max(0, self.reading.cpu_us - self._base.cpu_us)

    def close_segment(self, index: int, cause: Cause, output: bytes, error: str, now_ms: float) -> SegmentDone:
        """Ends the running segment and starts the account of the next. An output counts only where the cause is ok."""
        output = output if cause == Cause.OK else b""
        digest, size = self._get_input(index)
        usage = Usage(
            cpu_ms=-(-self.get_segment_cpu_us() // 1000),
            peak_bytes=self.reading.peak_bytes,
            wall_ms=round(now_ms - self._segment_begin_ms),
            bytes_in=size,
            bytes_out=len(output) + self.log_bytes,
        )
        started = self._instant + round(self._segment_begin_ms - self._begin_ms)
        self._out_total += len(output)
        self._base = self.reading
        self._segment_begin_ms = now_ms
        self.log_bytes = 0
        if self._kind == Kind.TRAIN:
            self._inputs = [(hashlib.sha256(output).digest(), len(output))]
        return SegmentDone(index, cause, digest, output, error, usage, started)

    def get_total(self, now_ms: float) -> Usage:
        """Usage of the whole stay."""
        return Usage(
            cpu_ms=-(-self.reading.cpu_us // 1000),
            peak_bytes=self.reading.peak_bytes,
            wall_ms=round(now_ms - self._begin_ms) if self._begin_ms else 0,
            bytes_in=self._in_total,
            bytes_out=self._out_total,
        )

    def _get_input(self, index: int) -> tuple[bytes, int]:
        return self._inputs[index - self._first if self._kind == Kind.MAP else 0]


def _list_inputs(task: Task) -> list[tuple[bytes, int]]:
    """Digest and size of the packed input of each segment; only the first is known of a chain."""
    items = values.split(task.inputs)[task.first : task.first + task.count] if task.kind == Kind.MAP else [task.inputs]
    return [(hashlib.sha256(item).digest(), len(item)) for item in items]
