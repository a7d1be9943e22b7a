"""Checks of what a node hands over, by someone who holds only the genesis file. Pure; cheap checks first, each with
its number.

`verify_finality`: F1 to F6. `verify_transaction`: those, then T1 to T4. `verify_lease`: those of finality, then S1 to
S4. Each failure is a `BadProof` whose rule names its number. Not here: changes of the seats (R16 e), which no chain of
one epoch has.
"""

from __future__ import annotations

from itertools import pairwise

from chain.base.codec import BadEncoding, decode
from chain.base.errors import Refused
from chain.base.hashing import Tag
from chain.base.keys import BadSignature, verify
from chain.base.merkle import is_included
from chain.consensus.messages import Step
from chain.consensus.seats import Seats
from chain.consensus.tally import BadCertificate, verify_certificate
from chain.ledger.blocks import Header, compute_block_id
from chain.ledger.entries import LeaseRecord, get_lease_key
from chain.ledger.genesis import Genesis, compute_chain_id, compute_seats_digest
from chain.ledger.transactions import Transaction, compute_transaction_id
from chain.ledger.tree import DEPTH, StateTree
from chain.rpc.proofs import MAX_LEASE_BYTES, Finality, LeaseProof, TxProof

__all__ = ["BadProof", "Finality", "LeaseProof", "TxProof", "verify_finality", "verify_lease", "verify_transaction"]


class BadProof(Refused):
    """A proof that does not prove what it is for; `rule` is `light.` and the number of the check it failed."""


def verify_finality(genesis: Genesis, proof: Finality) -> Header:
    """The header, if it is final on the chain of `genesis` (R16 c); else raises `BadProof`."""
    chain_id = compute_chain_id(genesis)
    seats = Seats(0, [seat.key for seat in genesis.seats])
    headers = (proof.header, *proof.descendants)
    # F1. Every header is of the genesis epoch and names its seats.
    digest = compute_seats_digest(chain_id, seats.epoch, seats.keys)
    for header in headers:
        if (header.epoch, header.seats, header.seats_changed) != (seats.epoch, digest, 0):
            raise BadProof(f"header {header.height} is not under the seats of genesis", rule="light.F1")
    # F2. The first is a real block: genesis itself needs no proof.
    if proof.header.height < 1:
        raise BadProof("genesis is known, not proved", rule="light.F2")
    # F3. Each descendant follows from the one before it.
    for parent, child in pairwise(headers):
        if child.parent != compute_block_id(chain_id, parent) or child.height != parent.height + 1:
            raise BadProof(f"header {child.height} does not follow from {parent.height}", rule="light.F3")
    # F4. Slots and times ascend on the way.
    for parent, child in pairwise(headers):
        if child.slot <= parent.slot or child.time <= parent.time:
            raise BadProof(f"header {child.height} is not later than {parent.height}", rule="light.F4")
    # F5. The certificate is for finalizing the last header, in its slot.
    vote, last = proof.certificate.vote, headers[-1]
    if (vote.step, vote.slot, vote.block) != (Step.FINALIZE, last.slot, compute_block_id(chain_id, last)):
        raise BadProof(f"the certificate is not for header {last.height}", rule="light.F5")
    # F6. A quorum of the seats signed it.
    try:
        verify_certificate(proof.certificate, seats, chain_id)
    except BadCertificate as error:
        raise BadProof(f"{error.message} ({error.rule})", rule="light.F6") from error
    return proof.header


def verify_transaction(genesis: Genesis, proof: TxProof) -> Transaction:
    """The transaction, if it stands in a final block of the chain of `genesis`; else raises `BadProof`."""
    chain_id = compute_chain_id(genesis)
    header = verify_finality(genesis, proof.finality)
    transaction = proof.transaction.body
    # T1. It is for this chain.
    if transaction.chain != chain_id:
        raise BadProof("the transaction is for another chain", rule="light.T1")
    # T2. The path leads from its id to the header's root.
    leaf = compute_transaction_id(transaction)
    if not is_included(leaf, proof.index, proof.size, proof.path, header.transactions):
        raise BadProof(f"the path does not lead to header {header.height}", rule="light.T2")
    # T3. The time is one at which the ledger could take it.
    if transaction.valid_until < header.time:
        raise BadProof("the transaction had run out by then", rule="light.T3")
    # T4. Its sender signed it: the path covers the id, and the id not the signature.
    try:
        return verify(proof.transaction, Tag.TX, chain_id, transaction.sender)
    except BadSignature as error:
        raise BadProof(error.message, rule="light.T4") from error


def verify_lease(genesis: Genesis, proof: LeaseProof) -> LeaseRecord:
    """The lease as it stood after the block of the proof's header, if that is final on the chain of `genesis`; else
    raises `BadProof`. Whether this is the lease that was asked for, and new enough, is the caller's to check.
    """
    header = verify_finality(genesis, proof.finality)
    # S1. It is a proof of presence, along a path that a tree can have.
    if proof.proof.witness is not None or len(proof.proof.siblings) > DEPTH:
        raise BadProof("the path is not one to an entry of the state", rule="light.S1")
    # S2. The path leads from key and value to the header's root of the state.
    if not StateTree(compute_chain_id(genesis)).is_present(header.state, proof.key, proof.value, proof.proof):
        raise BadProof(f"the path does not lead to the state of header {header.height}", rule="light.S2")
    # S3. The value is the canonical encoding of a lease.
    try:
        lease = decode(proof.value, LeaseRecord, max_bytes=MAX_LEASE_BYTES)
    except BadEncoding as error:
        raise BadProof(f"{error.message} ({error.rule})", rule="light.S3") from error
    # S4. It lies under its own key.
    if proof.key != get_lease_key(lease.id):
        raise BadProof("the entry is not that of the lease it names", rule="light.S4")
    return lease
