"""A result that was paid for is shown, whatever a provider put into it."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterator

import msgpack
import pytest

from broker.protocol import values
from requester.cli import app
from requester.cli.output import MAX_ITEMS, show_value, to_json


@pytest.fixture(autouse=True)
def _digits() -> Iterator[None]:
    """The command's own setting is not that of the tests."""
    before = sys.get_int_max_str_digits()
    yield
    sys.set_int_max_str_digits(before)


def test_an_array_without_elements_is_no_list_of_lists_without_end() -> None:
    shape = (2**40, 0)
    packed = msgpack.packb(msgpack.ExtType(4, b"<f8 " + struct.pack(">B2Q", len(shape), *shape)))
    found = values.unpack(packed)
    assert (found.shape, found.size) == (shape, 0)
    assert to_json(found) == {"dtype": "float64", "shape": list(shape)}
    assert to_json(found[:MAX_ITEMS])["data"] == [[]] * MAX_ITEMS
    assert show_value(found)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_longest_whole_number_is_shown(sign: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["--version"]) == 0
    longest = values.unpack(values.pack(sign * (2 ** (2**16 - 1) - 1)))
    assert show_value([longest]).startswith("[" + str(longest)[:40])
    assert json.loads(json.dumps(to_json(longest))) == longest
