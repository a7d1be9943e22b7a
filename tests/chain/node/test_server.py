"""The HTTP shell: what is taken, and what slow or too many connections meet."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

import aiohttp
import msgspec
import pytest

from chain.base.errors import Refused, Unavailable
from chain.node import server as server_module
from chain.node.jsonrpc import Dispatcher, Method
from chain.node.server import MAX_BODY, RpcServer
from chain.runtime.addresses import is_loopback, parse_listen
from chain.runtime.gate import Gate


class _None(msgspec.Struct):
    pass


async def ping(_params: _None) -> str:
    return "pong"


@contextlib.asynccontextmanager
async def serve() -> AsyncIterator[tuple[str, RpcServer]]:
    server = RpcServer(Dispatcher({"ping": Method(_None, ping)}))
    url = await server.start("127.0.0.1", 0)
    try:
        yield url, server
    finally:
        await server.close()


PING = {"jsonrpc": "2.0", "method": "ping", "id": 1}
JSON_HEADERS = {"Content-Type": "application/json"}


async def test_a_call_and_a_notification() -> None:
    async with serve() as (url, _), aiohttp.ClientSession() as session:
        async with session.post(url, json=PING) as response:
            assert (response.status, await response.json()) == (200, {"jsonrpc": "2.0", "result": "pong", "id": 1})
            assert response.content_type == "application/json"
        async with session.post(url, json={"jsonrpc": "2.0", "method": "ping"}) as response:
            assert (response.status, await response.read()) == (204, b"")


@pytest.mark.parametrize(
    ("method", "path", "headers", "size", "status"),
    [
        ("GET", "/", JSON_HEADERS, 0, 405),
        ("POST", "/other", JSON_HEADERS, 2, 404),
        ("POST", "/", {"Content-Type": "text/plain"}, 2, 415),
        ("POST", "/", {"Content-Type": "application/x-www-form-urlencoded"}, 2, 415),
        ("POST", "/", JSON_HEADERS, MAX_BODY + 1, 413),
        ("POST", "/", JSON_HEADERS, MAX_BODY, 200),
        ("POST", "/", {"Content-Type": "application/json; charset=utf-8"}, 2, 200),
    ],
)
async def test_what_http_is_taken(method: str, path: str, headers: dict[str, str], size: int, status: int) -> None:
    async with (
        serve() as (url, _),
        aiohttp.ClientSession() as session,
        session.request(method, url + path, data=b" " * size, headers=headers) as response,
    ):
        assert response.status == status


async def open_raw(url: str, data: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = parse_listen(url.removeprefix("http://"))
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(data)
    await writer.drain()
    return reader, writer


HALF_HEAD = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: appl"
HALF_BODY = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"


@pytest.mark.parametrize("data", [b"", HALF_HEAD], ids=["no byte", "half a head"])
async def test_a_connection_that_asks_nothing_is_closed_at_its_deadline(data: bytes) -> None:
    async with serve() as (url, server):
        server.gate.idle_seconds = 0.05
        reader, writer = await open_raw(url, data)
        async with asyncio.timeout(20):
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
        writer.close()


async def test_a_trickle_of_header_bytes_does_not_extend_the_deadline() -> None:
    async with serve() as (url, server):
        server.gate.idle_seconds = 0.2
        reader, writer = await open_raw(url, HALF_HEAD)
        ended = asyncio.create_task(reader.read())
        async with asyncio.timeout(20):
            while not ended.done():
                writer.write(b"x")
                await asyncio.sleep(0.01)
        writer.close()


async def test_a_slow_body_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "BODY_SECONDS", 0.05)
    async with serve() as (url, _):
        reader, writer = await open_raw(url, HALF_BODY)
        async with asyncio.timeout(20):
            assert (await reader.readline()).startswith(b"HTTP/1.1 408")
        writer.close()


async def test_above_the_cap_a_newcomer_gets_503_and_others_go_on() -> None:
    async with serve() as (url, server), aiohttp.ClientSession() as session:
        server.gate.limit = 1
        async with session.post(url, json=PING) as response:
            assert response.status == 200
        reader, writer = await open_raw(url, b"")
        assert (await reader.read()).startswith(b"HTTP/1.1 503")
        writer.close()
        async with session.post(url, json=PING) as response:
            assert response.status == 200


async def test_a_closed_connection_frees_its_place() -> None:
    async with serve() as (url, server):
        for _ in range(3):
            _, writer = await open_raw(url, b"")
            writer.close()
            await writer.wait_closed()
        async with asyncio.timeout(20):
            while server.gate.connections:
                await asyncio.sleep(0)


def test_a_gate_ignores_connections_it_does_not_know() -> None:
    gate = Gate(asyncio.Protocol)
    gate.enter(None)
    gate.leave(asyncio.Transport())
    assert gate.connections == {}


async def test_a_taken_port_says_what_to_do() -> None:
    async with serve() as (url, _):
        host, port = parse_listen(url.removeprefix("http://"))
        with pytest.raises(Unavailable) as caught:
            await RpcServer(Dispatcher({})).start(host, port)
        assert (caught.value.rule, "--listen" in caught.value.message) == ("node.listen", True)


@pytest.mark.parametrize(
    ("text", "address"),
    [("127.0.0.1:7001", ("127.0.0.1", 7001)), ("[::1]:0", ("::1", 0)), ("localhost:65535", ("localhost", 65535))],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    assert parse_listen(text) == address
    assert is_loopback(address[0])


@pytest.mark.parametrize("text", ["", "7001", ":7001", "host:", "host:x", "host:65536", "host:-1"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(Refused) as caught:
        parse_listen(text)
    assert caught.value.rule == "settings.listen"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_what_others_reach_is_not_loopback(host: str) -> None:
    assert not is_loopback(host)


async def test_a_body_of_json_is_answered_whatever_it_is() -> None:
    async with serve() as (url, _), aiohttp.ClientSession() as session:
        for body in (b"", b"{", b"[]", b"1", json.dumps([PING] * 3).encode()):
            async with session.post(url, data=body, headers=JSON_HEADERS) as response:
                assert response.status == 200
                assert json.loads(await response.read())
