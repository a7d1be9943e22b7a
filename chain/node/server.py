"""The HTTP shell around the JSON-RPC dispatcher: POST, JSON, bounded bodies, deadlines, a cap on connections."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from aiohttp import web

from chain.base.errors import Unavailable
from chain.node.jsonrpc import Dispatcher
from chain.runtime.gate import Gate

__all__ = ["BODY_SECONDS", "MAX_BODY", "RpcServer"]

MAX_BODY = 8 << 20
"""Largest request: a batch of 50 transactions of the largest size, in hex."""

BODY_SECONDS = 10.0
"""How long a request's body may take, from its first byte to its last."""

CLOSE_SECONDS = 2.0
"""How long open calls may take to end when the server closes."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class RpcServer:
    """Serves a dispatcher over HTTP at one address."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._runner: web.AppRunner | None = None
        self._server: asyncio.Server | None = None
        self.gate: Gate | None = None

    async def start(self, host: str, port: int) -> str:
        """Listen (port 0: any free one) and return the URL. Raises `Unavailable` under `node.listen`."""
        app = web.Application(middlewares=[self._guard], client_max_size=MAX_BODY)
        app.router.add_post("/", self._serve)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=CLOSE_SECONDS)
        await self._runner.setup()
        factory = self._runner.server
        if factory is None:
            raise Unavailable("the HTTP server did not start", rule="node.listen")
        self.gate = Gate(factory)
        try:
            self._server = await asyncio.get_running_loop().create_server(self.gate, host, port, backlog=512)
        except OSError as error:
            await self._runner.cleanup()
            message = f"cannot listen at {host}:{port} ({error.strerror}); name another port with --listen"
            raise Unavailable(message, rule="node.listen") from error
        address = self._server.sockets[0].getsockname()
        shown = f"[{address[0]}]" if ":" in address[0] else address[0]
        return f"http://{shown}:{address[1]}"

    async def close(self) -> None:
        """Stop listening, let open calls end for a moment, drop the rest."""
        if self._server is not None:
            self._server.close()
        if self._runner is not None:
            await self._runner.cleanup()

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if self.gate is None:
            raise web.HTTPServiceUnavailable
        self.gate.enter(request.transport)
        try:
            return await handler(request)
        finally:
            self.gate.leave(request.transport)

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
