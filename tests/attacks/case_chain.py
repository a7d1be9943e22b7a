"""A one-seat ledger with real signatures, and proofs out of its blocks."""

from __future__ import annotations

from typing import Any

import msgspec

from chain.base.codec import encode
from chain.base.hashing import Tag, compute_digest
from chain.base.keys import Signer
from chain.base.merkle import prove_inclusion
from chain.base.units import MICRO
from chain.consensus.beacon import compute_beacon
from chain.consensus.messages import Certificate, SeatSignature, Step, Vote
from chain.ledger.blocks import compute_block_id
from chain.ledger.entries import LeaseRecord, get_lease_key
from chain.ledger.genesis import Genesis, Seat, make_genesis
from chain.ledger.ledger import Committed, Frame, Ledger
from chain.ledger.transactions import (
    Body,
    RegisterProvider,
    Transfer,
    compute_transaction_id,
    sign_transaction,
)
from chain.rpc.proofs import Finality, LeaseProof, TxProof
from requester.purchase.events import LeaseSeen

START = 1_800_000_000_000
EMPTY = compute_digest(b"")
SEAT, REQUESTER, BROKER, ALICE, BOB, STRANGER, WATCHER = (Signer(bytes([number]) * 32) for number in range(1, 8))
PROVIDERS = {signer.key: signer for signer in (ALICE, BOB, STRANGER)}


def change(value: Any, /, **fields: Any) -> Any:
    return msgspec.structs.replace(value, **fields)


class Chain:
    """A ledger, its blocks, and proofs out of them. Time moves by a millisecond per block, or as told."""

    def __init__(self, name: str = "cases") -> None:
        grants = [(signer.key, 1_000 * MICRO) for signer in (REQUESTER, BROKER, *PROVIDERS.values())]
        self.genesis: Genesis = make_genesis(name, START, [Seat(SEAT.key, compute_digest(b"beacon"))], grants)
        self.ledger = Ledger(self.genesis)
        self.id = self.ledger.chain_id
        self.commits: list[Committed] = []
        for signer in PROVIDERS.values():
            self.send(signer, RegisterProvider(100 * MICRO))

    @property
    def now(self) -> int:
        return self.ledger.head.time

    def send(self, sender: Signer, body: Body, *, at: int | None = None) -> Committed:
        """One transaction in a block, beside transfers so that its proof has a path."""
        salt = compute_digest(b"salt %d" % len(self.commits))[:16]
        until = (at or self.now) + 60_000
        others = [sign_transaction(BROKER, self.id, Transfer(REQUESTER.key, n), until, salt) for n in (1, 2)]
        return self.block(at, sign_transaction(sender, self.id, body, until, salt), *others)

    def block(self, at: int | None = None, *txs: Any) -> Committed:
        head = self.ledger.head
        reveal = compute_digest(b"reveal %d" % head.slot)
        frame = Frame(
            epoch=head.epoch,
            slot=head.slot + 1,
            time=at or head.time + 1,
            reveal=reveal,
            beacon=compute_beacon(self.id, head.beacon, reveal),
            seats=head.seats,
            seats_changed=head.seats_changed,
        )
        proposal = self.ledger.propose(self.ledger.head_id, frame, txs)
        if proposal.refused:
            raise proposal.refused[0].error
        committed = self.ledger.commit(self.ledger.apply(proposal.block).id)
        self.commits.append(committed)
        return committed

    def wait(self, milliseconds: int) -> Committed:
        """Let block time pass; timers fire."""
        return self.block(self.now + milliseconds)

    def certify(self, header: Any) -> Finality:
        vote = Vote(Step.FINALIZE, 0, header.slot, compute_block_id(self.id, header))
        signature = SEAT.sign(Tag.VOTE, self.id, vote).signature
        return Finality(header, (), Certificate(vote, (SeatSignature(0, signature),)))

    def prove(self, committed: Committed, index: int = 0) -> TxProof:
        """The proof of a transaction of a block."""
        block = committed.block
        leaves = [compute_transaction_id(signed.body) for signed in block.transactions]
        path = prove_inclusion(leaves, index)
        return TxProof(self.certify(block.header), block.transactions[index], index, len(leaves), path)

    def prove_lease(self, lease: bytes) -> LeaseProof:
        """The lease as it stands at the head."""
        key = get_lease_key(lease)
        return LeaseProof(self.certify(self.ledger.head), key, encode(self.get_lease(lease)), self.ledger.prove(key))

    def get_lease(self, lease: bytes) -> LeaseRecord:
        record = self.ledger.lease(lease)
        assert record is not None
        return record

    def see(self, lease: bytes, committed: Committed) -> LeaseSeen:
        """What a requester who watches the chain notes of a block that moved this lease."""
        record, header = self.get_lease(lease), committed.block.header
        tx = compute_transaction_id(committed.block.transactions[0].body).hex() if committed.block.transactions else ""
        return LeaseSeen(
            lease=lease,
            state=record.state.value,
            first=record.terms.first,
            count=record.terms.count,
            held=record.held,
            served=record.served,
            receipt=record.receipt.id if record.receipt else b"",
            paid=record.paid,
            commission=record.commission,
            refunded=record.refunded,
            damages=record.damages,
            burned=record.burned,
            height=header.height,
            time=header.time,
            tx=tx,
        )
