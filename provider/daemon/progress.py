"""Progress on the bus: records and live output of one lease, in bounded frames, several events to a frame.

Messages may be lost; what matters comes again with the receipt. A frame leaves when enough came together or a little
time passed, at least one for each segment (design.md section 6, limits.md on frames).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from broker.protocol.messages import LOG_CHUNK_BYTES, Progress
from chain.base.keys import Signed
from chain.ledger.terms.work import SegmentRecord

FLUSH_SECONDS = 0.1
"""How long news may wait for more."""

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
        self._records: list[Signed[SegmentRecord]] = []
        self._log = bytearray()
        self._offset = 0
        self._sequence = 0
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, offset: int, ticks: int) -> None:
        """A run begins: its log goes on at `offset`; `ticks` of `TICK_MS` have passed since the lease opened."""
        self.close()
        self._log, self._offset = bytearray(), offset
        self._sequence = max(self._sequence, ticks)

    def add_record(self, done: int, record: Signed[SegmentRecord]) -> None:
        """A segment is over."""
        self._done = done
        self._records.append(record)
        self._soon(full=len(self._records) >= MAX_RECORDS)

    def add_log(self, data: bytes) -> None:
        """The job wrote something."""
        self._log += data
        self._soon(full=len(self._log) >= LOG_CHUNK_BYTES)

    def flush(self) -> None:
        """Send all that waits."""
        self._stop_timer()
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
        if full:
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_SECONDS, self.flush)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
