"""How long a job waits for its sandbox: cold and from the pool, a no-op and one that uses NumPy, beside the same Python
without a sandbox and bubblewrap without Python.

From `run()` until the segment's result is here. A burst is as many jobs as stand ahead, 20 a second.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import msgspec

from benchmarks.figures import Figure, compute_percentile
from broker.protocol import values
from chain.ledger.terms.outcome import Cause
from provider.sandbox.executor import Sandbox
from provider.sandbox.probe import probe
from provider.sandbox.runtimes import RuntimeImage, build_image
from provider.sandbox.spec import Ended, SegmentDone, Task, make_usual_task

ROUNDS = 15
BURSTS = 5
AHEAD = 4
PAUSE = 1 / 20
SUSTAINED = 40


def do_nothing() -> None:
    """A job."""


def use_numpy() -> float:
    """Another."""
    import numpy  # travels by value into the sandbox

    return float(numpy.arange(9).sum())


async def measure() -> dict[str, Figure]:
    """Milliseconds from asking to the result, medians; the burst's 99th percentile; jobs a second and CPU for each."""
    with tempfile.TemporaryDirectory(prefix="tallystick-bench-", dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "inputs").write_bytes(values.pack(((), {})))
        image = build_image(folder / "runtimes")
        abilities = await probe(image)
        cold = Sandbox(image, abilities, slots=2)
        warm = Sandbox(image, abilities, slots=AHEAD, warm=AHEAD)
        try:
            python, numpy = _time_bare(image, "pass"), _time_bare(image, "import numpy")
            figures = {
                "sandbox_start_bwrap": Figure(_time([abilities.bwrap, "--ro-bind", "/", "/", "/bin/true"]), "ms"),
                "sandbox_start_bare": Figure(python, "ms"),
                "sandbox_start_bare_numpy": Figure(numpy, "ms"),
                "sandbox_start_cold": Figure(await _time_cold(cold, folder, do_nothing), "ms", limit=60),
            }
            cold_numpy = await _time_cold(cold, folder, use_numpy)
            figures["sandbox_start_cold_numpy"] = Figure(cold_numpy, "ms")
            figures["sandbox_start_cold_numpy_cost"] = Figure(cold_numpy / numpy, "times", limit=1.3)
            for word, job in (("", do_nothing), ("_numpy", use_numpy)):
                times = await _time_bursts(warm, folder, job)
                figures[f"sandbox_start_warm{word}_p50"] = Figure(statistics.median(times), "ms", limit=3)
                figures[f"sandbox_start_warm{word}_p99"] = Figure(compute_percentile(times, 0.99), "ms", limit=15)
            rate, cost = await _sustain(warm, folder)
            figures["sandbox_start_sustained"] = Figure(rate, "/s", aim=25, more=True)
            figures["sandbox_start_sustained_cpu"] = Figure(cost, "ms")
            return figures
        finally:
            await cold.close()
            await warm.close()


def _make_task(folder: Path, job: Callable[[], Any]) -> Task:
    """The job as a client's usual task."""
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    return msgspec.structs.replace(make_usual_task(), code=cloudpickle.dumps(job), inputs=folder / "inputs")


def _time(command: list[str], environment: dict[str, str] | None = None) -> float:
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        subprocess.run(command, check=True, env=environment)
        times.append((time.perf_counter() - started) * 1000)
    return statistics.median(times)


def _time_bare(image: RuntimeImage, code: str) -> float:
    """The image's own Python without a sandbox."""
    environment = {
        "LD_LIBRARY_PATH": f"{image.path}/lib",
        "PYTHONPATH": f"{image.path}/sp",
        "OPENBLAS_NUM_THREADS": "1",
    }
    command = [f"{image.path}/py/bin/python{image.python}", "-S", "-s", "-P", "-B", "-c", code]
    return _time(command, environment)


async def _run(sandbox: Sandbox, task: Task, slot: int, folder: Path) -> float:
    """Milliseconds until the result is here."""
    started, done = time.perf_counter(), 0.0
    async for event in sandbox.run(task, slot, folder):
        if isinstance(event, SegmentDone):
            done = time.perf_counter()
        if isinstance(event, Ended) and event.cause is not Cause.OK:
            raise RuntimeError(f"the job ended by {event.cause}: {event.detail}")
    return (done - started) * 1000


async def _time_cold(sandbox: Sandbox, folder: Path, job: Callable[[], Any]) -> float:
    task = _make_task(folder, job)
    return statistics.median([await _run(sandbox, task, 0, folder) for _ in range(ROUNDS)])


async def _time_bursts(sandbox: Sandbox, folder: Path, job: Callable[[], Any]) -> list[float]:
    """Each job of each burst; the pool is full before each."""
    task = _make_task(folder, job)
    for slot in range(AHEAD):
        await _run(sandbox, task, slot, folder)
    times: list[float] = []
    for _ in range(BURSTS):
        await sandbox.pool.settle()
        running = []
        for slot in range(AHEAD):
            running.append(asyncio.create_task(_run(sandbox, task, slot, folder)))
            await asyncio.sleep(PAUSE)
        times += await asyncio.gather(*running)
    return times


async def _sustain(sandbox: Sandbox, folder: Path) -> tuple[float, float]:
    """No-op jobs a second, two at a time without a pause, and CPU milliseconds for each."""
    task = _make_task(folder, do_nothing)
    await sandbox.pool.settle()
    before, started = sum(os.times()[:4]), time.perf_counter()

    async def repeat(slot: int) -> None:
        for _ in range(SUSTAINED // 2):
            await _run(sandbox, task, slot, folder)

    await asyncio.gather(repeat(0), repeat(1))
    seconds = time.perf_counter() - started
    return SUSTAINED / seconds, (sum(os.times()[:4]) - before) * 1000 / SUSTAINED
