"""A no-op `run` from signing to final payment, one after another, on a whole market with default settings."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from benchmarks.figures import Figure, compute_percentile
from chain.base.keys import Signer
from chain.runtime.keystore import create_key
from requester.client import AsyncMarket, RequesterSettings
from requester.demo.world import World

WARM_UP = 10
JOBS = 200


def do_nothing() -> None:
    """The job."""


async def measure() -> dict[str, Figure]:
    """p50 and p99 in milliseconds over `JOBS` jobs after `WARM_UP`."""
    with tempfile.TemporaryDirectory(prefix="tally-bench-") as folder:
        world = World(Path(folder), lambda line: print(line, file=sys.stderr))
        try:
            await world.start()
            key = create_key(world.folder / "requester" / "key.pem")
            await world.fund("requester", key.key)
            spans = await _buy_all(world, key)
        finally:
            await world.close()
    return {
        "noop_run_p50": Figure(compute_percentile(spans, 0.50), "ms", aim=60, limit=500),
        "noop_run_p99": Figure(compute_percentile(spans, 0.99), "ms", limit=1500),
    }


async def _buy_all(world: World, key: Signer) -> list[float]:
    settings = RequesterSettings(broker=world.broker_url, chain=world.chain_url)
    spans = []
    async with AsyncMarket(settings, key, world.folder / "requester") as market:
        for number in range(WARM_UP + JOBS):
            started = time.perf_counter()
            result = await market.run(do_nothing, cap=1)
            if not result.settled:
                raise RuntimeError(f"job {result.job} was not settled in time")
            if number >= WARM_UP:
                spans.append((time.perf_counter() - started) * 1000)
            if number % 50 == 49:
                print(f"  {number + 1} of {WARM_UP + JOBS} jobs", file=sys.stderr, flush=True)
    return spans
