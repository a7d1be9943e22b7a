"""A no-op `run` from signing to final payment, one after another, on a whole market with default settings."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from benchmarks.figures import Figure, compute_percentile
from chain.base.keys import Signer
from chain.runtime.keystore import create_key
from requester.client import AsyncMarket, Hooks, News, RequesterSettings
from requester.demo.world import World
from requester.purchase.phases import Phase

WARM_UP = 10
JOBS = 200


PHASES = (Phase.SENT, Phase.AWARDED, Phase.RUNNING, Phase.DELIVERED, Phase.ACCEPTED, Phase.SETTLED)
"""Shown one by one: when, behind the call, the median job reached each."""


class Spans:
    """Milliseconds from the call: to each phase, and to the return."""

    def __init__(self) -> None:
        self.whole: list[float] = []
        self.phases: dict[str, list[float]] = {}
        self._started = 0.0

    def start(self) -> None:
        """The call begins."""
        self._started = time.perf_counter()

    def hear(self, news: News) -> None:
        """A phase is reached."""
        if news.kind == "phase":
            self.phases.setdefault(news.phase, []).append(self._measure())

    def stop(self) -> None:
        """The call returned."""
        self.whole.append(self._measure())

    def _measure(self) -> float:
        return (time.perf_counter() - self._started) * 1000


def do_nothing() -> None:
    """The job."""


async def measure() -> dict[str, Figure]:
    """p50 and p99 in milliseconds over `JOBS` jobs after `WARM_UP`, and the p50 of each phase on the way."""
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
        "noop_run_p50": Figure(compute_percentile(spans.whole, 0.50), "ms", aim=60, limit=500),
        "noop_run_p99": Figure(compute_percentile(spans.whole, 0.99), "ms", limit=1500),
        **{f"noop_run_{one}": Figure(compute_percentile(spans.phases[one], 0.50), "ms") for one in PHASES},
    }


async def _buy_all(world: World, key: Signer) -> Spans:
    settings = RequesterSettings(broker=world.broker_url, chain=world.chain_url)
    spans = Spans()
    async with AsyncMarket(settings, key, world.folder / "requester") as market:
        for number in range(WARM_UP + JOBS):
            spans = spans if number != WARM_UP else Spans()
            spans.start()
            result = await market.run(do_nothing, cap=1, hooks=Hooks(on_news=spans.hear))
            spans.stop()
            if not result.settled:
                raise RuntimeError(f"job {result.job} was not settled in time")
            if number % 50 == 49:
                print(f"  {number + 1} of {WARM_UP + JOBS} jobs", file=sys.stderr, flush=True)
    return spans
