"""The canonical encoding: MessagePack with exactly one form per value (design.md section 3, R18).

Structs travel as arrays in declared order behind a type tag. Before anything is decoded, its size, depth and element
count are bounded
by a walk over the headers, so that a few bytes cannot ask for much memory (threats.md A3 to A5). After decoding, the
value is encoded again and compared: any
other spelling of the same value (long integers, missing defaults, trailing bytes) is refused.

Not here: job values (arguments and results), which are `broker.protocol.values`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, TypeVar

import msgspec

from chain.base.errors import Refused

T = TypeVar("T")

MAX_BYTES = 1 << 20
"""Default bound of one encoded object; blobs are not objects."""

MAX_DEPTH = 16
"""No object of ours nests deeper than 9."""

MAX_ITEMS = 65_536
"""Elements of all arrays of one object together."""


class Record(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Base of every struct that is signed, hashed or sent between parts. Subclasses give their own `tag`."""


class BadEncoding(Refused):
    """Bytes that are not the canonical encoding of the expected type."""


def encode(value: Any) -> bytes:
    """Canonical bytes of a `Record` (or of a tuple of plain values). Raises `BadEncoding` under `codec.form` for what
    MessagePack cannot hold. That no record holds a float or a map is the business of its type, and of `check_bounds`
    before something is signed.
    """
    try:
        return _encoder().encode(value)
    except (OverflowError, UnicodeEncodeError, RecursionError) as error:
        raise BadEncoding(f"a {type(value).__name__} has no canonical form: {error}", rule="codec.form") from error


def decode(data: bytes, kind: type[T], *, max_bytes: int = MAX_BYTES) -> T:
    """Decode canonical bytes as `kind`.

    Raises `BadEncoding` with rule `codec.size`, `codec.depth`, `codec.items`, `codec.float`, `codec.trailing`,
    `codec.form` (not MessagePack, or not this type), or `codec.canonical` (a second spelling of a value).
    """
    if len(data) > max_bytes:
        raise BadEncoding(f"{len(data)} bytes where at most {max_bytes} are taken", rule="codec.size")
    check_bounds(data)
    try:
        value: T = _decoder_of(kind).decode(data)
    except (msgspec.DecodeError, msgspec.ValidationError, ValueError, RecursionError) as error:
        raise BadEncoding(f"not a {getattr(kind, '__name__', kind)}: {error}", rule="codec.form") from error
    if encode(value) != data:
        raise BadEncoding("not the canonical form of its value", rule="codec.canonical")
    return value


def check_bounds(data: bytes) -> None:
    """Walk the headers of one MessagePack value and refuse what is too deep, too many, a float, an extension, a map,
    or longer than its bytes.
    """
    position, items, stack, end = 0, 0, [1], len(data)
    while stack:
        if stack[-1] == 0:
            stack.pop()
            continue
        stack[-1] -= 1
        if position >= end:
            raise BadEncoding("ends before its value does", rule="codec.form")
        position, children = _step(data, position)
        if children is not None:
            items += children
            if items > MAX_ITEMS:
                raise BadEncoding(f"more than {MAX_ITEMS} elements", rule="codec.items")
            stack.append(children)
            if len(stack) > MAX_DEPTH + 1:
                raise BadEncoding(f"nested deeper than {MAX_DEPTH}", rule="codec.depth")
    if position != end:
        raise BadEncoding(f"{end - position} bytes after its end", rule="codec.trailing")


def _step(data: bytes, position: int) -> tuple[int, int | None]:
    """Position behind the header (and body) at `position`, and how many child values follow; None for an atom."""
    first = data[position]
    if first <= 0x7F or first >= 0xE0 or first in (0xC0, 0xC2, 0xC3):
        return position + 1, None
    if 0x90 <= first <= 0x9F:
        return position + 1, first & 0x0F
    if 0xA0 <= first <= 0xBF:
        return _skip(data, position + 1 + (first & 0x1F)), None
    if first in _FIXED:
        return _skip(data, position + 1 + _FIXED[first]), None
    if first in _SIZED:
        width = _SIZED[first]
        body = _skip(data, position + 1 + width)
        return _skip(data, body + int.from_bytes(data[position + 1 : body], "big")), None
    if first in _ARRAYS:
        body = _skip(data, position + 1 + _ARRAYS[first])
        return body, int.from_bytes(data[position + 1 : body], "big")
    rule = "codec.float" if first in (0xCA, 0xCB) else "codec.form"
    raise BadEncoding(f"a value of type 0x{first:02x} has no place in an object", rule=rule)


def _skip(data: bytes, position: int) -> int:
    if position > len(data):
        raise BadEncoding("ends before its value does", rule="codec.form")
    return position


_FIXED = {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}
_SIZED = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
_ARRAYS = {0xDC: 2, 0xDD: 4}


@lru_cache(maxsize=1)
def _encoder() -> msgspec.msgpack.Encoder:
    return msgspec.msgpack.Encoder(enc_hook=_refuse)


_decoders: dict[Any, msgspec.msgpack.Decoder[Any]] = {}


def _decoder_of(kind: Any) -> msgspec.msgpack.Decoder[Any]:
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders.setdefault(kind, msgspec.msgpack.Decoder(kind))
    return decoder


def _refuse(value: Any) -> Any:
    raise BadEncoding(f"a {type(value).__name__} has no canonical form", rule="codec.form")
