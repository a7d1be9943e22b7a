"""The HTTP side of the API: who signed a request, bodies with deadlines and bounds, errors as problem+json.

Routes are `broker.service.routes`. Every request but those of `OPEN_ROUTES` is signed (RFC 9421); the signature is
checked before a byte of the body is read, the body against the signed digest afterwards. Content-Encoding is refused,
so that nothing inflates (threats.md A14). Connections are capped and have absolute deadlines (rows 32, 33).
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import TypeVar

import msgspec
from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from multidict import CIMultiDict

from broker.protocol.api import MAX_BODY_BYTES, MAX_WAIT_MS, Problem
from broker.rpc.signing import BadRequestSignature, HttpMessage, RequestChecker, SignedBy
from chain.base.codec import BadEncoding, decode, encode
from chain.base.errors import Fault, Refused, TallyError, Unavailable
from chain.base.keys import BadKey, BadSignature
from chain.runtime.clock import Clock
from chain.runtime.gate import Gate
from chain.runtime.http import HttpServer
from chain.runtime.logs import get_logger

BODY_SECONDS = 10.0
"""How long a canonical body may take, from its first byte to its last."""

BLOB_SECONDS = 10.0
"""How long a blob may take at least …"""

BLOB_BYTES_PER_SECOND = 256 << 10
"""… and this many bytes give it another second."""

CHUNK = 1 << 18

SIGNED_BY: web.RequestKey[SignedBy] = web.RequestKey("signed_by", SignedBy)

OPEN_ROUTES = frozenset({"/v1/info", "/v1/providers"})

BYTES = {"Content-Type": "application/octet-stream", "X-Content-Type-Options": "nosniff"}
"""Header fields of an answer that is somebody's bytes."""

STATUS = {
    "http.encoding": 415,
    "http.slow": 408,
    "http.route": 404,
    "http.form": 400,
    "blob.size": 413,
    "blob.inline": 413,
    "codec.size": 413,
    "blob.quota": 429,
    "order.outputs": 429,
    "blob.unknown": 404,
    "job.unknown": 404,
    "lease.unknown": 404,
    "acceptance.none": 404,
    "lease.party": 403,
    "order.requester": 403,
    "blob.account": 403,
    "upload.offset": 409,
    "upload.many": 429,
    "auction.open": 409,
    "lease.over": 409,
}
"""HTTP status of a rule; what is not here follows the error's class."""

T = TypeVar("T")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class WebServer:
    """Serves routes at one address."""

    def __init__(self, routes: Iterable[web.AbstractRouteDef], clock: Clock) -> None:
        self._routes = routes
        self._clock = clock
        self._checker = RequestChecker()
        self._http = HttpServer("broker")
        self._log = get_logger("http")

    @property
    def gate(self) -> Gate:
        """What stands before it, once it listens."""
        return self._http.gate

    async def start(self, host: str, port: int) -> str:
        """Listen (port 0: any free one) and return the URL; raises `Unavailable` (`broker.listen`)."""
        app = web.Application(middlewares=[self._explain, self._authenticate], client_max_size=CHUNK)
        app.add_routes(self._routes)
        return await self._http.start(app, host, port, auto_decompress=False, lingering_time=1.0)

    async def close(self) -> None:
        """Stop listening, let open requests end for a moment, drop the rest."""
        await self._http.close()

    @web.middleware
    async def _explain(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Errors become problem+json."""
        try:
            return await handler(request)
        except TallyError as error:
            if isinstance(error, Fault):
                self._log.error("fault", rule=error.rule, why=error.message)
            return make_problem(error)
        except web.HTTPException as error:
            return make_problem(Refused(f"{error.reason}: {request.method} {request.path}", rule="http.route"))

    @web.middleware
    async def _authenticate(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.headers.get("Content-Encoding", "identity") != "identity":
            raise Refused("bodies come as they are, without Content-Encoding", rule="http.encoding")
        if request.path not in OPEN_ROUTES:
            message = read_message(request)
            request[SIGNED_BY] = self._checker.check(message, self._clock.now())
        return await handler(request)


def read_message(request: web.Request) -> HttpMessage:
    """What was signed of a request, as it came over the wire."""
    if not request.raw_path.startswith("/") or not request.host:
        raise BadRequestSignature("no request of the form we serve", rule="http.signature")
    headers: CIMultiDict[str] = CIMultiDict(request.headers)
    return HttpMessage(request.method, f"http://{request.host}{request.raw_path}", headers)


def get_account(request: web.Request) -> bytes:
    """The account that signed the request."""
    return request[SIGNED_BY].account


async def read_body(request: web.Request) -> bytes:
    """The whole canonical body, within bounds and deadline, and the one that was signed."""
    parts, size, hasher = [], 0, hashlib.sha256()
    async for chunk in read_chunks(request, MAX_BODY_BYTES, BODY_SECONDS):
        size += len(chunk)
        hasher.update(chunk)
        parts.append(chunk)
    request[SIGNED_BY].check_body(hasher.digest())
    return b"".join(parts)


async def read_object(request: web.Request, kind: type[T]) -> T:
    """The body as a canonical object."""
    return decode(await read_body(request), kind, max_bytes=MAX_BODY_BYTES)


async def read_chunks(request: web.Request, limit: int, seconds: float) -> AsyncIterator[bytes]:
    """The body in chunks, at most `limit` bytes (`blob.size`) within `seconds` in all (`http.slow`)."""
    size = 0
    if (request.content_length or 0) > limit:
        raise Refused(f"at most {limit} bytes are taken", rule="blob.size")
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        try:
            async with asyncio.timeout_at(deadline):
                chunk = await request.content.read(CHUNK)
        except TimeoutError as error:
            raise Refused("the body came too slowly", rule="http.slow") from error
        if not chunk:
            return
        size += len(chunk)
        if size > limit:
            raise Refused(f"at most {limit} bytes are taken", rule="blob.size")
        yield chunk


def read_wait(request: web.Request) -> float:
    """When `wait_ms` is over, in the loop's time; cut to the longest wait that is served."""
    seconds = min(read_number(request, "wait_ms"), MAX_WAIT_MS) / 1000
    return asyncio.get_running_loop().time() + seconds


def read_number(request: web.Request, name: str) -> int:
    """A whole number of the query, 0 if it is not there; raises `Refused` (`http.form`)."""
    text = request.query.get(name, "0")
    if not text.isdecimal() or not text.isascii() or len(text) > 19:
        raise Refused(f"{name} is a whole number", rule="http.form")
    return int(text)


def read_field(request: web.Request, name: str) -> int | None:
    """A header field that is one whole number, None if it is not there; raises `Refused` (`http.form`)."""
    texts = request.headers.getall(name, [])
    if not texts:
        return None
    if len(texts) != 1 or not (texts[0].isdecimal() and texts[0].isascii() and len(texts[0]) <= 18):
        raise Refused(f"{name} is one whole number", rule="http.form")
    return int(texts[0])


class _FileAnswer(web.FileResponse):
    """A file, or the range of it that is asked for (RFC 9110), by sendfile; sent once, by `prepare`."""

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Send it; aiohttp calls this again behind the handler."""
        return None if self.prepared else await super().prepare(request)


async def send_file(request: web.Request, path: Path, seconds: float) -> web.StreamResponse:
    """Send a file inside the handler, where its own deadline counts and not that of an idle connection; who has not
    read it by then is cut off (threats.md row 33).
    """
    response = _FileAnswer(path, headers=BYTES)
    try:
        async with asyncio.timeout(seconds):
            await response.prepare(request)
    except TimeoutError:
        if request.transport is not None:
            request.transport.abort()
    return response


def make_answer(value: object) -> web.Response:
    """A canonical object."""
    return web.Response(body=encode(value), content_type="application/octet-stream")


def make_json(value: object) -> web.Response:
    """A JSON object."""
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")


def make_problem(error: TallyError) -> web.Response:
    """RFC 9457 problem details of an error."""
    status = STATUS.get(error.rule) or _find_status(error)
    title = {401: "Not signed by a party", 404: "Not found", 503: "Not now"}.get(status, "Refused by a rule")
    problem = Problem(title=title, status=status, detail=error.message, rule=error.rule)
    headers = {"Retry-After": "1"} if status == 503 else {}
    if status in (408, 413, 415):
        headers["Connection"] = "close"
    response = web.Response(status=status, body=msgspec.json.encode(problem), headers=headers)
    response.content_type = "application/problem+json"
    return response


def _find_status(error: TallyError) -> int:
    match error:
        case BadRequestSignature():
            return 401
        case BadEncoding():
            return 400
        case BadSignature() | BadKey():
            return 403
        case Unavailable():
            return 503
        case Refused():
            return 422
        case _:
            return 500
