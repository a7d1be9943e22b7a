"""A second MessagePack, written by hand from its specification, which shares no code with chain.base or msgspec.

It writes the shortest form of a value, all longer spellings of it, and what has no place in an object; it reads
anything and judges nothing. Also the signed bytes of R18 from hashlib alone.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Raw:
    """Bytes to be written as they stand: a value in a spelling of the test's choice."""

    data: bytes


FLOAT = Raw(b"\xcb" + struct.pack(">d", 1.0))
FLOAT32 = Raw(b"\xca" + struct.pack(">f", 1.0))
EMPTY_MAP = Raw(b"\x80")
SMALL_MAP = Raw(b"\x81\xa1a\x01")
EXT = Raw(b"\xd4\x01\x00")
TIMESTAMP = Raw(b"\xd6\xff\x00\x00\x00\x01")
RESERVED = Raw(b"\xc1")
FOREIGN = {
    "float64": FLOAT,
    "float32": FLOAT32,
    "empty map": EMPTY_MAP,
    "map": SMALL_MAP,
    "map16": Raw(b"\xde\x00\x00"),
    "map32": Raw(b"\xdf\x00\x00\x00\x00"),
    "ext": EXT,
    "ext8": Raw(b"\xc7\x01\x01\x00"),
    "ext16": Raw(b"\xc8\x00\x01\x01\x00"),
    "ext32": Raw(b"\xc9\x00\x00\x00\x01\x01\x00"),
    "fixext2": Raw(b"\xd5\x01\x00\x00"),
    "timestamp": TIMESTAMP,
    "fixext8": Raw(b"\xd7\x01" + bytes(8)),
    "fixext16": Raw(b"\xd8\x01" + bytes(16)),
    "reserved": RESERVED,
}
"""Values of MessagePack that no object of ours may hold."""

_UNSIGNED = ((0xCC, 1), (0xCD, 2), (0xCE, 4), (0xCF, 8))
_SIGNED = ((0xD0, 1), (0xD1, 2), (0xD2, 4), (0xD3, 8))
_TEXT = ((0xD9, 1), (0xDA, 2), (0xDB, 4))
_BYTES = ((0xC4, 1), (0xC5, 2), (0xC6, 4))
_ARRAY = ((0xDC, 2), (0xDD, 4))


def write(value: Any) -> bytes:
    """The shortest form of a tree of None, bool, int, str, bytes, lists and `Raw`."""
    if isinstance(value, Raw):
        return value.data
    return next(spellings(value)) + b"".join(write(child) for child in children_of(value))


def children_of(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []


def spellings(value: Any) -> Iterator[bytes]:
    """All ways to write an atom, or the header of an array; the shortest first."""
    if value is None or isinstance(value, bool):
        yield {None: b"\xc0", False: b"\xc2", True: b"\xc3"}[value]
    elif isinstance(value, int):
        yield from _spell_int(value)
    elif isinstance(value, str):
        data = value.encode("utf-8")
        yield from (head + data for head in _spell_length(len(data), 0xA0, 31, _TEXT))
    elif isinstance(value, bytes):
        yield from (head + value for head in _spell_length(len(value), 0, -1, _BYTES))
    else:
        yield from _spell_length(len(value), 0x90, 15, _ARRAY)


def _spell_int(value: int) -> Iterator[bytes]:
    if -32 <= value <= 127:
        yield struct.pack(">b", value)
    for first, width in _UNSIGNED if value >= 0 else ():
        if value < 1 << (8 * width):
            yield bytes([first]) + value.to_bytes(width, "big")
    for first, width in _SIGNED:
        if -(1 << (8 * width - 1)) <= value < 1 << (8 * width - 1):
            yield bytes([first]) + value.to_bytes(width, "big", signed=True)


def _spell_length(length: int, short: int, most: int, longer: tuple[tuple[int, int], ...]) -> Iterator[bytes]:
    if length <= most:
        yield bytes([short | length])
    for first, width in longer:
        if length < 1 << (8 * width):
            yield bytes([first]) + length.to_bytes(width, "big")


def read(data: bytes) -> Any:
    """The tree of one value; raises ValueError where bytes are left over, or for maps, floats and extensions."""
    value, position = _read(data, 0)
    if position != len(data):
        raise ValueError(f"{len(data) - position} bytes left over")
    return value


def _read(data: bytes, position: int) -> tuple[Any, int]:
    first = data[position]
    position += 1
    if first <= 0x7F or first >= 0xE0:
        return (first if first <= 0x7F else first - 256), position
    if first in (0xC0, 0xC2, 0xC3):
        return {0xC0: None, 0xC2: False, 0xC3: True}[first], position
    for table, signed in ((dict(_UNSIGNED), False), (dict(_SIGNED), True)):
        if first in table:
            end = position + table[first]
            return int.from_bytes(data[position:end], "big", signed=signed), end
    length, position, what = _read_length(data, first, position)
    if what == "array":
        items = []
        for _ in range(length):
            item, position = _read(data, position)
            items.append(item)
        return items, position
    body = data[position : position + length]
    if len(body) != length:
        raise ValueError("cut short")
    return (body.decode("utf-8") if what == "text" else body), position + length


def _read_length(data: bytes, first: int, position: int) -> tuple[int, int, str]:
    if 0x90 <= first <= 0x9F:
        return first & 0x0F, position, "array"
    if 0xA0 <= first <= 0xBF:
        return first & 0x1F, position, "text"
    for table, what in ((_ARRAY, "array"), (_TEXT, "text"), (_BYTES, "bytes")):
        for head, width in table:
            if first == head:
                return int.from_bytes(data[position : position + width], "big"), position + width, what
    raise ValueError(f"byte 0x{first:02x}")


def respell(tree: Any) -> Iterator[tuple[str, bytes]]:
    """(where, bytes) of every encoding of `tree` in which one node is written in a longer form than it needs."""
    for path, node in walk(tree):
        for number, head in enumerate(spellings(node)):
            if number:
                body = head + b"".join(write(child) for child in children_of(node))
                yield f"{path} as 0x{head[0]:02x}", write(replace(tree, path, Raw(body)))


def walk(tree: Any, path: tuple[int, ...] = ()) -> Iterator[tuple[tuple[int, ...], Any]]:
    """(path, node) of all nodes, the root first."""
    yield path, tree
    for number, child in enumerate(children_of(tree)):
        yield from walk(child, (*path, number))


def replace(tree: Any, path: tuple[int, ...], node: Any) -> Any:
    """A copy of `tree` with the node at `path` replaced."""
    if not path:
        return node
    copy = list(tree)
    copy[path[0]] = replace(copy[path[0]], path[1:], node)
    return copy


def compute_signed_bytes(tag: str, chain_id: bytes, body: bytes) -> bytes:
    """R18 by hand: SHA-256(tag) || chain id || canonical payload."""
    return hashlib.sha256(tag.encode("ascii")).digest() + chain_id + body
