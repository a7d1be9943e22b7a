"""Job values: what functions are given and what they return, as bytes that nobody ever executes.

MessagePack with five extensions. Carried: None, bool, int of any size, float, complex, str, bytes, list, tuple, dict
with scalar keys, NumPy arrays (typed raw bytes, little endian, C order) and NumPy scalars. A value is carried as
exactly the type it has: subclasses are refused, since what they mean would be lost. This file imports nothing of the
project, because a copy of it runs inside the sandbox.

    1 int outside -2^63..2^64-1     two's complement, big endian
    2 complex                       two float64, big endian
    3 tuple mark                    empty; first element of the array that was a tuple
    4 NumPy array                   dtype (4 bytes of text), number of dimensions, each as u64, raw bytes
    5 NumPy scalar                  dtype (4 bytes of text), raw bytes

Not here: anything signed or hashed by form (`chain.base.codec`): one value may have several encodings here, and is
hashed as the bytes sent.
"""

from __future__ import annotations

import importlib
import math
import struct
import sys
from itertools import pairwise

import msgpack

TYPE_CHECKING = False  # typing costs 5 ms at each start inside the sandbox
if TYPE_CHECKING:
    from typing import Any, Final, NoReturn

__all__ = ["MAX_BYTES", "MAX_CONTAINERS", "MAX_DEPTH", "BadValue", "CannotCarry", "pack", "split", "unpack"]

MAX_BYTES: Final = 1 << 30
"""Bytes of one packed value: larger data belongs into several blobs."""
MAX_DEPTH: Final = 64
"""Levels of lists, tuples and dicts: deeper ones overflow the stack of whoever walks them."""
MAX_CONTAINERS: Final = 1 << 20
"""Lists, tuples and dicts in one value: one byte of input makes one of 60 to 230 bytes, so their number is limited by
itself.
"""
_MAX_INT_BITS: Final = 1 << 16
"""Bits of one whole number: printing a larger one takes seconds."""
_MAX_KEYS: Final = 1 << 18
"""Entries of one dict."""

_BIG_INT, _COMPLEX, _TUPLE, _ARRAY, _SCALAR = 1, 2, 3, 4, 5
_TUPLE_EXT: Final = msgpack.ExtType(_TUPLE, b"")
_TUPLE_MARK: Final = object()
_DTYPES: Final = frozenset(
    ["|b1", "|i1", "<i2", "<i4", "<i8", "|u1", "<u2", "<u4", "<u8", "<f2", "<f4", "<f8", "<c8", "<c16"]
)
_MAX_DIMENSIONS: Final = 32
_CONTAINERS: Final = frozenset({list, tuple, dict})
_LEAVES: Final = frozenset({type(None), bool, float, bytes, complex})
_KEYS: Final = frozenset({type(None), bool, int, float, str, bytes})


class CannotCarry(TypeError):
    """A value holds something that has no form as plain bytes. The message names its type and its place; `path` and
    `kind` hold them.
    """

    def __init__(self, path: str, kind: str, advice: str) -> None:
        article = "an" if kind[:1] in "aeiou" else "a"
        super().__init__(f"{path}: {article} {kind} can't be carried; {advice}")
        self.path = path
        self.kind = kind


class BadValue(ValueError):
    """Bytes that are not a packed value, or pass a limit. Nothing of them was executed."""


def pack(value: object, *, name: str = "result") -> bytes:
    """The bytes of a job value. Raises `CannotCarry`, which names the place in `name`, e.g. `result['model'][2]`."""
    _check(value, name)
    try:
        data: bytes = msgpack.packb(value, default=_encode, strict_types=True, use_bin_type=True)
    except (ValueError, OverflowError, MemoryError) as error:
        raise CannotCarry(name, type(value).__name__, f"it is too large for one value ({error})") from error
    if len(data) > MAX_BYTES:
        raise CannotCarry(name, type(value).__name__, f"it takes {len(data)} bytes of at most {MAX_BYTES}")
    return data


def unpack(data: bytes, *, max_bytes: int = MAX_BYTES, max_depth: int = MAX_DEPTH) -> Any:
    """The value of packed bytes, whoever made them. Raises `BadValue`; never executes anything; arrays are new and
    writable.
    """
    if len(data) > max_bytes:
        raise BadValue(f"{len(data)} bytes where at most {max_bytes} are taken")
    reader = _Reader()
    try:
        value = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=False,
            use_list=True,
            ext_hook=_decode,
            list_hook=reader.take_list,
            object_pairs_hook=reader.take_dict,
        )
    except BadValue:
        raise
    except (ValueError, TypeError, OverflowError, MemoryError, msgpack.exceptions.UnpackException) as error:
        raise BadValue(f"not a packed value: {error or type(error).__name__}") from error
    _check_depth(value, max_depth)
    return value


def split(data: bytes, *, max_bytes: int = MAX_BYTES) -> list[bytes]:
    """The packed items of a packed list or tuple, each as its own bytes, without unpacking them. Raises `BadValue`."""
    if len(data) > max_bytes:
        raise BadValue(f"{len(data)} bytes where at most {max_bytes} are taken")
    unpacker = msgpack.Unpacker(max_buffer_size=max(len(data), 1))
    unpacker.feed(data)
    try:
        count = unpacker.read_array_header()
        if count > len(data):
            raise BadValue("a list that names more items than it has bytes")
        edges = [unpacker.tell()]
        for _ in range(count):
            unpacker.skip()
            edges.append(unpacker.tell())
    except (ValueError, msgpack.exceptions.UnpackException) as error:
        raise BadValue(f"not a packed list: {error or type(error).__name__}") from error
    if edges[-1] != len(data):
        raise BadValue("bytes behind the end of a list")
    items = [data[start:end] for start, end in pairwise(edges)]
    return items[1:] if items and items[0] == msgpack.packb(_TUPLE_EXT) else items


# ---- packing ----


def _check(value: object, name: str) -> None:
    """Walks a value before it is packed, so that an error can name the place; children are visited with their path."""
    pending: list[tuple[object, str, int]] = [(value, name, 0)]
    containers = 0
    while pending:
        here, path, depth = pending.pop()
        kind = type(here)
        if kind in _LEAVES:
            continue
        if kind is list or kind is tuple or kind is dict:
            containers += 1
            if depth >= MAX_DEPTH:
                raise CannotCarry(path, kind.__name__, f"it is nested deeper than {MAX_DEPTH} levels")
            if containers > MAX_CONTAINERS:
                raise CannotCarry(
                    name, kind.__name__, f"it holds more than {MAX_CONTAINERS} lists and dicts; use an array"
                )
            pending.extend(_walk(here, path, depth + 1))
        else:
            _check_leaf(here, path)


def _walk(value: Any, path: str, depth: int) -> list[tuple[object, str, int]]:
    """The children of a container that are not plain leaves, each with its path."""
    if type(value) is not dict:
        return [(item, f"{path}[{i}]", depth) for i, item in enumerate(value) if type(item) not in _LEAVES]
    if len(value) > _MAX_KEYS:
        raise CannotCarry(path, "dict", f"it has more than {_MAX_KEYS} keys; use arrays")
    for key in value:
        if type(key) not in _KEYS:
            raise CannotCarry(
                path, f"dict with a key of type {_name(key)}", "keys are None, bool, int, float, str or bytes"
            )
        if type(key) is int and not -(2**63) <= key < 2**64:
            raise CannotCarry(path, "dict with a whole number beyond 64 bits as key", "use its text")
        if type(key) is str:
            _check_text(key, f"a key of {path}")
    return [(item, f"{path}[{key!r}]", depth) for key, item in value.items() if type(item) not in _LEAVES]


def _check_leaf(value: Any, path: str) -> None:
    kind = type(value)
    if kind is int:
        if value.bit_length() >= _MAX_INT_BITS:
            raise CannotCarry(path, "int", f"it has more than {_MAX_INT_BITS} bits")
    elif kind is str:
        _check_text(value, path)
    elif not _is_numpy(value):
        raise CannotCarry(path, _name(value), _advise(value))
    elif value.dtype.newbyteorder("<").str not in _DTYPES:
        raise CannotCarry(
            path, f"{_name(value)} of dtype {value.dtype}", "dtypes are bool, (u)int8-64, float16-64, complex64-128"
        )


def _check_text(text: str, path: str) -> None:
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise CannotCarry(path, "str with a lone surrogate", "use bytes") from error


def _is_numpy(value: object) -> bool:
    """Whether it is exactly an array or a scalar of NumPy; where NumPy was never imported there can be none."""
    numpy = sys.modules.get("numpy")
    if numpy is None or type(value).__module__ != "numpy":
        return False
    return type(value) is numpy.ndarray or isinstance(value, numpy.generic)


def _name(value: object) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _advise(value: object) -> str:
    names = {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(value).__mro__}
    if "torch.Tensor" in names:
        return "return tensor.detach().cpu().numpy()"
    if names & {"pandas.DataFrame", "pandas.Series"}:
        return "return its columns as arrays (frame.to_numpy(), list(frame.columns))"
    if names & {"builtins.set", "builtins.frozenset"}:
        return "return sorted(...) or list(...)"
    if any(isinstance(value, kind) for kind in (dict, list, tuple, int, str, float, bytes)):
        return "return the plain built-in type it is made from"
    return "return plain values (numbers, text, bytes, lists, tuples, dicts) or NumPy arrays"


def _encode(value: Any) -> object:
    """msgpack asks here for every type that it does not know; `_check` has seen them all."""
    kind = type(value)
    if kind is tuple:
        return [_TUPLE_EXT, *value]
    if kind is int:
        return msgpack.ExtType(_BIG_INT, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))
    if kind is complex:
        return msgpack.ExtType(_COMPLEX, struct.pack(">dd", value.real, value.imag))
    dtype = value.dtype.newbyteorder("<")
    name = dtype.str.encode().ljust(4)
    if not hasattr(value, "ndim") or isinstance(value, sys.modules["numpy"].generic):
        return msgpack.ExtType(_SCALAR, name + value.astype(dtype).tobytes())
    shape = struct.pack(f">B{value.ndim}Q", value.ndim, *value.shape)
    return msgpack.ExtType(_ARRAY, b"".join((name, shape, value.astype(dtype, order="C", copy=False).tobytes())))


# ---- unpacking ----


class _Reader:
    """Counts what unpacking makes and gives tuples and dicts their form."""

    def __init__(self) -> None:
        self.containers = 0

    def take_list(self, items: list[Any]) -> list[Any] | tuple[Any, ...]:
        self._count()
        if items and items[0] is _TUPLE_MARK:
            return tuple(items[1:])
        return items

    def take_dict(self, pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
        self._count()
        if len(pairs) > _MAX_KEYS:
            raise BadValue(f"a dict with more than {_MAX_KEYS} keys")
        for key, _ in pairs:
            if type(key) not in _KEYS or (type(key) is int and not -(2**63) <= key < 2**64):
                raise BadValue(f"a dict key of type {type(key).__name__}")
        made = dict(pairs)
        if len(made) != len(pairs):
            raise BadValue("a dict that names a key twice")
        return made

    def _count(self) -> None:
        self.containers += 1
        if self.containers > MAX_CONTAINERS:
            raise BadValue(f"more than {MAX_CONTAINERS} lists and dicts")


def _check_depth(value: Any, max_depth: int) -> None:
    """Every level of containers once, without recursion; a tuple mark that is no first element of a list is refused
    here.
    """
    level = [value]
    for depth in range(max_depth + 1):
        if any(item is _TUPLE_MARK or type(item) is msgpack.Timestamp for item in level):
            raise BadValue("a tuple mark outside a tuple, or a timestamp")
        containers = [item for item in level if type(item) in _CONTAINERS]
        if not containers:
            return
        if depth == max_depth:
            raise BadValue(f"nested deeper than {max_depth} levels")
        level = [item for one in containers for item in (one.values() if type(one) is dict else one)]


def _decode(code: int, data: bytes) -> object:
    if code == _TUPLE and not data:
        return _TUPLE_MARK
    if code == _BIG_INT and 0 < len(data) <= _MAX_INT_BITS // 8:
        return int.from_bytes(data, "big", signed=True)
    if code == _COMPLEX and len(data) == 16:
        return complex(*struct.unpack(">dd", data))
    if code == _ARRAY:
        return _decode_array(data)
    if code == _SCALAR:
        return _decode_scalar(data)
    _refuse(f"extension {code} of {len(data)} bytes")


def _read_dtype(data: bytes) -> Any:
    """The dtype named by the first four bytes. NumPy is imported here and not above: most values hold no array, and it
    costs 100 ms.
    """
    name = data[:4].rstrip(b" ").decode("ascii", "replace")
    if name not in _DTYPES:
        _refuse(f"dtype {name!r}")
    return importlib.import_module("numpy").dtype(name)


def _decode_array(data: bytes) -> object:
    dtype = _read_dtype(data)
    dimensions = data[4] if len(data) > 4 else _MAX_DIMENSIONS + 1
    start = 5 + 8 * dimensions
    if dimensions > _MAX_DIMENSIONS or len(data) < start:
        _refuse("an array without its shape")
    shape = struct.unpack_from(f">{dimensions}Q", data, 5)
    if math.prod(shape) * dtype.itemsize != len(data) - start:
        _refuse(f"an array of shape {shape} with {len(data) - start} bytes")
    numpy = importlib.import_module("numpy")
    return (
        numpy.frombuffer(data, dtype, offset=start).reshape(shape).copy()
        if len(data) > start
        else numpy.empty(shape, dtype)
    )


def _decode_scalar(data: bytes) -> object:
    dtype = _read_dtype(data)
    if len(data) != 4 + dtype.itemsize:
        _refuse("a scalar of the wrong length")
    return importlib.import_module("numpy").frombuffer(data, dtype, offset=4)[0]


def _refuse(what: str) -> NoReturn:
    raise BadValue(f"not a packed value: {what}")
