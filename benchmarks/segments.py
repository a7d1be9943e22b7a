"""No-op segments of a `map` through the sandbox alone: how many a second on one slot, and what each costs.

Inside is what the kernel counted for the job's cgroup or processes; outside is the daemon's own CPU time.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cloudpickle

from benchmarks.figures import Figure
from broker.protocol import values
from broker.protocol.jobs import Entry
from chain.ledger.terms.agreement import Kind
from chain.ledger.terms.outcome import Cause
from provider.sandbox.executor import Sandbox
from provider.sandbox.probe import probe
from provider.sandbox.runtimes import build_image
from provider.sandbox.spec import Ended, Limits, SegmentDone, Task

SEGMENTS = 4000
MIB = 1 << 20
LIMITS = Limits(
    memory_bytes=256 * MIB,
    cpu_ms=10_000,
    wall_ms=20_000,
    processes=16,
    open_files=64,
    output_bytes=MIB,
    output_count=SEGMENTS,
    log_bytes=1 << 16,
    tmp_bytes=MIB,
    shm_bytes=MIB,
    millicores=2000,
)


@contextmanager
def _make_folder() -> Iterator[Path]:
    """A folder that the users jobs run as can enter."""
    with tempfile.TemporaryDirectory(prefix="tally-bench-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


def make_task(folder: Path, count: int) -> Task:
    """A `map` of the identity over small numbers."""
    items = folder / "items"
    items.write_bytes(b"".join(values.pack_list([values.pack(number) for number in range(count)])))
    code = cloudpickle.dumps(lambda item: item)
    return Task(Kind.MAP, bytes(32), 0, count, code, Entry.FUNCTION, "", items, LIMITS)


async def measure() -> dict[str, Figure]:
    """Segments a second from the first to the last, and milliseconds of CPU time for each, inside and outside."""
    with _make_folder() as folder:
        image = await asyncio.to_thread(build_image, folder / "runtimes")
        host = await probe(image)
        sandbox = Sandbox(image, host, slots=1)
        try:
            return await _run(sandbox, make_task(folder, SEGMENTS), folder / "spool")
        finally:
            await sandbox.close()


async def _run(sandbox: Sandbox, task: Task, spool: Path) -> dict[str, Figure]:
    done, began, begun_cpu, over = 0, 0.0, 0.0, 0.0
    async for events in sandbox.batches(task, 0, spool):
        count = sum(isinstance(event, SegmentDone) for event in events)
        if count and not done:
            began, begun_cpu, over = time.perf_counter(), time.process_time(), -float(count)
        done += count
        last = events[-1]
        if isinstance(last, Ended):
            if last.cause != Cause.OK:
                raise RuntimeError(f"the job ended by `{last.cause}`: {last.detail}")
            seconds, outside = time.perf_counter() - began, time.process_time() - begun_cpu
            return {
                "segments_rate": Figure((done + over) / seconds, "/s"),
                "segments_inside": Figure(last.usage.cpu_ms / done, "ms", aim=1.2),
                "segments_outside": Figure(outside * 1000 / done, "ms", aim=0.2),
            }
    raise RuntimeError("the sandbox ended without a word")
