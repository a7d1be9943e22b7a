"""The broker's HTTP API as one class of typed calls, for requester and provider.

Every failure leaves here as one of three errors: `Refused` with the rule the broker named, `Unavailable` with the
address and what to start, `Fault` where the two sides disagree on the protocol. Signatures of documents are for the
caller's machines to check. Not here: retries, but of the pieces of a large blob; every call may be repeated, since
orders, blobs, receipts and acceptances are known by digest.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

import msgspec

from broker.protocol.api import (
    MAX_BODY_BYTES,
    PROTOCOL_VERSION,
    Cancellation,
    Delivery,
    Enquiry,
    Estimate,
    Events,
    Info,
    JobSummary,
    Parcel,
    ProviderView,
    Submission,
    Wanted,
)
from broker.rpc import transfer
from broker.rpc.ask import BLOB_SECONDS, SLACK_SECONDS, Ask, describe_elsewhere
from chain.base.codec import decode, encode
from chain.base.errors import Fault, Refused
from chain.base.hashing import compute_digest, show_digest
from chain.base.keys import Signed, Signer
from chain.ledger.terms.work import Acceptance, StorageReceipt
from chain.runtime.clock import Clock, SystemClock

if TYPE_CHECKING:
    import aiohttp

    from broker.rpc.wire import Wire

__all__ = ["BrokerClient"]

T = TypeVar("T")

WHOLE_BYTES = 1 << 20
"""Largest blob sent by one PUT; a larger one goes in pieces, and only if the broker has it not yet."""


class BrokerClient:
    """Calls of the broker at `url` (for example `http://127.0.0.1:7101`), signed by `signer`.

    An `aiohttp.ClientSession` may be shared; else one is made at the first call and closed by `close`. All calls
    raise `Unavailable` where the broker doesn't answer.
    """

    def __init__(
        self, url: str, signer: Signer, session: aiohttp.ClientSession | None = None, clock: Clock | None = None
    ) -> None:
        self.url = url.rstrip("/")
        self._signer = signer
        self._session = session
        self._clock = clock or SystemClock()
        self._wire: Wire | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the session, if this client made it."""
        if self._wire is not None:
            await self._wire.close()

    async def info(self) -> Info:
        """What the broker says of itself; raises `Refused` under `protocol.version` for a broker of another
        version, `Unavailable` under `broker.address` for something that is no broker.
        """
        try:
            info = await self._ask_json(Ask("GET", "/v1/info"), Info)
        except Fault as error:
            raise describe_elsewhere(self.url) from error
        if info.version != PROTOCOL_VERSION:
            message = (
                f"{self.url} speaks version {info.version} of the broker's protocol, "
                f"this program version {PROTOCOL_VERSION}; update the older one"
            )
            raise Refused(message, rule="protocol.version")
        return info

    # Blobs

    async def put_blob(self, data: bytes) -> bytes:
        """Store a blob; returns its digest. Raises `Refused` under `blob.quota`, `blob.size` or `blob.account`."""
        digest = compute_digest(data)
        if len(data) > WHOLE_BYTES:
            await transfer.upload(self._open(), transfer.Held(data, digest))
        else:
            path = f"/v1/blobs/{digest.hex()}"
            await self._ask(Ask("PUT", path, body=data, digest=digest, seconds=BLOB_SECONDS))
        return digest

    async def put_file(
        self, path: Path, digest: bytes, size: int, on_progress: Callable[[int, int], None] | None = None
    ) -> None:
        """Store a file of `size` bytes with this digest, in pieces. What the broker has of it is not sent again, nor
        is what arrived before a lost connection, in this call or an earlier one. Raises as `put_blob`, and `Refused`
        under `blob.digest` where the file is another by now.
        """
        with transfer.open_source(path, digest, size) as source:
            await transfer.upload(self._open(), source, on_progress)

    async def put_many(self, blobs: Iterable[bytes]) -> tuple[bytes, ...]:
        """Store many blobs, small ones together; returns their digests in order. Raises as `put_blob`."""
        parcels, large, digests = transfer.sort_blobs(blobs)
        for parcel in parcels:
            await self._ask(Ask("POST", "/v1/blobs", body=encode(Parcel(parcel)), seconds=BLOB_SECONDS))
        for blob in large:
            await self.put_blob(blob)
        return digests

    async def has_blob(self, digest: bytes) -> bool:
        """Whether the broker holds this blob for the caller."""
        try:
            await self._ask(Ask("HEAD", f"/v1/blobs/{digest.hex()}"))
        except Refused as error:
            if error.rule == "http.404":
                return False
            raise
        return True

    async def get_blob(self, digest: bytes, max_bytes: int) -> bytes:
        """A blob whose digest was checked; raises `Refused` under `blob.unknown` (not there, or not for the caller)
        or `blob.size` (longer than `max_bytes`), `Fault` under `blob.digest` for a lying broker.
        """
        path = f"/v1/blobs/{digest.hex()}"
        data = await self._ask(Ask("GET", path, seconds=BLOB_SECONDS, max_bytes=max_bytes))
        if compute_digest(data) != digest:
            raise Fault(f"{self.url} sent other bytes than {show_digest(digest)}", rule="blob.digest")
        return data

    async def get_file(
        self, digest: bytes, path: Path, max_bytes: int, on_progress: Callable[[int, int], None] | None = None
    ) -> int:
        """Fetch a blob into a file, which is there whole and durable or not at all; returns its size. What arrived
        before a lost connection lies beside it and is not fetched again, in this call or a later one. Raises as
        `get_blob`, and `Unavailable` under `file.write`.
        """
        return await transfer.download(self._open(), digest, path, max_bytes, on_progress)

    async def get_many(self, digests: Sequence[bytes], max_bytes: int) -> dict[bytes, bytes]:
        """Blobs by their digests, small ones together; what the broker has not for the caller is left out. Raises
        `Refused` under `blob.size` where all together exceed `max_bytes`.
        """
        missing, found, room = list(dict.fromkeys(digests)), dict[bytes, bytes](), max_bytes
        while missing:
            asked = missing[: transfer.MAX_TOGETHER]
            together = await self._get_parcel(asked, room)
            room -= sum(map(len, together.values()))
            # The parcel keeps our order: what it passed over is large or not there, what lies behind did not fit.
            passed = max((asked.index(digest) for digest in together), default=len(asked) - 1) + 1
            found |= together
            for digest in asked[:passed]:
                data = None if digest in together else await self._find(digest, room)
                if data is not None:
                    found[digest] = data
                    room -= len(data)
            missing = missing[passed:]
        return {digest: found[digest] for digest in digests if digest in found}

    async def _get_parcel(self, asked: list[bytes], max_bytes: int) -> dict[bytes, bytes]:
        """As many of the small ones as fit, in the order asked."""
        body = encode(Wanted(tuple(asked)))
        parcel = self._read(await self._ask(Ask("POST", "/v1/blobs/wanted", body=body)), Parcel)
        got = {compute_digest(blob): blob for blob in parcel.blobs}
        if not got.keys() <= set(asked):
            raise self._misunderstood("blobs that nobody asked for")
        if sum(map(len, got.values())) > max_bytes:
            raise Refused("the blobs together exceed what was to be taken", rule="blob.size")
        return got

    async def _find(self, digest: bytes, max_bytes: int) -> bytes | None:
        try:
            return await self.get_blob(digest, max_bytes)
        except Refused as error:
            if error.rule == "blob.unknown":
                return None
            raise

    # The market

    async def estimate(self, enquiry: Enquiry) -> Estimate:
        """What the market would say to an order just now; nothing comes of it."""
        return await self._ask_json(Ask("POST", "/v1/estimate", body=encode(enquiry)), Estimate)

    async def providers(self) -> list[ProviderView]:
        """The providers that are there, as they offer themselves."""
        return await self._ask_json(Ask("GET", "/v1/providers"), list[ProviderView])

    # Orders and leases

    async def submit(self, submission: Submission) -> bytes:
        """Hand in an order; returns its id. The same order again is no error. Raises `Refused` with the rule that it
        breaks.
        """
        answer = await self._ask_json(Ask("POST", "/v1/orders", body=encode(submission)), dict[str, str])
        try:
            return bytes.fromhex(answer["order"])
        except (KeyError, ValueError) as error:
            raise self._misunderstood("no order id") from error

    async def orders(self) -> list[JobSummary]:
        """The caller's own jobs, newest first."""
        return await self._ask_json(Ask("GET", "/v1/orders"), list[JobSummary])

    async def events(self, order: bytes, after: int, wait_ms: int) -> Events:
        """What happened to a job behind the cursor `after` (0 at first); waits up to `wait_ms` for something new. Go
        on with `after=page.next`.
        """
        query, path = {"after": str(after), "wait_ms": str(wait_ms)}, f"/v1/orders/{order.hex()}/events"
        return self._read(await self._ask(Ask("GET", path, query, seconds=_waiting(wait_ms))), Events)

    async def cancel(self, cancellation: Signed[Cancellation]) -> None:
        """Take an order back; raises `Refused` under `auction.open` once a lease is being opened (then it is the
        chain's `Cancel`).
        """
        path = f"/v1/orders/{cancellation.body.order.hex()}/cancel"
        await self._ask(Ask("POST", path, body=encode(cancellation)))

    async def deliver(self, lease: bytes, delivery: Delivery) -> Signed[StorageReceipt]:
        """A provider's receipt and records; returns the broker's storage receipt once all that the records name lies
        on its disk.
        """
        data = await self._ask(Ask("POST", f"/v1/leases/{lease.hex()}/receipt", body=encode(delivery)))
        return self._read(data, Signed[StorageReceipt])

    async def accept(self, lease: bytes, acceptance: Signed[Acceptance]) -> None:
        """The requester's (or its watcher's) acceptance, to be passed on to the provider."""
        await self._ask(Ask("POST", f"/v1/leases/{lease.hex()}/acceptance", body=encode(acceptance)))

    async def acceptance(self, lease: bytes, wait_ms: int) -> Signed[Acceptance] | None:
        """For the provider: the acceptance of its lease, waited for up to `wait_ms`; None if there is none yet."""
        path, query = f"/v1/leases/{lease.hex()}/acceptance", {"wait_ms": str(wait_ms)}
        try:
            data = await self._ask(Ask("GET", path, query, seconds=_waiting(wait_ms)))
        except Refused as error:
            if error.rule == "acceptance.none":
                return None
            raise
        return self._read(data, Signed[Acceptance])

    # What all calls do

    def _open(self) -> Wire:
        """What sends. Its module is loaded with the first call: aiohttp weighs more than all else here."""
        if self._wire is None:
            module = importlib.import_module("broker.rpc.wire")
            wire: Wire = module.Wire(self.url, self._signer, self._session, self._clock)
            self._wire = wire
        return self._wire

    async def _ask(self, ask: Ask) -> bytes:
        return (await self._open().send(ask)).body

    async def _ask_json(self, ask: Ask, kind: type[T]) -> T:
        data = await self._ask(ask)
        try:
            return msgspec.json.decode(data, type=kind)
        except msgspec.MsgspecError as error:
            raise self._misunderstood(str(error)) from error

    def _read(self, data: bytes, kind: type[T]) -> T:
        try:
            return decode(data, kind, max_bytes=MAX_BODY_BYTES)
        except Refused as error:
            raise self._misunderstood(str(error)) from error

    def _misunderstood(self, what: str) -> Fault:
        return Fault(f"{self.url} does not answer as a broker: {what}", rule="broker.answer")


def _waiting(wait_ms: int) -> float:
    return wait_ms / 1000 + SLACK_SECONDS
