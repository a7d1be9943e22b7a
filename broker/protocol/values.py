"""Job values: what functions are given and what they return, as bytes that nobody ever executes.

MessagePack with seven extensions. Carried: None, bool, int of any size, float (NaN and infinities are data), complex,
str, bytes, list, tuple, dict with scalar keys, NumPy arrays (typed raw bytes, little endian, C order) and NumPy
scalars, tables of pandas and Arrow. A value is carried as exactly the type it has: subclasses are refused, since what
they mean would be lost; a NumPy array mapped from a file is carried as the array it is.

    1 int outside -2^63..2^64-1     two's complement, big endian
    2 complex                       two float64, big endian
    3 tuple mark                    empty; first element of the array that was a tuple
    4 NumPy array < 64 KiB          dtype (4 bytes of text), number of dimensions, each as u64, raw bytes
    5 NumPy scalar                  dtype (4 bytes of text), raw bytes
    6 NumPy array from 64 KiB       as 4 without the bytes: they lie outside the body (`broker.protocol.containers`)
    7 table mark                    its kind as text; first element of the array that describes it (`.tables`)

Neither packing nor unpacking with `copy=False` copies arrays of 64 KiB and more that lie in C order. Not here: anything
signed or hashed by form (`chain.base.codec`): one value may have several encodings here, and is hashed as the bytes
sent. Imports nothing of the project but its neighbours, because a copy runs inside the sandbox.
"""

from __future__ import annotations

import struct

import msgpack

from broker.protocol import arrays, containers, tables
from broker.protocol.containers import MAX_BODY, MAX_BYTES, measure, pack_list, split
from broker.protocol.refusals import BadValue, CannotCarry, MissingPackage

TYPE_CHECKING = False  # typing costs 5 ms at each start inside the sandbox
if TYPE_CHECKING:
    from typing import Any, Final

    from broker.protocol.containers import Buffer, Part

__all__ = ["MAX_BYTES", "MAX_CONTAINERS", "MAX_DEPTH", "BadValue", "CannotCarry", "MissingPackage", "measure", "pack",
           "pack_list", "pack_parts", "split", "unpack"]  # fmt: skip

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

_BIG_INT, _COMPLEX, _TUPLE, _ARRAY, _SCALAR, _LARGE_ARRAY, _TABLE = 1, 2, 3, 4, 5, 6, 7
_TUPLE_EXT: Final = msgpack.ExtType(_TUPLE, b"")
_CONTAINERS: Final = frozenset({list, tuple, dict})
_LEAVES: Final = frozenset({type(None), bool, float, bytes, complex})
_KEYS: Final = frozenset({type(None), bool, int, float, str, bytes})


class _Mark:
    """What the first element of a list says that the list is; `kind` is empty for a tuple."""

    __slots__ = ("kind",)

    def __init__(self, kind: str) -> None:
        self.kind = kind


_TUPLE_MARK: Final = _Mark("")
_TABLE_MARKS: Final = {kind.encode(): _Mark(kind) for kind in tables.KINDS}


def pack(value: object, *, name: str = "result") -> bytes:
    """The bytes of a job value. Raises `CannotCarry`, which names the place in `name`, e.g. `result['model'][2]`."""
    parts = pack_parts(value, name=name)
    return parts[0] if len(parts) == 1 and isinstance(parts[0], bytes) else b"".join(parts)


def pack_parts(value: object, *, name: str = "result") -> list[Part]:
    """The same bytes in parts, to be sent or written one after the other.

    Large arrays in C order and little endian are not copied: the parts show their own memory, so leave them alone until
    all is sent.
    """
    writer = _Writer(name)
    writer.check(value)
    try:
        body: bytes = msgpack.packb(value, default=writer.encode, strict_types=True, use_bin_type=True)
    except (ValueError, OverflowError, MemoryError) as error:
        raise CannotCarry(name, type(value).__name__, f"it is too large for one value ({error})") from error
    parts: list[Part] = containers.join(body, writer.buffers) if writer.buffers else [body]
    if len(body) > MAX_BODY or measure(parts) > MAX_BYTES:
        raise CannotCarry(
            name,
            type(value).__name__,
            f"it takes {measure(parts)} bytes of at most {MAX_BYTES}, {len(body)} of them outside large arrays, which "
            f"may be at most {MAX_BODY}",
        )
    return parts


def unpack(data: Buffer, *, max_bytes: int = MAX_BYTES, max_depth: int = MAX_DEPTH, copy: bool = True) -> Any:
    """The value of packed bytes, whoever made them. Raises `BadValue`; never executes anything.

    Arrays are new and can be written to. With `copy=False` those of 64 KiB and more are views of `data` that can't: a
    mapped file must stay open as long as they live.
    """
    whole = containers.view(data)
    if len(whole) > max_bytes:
        raise BadValue(f"{len(whole)} bytes where at most {max_bytes} are taken")
    buffers = containers.BufferReader(whole) if containers.is_container(whole) else None
    reader = _Reader(buffers, copy=copy)
    try:
        value = msgpack.unpackb(
            whole if buffers is None else buffers.body,
            raw=False,
            strict_map_key=False,
            use_list=True,
            ext_hook=reader.take_extension,
            list_hook=reader.take_list,
            object_pairs_hook=reader.take_dict,
        )
    except BadValue:
        raise
    except (ValueError, TypeError, OverflowError, MemoryError, msgpack.exceptions.UnpackException) as error:
        raise BadValue(f"not a packed value: {error or type(error).__name__}") from error
    if buffers is not None:
        buffers.close()
    _check_depth(value, max_depth)
    return value


# ---- packing ----


class _Writer:
    """Checks a value before it is packed, so that an error can name the place; then gives msgpack what it has no form
    for, and keeps the large arrays apart.
    """

    def __init__(self, name: str) -> None:
        self.buffers: list[memoryview] = []
        self._name = name
        self._tables: dict[int, tuple[str, list[Any]]] = {}

    def check(self, value: object) -> None:
        """Visits children with their path."""
        pending: list[tuple[object, str, int]] = [(value, self._name, 0)]
        count = 0
        while pending:
            here, path, depth = pending.pop()
            kind = type(here)
            if kind in _LEAVES:
                continue
            if kind is list or kind is tuple or kind is dict:
                count += 1
                if depth >= MAX_DEPTH:
                    raise CannotCarry(path, kind.__name__, f"it is nested deeper than {MAX_DEPTH} levels")
                if count > MAX_CONTAINERS:
                    raise CannotCarry(
                        self._name, kind.__name__, f"it holds more than {MAX_CONTAINERS} lists and dicts; use an array"
                    )
                pending.extend(_walk(here, path, depth + 1))
            elif table := tables.find_kind(here):
                parts = tables.describe(here, table, path)
                self._tables[id(here)] = (table, parts)
                pending.append((parts, path, 0))
            else:
                _check_leaf(here, path)

    def encode(self, value: Any) -> object:
        """msgpack asks here for every type that it does not know; `check` has seen them all."""
        kind = type(value)
        if kind is tuple:
            return [_TUPLE_EXT, *value]
        if kind is int:
            return msgpack.ExtType(_BIG_INT, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))
        if kind is complex:
            return msgpack.ExtType(_COMPLEX, struct.pack(">dd", value.real, value.imag))
        if (table := self._tables.get(id(value))) is not None:
            return [msgpack.ExtType(_TABLE, table[0].encode()), *table[1]]
        if not arrays.is_array(value):
            return msgpack.ExtType(_SCALAR, arrays.pack_scalar(value))
        elements = arrays.view_bytes(value)
        if len(elements) < containers.ALIGN_FROM:
            return msgpack.ExtType(_ARRAY, b"".join((arrays.pack_shape(value), elements)))
        self.buffers.append(elements)
        return msgpack.ExtType(_LARGE_ARRAY, arrays.pack_shape(value))


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
    elif not arrays.is_numpy(value):
        raise CannotCarry(path, _name(value), _advise(value))
    elif not arrays.has_form(value.dtype):
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


def _name(value: object) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _advise(value: object) -> str:
    names = {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(value).__mro__}
    if "torch.Tensor" in names:
        return "use tensor.detach().cpu().numpy()"
    if names & {"builtins.set", "builtins.frozenset"}:
        return "use sorted(...) or list(...)"
    if any(isinstance(value, kind) for kind in (dict, list, tuple, int, str, float, bytes)):
        return "use the plain built-in type it is made from"
    return "use plain values (numbers, text, bytes, lists, tuples, dicts) or NumPy arrays"


# ---- unpacking ----


class _Reader:
    """Counts what unpacking makes, gives tuples, tables and dicts their form, and finds the large arrays."""

    def __init__(self, buffers: containers.BufferReader | None, *, copy: bool) -> None:
        self._buffers = buffers
        self._copy = copy
        self._count = 0

    def take_list(self, items: list[Any]) -> object:
        self._count_one()
        if items and type(items[0]) is _Mark:
            return tables.restore(items[0].kind, items[1:]) if items[0].kind else tuple(items[1:])
        return items

    def take_dict(self, pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
        self._count_one()
        if len(pairs) > _MAX_KEYS:
            raise BadValue(f"a dict with more than {_MAX_KEYS} keys")
        for key, _ in pairs:
            if type(key) not in _KEYS or (type(key) is int and not -(2**63) <= key < 2**64):
                raise BadValue(f"a dict key of type {type(key).__name__}")
        made = dict(pairs)
        if len(made) != len(pairs):
            raise BadValue("a dict that names a key twice")
        return made

    def take_extension(self, code: int, data: bytes) -> object:
        if code == _TUPLE and not data:
            return _TUPLE_MARK
        if code == _TABLE and data in _TABLE_MARKS:
            return _TABLE_MARKS[data]
        if code == _BIG_INT and 0 < len(data) <= _MAX_INT_BITS // 8:
            return int.from_bytes(data, "big", signed=True)
        if code == _COMPLEX and len(data) == 16:
            return complex(*struct.unpack(">dd", data))
        if code == _ARRAY:
            return arrays.read_inline(data)
        if code == _SCALAR:
            return arrays.read_scalar(data)
        if code == _LARGE_ARRAY and self._buffers is not None:
            dtype, shape, size, end = arrays.read_shape(data)
            if end == len(data):
                return arrays.read_view(dtype, shape, self._buffers.take(size), copy=self._copy)
        raise BadValue(f"not a packed value: extension {code} of {len(data)} bytes")

    def _count_one(self) -> None:
        self._count += 1
        if self._count > MAX_CONTAINERS:
            raise BadValue(f"more than {MAX_CONTAINERS} lists and dicts")


def _check_depth(value: Any, max_depth: int) -> None:
    """Every level of containers once, without recursion; a mark that is no first element of a list is refused here."""
    level = [value]
    for depth in range(max_depth + 1):
        if any(type(item) is _Mark or type(item) is msgpack.Timestamp for item in level):
            raise BadValue("a mark of a tuple or table that is no first element, or a timestamp")
        found = [item for item in level if type(item) in _CONTAINERS]
        if not found:
            return
        if depth == max_depth:
            raise BadValue(f"nested deeper than {max_depth} levels")
        level = [item for one in found for item in (one.values() if type(one) is dict else one)]
