"""R18: one form per value. Every other spelling, every other type and every cut is refused by name."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
from msgspec import inspect

from chain.base import codec
from chain.base.codec import BadEncoding, check_bounds, decode, encode
from chain.base.errors import Refused
from chain.base.hashing import Tag
from chain.base.keys import Signed
from chain.ledger.transactions import Transaction
from tests.support import samples, strategies, wire

ROWS = [pytest.param(kind, value, id=name) for name, kind, value in samples.EVERYTHING]
NULLABLE = {
    ("order", (1, 3)),
    ("award", (1, 10)),
    ("lease", (10,)),
    ("transaction open", (1, 5, 1, 1, 3)),
    ("transaction open", (1, 5, 2, 1, 10)),
    ("announcement", (1, 2, 1, 3)),
    ("Submission", (2, 1, 3)),
    ("Enquiry", (1, 3)),
    ("LeaseProof", (4, 2)),
    ("Events", (2, 3, 2, 1, 10)),
}
"""Where a sample holds something that may be nil: the order's watcher, the award's runner-up, the witness of
an absence.
"""


def find_rule(data: bytes, kind: Any, **options: int) -> str | None:
    """The rule under which bytes are refused, or None where they are taken."""
    try:
        decode(data, kind, **options)
    except Refused as error:
        return error.rule
    return None


@pytest.mark.parametrize(("kind", "value"), ROWS)
def test_a_second_codec_writes_the_same_bytes(kind: Any, value: Any) -> None:
    data = encode(value)
    assert wire.write(wire.read(data)) == data
    assert decode(data, kind) == value


@pytest.mark.parametrize(("kind", "value"), ROWS)
def test_every_longer_spelling_is_refused(kind: Any, value: Any) -> None:
    taken = [where for where, data in wire.respell(wire.read(encode(value))) if find_rule(data, kind) is None]
    assert taken == []


@pytest.mark.parametrize(("kind", "value"), ROWS)
def test_a_longer_spelling_is_refused_as_not_canonical(kind: Any, value: Any) -> None:
    rules = {find_rule(data, kind) for _, data in wire.respell(wire.read(encode(value)))}
    assert rules == {"codec.canonical"}


@pytest.mark.parametrize(("kind", "value"), ROWS)
def test_every_cut_is_refused(kind: Any, value: Any) -> None:
    data = encode(value)
    assert {find_rule(data[:size], kind) for size in range(len(data))} == {"codec.form"}


@pytest.mark.parametrize(("kind", "value"), ROWS)
@pytest.mark.parametrize("tail", [b"\x00", b"\xc0", b"\x90", bytes(100)], ids=bytes.hex)
def test_trailing_bytes_are_refused(kind: Any, value: Any, tail: bytes) -> None:
    assert find_rule(encode(value) + tail, kind) == "codec.trailing"


@pytest.mark.parametrize(("kind", "value"), ROWS)
def test_a_missing_or_an_extra_field_is_refused_at_every_level(kind: Any, value: Any) -> None:
    tree = wire.read(encode(value))
    tags = [one.tag for one in strategies.list_types(kind) if isinstance(one, inspect.StructType)]
    for path, node in wire.walk(tree):
        if isinstance(node, list) and node and node[0] in tags:
            assert find_rule(wire.write(wire.replace(tree, path, node[:-1])), kind) is not None, path
            assert find_rule(wire.write(wire.replace(tree, path, [*node, None])), kind) == "codec.form", path
            assert find_rule(wire.write(wire.replace(tree, path, [*node, 0])), kind) == "codec.form", path
            assert find_rule(wire.write(wire.replace(tree, path, ["other", *node[1:]])), kind) == "codec.form", path


@pytest.mark.parametrize(("kind", "value"), ROWS)
@pytest.mark.parametrize("name", wire.FOREIGN)
def test_floats_maps_and_extensions_are_refused_everywhere(kind: Any, value: Any, name: str) -> None:
    tree = wire.read(encode(value))
    rules = {find_rule(wire.write(wire.replace(tree, path, wire.FOREIGN[name])), kind) for path, _ in wire.walk(tree)}
    assert rules == {"codec.float" if name.startswith("float") else "codec.form"}


ATOMS: list[Any] = [None, True, False, -1, 0, 2**63, 2**64 - 1, "1", "", b"1", b"", [], [1]]


@pytest.mark.parametrize("row", samples.EVERYTHING, ids=[row[0] for row in samples.EVERYTHING])
def test_a_value_of_another_type_is_refused_in_every_field(row: tuple[str, Any, Any]) -> None:
    """Bool as int, nil, text as bytes, numbers outside their range …: taken only where the schema says so."""
    name, kind, value = row
    tree = wire.read(encode(value))
    taken = set()
    for path, node in wire.walk(tree):
        for atom in ATOMS:
            if type(atom) is not type(node) and find_rule(wire.write(wire.replace(tree, path, atom)), kind) is None:
                assert atom is None, (path, atom)
                taken.add((name, path))
    assert taken == {one for one in NULLABLE if one[0] == name}


NUMBERS = [-1, -(2**63), 2**63, 2**64 - 1]


@pytest.mark.parametrize(("kind", "value"), ROWS)
@pytest.mark.parametrize("number", NUMBERS)
def test_numbers_outside_0_to_2_63_are_refused_in_every_field(kind: Any, value: Any, number: int) -> None:
    tree = wire.read(encode(value))
    for path, node in wire.walk(tree):
        if type(node) is int:
            assert find_rule(wire.write(wire.replace(tree, path, number)), kind) == "codec.form", path


@pytest.mark.parametrize(("kind", "value"), ROWS)
@pytest.mark.parametrize("size", [0, 1, 31, 33, 63, 65])
def test_bytes_of_another_length_are_refused(kind: Any, value: Any, size: int) -> None:
    """Keys, digests and signatures have one length; salts, logs and blobs are the only others."""
    tree = wire.read(encode(value))
    for path, node in wire.walk(tree):
        if isinstance(node, bytes) and len(node) in (32, 64):
            assert find_rule(wire.write(wire.replace(tree, path, bytes(size))), kind) == "codec.form", path


def nest(depth: int, inner: bytes = b"\x90") -> bytes:
    """`depth` arrays within each other, the innermost being `inner`."""
    return b"\x91" * (depth - 1) + inner


BOUNDS = [
    ("depth 16 is the most", nest(16), None),
    ("depth 17", nest(17), "codec.depth"),
    ("depth 17 around an atom", nest(17, b"\x91\x01"), "codec.depth"),
    ("depth 100,000", nest(100_000), "codec.depth"),
    ("65,536 elements are the most", b"\xdd\x00\x01\x00\x00" + b"\x00" * 65_536, None),
    ("65,537 elements", b"\xdd\x00\x01\x00\x01" + b"\x00" * 65_537, "codec.items"),
    ("65,537 elements in two arrays", b"\x92" + 2 * (b"\xdc\x80\x00" + b"\x00" * 32_768), "codec.items"),
    ("an array of 4 Gi elements", b"\xdd\xff\xff\xff\xff", "codec.items"),
    ("an array of 65,535 elements that do not come", b"\xdc\xff\xff", "codec.form"),
    ("bytes of 4 GiB", b"\xc6\xff\xff\xff\xff", "codec.form"),
    ("text of 4 GiB", b"\xdb\xff\xff\xff\xff", "codec.form"),
    ("bytes one longer than they are", b"\xc4\x03ab", "codec.form"),
    ("a number that is cut", b"\xcf\x00\x00\x00", "codec.form"),
    ("a length that is cut", b"\xc5\x00", "codec.form"),
    ("nothing", b"", "codec.form"),
    ("a reserved byte", b"\xc1", "codec.form"),
    ("1 MB of empty lists", b"\xdd\x00\x0f\x42\x40" + b"\x90" * 1_000_000, "codec.items"),
    ("two values", b"\x00\x00", "codec.trailing"),
]


@pytest.mark.parametrize(("data", "rule"), [row[1:] for row in BOUNDS], ids=[row[0] for row in BOUNDS])
def test_bounds_are_walked_before_anything_is_decoded(data: bytes, rule: str | None) -> None:
    """threats.md A3 to A5. `find_rule` sees the whole decoder, `check_bounds` alone gives the same answer."""
    assert find_rule(data, Any, max_bytes=2 << 20) == rule
    if rule is None:
        check_bounds(data)
    else:
        with pytest.raises(BadEncoding) as refused:
            check_bounds(data)
        assert refused.value.rule == rule


@pytest.mark.parametrize("data", [row[1] for row in BOUNDS if row[2]], ids=[row[0] for row in BOUNDS if row[2]])
def test_refused_bytes_cost_no_memory(data: bytes) -> None:
    tracemalloc.start()
    try:
        find_rule(data, Any, max_bytes=2 << 20)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 200_000


def test_an_object_of_exactly_the_most_bytes_is_taken() -> None:
    data = encode(b"x" * (codec.MAX_BYTES - 5))
    assert len(data) == codec.MAX_BYTES
    assert find_rule(data, bytes) is None
    assert find_rule(data, bytes, max_bytes=len(data) - 1) == "codec.size"
    assert find_rule(encode(b"x" * (codec.MAX_BYTES - 4)), bytes) == "codec.size"


def test_size_is_looked_at_before_form() -> None:
    assert find_rule(b"\xc1" * 11, Any, max_bytes=10) == "codec.size"


@pytest.mark.parametrize("text", [b"\xa1\xff", b"\xa2\xc0\x80", b"\xa3\xed\xa0\x80"], ids=bytes.hex)
def test_text_that_is_no_utf_8_is_refused(text: bytes) -> None:
    assert find_rule(text, str) == "codec.form"


def nest_list(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [2**64, -(2**63) - 1, "\ud800", object(), 1j, nest_list(200_000)],
    ids=["2^64", "-2^63-1", "half a surrogate", "object", "complex", "endless nesting"],
)
def test_what_has_no_canonical_form_is_not_encoded(value: Any) -> None:
    with pytest.raises(BadEncoding) as refused:
        encode(value)
    assert refused.value.rule == "codec.form"


@pytest.mark.parametrize(
    ("value", "rule"),
    [(1.5, "codec.float"), ({}, "codec.form"), ({"a": 1}, "codec.form"), (nest_list(17), "codec.depth"),
     ([0] * 65_537, "codec.items")],
    ids=["float", "empty map", "map", "too deep", "too many"],
)  # fmt: skip
def test_nobody_signs_what_nobody_would_read(value: Any, rule: str) -> None:
    with pytest.raises(BadEncoding) as refused:
        samples.PROVIDER.sign(Tag.TX, samples.CHAIN, value)
    assert refused.value.rule == rule


def test_a_text_is_not_taken_for_bytes_nor_bytes_for_a_text() -> None:
    assert find_rule(b"\xa1a", bytes) is not None
    assert find_rule(b"\xc4\x01a", str) is not None


def test_an_object_is_no_object_of_another_type() -> None:
    data = encode(samples.SIGNED_BID)
    assert find_rule(data, Signed[Transaction]) == "codec.form"
    assert find_rule(data, Transaction) == "codec.form"
