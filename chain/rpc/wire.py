"""Bytes of JSON-RPC to a node and back, over HTTP. `chain.rpc.client` loads this at its first call: aiohttp and its TLS
cost more than all else that a requester imports.
"""

from __future__ import annotations

import os

import aiohttp

from chain.base.errors import Unavailable

CONNECT_SECONDS = 5.0
"""Our own deadline for a connection: a refusal may be silence."""

SLACK_SECONDS = 20.0
"""How much longer than its `wait_ms` a call may take."""


class Wire:
    """Posts to one node at `url`. A session that is not given is made with the first request and closed by `close`."""

    def __init__(self, url: str, session: aiohttp.ClientSession | None) -> None:
        self._url = url
        self._session = session
        self._owned = session is None

    async def close(self) -> None:
        """Close the session, if it was made here."""
        if self._owned and self._session is not None:
            await self._session.close()
            self._session = None

    async def post(self, body: bytes, wait_ms: int, max_bytes: int) -> tuple[int, bytes]:
        """Status and body of the answer, of which at most one byte more than `max_bytes` is read. Raises `Unavailable`
        under `chain.unreachable` where none comes.
        """
        if self._session is None:
            self._session = aiohttp.ClientSession()
        timeout = aiohttp.ClientTimeout(total=wait_ms / 1000 + SLACK_SECONDS, connect=CONNECT_SECONDS)
        headers = {"Content-Type": "application/json"}
        try:
            async with self._session.post(self._url, data=body, timeout=timeout, headers=headers) as response:
                data = await response.content.read(max_bytes + 1)
                while len(data) <= max_bytes and not response.content.at_eof():
                    data += await response.content.read(max_bytes + 1 - len(data))
                return response.status, data
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            message = (
                f"no chain node answers at {self._url} ({describe_failure(error)}); "
                "start one with `tally-chain run`, or name another address"
            )
            raise Unavailable(message, rule="chain.unreachable") from None


def describe_failure(error: BaseException) -> str:
    """Why nobody was reached, in the system's words: aiohttp's own speak of TLS (`ssl:default`) where there is none."""
    if isinstance(error, aiohttp.ClientConnectorError) and not isinstance(error, aiohttp.ClientSSLError):
        number, text = error.os_error.errno or 0, error.os_error.strerror
        return os.strerror(number) if number > 0 else str(text or error.os_error)
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
