"""Tables of pandas and Arrow as lists, texts and arrays, and back.

pandas is carried column by column and needs no Arrow; Arrow is carried as its own IPC stream, uncompressed and without
extension types, and validated in full before anyone sees it. What would be lost is refused by its place: an index of
several levels, categories, attributes. A frequency of dates is not carried: it is a property that pandas infers.

    frame    [column axis, index axis, [column, …]]
    series   [name, index axis, column]
    table    [u8 array: IPC stream]
    batch    [u8 array: IPC stream of one batch]
    axis     [name, column] or [name, ["range", start, stop, step]]
    column   ["array", array], ["datetime" or "utc" or "timedelta", unit, i64 array],
             ["str" or "string", [text or None, …]] or ["plain", [value, …]]

Imports nothing of the project but its neighbours, because a copy runs inside the sandbox; pandas and pyarrow are
imported when such a table is there and not before.
"""

from __future__ import annotations

import importlib
import struct
import sys

from broker.protocol.arrays import has_form
from broker.protocol.refusals import BadValue, CannotCarry, MissingPackage

TYPE_CHECKING = False  # typing costs 5 ms at each start inside the sandbox
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, Final

__all__ = ["KINDS", "describe", "find_kind", "restore"]

KINDS: Final = ("frame", "series", "table", "batch")
_TYPES: Final = (
    ("pandas", "DataFrame", "frame"),
    ("pandas", "Series", "series"),
    ("pyarrow", "Table", "table"),
    ("pyarrow", "RecordBatch", "batch"),
)
_MAX_COLUMNS: Final = 1 << 16
_MAX_BARE_ROWS: Final = 1 << 20
"""Rows of a table of which nothing but their number is said."""
_UNITS: Final = frozenset({"s", "ms", "us", "ns"})
_PLAIN: Final = frozenset({type(None), bool, int, float, str, bytes})
_EXTENSION: Final = b"ARROW:extension:"
_CONTINUATION: Final = b"\xff\xff\xff\xff"
_ELSE: Final = "convert the column, or give pyarrow.Table.from_pandas(frame)"


def find_kind(value: object) -> str:
    """Which kind of table it is exactly; empty where it is none. Nothing is imported: what it is made of is there."""
    for package, name, kind in _TYPES:
        loaded = sys.modules.get(package)
        if loaded is not None and type(value) is getattr(loaded, name, None):
            return kind
    return ""


def describe(value: Any, kind: str, path: str) -> list[Any]:
    """The table as lists, texts and arrays, which are views where they can be. Raises `CannotCarry`."""
    if kind in {"table", "batch"}:
        return [_write_stream(value, path)]
    if value.attrs:
        raise CannotCarry(f"{path}.attrs", "dict of attributes", "put it beside the table")
    if kind == "series":
        _check_label(value.name, f"{path}.name")
        return [value.name, _describe_axis(value.index, f"{path}.index"), _describe_column(value, path)]
    if len(value.columns) > _MAX_COLUMNS:
        raise CannotCarry(path, f"DataFrame of {len(value.columns)} columns", "use frame.to_numpy()")
    labels = _describe_axis(value.columns, f"{path}.columns")
    for label in value.columns:
        if type(label) is not str and not hasattr(label, "__index__"):
            raise CannotCarry(f"{path}.columns", f"label of type {type(label).__name__}", "labels are str or int")
    columns = [
        _describe_column(value.iloc[:, number], f"{path}[{label!r}]") for number, label in enumerate(value.columns)
    ]
    return [labels, _describe_axis(value.index, f"{path}.index"), columns]


def restore(kind: str, parts: list[Any]) -> object:
    """The table that `describe` described, whoever sent it. Raises `BadValue`, which is a `MissingPackage` where pandas
    or pyarrow is not installed.
    """
    package = "pandas" if kind in {"frame", "series"} else "pyarrow"
    try:
        library: Any = importlib.import_module(package)
    except ImportError as error:
        raise MissingPackage(package) from error
    try:
        if package == "pandas":
            return _restore_frame(library, *parts) if kind == "frame" else _restore_series(library, *parts)
        return _read_stream(library, kind, *parts)
    except BadValue:
        raise
    except (ValueError, TypeError, KeyError, IndexError, OverflowError, MemoryError, OSError, struct.error) as error:
        raise BadValue(f"not a packed value: a {kind} that {package} refuses: {error}") from error
    except NotImplementedError as error:
        raise BadValue(f"not a packed value: a {kind} of types that {package} does not read here: {error}") from error


# ---- pandas: describing ----


def _check_label(name: object, path: str) -> None:
    if name is not None and type(name) not in (str, int):
        raise CannotCarry(path, f"label of type {type(name).__name__}", "labels are str or int")


def _describe_axis(index: Any, path: str) -> list[Any]:
    pandas = sys.modules["pandas"]
    if isinstance(index, pandas.MultiIndex):
        raise CannotCarry(path, "MultiIndex", "flatten it, for rows by frame.reset_index()")
    _check_label(index.name, f"{path}.name")
    if isinstance(index, pandas.RangeIndex):
        return [index.name, ["range", index.start, index.stop, index.step]]
    return [index.name, _describe_column(index, path)]


def _describe_column(column: Any, path: str) -> list[Any]:
    pandas, numpy, dtype = sys.modules["pandas"], sys.modules["numpy"], column.dtype
    if isinstance(dtype, numpy.dtype):
        if dtype.kind in "mM" and numpy.datetime_data(dtype)[0] in _UNITS:
            name = "datetime" if dtype.kind == "M" else "timedelta"
            return [name, numpy.datetime_data(dtype)[0], column.to_numpy().view("i8")]
        if dtype.kind == "O":
            return ["plain", _list_plain(column, path)]
        if has_form(dtype):
            return ["array", column.to_numpy()]
    elif isinstance(dtype, pandas.StringDtype):
        missing = pandas.isna(column)
        texts = [None if gone else text for text, gone in zip(column.tolist(), missing, strict=True)]
        return ["string" if dtype.na_value is pandas.NA else "str", texts]
    elif isinstance(dtype, pandas.DatetimeTZDtype):
        if str(dtype.tz) == "UTC":
            return ["utc", dtype.unit, pandas.DatetimeIndex(column).tz_convert(None).to_numpy().view("i8")]
        raise CannotCarry(path, f"column of dtype {dtype}", "use .dt.tz_convert('UTC')")
    elif isinstance(dtype, pandas.CategoricalDtype):
        raise CannotCarry(path, "column of dtype category", f"use .astype(str), or {_ELSE}")
    raise CannotCarry(path, f"column of dtype {dtype}", _ELSE)


def _list_plain(column: Any, path: str) -> list[Any]:
    found: list[Any] = column.tolist()
    for number, item in enumerate(found):
        if type(item) not in _PLAIN:
            kind = f"{type(item).__module__}.{type(item).__qualname__}".removeprefix("builtins.")
            raise CannotCarry(f"{path}[{number}]", kind, "columns of objects hold None, bool, int, float, str or bytes")
    return found


# ---- pandas: restoring ----


def _restore_frame(pandas: Any, columns: Any, index: Any, data: Any) -> object:
    if type(data) is not list or len(data) > _MAX_COLUMNS:
        raise BadValue("not a packed value: a frame without its columns")
    values = dict(enumerate(_restore_column(pandas, one) for one in data))
    labels = _restore_axis(pandas, columns, len(data))
    rows = _restore_axis(pandas, index, len(values[0]) if data else None)
    series = {number: _make_series(pandas, one, rows) for number, one in values.items()}
    frame = pandas.DataFrame(series, index=rows, copy=False)
    frame.columns = labels
    return frame


def _restore_series(pandas: Any, name: Any, index: Any, column: Any) -> object:
    values = _restore_column(pandas, column)
    made = _make_series(pandas, values, _restore_axis(pandas, index, len(values)))
    made.name = _read_label(name)
    return made


def _make_series(pandas: Any, values: Any, rows: Any) -> Any:
    """The dtype is said, because pandas would make texts of objects that are texts. Raises ValueError where there are
    more or fewer rows than values.
    """
    return pandas.Series(values, index=rows, dtype=values.dtype, copy=False)


def _read_label(name: Any) -> Any:
    if name is not None and type(name) not in (str, int):
        raise BadValue(f"not a packed value: a label of type {type(name).__name__}")
    return name


def _restore_axis(pandas: Any, axis: Any, length: int | None) -> Any:
    """`length`: what the columns say; None where there are none."""
    name, column = axis
    if type(column) is list and len(column) == 4 and column[0] == "range":
        if any(type(one) is not int or abs(one) >= 2**62 for one in column[1:]):
            raise BadValue("not a packed value: a range of other than whole numbers")
        made = pandas.RangeIndex(*column[1:], name=_read_label(name))
    else:
        values = _restore_column(pandas, column)
        made = pandas.Index(values, dtype=values.dtype, name=_read_label(name), copy=False)
    if len(made) != length if length is not None else len(made) > _MAX_BARE_ROWS:
        raise BadValue("not a packed value: an index of another length than its columns")
    return made


def _restore_column(pandas: Any, column: Any) -> Any:
    """An array, or what pandas makes of texts, times and plain values; always of one dimension."""
    if type(column) is not list or not column or type(column[0]) is not str:
        raise BadValue("not a packed value: a table without its column")
    kind, *parts = column
    numpy: Any = importlib.import_module("numpy")
    if kind == "array":
        (array,) = parts
        if type(array) is not numpy.ndarray or array.ndim != 1:
            raise BadValue("not a packed value: a column that is no array")
        return array
    if kind in {"datetime", "utc", "timedelta"}:
        unit, array = parts
        if type(array) is not numpy.ndarray or array.ndim != 1 or array.dtype != "i8" or unit not in _UNITS:
            raise BadValue("not a packed value: a column of times")
        times = array.view(f"{'m' if kind == 'timedelta' else 'M'}8[{unit}]")
        return pandas.DatetimeIndex(times).tz_localize("UTC") if kind == "utc" else times
    (items,) = parts
    allowed = _PLAIN if kind == "plain" else {type(None), str}
    if kind not in {"plain", "str", "string"} or type(items) is not list or not {type(one) for one in items} <= allowed:
        raise BadValue("not a packed value: a column of something else")
    made = numpy.empty(len(items), object)
    made[:] = items
    return made if kind == "plain" else pandas.array(made, dtype=_find_text_dtype(pandas, kind))


def _find_text_dtype(pandas: Any, kind: str) -> Any:
    """The dtype of texts; before pandas 3 there was no other than that of objects for missing texts that are NaN."""
    if kind == "string":
        return pandas.StringDtype()
    return pandas.StringDtype(na_value=float("nan")) if int(pandas.__version__.split(".")[0]) >= 3 else object


# ---- Arrow ----


def _write_stream(table: Any, path: str) -> Any:
    """The IPC stream as an array of bytes: one copy of the table, of just its size."""
    arrow, numpy = sys.modules["pyarrow"], importlib.import_module("numpy")
    ipc: Any = importlib.import_module("pyarrow.ipc")
    for field in table.schema:
        _check_type(arrow, field, f"{path}[{field.name!r}]")
    options = ipc.IpcWriteOptions(compression=None)
    measured = arrow.MockOutputStream()
    _write_to(ipc, measured, table, options)
    stream = numpy.empty(measured.size(), "u1")
    _write_to(ipc, arrow.FixedSizeBufferWriter(arrow.py_buffer(stream)), table, options)
    if table.num_rows > _count_rows(len(stream)):
        raise CannotCarry(path, f"{type(table).__name__} of {table.num_rows} rows of nothing", "return their number")
    return stream


def _write_to(ipc: Any, sink: Any, table: Any, options: Any) -> None:
    with ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write(table)


def _check_type(arrow: Any, field: Any, path: str) -> None:
    """An extension type is code of its own at whoever reads it."""
    for one in _list_fields(arrow, field):
        if isinstance(one.type, arrow.BaseExtensionType) or any(
            key.startswith(_EXTENSION) for key in one.metadata or ()
        ):
            raise CannotCarry(path, f"column of the extension type {one.type}", "cast it to its storage type")


def _list_fields(arrow: Any, field: Any) -> Iterator[Any]:
    """A field and all that its type holds inside; Arrow itself bounds how deep they lie."""
    pending = [field]
    while pending:
        here = pending.pop()
        yield here
        kind = here.type
        if arrow.types.is_dictionary(kind):
            kind = kind.value_type
            yield arrow.field("", kind)
        pending.extend(kind.field(number) for number in range(kind.num_fields))


def _read_stream(arrow: Any, kind: str, stream: Any) -> object:
    numpy, ipc = importlib.import_module("numpy"), importlib.import_module("pyarrow.ipc")
    if type(stream) is not numpy.ndarray or stream.ndim != 1 or stream.dtype != "u1":
        raise BadValue("not a packed value: a table without its bytes")
    _check_messages(memoryview(stream))
    reader: Any = ipc.open_stream(arrow.py_buffer(stream))
    for field in reader.schema:
        for one in _list_fields(arrow, field):
            (one.name, getattr(one.type, "tz", ""))  # decodes them, which else fails whoever first looks
    batches = [*reader]
    rows = sum(batch.num_rows for batch in batches)
    if rows > _count_rows(len(stream)) or (kind == "batch" and len(batches) != 1):
        raise BadValue(f"not a packed value: {rows} rows in {len(batches)} batches of {len(stream)} bytes")
    table = batches[0] if kind == "batch" else arrow.Table.from_batches(batches, reader.schema)
    table.validate(full=True)
    return table


def _count_rows(size: int) -> int:
    """The most rows that so many bytes may hold: each takes a bit at least."""
    return max(8 * size, _MAX_BARE_ROWS)


def _check_messages(stream: memoryview) -> None:
    """Refuses, before Arrow reads it, a stream with extension types (registered ones run code) or compressed buffers
    (whose size once decompressed is the sender's word).
    """
    place, first = 0, True
    while place + 8 <= len(stream):
        size = struct.unpack_from("<i", stream, place + 4)[0]
        if bytes(stream[place : place + 4]) != _CONTINUATION or not 0 <= size <= len(stream) - place - 8:
            raise BadValue("not a packed value: an Arrow stream with a broken message")
        if size == 0:
            break
        message = bytes(stream[place + 8 : place + 8 + size])
        if first and _EXTENSION in message:
            raise BadValue("not a packed value: an Arrow stream with extension types")
        first = False
        place += 8 + size + _read_message(message)
    if place + 8 != len(stream):
        raise BadValue("not a packed value: an Arrow stream that does not end where it ends")


def _read_message(message: bytes) -> int:
    """Bytes of the body behind a message (a FlatBuffers table of version, kind, header, length of the body)."""
    root = struct.unpack_from("<I", message)[0]
    kind, header, length = (_find_field(message, root, number) for number in (1, 2, 3))
    size = struct.unpack_from("<q", message, length)[0] if length else 0
    if not kind or not header or not 0 <= size < 2**62:
        raise BadValue("not a packed value: an Arrow message without its header")
    batch = header + struct.unpack_from("<I", message, header)[0]
    if message[kind] == 2:  # a dictionary: the batch of its values is inside
        inner = _find_field(message, batch, 1)
        batch = inner + struct.unpack_from("<I", message, inner)[0]
    elif message[kind] not in (1, 3):
        raise BadValue("not a packed value: an Arrow message of an unknown kind")
    if message[kind] != 1 and _find_field(message, batch, 3):
        raise BadValue("not a packed value: an Arrow stream with compressed buffers")
    return int(size)


def _find_field(message: bytes, table: int, number: int) -> int:
    """Where a FlatBuffers table keeps a field; 0 where it has it not."""
    vtable = table - struct.unpack_from("<i", message, table)[0]
    if vtable < 0 or 6 + 2 * number > struct.unpack_from("<H", message, vtable)[0]:
        return 0
    offset: int = struct.unpack_from("<H", message, vtable + 4 + 2 * number)[0]
    return table + offset if offset else 0
