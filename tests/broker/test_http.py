"""The HTTP side under attack: who may do what, bodies that are too large, too slow, inflated or not what was signed,
and blobs of strangers (threats.md A14, rows 32 to 37).
"""

from __future__ import annotations

import asyncio
import gzip
import secrets
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from msgspec.json import decode as decode_json
from msgspec.structs import replace
from multidict import CIMultiDict
from yarl import URL

from broker.protocol.api import INLINE_BYTES, PROTOCOL_VERSION, Problem, Submission
from broker.rpc.signing import HttpMessage, sign_request
from broker.service import web
from broker.service.blobs import SMALL
from chain.base.codec import encode
from chain.base.errors import Refused
from chain.base.hashing import compute_digest
from chain.base.keys import Signer
from chain.ledger.terms.agreement import compute_order_id
from chain.runtime.clock import SystemClock
from tests.broker.market import Market, eventually, open_market
from tests.broker.test_service import open_lease
from tests.broker.world import (
    CHAIN,
    CODE,
    INPUTS,
    LOG,
    OUTPUT,
    PROVENANCE,
    PROVIDERS,
    REQUESTER,
    STRANGER,
    make_acceptance,
    make_delivery,
    make_order,
    make_records,
    make_spec,
    make_submission,
    sign_delivery,
    sign_order,
)

SECRET = b"a stranger's secret"
LARGE = bytes(range(256)) * (SMALL // 256 + 40)


def now() -> int:
    return SystemClock().now()


class Raw:
    """Signed requests with nothing done for you."""

    def __init__(self, market: Market, signer: Signer = REQUESTER) -> None:
        self.market = market
        self.signer = signer

    def headers(self, method: str, path: str, body: bytes, **more: str) -> CIMultiDict[str]:
        message = HttpMessage(method, self.market.node.url + path, CIMultiDict(more))
        sign_request(self.signer, message, compute_digest(body), now(), secrets.token_hex(8))
        return message.headers

    async def send(self, method: str, path: str, headers: Any, data: Any = None) -> tuple[int, str]:
        """Status and rule."""
        url = URL(self.market.node.url + path, encoded=True)
        async with self.market.session.request(method, url, headers=headers, data=data) as response:
            text = await response.read()
            if response.status < 400:
                return response.status, ""
            assert response.content_type == "application/problem+json"
            problem = decode_json(text, type=Problem)
            assert problem.status == response.status
            return response.status, problem.rule

    async def call(self, method: str, path: str, body: bytes = b"", **more: str) -> tuple[int, str]:
        return await self.send(method, path, self.headers(method, path, body, **more), body or None)


def blob_path(data: bytes) -> str:
    return f"/v1/blobs/{compute_digest(data).hex()}"


def files(home: Path) -> list[str]:
    """Names of all blobs, be they files or rows, and of what is half there."""
    found = {path.name for path in (home / "blobs").rglob("*") if path.is_file()}
    rows = sqlite3.connect(home / "blobs" / "small.db")
    small = {bytes(row[0]).hex() for row in rows.execute("SELECT digest FROM small_blobs")}
    rows.close()
    return sorted(name for name in found | small if not name.startswith("small.db"))


async def test_only_what_everybody_may_know_is_open(tmp_path: Path) -> None:
    async with open_market(tmp_path) as market:
        raw = Raw(market)
        for path in ("/v1/info", "/v1/providers"):
            assert await raw.send("GET", path, {}) == (200, "")
        for method, path in [
            ("GET", "/v1/orders"),
            ("POST", "/v1/orders"),
            ("PUT", blob_path(CODE)),
            ("GET", blob_path(CODE)),
            ("POST", "/v1/blobs"),
            ("POST", "/v1/blobs/wanted"),
            ("HEAD", f"/v1/uploads/{'00' * 32}"),
            ("PATCH", f"/v1/uploads/{'00' * 32}"),
            ("POST", "/v1/estimate"),
            ("HEAD", "/v1/nothing"),
            ("GET", f"/v1/orders/{'00' * 32}/events"),
            ("POST", f"/v1/leases/{'00' * 32}/receipt"),
        ]:
            async with market.session.request(method, market.node.url + path) as response:
                assert response.status == 401, (method, path)


async def test_a_request_counts_once_and_only_as_it_was_signed(tmp_path: Path) -> None:
    async with open_market(tmp_path) as market:
        raw = Raw(market)
        path = blob_path(CODE)
        headers = raw.headers("PUT", path, CODE)
        assert await raw.send("PUT", path, headers, CODE) == (201, "")
        assert await raw.send("PUT", path, headers, CODE) == (401, "http.replay")
        headers = raw.headers("GET", path, b"")
        assert await raw.send("GET", blob_path(INPUTS), headers) == (401, "http.signature")
        assert await raw.send("GET", f"{path}?x=1", headers) == (401, "http.signature")
        assert await raw.send("GET", path, headers) == (200, "")
        headers = raw.headers("POST", "/v1/orders", b"a body")
        assert await raw.send("POST", "/v1/orders", headers, b"another body") == (401, "http.digest")


@pytest.mark.parametrize(
    ("body", "rule"),
    [(b"", "codec.form"), (b"\xff" * 100, "codec.trailing"), (b"\xdd\xff\xff\xff\xff", "codec.items")],
    ids=["nothing", "noise", "four billion elements"],
)
async def test_a_body_that_is_no_order_is_refused(tmp_path: Path, body: bytes, rule: str) -> None:
    async with open_market(tmp_path) as market:
        assert await Raw(market).call("POST", "/v1/orders", body) == (400, rule)


NAMES = [
    "..%2f..%2fetc%2fpasswd",
    "../../etc/passwd",
    "A" * 64,
    "0" * 63,
    "0" * 65,
    "%00" * 64,
    "0" * 62 + "%2e%2e",
    "",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", ["GET", "PUT"])
async def test_a_blob_is_named_by_64_hex_digits_and_by_nothing_else(tmp_path: Path, name: str, method: str) -> None:
    async with open_market(tmp_path) as market:
        url = URL(f"{market.node.url}/v1/blobs/{name}", encoded=True)
        raw = Raw(market)
        headers = raw.headers(method, url.raw_path, b"x" if method == "PUT" else b"")
        async with market.session.request(method, url, headers=headers, data=b"x" if method == "PUT" else None) as got:
            assert got.status == 404
        assert files(tmp_path) == []


async def test_bytes_that_are_not_those_of_the_name_leave_nothing(tmp_path: Path) -> None:
    async with open_market(tmp_path) as market:
        raw = Raw(market)
        assert await raw.call("PUT", blob_path(CODE), INPUTS) == (422, "http.digest")
        for honest, other in [(CODE, b"x" * len(CODE)), (LARGE, b"x" * len(LARGE))]:
            headers = raw.headers("PUT", blob_path(honest), honest)
            assert await raw.send("PUT", blob_path(honest), headers, other) == (422, "blob.digest")
        assert files(tmp_path) == []
        assert market.node.parts.custody.compute_held(REQUESTER.key) == 0


async def test_large_and_empty_blobs_come_back_as_they_were(tmp_path: Path) -> None:
    async with open_market(tmp_path) as market:
        client = market.client()
        for data in (LARGE, b"", b"x"):
            digest = await client.put_blob(data)
            assert await client.get_blob(digest, len(data)) == data
            assert await client.has_blob(digest)
        with pytest.raises(Refused) as refused:
            await client.get_blob(compute_digest(LARGE), len(LARGE) - 1)
        assert refused.value.rule == "blob.size"
        assert not await client.has_blob(compute_digest(b"never stored"))
        assert len(files(tmp_path)) == 3


async def test_a_blob_may_be_as_large_as_allowed_and_no_larger(tmp_path: Path) -> None:
    async with open_market(tmp_path, max_blob_bytes=1_000) as market:
        raw = Raw(market)
        assert await raw.call("PUT", blob_path(b"x" * 1_000), b"x" * 1_000) == (201, "")
        large = b"y" * 1_001
        assert await raw.call("PUT", blob_path(large), large) == (413, "blob.size")

        async def trickle() -> AsyncIterator[bytes]:
            for _ in range(11):
                yield b"y" * 91

        headers = raw.headers("PUT", blob_path(large), large)
        assert await raw.send("PUT", blob_path(large), headers, trickle()) == (413, "blob.size")
        assert files(tmp_path) == [compute_digest(b"x" * 1_000).hex()]


async def test_an_account_holds_no_more_than_its_quota(tmp_path: Path) -> None:
    async with open_market(tmp_path, quota_bytes=100) as market:
        raw = Raw(market)
        assert await raw.call("PUT", blob_path(b"x" * 60), b"x" * 60) == (201, "")
        assert await raw.call("PUT", blob_path(b"y" * 60), b"y" * 60) == (429, "blob.quota")
        market.chain.balances[STRANGER.key] = 1
        assert await Raw(market, STRANGER).call("PUT", blob_path(b"y" * 60), b"y" * 60) == (201, "")


async def test_the_store_has_an_end(tmp_path: Path) -> None:
    async with open_market(tmp_path, store_bytes=100) as market:
        raw = Raw(market)
        assert await raw.call("PUT", blob_path(b"x" * 60), b"x" * 60) == (201, "")
        assert await raw.call("PUT", blob_path(b"y" * 60), b"y" * 60) == (503, "blob.full")


async def test_nothing_inflates(tmp_path: Path) -> None:
    """A14: a bomb is refused by its header, and where it hides it is just bytes."""
    async with open_market(tmp_path, max_blob_bytes=10_000) as market:
        bomb = gzip.compress(bytes(5_000_000), 9)
        raw = Raw(market)
        for name in ("gzip", "deflate", "br", "identity, gzip"):
            got = await raw.call("PUT", blob_path(bomb), bomb, **{"Content-Encoding": name})
            assert got == (415, "http.encoding")
        assert files(tmp_path) == []


async def test_a_body_has_a_deadline_that_no_trickle_extends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "BODY_SECONDS", 0.2)
    monkeypatch.setattr("broker.service.blobroutes.BLOB_SECONDS", 0.2)
    done = asyncio.Event()

    async def trickle() -> AsyncIterator[bytes]:
        while not done.is_set():
            yield b"x"
            await asyncio.sleep(0.01)

    async with open_market(tmp_path) as market:
        raw = Raw(market)
        for method, path in [("POST", "/v1/orders"), ("PUT", blob_path(CODE))]:
            headers = raw.headers(method, path, CODE)
            headers["Content-Length"] = str(len(CODE) + 10_000)
            url = market.node.url + path
            async with (
                aiohttp.ClientSession() as session,
                session.request(method, url, headers=headers, data=trickle()) as got,
            ):
                assert got.status == 408
        done.set()
        assert files(tmp_path) == []


async def test_headers_have_a_deadline_and_connections_are_capped(tmp_path: Path) -> None:
    """Row 33: a slow head is cut off; above the cap a newcomer hears 503 and others go on."""
    async with open_market(tmp_path) as market:
        gate = market.node.gate
        gate.idle_seconds, gate.limit = 0.2, 3
        port = URL(market.node.url).port or 0
        slow = [await asyncio.open_connection("127.0.0.1", port) for _ in range(gate.limit)]
        for _, writer in slow:
            writer.write(b"GET /v1/info HTTP/1.1\r\nHost: x\r\nX-Slow: ")
            await writer.drain()
        await eventually(lambda: len(gate.connections) >= gate.limit)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert (await reader.readline()).startswith(b"HTTP/1.1 503")
        writer.close()
        async with asyncio.timeout(5):
            for reader, writer in slow:
                assert await reader.read() == b""
                writer.close()
        await market.client().info()


async def test_an_answer_has_a_deadline_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 33: who reads slowly gets all of it, even behind the idle deadline; who does not read is cut off."""
    data = bytes(16 << 20)
    async with open_market(tmp_path) as market:
        raw, gate, port = Raw(market), market.node.gate, URL(market.node.url).port or 0
        gate.idle_seconds = 0.1
        await market.client().put_blob(data)
        path = blob_path(data)

        async def ask() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 16)
            lines = [f"{name}: {value}" for name, value in raw.headers("GET", path, b"").items()]
            host = f"Host: 127.0.0.1:{port}"
            writer.write("\r\n".join([f"GET {path} HTTP/1.1", host, "Connection: close", *lines, "", ""]).encode())
            return reader, writer

        reader, writer = await ask()
        size, head = 0, await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        while chunk := await reader.read(1 << 20):
            size += len(chunk)
            await asyncio.sleep(0.001)
        assert size == len(data)
        writer.close()
        monkeypatch.setattr("broker.service.blobroutes.BLOB_SECONDS", -len(data) / web.BLOB_BYTES_PER_SECOND + 0.2)
        _, writer = await ask()
        await eventually(lambda: len(gate.connections) > 0)
        await eventually(lambda: len(gate.connections) == 0)
        writer.close()


async def test_who_may_read_which_blob(tmp_path: Path) -> None:
    async with open_market(tmp_path) as market:
        seller = await market.add_seller()
        _, award = await open_lease(market, seller)
        delivery = make_delivery(award)
        provider = market.client(PROVIDERS[0])
        await provider.deliver(delivery.receipt.body.lease, delivery)
        table = {
            REQUESTER: {CODE: True, INPUTS: True, OUTPUT: True, LOG: True},
            PROVIDERS[0]: {CODE: True, INPUTS: True, OUTPUT: True, LOG: True},
            PROVIDERS[1]: {CODE: False, INPUTS: False, OUTPUT: False, LOG: False},
            STRANGER: {CODE: False, INPUTS: False, OUTPUT: False, LOG: False},
        }
        for signer, row in table.items():
            for data, good in row.items():
                got = await Raw(market, signer).call("GET", blob_path(data))
                assert got == ((200, "") if good else (404, "blob.unknown"))


async def test_naming_a_strangers_blob_is_not_reading_it(tmp_path: Path) -> None:
    """An order may name only what its requester uploaded, a receipt only what its provider did."""
    async with open_market(tmp_path) as market:
        market.chain.balances[STRANGER.key] = 10_000_000
        await market.client(STRANGER).put_blob(SECRET)
        spec = make_spec(inputs=compute_digest(SECRET), input_bytes=len(SECRET))
        submission = Submission(PROTOCOL_VERSION, sign_order(make_order(now(), spec)), spec, (CODE,))
        with pytest.raises(Refused) as refused:
            await market.client().submit(submission)
        assert refused.value.rule == "blob.missing"
        seller = await market.add_seller()
        _, award = await open_lease(market, seller)
        named = [replace(one, output=compute_digest(SECRET)) for one in make_records(award)]
        delivery = replace(sign_delivery(award, named), blobs=(LOG, PROVENANCE))
        with pytest.raises(Refused) as refused:
            await market.client(PROVIDERS[0]).deliver(delivery.receipt.body.lease, delivery)
        assert refused.value.rule == "blob.missing"
        for signer in (REQUESTER, PROVIDERS[0]):
            assert await Raw(market, signer).call("GET", blob_path(SECRET)) == (404, "blob.unknown")


async def test_a_key_without_an_account_stores_nothing(tmp_path: Path) -> None:
    async with open_market(tmp_path) as market:
        assert await Raw(market, STRANGER).call("PUT", blob_path(CODE), CODE) == (403, "blob.account")


async def test_inline_blobs_are_bounded_and_sizes_have_to_be_true(tmp_path: Path) -> None:
    async with open_market(tmp_path) as market:
        blobs = (CODE, INPUTS, bytes(INLINE_BYTES))
        with pytest.raises(Refused) as refused:
            await market.client().submit(make_submission(now(), blobs=blobs))
        assert refused.value.rule == "blob.inline"
        spec = make_spec(code_bytes=len(CODE) + 1)
        with pytest.raises(Refused) as refused:
            await market.client().submit(
                Submission(PROTOCOL_VERSION, sign_order(make_order(now(), spec)), spec, (CODE, INPUTS))
            )
        assert refused.value.rule == "order.blobs"


async def test_who_may_ask_what_of_a_lease(tmp_path: Path) -> None:
    async with open_market(tmp_path) as market:
        seller = await market.add_seller()
        order_id, award = await open_lease(market, seller)
        delivery = make_delivery(award)
        lease = delivery.receipt.body.lease
        acceptance = encode(make_acceptance(delivery))
        body = encode(delivery)
        rows = [
            (PROVIDERS[1], "POST", f"/v1/leases/{lease.hex()}/receipt", body, (403, "lease.party")),
            (REQUESTER, "POST", f"/v1/leases/{lease.hex()}/receipt", body, (403, "lease.party")),
            (PROVIDERS[0], "POST", f"/v1/leases/{'00' * 32}/receipt", body, (404, "lease.unknown")),
            (PROVIDERS[0], "POST", f"/v1/leases/{lease.hex()}/acceptance", acceptance, (403, "lease.party")),
            (REQUESTER, "POST", f"/v1/leases/{lease.hex()}/acceptance", acceptance, (422, "R7.receipt")),
            (REQUESTER, "GET", f"/v1/leases/{lease.hex()}/acceptance", b"", (403, "lease.party")),
            (PROVIDERS[0], "GET", f"/v1/leases/{lease.hex()}/acceptance", b"", (404, "acceptance.none")),
            (STRANGER, "GET", f"/v1/orders/{order_id.hex()}/events", b"", (404, "job.unknown")),
            (PROVIDERS[0], "GET", f"/v1/orders/{order_id.hex()}/events", b"", (404, "job.unknown")),
            (REQUESTER, "GET", f"/v1/orders/{order_id.hex()}/events?after=x", b"", (400, "http.form")),
            (REQUESTER, "GET", f"/v1/orders/{order_id.hex()}/events?after=-1", b"", (400, "http.form")),
            (REQUESTER, "GET", f"/v1/orders/{order_id.hex()}/events", b"", (200, "")),
            (REQUESTER, "DELETE", f"/v1/orders/{order_id.hex()}/events", b"", (404, "http.route")),
        ]
        for signer, method, path, data, expected in rows:
            assert await Raw(market, signer).call(method, path, data) == expected, (method, path)
        assert (await market.client(STRANGER).orders()) == []


async def test_only_the_requester_hands_its_order_in(tmp_path: Path) -> None:
    async with open_market(tmp_path) as market:
        market.chain.balances[STRANGER.key] = 10_000_000
        with pytest.raises(Refused) as refused:
            await market.client(STRANGER).submit(make_submission(now()))
        assert refused.value.rule == "order.requester"
        order = make_order(now())
        forged = Submission(PROTOCOL_VERSION, sign_order(order, STRANGER), make_spec(), (CODE, INPUTS))
        with pytest.raises(Refused) as refused:
            await market.client().submit(forged)
        assert refused.value.rule == "signature.order"
        old = Submission(PROTOCOL_VERSION - 1, sign_order(order), make_spec(), (CODE, INPUTS))
        with pytest.raises(Refused) as refused:
            await market.client().submit(old)
        assert refused.value.rule == "protocol.version"
        assert market.node.desk.find(compute_order_id(CHAIN, order)) is None


async def test_a_delivery_of_another_lease_is_refused(tmp_path: Path) -> None:
    async with open_market(tmp_path) as market:
        seller = await market.add_seller()
        _, award = await open_lease(market, seller)
        good = make_delivery(award)
        forged = replace(good, receipt=make_delivery(award, count=2).receipt)
        with pytest.raises(Refused) as refused:
            await market.client(PROVIDERS[0]).deliver(good.receipt.body.lease, forged)
        assert refused.value.rule == "R5.prefix"


async def test_what_has_run_out_is_forgotten(tmp_path: Path) -> None:
    async with open_market(tmp_path) as market:
        await market.client().put_blob(SECRET)
        custody, blobs = market.node.parts.custody, market.node.parts.blobs
        blobs.remove(custody.sweep(now()))
        assert len(files(tmp_path)) == 1
        blobs.remove(custody.sweep(now() + 2 * 3_600_000))
        assert files(tmp_path) == []
        assert custody.compute_held(REQUESTER.key) == 0
