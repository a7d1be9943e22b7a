"""NumPy arrays and scalars as bytes: dtype, shape, and elements in little endian and C order.

Imports nothing of the project but its neighbours, because a copy runs inside the sandbox. NumPy is imported when an
array is there and not before: most values hold none, and it costs 100 ms.
"""

from __future__ import annotations

import importlib
import math
import struct
import sys

from broker.protocol.containers import ALIGN_FROM
from broker.protocol.refusals import BadValue

TYPE_CHECKING = False  # typing costs 5 ms at each start inside the sandbox
if TYPE_CHECKING:
    from typing import Any, Final

__all__ = ["has_form", "is_array", "is_numpy", "pack_scalar", "pack_shape", "read_inline",
           "read_scalar", "read_shape", "read_view", "view_bytes"]  # fmt: skip

_DTYPES: Final = frozenset(
    ["|b1", "|i1", "<i2", "<i4", "<i8", "|u1", "<u2", "<u4", "<u8", "<f2", "<f4", "<f8", "<c8", "<c16"]
)
_MAX_DIMENSIONS: Final = 32


def is_numpy(value: object) -> bool:
    """Whether it is exactly an array or a scalar of NumPy; where NumPy was never imported there can be none."""
    numpy = sys.modules.get("numpy")
    if numpy is None or type(value).__module__ != "numpy":
        return False
    return is_array(value) or isinstance(value, numpy.generic)


def is_array(value: object) -> bool:
    """Whether it is an array, be it in memory or mapped from a file."""
    numpy = sys.modules["numpy"]
    return type(value) is numpy.ndarray or type(value) is numpy.memmap


def has_form(dtype: Any) -> bool:
    """Whether elements of this type have a form as bytes."""
    return dtype.newbyteorder("<").str in _DTYPES


def view_bytes(array: Any) -> memoryview:
    """The elements in little endian and C order; nothing is copied where they lie so already."""
    plain = sys.modules["numpy"].asarray(array).astype(array.dtype.newbyteorder("<"), order="C", copy=False)
    return memoryview(plain.reshape(-1).view("u1"))


def pack_shape(array: Any) -> bytes:
    """dtype (4 bytes of text), number of dimensions, each as u64."""
    return bytes(_pack_dtype(array.dtype) + struct.pack(f">B{array.ndim}Q", array.ndim, *array.shape))


def pack_scalar(value: Any) -> bytes:
    """dtype and bytes of a scalar."""
    return bytes(_pack_dtype(value.dtype) + value.astype(value.dtype.newbyteorder("<")).tobytes())


def _pack_dtype(dtype: Any) -> Any:
    return dtype.newbyteorder("<").str.encode().ljust(4)


def _read_dtype(data: bytes) -> Any:
    name = data[:4].rstrip(b" ").decode("ascii", "replace")
    if name not in _DTYPES:
        raise BadValue(f"not a packed value: dtype {name!r}")
    return importlib.import_module("numpy").dtype(name)


def read_shape(data: bytes) -> tuple[Any, tuple[int, ...], int, int]:
    """(dtype, shape, number of bytes of the elements, number of bytes read)."""
    dtype = _read_dtype(data)
    dimensions = data[4] if len(data) > 4 else _MAX_DIMENSIONS + 1
    end = 5 + 8 * dimensions
    if dimensions > _MAX_DIMENSIONS or len(data) < end:
        raise BadValue("not a packed value: an array without its shape")
    shape = struct.unpack_from(f">{dimensions}Q", data, 5)
    return dtype, shape, math.prod(shape) * dtype.itemsize, end


def read_inline(data: bytes) -> object:
    """An array whose elements follow its shape."""
    dtype, shape, size, start = read_shape(data)
    if size != len(data) - start or size >= ALIGN_FROM:
        raise BadValue(f"not a packed value: an array of shape {shape} with {len(data) - start} bytes beside it")
    numpy = importlib.import_module("numpy")
    try:
        return numpy.frombuffer(data, dtype, offset=start).reshape(shape).copy() if size else numpy.empty(shape, dtype)
    except ValueError as error:
        raise BadValue(f"not a packed value: an array of shape {shape}: {error}") from error


def read_view(dtype: Any, shape: tuple[int, ...], elements: memoryview, *, copy: bool) -> object:
    """An array over bytes that lie elsewhere: a view that can't be written to, or a copy that can."""
    array = importlib.import_module("numpy").frombuffer(elements, dtype).reshape(shape)
    if copy:
        return array.copy()
    array.flags.writeable = False
    return array


def read_scalar(data: bytes) -> object:
    """A scalar of NumPy."""
    dtype = _read_dtype(data)
    if len(data) != 4 + dtype.itemsize:
        raise BadValue("not a packed value: a scalar of the wrong length")
    return importlib.import_module("numpy").frombuffer(data, dtype, offset=4)[0]
