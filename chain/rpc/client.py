"""A node's JSON-RPC interface as one class of typed calls; whoever speaks to a chain goes through it.

Every failure leaves here as one of three errors: `Refused` with the rule the node named, `Unavailable` with the
address and what to start, `Fault` where the two sides disagree on the
protocol. It believes the node; who does not uses `chain.light.client`. Not here: retries (`submit` may be repeated
freely: the same transaction is final at most once). `chain.rpc.wire` with aiohttp is loaded at the first call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from itertools import count
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import msgspec

from chain.base.codec import decode, encode
from chain.base.errors import Fault, Refused, Unavailable
from chain.ledger.transactions import SignedTransaction
from chain.rpc.proofs import Finality, LeaseProof, TxProof
from chain.rpc.schema import (
    PENDING,
    REFUSED,
    RPC_VERSION,
    UNAVAILABLE,
    AccountView,
    ChainInfo,
    EventsPage,
    LeaseView,
    OrderView,
    Supply,
    TxOutcome,
)

if TYPE_CHECKING:
    import aiohttp

    from chain.rpc.wire import Wire

__all__ = ["ChainClient"]

T = TypeVar("T")


MAX_ANSWER_BYTES = 32 << 20
"""Largest answer read: a page of events is bounded by the node, far below this."""


class RpcError(msgspec.Struct, frozen=True):
    """The `error` member of an answer."""

    code: int
    message: str
    data: dict[str, Any] | None = None


class RpcAnswer(msgspec.Struct, frozen=True):
    """One answer of JSON-RPC 2.0; exactly one of `result` and `error` is set."""

    jsonrpc: str
    id: int | None
    result: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    error: RpcError | msgspec.UnsetType = msgspec.UNSET


class ChainClient:
    """Calls of one node at `url` (for example `http://127.0.0.1:7001`). Ids, keys and digests go in as bytes and
    come back as hex inside views.

    An `aiohttp.ClientSession` may be shared; else one is made at the first call and closed by `close`. All calls
    raise `Unavailable` where the node doesn't answer.
    """

    def __init__(self, url: str, session: aiohttp.ClientSession | None = None) -> None:
        self.url = url.rstrip("/")
        self._session = session
        self._wire: Wire | None = None
        self._ids = count(1)

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
            self._wire = None

    async def info(self) -> ChainInfo:
        """The node and its chain; raises `Refused` under `protocol.version` for a node of another interface version."""
        info = await self._call("chain.info", {}, ChainInfo)
        if info.version != RPC_VERSION:
            message = (
                f"{self.url} speaks version {info.version} of the chain's RPC, this program version {RPC_VERSION}; "
                "update the older one"
            )
            raise Refused(message, rule="protocol.version")
        return info

    async def submit(self, tx: SignedTransaction, wait_ms: int = 10_000) -> TxOutcome:
        """Hand in a transaction and wait until it is final.

        The same transaction again returns the same outcome. Raises `Refused` with the rule that it breaks,
        `Unavailable` under `chain.pending` where it is not final within
        `wait_ms` (it may become so: hand it in again, or ask for its proof).
        """
        return await self._call("chain.submit", {"tx": encode(tx).hex(), "wait_ms": wait_ms}, TxOutcome, wait_ms)

    async def account(self, key: bytes) -> AccountView:
        """An account; `known` is false where the chain never saw it."""
        return await self._call("chain.account", {"key": key.hex()}, AccountView)

    async def lease(self, lease: bytes) -> LeaseView | None:
        """A lease, live or ended, or None."""
        return await self._call_optional("chain.lease", {"id": lease.hex()}, LeaseView)

    async def order(self, order: bytes) -> OrderView | None:
        """An order's mandate record (R2), or None: before the first lease, and after it was deleted."""
        return await self._call_optional("chain.order", {"id": order.hex()}, OrderView)

    async def leases(
        self,
        provider: bytes | None = None,
        requester: bytes | None = None,
        order: bytes | None = None,
        live: bool | None = None,
    ) -> list[LeaseView]:
        """Leases that fit all the given clauses, oldest first. At least one party or order must be named."""
        parties = {"provider": provider, "requester": requester, "order": order}
        params: dict[str, Any] = {name: value.hex() for name, value in parties.items() if value is not None}
        if live is not None:
            params["live"] = live
        return await self._call("chain.leases", params, list[LeaseView])

    async def events(self, topics: Sequence[bytes], after: int, wait_ms: int = 0) -> EventsPage:
        """Events of final blocks above height `after` on any topic (ids of accounts, orders, leases), in order;
        waits up to `wait_ms` for the first. Go on with `after=page.next`.
        """
        params = {"topics": [topic.hex() for topic in topics], "after": after, "wait_ms": wait_ms}
        return await self._call("chain.events", params, EventsPage, wait_ms)

    async def supply(self) -> Supply:
        """Where all credits are."""
        return await self._call("chain.supply", {}, Supply)

    async def header(self, height: int) -> Finality:
        """The header at a height with what proves it final. Nothing is verified here: see `chain.light`."""
        return decode(await self._call_bytes("chain.header", {"height": height}), Finality)

    async def proof(self, tx: bytes) -> TxProof:
        """What proves that a transaction (by id) is in a final block; raises `Refused` under `chain.unknown` where
        none is. See `chain.light`.
        """
        return decode(await self._call_bytes("chain.proof", {"tx": tx.hex()}), TxProof)

    async def prove_lease(self, lease: bytes) -> LeaseProof:
        """What proves how a lease stood after the newest final block; raises `Refused` under `chain.unknown` where
        there is no such lease. Nothing is verified here: see `chain.light`.
        """
        return decode(await self._call_bytes("chain.prove_lease", {"id": lease.hex()}), LeaseProof)

    async def _call_bytes(self, method: str, params: Mapping[str, Any]) -> bytes:
        try:
            return bytes.fromhex(await self._call(method, params, str))
        except ValueError as error:
            raise self._misunderstood(f"{method} gave no hex") from error

    async def _call_optional(self, method: str, params: Mapping[str, Any], kind: type[T]) -> T | None:
        either: Any = kind | None
        answer: T | None = await self._call(method, params, either)
        return answer

    async def _call(self, method: str, params: Mapping[str, Any], kind: type[T], wait_ms: int = 0) -> T:
        number = next(self._ids)
        body = msgspec.json.encode({"jsonrpc": "2.0", "id": number, "method": method, "params": params})
        answer = self._parse(await self._post(body, wait_ms), number)
        if isinstance(answer.error, RpcError):
            raise self._translate(answer.error)
        if not isinstance(answer.result, msgspec.Raw):
            raise self._misunderstood("an answer without result and error")
        try:
            return msgspec.json.decode(answer.result, type=kind)
        except msgspec.MsgspecError as error:
            raise self._misunderstood(f"{method}: {error}") from error

    async def _post(self, body: bytes, wait_ms: int) -> bytes:
        if self._wire is None:
            self._wire = import_module("chain.rpc.wire").Wire(self.url, self._session)
        status, data = await self._wire.post(body, wait_ms, MAX_ANSWER_BYTES)
        if status == 503:
            raise Unavailable(f"the chain node at {self.url} is full or stopping; try again", rule="chain.busy")
        if status in (401, 404, 405):
            raise self._elsewhere()
        if status != 200 or len(data) > MAX_ANSWER_BYTES:
            raise self._misunderstood(f"HTTP status {status}, {len(data)} bytes")
        return data

    def _parse(self, data: bytes, number: int) -> RpcAnswer:
        try:
            answer = msgspec.json.decode(data, type=RpcAnswer)
        except msgspec.MsgspecError as error:
            raise (self._misunderstood(str(error)) if b'"jsonrpc"' in data else self._elsewhere()) from error
        if answer.jsonrpc != "2.0" or answer.id not in (number, None):
            raise self._misunderstood("an answer to another question")
        return answer

    def _translate(self, error: RpcError) -> Exception:
        rule = str((error.data or {}).get("rule", f"rpc.{error.code}"))
        if error.code == REFUSED:
            return Refused(error.message, rule=rule)
        if error.code in (PENDING, UNAVAILABLE):
            return Unavailable(error.message, rule=rule)
        return Fault(f"the chain node at {self.url} reports {error.code}: {error.message}", rule=rule)

    def _elsewhere(self) -> Unavailable:
        return Unavailable(
            f"at {self.url} answers something that is no chain node; check the address", rule="chain.address"
        )

    def _misunderstood(self, what: str) -> Fault:
        return Fault(f"{self.url} does not answer as a chain node: {what}", rule="rpc.answer")
