"""The broker's blobs behind its real HTTP server, without orders and chain: what tests of blobs need and no more."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from msgspec.json import decode as decode_json
from multidict import CIMultiDict
from yarl import URL

from broker.protocol.api import Problem
from broker.rpc.client import BrokerClient
from broker.rpc.signing import HttpMessage, sign_request
from broker.service import custody
from broker.service.blobroutes import BlobRoutes
from broker.service.blobs import BlobStore
from broker.service.custody import Custody
from broker.service.web import WebServer
from chain.base.hashing import compute_digest
from chain.base.keys import Signer
from chain.runtime.clock import SystemClock
from chain.runtime.database import open_database
from chain.runtime.http import HttpServer
from tests.broker.world import REQUESTER, STRANGER

RICH = {REQUESTER.key, STRANGER.key}


class Shelf:
    """Blobs, their rights, and the routes to them, in `home`."""

    def __init__(self, home: Path, max_bytes: int = 1 << 30, quota: int = 2 << 30, capacity: int = 1 << 40) -> None:
        self.home = home
        self.rows = open_database(home / "rows.db", kind="shelf", version=1, schema=custody.SCHEMA)
        self.clock = SystemClock()
        self.blobs = BlobStore(home / "blobs", max_bytes)
        self.blobs.prepare()
        self.custody = Custody(self.rows, quota, capacity)
        self.routes = BlobRoutes(self.blobs, self.custody, self.clock, self._is_known)
        self.web = WebServer(self.routes.make_table(), self.clock)
        self.session: aiohttp.ClientSession
        self.url = ""

    async def _is_known(self, account: bytes) -> bool:
        return account in RICH

    async def start(self) -> None:
        self.url = await self.web.start("127.0.0.1", 0)

    async def close(self) -> None:
        await self.web.close()
        self.blobs.close()
        self.rows.close()

    def client(self, signer: Signer = REQUESTER) -> BrokerClient:
        return BrokerClient(self.url, signer, self.session)

    def list_files(self) -> list[str]:
        """Names of blobs and of what is half there."""
        files = [path for path in (self.home / "blobs").rglob("*") if path.is_file()]
        return sorted(path.name for path in files if not path.name.startswith("small.db"))

    def sign(self, signer: Signer, method: str, path: str, body: bytes, **more: str) -> CIMultiDict[str]:
        """Headers of a signed request; an underscore of a name stands for a hyphen."""
        return sign(self.url, signer, method, path, body, **more)

    async def send(self, method: str, path: str, headers: Any, data: Any = None) -> tuple[int, str, Any, bytes]:
        """Status, rule, headers and body."""
        url = URL(self.url + path, encoded=True)
        async with self.session.request(method, url, headers=headers, data=data) as response:
            text = await response.read()
            rule = decode_json(text, type=Problem).rule if response.status >= 400 and text else ""
            return response.status, rule, response.headers, text

    async def call(
        self, method: str, path: str, body: bytes = b"", signer: Signer = REQUESTER, **more: str
    ) -> tuple[int, str, Any, bytes]:
        """A signed request as it should be."""
        return await self.send(method, path, self.sign(signer, method, path, body, **more), body or None)

    async def put_piece(
        self, whole: bytes, offset: int, size: int, signer: Signer = REQUESTER, **more: str
    ) -> tuple[int, str]:
        """Send bytes `offset` to `offset + size` of `whole`; status and rule."""
        fields = {"Upload_Offset": str(offset), "Upload_Length": str(len(whole))} | more
        path, piece = upload_path(whole), whole[offset : offset + size]
        if not piece:
            fields["Content_Length"] = "0"
        status, rule, _, _ = await self.call("PATCH", path, piece, signer, **fields)
        return status, rule

    async def find(self, whole: bytes, signer: Signer = REQUESTER) -> tuple[int, str]:
        """Offset and completeness as HEAD says them."""
        status, _, headers, _ = await self.call("HEAD", upload_path(whole), signer=signer)
        assert status == 204
        return int(headers["Upload-Offset"]), headers["Upload-Complete"]


def upload_path(data: bytes) -> str:
    return f"/v1/uploads/{compute_digest(data).hex()}"


def blob_path(data: bytes) -> str:
    return f"/v1/blobs/{compute_digest(data).hex()}"


def sign(url: str, signer: Signer, method: str, path: str, body: bytes, **more: str) -> CIMultiDict[str]:
    """Headers of a signed request."""
    message = HttpMessage(method, url + path, CIMultiDict({name.replace("_", "-"): more[name] for name in more}))
    sign_request(signer, message, compute_digest(body), SystemClock().now(), secrets.token_hex(8))
    return message.headers


async def send_half(url: str, whole: bytes, offset: int, size: int) -> asyncio.StreamWriter:
    """A connection over which the head of a piece came and half of its bytes, and nothing more comes."""
    port, path, piece = URL(url).port or 0, upload_path(whole), whole[offset : offset + size]
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    headers = sign(url, REQUESTER, "PATCH", path, piece, Upload_Offset=str(offset), Upload_Length=str(len(whole)))
    lines = [f"{key}: {value}" for key, value in headers.items()]
    start = [f"PATCH {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", f"Content-Length: {len(piece)}"]
    writer.write("\r\n".join([*start, *lines, "", ""]).encode() + piece[: size // 2])
    await writer.drain()
    return writer


@asynccontextmanager
async def open_shelf(home: Path, **settings: int) -> AsyncIterator[Shelf]:
    """A shelf that serves."""
    shelf = Shelf(home, **settings)
    async with aiohttp.ClientSession() as shelf.session:
        await shelf.start()
        try:
            yield shelf
        finally:
            await shelf.close()


@asynccontextmanager
async def serve(handle: Any) -> AsyncIterator[str]:
    """Something at a URL that answers each request by `handle`."""
    app = aiohttp.web.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/{rest:.*}", handle)
    server = HttpServer("test")
    url = await server.start(app, "127.0.0.1", 0)
    try:
        yield url
    finally:
        await server.close()
