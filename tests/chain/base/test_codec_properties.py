"""R18 as properties: a round trip for every struct of every type's own values, and no bytes that break the decoder."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import inspect

from broker.protocol import api, jobs, messages
from chain.base.codec import Record, decode, encode
from chain.base.errors import Refused
from chain.base.hashing import Tag, compute_id
from chain.base.keys import Signed
from chain.consensus import messages as consensus
from chain.ledger import blocks, transactions
from chain.ledger.terms import agreement, outcome, work
from chain.rpc import proofs
from tests.support import samples, strategies, wire

RECORDS = strategies.list_records(
    agreement, outcome, work, transactions, blocks, consensus, proofs, api, jobs, messages
)  # fmt: skip
SIGNED = {type(sample.body) for sample in samples.SIGNED}
KINDS: list[Any] = [Signed[one] if one in SIGNED else one for one in RECORDS]  # type: ignore[valid-type]  # made here


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_value_survives_a_round_trip_in_the_one_form(kind: Any) -> None:
    @given(strategies.of(kind))
    def check(value: Any) -> None:
        data = encode(value)
        assert decode(data, kind) == value
        assert encode(decode(data, kind)) == data
        assert wire.write(wire.read(data)) == data

    check()


@pytest.mark.parametrize("kind", RECORDS, ids=str)
def test_no_field_holds_what_has_more_than_one_form(kind: type[Record]) -> None:
    """No float, map, set, date, list or Any in anything signed; every number has both bounds."""
    allowed = (
        inspect.Metadata, inspect.StructType, inspect.UnionType, inspect.VarTupleType, inspect.IntType,
        inspect.StrType, inspect.BytesType, inspect.BoolType, inspect.NoneType, inspect.EnumType,
    )  # fmt: skip
    for info in strategies.list_types(kind):
        assert isinstance(info, allowed), info
        if isinstance(info, inspect.IntType):
            assert info.ge is not None and info.ge >= 0, info
            assert info.le is not None and info.le < 2**63, info
        if isinstance(info, inspect.StrType | inspect.VarTupleType):
            assert info.max_length is not None, info
        if isinstance(info, inspect.StructType):
            assert info.array_like and info.forbid_unknown_fields and info.tag, info


def test_two_structs_never_share_a_type_tag() -> None:
    tags = [inspect.type_info(one).tag for one in RECORDS]  # type: ignore[attr-defined]  # all are structs
    assert sorted(map(str, tags)) == sorted({str(one) for one in tags})


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_refused_or_canonical(data: bytes) -> None:
    check_total(data, Any)


@given(st.data())
def test_mutilated_objects_are_refused_or_canonical(data: st.DataObject) -> None:
    """Bytes cut out, put in, doubled or changed at a few places of a real object."""
    _, kind, value = data.draw(st.sampled_from(samples.EVERYTHING))
    raw = bytearray(encode(value))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(raw)))
        end = data.draw(st.integers(start, min(len(raw), start + 8)))
        raw[start:end] = data.draw(st.binary(max_size=8))
    check_total(bytes(raw), kind)
    check_total(bytes(raw), Any)


def check_total(data: bytes, kind: Any) -> None:
    """Decoding ends in a value in its one form, or in `Refused` with a rule of the codec; in nothing else."""
    try:
        value = decode(data, kind)
    except Refused as error:
        assert error.rule.startswith("codec.")
        return
    assert encode(value) == data


@given(strategies.of(agreement.Bid), strategies.of(agreement.Bid))
def test_two_values_have_two_ids(one: agreement.Bid, other: agreement.Bid) -> None:
    same = compute_id(Tag.BID, samples.CHAIN, one) == compute_id(Tag.BID, samples.CHAIN, other)
    assert same == (one == other)
