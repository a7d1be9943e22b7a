"""Progress frames: at once for slow work, gathered for fast work, bounded, complete and in order."""

from __future__ import annotations

import asyncio

from broker.protocol.messages import LOG_CHUNK_BYTES, MAX_MESSAGE_BYTES, Progress, sign_message
from chain.ledger.terms.work import SegmentRecord
from provider.daemon import progress
from provider.daemon.progress import FLUSH_SECONDS, MAX_RECORDS, Reporter
from provider.work.papers import Papers
from tests.provider import scene
from tests.provider.daemon.world import until


def make_reporter() -> tuple[Reporter, list[Progress]]:
    frames: list[Progress] = []
    return Reporter(bytes(32), scene.PROVIDER.key, 1_000, frames.append), frames


def make_record() -> SegmentRecord:
    return Papers(scene.PROVIDER, scene.CHAIN, scene.open_lease()).add_record(scene.make_segment(), "ns", "openblas")


async def test_what_comes_together_is_one_frame() -> None:
    reporter, frames = make_reporter()
    reporter.begin(0, 7)
    reporter.add_log(b"a")
    reporter.add_log(b"b")
    reporter.add_log(b"")
    reporter.add_records(1, [make_record()])
    assert not frames
    await until(lambda: bool(frames))
    [frame] = frames
    assert (frame.log, frame.done, len(frame.records), frame.sequence, frame.total) == (b"ab", 1, 1, 8, 1_000)


async def test_after_a_pause_news_leaves_at_once_and_what_follows_closely_is_gathered() -> None:
    reporter, frames = make_reporter()
    loop, record = asyncio.get_running_loop(), make_record()
    reporter.begin(0, 0)
    reporter.add_records(1, [record])
    timer = reporter._timer
    assert timer is not None and timer.when() <= loop.time(), "nothing was sent lately"
    await until(lambda: len(frames) == 1)
    for done in range(2, 6):
        reporter.add_records(done, [record])
    timer = reporter._timer
    assert timer is not None and 0 < timer.when() - reporter._sent_at <= FLUSH_SECONDS + 1e-6
    await until(lambda: len(frames) == 2)
    assert [len(frame.records) for frame in frames] == [1, 4] and frames[1].done == 5
    assert 16 <= MAX_RECORDS <= 64 and progress.FLUSH_SECONDS <= 0.1


async def test_frames_are_bounded_complete_and_in_order() -> None:
    reporter, frames = make_reporter()
    reporter.begin(100, 0)
    record, text = make_record(), bytes(range(256)) * 300
    reporter.add_log(text)
    for done in range(10, 151, 10):
        reporter.add_records(done, [record] * 10)
    reporter.flush()
    reporter.flush()
    assert b"".join(frame.log for frame in frames) == text
    assert sum(len(frame.records) for frame in frames) == 150
    assert [frame.sequence for frame in frames] == list(range(1, len(frames) + 1))
    offset = 100
    for frame in frames:
        assert frame.log_offset == offset and len(frame.log) <= LOG_CHUNK_BYTES and len(frame.records) <= MAX_RECORDS
        assert len(sign_message(scene.PROVIDER, scene.CHAIN, frame)) <= MAX_MESSAGE_BYTES
        offset += len(frame.log)


async def test_a_new_run_drops_what_waited_and_counts_on() -> None:
    reporter, frames = make_reporter()
    reporter.begin(0, 50)
    reporter.add_log(b"old")
    reporter.begin(0, 20)
    reporter.flush()
    assert not frames
    reporter.add_log(b"new")
    reporter.flush()
    assert (frames[0].log, frames[0].log_offset, frames[0].sequence) == (b"new", 0, 51)
