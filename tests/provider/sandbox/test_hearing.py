"""What is heard of a job, without a job: frames written into a pipe by hand, and a meter that says what it is told."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import cast

import msgspec
import pytest

from broker.protocol import values
from chain.ledger.terms.agreement import Kind
from chain.ledger.terms.outcome import Cause
from provider.sandbox.cgroups import Reading
from provider.sandbox.hearing import Hearing
from provider.sandbox.inputs import Inputs
from provider.sandbox.inside import wire
from provider.sandbox.launch import Launched
from provider.sandbox.meter import Meter
from provider.sandbox.plan import HostCaps
from provider.sandbox.spec import LogChunk, SandboxEvent, SegmentDone
from provider.sandbox.spool import Spool
from tests.provider.sandbox.world import MIB, make_series

COUNT = 10
CAPS = HostCaps(wall_ms=60_000, cpu_ms=1_000, log_bytes=1_000, output_bytes=MIB, output_count=None, polled_bytes=None)


class Pipes:
    """Stands for a bubblewrap that was started."""

    def __init__(self) -> None:
        self.ends: dict[str, int] = {}
        self.theirs: dict[str, int] = {}
        for name in ("frames", "out", "err"):
            self.ends[name], self.theirs[name] = os.pipe()
            os.set_blocking(self.ends[name], False)

    def close(self, *names: str) -> None:
        for name in names or (*self.ends,):
            os.close(self.ends.pop(name))

    def end(self, first: int, count: int = 1, outcome: int = wire.OK) -> None:
        """Says that segments are over."""
        for index in range(first, first + count):
            begin = wire.frame(wire.BEGIN, wire.INDEX.pack(index)) + wire.frame(wire.OUTPUT, values.pack(index))
            os.write(self.theirs["frames"], begin + wire.frame(wire.DONE, wire.OUTCOME.pack(index, outcome, 0)))


class Gauge:
    """Stands for the kernel's figures."""

    def __init__(self) -> None:
        self.reading = Reading(0, MIB, 0)

    def read(self) -> Reading:
        return self.reading


class Ear:
    """A hearing with all it needs, and what it said."""

    def __init__(self, folder: Path) -> None:
        self.pipes, self.gauge = Pipes(), Gauge()
        self.said: list[SandboxEvent] = []
        self.ended: list[Cause] = []
        task = make_series(Kind.MAP, lambda item: item, list(range(COUNT)), 0, COUNT)
        self.hearing = Hearing(task, CAPS, Inputs(task), Spool(folder, "stay"), self.said.append, self._end)

    def _end(self, cause: Cause, detail: str) -> None:
        self.ended.append(cause)
        self.hearing.stop()

    def begin(self) -> None:
        self.hearing.begin(cast(Launched, self.pipes), cast(Meter, self.gauge), 0)

    @property
    def done(self) -> list[SegmentDone]:
        return [event for event in self.said if isinstance(event, SegmentDone)]

    async def finish(self) -> None:
        await self.hearing.finish(cast(Launched, self.pipes))


@pytest.fixture
async def ear(tmp_path: Path) -> AsyncIterator[Ear]:
    made = Ear(tmp_path)
    made.begin()
    yield made
    made.pipes.close()
    for descriptor in made.pipes.theirs.values():
        os.close(descriptor)


@pytest.fixture(autouse=True)
def _slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing happens by itself, so that each test says when."""
    monkeypatch.setattr("provider.sandbox.hearing._TICK_S", 1_000.0)
    yield


async def test_wall_time_is_not_up_for_a_segment_that_has_ended(ear: Ear) -> None:
    ear.pipes.end(0)
    ear.hearing._on_wall(0)
    assert (len(ear.done), ear.ended) == (1, [])
    ear.hearing._on_wall(1)
    assert ear.ended == [Cause.WALL]
    await ear.finish()


async def test_cpu_time_of_segments_that_have_ended_is_theirs(ear: Ear) -> None:
    ear.gauge.reading = Reading(1_500_000, MIB, 0)
    ear.pipes.end(0, 2)
    ear.hearing._tick()
    assert ([one.usage.cpu_ms for one in ear.done], ear.ended) == ([750, 750], [])
    ear.gauge.reading = Reading(2_600_000, MIB, 0)
    ear.hearing._tick()
    assert ear.ended == [Cause.CPU]
    await ear.finish()


async def test_whom_the_kernel_killed_shows_in_how_it_ended(ear: Ear) -> None:
    ear.pipes.end(0, 2)
    ear.pipes.end(2, 1, wire.SIGNALED)
    ear.gauge.reading = Reading(1_000, MIB, 1)
    ear.hearing._hear()
    assert [one.cause for one in ear.done] == [Cause.OK, Cause.OK, Cause.OOM]
    assert ear.ended == [Cause.OOM]
    await ear.finish()


async def test_a_kill_counts_against_the_one_that_ended_alone(ear: Ear) -> None:
    ear.pipes.end(0)
    ear.gauge.reading = Reading(1_000, MIB, 1)
    ear.hearing._hear()
    assert [one.cause for one in ear.done] == ear.ended == [Cause.OOM]
    await ear.finish()


async def test_frames_are_looked_at_together(ear: Ear) -> None:
    ear.pipes.end(0)
    while not ear.done:
        await asyncio.sleep(0)
    ear.pipes.end(1, COUNT - 2)
    for _ in range(3):
        await asyncio.sleep(0)
    assert len(ear.done) == 1, "it rests"
    while len(ear.done) < COUNT - 1:
        await asyncio.sleep(0.001)
    assert [one.index for one in ear.done] == list(range(COUNT - 1))
    assert ear.ended == []
    ear.pipes.end(COUNT - 1)
    await ear.finish()
    assert ear.ended == [Cause.OK], "what was said before the end is heard at the end"


async def test_each_segments_log_has_the_cap_to_itself(ear: Ear) -> None:
    for index in range(3):
        os.write(ear.pipes.theirs["out"], b"x" * 900)
        ear.pipes.end(index)
    ear.hearing._on_log("out")
    assert ear.ended == []
    assert [one.usage.bytes_out for one in ear.done] == [901, 901, 901]
    os.write(ear.pipes.theirs["out"], b"x" * 2_001)
    ear.hearing._on_log("out")
    assert ear.ended == [Cause.LOG]
    assert sum(len(event.data) for event in ear.said if isinstance(event, LogChunk)) == 2_700 + CAPS.log_bytes  # type: ignore[operator]  # it is set
    await ear.finish()


async def test_what_comes_after_the_verdict_is_not_heard(ear: Ear) -> None:
    ear.hearing.stop()
    ear.pipes.end(0)
    await ear.finish()
    assert ear.said == []


async def test_the_last_segment_ends_the_stay(ear: Ear) -> None:
    ear.pipes.end(0, COUNT)
    ear.hearing._hear()
    assert ear.ended == [Cause.OK]
    assert msgspec.structs.asdict(ear.done[-1])["index"] == COUNT - 1
    await ear.finish()
