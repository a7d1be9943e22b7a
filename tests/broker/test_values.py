"""Job values: what is carried comes back as it was, what is not is named with its place, and bytes from strangers are
bounded and inert.
"""

from __future__ import annotations

import ast
import collections
import datetime
import decimal
import enum
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import hypothesis
import msgpack
import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.protocol import values
from broker.protocol.values import BadValue, CannotCarry, pack, split, unpack
from tests.broker.job_values import carried, same


@given(carried)
def test_what_is_packed_comes_back_the_same(value: object) -> None:
    data = pack(value)
    assert same(unpack(data), value)
    assert pack(unpack(data)) == data


def test_arrays_come_back_new_and_writable() -> None:
    array = unpack(pack(numpy.arange(3)))
    array[0] = 9
    assert array.tolist() == [9, 1, 2]


def test_other_layouts_are_carried_by_value() -> None:
    rows: list[Any] = [numpy.arange(6, dtype=">i4")[::-2], numpy.asfortranarray(numpy.ones((2, 3))), numpy.array(5.0)]
    for array in rows:
        back = unpack(pack(array))
        assert back.tolist() == array.tolist()
        assert back.shape == array.shape
        assert back.dtype.newbyteorder("=") == array.dtype.newbyteorder("=")


# ---- what can't be carried ----


class Colour(enum.IntEnum):
    RED = 1


class Point(NamedTuple):
    x: int


class Text(str):
    __slots__ = ()


class Loss:
    pass


def deep(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels - 1):
        value = [value]
    return value


loop: list[Any] = []
loop.append(loop)

REFUSED: dict[str, tuple[Any, str, str]] = {
    "set": ({"model": [1, 2, {3}]}, "result['model'][2]", "set"),
    "function": ([len], "result[0]", "builtin_function_or_method"),
    "class": ((1, Loss()), "result[1]", f"{__name__}.Loss"),
    "enum": ({3: Colour.RED}, "result[3]", f"{__name__}.Colour"),
    "named tuple": (Point(1), "result", f"{__name__}.Point"),
    "text subclass": ([Text("x")], "result[0]", f"{__name__}.Text"),
    "ordered dict": (collections.OrderedDict(a=1), "result", "collections.OrderedDict"),
    "bytearray": ([bytearray(b"x")], "result[0]", "bytearray"),
    "date": ({b"d": datetime.date(2026, 1, 1)}, "result[b'd']", "datetime.date"),
    "decimal": ([decimal.Decimal(1)], "result[0]", "decimal.Decimal"),
    "objects": ([numpy.array([object()])], "result[0]", "numpy.ndarray of dtype object"),
    "texts": ([numpy.array(["a"])], "result[0]", "numpy.ndarray of dtype <U1"),
    "records": (numpy.zeros(2, "i4,f4"), "result", "numpy.ndarray of dtype [('f0', '<i4'), ('f1', '<f4')]"),
    "datetime64": (numpy.datetime64("2026"), "result", "numpy.datetime64 of dtype datetime64[Y]"),
    "masked": (numpy.ma.zeros(3), "result", "numpy.ma.MaskedArray"),
    "tuple as key": ({"a": {(1, 2): 3}}, "result['a']", "dict with a key of type tuple"),
    "large key": ({2**64: 1}, "result", "dict with a whole number beyond 64 bits as key"),
    "surrogate": (["\ud800"], "result[0]", "str with a lone surrogate"),
    "surrogate as key": ({"\ud800": 1}, "a key of result", "str with a lone surrogate"),
    "giant number": ([1 << (1 << 17)], "result[0]", "int"),
    "loop": (loop, "result" + "[0]" * 64, "list"),
    "too deep": (deep(65), "result" + "[0]" * 64, "list"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_form_is_named_with_its_place(name: str) -> None:
    value, path, kind = REFUSED[name]
    with pytest.raises(CannotCarry) as caught:
        pack(value)
    assert (caught.value.path, caught.value.kind.split(".", 1)[-1]) == (path, kind.split(".", 1)[-1])
    assert str(caught.value).startswith((f"{path}: a ", f"{path}: an "))
    assert "can't be carried; " in str(caught.value)
    assert "return" not in str(caught.value)  # it may be an argument


def test_advice_for_tensors() -> None:
    tensor = type("Tensor", (), {"__module__": "torch"})()
    with pytest.raises(CannotCarry, match=r"a torch.Tensor can't be carried; use tensor.detach"):
        pack({"w": tensor}, name="inputs")


def test_depth_at_its_limit_is_carried() -> None:
    assert unpack(pack(deep(64))) == deep(64)


# ---- bytes of strangers ----

TUPLE = msgpack.ExtType(3, b"")


def packed(value: object) -> bytes:
    return bytes(msgpack.packb(value, strict_types=True))


BAD = {
    "nothing": b"",
    "cut short": b"\x92\x01",
    "more behind": b"\x01\x01",
    "unused code": b"\xc1",
    "4 G items": b"\xdd\xff\xff\xff\xff",
    "4 G entries": b"\xdf\xff\xff\xff\xff",
    "4 G text": b"\xdb\xff\xff\xff\xff",
    "4 G extension": b"\xc9\xff\xff\xff\xff\x04",
    "no UTF-8": b"\xa1\xff",
    "key twice": b"\x82\x01\x01\x01\x02",
    "keys that are equal": b"\x82\x01\x01\xc3\x02",
    "list as key": b"\x81\x90\x01",
    "array as key": packed({msgpack.ExtType(4, b"|u1 \1" + (1).to_bytes(8, "big") + b"x"): 1}),
    "unknown extension": packed(msgpack.ExtType(9, b"x")),
    "timestamp": b"\xd6\xff" + bytes(4),
    "empty number": packed(msgpack.ExtType(1, b"")),
    "giant number": packed(msgpack.ExtType(1, b"\1" * 9000)),
    "short complex": packed(msgpack.ExtType(2, bytes(15))),
    "mark alone": packed(TUPLE),
    "mark in the middle": packed([1, TUPLE]),
    "two marks": packed([TUPLE, TUPLE]),
    "mark as value": packed({1: TUPLE}),
    "mark with bytes": packed([msgpack.ExtType(3, b"x")]),
    "objects": packed(msgpack.ExtType(4, b"|O  \1" + (1).to_bytes(8, "big") + bytes(8))),
    "texts": packed(msgpack.ExtType(4, b"<U1 \1" + (1).to_bytes(8, "big") + b"\xff" * 4)),
    "no shape": packed(msgpack.ExtType(4, b"<f8 ")),
    "half a shape": packed(msgpack.ExtType(4, b"<f8 \2" + bytes(8))),
    "many dimensions": packed(msgpack.ExtType(4, b"|u1 \x40" + (1).to_bytes(8, "big") * 64 + b"x")),
    "array too short": packed(msgpack.ExtType(4, b"<f8 \1" + (2).to_bytes(8, "big") + bytes(8))),
    "array too long": packed(msgpack.ExtType(4, b"<f8 \1" + (0).to_bytes(8, "big") + bytes(8))),
    "shape that overflows": packed(msgpack.ExtType(4, b"<f8 \2" + (2**63).to_bytes(8, "big") * 2)),
    "empty but huge": packed(msgpack.ExtType(4, b"<f8 \3" + (2**62).to_bytes(8, "big") * 2 + bytes(8))),
    "scalar of the wrong size": packed(msgpack.ExtType(5, b"<f8 " + bytes(7))),
    "too deep": b"\x91" * 65 + b"\x01",
    "far too deep": b"\x91" * 100_000 + b"\x01",
    "too many lists": b"\xdd" + (2**20 + 1).to_bytes(4, "big") + b"\x90" * (2**20 + 1),
    "pickle": b"\x80\x04\x8c\x08builtins\x8c\x04exec\x93.",
}


@pytest.mark.parametrize("name", BAD)
def test_bad_bytes_are_refused(name: str) -> None:
    with pytest.raises(BadValue):
        unpack(BAD[name])


def test_size_is_checked_before_anything_else() -> None:
    with pytest.raises(BadValue, match="3 bytes where at most 2"):
        unpack(b"\x92\x01\x02", max_bytes=2)
    with pytest.raises(BadValue, match="deeper than 1"):
        unpack(pack([[1]]), max_depth=1)


@given(st.binary(max_size=300))
def test_noise_is_a_value_or_refused(data: bytes) -> None:
    for read in (unpack, split):
        try:
            read(data)
        except BadValue:
            continue


@given(carried, st.integers(0), st.integers(0, 255))
@hypothesis.settings(max_examples=300)
def test_one_byte_changed_is_a_value_or_refused(value: object, place: int, byte: int) -> None:
    data = bytearray(pack(value))
    data[place % len(data)] = byte
    try:
        pack(unpack(bytes(data)))
    except (BadValue, CannotCarry):
        pass


# ---- what this module promises of itself ----


NEIGHBOURS = ("arrays", "containers", "refusals", "tables", "values")


@pytest.mark.parametrize("name", [*NEIGHBOURS, "reporting"])
def test_it_imports_nothing_of_the_project_but_its_neighbours(name: str) -> None:
    """Copies of these files run inside the sandbox, where nothing else of the project is."""
    tree = ast.parse(Path(values.__file__).with_name(f"{name}.py").read_text())
    sources = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    names = {one.name for node in ast.walk(tree) if isinstance(node, ast.Import) for one in node.names}
    allowed = {"broker.protocol", *(f"broker.protocol.{one}" for one in NEIGHBOURS)}
    assert sources <= {"__future__", "typing", "collections.abc", "mmap"} | allowed
    assert names <= {"importlib", "json", "math", "msgpack", "os", "struct", "sys"}


def test_starting_it_loads_no_numpy_no_tables_and_no_typing() -> None:
    """Each segment's start would pay for them."""
    program = (
        "import sys; from broker.protocol import reporting, values; values.unpack(values.pack([1, {'a': (2,)}]));"
        "print({'numpy', 'pandas', 'pyarrow', 'typing', 'json', 're', 'pickle'} & set(sys.modules))"
    )
    places = [str(Path(str(one.__file__)).parents[up]) for one, up in ((values, 2), (msgpack, 1))]
    where = f"import sys; sys.path += {places!r};"
    done = subprocess.run([sys.executable, "-S", "-c", where + program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
