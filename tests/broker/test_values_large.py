"""Values with large arrays and lists of values: nothing is copied that need not be, where a thing lies follows from
what it is, and no container of a stranger reads outside itself.
"""

from __future__ import annotations

import gc
import mmap
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import msgpack
import numpy
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from broker.protocol import containers
from broker.protocol.values import BadValue, CannotCarry, measure, pack, pack_list, pack_parts, split, unpack
from tests.broker.job_values import carried, large, same

LIMIT = 65_536
MANY = 1_000_000


def lies_in(array: Any, data: object) -> bool:
    return numpy.shares_memory(array, numpy.frombuffer(data, "u1"))  # type: ignore[call-overload]  # any buffer


# ---- what is carried ----


@given(large)
@hypothesis.settings(max_examples=60, deadline=None)
def test_values_with_large_arrays_come_back_the_same(value: object) -> None:
    data = pack(value)
    assert data == b"".join(pack_parts(value))
    for copy in (True, False):
        assert same(unpack(data, copy=copy), value)
    assert pack(unpack(data, copy=False)) == data


@given(carried)
def test_values_without_are_plain_messagepack(value: object) -> None:
    assert pack_parts(value) == [pack(value)]
    assert pack(value)[:1] != b"\xc1"


@pytest.mark.parametrize(("size", "outside"), [(LIMIT - 1, False), (LIMIT, True)])
def test_where_an_array_lies_follows_from_its_size(size: int, outside: bool) -> None:
    data = pack([numpy.zeros(size, "u1")])
    assert (data[:4] == b"\xc1ta\x01") is outside
    assert unpack(data)[0].nbytes == size


def test_buffers_begin_at_multiples_of_64() -> None:
    data = pack({"a": numpy.full(LIMIT + 3, 7, "u1"), "b": numpy.full(LIMIT, 9, "u1")})
    body = struct.unpack_from(">Q", data, 4)[0]
    first = -(-(12 + body) // 64) * 64
    second = -(-(first + LIMIT + 3) // 64) * 64
    assert (data[first - 1], data[first], data[second - 1], data[second]) == (0, 7, 0, 9)
    assert len(data) == second + LIMIT


@pytest.mark.parametrize("given_as", [bytes, bytearray, memoryview, "odd place"])
def test_any_buffer_is_read(given_as: Any) -> None:
    value = [numpy.arange(MANY // 10), "text"]
    data: Any = pack(value)
    data = memoryview(b"x" + data)[1:] if given_as == "odd place" else given_as(data)
    assert same(unpack(data), value)
    assert same(unpack(data, copy=False), value)
    items = split(memoryview(b"xyz" + b"".join(pack_list([data, b"\x01"])))[3:])
    assert same([unpack(one) for one in items], [value, 1])


def test_bytes_that_do_not_lie_side_by_side_are_refused() -> None:
    with pytest.raises(BadValue, match="side by side"):
        unpack(memoryview(bytes(100))[::2])


def test_a_mapped_array_is_carried_as_an_array(tmp_path: Path) -> None:
    mapped = numpy.memmap(tmp_path / "weights", "f4", "w+", shape=(100, 500))
    mapped[:] = 0.5
    parts = pack_parts({"w": mapped})
    assert any(lies_in(mapped, one) for one in parts)
    back = unpack(b"".join(parts))["w"]
    assert type(back) is numpy.ndarray
    assert same(back, numpy.array(mapped))
    assert same(unpack(pack(mapped[:2])), numpy.array(mapped[:2]))


# ---- nothing is copied that need not be ----


@pytest.mark.parametrize("make", [numpy.ascontiguousarray, lambda one: one[100:], lambda one: one.reshape(2, -1)])
def test_packing_shows_the_arrays_own_memory(make: Callable[[Any], Any]) -> None:
    array = make(numpy.arange(MANY // 10))
    parts = pack_parts([array, array])
    views = [one for one in parts if isinstance(one, memoryview)]
    assert [lies_in(array, one) for one in views] == [True, True]
    assert measure(parts) == len(b"".join(parts)) == len(pack([array, array]))


def test_unpacking_shows_the_memory_it_was_given_or_owns_its_own() -> None:
    data = pack([numpy.arange(MANY // 10), numpy.arange(9)])
    shown, small = unpack(data, copy=False)
    assert lies_in(shown, data)
    assert not shown.flags.writeable
    assert small.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        shown[0] = 1
    owned = unpack(data)[0]
    assert not lies_in(owned, data)
    owned[0] = 1
    assert same(unpack(bytearray(data), copy=False)[0].flags.writeable, False)


def measure_peak(action: Callable[[], object]) -> tuple[int, object]:
    gc.collect()
    tracemalloc.start()
    try:
        kept = action()
        return tracemalloc.get_traced_memory()[1], kept
    finally:
        tracemalloc.stop()


def test_memory_beside_the_array_is_small_whatever_its_size(tmp_path: Path) -> None:
    """8 MB here; what is taken does not grow with it."""
    weights = {f"layer {n}": numpy.ones(MANY // 4) for n in range(4)}
    peak, parts = measure_peak(lambda: pack_parts(weights))
    assert peak < MANY
    file = tmp_path / "packed"
    with file.open("wb") as out:
        out.writelines(parts)  # type: ignore[arg-type]  # what measure_peak kept
    with file.open("rb") as source, mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        peak, shown = measure_peak(lambda: unpack(mapped, copy=False))
        assert peak < MANY
        assert same(shown, weights)
        del shown
        peak, owned = measure_peak(lambda: unpack(mapped))
        assert peak < 8.2 * MANY
        peak, items = measure_peak(lambda: list(map(len, split(b"".join(pack_list([mapped]))))))
        assert items == [len(mapped)]
    assert same(owned, weights)  # and the file could be closed, since nothing of it is shown any more


def test_weights_from_safetensors_are_values() -> None:
    weights = {"w": numpy.ones((300, 200), "f4"), "b": numpy.zeros(3)}
    loaded = safetensors.numpy.load(safetensors.numpy.save(weights))
    assert any(lies_in(loaded["w"], one) for one in pack_parts(loaded))
    assert same(dict(sorted(unpack(pack(loaded)).items())), dict(sorted(weights.items())))


# ---- limits ----


def test_what_passes_the_limits_is_refused_before_it_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.protocol.values.MAX_BYTES", 2 * LIMIT)
    with pytest.raises(CannotCarry, match="bytes of at most 131072"):
        pack([numpy.zeros(LIMIT), 1])
    monkeypatch.setattr("broker.protocol.values.MAX_BODY", 1000)
    with pytest.raises(CannotCarry, match="outside large arrays, which may be at most 1000"):
        pack(bytes(1000))


def test_size_is_checked_first() -> None:
    data = pack(numpy.zeros(LIMIT, "u1"))
    with pytest.raises(BadValue, match="where at most 1000"):
        unpack(data, max_bytes=1000)
    with pytest.raises(BadValue, match="where at most 1000"):
        split(b"".join(pack_list([data])), max_bytes=1000)
    assert unpack(data, max_bytes=len(data)).nbytes == LIMIT


# ---- containers of strangers ----


def describe(*shape: int, dtype: bytes = b"|u1 ", code: int = 6) -> Any:
    return msgpack.ExtType(code, dtype + struct.pack(f">B{len(shape)}Q", len(shape), *shape))


def make(value: object, *buffers: bytes, pad: bytes = b"\0", behind: bytes = b"") -> bytes:
    body: bytes = msgpack.packb(value, strict_types=True)
    data = b"\xc1ta\x01" + len(body).to_bytes(8, "big") + body
    for buffer in buffers:
        data += pad * (-len(data) % 64) + buffer
    return data + behind


BUFFER = bytes(LIMIT)
ONE = describe(LIMIT)
GOOD = make([1, ONE, "x"], BUFFER)

BAD = {
    "the byte alone": b"\xc1",
    "a head cut short": GOOD[:11],
    "another version": GOOD.replace(b"\xc1ta\x01", b"\xc1ta\x02"),
    "another kind": GOOD.replace(b"\xc1ta\x01", b"\xc1tx\x01"),
    "a list": b"".join(pack_list([b"\x01"])),
    "a body of 16 EiB": GOOD[:4] + b"\xff" * 8 + GOOD[12:],
    "a body beyond the end": GOOD[:4] + (len(GOOD) - 11).to_bytes(8, "big") + GOOD[12:],
    "a body of nothing": b"\xc1ta\x01" + bytes(8),
    "no array": make([1]),
    "no array, but a buffer": make([1], BUFFER),
    "no buffer": make([ONE]),
    "one buffer for two arrays": make([ONE, ONE], BUFFER),
    "two buffers for one array": make([ONE], BUFFER, BUFFER),
    "a byte behind": make([ONE], BUFFER, behind=b"\0"),
    "a byte less": make([ONE], BUFFER[:-1]),
    "padding that says something": make([ONE], BUFFER, pad=b"\1"),
    "a small array outside": make([describe(LIMIT - 1)], BUFFER[:-1]),
    "an empty array outside": make([describe(0), ONE], b"", BUFFER),
    "a large array inside": make([msgpack.ExtType(4, ONE.data + BUFFER), ONE], BUFFER),
    "a large array inside alone": msgpack.packb(msgpack.ExtType(4, ONE.data + BUFFER)),
    "an array outside without a container": msgpack.packb(ONE),
    "a shape with more behind it": make([msgpack.ExtType(6, ONE.data + b"\0")], BUFFER),
    "half a shape": make([msgpack.ExtType(6, ONE.data[:-1])], BUFFER),
    "objects": make([describe(LIMIT // 8, dtype=b"|O  ")], BUFFER),
    "an array of 16 EiB": make([describe(2**64 - 1)], BUFFER),
    "a shape that overflows": make([describe(2**63, 2**63, 4)], BUFFER),
    "more dimensions than there are": make([describe(*[1] * 32, LIMIT)], BUFFER),
    "an array as key": make([{ONE: 1}], BUFFER),
    "no MessagePack": GOOD[:4] + (1).to_bytes(8, "big") + b"\xc1" + bytes(51) + BUFFER,
    "a value in a value": make([ONE], BUFFER)[:12] + GOOD,
}


def test_the_container_of_the_tests_is_a_good_one() -> None:
    assert unpack(GOOD)[1].nbytes == LIMIT
    assert pack([1, numpy.zeros(LIMIT, "u1"), "x"]) == GOOD


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("copy", [True, False])
def test_bad_containers_are_refused(name: str, copy: bool) -> None:
    def read() -> None:
        with pytest.raises(BadValue):
            unpack(BAD[name], copy=copy)

    assert measure_peak(read)[0] < MANY


def test_bodies_and_buffers_are_bounded_before_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadValue, match="a body of 18446744073709551615 bytes"):
        unpack(BAD["a body of 16 EiB"])
    with pytest.raises(BadValue, match="a buffer of 18446744073709551615 bytes where 65536 are left"):
        unpack(BAD["an array of 16 EiB"])
    monkeypatch.setattr(containers, "MAX_BODY", 10)
    with pytest.raises(BadValue, match="a body of 20 bytes"):
        unpack(GOOD)


def test_each_byte_flipped_is_refused_or_another_content() -> None:
    value: Any = {"w": numpy.arange(LIMIT // 8), "n": [1, 2.5, "x"]}
    data = bytearray(pack(value))
    body = 12 + struct.unpack_from(">Q", data, 4)[0]
    first = len(data) - LIMIT
    for place in range(len(data)):
        data[place] ^= 0xFF
        try:
            found = unpack(data, copy=False)
        except BadValue:
            assert place < first, "content of an array is anyone's"
        else:
            assert 12 <= place < body or place >= first, "head and padding have one form"
            if place >= first:
                assert (found["w"].shape, found["w"].dtype, found["n"]) == (value["w"].shape, "i8", value["n"])
        data[place] ^= 0xFF
    assert same(unpack(data), value)


def test_every_other_byte_of_head_and_body_is_refused_or_a_value() -> None:
    data = bytearray(pack({"w": numpy.arange(LIMIT // 8).reshape(2, -1), "n": [1, 2.5, (b"x",)]}))
    for place in range(len(data) - LIMIT):
        before = data[place]
        for byte in range(256):
            data[place] = byte
            try:
                pack(unpack(data, copy=False))
            except (BadValue, CannotCarry):
                continue
        data[place] = before


@pytest.mark.parametrize("read", [unpack, split])
def test_what_is_cut_short_is_refused_at_every_length(read: Callable[..., object]) -> None:
    data = GOOD if read is unpack else b"".join(pack_list([b"\x01", GOOD, b"\x02\x03"]))
    whole = memoryview(data)
    for length in range(len(data)):
        with pytest.raises(BadValue):
            read(whole[:length])
    assert read(whole) is not None


@given(st.sampled_from([b"\xc1ta\x01", b"\xc1tl\x01"]), st.integers(0, 40), st.binary(max_size=400))
def test_noise_behind_a_head_is_a_value_or_refused(head: bytes, length: int, noise: bytes) -> None:
    data = head + length.to_bytes(8, "big") + noise
    for read in (unpack, split):
        try:
            read(data)
        except BadValue:
            continue


# ---- lists ----


@given(st.lists(st.one_of(carried, large), max_size=6))
@hypothesis.settings(max_examples=50, deadline=None)
def test_split_gives_each_item_as_it_was_packed(values: list[Any]) -> None:
    packed = [pack(one) for one in values]
    data = b"".join(pack_list(packed))
    assert data == b"".join(pack_list(pack_parts(one) for one in values))
    items = split(data)
    assert [bytes(one) for one in items] == packed
    assert same([unpack(one) for one in items], values)
    assert b"".join(pack_list(items)) == data


def test_items_are_views_and_large_ones_begin_at_multiples_of_64() -> None:
    array = pack(numpy.zeros(LIMIT, "u1"))
    data = b"".join(pack_list([b"\x01", array, b"\x02", array]))
    items = split(data)
    places = [one.__array_interface__["data"][0] for one in map(numpy.asarray, items)]
    start = numpy.frombuffer(data, "u1").__array_interface__["data"][0]
    assert [(place - start) % 64 for place in (places[1], places[3])] == [0, 0]
    assert places[2] == places[1] + len(array)
    assert all(lies_in(numpy.asarray(one), data) for one in items)


def test_a_list_of_parts_copies_no_array() -> None:
    array = numpy.arange(MANY // 10)
    assert any(lies_in(array, one) for one in pack_list([pack_parts(array)]))


def test_small_items_cost_eight_bytes_each() -> None:
    assert measure(pack_list([b"\x01"] * 1000)) == 12 + 1000 * 9
    assert split(b"".join(pack_list([]))) == []


def make_list(lengths: list[int], items: bytes, count: int | None = None) -> bytes:
    head = b"\xc1tl\x01" + (len(lengths) if count is None else count).to_bytes(8, "big")
    return head + b"".join(one.to_bytes(8, "big") for one in lengths) + items


BAD_LISTS = {
    "nothing": b"",
    "a value": b"\x01",
    "plain MessagePack": b"\x92\x01\x02",
    "4 G items of MessagePack": b"\xdd\xff\xff\xff\xff",
    "a value with arrays": GOOD,
    "another version": b"\xc1tl\x02" + bytes(8),
    "16 EiB of items": make_list([1], b"\x01", count=2**64 - 1),
    "an item less": make_list([1, 1], b"\x01"),
    "an item more": make_list([1], b"\x01\x02"),
    "an item of nothing": make_list([0], b""),
    "an item of nothing between": make_list([1, 0, 1], b"\x01\x02"),
    "an item of 16 EiB": make_list([2**64 - 1], b"\x01"),
    "items that add up beyond 64 bits": make_list([2**63, 2**63, 1], b"\x01"),
    "an index cut short": make_list([1], b"\x01", count=2),
    "padding that says something": make_list([LIMIT], b"\1" * 44 + BUFFER),
    "no padding": make_list([LIMIT], BUFFER),
    "padding where none belongs": make_list([1], bytes(44) + b"\x01"),
}


@pytest.mark.parametrize("name", BAD_LISTS)
def test_bad_lists_are_refused(name: str) -> None:
    def read() -> None:
        with pytest.raises(BadValue):
            split(BAD_LISTS[name])

    assert measure_peak(read)[0] < MANY


def test_each_byte_of_a_list_changed_is_refused_or_splits_it_whole() -> None:
    data = bytearray(b"".join(pack_list([b"\x01", b"\x02\x03", b"\x04" * 9])))
    for place in range(len(data)):
        before = data[place]
        for byte in range(256):
            data[place] = byte
            try:
                items = split(data)
            except BadValue:
                continue
            assert sum(map(len, items)) == 12
            assert len(items) == 3
        data[place] = before


def test_a_list_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadValue, match="1048577 items in"):
        split(make_list([], bytes(9 * (2**20 + 1)), count=2**20 + 1))
    with pytest.raises(BadValue, match="no bytes"):
        pack_list([b"\x01", b""])
    with pytest.raises(BadValue, match="an item of 5 bytes where 1 are left"):
        split(make_list([5], b"\x01"))
    monkeypatch.setattr(containers, "MAX_ITEMS", 3)
    with pytest.raises(BadValue, match="4 items; at most 3"):
        pack_list([b"\x01"] * 4)
    monkeypatch.setattr(containers, "MAX_BYTES", 100)
    with pytest.raises(BadValue, match="at most 100"):
        pack_list([bytes(90)])
