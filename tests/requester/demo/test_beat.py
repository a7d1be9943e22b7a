"""Signs of life: said at once, said again only into silence, and gone with what they are about."""

from __future__ import annotations

import asyncio
import io
from types import SimpleNamespace

import pytest

from requester.demo import beat as module
from requester.demo.beat import Beat
from requester.demo.picture import Picture
from requester.demo.screen import Screen


class Ticks:
    """Sleeps that end when the test says so."""

    def __init__(self) -> None:
        self._go: asyncio.Queue[None] = asyncio.Queue()
        self._asleep = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        assert seconds == module.BEAT_SECONDS
        self._asleep.set()
        await self._go.get()

    async def tick(self) -> None:
        """One beat: returns when the next sleep has begun."""
        await self._asleep.wait()
        self._asleep.clear()
        self._go.put_nowait(None)
        await self._asleep.wait()


@pytest.fixture
def ticks(monkeypatch: pytest.MonkeyPatch) -> Ticks:
    found = Ticks()
    monkeypatch.setattr(module, "asyncio", SimpleNamespace(sleep=found.sleep, ensure_future=asyncio.ensure_future))
    return found


async def test_what_goes_on_is_said_at_once_and_again_after_silence(ticks: Ticks) -> None:
    out = io.StringIO()
    screen = Screen(out, is_live=False)
    beat = Beat(screen)
    async with beat.running():
        await ticks.tick()
        assert out.getvalue() == ""
        beat.tell("starting")
        await ticks.tick()
        await ticks.tick()
        screen.say("something else")
        await ticks.tick()
        beat.note("working")
        beat.note("working")
        await ticks.tick()
        beat.note("")
        await ticks.tick()
    lines = out.getvalue().splitlines()
    assert lines == ["starting …", "  … starting (2 s)", "something else", "  … working (1 s)"]


async def test_on_a_terminal_it_is_drawn_over_itself_and_leaves_nothing(ticks: Ticks) -> None:
    out = io.StringIO()
    beat = Beat(Screen(out, is_live=True))
    async with beat.running():
        beat.tell("starting")
        await ticks.tick()
        await ticks.tick()
        assert out.getvalue().count("… starting (") == 1 + out.getvalue().count("\x1b[1A")
    assert out.getvalue().endswith("\x1b[1A\r\x1b[J")


def test_a_picture_says_how_far_the_last_job_is() -> None:
    picture = Picture({}, 0.0)
    assert picture.describe_last() == ""
    for name in ("search", "train"):
        picture.hear("bob", {"kind": "order", "name": name, "job_kind": "train", "segments": 30}, 0.0)
    picture.hear("bob", {"kind": "phase", "name": "train", "phase": "running"}, 0.0)
    assert picture.describe_last() == "train running, 0 of 30 segment(s)"
