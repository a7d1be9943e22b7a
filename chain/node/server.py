"""The HTTP shell around the JSON-RPC dispatcher: POST, JSON, bounded bodies, deadlines, a cap on connections."""

from __future__ import annotations

import asyncio

from aiohttp import web

from chain.node.jsonrpc import Dispatcher
from chain.runtime.gate import Gate
from chain.runtime.http import HttpServer

__all__ = ["BODY_SECONDS", "MAX_BODY", "RpcServer"]

MAX_BODY = 8 << 20
"""Largest request: a batch of 50 transactions of the largest size, in hex."""

BODY_SECONDS = 10.0
"""How long a request's body may take, from its first byte to its last."""


class RpcServer:
    """Serves a dispatcher over HTTP at one address."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._http = HttpServer("node")

    @property
    def gate(self) -> Gate:
        """What stands before it, once it listens."""
        return self._http.gate

    async def start(self, host: str, port: int) -> str:
        """Listen (port 0: any free one) and return the URL. Raises `Unavailable` under `node.listen`."""
        app = web.Application(client_max_size=MAX_BODY)
        app.router.add_post("/", self._serve)
        return await self._http.start(app, host, port)

    async def close(self) -> None:
        """Stop listening, let open calls end for a moment, drop the rest."""
        await self._http.close()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        if request.content_type != "application/json":
            raise web.HTTPUnsupportedMediaType(text="JSON-RPC 2.0 comes as application/json\n")
        try:
            async with asyncio.timeout(BODY_SECONDS):
                body = await request.read()
        except TimeoutError as error:
            raise web.HTTPRequestTimeout(text="the body came too slowly\n", headers={"Connection": "close"}) from error
        answer = await self._dispatcher.answer(body)
        if answer is None:
            return web.Response(status=204)
        return web.Response(body=answer, content_type="application/json")
