"""An array of 500 MB through a whole market: to the broker, to the provider, into the sandbox, and the same way back.

Timed from the call, which hashes and signs, until the value is a view of a mapped file at the requester. Peaks are of
resident memory of broker and provider; the requester's own holds the array itself.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.figures import Figure
from requester.client import AsyncMarket, RequesterSettings
from requester.client.settings import open_wallet
from requester.demo.world import ProviderPlan, World

SIZE = 500 << 20
ROUNDS = 3


def give_back(array: np.ndarray) -> np.ndarray:
    """The job."""
    return array


async def measure() -> dict[str, Figure]:
    """Seconds, MB/s of both ways together, peaks in MB; medians of `ROUNDS`."""
    with tempfile.TemporaryDirectory(prefix="tally-bench-") as folder:
        world = World(Path(folder), lambda line: print(line, file=sys.stderr))
        try:
            await world.start((ProviderPlan("ada"),))
            home = await world.add_requester("requester")
            seconds = await _send_all(world, home / "requester")
            peaks = {name: _read_peak(world.supervisor.running[name].pid) for name in ("broker", "ada")}
        finally:
            await world.close()
    took = statistics.median(seconds)
    return {
        "job_transfer_seconds": Figure(took, "s"),
        "job_transfer_rate": Figure(2 * SIZE / 1e6 / took, "MB/s", more=True),
        "job_transfer_broker": Figure(peaks["broker"], "MB", aim=150),
        "job_transfer_provider": Figure(peaks["ada"], "MB", aim=150),
    }


async def _send_all(world: World, folder: Path) -> list[float]:
    settings = RequesterSettings(broker=world.broker_url, chain=world.chain_url, key=str(folder / "key.pem"))
    chance = np.random.default_rng(7)
    seconds = []
    async with AsyncMarket(settings, open_wallet(settings), folder) as market:
        for number in range(ROUNDS):
            array = chance.integers(0, 256, SIZE, dtype=np.uint8)
            started = time.perf_counter()
            done = await market.run(
                give_back, array, cap=10, memory="2GiB", wall="2min", output="600MiB", within="10min"
            )
            seconds.append(time.perf_counter() - started)
            if not np.array_equal(done.value, array):
                raise RuntimeError("another array came back")
            print(f"  {number + 1} of {ROUNDS}: {seconds[-1]:.1f} s", file=sys.stderr, flush=True)
    return seconds


def _read_peak(pid: int) -> float:
    """Largest resident memory of a process so far, in MB."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024 / 1e6
