"""A line between one provider and the broker that a test can cut: requests pass, are refused, or pass and are not
answered."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable

import aiohttp
from aiohttp import web

RECEIPT = re.compile(r"POST /v1/leases/[0-9a-f]{64}/receipt")
UPLOAD = re.compile(r"(POST|PUT|PATCH|HEAD) /v1/(blobs|uploads|leases/[0-9a-f]{64}/receipt).*")
"""Everything by which a provider hands results in."""

_HOPS = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length"})


class Line:
    """Passes requests on to `target()`. `refused` says which are cut off unheard, `held` which of them are passed on,
    but their answers kept; `cut` is set with the first request that either was done to.
    """

    def __init__(self, target: Callable[[], str]) -> None:
        self.url = ""
        self.cut = asyncio.Event()
        self.refused: re.Pattern[str] | None = None
        self.held: re.Pattern[str] | None = None
        self._target = target
        self._runner: web.AppRunner | None = None
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Listen on a port of loopback."""
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", self._pass)
        self._session = aiohttp.ClientSession(auto_decompress=False)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def close(self) -> None:
        """Stop."""
        if self._runner is not None:
            await self._runner.cleanup()
        if self._session is not None:
            await self._session.close()

    async def _pass(self, request: web.Request) -> web.StreamResponse:
        assert self._session is not None
        name = f"{request.method} {request.path}"
        if self.refused is not None and self.refused.fullmatch(name):
            self.cut.set()
            return _hang_up(request)
        kept = [(key, value) for key, value in request.headers.items() if key.lower() not in _HOPS]
        try:
            async with self._session.request(
                request.method, self._target() + request.path_qs, headers=kept, data=await request.read() or None
            ) as answer:
                body = await answer.read()
        except aiohttp.ClientError:
            return _hang_up(request)
        if self.held is not None and self.held.fullmatch(name):
            self.cut.set()
            return _hang_up(request)
        headers = {key: value for key, value in answer.headers.items() if key.lower() not in _HOPS}
        if request.method == "HEAD":
            headers["Content-Length"] = answer.headers.get("Content-Length", "0")
        return web.Response(status=answer.status, headers=headers, body=body)


def _hang_up(request: web.Request) -> web.Response:
    """End the connection without an answer."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=502)
