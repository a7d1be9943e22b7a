"""Results of a `map` as a stream: each as it comes, none missed, an end that says what is lacking."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import pytest

from chain.base.hashing import compute_digest
from chain.ledger.terms.outcome import Cause
from requester import AsyncMarket, JobFailed
from requester.client.board import Board
from tests.requester.fakes import Deed, FakeMarket, install

LIMITS: dict[str, Any] = {"cap": 1, "wall": 10}


def square(number: int) -> int:
    return number * number


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeMarket:
    market = FakeMarket(price=1_000, deed=Deed(values=lambda index: index * index))
    return install(market, tmp_path, monkeypatch)


async def test_what_moves_before_a_waiter_has_begun_to_wait_is_not_missed() -> None:
    """Else a stream of results would stand still until something else moves."""
    board = Board(3)
    waiting = asyncio.ensure_future(board.moved())
    board.move()
    for _ in range(3):
        await asyncio.sleep(0)
    assert waiting.done()
    waiting = asyncio.ensure_future(board.moved())
    for _ in range(3):
        await asyncio.sleep(0)
    assert not waiting.done()
    waiting.cancel()


async def test_results_come_while_the_job_runs(fake: FakeMarket) -> None:
    """At least one segment is here before the next delivery: the world hands in one after the other."""
    fake.delivers, fake.step = False, 1
    seen: list[tuple[int, Any]] = []
    async with AsyncMarket.connect() as market:
        handle = await market.submit_map(square, range(5), parallelism=2, **LIMITS)
        results = handle.results()
        first = asyncio.ensure_future(anext(results))
        while not fake.leases:
            await asyncio.sleep(0)
        job = bytes.fromhex(handle.id)
        for world in fake.worlds[job]:
            fake.pages |= {compute_digest(blob): blob for blob in world.blobs.values()}
        fake.tell(job, fake.worlds[job][0].prefix(1))
        seen.append(await first)
        assert (handle.phase, handle.is_over, handle.progress().done) == ("running", False, 1)
        assert handle.cost == 1_020
        fake.deliver(job)
        seen += [one async for one in results]
        assert sorted(seen) == [(0, 0), (1, 1), (2, 4), (3, 9), (4, 16)]
        assert (await handle.result()).values == [0, 1, 4, 9, 16]
        assert handle.is_over


async def test_the_stream_of_a_failed_map_ends_by_its_error_unless_partial(fake: FakeMarket) -> None:
    fake.deed = Deed(cause=Cause.WALL, fails=0, values=lambda index: index)
    for partial in (False, True):
        async with AsyncMarket.connect() as market:
            handle = await market.submit_map(square, range(4), parallelism=2, **LIMITS)
            seen: list[int] = []
            with contextlib.suppress(JobFailed) if partial else pytest.raises(JobFailed):
                async for index, _ in handle.results(partial=partial):
                    seen.append(index)
            assert seen == [2, 3]
