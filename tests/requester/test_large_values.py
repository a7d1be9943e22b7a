"""Values too large to ride inside an order or a page: inputs are at the broker before the order is signed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from broker.protocol.api import INLINE_BYTES
from requester import AsyncMarket, Hooks, News
from requester.client.packing import make_run, pack_function
from requester.client.wishes import Wishes
from tests.requester.fakes import FakeMarket, install

WISHES = Wishes(cap=2)


def double(number: int) -> int:
    return 2 * number


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeMarket:
    return install(FakeMarket(), tmp_path, monkeypatch)


class Clock:
    """Stands still until it is moved."""

    def __init__(self, now: int) -> None:
        self.at = now

    def now(self) -> int:
        return self.at


async def test_an_order_is_signed_behind_its_large_inputs(fake: FakeMarket, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long they take: its auction closes two seconds behind the signature."""
    signed_before: list[int] = []
    told: list[News] = []
    async with AsyncMarket.connect() as market:
        put_file, clock = market.broker.put_file, Clock(market.clock.now())
        monkeypatch.setattr(market, "clock", clock)

        async def put(*args: Any) -> None:
            signed_before.append(len(market.store.list_jobs()))
            clock.at += 60_000
            await put_file(*args)

        monkeypatch.setattr(market.broker, "put_file", put)
        work = make_run(pack_function(len), (bytes(1 << 20),), {})
        job = await market.sign(work, WISHES, Hooks(on_news=told.append))
        assert market.store.load_documents(job).order.body.closes == clock.at + 2_000
    assert signed_before == [0]
    assert [(one.kind, one.job, one.text) for one in told] == [("transfer", "", "upload")]


async def test_large_inputs_are_put_before_the_order(fake: FakeMarket) -> None:
    async with AsyncMarket.connect() as market:
        await market.run(len, bytes(INLINE_BYTES), cap=2)
    assert fake.submitted[0].blobs == ()
    assert fake.submitted[0].spec.inputs in fake.blobs


async def test_large_results_are_fetched(fake: FakeMarket) -> None:
    fake.inline = False
    async with AsyncMarket.connect() as market:
        assert (await market.run(double, 21, cap=2)).value == 42
