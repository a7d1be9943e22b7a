"""A real market under test: every part a process of its own, the requester in this one; and what must hold at the
end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from chain.rpc.schema import LeaseView
from chain.runtime.keystore import create_key
from requester.client import AsyncMarket, RequesterSettings
from requester.demo.world import ProviderPlan, World

PATIENCE = 90.0
"""Seconds after which something that should happen has not."""


class Street:
    """A world and a requester in it."""

    def __init__(self, world: World, market: AsyncMarket) -> None:
        self.world = world
        self.market = market
        self.said: list[str] = []

    def kill(self, part: str) -> None:
        """kill -9 of a part; the supervisor brings it back."""
        os.kill(self.world.supervisor.running[part].pid, signal.SIGKILL)

    async def restarted(self, part: str, times: int = 1) -> None:
        """Return once `part` is back."""
        await until(lambda: self.world.supervisor.restarts.count(part) >= times, f"{part} back")

    def bus_pid(self) -> int:
        """Process id of the MQTT server, which is the broker's child."""
        broker = self.world.supervisor.running["broker"].pid
        children = Path(f"/proc/{broker}/task/{broker}/children").read_text().split()
        for child in children:
            line = Path(f"/proc/{child}/cmdline").read_bytes()
            if b"mosquitto" in line or b"iotcore" in line:
                return int(child)
        raise AssertionError(f"the broker has no MQTT server among {children}")

    async def lease_of(self, job: bytes) -> LeaseView:
        """The job's only lease."""
        [lease] = await self.world.chain.leases(order=job)
        return lease

    async def settled(self, job: bytes) -> LeaseView:
        """The job's lease once the chain has paid it; checks that no credit was lost or made."""

        async def is_settled() -> bool:
            with contextlib.suppress(Exception):
                return (await self.lease_of(job)).state == "settled"
            return False

        await until(is_settled, "lease settled")
        supply = await self.world.chain.supply()
        assert supply.total + supply.burned == supply.genesis
        assert supply.locked == 0
        lease = await self.lease_of(job)
        assert lease.paid == lease.price * lease.count
        return lease


@contextlib.asynccontextmanager
async def open_street(
    folder: Path, providers: tuple[ProviderPlan, ...] = (ProviderPlan("ada"),)
) -> AsyncIterator[Street]:
    """Start a market in `folder` with a funded requester; stop it at the end."""
    said: list[str] = []
    world = World(folder, said.append)
    try:
        await world.start(providers)
        key = create_key(folder / "requester" / "key.pem")
        await world.fund("requester", key.key)
        settings = RequesterSettings(broker=world.broker_url, chain=world.chain_url)
        async with AsyncMarket(settings, key, folder / "requester") as market:
            street = Street(world, market)
            street.said = said
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
