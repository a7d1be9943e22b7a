"""The host's reading of what comes out of a sandbox: bounded, strict, and without belief.

Pure. The job may have taken over the harness (threats.md 1.3, trap 6), so order, sizes and counts are checked here:
segments one after the other from the first, at most so many, each begun once and ended once, output and error text
within their caps. An output beyond `HELD_BYTES` is given as it comes. Not here: where that is kept (`spool.py`), and
what an outcome means for the receipt (`hearing.py`).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

import msgspec

from chain.base.errors import Refused
from provider.sandbox.inside import wire

__all__ = [
    "HELD_BYTES",
    "Begun",
    "Closed",
    "Finished",
    "FrameParser",
    "Parsed",
    "Spilled",
    "StreamBroken",
    "TooMuchOutput",
]

HELD_BYTES: Final = 1 << 18
"""Bytes of one segment's output that are held in memory."""


class StreamBroken(Refused):
    """The stream is not one that the harness writes: the job has meddled with it."""


class TooMuchOutput(Refused):
    """A segment's output passes its cap."""


class Begun(msgspec.Struct, frozen=True):
    """A segment is said to begin."""

    index: int


class Spilled(msgspec.Struct, frozen=True):
    """More of an output that is too long to be held: all of it comes so, part by part."""

    index: int
    data: bytes


class Finished(msgspec.Struct, frozen=True):
    """A segment is said to be over. `outcome` and `number` as in `inside.wire`; `output` is empty where it was
    spilled.
    """

    index: int
    outcome: int
    number: int
    output: bytes
    error: bytes


class Closed(msgspec.Struct, frozen=True):
    """The runner is said to have ended."""

    outcome: int
    number: int


Parsed = Begun | Spilled | Finished | Closed


class FrameParser:
    """Takes bytes as they come, gives what they say. Holds at most `HELD_BYTES` of one segment's output, its error text
    and one frame.
    """

    def __init__(self, first: int, count: int, *, output_bytes: int | None, error_bytes: int) -> None:
        self._next = first
        self._end = first + count
        self._caps = {wire.OUTPUT: output_bytes, wire.ERROR: error_bytes}
        self._held = {wire.OUTPUT: bytearray(), wire.ERROR: bytearray()}
        self._spilled = 0
        self._buffer = bytearray()
        self._open = False
        self._closed = False
        self._handlers: dict[int, Callable[[int, bytes], Parsed | None]] = {
            wire.BEGIN: self._begin,
            wire.OUTPUT: self._hold,
            wire.ERROR: self._hold,
            wire.DONE: self._done,
            wire.CLOSED: self._close,
        }

    @property
    def open_index(self) -> int | None:
        """Index of the segment that has begun and is not over."""
        return self._next if self._open else None

    @property
    def next_index(self) -> int:
        """Index of the first segment that is not over."""
        return self._next

    def feed(self, data: bytes) -> list[Parsed]:
        """What the bytes complete. Raises `StreamBroken` or `TooMuchOutput`; do not feed it again after that."""
        self._buffer += data
        found: list[Parsed] = []
        position = 0
        while len(self._buffer) - position >= wire.FRAME.size:
            kind, size = wire.FRAME.unpack_from(self._buffer, position)
            if size > wire.MAX_PAYLOAD or kind not in self._handlers:
                raise StreamBroken(f"frame of kind {kind} with {size} bytes", rule="sandbox.frame")
            end = position + wire.FRAME.size + size
            if len(self._buffer) < end:
                break
            parsed = self._take(kind, bytes(memoryview(self._buffer)[position + wire.FRAME.size : end]))
            if parsed is not None:
                found.append(parsed)
            position = end
        del self._buffer[:position]
        return found

    def _take(self, kind: int, payload: bytes) -> Parsed | None:
        if self._closed:
            raise StreamBroken("a frame after the last one", rule="sandbox.order")
        try:
            return self._handlers[kind](kind, payload)
        except struct.error as error:
            raise StreamBroken(f"frame of kind {kind}: {error}", rule="sandbox.frame") from error

    def _begin(self, kind: int, payload: bytes) -> Begun:
        (index,) = wire.INDEX.unpack(payload)
        if self._open or index != self._next or index >= self._end:
            raise StreamBroken(f"segment {index} begins where {self._next} of {self._end} is due", rule="sandbox.order")
        self._open = True
        return Begun(index)

    def _hold(self, kind: int, payload: bytes) -> Spilled | None:
        if not self._open:
            raise StreamBroken("output outside a segment", rule="sandbox.order")
        held, cap = self._held[kind], self._caps[kind]
        spilled = self._spilled if kind == wire.OUTPUT else 0
        if cap is not None and spilled + len(held) + len(payload) > cap:
            raise TooMuchOutput(f"more than {cap} bytes of output", rule="sandbox.output")
        held += payload
        if kind != wire.OUTPUT or (not spilled and len(held) <= HELD_BYTES):
            return None
        data = bytes(held)
        held.clear()
        self._spilled += len(data)
        return Spilled(self._next, data)

    def _done(self, kind: int, payload: bytes) -> Finished:
        index, outcome, number = wire.OUTCOME.unpack(payload)
        if not self._open or index != self._next or outcome > wire.EXITED:
            raise StreamBroken(f"segment {index} ends with {outcome} out of turn", rule="sandbox.order")
        output, error = (bytes(self._held[one]) for one in (wire.OUTPUT, wire.ERROR))
        for held in self._held.values():
            held.clear()
        self._open = False
        self._spilled = 0
        self._next += 1
        return Finished(index, outcome, number, output, error)

    def _close(self, kind: int, payload: bytes) -> Closed:
        outcome, number = wire.CLOSING.unpack(payload)
        if outcome not in (wire.OK, wire.SIGNALED, wire.EXITED):
            raise StreamBroken(f"closed with outcome {outcome}", rule="sandbox.frame")
        self._closed = True
        return Closed(outcome, number)
