"""kill -9 of every part at the points that matter: the job still ends, paid exactly once, no credit lost or made."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path

import pytest

from chain.base.errors import Unavailable
from requester.client import Hooks, JobResult, News, NoBid
from tests.e2e.market import Street, count_slowly, open_street, until

pytestmark = [pytest.mark.check, pytest.mark.timeout(240)]

STEPS = 10


PHASES = ("sent", "announced", "awarded", "running", "delivered", "accepted", "settled")
"""In their order. What comes in one page of events is told as its last phase, so any but the last may be passed
over."""


class Moment:
    """Sets an event when some output first comes, or when a phase is reached or passed."""

    def __init__(self, kind: str, sign: str) -> None:
        self.kind, self.sign = kind, sign
        self.came = asyncio.Event()
        self.heard = ""
        self.job = b""

    def __call__(self, news: News) -> None:
        if news.kind == "signed":
            self.job = bytes.fromhex(news.job)
        self.heard += news.output.decode()
        if self.kind == "output":
            reached = self.sign in self.heard
        else:
            reached = news.phase in PHASES and PHASES.index(news.phase) >= PHASES.index(self.sign)
        if reached:
            self.came.set()


async def follow(street: Street, moment: Moment, pause: float = 0.2) -> JobResult:
    """Buy the slow job; wait for it again if a killed part made the wait fail."""
    hooks = Hooks(on_news=moment)
    with contextlib.suppress(Unavailable):
        return await street.market.run(count_slowly, STEPS, pause, cap=1, wall=60, hooks=hooks)
    result: JobResult = await street.market.result(moment.job, hooks)
    return result


KILLS = [
    ("chain", "phase", "running"),
    ("chain", "output", "step 5"),
    ("chain", "phase", "delivered"),
    ("chain", "phase", "accepted"),
    ("broker", "phase", "awarded"),
    ("broker", "output", "step 5"),
    ("broker", "phase", "delivered"),
    ("ada", "phase", "awarded"),
    ("ada", "output", "step 5"),
    ("ada", "phase", "delivered"),
]


@pytest.mark.parametrize(("part", "kind", "sign"), KILLS, ids=[f"{part}-{sign}" for part, _, sign in KILLS])
async def test_a_killed_part_costs_nobody_a_credit(tmp_path: Path, part: str, kind: str, sign: str) -> None:
    moment = Moment(kind, sign)
    async with open_street(tmp_path) as street:
        buying = asyncio.create_task(follow(street, moment))
        await asyncio.wait_for(moment.came.wait(), 60)
        street.kill(part)
        result = await asyncio.wait_for(buying, 150)
        await street.restarted(part)
        assert result.value == STEPS
        lease = await street.settled(moment.job)
        assert lease.served in (0, 1)


async def test_a_broker_killed_inside_the_auction_leaves_a_payment_or_a_plain_no(tmp_path: Path) -> None:
    moment = Moment("phase", "announced")
    async with open_street(tmp_path) as street:
        buying = asyncio.create_task(follow(street, moment))
        await asyncio.wait_for(moment.came.wait(), 60)
        street.kill("broker")
        try:
            await asyncio.wait_for(buying, 150)
        except NoBid:
            assert await street.world.chain.leases(order=moment.job) == []
        else:
            await street.settled(moment.job)


@pytest.mark.parametrize("delay_ms", [0, 2, 4, 8, 16])
async def test_the_node_killed_inside_settle_pays_once(tmp_path: Path, delay_ms: int) -> None:
    moment = Moment("phase", "accepted")
    async with open_street(tmp_path) as street:
        buying = asyncio.create_task(follow(street, moment, pause=0))
        await asyncio.wait_for(moment.came.wait(), 60)
        await asyncio.sleep(delay_ms / 1000)  # the delay is the scenario: where inside settle the node dies
        street.kill("chain")
        await asyncio.wait_for(buying, 150)
        await street.settled(moment.job)


async def test_progress_stops_with_the_bus_and_resumes_when_it_is_back(tmp_path: Path) -> None:
    moment = Moment("output", "step 2")
    async with open_street(tmp_path) as street:
        buying = asyncio.create_task(follow(street, moment, pause=0.8))
        await asyncio.wait_for(moment.came.wait(), 60)
        before = street.bus_pid()
        os.kill(before, signal.SIGKILL)

        def is_back() -> bool:
            with contextlib.suppress(AssertionError, OSError):
                return street.bus_pid() != before
            return False

        await until(is_back, "bus back")
        await until(lambda: buying.done() or "step 8" in moment.heard, "progress resumed")
        assert "step 8" in moment.heard
        assert not buying.done() or "step 9" in moment.heard
        result = await asyncio.wait_for(buying, 100)
        assert [f"step {step}" for step in range(STEPS)] == result.log.split("\n")[:STEPS]
        assert "".join(f"step {step}\n" for step in range(STEPS)) == moment.heard
        await street.settled(moment.job)


BUYER = """
import sys
from requester.client import Hooks, Market
from tests.e2e.market import count_slowly
def tell(news):
    print(news.kind, news.phase, news.job, flush=True)
with Market.connect() as market:
    market.run(count_slowly, 3, 0.1, cap=1, wall=30, acceptance=3, hooks=Hooks(on_news=tell))
"""


async def test_the_requester_killed_right_after_signing_pays_the_provider(tmp_path: Path) -> None:
    async with open_street(tmp_path) as street:
        environment = {
            **os.environ,
            "TALLY_HOME": str(tmp_path),
            "TALLY_BROKER": street.world.broker_url,
            "TALLY_CHAIN": street.world.chain_url,
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", BUYER, stdout=asyncio.subprocess.PIPE, env=environment
        )
        assert process.stdout is not None
        job = b""
        async for line in process.stdout:
            if line.startswith(b"phase sent"):
                job = bytes.fromhex(line.split()[2].decode())
                break
        process.kill()
        await process.wait()
        lease = await street.settled(job)
        assert lease.paid > 0
