"""Job values of all kinds for Hypothesis, and what it means that two are the same."""

from __future__ import annotations

import math
from typing import Any

import numpy
from hypothesis import strategies as st

DTYPES = ["bool", *(f"{one}int{n}" for one in ("", "u") for n in (8, 16, 32, 64)), "float16", "float32", "float64"]
DTYPES += ["complex64", "complex128"]


@st.composite
def arrays(draw: st.DrawFn) -> Any:
    """Arrays of every dtype and many layouts; the bytes are arbitrary, so NaNs of all kinds are among them."""
    dtype = numpy.dtype(draw(st.sampled_from(DTYPES)))
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=4)))
    size = math.prod(shape) * dtype.itemsize
    raw = draw(st.binary(min_size=size, max_size=size))
    raw = bytes(byte & 1 for byte in raw) if dtype.kind == "b" else raw
    array = numpy.frombuffer(raw, dtype).reshape(shape)
    return array.T if draw(st.booleans()) else array


@st.composite
def large_arrays(draw: st.DrawFn) -> Any:
    """Arrays that lie outside the body, in every dtype and layout that NumPy has."""
    dtype = numpy.dtype(draw(st.sampled_from(DTYPES)))
    count = draw(st.integers(2 * 65_536 // dtype.itemsize, 2 * 65_536 // dtype.itemsize + 200)) & ~1
    raw = numpy.random.default_rng(draw(st.integers(0, 99))).bytes(count * dtype.itemsize)
    array = numpy.frombuffer(raw, dtype) if dtype.kind != "b" else numpy.frombuffer(raw, "u1") > 127
    layout = draw(st.sampled_from(["plain", "rows", "fortran", "every second", "backwards", "big endian", "deep"]))
    return {
        "plain": array,
        "rows": array.reshape(2, -1),
        "fortran": numpy.asfortranarray(array.reshape(2, -1)),
        "every second": array[::2],
        "backwards": array[::-1],
        "big endian": array.astype(dtype.newbyteorder(">")),
        "deep": array.reshape((1,) * 30 + (2, -1)),
    }[layout]


scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-(2**200), 2**200), st.floats(), st.complex_numbers(),
    st.text(), st.binary(),
)  # fmt: skip
keys = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False), st.text(), st.binary()
)
carried = st.recursive(
    st.one_of(scalars, arrays(), arrays().filter(lambda one: one.size).map(lambda one: one.flat[0])),
    lambda inner: st.one_of(st.lists(inner), st.lists(inner).map(tuple), st.dictionaries(keys, inner)),
    max_leaves=20,
)


large = st.recursive(
    st.one_of(st.integers(), st.text(), arrays(), large_arrays()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.lists(inner, max_size=4).map(tuple), st.dictionaries(keys, inner, max_size=3)
    ),
    max_leaves=6,
)
"""Values among which large arrays are."""


def same(left: Any, right: Any) -> bool:
    """Equal in type and to the last bit, NaNs included; but the order of bytes in memory is nobody's business."""
    if type(left) is not type(right):
        return False
    if isinstance(left, numpy.ndarray | numpy.generic):
        kinds = [one.dtype.newbyteorder("<") for one in (left, right)]
        plain = [one.astype(kind).tobytes() for one, kind in zip((left, right), kinds, strict=True)]
        return bool(kinds[0] == kinds[1] and left.shape == right.shape and plain[0] == plain[1])
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return same([*left], [*right]) and all(same(left[key], right[key]) for key in left)
    return repr(left) == repr(right)
