"""Outside vectors: Wycheproof's Ed25519 signatures and the msgpack test suite (`../shared/vectors`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from chain.base.codec import decode, encode
from chain.base.errors import Refused
from chain.base.keys import is_key, is_signature
from tests.support import wire

SUITE_ENCODINGS = 233
SIGNATURES = 151


def test_wycheproof_signatures_are_taken_exactly_when_valid(vectors: Path) -> None:
    suite = json.loads((vectors / "wycheproof-ed25519.json").read_text("utf-8"))
    wrong, count = [], 0
    for group in suite["testGroups"]:
        key = bytes.fromhex(group["publicKey"]["pk"])
        assert is_key(key)
        for case in group["tests"]:
            count += 1
            taken = is_signature(key, bytes.fromhex(case["msg"]), bytes.fromhex(case["sig"]))
            if taken != (case["result"] == "valid"):
                wrong.append((case["tcId"], case["comment"], case["result"]))
    assert (count, wrong) == (SIGNATURES, [])


def read_suite(vectors: Path) -> list[tuple[str, Any, list[bytes]]]:
    """(kind, value, encodings) of each case."""
    cases = []
    for group in json.loads((vectors / "msgpack-test-suite.json").read_text("utf-8")).values():
        for case in group:
            kind = next(name for name in case if name != "msgpack")
            encodings = [bytes.fromhex(one.replace("-", "")) for one in case["msgpack"]]
            cases.append((kind, find_value(kind, case[kind]), encodings))
    return cases


def find_value(kind: str, value: Any) -> Any:
    """The value in our terms; floats, maps and extensions stay what nothing of ours equals."""
    if kind == "binary":
        return bytes.fromhex(value.replace("-", ""))
    if kind == "bignum":
        return int(value)
    if kind in ("map", "ext", "timestamp") or holds_foreign(value):
        return wire.RESERVED
    return value


def holds_foreign(value: Any) -> bool:
    if isinstance(value, list):
        return any(holds_foreign(one) for one in value)
    return isinstance(value, float | dict)


def is_taken(data: bytes) -> bool:
    try:
        return encode(decode(data, Any)) == data
    except Refused:
        return False


def test_of_the_msgpack_suite_exactly_the_shortest_forms_are_taken(vectors: Path) -> None:
    """An encoding is taken if the second, hand-written encoder gives it for that value, and refused otherwise."""
    wrong, count, taken = [], 0, 0
    for kind, value, encodings in read_suite(vectors):
        for data in encodings:
            count += 1
            taken += is_taken(data)
            if is_taken(data) != (wire.write(value) == data):
                wrong.append((kind, value, data.hex()))
    assert (count, wrong) == (SUITE_ENCODINGS, [])
    assert 40 < taken < count


def test_the_suite_decodes_to_its_values(vectors: Path) -> None:
    for _, value, encodings in read_suite(vectors):
        for data in filter(is_taken, encodings):
            assert decode(data, Any) == value
