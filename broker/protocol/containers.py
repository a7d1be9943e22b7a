"""Where large things lie: the container of a value with large arrays, and that of a list of packed values.

Both begin with the byte 0xC1, which MessagePack never uses, so that a container is never taken for a plain value.
Numbers are big endian; whatever begins at a multiple of 64 does so from the start of the container, and the bytes left
out before it are zero.

    value   C1 't' 'a' 01 · u64 length of the body · body · each buffer at a multiple of 64
    list    C1 't' 'l' 01 · u64 number of items · u64 length of each · the items

The body is the value in MessagePack; its large arrays name only their dtype and shape. Their buffers follow in the
order in which the body names them, so that where a buffer lies follows from the shapes alone: none can lie outside,
lie over another, be used twice or not at all. Of a list's items those that may be containers themselves (`ALIGN_FROM`
bytes or more) begin at a multiple of 64; smaller ones lie side by side.

Imports nothing of the project but its neighbours, because a copy runs inside the sandbox.
"""

from __future__ import annotations

import struct

from broker.protocol.refusals import BadValue

TYPE_CHECKING = False  # typing costs 5 ms at each start inside the sandbox
if TYPE_CHECKING:
    from collections.abc import Iterable
    from mmap import mmap
    from typing import Final

    Buffer = bytes | bytearray | memoryview | mmap
    Part = bytes | memoryview

__all__ = ["ALIGN_FROM", "MAX_BODY", "MAX_BYTES", "MAX_ITEMS", "BufferReader", "is_container", "join", "measure",
           "pack_list", "split", "view"]  # fmt: skip

MAX_BYTES: Final = 8 << 30
"""Bytes of one packed value: a lease's host holds inputs and result in its memory at once, and 8 GiB twice is what
machines of the market can be expected to have. Larger data belongs into several values.
"""
MAX_BODY: Final = 1 << 30
"""Bytes of the part in MessagePack: unlike arrays, each of its bytes is copied and may become an object."""
MAX_ITEMS: Final = 1 << 20
"""Items of one packed list, which is as many segments as an order has."""
ALIGN_FROM: Final = 1 << 16
"""Arrays of this many bytes lie outside the body; below it, copying one costs less than finding its place."""

_ALIGNMENT: Final = 64
"""A cache line, and what Arrow and vector instructions ask for."""
_VALUE, _LIST = b"\xc1ta\x01", b"\xc1tl\x01"
_HEAD: Final = struct.Struct(">4sQ")


def view(data: Buffer) -> memoryview:
    """The bytes of anything that lies in memory as one piece."""
    whole = memoryview(data)
    if not whole.contiguous:
        raise BadValue("bytes that do not lie side by side")
    return whole.cast("B") if whole.nbytes else memoryview(b"")


def is_container(data: memoryview) -> bool:
    """Whether these are not the bytes of one plain MessagePack value."""
    return bool(data) and data[0] == _VALUE[0]


def measure(parts: Iterable[Part]) -> int:
    """Bytes of all parts together."""
    return sum(len(part) for part in parts)


# ---- a value with large arrays ----


def join(body: bytes, buffers: list[memoryview]) -> list[Part]:
    """The parts of a container; the buffers are not copied."""
    parts: list[Part] = [_HEAD.pack(_VALUE, len(body)), body]
    place = _HEAD.size + len(body)
    for buffer in buffers:
        parts += [bytes(-place % _ALIGNMENT), buffer]
        place += -place % _ALIGNMENT + len(buffer)
    return parts


class BufferReader:
    """Hands out the buffers of a container in order, each once."""

    def __init__(self, data: memoryview) -> None:
        if len(data) < _HEAD.size or data[:4] != _VALUE:
            raise BadValue("not a packed value: a packed list, or a container of an unknown kind")
        size = _HEAD.unpack_from(data)[1]
        if size > min(len(data) - _HEAD.size, MAX_BODY):
            raise BadValue(f"a body of {size} bytes")
        self._data = data
        self._place = _HEAD.size + size
        self.body = data[_HEAD.size : self._place]

    def take(self, size: int) -> memoryview:
        """The next buffer. Raises `BadValue` where the container does not have it."""
        if size < ALIGN_FROM:
            raise BadValue(f"a buffer of {size} bytes outside the body")
        start = _skip_padding(self._data, self._place)
        if size > len(self._data) - start:
            raise BadValue(f"a buffer of {size} bytes where {max(len(self._data) - start, 0)} are left")
        self._place = start + size
        return self._data[start : self._place]

    def close(self) -> None:
        """All buffers have been taken: nothing lies behind the last. A container without one is none."""
        if self._place != len(self._data) or len(self._data) == _HEAD.size + len(self.body):
            raise BadValue("a container with bytes that no array names, or without arrays")


def _skip_padding(data: memoryview, place: int) -> int:
    start = place + -place % _ALIGNMENT
    if any(data[place:start]):
        raise BadValue("padding that is not zero")
    return start


# ---- a list of packed values ----


def pack_list(items: Iterable[Buffer | list[Part]]) -> list[Part]:
    """The parts of a list of packed values, each given as its bytes or as its own parts. `split` gives them back.

    Raises `BadValue` where they are too many, too large together, or one is empty.
    """
    rows: list[list[Part]] = [list(item) if isinstance(item, list) else [view(item)] for item in items]
    lengths = [measure(row) for row in rows]
    _check_list(lengths)
    parts: list[Part] = [_HEAD.pack(_LIST, len(rows)) + struct.pack(f">{len(rows)}Q", *lengths)]
    place = len(parts[0])
    for row, length in zip(rows, lengths, strict=True):
        if length >= ALIGN_FROM:
            parts.append(bytes(-place % _ALIGNMENT))
            place += len(parts[-1])
        parts += row
        place += length
    if place > MAX_BYTES:
        raise BadValue(f"a list of {place} bytes; at most {MAX_BYTES}")
    return parts


def split(data: Buffer, *, max_bytes: int = MAX_BYTES) -> list[memoryview]:
    """The items of a packed list, each as the exact bytes that were packed; nothing is copied. Raises `BadValue`.

    A segment's input digest is that of these bytes.
    """
    whole = view(data)
    if len(whole) > max_bytes:
        raise BadValue(f"{len(whole)} bytes where at most {max_bytes} are taken")
    if len(whole) < _HEAD.size or whole[:4] != _LIST:
        raise BadValue("not a packed list")
    count = _HEAD.unpack_from(whole)[1]
    if count > min(MAX_ITEMS, (len(whole) - _HEAD.size) // 8):
        raise BadValue(f"a list of {count} items in {len(whole)} bytes")
    lengths = struct.unpack_from(f">{count}Q", whole, _HEAD.size)
    _check_list(lengths)
    items, place = [], _HEAD.size + 8 * count
    for length in lengths:
        place = _skip_padding(whole, place) if length >= ALIGN_FROM else place
        if length > len(whole) - place:
            raise BadValue(f"an item of {length} bytes where {max(len(whole) - place, 0)} are left")
        items.append(whole[place : place + length])
        place += length
    if place != len(whole):
        raise BadValue("bytes behind the end of a list")
    return items


def _check_list(lengths: list[int] | tuple[int, ...]) -> None:
    if len(lengths) > MAX_ITEMS:
        raise BadValue(f"a list of {len(lengths)} items; at most {MAX_ITEMS}")
    if not all(lengths):
        raise BadValue("a list with an item of no bytes")
