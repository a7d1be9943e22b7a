"""The broker's HTTP API as one class of typed calls, for requester and provider.

Every failure leaves here as one of three errors: `Refused` with the rule the broker named, `Unavailable` with the
address and what to start, `Fault` where the two sides disagree on the protocol. Signatures of documents are for the
caller's machines to check. Not here: retries; every call may be repeated, since orders, blobs, receipts and
acceptances are known by digest.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from types import TracebackType
from typing import Self, TypeVar

import aiohttp
import msgspec
from multidict import CIMultiDict
from yarl import URL

from broker.protocol.api import (
    MAX_BODY_BYTES,
    PROTOCOL_VERSION,
    Cancellation,
    Delivery,
    Events,
    Info,
    JobSummary,
    Problem,
    Submission,
)
from broker.rpc.signing import HttpMessage, sign_request
from chain.base.codec import decode, encode
from chain.base.errors import Fault, Refused, Unavailable
from chain.base.hashing import compute_digest, show_digest
from chain.base.keys import Signed, Signer
from chain.ledger.terms.work import Acceptance, StorageReceipt
from chain.runtime.clock import Clock, SystemClock

__all__ = ["BrokerClient"]

T = TypeVar("T")

CONNECT_SECONDS = 5.0
"""Our own deadline for a connection: a refusal may be silence."""

SLACK_SECONDS = 20.0
"""How much longer than its `wait_ms` a call may take."""

BLOB_SECONDS = 600.0
"""Deadline of one blob's transfer."""

_CHUNK = 1 << 18


class BrokerClient:
    """Calls of the broker at `url` (for example `http://127.0.0.1:7101`), signed by `signer`.

    An `aiohttp.ClientSession` may be shared; else one is made at the first call and closed by `close`. All calls
    raise `Unavailable` where the broker doesn't answer.
    """

    def __init__(
        self, url: str, signer: Signer, session: aiohttp.ClientSession | None = None, clock: Clock | None = None
    ) -> None:
        self.url = url.rstrip("/")
        self._base = URL(self.url)
        self._signer = signer
        self._session = session
        self._owned = session is None
        self._clock = clock or SystemClock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the session, if this client made it."""
        if self._owned and self._session is not None:
            await self._session.close()
            self._session = None

    async def info(self) -> Info:
        """What the broker says of itself; raises `Refused` under `protocol.version` for a broker of another
        version, `Unavailable` under `broker.address` for something that is no broker.
        """
        try:
            info = self._read_json(await self._call("GET", "/v1/info"), Info)
        except Fault as error:
            raise self._elsewhere() from error
        if info.version != PROTOCOL_VERSION:
            message = (
                f"{self.url} speaks version {info.version} of the broker's protocol, "
                f"this program version {PROTOCOL_VERSION}; update the older one"
            )
            raise Refused(message, rule="protocol.version")
        return info

    async def put_blob(self, data: bytes) -> bytes:
        """Store a blob; returns its digest. Raises `Refused` under `blob.quota`, `blob.size` or `blob.account`."""
        digest = compute_digest(data)
        await self._call("PUT", f"/v1/blobs/{digest.hex()}", body=data, seconds=BLOB_SECONDS)
        return digest

    async def has_blob(self, digest: bytes) -> bool:
        """Whether the broker holds this blob for the caller."""
        try:
            await self._call("HEAD", f"/v1/blobs/{digest.hex()}")
        except Refused as error:
            if error.rule == "http.404":
                return False
            raise
        return True

    async def get_blob(self, digest: bytes, max_bytes: int) -> bytes:
        """A blob whose digest was checked; raises `Refused` under `blob.unknown` (not there, or not for the caller)
        or `blob.size` (longer than `max_bytes`), `Fault` under `blob.digest` for a lying broker.
        """
        data = await self._call("GET", f"/v1/blobs/{digest.hex()}", seconds=BLOB_SECONDS, max_bytes=max_bytes)
        if compute_digest(data) != digest:
            raise Fault(f"{self.url} sent other bytes than {show_digest(digest)}", rule="blob.digest")
        return data

    async def submit(self, submission: Submission) -> bytes:
        """Hand in an order; returns its id. The same order again is no error. Raises `Refused` with the rule that it
        breaks.
        """
        answer = self._read_json(await self._call("POST", "/v1/orders", body=encode(submission)), dict[str, str])
        try:
            return bytes.fromhex(answer["order"])
        except (KeyError, ValueError) as error:
            raise self._misunderstood("no order id") from error

    async def orders(self) -> list[JobSummary]:
        """The caller's own jobs, newest first."""
        return self._read_json(await self._call("GET", "/v1/orders"), list[JobSummary])

    async def events(self, order: bytes, after: int, wait_ms: int) -> Events:
        """What happened to a job behind the cursor `after` (0 at first); waits up to `wait_ms` for something new. Go
        on with `after=page.next`.
        """
        query = {"after": str(after), "wait_ms": str(wait_ms)}
        data = await self._call("GET", f"/v1/orders/{order.hex()}/events", query=query, seconds=_waiting(wait_ms))
        return self._read(data, Events)

    async def cancel(self, cancellation: Signed[Cancellation]) -> None:
        """Take an order back; raises `Refused` under `auction.open` once a lease is being opened (then it is the
        chain's `Cancel`).
        """
        await self._call("POST", f"/v1/orders/{cancellation.body.order.hex()}/cancel", body=encode(cancellation))

    async def deliver(self, lease: bytes, delivery: Delivery) -> Signed[StorageReceipt]:
        """A provider's receipt and records; returns the broker's storage receipt once all that the records name lies
        on its disk.
        """
        data = await self._call("POST", f"/v1/leases/{lease.hex()}/receipt", body=encode(delivery))
        return self._read(data, Signed[StorageReceipt])

    async def accept(self, lease: bytes, acceptance: Signed[Acceptance]) -> None:
        """The requester's (or its watcher's) acceptance, to be passed on to the provider."""
        await self._call("POST", f"/v1/leases/{lease.hex()}/acceptance", body=encode(acceptance))

    async def acceptance(self, lease: bytes, wait_ms: int) -> Signed[Acceptance] | None:
        """For the provider: the acceptance of its lease, waited for up to `wait_ms`; None if there is none yet."""
        path, query = f"/v1/leases/{lease.hex()}/acceptance", {"wait_ms": str(wait_ms)}
        try:
            data = await self._call("GET", path, query=query, seconds=_waiting(wait_ms))
        except Refused as error:
            if error.rule == "acceptance.none":
                return None
            raise
        return self._read(data, Signed[Acceptance])

    async def _call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: bytes = b"",
        seconds: float = SLACK_SECONDS,
        max_bytes: int = MAX_BODY_BYTES,
    ) -> bytes:
        url = self._base.with_path(self._base.path.rstrip("/") + path).with_query(query)
        headers: CIMultiDict[str] = CIMultiDict()
        if path != "/v1/info":
            message = HttpMessage(method, str(url), headers)
            sign_request(self._signer, message, compute_digest(body), self._clock.now(), secrets.token_urlsafe(12))
        if self._session is None:
            self._session = aiohttp.ClientSession(auto_decompress=False)
        timeout = aiohttp.ClientTimeout(total=seconds, sock_connect=CONNECT_SECONDS)
        headers["Content-Type"] = "application/octet-stream"
        try:
            async with self._session.request(
                method, url, data=body or None, headers=headers, timeout=timeout, allow_redirects=False
            ) as response:
                data = await self._read_body(response, max_bytes)
                status = response.status
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            message_text = (
                f"no broker answers at {self.url} ({type(error).__name__}: {error}); "
                "start one with `tally-broker run`, or name another address"
            )
            raise Unavailable(message_text, rule="broker.unreachable") from None
        if status >= 300:
            raise self._translate(method, status, data)
        return data

    async def _read_body(self, response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
        limit = max_bytes if response.status < 300 else MAX_BODY_BYTES
        parts, size = [], 0
        async for chunk in response.content.iter_chunked(_CHUNK):
            size += len(chunk)
            if size > limit:
                raise Refused(f"{self.url} sends more than {limit} bytes", rule="blob.size")
            parts.append(chunk)
        return b"".join(parts)

    def _translate(self, method: str, status: int, data: bytes) -> Exception:
        try:
            problem = msgspec.json.decode(data, type=Problem)
        except msgspec.MsgspecError:
            if method != "HEAD" and status in (404, 405):  # a HEAD's answer has no body that could name a rule
                return self._elsewhere()
            problem = Problem(title=f"HTTP status {status}", status=status, detail="", rule=f"http.{status}")
        text = problem.detail or problem.title
        if status >= 500:
            return Unavailable(f"the broker at {self.url} can't: {text}", rule=problem.rule)
        return Refused(text, rule=problem.rule)

    def _read_json(self, data: bytes, kind: type[T]) -> T:
        try:
            return msgspec.json.decode(data, type=kind)
        except msgspec.MsgspecError as error:
            raise self._misunderstood(str(error)) from error

    def _read(self, data: bytes, kind: type[T]) -> T:
        try:
            return decode(data, kind, max_bytes=MAX_BODY_BYTES)
        except Refused as error:
            raise self._misunderstood(str(error)) from error

    def _elsewhere(self) -> Unavailable:
        return Unavailable(
            f"at {self.url} answers something that is no broker; check the address", rule="broker.address"
        )

    def _misunderstood(self, what: str) -> Fault:
        return Fault(f"{self.url} does not answer as a broker: {what}", rule="broker.answer")


def _waiting(wait_ms: int) -> float:
    return wait_ms / 1000 + SLACK_SECONDS
