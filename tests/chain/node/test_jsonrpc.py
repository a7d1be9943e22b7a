"""The dispatcher against the examples of the JSON-RPC 2.0 specification (section 7), and against hostile bodies."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chain.base.errors import Fault, Refused, Unavailable
from chain.node.jsonrpc import MAX_BATCH, Dispatcher, Method


class _Two(msgspec.Struct):
    minuend: int
    subtrahend: int


class _None(msgspec.Struct):
    pass


class _Some(msgspec.Struct):
    a: int = 0
    b: int = 0
    c: int = 0


async def subtract(params: _Two) -> int:
    return params.minuend - params.subtrahend


async def add(params: _Some) -> int:
    return params.a + params.b + params.c


async def get_data(_params: _None) -> list[Any]:
    return ["hello", 5]


async def note(_params: _Some) -> None:
    return None


FAILURES: dict[str, tuple[Exception, int, str]] = {
    "refused": (Refused("no", rule="R2.cap"), -32001, "R2.cap"),
    "pending": (Unavailable("wait", rule="chain.pending"), -32002, "chain.pending"),
    "busy": (Unavailable("full", rule="mempool.full"), -32003, "mempool.full"),
    "fault": (Fault("ours: secret detail", rule="store.corrupt"), -32603, "store.corrupt"),
    "bug": (ZeroDivisionError("secret detail"), -32603, "rpc.internal"),
}


def make_failing(error: Exception) -> Method:
    async def fail(_params: _None) -> None:
        raise error

    return Method(_None, fail)


TABLE = {
    "subtract": Method(_Two, subtract),
    "sum": Method(_Some, add),
    "get_data": Method(_None, get_data),
    "update": Method(_Some, note),
    "notify_hello": Method(_Some, note),
    "notify_sum": Method(_Some, note),
    **{name: make_failing(error) for name, (error, _, _) in FAILURES.items()},
}


def ask(body: str | bytes) -> Any:
    raw = body.encode() if isinstance(body, str) else body
    answer = asyncio.run(Dispatcher(TABLE).answer(raw))
    return None if answer is None else json.loads(answer)


INVALID = {"jsonrpc": "2.0", "error": {"code": -32600, "message": "Invalid Request"}, "id": None}
PARSE = {"jsonrpc": "2.0", "error": {"code": -32700, "message": "Parse error"}, "id": None}

EXAMPLES: list[tuple[str, str, Any]] = [
    (
        "positional parameters",
        '{"jsonrpc": "2.0", "method": "subtract", "params": [42, 23], "id": 1}',
        {"jsonrpc": "2.0", "result": 19, "id": 1},
    ),
    (
        "positional parameters the other way",
        '{"jsonrpc": "2.0", "method": "subtract", "params": [23, 42], "id": 2}',
        {"jsonrpc": "2.0", "result": -19, "id": 2},
    ),
    (
        "named parameters",
        '{"jsonrpc": "2.0", "method": "subtract", "params": {"subtrahend": 23, "minuend": 42}, "id": 3}',
        {"jsonrpc": "2.0", "result": 19, "id": 3},
    ),
    (
        "named parameters the other way",
        '{"jsonrpc": "2.0", "method": "subtract", "params": {"minuend": 42, "subtrahend": 23}, "id": 4}',
        {"jsonrpc": "2.0", "result": 19, "id": 4},
    ),
    ("a notification", '{"jsonrpc": "2.0", "method": "update", "params": [1,2,3]}', None),
    ("a notification of no method", '{"jsonrpc": "2.0", "method": "foobar"}', None),
    (
        "a method that is none",
        '{"jsonrpc": "2.0", "method": "foobar", "id": "1"}',
        {"jsonrpc": "2.0", "error": {"code": -32601, "message": "Method not found"}, "id": "1"},
    ),
    ("invalid JSON", '{"jsonrpc": "2.0", "method": "foobar, "params": "bar", "baz]', PARSE),
    ("an invalid request", '{"jsonrpc": "2.0", "method": 1, "params": "bar"}', INVALID),
    (
        "an invalid batch",
        '[{"jsonrpc": "2.0", "method": "sum", "params": [1,2,4], "id": "1"}, {"jsonrpc": "2.0", "method"]',
        PARSE,
    ),
    ("a batch of rubbish", "[1]", [INVALID]),
    ("a batch of more rubbish", "[1,2,3]", [INVALID, INVALID, INVALID]),
    (
        "a mixed batch",
        """[
        {"jsonrpc": "2.0", "method": "sum", "params": [1,2,4], "id": "1"},
        {"jsonrpc": "2.0", "method": "notify_hello", "params": [7]},
        {"jsonrpc": "2.0", "method": "subtract", "params": [42,23], "id": "2"},
        {"foo": "boo"},
        {"jsonrpc": "2.0", "method": "foo.get", "params": {"name": "myself"}, "id": "5"},
        {"jsonrpc": "2.0", "method": "get_data", "id": "9"}
        ]""",
        [
            {"jsonrpc": "2.0", "result": 7, "id": "1"},
            {"jsonrpc": "2.0", "result": 19, "id": "2"},
            INVALID,
            {"jsonrpc": "2.0", "error": {"code": -32601, "message": "Method not found"}, "id": "5"},
            {"jsonrpc": "2.0", "result": ["hello", 5], "id": "9"},
        ],
    ),
    (
        "a batch of notifications",
        """[{"jsonrpc": "2.0", "method": "notify_sum", "params": [1,2,4]},
        {"jsonrpc": "2.0", "method": "notify_hello", "params": [7]}]""",
        None,
    ),
]


@pytest.mark.parametrize(("body", "answer"), [row[1:] for row in EXAMPLES], ids=[row[0] for row in EXAMPLES])
def test_the_examples_of_the_specification(body: str, answer: Any) -> None:
    assert ask(body) == answer


NOT_REQUESTS = [
    ("null", "null"),
    ("number", "1"),
    ("text", '"chain.info"'),
    ("no version", '{"method": "sum", "id": 1}'),
    ("version 1", '{"jsonrpc": "1.0", "method": "sum", "id": 1}'),
    ("version as a number", '{"jsonrpc": 2.0, "method": "sum", "id": 1}'),
    ("no method", '{"jsonrpc": "2.0", "id": 1}'),
    ("params as text", '{"jsonrpc": "2.0", "method": "sum", "params": "1", "id": 1}'),
    ("params null", '{"jsonrpc": "2.0", "method": "sum", "params": null, "id": 1}'),
    ("id as an object", '{"jsonrpc": "2.0", "method": "sum", "id": {}}'),
    ("id as a truth", '{"jsonrpc": "2.0", "method": "sum", "id": true}'),
]


@pytest.mark.parametrize("body", [row[1] for row in NOT_REQUESTS], ids=[row[0] for row in NOT_REQUESTS])
def test_what_is_no_request_object_is_answered_with_a_null_id(body: str) -> None:
    assert ask(body) == INVALID


@pytest.mark.parametrize("number", [0, -1, 2**60, "", "x", None, 1.5])
def test_the_id_comes_back_as_it_was(number: object) -> None:
    assert ask(json.dumps({"jsonrpc": "2.0", "method": "sum", "id": number})) == {
        "jsonrpc": "2.0",
        "result": 0,
        "id": number,
    }


BAD_PARAMS = ["[1]", "[1, 2, 3]", '{"minuend": 1}', '["1", 2]', '{"minuend": 1, "subtrahend": 1.5}', "{}", "[[], {}]"]


@pytest.mark.parametrize("params", BAD_PARAMS)
def test_parameters_that_do_not_fit_are_minus_32602(params: str) -> None:
    answer = ask(f'{{"jsonrpc": "2.0", "method": "subtract", "params": {params}, "id": 7}}')
    assert (answer["error"]["code"], answer["error"]["message"], answer["id"]) == (-32602, "Invalid params", 7)


@pytest.mark.parametrize("name", FAILURES)
def test_errors_travel_by_class_and_rule_and_faults_keep_their_details(name: str) -> None:
    error, code, rule = FAILURES[name]
    told = ask(json.dumps({"jsonrpc": "2.0", "method": name, "id": 1}))["error"]
    assert (told["code"], told["data"]) == (code, {"rule": rule})
    assert ("secret" in told["message"]) is False
    assert told["message"] == (str(error.args[0]) if code != -32603 else "Internal error")


@pytest.mark.parametrize(("size", "fits"), [(0, False), (1, True), (MAX_BATCH, True), (MAX_BATCH + 1, False)])
def test_a_batch_has_a_largest_size(size: int, fits: bool) -> None:
    answer = ask(json.dumps([{"jsonrpc": "2.0", "method": "sum", "id": 1}] * size))
    assert (isinstance(answer, list) and len(answer) == size) if fits else answer["error"]["code"] == -32600


@pytest.mark.parametrize(
    "body", [b"", b"\xff", b'"\xff"', b"[" * 100_000, b'{"a":' * 50_000, b"NaN", b"{} {}", b'{"jsonrpc": "\\ud800"}']
)
def test_what_is_no_json_is_a_parse_error(body: bytes) -> None:
    assert ask(body)["error"]["code"] in (-32700, -32600)
    assert ask(body)["id"] is None


async def test_a_batch_runs_at_the_same_time() -> None:
    """Else one long poll would hold up the calls behind it."""
    met = asyncio.Barrier(2)

    async def meet(_params: _None) -> None:
        await met.wait()

    body = json.dumps([{"jsonrpc": "2.0", "method": "meet", "id": n} for n in range(2)]).encode()
    async with asyncio.timeout(10):
        assert len(json.loads(await Dispatcher({"meet": Method(_None, meet)}).answer(body) or b"")) == 2


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
REQUESTS = st.fixed_dictionaries(
    {},
    optional={
        "jsonrpc": st.just("2.0") | JSON,
        "method": st.sampled_from([*TABLE, "chain.info"]) | JSON,
        "params": JSON,
        "id": JSON,
    },
)


@given(REQUESTS | st.lists(REQUESTS | JSON, max_size=4) | JSON)
def test_whatever_json_comes_each_answer_has_the_form_of_the_specification(request: Any) -> None:
    answer = ask(json.dumps(request))
    answers = answer if isinstance(answer, list) else [] if answer is None else [answer]
    for one in answers:
        assert one["jsonrpc"] == "2.0"
        assert ("result" in one) is not ("error" in one)
        assert set(one) <= {"jsonrpc", "result", "error", "id"}
