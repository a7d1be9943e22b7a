"""Keeps the account of one job: which segment is running, what it has used since the last one.

Pure: clock readings and meter readings come in as arguments. A segment's account runs from the end of the one before,
so that nothing a job does between two segments is free. Ends that are seen in one look share what the kernel counted
since the look before: their sum is exact, and each is what the kernel told, divided.
"""

from __future__ import annotations

from chain.ledger.terms.outcome import Usage
from provider.sandbox.cgroups import Reading

__all__ = ["Account"]


class Account:
    """Usage of the running segment and of all of them."""

    def __init__(self, in_total: int) -> None:
        self._in_total = in_total
        self._out_total = 0
        self._first_us = self._base_us = 0
        self._begin_ms = 0.0
        self._instant = 0
        self._segment_begin_ms = 0.0
        self.log_bytes = 0
        self.reading = Reading(0, 0, 0)

    def begin(self, now_ms: float, instant: int, reading: Reading) -> None:
        """The job starts: `now_ms` of a monotonic clock, `instant` of the wall clock. What was used before is not the
        job's.
        """
        self.reading = reading
        self._first_us = self._base_us = reading.cpu_us
        self._begin_ms = self._segment_begin_ms = now_ms
        self._instant = instant

    def count_log(self, size: int) -> None:
        """Bytes the running segment has logged."""
        self.log_bytes += size
        self._out_total += size

    def get_segment_cpu_us(self) -> int:
        """CPU time since the end of the segment before."""
        return max(0, self.reading.cpu_us - self._base_us)

    def close_segment(self, bytes_in: int, bytes_out: int, now_ms: float, among: int = 1) -> tuple[Usage, int]:
        """Ends the running segment and starts the account of the next. Returns its usage and when it started.

        `among` is the number of segments, this one first, that are known to have ended since the last look.
        """
        cpu_us = self.get_segment_cpu_us() // among
        log_bytes = self.log_bytes // among
        wall_ms = (now_ms - self._segment_begin_ms) / among
        started = self._instant + round(self._segment_begin_ms - self._begin_ms)
        usage = Usage(
            cpu_ms=-(-cpu_us // 1000),
            peak_bytes=self.reading.peak_bytes,
            wall_ms=round(wall_ms),
            bytes_in=bytes_in,
            bytes_out=bytes_out + log_bytes,
        )
        self._out_total += bytes_out
        self._base_us += cpu_us
        self._segment_begin_ms += wall_ms
        self.log_bytes -= log_bytes
        return usage, started

    def get_total(self, now_ms: float) -> Usage:
        """Usage of the whole stay."""
        return Usage(
            cpu_ms=-(-(self.reading.cpu_us - self._first_us) // 1000),
            peak_bytes=self.reading.peak_bytes,
            wall_ms=round(now_ms - self._begin_ms) if self._begin_ms else 0,
            bytes_in=self._in_total,
            bytes_out=self._out_total,
        )
