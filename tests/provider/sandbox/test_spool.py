"""Outputs too long for memory: written as they come, hashed on the way, gone unless somebody took them."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from broker.protocol import values
from chain.ledger.terms.agreement import Kind
from chain.ledger.terms.outcome import Cause
from provider.sandbox.executor import Sandbox, carry_out
from provider.sandbox.frames import HELD_BYTES
from provider.sandbox.inside import wire
from provider.sandbox.spec import Ended, SandboxEvent, SegmentDone, Started
from provider.sandbox.spool import Spool
from tests.provider.sandbox import bodies
from tests.provider.sandbox.world import LIMITS, MIB, Host, make_series, make_task


@pytest.fixture
def folder() -> Iterator[Path]:
    """A spool that every user of the tests may write to."""
    with tempfile.TemporaryDirectory(prefix="tallystick-test-", dir="/tmp") as name:
        os.chmod(name, 0o777)
        yield Path(name)


def test_a_spool_writes_hashes_and_hands_over(folder: Path) -> None:
    spool = Spool(folder / "new", "stay")
    assert spool.finish() is None
    spool.write(3, [b"one", b"two"])
    spool.write(3, [b"three"])
    path, digest, size = spool.finish() or (Path(), b"", 0)
    assert (path.read_bytes(), size) == (b"onetwothree", 11)
    assert digest == hashlib.sha256(b"onetwothree").digest()
    spool.write(4, [b"x"])
    spool.discard()
    spool.discard()
    assert list((folder / "new").iterdir()) == [path], "what was handed over is not the spool's any more"


def test_what_a_killed_daemon_left_is_written_over(folder: Path) -> None:
    (folder / "stay.0.output").write_bytes(b"left behind by another")
    spool = Spool(folder, "stay")
    spool.write(0, [b"x"])
    path, _, _ = spool.finish() or (Path(), b"", 0)
    assert path.read_bytes() == b"x"


@pytest.mark.parametrize("size", [HELD_BYTES // 2, HELD_BYTES + 1, 3 * MIB])
def test_a_long_output_lies_in_a_file(size: int, host: Host, folder: Path) -> None:
    outcome = host.run(make_task(bodies.send_much, size), spool=folder)
    (segment,) = outcome.segments
    packed = values.pack(bytes(size))
    assert segment.cause == outcome.cause == Cause.OK
    assert (segment.output_digest, segment.output_bytes) == (hashlib.sha256(packed).digest(), len(packed))
    assert segment.usage.bytes_out == len(packed)
    if len(packed) <= HELD_BYTES:
        assert (segment.output, segment.spooled) == (packed, None)
    else:
        assert segment.spooled is not None
        assert (segment.output, segment.spooled.read_bytes()) == (b"", packed)
        assert segment.spooled.parent == folder


def test_long_and_short_outputs_in_turn(best: Host, folder: Path) -> None:
    sizes = [10, 2 * MIB, 20, 30, MIB, HELD_BYTES]
    task = make_series(Kind.MAP, bodies.send_much, sizes, 0, len(sizes))
    outcome = best.run(task, spool=folder)
    assert [len(value) for value in outcome.values] == sizes
    assert len(list(folder.iterdir())) == 3


ENDLESS = """
import os, struct
def lead(fd):
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return ""
pipe = max(fd for fd in range(3, 64) if "pipe" in lead(fd))
os.write(pipe, struct.pack(">BQ", 0, %d))
while True:
    os.write(pipe, bytes(1 << 16))
"""


def test_an_endless_output_ends_at_its_cap_and_leaves_nothing(host: Host, folder: Path) -> None:
    task = make_task(ENDLESS % 2**40)
    outcome = host.run(task, spool=folder)
    assert outcome.cause == Cause.OUTPUT, outcome.events
    assert (outcome.segments[0].output, outcome.segments[0].spooled) == (b"", None)
    assert list(folder.iterdir()) == []


def test_without_the_cap_it_would_go_on(best: Host, folder: Path) -> None:
    size = LIMITS.output_bytes + MIB
    outcome = best.run(make_task(bodies.send_much, size), lambda plan: plan.without("output"), spool=folder)
    assert outcome.segments[0].output_bytes > LIMITS.output_bytes


@pytest.mark.parametrize("claimed", [100, 2 * MIB])
def test_an_output_shorter_than_it_claims_is_none(claimed: int, host: Host, folder: Path) -> None:
    source = (ENDLESS % claimed).replace(
        "while True:\n    os.write(pipe, bytes(1 << 16))", "os.write(pipe, b'x' * 50)\nos._exit(0)"
    )
    outcome = host.run(make_task(source), spool=folder)
    assert (outcome.cause, outcome.segments[0].output, outcome.segments[0].spooled) == (Cause.PROGRAM, b"", None)
    assert list(folder.iterdir()) == []


def test_a_job_killed_while_it_sends_leaves_no_file(host: Host, folder: Path) -> None:
    source = (ENDLESS % (3 * MIB)).replace("while True:\n", "for _ in range(20):\n") + "os.kill(os.getpid(), 9)\n"
    outcome = host.run(make_task(source), spool=folder)
    assert outcome.cause == Cause.SIGNAL, outcome.events
    assert list(folder.iterdir()) == []


def test_a_grandchild_that_holds_the_pipe_open_does_not_hold_up_the_end(host: Host) -> None:
    """The child names a length, sends less and dies; what it left behind keeps the pipe open."""
    source = (ENDLESS % 100).replace(
        "while True:\n    os.write(pipe, bytes(1 << 16))", "if os.fork():\n    os._exit(0)\nimport time\ntime.sleep(60)"
    )
    outcome = host.run(make_task(source))
    assert outcome.cause == Cause.PROGRAM, outcome.events
    assert outcome.usage.wall_ms < LIMITS.wall_ms


def test_a_full_disk_is_the_hosts_fault_and_leaves_nothing(
    best: Host, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(descriptor: int, data: memoryview) -> int:
        told = os.fstat(descriptor)
        if stat.S_ISREG(told.st_mode) and told.st_size > MIB:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, data)

    real = os.write
    monkeypatch.setattr("provider.sandbox.spool.os.write", write)
    outcome = best.run(make_task(bodies.send_much, 3 * MIB), spool=folder)
    monkeypatch.undo()
    assert outcome.cause == Cause.HOST, outcome.events
    assert "No space left" in outcome.ended.detail
    assert outcome.segments == []
    assert list(folder.iterdir()) == []


def test_a_spool_that_cant_be_made_is_the_hosts_fault(best: Host) -> None:
    outcome = best.run(make_task(bodies.send_much, MIB), spool=Path("/dev/null/spool"))
    assert outcome.cause == Cause.HOST, outcome.events


async def wait_for_files(folder: Path, count: int) -> None:
    while len(list(folder.iterdir())) < count:
        await asyncio.sleep(0.01)


async def test_outputs_that_nobody_collects_are_removed(best: Host, folder: Path) -> None:
    sandbox = Sandbox(best.image, best.abilities, slots=1)
    stay = sandbox.batches(make_series(Kind.MAP, bodies.send_much, [MIB] * 3, 0, 3), 0, folder)
    assert isinstance((await anext(stay))[0], Started)
    await wait_for_files(folder, 3)
    await stay.aclose()
    assert list(folder.iterdir()) == []


async def test_of_several_outputs_only_what_was_taken_stays(best: Host, folder: Path) -> None:
    sandbox = Sandbox(best.image, best.abilities, slots=1)
    stay = sandbox.run(make_series(Kind.MAP, bodies.send_much, [MIB] * 3, 0, 3), 0, folder)
    assert isinstance(await anext(stay), Started)
    await wait_for_files(folder, 3)
    taken = await anext(stay)
    assert isinstance(taken, SegmentDone)
    await stay.aclose()
    assert list(folder.iterdir()) == [taken.spooled]


async def test_a_stay_that_is_left_while_it_sends_leaves_no_file(best: Host, folder: Path) -> None:
    limits = msgspec.structs.replace(LIMITS, output_bytes=1 << 40)
    task = make_task(ENDLESS % 2**39, limits=limits)
    stay = carry_out(best.plan(task), task, best.abilities, "left", folder)
    await anext(stay)
    reader = anext(stay)
    waiting = asyncio.ensure_future(reader)
    while not any(path.stat().st_size > MIB for path in folder.iterdir()):
        await asyncio.sleep(0.01)
    waiting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await waiting
    await stay.aclose()
    assert list(folder.iterdir()) == []


async def test_events_come_in_batches_and_one_by_one_alike(best: Host, folder: Path) -> None:
    sandbox = Sandbox(best.image, best.abilities, slots=1)
    task = make_series(Kind.MAP, bodies.double, list(range(20, 320)), 0, 300)
    task = msgspec.structs.replace(task, limits=msgspec.structs.replace(task.limits, output_count=300))
    batches = [events async for events in sandbox.batches(task, 0, folder)]
    assert all(batches)
    assert len(batches) < 300, "small segments come together"
    events: list[SandboxEvent] = [event async for event in sandbox.run(task, 0, folder)]
    for told in ([event for batch in batches for event in batch], events):
        done = [event for event in told if isinstance(event, SegmentDone)]
        assert [(one.index, values.unpack(one.output)) for one in done] == [(i, 2 * (i + 20)) for i in range(300)]
        assert {one.cause for one in done} == {Cause.OK}
        last = told[-1]
        assert isinstance(last, Ended)
        assert sum(one.usage.wall_ms for one in done) <= last.usage.wall_ms + 300
        assert last.usage.cpu_ms <= sum(one.usage.cpu_ms for one in done)


def test_frames_are_as_long_as_a_pipe_likes() -> None:
    assert wire.MAX_PAYLOAD <= HELD_BYTES
