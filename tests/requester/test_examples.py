"""Examples run: each against the market in this process, so that none names what is not there. Live: `tests/e2e`."""

from __future__ import annotations

from pathlib import Path

import pytest

from requester import AsyncMarket, Market
from tests.requester.examples import Example, list_examples
from tests.requester.fakes import Deed, FakeMarket, install

EXAMPLES = list_examples()


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeMarket:
    monkeypatch.chdir(tmp_path)
    log = b'::report {"segment": 0, "loss": 0.5}\n'
    return install(FakeMarket(price=1_000, deed=Deed(value=2.0, log=log)), tmp_path, monkeypatch)


def test_there_are_examples_of_what_people_do_first() -> None:
    places = {one.place for one in EXAMPLES}
    assert places >= {
        "requester", "README.md", "load", "Market.run", "Market.map", "Market.train", "Market.submit_map",
        "AsyncMarket.connect", "AsyncMarket.map", "AsyncMarket.train", "AsyncJobHandle.results",
    }  # fmt: skip


@pytest.mark.parametrize("example", [one for one in EXAMPLES if not one.awaits], ids=lambda one: one.place)
def test_an_example_runs(fake: FakeMarket, capsys: pytest.CaptureFixture[str], example: Example) -> None:
    with Market.connect() as market:
        example.run(market)
    assert capsys.readouterr().out


@pytest.mark.parametrize("example", [one for one in EXAMPLES if one.awaits], ids=lambda one: one.place)
async def test_an_example_with_await_runs(
    fake: FakeMarket, capsys: pytest.CaptureFixture[str], example: Example
) -> None:
    async with AsyncMarket.connect() as market:
        await example.run_async(market)
    assert capsys.readouterr().out
