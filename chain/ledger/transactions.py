"""What can be asked of the ledger: one struct per transaction body, and the signed frame around it (R15).

A transaction is `[tag, chain, sender, valid_until, salt, body]`; its id is the digest without the signature. It
carries no sequence number: `valid_until` is at most 120 s ahead of block time, and ids are
remembered for that long.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from chain.base.codec import Record
from chain.base.hashing import Digest, Salt, Tag, compute_id
from chain.base.keys import Key, Signed, Signer
from chain.base.units import Amount, Instant
from chain.ledger.terms.agreement import Award, Bid, Order
from chain.ledger.terms.work import Acceptance, Receipt, StorageReceipt

MAX_TX_BYTES = 65_536
"""A signed transaction's largest encoding (threats.md A5)."""

MAX_VALIDITY = 120_000
"""Milliseconds that `valid_until` may lie ahead of block time (R15 a)."""


Proof = Annotated[tuple[Digest, ...], msgspec.Meta(max_length=64)]
"""Nodes of a consistency proof."""


class Transfer(Record, frozen=True, tag="transfer"):
    """Move credits; makes the receiver's account if the amount is at least the account deposit (R15 c)."""

    to: Key
    amount: Amount


class RegisterProvider(Record, frozen=True, tag="register"):
    """Become a provider, or add to its bond: `bond` moves from the sender's balance (R3 e)."""

    bond: Amount


class Open(Record, frozen=True, tag="open"):
    """Open a lease with three signatures: order, award, bid (R3). By anyone."""

    order: Signed[Order]
    award: Signed[Award]
    bid: Signed[Bid]


class Settle(Record, frozen=True, tag="settle"):
    """Pay what an acceptance accepts (R7, row 3). By anyone if the receipt is final and wholly accepted, else by the
    provider.
    """

    receipt: Signed[Receipt]
    acceptance: Signed[Acceptance]


class Deliver(Record, frozen=True, tag="deliver"):
    """Say that the work is done and held; the acceptance clock starts, silence accepts (R8, rows 11 and 13). `proof`
    as in `Extend`.
    """

    receipt: Signed[Receipt]
    storage: Signed[StorageReceipt]
    proof: Proof


class Extend(Record, frozen=True, tag="extend"):
    """Put a receipt of a longer prefix, which a holder keeps, on the chain (R5, row 2). By anyone. `proof` is the RFC
    6962 consistency proof from the receipt that stands there; empty where there is none yet.
    """

    receipt: Signed[Receipt]
    storage: Signed[StorageReceipt]
    proof: Proof


class Call(Record, frozen=True, tag="call"):
    """Ask a provider for a sign of life (R6, row 8). By requester, watcher or auctioneer, at most once in 60 s."""

    lease: Digest


class Answer(Record, frozen=True, tag="answer"):
    """The provider's sign of life (R6, row 9). `called` is the Instant of the call it answers."""

    lease: Digest
    called: Instant


class Cancel(Record, frozen=True, tag="cancel"):
    """The requester wants the work stopped (rows 6 and 12)."""

    lease: Digest


class GiveBack(Record, frozen=True, tag="return"):
    """The provider cannot go on: `unstarted` in the start window, else a return with damages (R4, rows 5 and 7)."""

    lease: Digest


Body = Transfer | RegisterProvider | Open | Settle | Deliver | Extend | Call | Answer | Cancel | GiveBack
"""The closed union of transaction bodies."""


class Transaction(Record, frozen=True, tag="tx"):
    """The frame of R15. `chain` is the chain id; the sender's operating key (owner key for transfers and bonds) signs
    it (R19).
    """

    chain: Digest
    sender: Key
    valid_until: Instant
    salt: Salt
    body: Annotated[Body, msgspec.Meta()]


SignedTransaction = Signed[Transaction]


def compute_transaction_id(transaction: Transaction) -> bytes:
    """Id of a transaction: the digest without the signature (R15)."""
    return compute_id(Tag.TX, transaction.chain, transaction)


def sign_transaction(signer: Signer, chain_id: bytes, body: Body, valid_until: int, salt: bytes) -> Signed[Transaction]:
    """Frame and sign a body as the signer's own account. `salt` is 16 bytes of the caller's randomness (or derived,
    where a retry must be the same transaction).
    """
    return signer.sign(Tag.TX, chain_id, Transaction(chain_id, signer.key, valid_until, salt, body))
