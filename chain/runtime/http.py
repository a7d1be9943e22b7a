"""An aiohttp application at one address, behind a `Gate`: listening, its errors, and a close that waits a moment."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from chain.base.errors import Fault, Unavailable
from chain.runtime.gate import Gate

CLOSE_SECONDS = 1.0
"""How long open requests may take to end when the server closes."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class HttpServer:
    """Serves one application. `part` names the rules of its errors, as in `node.listen`."""

    def __init__(self, part: str) -> None:
        self._gate: Gate | None = None
        self._part = part
        self._runner: web.AppRunner | None = None
        self._server: asyncio.Server | None = None

    @property
    def gate(self) -> Gate:
        """What stands before it. Raises `Fault` while it does not listen."""
        if self._gate is None:
            raise Fault("the server does not listen", rule=f"{self._part}.listen")
        return self._gate

    async def start(self, app: web.Application, host: str, port: int, **options: Any) -> str:
        """Listen (port 0: any free one) and return the URL. `options` are those of `web.AppRunner`.

        Raises `Unavailable` under `<part>.listen`.
        """
        app.middlewares.insert(0, self._guard)
        self._runner = web.AppRunner(
            app, access_log=None, handler_cancellation=True, shutdown_timeout=CLOSE_SECONDS, **options
        )
        await self._runner.setup()
        factory = self._runner.server
        if factory is None:
            raise Fault("the HTTP server did not start", rule=f"{self._part}.listen")
        self._gate = Gate(factory)
        try:
            self._server = await asyncio.get_running_loop().create_server(self._gate, host, port, backlog=512)
        except OSError as error:
            await self._runner.cleanup()
            why = f"cannot listen at {host}:{port} ({error.strerror}); name another port with --listen"
            raise Unavailable(why, rule=f"{self._part}.listen") from error
        address = self._server.sockets[0].getsockname()
        shown = f"[{address[0]}]" if ":" in address[0] else address[0]
        return f"http://{shown}:{address[1]}"

    async def close(self) -> None:
        """Stop listening, let open requests end for a moment, drop the rest."""
        if self._server is not None:
            self._server.close()
        if self._runner is not None:
            await self._runner.cleanup()

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self.gate.enter(request.transport)
        try:
            return await handler(request)
        finally:
            self.gate.leave(request.transport)
