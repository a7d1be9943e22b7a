"""Asks a node and returns only what it verified against the genesis file.

A lying node can withhold, never invent: what is returned here is as good as one's own node, up to the seats
themselves. Not here: balances, whose proofs of state come with the explorer.
"""

from __future__ import annotations

import msgspec

from chain.base.errors import Refused
from chain.ledger.blocks import Header
from chain.ledger.entries import LeaseRecord
from chain.ledger.genesis import Genesis, compute_chain_id
from chain.ledger.transactions import Transaction, compute_transaction_id
from chain.light.verifier import BadProof, verify_finality, verify_lease, verify_transaction
from chain.rpc.client import ChainClient

__all__ = ["LightClient", "VerifiedLease", "VerifiedTransaction"]


class VerifiedTransaction(msgspec.Struct, frozen=True):
    """A transaction and the final header it stands under."""

    transaction: Transaction
    header: Header


class VerifiedLease(msgspec.Struct, frozen=True):
    """A lease as it stood after the block of a final header."""

    lease: LeaseRecord
    header: Header


class LightClient:
    """Reads the chain of `genesis` through any node. What fails a check raises `BadProof`; errors of the connection
    are those of `ChainClient`.
    """

    def __init__(self, genesis: Genesis, node: ChainClient) -> None:
        self._genesis = genesis
        self._chain_id = compute_chain_id(genesis)
        self._node = node

    async def check_chain(self) -> None:
        """Raise `Refused` under `light.chain` for a node of another chain; a cheap first question, no proof."""
        info = await self._node.info()
        if info.chain != self._chain_id.hex():
            message = f"{self._node.url} serves chain {info.chain}, the genesis file is of {self._chain_id.hex()}"
            raise Refused(message, rule="light.chain")

    async def header(self, height: int) -> Header:
        """The final header at a height from 1."""
        header = verify_finality(self._genesis, await self._node.header(height))
        if header.height != height:
            raise BadProof(f"asked for header {height}, was given {header.height}", rule="light.asked")
        return header

    async def transaction(self, tx: bytes) -> VerifiedTransaction:
        """The final transaction with this id; raises `Refused` under `chain.unknown` where the node knows none."""
        proof = await self._node.proof(tx)
        transaction = verify_transaction(self._genesis, proof)
        if compute_transaction_id(transaction) != tx:
            raise BadProof("asked for one transaction, was given another", rule="light.asked")
        return VerifiedTransaction(transaction, proof.finality.header)

    async def lease(self, lease: bytes) -> VerifiedLease:
        """The lease with this id as the node's newest final block left it; raises `Refused` under `chain.unknown` where
        there is none.
        """
        proof = await self._node.prove_lease(lease)
        record = verify_lease(self._genesis, proof)
        if record.id != lease:
            raise BadProof("asked for one lease, was given another", rule="light.asked")
        return VerifiedLease(record, proof.finality.header)
