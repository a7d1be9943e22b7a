"""What the host hears of a job that runs: its frames and its log, held against the caps and against what the kernel has
counted, and turned into events.

Many small segments may end between two looks: they are read together at most every `_REST_S`, so that the host does not
wake for each. Before a limit is called passed, what the harness has said by then is heard. Long outputs are written by
a thread, and meanwhile nothing else of the job is read. Not here: the life of its processes (`flight.py`).
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import Callable
from typing import Final

import msgspec

from chain.ledger.terms.agreement import Kind
from chain.ledger.terms.outcome import Cause
from provider.sandbox.account import Account
from provider.sandbox.frames import Closed, Finished, FrameParser, Parsed, Spilled, StreamBroken, TooMuchOutput
from provider.sandbox.inputs import Inputs
from provider.sandbox.inside import wire
from provider.sandbox.launch import Launched
from provider.sandbox.meter import Meter
from provider.sandbox.plan import HostCaps
from provider.sandbox.spec import MAX_ERROR_BYTES, LogChunk, SandboxEvent, SegmentDone, Task
from provider.sandbox.spool import Spool
from provider.sandbox.streams import read_available
from provider.sandbox.verdict import Evidence, judge

__all__ = ["Hearing"]

_TICK_S: Final = 0.02
"""How often usage is looked at: a job passes its CPU limit by at most this much per core."""
_REST_S: Final = 0.005
"""Time between two looks at the frames: it bounds what a segment costs the host and delays its event."""
_CPU_SLACK_US: Final = 50_000
"""Without a cgroup CPU time is told in ticks of 10 ms, and a look is up to one tick of ours old."""
_CHUNK: Final = 1 << 18
_LONG_CHUNK: Final = 1 << 20
"""Bytes that are read of the frames at once: as much as the pipe holds, where a long output comes."""
_STREAMS: Final = ("out", "err")

End = Callable[[Cause, str], None]


class Hearing:
    """Listens to one job. `say` takes its events, `end` is called with the first reason why it should end."""

    def __init__(
        self, task: Task, caps: HostCaps, inputs: Inputs, spool: Spool, say: Callable[[SandboxEvent], None], end: End
    ) -> None:
        self._task, self._caps, self._inputs, self._spool = task, caps, inputs, spool
        self._say, self._end = say, end
        self._loop = asyncio.get_running_loop()
        self._launched: Launched | None = None
        self._meter: Meter | None = None
        self._parser = FrameParser(task.first, task.count, output_bytes=caps.output_bytes, error_bytes=MAX_ERROR_BYTES)
        self._unheard: deque[Parsed] = deque()
        self._writing: asyncio.Future[OSError | None] | None = None
        self._chunk = _CHUNK
        self._last_words = False
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._state = (b"", 0)
        self._over = False
        self.account = Account(len(task.code) + inputs.size)
        self.next_index = task.first
        self.failed = False
        self.closed: Closed | None = None

    def begin(self, launched: Launched, meter: Meter, instant: int) -> None:
        """The sandbox stands: what the job says is heard and its limits are watched from now on."""
        self._launched, self._meter = launched, meter
        self.account.begin(self._loop.time() * 1000, instant, meter.read())
        self._loop.add_reader(launched.ends["frames"], self._on_frames)
        for stream in _STREAMS:
            self._loop.add_reader(launched.ends[stream], self._on_log, stream)
        self._arm_wall()
        self._tick()

    def stop(self) -> None:
        """A verdict stands: what the job says from now on changes nothing but its log."""
        self._over = True

    async def finish(self, launched: Launched) -> None:
        """Takes what is left in the pipes of a job that is dead, and closes them: whoever still holds the other end is
        none of ours.
        """
        for timer in self._timers.values():
            timer.cancel()
        for name in ("frames", *_STREAMS):
            if name in launched.ends:
                self._loop.remove_reader(launched.ends[name])
        self._launched, self._last_words = launched, True
        if self._writing is not None:
            await asyncio.wait([self._writing])
        self._look()
        self._work_off()
        while self._read_frames():
            self._work_off()
        for stream in _STREAMS:
            while self._read_log(stream):
                pass

    def discard(self) -> None:
        """Removes an output that did not come to its end."""
        self._spool.discard()

    # ---- limits ----

    def _arm_wall(self) -> None:
        limit = self._caps.wall_ms
        if "wall" in self._timers:
            self._timers["wall"].cancel()
        if limit is not None:
            self._timers["wall"] = self._loop.call_later(limit / 1000, self._on_wall, self.next_index)

    def _on_wall(self, index: int) -> None:
        self._hear()
        if self.next_index == index:
            self._end(Cause.WALL, f"wall time of {self._caps.wall_ms} ms used up")

    def _tick(self) -> None:
        self._timers["tick"] = self._loop.call_later(_TICK_S, self._tick)
        self._look()
        if self._find_excess() is not None:
            self._hear()
            excess = self._find_excess()
            if excess is not None:
                self._end(*excess)

    def _look(self) -> None:
        """Reads the kernel's figures."""
        if self._meter is not None and not self._over:
            self.account.reading = self._meter.read()

    def _find_excess(self) -> tuple[Cause, str] | None:
        """The limit of memory or CPU that the running segment has passed."""
        reading, caps = self.account.reading, self._caps
        if reading.oom_kills:
            return Cause.OOM, f"out of memory; peak {reading.peak_bytes} bytes"
        if caps.polled_bytes is not None and reading.peak_bytes > caps.polled_bytes:
            return Cause.OOM, f"out of memory; peak {reading.peak_bytes} bytes of {caps.polled_bytes}"
        if caps.cpu_ms is not None and self.account.get_segment_cpu_us() >= caps.cpu_ms * 1000:
            return Cause.CPU, f"CPU time of {caps.cpu_ms} ms used up"
        return None

    def get_evidence(self) -> Evidence:
        """What the host knows of a segment that ends now."""
        reading, limit = self.account.reading, self._caps.cpu_ms
        spent = limit is not None and self.account.get_segment_cpu_us() >= limit * 1000 - _CPU_SLACK_US
        return Evidence(reading.oom_kills, reading.peak_bytes, spent, self._caps.polled_bytes is None)

    # ---- the log ----

    def _on_log(self, stream: str) -> None:
        self._read_log(stream)
        if self._unheard and self._writing is None:
            self._look()
            self._work_off()

    def _read_log(self, stream: str, ended: int = 0) -> bool:
        """Takes what was logged; whether there was something. `ended` segments are known to have ended, 0 to find
        out.
        """
        launched = self._launched
        if launched is None or stream not in launched.ends:
            return False
        data, closed = read_available(launched.ends[stream])
        if closed:
            self._loop.remove_reader(launched.ends[stream])
            launched.close(stream)
        cap = self._caps.log_bytes
        if cap is not None and self.account.log_bytes + len(data) > cap:
            if not ended and self._writing is None:
                self._read_frames()
            cap *= self._count_loggers(ended or self._count_ended())
            if self.account.log_bytes + len(data) > cap:
                data = data[: max(0, cap - self.account.log_bytes)]
                self._end(Cause.LOG, f"more than {self._caps.log_bytes} bytes of log")
        self.account.count_log(len(data))
        if data:
            self._say(LogChunk(stream, data))
        return bool(data)

    def _count_ended(self) -> int:
        return sum(isinstance(one, Finished) for one in self._unheard)

    def _count_loggers(self, ended: int) -> int:
        """Segments whose log may lie in the streams: those that have ended unheard, and the one that runs."""
        return ended + (self.next_index + ended < self._task.first + self._task.count)

    # ---- frames ----

    def _on_frames(self) -> None:
        """Hears the frames that are there; rests where segments are short."""
        before = self.next_index
        self._hear()
        launched = self._launched
        if launched is not None and "frames" in launched.ends and self._writing is None and self.next_index != before:
            self._loop.remove_reader(launched.ends["frames"])
            self._timers["rest"] = self._loop.call_later(_REST_S, self._resume)

    def _resume(self) -> None:
        launched = self._launched
        if launched is not None and "frames" in launched.ends and not self._over:
            self._loop.add_reader(launched.ends["frames"], self._on_frames)

    def _hear(self) -> None:
        self._look()
        if self._writing is None and self._read_frames():
            self._work_off()

    def _read_frames(self) -> bool:
        """Takes what the harness says; whether there was something."""
        launched = self._launched
        if launched is None or "frames" not in launched.ends:
            return False
        data, closed = read_available(launched.ends["frames"], self._chunk)
        if closed:
            self._loop.remove_reader(launched.ends["frames"])
            launched.close("frames")
        if self._over:
            return bool(data)
        try:
            self._unheard.extend(self._parser.feed(data))
        except TooMuchOutput as error:
            self._end(Cause.OUTPUT, error.message)
        except StreamBroken as error:
            self._end(Cause.OUTPUT, f"the job meddled with the result stream: {error.message}")
        return bool(data)

    def _work_off(self) -> None:
        """Turns what was parsed into events, in order. A long output is written by a thread, while there is time."""
        self._chunk = _CHUNK
        while self._unheard and not self._over:
            spilled = self._take_spilled()
            if spilled:
                self._chunk = _LONG_CHUNK
                if not self._last_words:
                    self._write_aside(spilled)
                    return
                self._write(spilled)
                continue
            parsed = self._unheard.popleft()
            if isinstance(parsed, Closed):
                self.closed = parsed
            elif isinstance(parsed, Finished):
                self._finish_segment(parsed)

    def _take_spilled(self) -> list[bytes]:
        parts: list[bytes] = []
        while self._unheard and isinstance(one := self._unheard[0], Spilled):
            parts.append(one.data)
            self._unheard.popleft()
        return parts

    def _write(self, parts: list[bytes]) -> None:
        try:
            self._spool.write(self.next_index, parts)
        except OSError as error:
            self._end(Cause.HOST, f"the output can't be kept: {error.strerror}")

    def _write_aside(self, parts: list[bytes]) -> None:
        """Reads no frames until the parts are written."""
        launched = self._launched
        if launched is not None and "frames" in launched.ends:
            self._loop.remove_reader(launched.ends["frames"])
        if "rest" in self._timers:
            self._timers["rest"].cancel()
        self._writing = self._loop.run_in_executor(None, self._write_there, parts)
        self._writing.add_done_callback(self._on_written)

    def _write_there(self, parts: list[bytes]) -> OSError | None:
        try:
            self._spool.write(self.next_index, parts)
        except OSError as error:
            return error
        return None

    def _on_written(self, writing: asyncio.Future[OSError | None]) -> None:
        self._writing = None
        error = None if writing.cancelled() else writing.result()
        if error is not None:
            self._end(Cause.HOST, f"the output can't be kept: {error.strerror}")
        if self._last_words:
            return
        self._work_off()
        if self._writing is None:
            self._resume()

    # ---- the ends of segments ----

    def _finish_segment(self, done: Finished) -> None:
        among = 1 + self._count_ended()
        for stream in _STREAMS:  # what was written before the end of a segment belongs before it
            while not self._over and self._read_log(stream, among):
                pass
        if self._over:
            return
        evidence = self.get_evidence()
        if among > 1 and done.outcome == wire.OK:  # whom the kernel killed shows in how it ended; the last answers else
            evidence = msgspec.structs.replace(evidence, oom_kills=0)
        cause, detail = judge(done.outcome, done.number, evidence)
        cap = self._caps.output_count
        if cap is not None and done.index - self._task.first >= cap:
            cause, detail = Cause.OUTPUT, f"more than {cap} outputs"
        self.report(cause, done.error.decode("utf-8", "replace") or detail, done.output, among)
        self.failed = cause != Cause.OK
        if self.failed or self.next_index == self._task.first + self._task.count:
            self._end(cause, detail)  # nothing a job does after its last segment is of use to anybody
        elif among == 1:
            self._arm_wall()

    def report(self, cause: Cause, error: str, output: bytes = b"", among: int = 1) -> None:
        """Says that the running segment is over. Its output counts only where the cause is ok."""
        index, self.next_index = self.next_index, self.next_index + 1
        if cause != Cause.OK:
            self._spool.discard()
            output = b""
        path, digest, size = self._spool.finish() or (None, hashlib.sha256(output).digest(), len(output))
        given, given_bytes = b"", self._inputs.get_size(index)
        if self._task.kind == Kind.TRAIN:
            if index > self._task.first:
                given, given_bytes = self._state
            self._state = digest, size
        usage, started = self.account.close_segment(given_bytes, size, self._loop.time() * 1000, among)
        self._say(SegmentDone(index, cause, given, output, path, digest, size, error, usage, started))
