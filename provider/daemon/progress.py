"""Progress on the bus: records and live output of one lease, in bounded frames, several events to a frame.

Messages may be lost; what matters comes again with the receipt. The first news after a pause leaves at once, so that a
slow segment is heard of before the next one ends; what follows closely is gathered, since the bus bears few frames and
many records in each (limits.md).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from broker.protocol.messages import LOG_CHUNK_BYTES, Progress
from chain.ledger.terms.work import SegmentRecord

FLUSH_SECONDS = 0.05
"""Least time between two frames that are not full."""

MAX_RECORDS = 64
"""Most records in a frame."""

TICK_MS = 10
"""Frames are numbered by ticks since the lease opened, so that numbers grow over restarts too."""


class Reporter:
    """Frames of one lease; `send` hands one over."""

    def __init__(self, lease: bytes, provider: bytes, total: int, send: Callable[[Progress], None]) -> None:
        self._lease = lease
        self._provider = provider
        self._total = total
        self._send = send
        self._done = 0
        self._records: list[SegmentRecord] = []
        self._log = bytearray()
        self._offset = 0
        self._sequence = 0
        self._timer: asyncio.TimerHandle | None = None
        self._sent_at = -FLUSH_SECONDS

    def begin(self, offset: int, ticks: int) -> None:
        """A run begins: its log goes on at `offset`; `ticks` of `TICK_MS` have passed since the lease opened."""
        self.close()
        self._log, self._offset = bytearray(), offset
        self._sequence = max(self._sequence, ticks)

    def add_records(self, done: int, records: Sequence[SegmentRecord]) -> None:
        """Segments are over, `done` in all."""
        self._done = done
        self._records += records
        self._soon(full=len(self._records) >= MAX_RECORDS)

    def add_log(self, data: bytes) -> None:
        """The job wrote something."""
        if not data:
            return
        self._log += data
        self._soon(full=len(self._log) >= LOG_CHUNK_BYTES)

    def flush(self) -> None:
        """Send all that waits."""
        self._stop_timer()
        self._sent_at = asyncio.get_running_loop().time()
        while self._records or self._log:
            chunk = bytes(self._log[:LOG_CHUNK_BYTES])
            self._sequence += 1
            frame = Progress(
                lease=self._lease,
                provider=self._provider,
                sequence=self._sequence,
                done=self._done,
                total=self._total,
                records=tuple(self._records[:MAX_RECORDS]),
                log_offset=self._offset,
                log=chunk,
            )
            del self._records[:MAX_RECORDS], self._log[:LOG_CHUNK_BYTES]
            self._offset += len(chunk)
            self._send(frame)

    def close(self) -> None:
        """Drop what waits."""
        self._stop_timer()
        self._records.clear()
        self._log.clear()

    def _soon(self, *, full: bool) -> None:
        loop = asyncio.get_running_loop()
        due = self._sent_at + FLUSH_SECONDS
        if full:
            self.flush()
        elif self._timer is None:
            self._timer = loop.call_at(max(due, loop.time()), self.flush)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
