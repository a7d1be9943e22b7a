"""The demo does not pretend: where a provider cannot hand in what it has done, or is gone, the demo says what is
missing, or shows honestly who did the work instead."""

from __future__ import annotations

import contextlib
import io
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from requester.demo.play import Stage, play
from requester.demo.report import Ending
from requester.demo.screen import Screen
from requester.demo.world import TWO_COMPETING_ONE_DEARER, ProviderPlan
from tests.e2e.line import UPLOAD
from tests.e2e.market import LinedWorld

pytestmark = [pytest.mark.check, pytest.mark.timeout(400)]


@contextlib.asynccontextmanager
async def open_world(folder: Path, providers: tuple[ProviderPlan, ...]) -> AsyncIterator[LinedWorld]:
    """A market in which ada's uploads are refused from the beginning."""
    world = LinedWorld(folder, print, lined=("ada",))
    try:
        await world.start(providers)
        world.lines["ada"].refused = UPLOAD
        yield world
    finally:
        await world.close()


async def play_in(world: LinedWorld) -> Ending:
    """The ending of a demo in this market."""
    ending = await play(Stage(world, Screen(io.StringIO(), is_live=False), wall=1, within=132))
    print("\n".join(ending.to_lines()))
    return ending


@pytest.mark.parametrize(
    ("providers", "paid"),
    [((ProviderPlan("ada"),), 0), (TWO_COMPETING_ONE_DEARER, 18)],
    ids=["alone", "among others"],
)
async def test_with_one_providers_uploads_stopped_the_demo_fails(
    tmp_path: Path, providers: tuple[ProviderPlan, ...], paid: int
) -> None:
    async with open_world(tmp_path, providers) as world:
        ending = await play_in(world)
        assert world.lines["ada"].cut.is_set()
    assert (ending.segments, ending.choice, ending.judged) == (paid, {}, {})
    assert ending.problems[0].startswith("alice's job was not bought: ")
    assert any(f"search: ada's lease of segments 0..{35 - paid} is " in problem for problem in ending.problems)
    assert f"{paid} segments were paid for, not 57" in ending.problems
    assert ending.is_conserved
    assert ending.supply_after.locked == 0
    assert ending.after["ada"] < ending.before["ada"]
    assert all(row["paid"] == 0 for row in ending.list_payments() if row["earner"] == "ada")
