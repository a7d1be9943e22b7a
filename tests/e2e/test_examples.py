"""Every example of the client library and of the README on a live market, and the scripts in `examples`."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from requester import Market, load
from tests.e2e.market import open_street
from tests.requester.examples import Example, list_examples

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.check
@pytest.mark.timeout(300)
async def test_every_example_runs_on_a_live_market(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    async with open_street(tmp_path / "street") as street:
        monkeypatch.setenv("TALLY_HOME", str(street.world.folder))
        monkeypatch.setenv("TALLY_BROKER", street.world.broker_url)
        monkeypatch.setenv("TALLY_CHAIN", street.world.chain_url)
        for example in list_examples():
            capsys.readouterr()
            if example.awaits:
                await example.run_async(street.market)
            else:
                await asyncio.to_thread(_run, example)
            assert capsys.readouterr().out, example.place
        done = await street.market.run_script(ROOT / "examples" / "estimate_pi.py", cap=1)
        assert abs(done.value["pi"] - 3.1416) < 0.01
        rates = load(ROOT / "examples" / "rates.json")
        scores = await street.market.map(ROOT / "examples" / "search_rates.py", rates, cap=1)
        assert min(scores, key=lambda one: one["loss"])["rate"] == 0.3
        state = {"place": [1.0, 2.0], "rate": 0.3}
        trained = await street.market.train(ROOT / "examples" / "descend.py", state, 10, cap=1)
        losses = [row["loss"] for row in trained.metrics]
        assert len(losses) == 10 and losses == sorted(losses, reverse=True)


def _run(example: Example) -> None:
    with Market.connect() as market:
        example.run(market)
