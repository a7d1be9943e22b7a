"""What stands between the network and aiohttp: a cap on connections, and absolute deadlines that no trickle of bytes
extends.

A connection that is not inside a handler (waiting for its first byte, for the rest of its headers, for its next
request, or for its client to read) is
closed after `IDLE_SECONDS`; inside, the handler has deadlines of its own. Above the cap a newcomer gets 503 at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

__all__ = ["IDLE_SECONDS", "MAX_CONNECTIONS", "Gate"]

MAX_CONNECTIONS = 512
"""Each costs a file descriptor and some 50 KB; a node's clients keep one or two open."""

IDLE_SECONDS = 20.0
"""How long a connection may be outside a handler."""

_FULL = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\nRetry-After: 1\r\n\r\n"


class Gate:
    """Protocol factory for `loop.create_server`: wraps the protocols that `factory` makes."""

    def __init__(
        self, factory: Callable[[], asyncio.Protocol], limit: int = MAX_CONNECTIONS, idle_seconds: float = IDLE_SECONDS
    ) -> None:
        self.limit = limit
        self.idle_seconds = idle_seconds
        self.connections: dict[asyncio.BaseTransport, _Guarded] = {}
        self._factory = factory

    def __call__(self) -> asyncio.Protocol:
        """The protocol of a new connection."""
        return _Full() if len(self.connections) >= self.limit else _Guarded(self, self._factory())

    def enter(self, transport: asyncio.BaseTransport | None) -> None:
        """A handler took a request of this connection: its idle deadline stops."""
        guarded = self.connections.get(transport) if transport is not None else None
        if guarded is not None:
            guarded.disarm()

    def leave(self, transport: asyncio.BaseTransport | None) -> None:
        """The handler is done: its idle deadline runs anew."""
        guarded = self.connections.get(transport) if transport is not None else None
        if guarded is not None:
            guarded.arm()


class _Full(asyncio.Protocol):
    """Says 503 and hangs up."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, asyncio.WriteTransport):
            transport.write(_FULL)
        transport.close()


class _Guarded(asyncio.Protocol):
    """Hands everything on to the inner protocol and aborts the connection at its idle deadline."""

    def __init__(self, gate: Gate, inner: asyncio.Protocol) -> None:
        self._gate = gate
        self._inner = inner
        self._transport: asyncio.BaseTransport | None = None
        self._timer: asyncio.TimerHandle | None = None

    def arm(self) -> None:
        self.disarm()
        self._timer = asyncio.get_running_loop().call_later(self._gate.idle_seconds, self._expire)

    def disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        if isinstance(self._transport, asyncio.WriteTransport):
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._gate.connections[transport] = self
        self.arm()
        self._inner.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.disarm()
        if self._transport is not None:
            self._gate.connections.pop(self._transport, None)
        self._inner.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received()

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()
