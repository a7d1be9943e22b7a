"""The host's parser of the result stream: what is well-formed is read however it is cut, everything else is refused,
nothing grows without bound.
"""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provider.sandbox.frames import (
    HELD_BYTES,
    Begun,
    Closed,
    Finished,
    FrameParser,
    Parsed,
    Spilled,
    StreamBroken,
    TooMuchOutput,
)
from provider.sandbox.inside import wire

CAP = 1000


def frame(kind: int, payload: bytes = b"") -> bytes:
    return wire.FRAME.pack(kind, len(payload)) + payload


def begin(index: int) -> bytes:
    return frame(wire.BEGIN, wire.INDEX.pack(index))


def done(index: int, outcome: int = wire.OK, number: int = 0) -> bytes:
    return frame(wire.DONE, wire.OUTCOME.pack(index, outcome, number))


def closed(outcome: int = wire.OK, number: int = 0) -> bytes:
    return frame(wire.CLOSED, wire.CLOSING.pack(outcome, number))


def make(first: int = 0, count: int = 3, cap: int | None = CAP) -> FrameParser:
    return FrameParser(first, count, output_bytes=cap, error_bytes=100)


segments = st.lists(
    st.tuples(
        st.lists(st.binary(max_size=100), max_size=5), st.binary(max_size=100), st.integers(0, 4), st.integers(-1, 64)
    ),
    max_size=3,
)


def write(rows: list[tuple[list[bytes], bytes, int, int]]) -> tuple[bytes, list[Parsed]]:
    stream, expected = b"", list[Parsed]()
    for index, (parts, error, outcome, number) in enumerate(rows):
        stream += begin(index) + b"".join(frame(wire.OUTPUT, part) for part in parts)
        stream += (frame(wire.ERROR, error) if error else b"") + done(index, outcome, number)
        expected += [Begun(index), Finished(index, outcome, number, b"".join(parts), error)]
    return stream + closed(wire.EXITED, 3), [*expected, Closed(wire.EXITED, 3)]


@given(segments, st.lists(st.integers(1, 40), min_size=1))
def test_a_stream_reads_the_same_however_it_is_cut(
    rows: list[tuple[list[bytes], bytes, int, int]], cuts: list[int]
) -> None:
    stream, expected = write(rows)
    parser, found, at, turn = make(), list[Parsed](), 0, 0
    while at < len(stream):
        size = cuts[turn % len(cuts)]
        found += parser.feed(stream[at : at + size])
        at, turn = at + size, turn + 1
    assert found == expected
    assert parser.next_index == len(rows)
    assert parser.open_index is None


def survive(parser: FrameParser, chunks: list[bytes]) -> None:
    """Feeds until the parser refuses. What it gives stays within its caps."""
    finished = 0
    for chunk in chunks:
        try:
            found = parser.feed(chunk)
        except (StreamBroken, TooMuchOutput) as refusal:
            assert refusal.rule.startswith("sandbox.")
            return
        for one in found:
            if isinstance(one, Finished):
                finished += 1
                assert len(one.output) <= CAP
                assert len(one.error) <= 100
        assert finished <= 3


@given(st.lists(st.binary(max_size=300)))
def test_noise_is_read_or_refused(chunks: list[bytes]) -> None:
    survive(make(), chunks)


pieces = st.one_of(
    st.builds(begin, st.integers(0, 5)),
    st.builds(done, st.integers(0, 5), st.integers(0, 6), st.integers(-5, 5)),
    st.builds(closed, st.integers(0, 6)),
    st.builds(frame, st.integers(0, 7), st.binary(max_size=400)),
    st.builds(wire.FRAME.pack, st.integers(0, 7), st.integers(0, 2**32 - 1)),
)


@given(st.lists(pieces, max_size=30))
def test_frames_in_any_order_are_read_or_refused(chunks: list[bytes]) -> None:
    survive(make(), chunks)


@pytest.mark.check
@pytest.mark.timeout(600)
def test_many_random_streams(seed: int) -> None:
    """A hundred thousand streams built of frames and noise, some of them damaged by one byte."""
    chance = random.Random(seed)
    makers = [
        lambda: begin(chance.randrange(4)),
        lambda: done(chance.randrange(4), chance.randrange(6)),
        lambda: frame(chance.randrange(7), chance.randbytes(chance.randrange(60))),
        lambda: closed(chance.randrange(5)),
        lambda: chance.randbytes(chance.randrange(12)),
    ]
    for _ in range(100_000):
        stream = bytearray(b"".join(chance.choice(makers)() for _ in range(chance.randrange(1, 9))))
        if stream and chance.random() < 0.5:
            stream[chance.randrange(len(stream))] = chance.randrange(256)
        survive(make(), [bytes(stream)])


BROKEN = {
    "unknown kind": frame(9),
    "frame too long": wire.FRAME.pack(wire.OUTPUT, wire.MAX_PAYLOAD + 1),
    "output before a segment": frame(wire.OUTPUT, b"x"),
    "error before a segment": frame(wire.ERROR, b"x"),
    "end before begin": done(0),
    "wrong first segment": begin(1),
    "begun twice": begin(0) + begin(0),
    "begun while open": begin(0) + begin(1),
    "segment left out": begin(0) + done(0) + begin(2),
    "end of another": begin(0) + done(1),
    "one too many": b"".join(begin(i) + done(i) for i in range(4)),
    "unknown outcome": begin(0) + done(0, 5),
    "short payload": frame(wire.BEGIN, b"\0"),
    "long payload": frame(wire.DONE, bytes(30)),
    "closed oddly": closed(wire.RAISED),
    "after the close": closed() + begin(0),
    "closed twice": closed() + closed(),
}


@pytest.mark.parametrize("name", BROKEN)
def test_out_of_form_or_turn_is_refused(name: str) -> None:
    with pytest.raises(StreamBroken):
        make().feed(BROKEN[name])


@pytest.mark.parametrize("kind", [wire.OUTPUT, wire.ERROR])
def test_caps_hold_for_one_segment_and_not_for_their_sum(kind: int) -> None:
    cap = CAP if kind == wire.OUTPUT else 100
    parser = make()
    for index in range(2):
        parser.feed(begin(index) + frame(kind, bytes(cap)) + done(index))
    parser.feed(begin(2) + frame(kind, bytes(cap)))
    with pytest.raises(TooMuchOutput):
        parser.feed(frame(kind, b"x"))


def test_without_a_cap_output_is_not_bounded() -> None:
    parser = make(cap=None)
    (_, finished) = parser.feed(begin(0) + frame(wire.OUTPUT, bytes(5000)) + done(0))
    assert isinstance(finished, Finished)
    assert len(finished.output) == 5000


def test_an_unfinished_frame_is_waited_for_up_to_its_bound() -> None:
    parser = make(cap=10 * wire.MAX_PAYLOAD)
    parser.feed(begin(0))
    assert parser.feed(wire.FRAME.pack(wire.OUTPUT, wire.MAX_PAYLOAD) + bytes(wire.MAX_PAYLOAD - 1)) == []
    assert parser.open_index == 0
    assert struct.calcsize(">BI") == wire.FRAME.size


@pytest.mark.parametrize("size", [HELD_BYTES - 1, HELD_BYTES, HELD_BYTES + 1, 3 * HELD_BYTES + 5])
@pytest.mark.parametrize("part", [1000, wire.MAX_PAYLOAD])
def test_an_output_too_long_to_hold_is_given_as_it_comes(size: int, part: int, seed: int) -> None:
    output = random.Random(seed).randbytes(size)
    parser = make(cap=None)
    found: list[Parsed] = []
    for start in range(0, size, part):
        found += parser.feed((begin(0) if not start else b"") + frame(wire.OUTPUT, output[start : start + part]))
        assert len(parser._held[wire.OUTPUT]) <= HELD_BYTES
    found += parser.feed(done(0))
    spilled = b"".join(one.data for one in found if isinstance(one, Spilled))
    last = found[-1]
    assert isinstance(last, Finished)
    assert (spilled, last.output) == ((output, b"") if size > HELD_BYTES else (b"", output))


def test_what_one_segment_spilled_is_not_the_nexts() -> None:
    parser = make(cap=2 * HELD_BYTES)
    for index in range(2):
        stream = begin(index) + frame(wire.OUTPUT, bytes(HELD_BYTES)) * 2
        assert sum(len(one.data) for one in parser.feed(stream) if isinstance(one, Spilled)) == 2 * HELD_BYTES
        parser.feed(done(index))
    (_, short) = parser.feed(begin(2) + frame(wire.OUTPUT, b"x") + done(2))
    assert short == Finished(2, wire.OK, 0, b"x", b"")


def test_the_cap_counts_what_was_spilled() -> None:
    parser = make(cap=2 * HELD_BYTES)
    parser.feed(begin(0) + frame(wire.OUTPUT, bytes(HELD_BYTES)) * 2)
    with pytest.raises(TooMuchOutput):
        parser.feed(frame(wire.OUTPUT, b"x"))


def test_an_error_text_is_never_spilled() -> None:
    parser = FrameParser(0, 1, output_bytes=None, error_bytes=2 * HELD_BYTES)
    stream = begin(0) + frame(wire.ERROR, bytes(HELD_BYTES)) * 2 + done(0, wire.RAISED)
    assert [type(one) for one in parser.feed(stream)] == [Begun, Finished]
