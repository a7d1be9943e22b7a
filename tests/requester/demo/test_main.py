"""How the demo begins and ends: what it refuses at once, what Ctrl-C is answered, what it says of what stays."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from requester.demo import main as module
from requester.demo.main import main
from requester.demo.world import World
from tests.requester.demo.test_report import GOOD


@pytest.mark.parametrize(("is_kept", "words"), [(True, "the folder stays"), (False, "removes the folder (--directory")])
async def test_a_kept_market_says_what_ctrl_c_does(is_kept: bool, words: str) -> None:
    said: list[str] = []
    world: Any = SimpleNamespace(chain_url="c", broker_url="b", folder=Path("f"), genesis=Path("f/chain/genesis.json"))
    task = asyncio.ensure_future(module._stay(cast(World, world), said.append, is_kept=is_kept))
    while not said:
        await asyncio.sleep(0)
    task.cancel()
    await task
    assert f"Ctrl-C stops it, and {words}" in said[0]
    assert "  genesis f/chain/genesis.json\n" in said[0]


def test_a_folder_with_a_market_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "chain").mkdir()
    (tmp_path / "chain" / "genesis.json").touch()
    monkeypatch.setattr(World, "start", None)
    assert main(False, False, tmp_path) == 1
    assert capsys.readouterr().err.startswith(f"--directory {tmp_path} holds a market already; name another folder")
    assert [one.name for one in tmp_path.rglob("*")] == ["chain", "genesis.json"]


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> None:
    """A demo that starts nothing and is interrupted once it only stays; what ends then is the test's business."""

    async def nothing(*_: Any, **__: Any) -> Any:
        return GOOD

    async def interrupted(world: World, _say: Any, *, is_kept: bool) -> None:
        assert world.folder.exists()
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(asyncio.CancelledError):
            await asyncio.Event().wait()

    for name in ("chain_url", "broker_url"):
        monkeypatch.setattr(World, name, "u")
    for name in ("start", "close"):
        monkeypatch.setattr(World, name, nothing)
    monkeypatch.setattr(module, "play", nothing)
    monkeypatch.setattr(module, "_stay", interrupted)


@pytest.mark.usefixtures("demo")
@pytest.mark.parametrize("is_named", [True, False])
def test_a_kept_market_says_that_it_stops_and_what_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], is_named: bool
) -> None:
    assert main(False, True, tmp_path / "d" if is_named else None) == 0
    out, err = capsys.readouterr()
    assert err == "\nstopping everything; this takes a moment\n"
    last = out.splitlines()[-1]
    assert last.startswith("everything was stopped; the folder /") and last.endswith("stays" if is_named else "removed")
    assert (tmp_path / "d").exists() is is_named


@pytest.mark.usefixtures("demo")
@pytest.mark.parametrize(
    ("keep", "is_named", "is_there"), [(False, False, False), (True, False, True), (False, True, True)]
)
def test_json_names_only_case_files_that_are_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], keep: bool, is_named: bool, is_there: bool
) -> None:
    assert main(True, keep, tmp_path if is_named else None) == 0
    assert ('"file": "x.case"' in capsys.readouterr().out) is is_there
