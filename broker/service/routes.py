"""The routes of `broker.protocol.api`, each a few lines between a request and the desk."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web

from broker.protocol.api import Cancellation, Delivery, Enquiry, Info, Submission
from broker.service.blobroutes import HEX, BlobRoutes, read_id
from broker.service.desk import Desk, Parts
from broker.service.jobs import LiveJob
from broker.service.web import (
    get_account,
    make_answer,
    make_json,
    read_body,
    read_number,
    read_object,
    read_wait,
)
from chain.base.errors import Refused
from chain.base.keys import Signed
from chain.ledger.terms.work import Acceptance


class Routes:
    """Handlers over a desk. `describe` gives what `GET /v1/info` says."""

    def __init__(self, parts: Parts, desk: Desk, describe: Callable[[], Info]) -> None:
        self._desk = desk
        self._describe = describe
        self.blobs = BlobRoutes(parts.blobs, parts.custody, parts.clock, parts.ledger.is_known)

    def make_table(self) -> list[web.AbstractRouteDef]:
        """Method, path and handler of each route."""
        return [
            web.get("/v1/info", self.show_info),
            web.get("/v1/providers", self.list_providers),
            *self.blobs.make_table(),
            web.post("/v1/estimate", self.estimate),
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

    async def list_providers(self, request: web.Request) -> web.StreamResponse:
        """GET /v1/providers."""
        return make_json(self._desk.list_providers())

    async def estimate(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/estimate."""
        enquiry = await read_object(request, Enquiry)
        return make_json(await self._desk.estimate(get_account(request), enquiry))

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
        account = get_account(request)
        job = self._desk.get_job(account, read_id(request))
        events = job.read(after)
        while not events.items and isinstance(job, LiveJob) and await job.wait(deadline):
            events = job.read(after)
        return make_answer(await self.blobs.attach(account, events))

    async def cancel(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/orders/{hex}/cancel."""
        signed = await read_object(request, Signed[Cancellation])
        await self._desk.cancel(get_account(request), read_id(request), signed)
        return web.Response(status=202)

    async def deliver(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/leases/{hex}/receipt."""
        delivery = await read_object(request, Delivery)
        return make_answer(await self._desk.deliver(get_account(request), read_id(request), delivery))

    async def accept(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/leases/{hex}/acceptance."""
        signed = await read_object(request, Signed[Acceptance])
        await self._desk.accept(get_account(request), read_id(request), signed)
        return web.Response(status=202)

    async def show_acceptance(self, request: web.Request) -> web.StreamResponse:
        """GET /v1/leases/{hex}/acceptance."""
        await read_body(request)
        deadline, lease = read_wait(request), read_id(request)
        job = self._desk.get_lease(lease)
        if job.leases[lease] != get_account(request):
            raise Refused("not your lease", rule="lease.party")
        found = job.find_acceptance(lease)
        while found is None and isinstance(job, LiveJob) and await job.wait(deadline):
            found = job.find_acceptance(lease)
        if found is None:
            raise Refused("there is no acceptance yet", rule="acceptance.none")
        return make_answer(found)
