"""The routes of blobs: whole, in pieces, in parcels, and ranges of them.

Rights and quotas are `custody`'s, bytes `blobs`', what is half there `uploads`'.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from aiohttp import web

from broker.protocol.api import INLINE_BYTES, MAX_PARCEL_BYTES, MAX_PIECE_BYTES, Delivered, Events, Parcel, Wanted
from broker.service.blobs import BlobStore
from broker.service.custody import Custody
from broker.service.settings import UPLOAD_GRACE
from broker.service.uploads import Piece, Uploads, WrongOffset
from broker.service.web import (
    BLOB_BYTES_PER_SECOND,
    BLOB_SECONDS,
    BYTES,
    SIGNED_BY,
    get_account,
    make_answer,
    make_problem,
    read_body,
    read_chunks,
    read_field,
    read_object,
    send_file,
)
from chain.base.errors import Refused
from chain.base.hashing import compute_digest
from chain.runtime.clock import Clock

HEX = "{id:[0-9a-f]{64}}"
"""An id or digest in a path; nothing else is ever made into a file name (threats.md row 36)."""

EMPTY = compute_digest(b"")

IsKnown = Callable[[bytes], Awaitable[bool]]


class BlobRoutes:
    """Handlers over the blob store. `is_known` says whether an account has a balance, which whoever stores needs."""

    def __init__(self, blobs: BlobStore, custody: Custody, clock: Clock, is_known: IsKnown) -> None:
        self.uploads = Uploads(blobs, custody)
        self.uploads.prepare()
        self._blobs = blobs
        self._custody = custody
        self._clock = clock
        self._is_known = is_known

    def make_table(self) -> list[web.AbstractRouteDef]:
        """Method, path and handler of each route."""
        return [
            web.post("/v1/blobs", self.put_parcel),
            web.post("/v1/blobs/wanted", self.get_parcel),
            web.put(f"/v1/blobs/{HEX}", self.put_blob),
            web.get(f"/v1/blobs/{HEX}", self.get_blob),
            web.head(f"/v1/uploads/{HEX}", self.show_upload),
            web.patch(f"/v1/uploads/{HEX}", self.put_piece),
        ]

    async def put_blob(self, request: web.Request) -> web.StreamResponse:
        """PUT /v1/blobs/{hex}: any account with a balance, within its quota."""
        account, digest = await self._admit(request), read_id(request)
        if request[SIGNED_BY].digest != digest:
            raise Refused("the signed digest of the body is not the one of the path", rule="http.digest")
        limit = self._blobs.max_bytes
        expected = limit if request.content_length is None else request.content_length
        if expected > limit:
            raise Refused(f"a blob has at most {limit} bytes here", rule="blob.size")
        with self._custody.room(account, expected), self._blobs.arriving([digest]):
            size = await self._blobs.receive(digest, read_chunks(request, expected, _allow(expected)))
            self._custody.hold({digest: size}, account, self._clock.now() + UPLOAD_GRACE)
        return web.Response(status=201)

    async def get_blob(self, request: web.Request) -> web.StreamResponse:
        """GET and HEAD /v1/blobs/{hex}: who may not read it learns no more than who asks for nothing. Small ones come
        whole, whatever range is asked for.
        """
        await read_body(request)
        digest = read_id(request)
        size = self._custody.get_size(digest, get_account(request))
        found = None if size is None else self._blobs.get(digest)
        if size is None or found is None:
            raise Refused("no such blob for this account", rule="blob.unknown")
        if isinstance(found, bytes):
            return web.Response(body=found, headers=BYTES)
        return await send_file(request, found, _allow(size))

    async def show_upload(self, request: web.Request) -> web.StreamResponse:
        """HEAD /v1/uploads/{hex}: where the account's upload stands; what it holds or has sent is complete."""
        await read_body(request)
        account, digest = get_account(request), read_id(request)
        whole = self._custody.renew(digest, account, self._clock.now() + UPLOAD_GRACE)
        if whole is not None and self._blobs.has(digest):
            return _show_offset(204, whole, whole)
        offset, length = self.uploads.find(account, digest)
        return _show_offset(204, offset, length, complete=False)

    async def put_piece(self, request: web.Request) -> web.StreamResponse:
        """PATCH /v1/uploads/{hex}: a piece at the end of what is there."""
        account, digest = await self._admit(request), read_id(request)
        offset, length, size = read_field(request, "Upload-Offset"), read_field(request, "Upload-Length"), 0
        if offset is None or request.content_length is None:
            raise Refused("a piece says its Upload-Offset and its Content-Length", rule="http.form")
        size = request.content_length
        if size > MAX_PIECE_BYTES:
            raise Refused(f"a piece has at most {MAX_PIECE_BYTES} bytes", rule="blob.size")
        transport = request.transport
        abort = transport.abort if transport is not None else _do_nothing
        piece = Piece(account, digest, offset, length, size, request[SIGNED_BY], abort)
        chunks = read_chunks(request, size, _allow(size))
        try:
            complete = await self.uploads.receive(piece, chunks, self._clock.now())
        except WrongOffset as error:
            response = make_problem(error)
            response.headers["Upload-Offset"] = str(error.offset)
            return response
        return _show_offset(201 if complete else 204, offset + size, length, complete=complete)

    async def put_parcel(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/blobs: small blobs together, safe with one commit."""
        account = await self._admit(request)
        given = {compute_digest(blob): blob for blob in (await read_object(request, Parcel)).blobs}
        sizes = {digest: len(blob) for digest, blob in given.items()}
        total = sum(sizes.values())
        if total > MAX_PARCEL_BYTES:
            raise Refused(f"a parcel has at most {MAX_PARCEL_BYTES} bytes", rule="blob.size")
        with self._custody.room(account, total), self._blobs.arriving(sizes):
            await self._blobs.write_many(given)
            self._custody.hold(sizes, account, self._clock.now() + UPLOAD_GRACE)
        return web.Response(status=201)

    async def get_parcel(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/blobs/wanted: as many of the small ones as fit, in the order asked."""
        wanted = await read_object(request, Wanted)
        return make_answer(Parcel(await self._read_small(get_account(request), wanted.digests, MAX_PARCEL_BYTES)))

    async def attach(self, account: bytes, events: Events) -> Events:
        """A page of events with the small blobs that its deliveries name, as far as they fit."""
        named = [digest for one in events.items if isinstance(one, Delivered) for digest in _list_named(one)]
        if not named:
            return events
        return Events(events.next, events.items, await self._read_small(account, named, INLINE_BYTES))

    async def _read_small(self, account: bytes, digests: Iterable[bytes], limit: int) -> tuple[bytes, ...]:
        asked = dict.fromkeys(digests)
        readable = [one for one in asked if self._custody.get_size(one, account) is not None]
        return tuple(await asyncio.to_thread(self._blobs.read_small, readable, limit))

    async def _admit(self, request: web.Request) -> bytes:
        account = get_account(request)
        if not await self._is_known(account):
            raise Refused("only an account with a balance stores blobs; get some credits first", rule="blob.account")
        return account


def read_id(request: web.Request) -> bytes:
    """The id or digest in a request's path."""
    return bytes.fromhex(request.match_info["id"])


def _list_named(one: Delivered) -> list[bytes]:
    receipt, records = one.delivery.receipt.body, one.delivery.records
    named = [digest for record in records for digest in (record.output, record.error)]
    return [digest for digest in (*named, receipt.log, receipt.provenance) if digest != EMPTY]


def _allow(size: int) -> float:
    """Seconds that so many bytes may take."""
    return BLOB_SECONDS + size / BLOB_BYTES_PER_SECOND


def _show_offset(status: int, offset: int, length: int | None, *, complete: bool = True) -> web.Response:
    headers = {
        "Upload-Offset": str(offset),
        "Upload-Complete": "?1" if complete else "?0",
        "Upload-Limit": f"max-append-size={MAX_PIECE_BYTES}",
        "Cache-Control": "no-store",
    }
    if length is not None:
        headers["Upload-Length"] = str(length)
    return web.Response(status=status, headers=headers)


def _do_nothing() -> None:
    """What is done about a connection that is gone."""
