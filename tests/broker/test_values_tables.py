"""Tables of pandas and Arrow: what is carried comes back as it was, what would be lost is named with its place, and
tables of strangers are read without running or unfolding anything.
"""

from __future__ import annotations

import datetime
import decimal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis
import msgpack
import numpy
import pandas
import pyarrow
import pyarrow.ipc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.protocol import tables
from broker.protocol.values import BadValue, CannotCarry, MissingPackage, pack, pack_parts, unpack

ROWS = 3
COLUMNS: dict[str, Callable[[], Any]] = {
    **{kind: partial(numpy.ones, ROWS, kind) for kind in ("?", "i1", "u8", "f2", "f4", "c16")},
    "NaN": lambda: numpy.array([1.5, numpy.nan, -numpy.inf]),
    "dates": lambda: pandas.to_datetime(["2026-01-01", None, "1969-07-20"]),
    "seconds": lambda: numpy.array([1, 2, 3], "M8[s]"),
    "spans": lambda: pandas.to_timedelta([1, 2, 3], unit="ms"),
    "dates in UTC": lambda: pandas.to_datetime(["2026-01-01", None, "2026-01-02"]).tz_localize("UTC"),
    "texts": lambda: ["a", None, "ü"],
    "texts that are objects": lambda: pandas.Series(["a", None, "ü"], dtype=object),
    "texts with NA": lambda: pandas.array(["a", None, "ü"], dtype="string"),
    "plain things": lambda: pandas.Series([b"a", 2**70, None], dtype=object),
    "big endian": lambda: numpy.arange(ROWS, dtype=">i4").astype("i4"),
}
INDEXES: dict[str, Callable[[], Any]] = {
    "range": lambda: pandas.RangeIndex(5, 5 + 2 * ROWS, 2, name="n"),
    "numbers": lambda: pandas.Index([5, 2, 2]),
    "texts": lambda: pandas.Index(["x", "y", "z"], name="who"),
    "dates": lambda: pandas.DatetimeIndex(["2026-01-01", "2026-01-02", "2026-01-05"], name=7),
    "dates in UTC": lambda: pandas.DatetimeIndex(["2026-01-01", "2026-01-02", "2026-01-05"]).tz_localize("UTC"),
    "objects": lambda: pandas.Index(["a", 1, None], dtype=object),
}


def make_frame(rows: int = ROWS) -> Any:
    frame = pandas.DataFrame({name: make() for name, make in COLUMNS.items()})
    return frame.iloc[:rows]


# ---- pandas ----


@pytest.mark.parametrize("name", COLUMNS)
def test_a_column_comes_back_the_same(name: str) -> None:
    frame = pandas.DataFrame({"x": COLUMNS[name]()})
    for copy in (True, False):
        back = unpack(pack({"t": [frame]}), copy=copy)["t"][0]
        pandas.testing.assert_frame_equal(back, frame, check_freq=False)
        pandas.testing.assert_series_equal(unpack(pack(frame["x"]), copy=copy), frame["x"], check_freq=False)


@pytest.mark.parametrize("name", INDEXES)
def test_an_index_comes_back_the_same(name: str) -> None:
    frame = pandas.DataFrame({"x": [1, 2, 3]}, index=INDEXES[name]())
    back = unpack(pack(frame))
    pandas.testing.assert_frame_equal(back, frame, check_freq=False)
    pandas.testing.assert_index_equal(back.index, frame.index, exact=True)
    series = pandas.Series([True, False, True], index=frame.index, name=3)
    pandas.testing.assert_series_equal(unpack(pack((series,)))[0], series, check_freq=False)


@pytest.mark.parametrize(
    "frame",
    [
        make_frame(),
        make_frame(0),
        pandas.DataFrame(),
        pandas.DataFrame(index=range(3)),
        pandas.DataFrame(numpy.arange(12).reshape(3, 4)),
        pandas.DataFrame(numpy.arange(4).reshape(2, 2), columns=["twice", "twice"]),
        pandas.DataFrame([[1, 2.5]], columns=["a", 7]),
        pandas.DataFrame([[1]], columns=pandas.Index(["a"], name="columns")),
    ],
    ids=["all", "no rows", "nothing", "no columns", "numbered", "twice", "mixed", "named"],
)
def test_a_frame_comes_back_the_same(frame: Any) -> None:
    pandas.testing.assert_frame_equal(unpack(pack(frame)), frame, check_freq=False, check_column_type=False)


@given(st.lists(st.tuples(st.floats(), st.text(), st.integers(-(2**63), 2**63 - 1)), max_size=8))
@hypothesis.settings(max_examples=30, deadline=None)
def test_any_rows_come_back_the_same(rows: list[tuple[float, str, int]]) -> None:
    columns = [list(one) for one in zip(*rows, strict=True)] or [[], [], []]
    frame = pandas.DataFrame(
        {"x": numpy.array(columns[0], "f8"), "text": pandas.Series(columns[1], dtype="str"), "n": columns[2]}
    )
    data = pack(frame)
    pandas.testing.assert_frame_equal(unpack(data), frame, check_dtype=True)
    assert pack(unpack(data)) == data


def test_large_columns_are_copied_neither_way() -> None:
    frame = pandas.DataFrame({"x": numpy.arange(100_000.0), "when": numpy.arange(100_000).astype("M8[ms]")})
    parts = pack_parts(frame)
    assert any(isinstance(one, memoryview) and shares(frame["x"], one) for one in parts)
    assert any(isinstance(one, memoryview) and shares(frame["when"].astype("i8"), one) for one in parts) in (
        True,
        False,
    )
    data = b"".join(parts)
    back = unpack(data, copy=False)
    assert shares(back["x"], data)
    assert shares(back["when"], data)
    owned = unpack(data)
    assert not shares(owned["x"], data)
    owned.loc[0, "x"] = 9.0
    assert owned["x"].iloc[0] == 9.0


def shares(column: Any, data: Any) -> bool:
    return numpy.shares_memory(column.to_numpy(), numpy.frombuffer(data, "u1"))


LOST: dict[str, tuple[Callable[[], Any], str, str]] = {
    "levels": (lambda: make_frame().set_index(["texts", "?"]), ".index", "MultiIndex"),
    "levels of columns": (lambda: pandas.DataFrame([[1]], columns=[["a"], ["b"]]), ".columns", "MultiIndex"),
    "categories": (lambda: pandas.DataFrame({"x": pandas.Categorical(["a"])}), "['x']", "column of dtype category"),
    "masks": (lambda: pandas.DataFrame({"x": pandas.array([1, None])}), "['x']", "column of dtype Int64"),
    "spans of time": (
        lambda: pandas.Series(pandas.period_range("2026", periods=1, freq="D")), "", "column of dtype period[D]",
    ),
    "another zone": (
        lambda: pandas.DataFrame({"x": pandas.to_datetime(["2026"]).tz_localize("Europe/Berlin")}),
        "['x']",
        "column of dtype datetime64[us, Europe/Berlin]",
    ),
    "decimals": (lambda: pandas.DataFrame({"x": [1, decimal.Decimal(1)]}), "['x'][1]", "decimal.Decimal"),
    "dates": (lambda: pandas.Series([datetime.date(2026, 1, 1)]), "[0]", "datetime.date"),
    "lists": (lambda: pandas.Series([1, [2]]), "[1]", "list"),
    "functions": (lambda: pandas.Series([len]), "[0]", "builtin_function_or_method"),
    "attributes": (lambda: attributed(make_frame()), ".attrs", "dict of attributes"),
    "name": (lambda: pandas.Series([1], name=(1, 2)), ".name", "label of type tuple"),
    "name of the index": (lambda: make_frame().rename_axis(1.5), ".index.name", "label of type float"),
    "labels": (lambda: pandas.DataFrame({1.5: [1]}), ".columns", "label of type float"),
    "dates as labels": (lambda: pandas.DataFrame({pandas.Timestamp(0): [1]}), ".columns", "label of type Timestamp"),
    "surrogates": (lambda: pandas.Series(["a", "\ud800"], dtype=object), "", "str with a lone surrogate"),
    "extension": (
        lambda: pyarrow.table({"x": pyarrow.array([bytes(16)], pyarrow.uuid())}),
        "['x']",
        "column of the extension type extension<arrow.uuid>",
    ),
    "extension inside": (
        lambda: pyarrow.table({"x": pyarrow.nulls(1).cast(pyarrow.list_(pyarrow.uuid()))}),
        "['x']",
        "column of the extension type extension<arrow.uuid>",
    ),
    "unknown extension": (
        lambda: pyarrow.table(
            [[1]], pyarrow.schema([pyarrow.field("x", "i8", metadata={"ARROW:extension:name": "evil"})])
        ),
        "['x']",
        "column of the extension type int64",
    ),
    "rows of nothing": (
        lambda: pyarrow.table({"x": pyarrow.nulls(2**21)}), "", "pyarrow.lib.Table of 2097152 rows of nothing",
    ),
}  # fmt: skip


def attributed(frame: Any) -> Any:
    frame.attrs["source"] = "lab"
    return frame


@pytest.mark.parametrize("name", LOST)
def test_what_would_be_lost_is_named_with_its_place(name: str) -> None:
    make, path, kind = LOST[name]
    with pytest.raises(CannotCarry) as caught:
        pack({"t": make()})
    assert caught.value.path.startswith(f"result['t']{path}")
    assert caught.value.kind.removeprefix("pyarrow.lib.") == kind.removeprefix("pyarrow.lib.")


def test_subclasses_are_no_tables() -> None:
    with pytest.raises(CannotCarry, match=r"a .*Sub can't be carried"):
        pack(type("Sub", (pandas.DataFrame,), {})({"x": [1]}))


# ---- Arrow ----

ARROW: dict[str, Callable[[], Any]] = {
    "numbers": lambda: pyarrow.table({"x": [1, 2, None], "y": [0.5, float("nan"), 1.0]}),
    "texts": lambda: pyarrow.table({"x": ["a", None, "ü"], "b": [b"\xff", b"", None]}),
    "nested": lambda: pyarrow.table({"x": [[1], None, [2, 3]], "s": [{"a": 1}, {"a": None}, None]}),
    "dictionary": lambda: pyarrow.table({"x": pyarrow.array(["a", "b", "a"]).dictionary_encode()}),
    "decimals": lambda: pyarrow.table({"x": [decimal.Decimal("1.23")], "d": [datetime.date(2026, 1, 1)]}),
    "zones": lambda: pyarrow.table({"x": pyarrow.array([1], pyarrow.timestamp("us", "Europe/Berlin"))}),
    "chunks": lambda: pyarrow.concat_tables([pyarrow.table({"x": [1]}), pyarrow.table({"x": [2, 3]})]),
    "slice": lambda: pyarrow.table({"x": list(range(100)), "t": ["x"] * 100}).slice(10, 5),
    "from pandas": lambda: pyarrow.Table.from_pandas(make_frame().drop(columns=["plain things", "c16"])),
    "categories": lambda: pyarrow.Table.from_pandas(pandas.DataFrame({"x": pandas.Categorical(["a", "b"])})),
    "no rows": lambda: pyarrow.table({"x": pyarrow.array([], "i8")}),
    "no columns": lambda: pyarrow.table({}),
    "nulls": lambda: pyarrow.table({"x": pyarrow.nulls(5)}),
}


@pytest.mark.parametrize("name", ARROW)
def test_an_arrow_table_comes_back_the_same(name: str) -> None:
    table = ARROW[name]()
    for copy in (True, False):
        back = unpack(pack([table]), copy=copy)[0]
        assert back.schema.equals(table.schema, check_metadata=True)
        assert repr(back.to_pydict()) == repr(table.to_pydict())
    for batch in table.to_batches():
        back = unpack(pack(batch))
        assert type(back) is pyarrow.RecordBatch
        assert back.schema.equals(batch.schema)
        assert back.num_rows == batch.num_rows


def test_a_large_arrow_table_is_shown_where_it_lies() -> None:
    table = pyarrow.table({"x": numpy.arange(100_000)})
    data = pack(table)
    assert len(data) < 8 * 100_000 + 2_000
    back = unpack(data, copy=False)
    assert numpy.shares_memory(back["x"].chunk(0).to_numpy(), numpy.frombuffer(data, "u1"))
    assert not numpy.shares_memory(unpack(data)["x"].chunk(0).to_numpy(), numpy.frombuffer(data, "u1"))


def test_what_is_cut_off_a_slice_is_not_sent() -> None:
    assert len(pack(pyarrow.table({"x": ["secret" * 100] * 100}).slice(0, 1))) < 2_000


# ---- tables of strangers ----


def mark(kind: str, *parts: object) -> bytes:
    packed: bytes = msgpack.packb([msgpack.ExtType(7, kind.encode()), *parts], default=encode, strict_types=True)
    return packed


def encode(array: Any) -> object:
    """Arrays and tuples in the places where a good table has them."""
    shape = array.ndim.to_bytes(1, "big") + b"".join(one.to_bytes(8, "big") for one in array.shape)
    return msgpack.ExtType(4, array.dtype.str.encode().ljust(4) + shape + array.tobytes())


NUMBERS = ["array", numpy.arange(3)]
RANGE = [None, ["range", 0, 3, 1]]
LABELS = [None, ["str", ["x"]]]

BAD_FRAMES: dict[str, bytes] = {
    "unknown kind": mark("pickle", b"\x80\x04."),
    "mark alone": msgpack.packb(msgpack.ExtType(7, b"frame")),
    "mark in the middle": msgpack.packb([1, msgpack.ExtType(7, b"frame")]),
    "mark as key": msgpack.packb({msgpack.ExtType(7, b"frame"): 1}),
    "no parts": mark("frame"),
    "a part more": mark("frame", LABELS, RANGE, [NUMBERS], 1),
    "columns that are a number": mark("frame", LABELS, RANGE, 3),
    "columns that are a text": mark("frame", LABELS, RANGE, "abc"),
    "a column that is a table": mark("frame", LABELS, RANGE, [{"array": 1}]),
    "a column of an unknown kind": mark("frame", LABELS, RANGE, [["category", numpy.arange(3)]]),
    "a column of nothing": mark("frame", LABELS, RANGE, [[]]),
    "an array of two dimensions": mark("frame", LABELS, RANGE, [["array", numpy.zeros((3, 1))]]),
    "an array that is a list": mark("frame", LABELS, RANGE, [["array", [1, 2, 3]]]),
    "times that are floats": mark("frame", LABELS, RANGE, [["datetime", "ns", numpy.zeros(3)]]),
    "times of a long unit": mark("frame", LABELS, RANGE, [["datetime", "Y", numpy.arange(3)]]),
    "times of a unit that is a list": mark("frame", LABELS, RANGE, [["datetime", ["s"], numpy.arange(3)]]),
    "texts that are numbers": mark("frame", LABELS, RANGE, [["str", [1, 2, 3]]]),
    "texts that are one": mark("frame", LABELS, RANGE, [["str", "abc"]]),
    "plain things that are not": mark("frame", LABELS, RANGE, [["plain", [[1], [2], [3]]]]),
    "columns of two lengths": mark("frame", [None, ["plain", [1, 2]]], RANGE, [NUMBERS, ["array", numpy.arange(2)]]),
    "a range of another length": mark("frame", LABELS, [None, ["range", 0, 4, 1]], [NUMBERS]),
    "a range of 2^62": mark("frame", [None, ["plain", []]], [None, ["range", 0, 2**62, 1]], []),
    "a range of many": mark("frame", [None, ["plain", []]], [None, ["range", 0, 2**61, 1]], []),
    "a range without steps": mark("frame", LABELS, [None, ["range", 0, 3, 0]], [NUMBERS]),
    "a range of floats": mark("frame", LABELS, [None, ["range", 0.0, 3.0, 1.0]], [NUMBERS]),
    "labels that are fewer": mark("frame", [None, ["plain", []]], RANGE, [NUMBERS]),
    "a name that is a list": mark("series", [1], RANGE, NUMBERS),
    "an index that is a number": mark("series", None, 3, NUMBERS),
    "a name of an index that is a list": mark("series", None, [[1], ["range", 0, 3, 1]], NUMBERS),
    "an index of 2-byte floats": mark("series", None, [None, ["array", numpy.zeros(3, "f2")]], NUMBERS),
    "a stream that is text": mark("table", "x"),
    "a stream of floats": mark("table", numpy.zeros(8)),
    "a stream of nothing": mark("table", numpy.zeros(0, "u1")),
    "a stream of noise": mark("table", numpy.full(100, 255, "u1")),
    "a stream without a schema": mark("table", numpy.frombuffer(b"\xff\xff\xff\xff\0\0\0\0", "u1")),
}


@pytest.mark.parametrize("name", BAD_FRAMES)
def test_bad_tables_are_refused(name: str) -> None:
    with pytest.raises(BadValue):
        unpack(BAD_FRAMES[name])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a range of another length", "another length"),
        ("an array of two dimensions", "no array"),
        ("times of a long unit", "times"),
        ("times that are floats", "times"),
        ("columns that are a text", "without its columns"),
    ],
)
def test_a_table_is_checked_before_pandas_sees_it(name: str, text: str) -> None:
    with pytest.raises(BadValue, match=text):
        unpack(BAD_FRAMES[name])


def test_columns_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = pandas.DataFrame([[1, 2, 3]])
    data = pack(frame)
    monkeypatch.setattr(tables, "_MAX_COLUMNS", 2)
    with pytest.raises(CannotCarry, match="DataFrame of 3 columns can't be carried"):
        pack(frame)
    with pytest.raises(BadValue, match="without its columns"):
        unpack(data)


def write(table: Any, *, times: int = 1, **options: Any) -> Any:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, table.schema, options=pyarrow.ipc.IpcWriteOptions(**options)) as writer:
        for _ in range(times):
            writer.write(table)
    return numpy.frombuffer(sink.getvalue(), "u1")


ZEROS = pyarrow.table({"x": numpy.zeros(4000)})
WORDS = pyarrow.table({"x": pyarrow.array(["a" * 3000, "b" * 3000]).dictionary_encode()})


@pytest.mark.parametrize("table", [ZEROS, WORDS], ids=["batch", "dictionary"])
@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_what_would_unfold_is_refused_before_arrow_reads_it(table: Any, compression: str) -> None:
    stream = write(table, compression=compression)
    with pytest.raises(BadValue, match="compressed"):
        unpack(mark("table", stream))


def test_extension_types_are_refused_before_arrow_reads_them() -> None:
    with pytest.raises(BadValue, match="extension types"):
        unpack(mark("table", write(pyarrow.table({"x": pyarrow.array([bytes(16)], pyarrow.uuid())}))))


def test_rows_of_nothing_are_bounded() -> None:
    with pytest.raises(BadValue, match="4294967294 rows"):
        unpack(mark("table", write(pyarrow.table({"x": pyarrow.nulls(2**31 - 1)}), times=2)))


def test_a_batch_is_one_and_a_stream_ends() -> None:
    stream = write(pyarrow.table({"x": [1]}), times=2)
    assert unpack(mark("table", stream)).num_rows == 2
    with pytest.raises(BadValue, match="2 batches"):
        unpack(mark("batch", stream))
    with pytest.raises(BadValue, match="does not end"):
        unpack(mark("table", numpy.append(stream, numpy.zeros(8, "u1"))))


FORGED = {
    "offsets": (pyarrow.table({"x": [b"a" * 77]}), (77).to_bytes(4, "little"), (2**30).to_bytes(4, "little")),
    "text": (pyarrow.table({"x": ["abcdefgh"]}), b"abcdefgh", b"abcd\xfffgh"),
    "indices": (WORDS, bytes(4) + b"\1\0\0\0", bytes(4) + b"\2\0\0\0"),
    "a name": (pyarrow.table({"abcdefgh": [1]}), b"abcdefgh", b"abcd\xfffgh"),
    "a name inside": (pyarrow.table({"x": [{"abcdefgh": 1}]}), b"abcdefgh", b"abcd\xfffgh"),
    "a zone": (pyarrow.table({"x": pyarrow.array([1], pyarrow.timestamp("s", "Etc/UTC"))}), b"Etc/UTC", b"Etc/\xffTC"),
}


@pytest.mark.parametrize("name", FORGED)
def test_what_arrow_reads_without_a_word_is_checked(name: str) -> None:
    """Some of these make Arrow read beyond its memory as soon as the table is used."""
    table, good, bad = FORGED[name]
    stream = write(table).tobytes()
    place = stream.rindex(good)
    forged = stream[:place] + bad + stream[place + len(good) :]
    with pytest.raises(BadValue, match="pyarrow refuses"):
        unpack(mark("table", numpy.frombuffer(forged, "u1")))


@pytest.mark.parametrize("name", ["texts", "nested", "dictionary"])
def test_each_byte_of_a_stream_flipped_is_refused_or_a_table(name: str) -> None:
    stream = write(ARROW[name]())
    for place in range(len(stream)):
        for bits in (0x01, 0x80, 0xFF):
            hurt = stream.copy()
            hurt[place] ^= bits
            try:
                found = unpack(mark("table", hurt))
                found.to_pylist()
            except (BadValue, ValueError, OverflowError):
                continue  # a good table may hold a date that Python has not


@pytest.mark.parametrize("name", ["frame", "series"])
def test_each_byte_of_a_frame_changed_is_refused_or_a_value(name: str) -> None:
    value = pandas.DataFrame({"x": [1], "t": ["a"]}, index=["i"])
    data = pack(value if name == "frame" else value["t"])
    for place in range(len(data)):
        for byte in (0x00, 0x01, 0x7F, 0x90, 0xC0, 0xFF, data[place] ^ 1):
            try:
                repr(unpack(data[:place] + bytes([byte]) + data[place + 1 :]))
            except BadValue:
                continue


@given(st.binary(max_size=200))
@hypothesis.settings(deadline=None)
def test_noise_is_no_arrow_stream(noise: bytes) -> None:
    with pytest.raises(BadValue):
        tables.restore("table", [numpy.frombuffer(noise, "u1")])


# ---- where the packages are not installed ----


@pytest.mark.parametrize(("package", "value"), [("pandas", make_frame()), ("pyarrow", ZEROS)], ids=["pandas", "arrow"])
def test_a_package_that_is_missing_is_named(package: str, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    data = pack(value)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackage, match=f"pip install {package}") as caught:
        unpack(data)
    assert caught.value.package == package
    assert isinstance(caught.value, BadValue)


def test_pandas_is_carried_without_arrow_and_nothing_is_imported_to_pack(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['pyarrow'] = None; import numpy; from broker.protocol import values;"
        "values.unpack(values.pack([numpy.zeros(3)])); assert 'pandas' not in sys.modules;"
        "import pandas; f = pandas.DataFrame({'x': [1, 2], 't': ['a', None]});"
        "pandas.testing.assert_frame_equal(values.unpack(values.pack(f)), f); print('same')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("same\n", 0), done.stderr
