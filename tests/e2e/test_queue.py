"""Twenty orders at once on few slots: everyone is served and paid, none is declined for good, no lease is missed."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from chain.base.units import format_credits
from requester.client import Hooks, JobResult, News
from requester.demo.world import TWO_COMPETING_ONE_DEARER, ProviderPlan
from tests.e2e.market import Street, open_street, until

pytestmark = [pytest.mark.check, pytest.mark.timeout(300)]

ORDERS = 20
MARKETS: list[tuple[str, tuple[ProviderPlan, ...], dict[str, Any]]] = [
    ("one provider of two slots", (ProviderPlan("ada", slots=2),), {}),
    # All bid on all, so that each keeps room for 20 jobs of which it gets some: the last ones wait until bids that
    # lost are answered, which takes longer than the usual auction where the machine is slow.
    ("three providers", TWO_COMPETING_ONE_DEARER, {"auction": "30s"}),
]


def double(number: int) -> int:
    """A quick job, of which each order has its own."""
    return 2 * number


async def buy_all(street: Street, wishes: dict[str, Any]) -> list[tuple[bytes, JobResult]]:
    """Sign and send all orders at once; every job with its result."""

    async def buy(number: int) -> tuple[bytes, JobResult]:
        jobs: set[str] = set()

        def hear(news: News) -> None:
            jobs.add(news.job)

        result = await street.market.run(double, number, cap=1, hooks=Hooks(on_news=hear), **wishes)
        [job] = jobs
        return bytes.fromhex(job), result

    return await asyncio.gather(*(buy(number) for number in range(ORDERS)))


@pytest.mark.parametrize(("providers", "wishes"), [row[1:] for row in MARKETS], ids=[row[0] for row in MARKETS])
async def test_twenty_orders_at_once_are_all_paid(
    tmp_path: Path, providers: tuple[ProviderPlan, ...], wishes: dict[str, Any]
) -> None:
    async with open_street(tmp_path, providers) as street:
        begun = time.monotonic()
        bought = await buy_all(street, wishes)
        taken = time.monotonic() - begun
        assert [result.value for _, result in bought] == [2 * number for number in range(ORDERS)]
        chain, requester = street.world.chain, street.market.signer.key

        async def is_calm() -> bool:
            return not await chain.leases(requester=requester, live=True)

        await until(is_calm, "no lease live")
        leases = [await street.settled(job) for job, _ in bought]
        assert {lease.id for lease in leases} == {lease.id for lease in await chain.leases(requester=requester)}
        assert len({lease.id for lease in leases}) == ORDERS
        assert {lease.provider for lease in leases} <= {street.world.accounts[plan.name].hex() for plan in providers}
        paid = format_credits(sum(lease.paid for lease in leases))
        print(f"{ORDERS} jobs in {taken:.1f} s on {len(providers)} provider(s), {paid} credits")
