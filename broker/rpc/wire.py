"""Requests of the broker's HTTP API as they go over the wire: signed, bounded, with deadlines, and every failure one of
three errors.

`broker.rpc.client` loads this module with its first call: aiohttp, its TLS and the parser of signatures cost more than
all else that `requester` imports.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import msgspec
from multidict import CIMultiDict
from yarl import URL

from broker.protocol.api import MAX_BODY_BYTES, Problem
from broker.rpc.ask import UNREACHABLE, Answer, Ask, describe_elsewhere
from broker.rpc.signing import HttpMessage, sign_request
from chain.base.errors import Refused, TallyError, Unavailable
from chain.base.hashing import compute_digest
from chain.base.keys import Signer
from chain.rpc.wire import describe_failure
from chain.runtime.clock import Clock

CONNECT_SECONDS = 5.0
"""Our own deadline for a connection: a refusal may be silence."""

OPEN_PATHS = frozenset({"/v1/info", "/v1/providers"})
"""What anybody may ask without a signature."""

CHUNK = 1 << 18
"""Bytes handed to the connection at once."""

READ_BUFFER = 1 << 19
"""Bytes of an answer that wait in memory before the broker is told to pause."""


class Wire:
    """Sends requests to the broker at `url`, signed by `signer`. A session that is not given is made with the first
    request and closed by `close`.
    """

    def __init__(self, url: str, signer: Signer, session: aiohttp.ClientSession | None, clock: Clock) -> None:
        self.url = url
        self._base = URL(url)
        self._signer = signer
        self._session = session
        self._owned = session is None
        self._clock = clock

    async def close(self) -> None:
        """Close the session, if it was made here."""
        if self._owned and self._session is not None:
            await self._session.close()
            self._session = None

    async def send(self, ask: Ask) -> Answer:
        """The whole answer; raises what the broker refused."""
        async with self.open(ask) as response:
            await self.check(response)
            return Answer(response.headers, await self._read_body(response, ask.max_bytes))

    @asynccontextmanager
    async def open(self, ask: Ask) -> AsyncIterator[aiohttp.ClientResponse]:
        """An answer whose head is there and whose body is not read yet; its status is the caller's business (`check`).
        Network errors of the block itself become `Unavailable` too, so nothing else may raise `OSError` in it.
        """
        url = self._base.with_path(self._base.path.rstrip("/") + ask.path).with_query(ask.query)
        headers = CIMultiDict(ask.headers)
        if ask.path not in OPEN_PATHS:
            message = HttpMessage(ask.method, str(url), headers)
            digest = compute_digest(ask.body) if ask.digest is None else ask.digest
            sign_request(self._signer, message, digest, self._clock.now(), secrets.token_urlsafe(12))
        headers.setdefault("Content-Type", "application/octet-stream")
        data: bytes | AsyncIterator[memoryview] | None = ask.body or None
        if len(ask.body) > CHUNK:
            headers["Content-Length"] = str(len(ask.body))
            data = _cut(ask.body)
        if self._session is None:
            self._session = aiohttp.ClientSession(auto_decompress=False)
        timeout = aiohttp.ClientTimeout(total=ask.seconds, sock_connect=CONNECT_SECONDS, sock_read=ask.stall)
        try:
            async with self._session.request(
                ask.method,
                url,
                data=data,
                headers=headers,
                timeout=timeout,
                allow_redirects=False,
                read_bufsize=READ_BUFFER,
            ) as response:
                yield response
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            message_text = (
                f"no broker answers at {self.url} ({describe_failure(error)}); "
                "start one with `tally-broker run`, or name another address"
            )
            raise Unavailable(message_text, rule=UNREACHABLE) from None

    async def check(self, response: aiohttp.ClientResponse) -> None:
        """Raise what the broker refused, under the rule it names."""
        if response.status >= 300:
            data = await self._read_body(response, MAX_BODY_BYTES)
            raise self._translate(response.method, response.status, data)

    async def _read_body(self, response: aiohttp.ClientResponse, limit: int) -> bytes:
        parts, size = [], 0
        async for chunk in response.content.iter_chunked(CHUNK):
            size += len(chunk)
            if size > limit:
                raise Refused(f"{self.url} sends more than {limit} bytes", rule="blob.size")
            parts.append(chunk)
        return b"".join(parts)

    def _translate(self, method: str, status: int, data: bytes) -> TallyError:
        try:
            problem = msgspec.json.decode(data, type=Problem)
        except msgspec.MsgspecError:
            if method != "HEAD" and status in (404, 405):  # a HEAD's answer has no body that could name a rule
                return describe_elsewhere(self.url)
            problem = Problem(title=f"HTTP status {status}", status=status, detail="", rule=f"http.{status}")
        text = problem.detail or problem.title
        if status >= 500:
            return Unavailable(f"the broker at {self.url} can't: {text}", rule=problem.rule)
        return Refused(text, rule=problem.rule)


async def _cut(body: bytes) -> AsyncIterator[memoryview]:
    """A large body piece by piece: one write of all would copy what the socket does not take."""
    view = memoryview(body)
    for start in range(0, len(view), CHUNK):
        yield view[start : start + CHUNK]
