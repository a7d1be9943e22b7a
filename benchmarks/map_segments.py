"""1,000 no-op segments of one `map` on two providers, through a whole market with default settings.

Timed from the call, which packs and signs, until all values are verified and at the requester, and until the chain has
paid. CPU time is that of every process of the market: chain, broker, bus, providers, sandboxes, requester. Where Ray is
installed in `.venv-bench` (`make bench RAY=1`), its tasks are timed beside, in the same minute on the same machine.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.figures import Figure
from requester.client import AsyncMarket, Hooks, News, RequesterSettings
from requester.client.settings import open_wallet
from requester.demo.world import ProviderPlan, World

SEGMENTS = 1_000
ROUNDS = 5
WARM_UP = 100
PROVIDERS = (ProviderPlan("ada"), ProviderPlan("bell"))

RAY_PYTHON = Path(__file__).parents[1] / ".venv-bench" / "bin" / "python"

RAY_TASKS = """
import json, time, ray
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
@ray.remote
def do_nothing(item):
    return item
ray.get([do_nothing.remote(number) for number in range({warm_up})])
rates = []
for _ in range({rounds}):
    started = time.perf_counter()
    ray.get([do_nothing.remote(number) for number in range({segments})])
    rates.append({segments} / (time.perf_counter() - started))
print(json.dumps(rates))
"""
"""The same work as Ray's tasks on two workers; no signatures, no sandbox, no money."""


@dataclass(frozen=True)
class Round:
    """Seconds until all values were here, seconds until all was paid, CPU seconds of the requester, of all else."""

    values: float
    settled: float
    own: float
    others: float


def do_nothing(item: int) -> int:
    """The job."""
    return item


async def measure() -> dict[str, Figure]:
    """Segments a second until the values are here and until they are paid, and CPU milliseconds for each; medians of
    `ROUNDS`. Ray's rate is the aim where Ray is there.
    """
    with tempfile.TemporaryDirectory(prefix="tally-bench-") as folder:
        world = World(Path(folder), lambda line: print(line, file=sys.stderr))
        try:
            await world.start(PROVIDERS)
            home = await world.add_requester("requester")
            rounds = await _buy_all(world, home / "requester")
        finally:
            await world.close()
    ray = await measure_ray()
    own, others = (statistics.median(getattr(one, name) for one in rounds) for name in ("own", "others"))
    figures = {
        "map_segments_rate": Figure(
            SEGMENTS / statistics.median(one.values for one in rounds), "/s", aim=ray or 970, limit=300, more=True
        ),
        "map_segments_settled_rate": Figure(
            SEGMENTS / statistics.median(one.settled for one in rounds), "/s", more=True
        ),
        "map_segments_cpu": Figure((own + others) * 1000 / SEGMENTS, "ms"),
        "map_segments_cpu_requester": Figure(own * 1000 / SEGMENTS, "ms"),
    }
    return figures if ray is None else {**figures, "map_segments_ray_rate": Figure(ray, "/s")}


async def _buy_all(world: World, folder: Path) -> list[Round]:
    settings = RequesterSettings(broker=world.broker_url, chain=world.chain_url, key=str(folder / "key.pem"))
    async with AsyncMarket(settings, open_wallet(settings), folder) as market:
        await _buy(market, WARM_UP)
        rounds = []
        for number in range(ROUNDS):
            rounds.append(await _buy(market, SEGMENTS))
            print(f"  {number + 1} of {ROUNDS}: {rounds[-1]}", file=sys.stderr, flush=True)
    return rounds


async def _buy(market: AsyncMarket, segments: int) -> Round:
    arrived = 0.0

    def hear(news: News) -> None:
        nonlocal arrived
        if news.kind == "segments" and news.done == news.total:
            arrived = time.perf_counter()

    own, tree, started = time.process_time(), measure_children(), time.perf_counter()
    result = await market.map(
        do_nothing, range(segments), parallelism=len(PROVIDERS), cap=100, wall=5, memory="128MiB",
        hooks=Hooks(on_news=hear), packages=(),
    )  # fmt: skip
    ended = time.perf_counter()
    if not result.settled or list(result.values) != list(range(segments)) or len(result.providers) != len(PROVIDERS):
        raise RuntimeError(f"job {result.job} is not what was bought")
    return Round(arrived - started, ended - started, time.process_time() - own, measure_children() - tree)


def measure_children() -> float:
    """CPU seconds of all our descendants: those that live, and those that they have waited for."""
    ticks, pids = 0, [os.getpid()]
    while pids:
        pid = pids.pop()
        try:
            tasks = list(Path(f"/proc/{pid}/task").iterdir())
            pids += [int(word) for task in tasks for word in (task / "children").read_text().split()]
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue  # it ended meanwhile
        ticks += sum(map(int, fields[13:15] if pid == os.getpid() else fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


async def measure_ray() -> float | None:
    """Ray's tasks a second; None, with a word why, where it is not there or fails."""
    if not RAY_PYTHON.exists():
        print("  Ray is not installed; `make bench RAY=1` installs it apart", file=sys.stderr)
        return None
    code = RAY_TASKS.format(warm_up=WARM_UP, rounds=ROUNDS, segments=SEGMENTS)
    process = await asyncio.create_subprocess_exec(
        str(RAY_PYTHON), "-c", code, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    if process.returncode != 0:
        print(f"  Ray failed: {err.decode(errors='replace').strip()[-300:]}", file=sys.stderr)
        return None
    rates: list[float] = json.loads(out.splitlines()[-1])
    return statistics.median(rates)
