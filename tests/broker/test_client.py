"""What the broker's client makes of brokers that are away, full, of another version, or no brokers at all."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec
import pytest
from aiohttp import web

from broker.bus.server import find_free_port
from broker.protocol.api import PROTOCOL_VERSION, Info, Problem
from broker.rpc.client import BrokerClient
from chain.base.errors import Fault, Refused, TallyError, Unavailable
from chain.base.hashing import compute_digest
from tests.broker.world import REQUESTER

INFO = Info(PROTOCOL_VERSION, "tallystick", "00", "00", "mqtt://127.0.0.1:1", 100, 1, 1, 0)


@asynccontextmanager
async def fake_broker(answer: Callable[[], web.Response]) -> AsyncIterator[BrokerClient]:
    """Something that answers everything the same way."""

    async def handle(_request: web.Request) -> web.Response:
        return answer()

    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    async with BrokerClient(f"http://127.0.0.1:{port}/", REQUESTER) as client:
        yield client
    await runner.cleanup()


async def test_a_broker_that_is_away_is_one_clear_message() -> None:
    url = f"http://127.0.0.1:{find_free_port()}"
    async with BrokerClient(url, REQUESTER) as client:
        with pytest.raises(Unavailable) as refused:
            await client.info()
    assert refused.value.rule == "broker.unreachable"
    assert refused.value.__suppress_context__  # the one good line stands alone in a traceback
    assert f"{url} (Connection refused); start one with `tally-broker run`" in refused.value.message


def problem(status: int, rule: str) -> web.Response:
    return web.Response(status=status, body=msgspec.json.encode(Problem("no", status, "the reason", rule)))


ANSWERS: list[tuple[str, Callable[[], web.Response], type[TallyError], str]] = [
    ("refused", lambda: problem(422, "R12.funds"), Refused, "R12.funds"),
    ("full", lambda: problem(503, "order.busy"), Unavailable, "order.busy"),
    ("its fault", lambda: problem(500, "auction.failed"), Unavailable, "auction.failed"),
    ("a page of a web server", lambda: web.Response(status=404, text="<h1>no</h1>"), Unavailable, "broker.address"),
    ("a node of a chain", lambda: web.Response(status=405), Unavailable, "broker.address"),
    ("a redirect", lambda: web.Response(status=302, headers={"Location": "http://127.0.0.1:9"}), Refused, "http.302"),
    ("no JSON", lambda: web.Response(body=b"hello"), Unavailable, "broker.address"),
    ("JSON of something else", lambda: web.json_response({"order": 5}), Unavailable, "broker.address"),
]


@pytest.mark.parametrize(("answer", "kind", "rule"), [row[1:] for row in ANSWERS], ids=[row[0] for row in ANSWERS])
async def test_answers_become_three_kinds_of_errors(
    answer: Callable[[], web.Response], kind: type[TallyError], rule: str
) -> None:
    async with fake_broker(answer) as client:
        with pytest.raises(kind) as refused:
            await client.info()
        assert refused.value.rule == rule


async def test_another_version_is_refused_by_name() -> None:
    other = msgspec.structs.replace(INFO, version=PROTOCOL_VERSION + 1)
    async with fake_broker(lambda: web.Response(body=msgspec.json.encode(other))) as client:
        with pytest.raises(Refused) as refused:
            await client.info()
        assert refused.value.rule == "protocol.version"


async def test_a_lying_broker_is_caught() -> None:
    async with fake_broker(lambda: web.Response(body=b"other bytes")) as client:
        with pytest.raises(Fault) as refused:
            await client.get_blob(compute_digest(b"what was asked"), 100)
        assert refused.value.rule == "blob.digest"
        with pytest.raises(Refused) as large:
            await client.get_blob(compute_digest(b"what was asked"), 5)
        assert large.value.rule == "blob.size"
        with pytest.raises(Fault) as noise:
            await client.events(bytes(32), 0, 0)
        assert noise.value.rule == "broker.answer"
