"""How a segment ended and what it used: the exit cause and the usage figures of records and receipts (design.md
section 3, R9).
"""

from __future__ import annotations

from enum import StrEnum

from chain.base.codec import Record
from chain.base.units import MAX_INT, Amount, Millis

__all__ = ["FINAL_FAILURES", "Cause", "Usage"]


class Cause(StrEnum):
    """Exit cause: the one table for receipts, errors and docs."""

    OK = "ok"
    PROGRAM = "program"
    OOM = "oom"
    CPU = "cpu"
    WALL = "wall"
    OUTPUT = "output"
    LOG = "log"
    POLICY = "policy"
    SIGNAL = "signal"
    HOST = "host"


FINAL_FAILURES = frozenset(Cause) - {Cause.OK, Cause.HOST}
"""Causes by which a failed segment is still a segment: it is paid and ends the range (R9). `host` never is."""


class Usage(Record, frozen=True, tag="usage"):
    """Figures read from the kernel, never from the job."""

    cpu_ms: Millis = 0
    peak_bytes: Amount = 0
    wall_ms: Millis = 0
    bytes_in: Amount = 0
    bytes_out: Amount = 0

    def __add__(self, other: Usage) -> Usage:
        """Sum of times and bytes; the larger peak."""
        return Usage(
            min(self.cpu_ms + other.cpu_ms, MAX_INT),
            max(self.peak_bytes, other.peak_bytes),
            min(self.wall_ms + other.wall_ms, MAX_INT),
            min(self.bytes_in + other.bytes_in, MAX_INT),
            min(self.bytes_out + other.bytes_out, MAX_INT),
        )
