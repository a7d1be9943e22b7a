"""The routes of `broker.protocol.api`, each a few lines between a request and the desk."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web

from broker.protocol.api import Cancellation, Delivery, Info, Submission
from broker.service.desk import Desk, Parts
from broker.service.jobs import LiveJob
from broker.service.settings import UPLOAD_GRACE
from broker.service.web import (
    BLOB_BYTES_PER_SECOND,
    BLOB_SECONDS,
    SIGNED_BY,
    get_account,
    make_answer,
    make_json,
    read_body,
    read_chunks,
    read_number,
    read_object,
    read_wait,
    send_file,
)
from chain.base.errors import Refused
from chain.base.keys import Signed
from chain.ledger.terms.work import Acceptance

HEX = "{id:[0-9a-f]{64}}"
"""An id or digest in a path; nothing else is ever made into a file name (threats.md row 36)."""


class Routes:
    """Handlers over a desk. `describe` gives what `GET /v1/info` says."""

    def __init__(self, parts: Parts, desk: Desk, describe: Callable[[], Info]) -> None:
        self._parts = parts
        self._desk = desk
        self._describe = describe

    def make_table(self) -> list[web.AbstractRouteDef]:
        """Method, path and handler of each route."""
        return [
            web.get("/v1/info", self.show_info),
            web.put(f"/v1/blobs/{HEX}", self.put_blob),
            web.get(f"/v1/blobs/{HEX}", self.get_blob),
            web.post("/v1/orders", self.submit),
            web.get("/v1/orders", self.list_jobs),
            web.get(f"/v1/orders/{HEX}/events", self.read_events),
            web.post(f"/v1/orders/{HEX}/cancel", self.cancel),
            web.post(f"/v1/leases/{HEX}/receipt", self.deliver),
            web.post(f"/v1/leases/{HEX}/acceptance", self.accept),
            web.get(f"/v1/leases/{HEX}/acceptance", self.show_acceptance),
        ]

    async def show_info(self, request: web.Request) -> web.StreamResponse:
        """GET /v1/info."""
        return make_json(self._describe())

    async def put_blob(self, request: web.Request) -> web.StreamResponse:
        """PUT /v1/blobs/{hex}: any account with a balance, within its quota."""
        account, digest, parts = get_account(request), _read_id(request), self._parts
        if request[SIGNED_BY].digest != digest:
            raise Refused("the signed digest of the body is not the one of the path", rule="http.digest")
        if not await parts.ledger.is_known(account):
            raise Refused("only an account with a balance stores blobs; get some credits first", rule="blob.account")
        limit = parts.blobs.max_bytes
        expected = limit if request.content_length is None else request.content_length
        if expected > limit:
            raise Refused(f"a blob has at most {limit} bytes here", rule="blob.size")
        seconds = BLOB_SECONDS + expected / BLOB_BYTES_PER_SECOND
        with parts.custody.room(account, expected), parts.blobs.arriving([digest]):
            size = await parts.blobs.receive(digest, read_chunks(request, expected, seconds))
            parts.custody.hold({digest: size}, account, parts.clock.now() + UPLOAD_GRACE)
        return web.Response(status=201)

    async def get_blob(self, request: web.Request) -> web.StreamResponse:
        """GET and HEAD /v1/blobs/{hex}: who may not read it learns no more than who asks for nothing."""
        await read_body(request)
        digest = _read_id(request)
        size = self._parts.custody.get_size(digest, get_account(request))
        if size is None:
            raise Refused("no such blob for this account", rule="blob.unknown")
        path = self._parts.blobs.get_path(digest)
        return await send_file(request, path, size, BLOB_SECONDS + size / BLOB_BYTES_PER_SECOND)

    async def submit(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/orders."""
        submission = await read_object(request, Submission)
        order_id = await self._desk.submit(get_account(request), submission)
        return make_json({"order": order_id.hex()})

    async def list_jobs(self, request: web.Request) -> web.StreamResponse:
        """GET /v1/orders."""
        await read_body(request)
        return make_json(self._desk.list_jobs(get_account(request)))

    async def read_events(self, request: web.Request) -> web.StreamResponse:
        """GET /v1/orders/{hex}/events."""
        await read_body(request)
        deadline, after = read_wait(request), read_number(request, "after")
        job = self._desk.get_job(get_account(request), _read_id(request))
        events = job.read(after)
        while not events.items and isinstance(job, LiveJob) and await job.wait(deadline):
            events = job.read(after)
        return make_answer(events)

    async def cancel(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/orders/{hex}/cancel."""
        signed = await read_object(request, Signed[Cancellation])
        await self._desk.cancel(get_account(request), _read_id(request), signed)
        return web.Response(status=202)

    async def deliver(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/leases/{hex}/receipt."""
        delivery = await read_object(request, Delivery)
        return make_answer(await self._desk.deliver(get_account(request), _read_id(request), delivery))

    async def accept(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/leases/{hex}/acceptance."""
        signed = await read_object(request, Signed[Acceptance])
        await self._desk.accept(get_account(request), _read_id(request), signed)
        return web.Response(status=202)

    async def show_acceptance(self, request: web.Request) -> web.StreamResponse:
        """GET /v1/leases/{hex}/acceptance."""
        await read_body(request)
        deadline, job = read_wait(request), self._desk.get_lease(_read_id(request))
        if job.provider != get_account(request):
            raise Refused("not your lease", rule="lease.party")
        found = job.find_acceptance()
        while found is None and isinstance(job, LiveJob) and await job.wait(deadline):
            found = job.find_acceptance()
        if found is None:
            raise Refused("there is no acceptance yet", rule="acceptance.none")
        return make_answer(found)


def _read_id(request: web.Request) -> bytes:
    return bytes.fromhex(request.match_info["id"])
