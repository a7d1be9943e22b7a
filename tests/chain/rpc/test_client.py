"""The client against nodes that answer wrongly, slowly or not at all: each failure is one of three errors, by rule."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.client_reqrep import ConnectionKey

from chain.base.codec import encode
from chain.base.errors import Fault, Refused, TallyError, Unavailable
from chain.base.keys import Signer
from chain.ledger.transactions import Transfer, sign_transaction
from chain.rpc import client as client_module
from chain.rpc import wire as wire_module
from chain.rpc.client import ChainClient
from chain.rpc.schema import RPC_VERSION

HERE = ConnectionKey("127.0.0.1", 1, False, True, None, None, None)

Answer = Callable[[dict[str, Any]], Any]
INFO = {
    "version": RPC_VERSION,
    "software": "s",
    "chain": "c",
    "name": "n",
    "height": 1,
    "time": 2,
    "seats": 1,
    "fee": 3,
    "deposit": 4,
    "min_bond": 5,
    "private": False,
}


@contextlib.asynccontextmanager
async def serve(answer: Answer, status: int = 200) -> AsyncIterator[tuple[ChainClient, list[dict[str, Any]]]]:
    """A node that says what `answer` makes of each request: an object as JSON, bytes as they are."""
    requests: list[dict[str, Any]] = []

    async def handle(request: web.Request) -> web.Response:
        asked = await request.json()
        requests.append(asked)
        made = answer(asked)
        body = made if isinstance(made, bytes) else json.dumps(made).encode()
        return web.Response(status=status, body=body, content_type="application/json")

    app = web.Application()
    app.router.add_post("/", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        async with ChainClient(f"http://127.0.0.1:{port}/") as client:
            yield client, requests
    finally:
        await runner.cleanup()


def result(value: Any) -> Answer:
    return lambda asked: {"jsonrpc": "2.0", "id": asked["id"], "result": value}


def error(code: int, data: Any = None) -> Answer:
    told = {"code": code, "message": "why", **({} if data is None else {"data": data})}
    return lambda asked: {"jsonrpc": "2.0", "id": asked["id"], "error": told}


WRONG: list[tuple[str, Answer, int, type[TallyError], str]] = [
    ("refused", error(-32001, {"rule": "R2.cap"}), 200, Refused, "R2.cap"),
    ("refused without a rule", error(-32001), 200, Refused, "rpc.-32001"),
    ("pending", error(-32002, {"rule": "chain.pending"}), 200, Unavailable, "chain.pending"),
    ("full", error(-32003, {"rule": "mempool.full"}), 200, Unavailable, "mempool.full"),
    ("internal", error(-32603, {"rule": "store.corrupt"}), 200, Fault, "store.corrupt"),
    ("no such method", error(-32601), 200, Fault, "rpc.-32601"),
    ("data that is no object", error(-32001, "text"), 200, Fault, "rpc.answer"),
    ("another type", result("text"), 200, Fault, "rpc.answer"),
    ("a field missing", result({"version": RPC_VERSION}), 200, Fault, "rpc.answer"),
    ("an older interface", result({**INFO, "version": RPC_VERSION - 1}), 200, Refused, "protocol.version"),
    ("a newer interface", result({**INFO, "version": RPC_VERSION + 1}), 200, Refused, "protocol.version"),
    ("another id", lambda asked: {"jsonrpc": "2.0", "id": -1, "result": INFO}, 200, Fault, "rpc.answer"),
    ("another version", lambda asked: {"jsonrpc": "1.0", "id": asked["id"], "result": INFO}, 200, Fault, "rpc.answer"),
    ("neither", lambda asked: {"jsonrpc": "2.0", "id": asked["id"]}, 200, Fault, "rpc.answer"),
    ("no JSON", lambda asked: b"<html>", 200, Unavailable, "chain.address"),
    ("nothing", lambda asked: b"", 200, Unavailable, "chain.address"),
    ("another server", lambda asked: b"", 404, Unavailable, "chain.address"),
    ("a broker", lambda asked: {"title": "no", "rule": "http.signature"}, 401, Unavailable, "chain.address"),
    ("a fault of the server", lambda asked: b"", 500, Fault, "rpc.answer"),
    ("a full server", lambda asked: b"", 503, Unavailable, "chain.busy"),
]


@pytest.mark.parametrize(
    ("answer", "status", "kind", "rule"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG]
)
async def test_a_wrong_answer_is_one_error_by_rule(
    answer: Answer, status: int, kind: type[TallyError], rule: str
) -> None:
    async with serve(answer, status) as (client, _):
        with pytest.raises(kind) as caught:
            await client.info()
        assert (type(caught.value), caught.value.rule) == (kind, rule)


async def test_an_answer_without_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "MAX_ANSWER_BYTES", 1000)
    async with serve(lambda asked: b"x" * 1001) as (client, _):
        with pytest.raises(Fault) as caught:
            await client.info()
        assert caught.value.rule == "rpc.answer"


async def test_no_node_says_where_and_what_to_start() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        async with ChainClient(url) as client:
            with pytest.raises(Unavailable) as caught:
                await client.info()
    assert caught.value.rule == "chain.unreachable"
    assert caught.value.__suppress_context__  # the one good line stands alone in a traceback
    assert f"{url} (Connection refused); start one with `tally-chain run`" in caught.value.message


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (aiohttp.ClientConnectorError(HERE, OSError(111, "Connect call failed ('127.0.0.1', 1)")), os.strerror(111)),
        (aiohttp.ClientConnectorDNSError(HERE, OSError(None, "Domain name not found")), "Domain name not found"),
        (aiohttp.ClientConnectorDNSError(HERE, socket.gaierror(-2, "Name not known")), "Name not known"),
        (aiohttp.ServerDisconnectedError(), "ServerDisconnectedError: Server disconnected"),
        (TimeoutError(), "TimeoutError"),
    ],
)
def test_why_nobody_was_reached_is_said_in_the_systems_words(error: Exception, text: str) -> None:
    assert wire_module.describe_failure(error) == text


async def test_a_node_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire_module, "SLACK_SECONDS", 0.05)
    silent = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    async with silent, ChainClient(f"http://127.0.0.1:{silent.sockets[0].getsockname()[1]}") as client:
        with pytest.raises(Unavailable) as caught:
            await client.info()
    assert caught.value.rule == "chain.unreachable"


KEY, OTHER = b"\x01" * 32, b"\x02" * 32
SIGNED = sign_transaction(Signer(bytes(32)), bytes(32), Transfer(KEY, 1), 5, bytes(16))
OUTCOME = {"id": "x", "height": 1, "time": 2}
ACCOUNT = {"key": "k", "known": True, "balance": 1, "provider": False, "bond": 0, "set_aside": 0}
SUPPLY = {"genesis": 6, "total": 5, "burned": 1, "accounts": 3, "bonds": 1, "locked": 1}
ORDER = {"id": "o", "requester": "r", "cap": 1, "locked": 2, "paid": 3, "expiry": 4}

CALLS: list[tuple[str, Callable[[ChainClient], Any], dict[str, Any], Any]] = [
    ("chain.info", lambda c: c.info(), {}, INFO),
    ("chain.submit", lambda c: c.submit(SIGNED, wait_ms=7), {"tx": encode(SIGNED).hex(), "wait_ms": 7}, OUTCOME),
    ("chain.account", lambda c: c.account(KEY), {"key": KEY.hex()}, ACCOUNT),
    ("chain.lease", lambda c: c.lease(KEY), {"id": KEY.hex()}, None),
    ("chain.order", lambda c: c.order(KEY), {"id": KEY.hex()}, None),
    ("chain.order", lambda c: c.order(KEY), {"id": KEY.hex()}, ORDER),
    ("chain.leases", lambda c: c.leases(provider=KEY), {"provider": KEY.hex()}, []),
    ("chain.leases", lambda c: c.leases(requester=KEY, live=False), {"requester": KEY.hex(), "live": False}, []),
    ("chain.leases", lambda c: c.leases(order=KEY, live=True), {"order": KEY.hex(), "live": True}, []),
    (
        "chain.events",
        lambda c: c.events([KEY, OTHER], 3, wait_ms=1),
        {"topics": [KEY.hex(), OTHER.hex()], "after": 3, "wait_ms": 1},
        {"next": 4, "events": [{"height": 4, "time": 1, "kind": "transfer", "tx": "t", "amount": 9}]},
    ),
    ("chain.supply", lambda c: c.supply(), {}, SUPPLY),
]


@pytest.mark.parametrize(("method", "call", "params", "answer"), CALLS)
async def test_each_call_asks_by_name_and_gives_its_view(
    method: str, call: Callable[[ChainClient], Any], params: dict[str, Any], answer: Any
) -> None:
    async with serve(result(answer)) as (client, requests):
        given = await call(client)
        assert [(asked["method"], asked["params"], asked["jsonrpc"]) for asked in requests] == [(method, params, "2.0")]
        if isinstance(answer, dict):
            assert all(getattr(given, name) == value for name, value in answer.items() if not isinstance(value, list))
        else:
            assert given == answer


@pytest.mark.parametrize("answer", ["zz", "00", ""])
async def test_a_proof_that_is_none_is_refused(answer: str) -> None:
    async with serve(result(answer)) as (client, _):
        for call in (client.header(1), client.proof(KEY), client.prove_lease(KEY)):
            with pytest.raises((Fault, Refused)):
                await call


async def test_a_shared_session_is_not_closed() -> None:
    async with serve(result(INFO)) as (first, _):
        await first.info()
        second = ChainClient(first.url, session=first._session)
        await second.info()
        await second.close()
        assert (await first.info()).height == 1
