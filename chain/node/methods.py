"""The methods of `chain.rpc.schema`, over an `Application`. Every answer waits until what it tells is on disk."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Annotated

import msgspec

from chain import __version__
from chain.base.codec import decode, encode
from chain.base.errors import Refused
from chain.base.merkle import prove_inclusion
from chain.ledger.entries import get_lease_key
from chain.ledger.genesis import Genesis
from chain.ledger.transactions import MAX_TX_BYTES, SignedTransaction, compute_transaction_id
from chain.node.application import Application
from chain.node.jsonrpc import Method
from chain.node.views import view_account, view_lease, view_order
from chain.rpc.proofs import Finality, LeaseProof, TxProof
from chain.rpc.schema import (
    RPC_VERSION,
    AccountView,
    ChainInfo,
    LeaseView,
    OrderView,
    Supply,
    TxOutcome,
)

__all__ = ["MAX_WAIT", "Methods"]

MAX_WAIT = 60_000
"""Milliseconds a call may wait at most; long polls ask again."""

PAGE = 1_000
"""About how many events a page holds."""

_Hex32 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$", min_length=64, max_length=64)]
_Hex = Annotated[str, msgspec.Meta(pattern="^([0-9a-f]{2})*$", max_length=2 * MAX_TX_BYTES)]
_Wait = Annotated[int, msgspec.Meta(ge=0, le=MAX_WAIT)]
_Height = Annotated[int, msgspec.Meta(ge=0, le=2**62)]


class _Params(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of all parameters, and those of methods that take none."""


class _Submit(_Params, frozen=True):
    tx: _Hex
    wait_ms: _Wait = 10_000


class _Account(_Params, frozen=True):
    key: _Hex32


class _ById(_Params, frozen=True):
    id: _Hex32


class _Leases(_Params, frozen=True):
    provider: _Hex32 | None = None
    requester: _Hex32 | None = None
    order: _Hex32 | None = None
    live: bool | None = None


class _Events(_Params, frozen=True):
    topics: Annotated[list[_Hex32], msgspec.Meta(max_length=256)]
    after: _Height = 0
    wait_ms: _Wait = 0


class _Header(_Params, frozen=True):
    height: _Height


class _Proof(_Params, frozen=True):
    tx: _Hex32


class _Page(msgspec.Struct, frozen=True):
    """An `EventsPage` whose events are already JSON."""

    next: int
    events: list[msgspec.Raw]


class Methods:
    """What a node answers."""

    def __init__(self, application: Application, genesis: Genesis) -> None:
        self._app = application
        self._genesis = genesis

    def make_table(self) -> Mapping[str, Method]:
        """Method names with parameters and functions."""
        return {
            "chain.info": Method(_Params, self._info),
            "chain.submit": Method(_Submit, self._submit),
            "chain.account": Method(_Account, self._account),
            "chain.lease": Method(_ById, self._lease),
            "chain.order": Method(_ById, self._order),
            "chain.leases": Method(_Leases, self._leases),
            "chain.events": Method(_Events, self._events),
            "chain.supply": Method(_Params, self._supply),
            "chain.header": Method(_Header, self._header),
            "chain.proof": Method(_Proof, self._proof),
            "chain.prove_lease": Method(_ById, self._prove_lease),
        }

    async def _info(self, _params: _Params) -> ChainInfo:
        head = await self._app.settle()
        params = self._genesis.params
        return ChainInfo(
            version=RPC_VERSION,
            software=f"tallystick {__version__}",
            chain=self._app.ledger.chain_id.hex(),
            name=self._genesis.name,
            height=head.height,
            time=head.time,
            seats=len(self._genesis.seats),
            fee=params.fee,
            deposit=params.deposit,
            min_bond=params.min_bond,
            private=params.private,
        )

    async def _submit(self, params: _Submit) -> TxOutcome:
        signed = decode(bytes.fromhex(params.tx), SignedTransaction, max_bytes=MAX_TX_BYTES)
        return await self._app.submit(signed, params.wait_ms)

    async def _account(self, params: _Account) -> AccountView:
        await self._app.settle()
        key, ledger = bytes.fromhex(params.key), self._app.ledger
        return view_account(key, ledger.account(key), ledger.provider(key))

    async def _lease(self, params: _ById) -> LeaseView | None:
        await self._app.settle()
        record = self._app.ledger.lease(bytes.fromhex(params.id))
        return None if record is None else view_lease(record)

    async def _order(self, params: _ById) -> OrderView | None:
        await self._app.settle()
        order = bytes.fromhex(params.id)
        record = self._app.ledger.order(order)
        return None if record is None else view_order(order, record)

    async def _leases(self, params: _Leases) -> list[LeaseView]:
        if params.provider is None and params.requester is None and params.order is None:
            raise Refused("name a provider, a requester or an order", rule="chain.leases")
        await self._app.settle()
        found = self._app.ledger.leases(
            provider=_bytes(params.provider),
            requester=_bytes(params.requester),
            order=_bytes(params.order),
            live=params.live,
        )
        return [view_lease(record) for record in found]

    async def _events(self, params: _Events) -> _Page:
        topics = [bytes.fromhex(topic) for topic in params.topics]
        deadline = asyncio.get_running_loop().time() + params.wait_ms / 1000
        after = params.after
        while True:
            head = await self._app.settle()
            after, payloads = self._app.store.get_events(topics, min(after, head.height), PAGE)
            if payloads or self._app.stopping or asyncio.get_running_loop().time() >= deadline:
                return _Page(after, [msgspec.Raw(payload) for payload in payloads])
            await self._app.wait_for_block(after, deadline)

    async def _supply(self, _params: _Params) -> Supply:
        await self._app.settle()
        totals = self._app.ledger.supply()
        return Supply(
            genesis=self._genesis.supply,
            total=totals.accounts + totals.bonds + totals.locked,
            burned=totals.burned,
            accounts=totals.accounts,
            bonds=totals.bonds,
            locked=totals.locked,
        )

    async def _header(self, params: _Header) -> str:
        await self._app.settle()
        final = self._app.store.get_block(params.height)
        if final is None:
            raise Refused(f"no block {params.height} yet, or genesis, which needs no proof", rule="chain.unknown")
        return encode(Finality(final.block.header, (), final.certificate)).hex()

    async def _proof(self, params: _Proof) -> str:
        await self._app.settle()
        place = self._app.store.find_transaction(bytes.fromhex(params.tx))
        final = self._app.store.get_block(place[0]) if place else None
        if place is None or final is None:
            raise Refused("no final block holds this transaction", rule="chain.unknown")
        transactions, index = final.block.transactions, place[1]
        path = prove_inclusion([compute_transaction_id(signed.body) for signed in transactions], index)
        finality = Finality(final.block.header, (), final.certificate)
        return encode(TxProof(finality, transactions[index], index, len(transactions), path)).hex()

    async def _prove_lease(self, params: _ById) -> str:
        head = await self._app.settle()
        # No wait from here on: the ledger's state is that of its head, whose block is on disk.
        lease = bytes.fromhex(params.id)
        record, final = self._app.ledger.lease(lease), self._app.store.get_block(head.height)
        if record is None or final is None:
            raise Refused("no lease of this id is on the chain", rule="chain.unknown")
        key = get_lease_key(lease)
        finality = Finality(final.block.header, (), final.certificate)
        return encode(LeaseProof(finality, key, encode(record), self._app.ledger.prove(key))).hex()


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else bytes.fromhex(text)
