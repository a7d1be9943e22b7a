"""Hypothesis strategies for every canonical struct, built from its annotations: `strategies.of(Order)`.

Bounds of numbers, lengths and patterns are the annotations' own. Long lists are kept short: what they would show, a
row of a table shows sooner.
"""

from __future__ import annotations

import types
from functools import cache
from typing import Any

import msgspec.inspect
from hypothesis import strategies as st
from msgspec import inspect as mi

from chain.base.codec import Record

LONG = 3
MAX_TEXT = 12
INT64 = 2**63 - 1


@cache
def of(kind: Any) -> st.SearchStrategy[Any]:
    """Values of `kind`: a Record, `Signed[Record]`, a union of records, or an annotated plain type."""
    return _build(msgspec.inspect.type_info(kind))


def _build(info: mi.Type) -> st.SearchStrategy[Any]:
    if isinstance(info, mi.Metadata):
        return _build(info.type)
    if isinstance(info, mi.UnionType):
        return st.one_of([_build(one) for one in info.types])
    if isinstance(info, mi.StructType):
        return st.deferred(lambda: st.builds(_class_of(info), *[_build(field.type) for field in info.fields]))
    if isinstance(info, mi.VarTupleType):
        return st.lists(_build(info.item_type), min_size=info.min_length or 0, max_size=_cap(info)).map(tuple)
    if isinstance(info, mi.TupleType):
        return st.tuples(*[_build(one) for one in info.item_types])
    return _build_atom(info)


def _build_atom(info: mi.Type) -> st.SearchStrategy[Any]:
    if isinstance(info, mi.IntType):
        low = -INT64 - 1 if info.ge is None else int(info.ge)
        high = INT64 if info.le is None else int(info.le)
        return st.integers(low, high) | st.sampled_from([low, high])
    if isinstance(info, mi.StrType):
        return _build_text(info)
    if isinstance(info, mi.BytesType):
        return st.binary(min_size=info.min_length or 0, max_size=_cap(info, 64))
    if isinstance(info, mi.EnumType):
        return st.sampled_from(info.cls)
    if isinstance(info, mi.LiteralType):
        return st.sampled_from(info.values)
    if isinstance(info, mi.BoolType):
        return st.booleans()
    if isinstance(info, mi.NoneType):
        return st.none()
    raise TypeError(f"no canonical object holds {info}")


def _build_text(info: mi.StrType) -> st.SearchStrategy[str]:
    if info.pattern is not None:
        return st.from_regex(info.pattern, fullmatch=True).filter(
            lambda text: len(text) <= (info.max_length or len(text))
        )
    return st.text(min_size=info.min_length or 0, max_size=_cap(info, MAX_TEXT))


def _cap(info: Any, most: int = LONG) -> int:
    return max(info.min_length or 0, min(most, most if info.max_length is None else info.max_length))


def _class_of(info: mi.StructType) -> Any:
    return info.cls


def list_types(kind: Any) -> list[mi.Type]:
    """Every type that can stand somewhere inside `kind`, itself included."""
    found: list[mi.Type] = []
    _collect(msgspec.inspect.type_info(kind), found)
    return found


def _collect(info: mi.Type, found: list[mi.Type]) -> None:
    found.append(info)
    if isinstance(info, mi.Metadata):
        _collect(info.type, found)
    elif isinstance(info, mi.UnionType):
        for one in info.types:
            _collect(one, found)
    elif isinstance(info, mi.StructType):
        for field in info.fields:
            _collect(field.type, found)
    elif isinstance(info, mi.VarTupleType):
        _collect(info.item_type, found)
    elif isinstance(info, mi.TupleType):
        for one in info.item_types:
            _collect(one, found)


def list_records(*modules: types.ModuleType) -> list[type[Record]]:
    """The canonical structs that these modules define."""
    return [
        one
        for module in modules
        for one in vars(module).values()
        if isinstance(one, type) and issubclass(one, Record) and one.__module__ == module.__name__
    ]
