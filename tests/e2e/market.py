"""A real market under test: every part a process of its own, the requester in this one or in one that can be killed;
and what must hold at the end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from chain.base.errors import TallyError
from chain.rpc.schema import LeaseView
from chain.runtime.keystore import create_key
from chain.runtime.processes import end_process
from requester.client import AsyncMarket, RequesterSettings
from requester.demo.report import list_paid
from requester.demo.supervisor import MOST_RESTARTS
from requester.demo.world import ProviderPlan, World
from tests.e2e.line import Line

PATIENCE = 90.0
"""Seconds after which something that should happen has not."""

Said = dict[str, Any]


class LinedWorld(World):
    """A world in which some providers reach the broker by a line that a test can cut."""

    def __init__(self, folder: Path, say: Callable[[str], None], lined: tuple[str, ...] = ()) -> None:
        super().__init__(folder, say)
        self.lines = {name: Line(lambda: self.broker_url) for name in lined}

    async def start(self, *args: Any, **kwargs: Any) -> None:
        """Lines first."""
        for line in self.lines.values():
            await line.start()
        await super().start(*args, **kwargs)

    def get_broker_url(self, provider: str) -> str:
        """By its line, where it has one."""
        return self.lines[provider].url if provider in self.lines else self.broker_url

    async def close(self) -> None:
        """Lines last."""
        await super().close()
        for line in self.lines.values():
            await line.close()


class Shopper:
    """A requester in a process of its own, see `tests.e2e.shopper`."""

    def __init__(self, home: Path, order: Mapping[str, Any]) -> None:
        self.lines: list[Said] = []
        self._home = home
        self._order = order
        self._news = asyncio.Condition()
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None

    async def start(self) -> Shopper:
        root = Path(__file__).parents[2]
        environment = {**os.environ, "TALLY_HOME": str(self._home), "PYTHONPATH": str(root)}
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.e2e.shopper", json.dumps(self._order),
            stdout=asyncio.subprocess.PIPE, env=environment, limit=1 << 24,
        )  # fmt: skip
        self._reader = asyncio.create_task(self._read())
        return self

    async def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        async for data in self._process.stdout:
            async with self._news:
                self.lines.append(json.loads(data))
                self._news.notify_all()
        async with self._news:
            self.lines.append({"kind": "gone"})
            self._news.notify_all()

    async def reach(self, holds: Callable[[list[Said]], bool], what: str) -> None:
        """Return as soon as `holds` of all lines so far."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE), self._news:
                await self._news.wait_for(lambda: holds(self.lines) or self._is_over())
        assert holds(self.lines), f"not reached: {what}; last lines: {self.lines[-8:]}"

    async def end(self) -> Said:
        """The last word: a `value` or `failed` line."""
        await self.reach(lambda lines: any(line["kind"] in ("value", "failed") for line in lines), "the end of the job")
        return next(line for line in self.lines if line["kind"] in ("value", "failed"))

    def _is_over(self) -> bool:
        return bool(self.lines) and self.lines[-1]["kind"] == "gone"

    async def kill(self) -> None:
        """kill -9."""
        assert self._process is not None
        self._process.kill()
        await self._process.wait()

    async def close(self) -> None:
        if self._process is not None:
            await end_process(self._process, 5)
        if self._reader is not None:
            await self._reader

    @property
    def job(self) -> bytes:
        """The job's id."""
        return bytes.fromhex(next(line["job"] for line in self.lines if line.get("job")))


class Street:
    """A world and a requester in it."""

    def __init__(self, world: LinedWorld, market: AsyncMarket, said: list[str]) -> None:
        self.world = world
        self.market = market
        self.said = said

    def kill(self, part: str) -> None:
        """kill -9 of a part; the supervisor brings it back."""
        os.kill(self.world.supervisor.running[part].pid, signal.SIGKILL)

    async def restarted(self, part: str, times: int = 1) -> None:
        """Return once `part` is back."""
        await until(lambda: self.world.supervisor.restarts.count(part) >= times, f"{part} back")

    async def kill_for_good(self, part: str) -> None:
        """kill -9 of a part that does not come back: the supervisor believes that it died too often."""
        self.world.supervisor.running[part].restarts = MOST_RESTARTS
        self.kill(part)
        await until(lambda: any(f"{part} died" in line for line in self.said), f"{part} dead")

    def bus_pid(self) -> int:
        """Process id of the MQTT server, which is the broker's child."""
        broker = self.world.supervisor.running["broker"].pid
        children = Path(f"/proc/{broker}/task/{broker}/children").read_text().split()
        for child in children:
            line = Path(f"/proc/{child}/cmdline").read_bytes()
            if b"mosquitto" in line or b"iotcore" in line:
                return int(child)
        raise AssertionError(f"the broker has no MQTT server among {children}")

    async def over(self, job: bytes) -> list[LeaseView]:
        """The job's leases once none of them is live; checks that no segment was paid twice and no credit lost."""
        leases: list[LeaseView] = []

        async def is_over() -> bool:
            nonlocal leases
            with contextlib.suppress(TallyError):  # a part that was killed is on its way back
                leases = await self.world.chain.leases(order=job)
                return bool(leases) and not any(lease.locked for lease in leases)
            return False

        await until(is_over, "no lease of the job is live")
        supply = await self.world.chain.supply()
        assert supply.total + supply.burned == supply.genesis
        assert supply.locked == 0
        paid = [index for lease in leases for index in list_paid(lease)]
        assert len(paid) == len(set(paid)), f"paid twice: {leases}"
        for lease in leases:
            served = lease.served if lease.state == "settled" else 0
            assert lease.paid == lease.price // lease.count * served
        return leases

    async def settled(self, job: bytes) -> LeaseView:
        """The one lease of a job that was paid, in full."""
        [lease] = [lease for lease in await self.over(job) if lease.state == "settled"]
        assert lease.paid == lease.price
        return lease


@contextlib.asynccontextmanager
async def open_street(
    folder: Path, providers: tuple[ProviderPlan, ...] = (ProviderPlan("ada"),), lined: tuple[str, ...] = ()
) -> AsyncIterator[Street]:
    """Start a market in `folder` with a funded requester; stop it at the end."""
    said: list[str] = []
    world = LinedWorld(folder, said.append, lined)
    try:
        await world.start(providers)
        key = create_key(folder / "requester" / "key.pem")
        await world.fund("requester", key.key)
        settings = RequesterSettings(broker=world.broker_url, chain=world.chain_url)
        async with AsyncMarket(settings, key, folder / "requester") as market:
            street = Street(world, market, said)
            yield street
    finally:
        await world.close()


async def until(holds: Callable[[], bool | Awaitable[bool]], what: str, seconds: float = PATIENCE) -> None:
    """Return as soon as `holds`; fail with `what` after `seconds`."""
    end = time.monotonic() + seconds
    while True:
        found = holds()
        if found if isinstance(found, bool) else await found:
            return
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.02)


def count_slowly(steps: int, pause: float) -> int:
    """A job that prints its steps."""
    import time  # travels by value into the sandbox

    for step in range(steps):
        print(f"step {step}", flush=True)
        time.sleep(pause)
    return steps
