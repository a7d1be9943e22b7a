"""Opening and closing a market: awaited or entered, closed by hand, by the collector, by the program's end."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chain.base.errors import Refused, Unavailable
from requester import AsyncMarket, Market
from requester.client.wishes import Wishes
from tests.requester.fakes import FakeMarket, install


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeMarket:
    return install(FakeMarket(), tmp_path, monkeypatch)


CLOSED: list[Callable[[Any], Any]] = [
    lambda market: market.run(sum, [1, 2], cap=2),
    lambda market: market.result("00"),
    lambda market: market.cancel(bytes(32)),
    lambda market: market.account(),
]


@pytest.mark.parametrize("call", [*CLOSED, lambda market: market.jobs()])
def test_a_closed_market_says_so(fake: FakeMarket, call: Callable[[Any], Any]) -> None:
    market = Market.connect()
    market.close()
    market.close()
    with pytest.raises(Refused) as refused:
        call(market)
    assert refused.value.rule == "market.closed"


@pytest.mark.parametrize("call", CLOSED)
async def test_a_closed_asyncio_market_says_so(fake: FakeMarket, call: Callable[[Any], Any]) -> None:
    async with AsyncMarket.connect() as market:
        assert (await market.account()).known
    with pytest.raises(Refused) as refused:
        await call(market)
    assert refused.value.rule == "market.closed"


async def test_connecting_raises_alike_awaited_and_entered(fake: FakeMarket) -> None:
    fake.faults.add("chain")
    with pytest.raises(Unavailable):
        await AsyncMarket.connect()
    with pytest.raises(Unavailable):
        async with AsyncMarket.connect():
            pass


async def test_a_market_that_was_not_opened_says_how(fake: FakeMarket) -> None:
    market: Any = AsyncMarket.connect()
    with pytest.raises(AttributeError, match=r"no run: await it, or use `async with`"):
        await market.run(sum, [1, 2], cap=2)
    assert not hasattr(market, "account")


def test_a_market_that_nobody_uses_any_more_is_closed(fake: FakeMarket) -> None:
    before = threading.active_count()
    market = Market.connect()
    assert threading.active_count() == before + 1
    del market
    gc.collect()
    assert threading.active_count() == before


def test_a_market_that_its_own_thread_lets_go_is_closed(fake: FakeMarket) -> None:
    market = Market.connect()
    thread = next(one for one in threading.enumerate() if one.name == "tally-market")
    market._loop.call_soon_threadsafe(market._shut)
    thread.join(10)
    assert not thread.is_alive()


UNCLOSED = """
import pathlib, sys
import pytest
from requester import Market
from tests.requester.fakes import FakeMarket, install
market = Market.connect() if install(FakeMarket(), pathlib.Path(sys.argv[1]), pytest.MonkeyPatch()) else None
market.account()
"""


def test_a_program_that_never_closes_its_market_ends_without_a_word(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-X", "dev", "-c", UNCLOSED, str(tmp_path)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_help_of_run_lists_every_wish() -> None:
    for function in (Market.run, AsyncMarket.run):
        assert [name for name in Wishes.__struct_fields__ if name not in (function.__doc__ or "")] == []


def test_a_market_that_does_not_connect_leaves_no_thread(fake: FakeMarket) -> None:
    fake.faults.add("broker")
    before = threading.active_count()
    with pytest.raises(Unavailable):
        Market.connect()
    assert threading.active_count() == before
