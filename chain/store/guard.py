"""The sign guard on disk: checks, records and signs in one transaction (R16 b and f).

The signature must not leave before that transaction is durable (`ChainStore.flush`); if the process dies in between,
neither record nor signature exists. A
one-seat chain has no peers to ask what its key signed, so it refuses to run where the guard is older than the store.
"""

from __future__ import annotations

from chain.base.errors import Fault
from chain.base.hashing import Tag
from chain.base.keys import Signer
from chain.consensus.guard import check_vote
from chain.consensus.messages import SignedVote, Step, Vote
from chain.store.database import ChainStore

__all__ = ["SignGuard", "check_guard"]


class SignGuard:
    """Holds the seat's key; the only way to a vote's signature."""

    def __init__(self, store: ChainStore, signer: Signer, chain_id: bytes, decided: int) -> None:
        """`decided` is the slot of the last final block."""
        self._store = store
        self._signer = signer
        self._chain_id = chain_id
        self._decided = decided

    def sign(self, vote: Vote) -> SignedVote:
        """Record and sign; raises `chain.consensus.guard.SignedTwice` rather than contradict an earlier signature."""
        with self._store.writing() as db:
            query = "SELECT step, epoch, slot, block FROM guard WHERE epoch = ? AND slot = ?"
            rows = db.execute(query, (vote.epoch, vote.slot)).fetchall()
            check_vote(vote, (Vote(Step(row[0]), *row[1:]) for row in rows), self._decided)
            values = (vote.epoch, vote.slot, vote.step.value, vote.block)
            db.execute("INSERT OR IGNORE INTO guard VALUES (?, ?, ?, ?)", values)
            return self._signer.sign(Tag.VOTE, self._chain_id, vote)

    def decide(self, slot: int) -> None:
        """The block of `slot` is final: nothing up to it is signed any more; older records go, those of `slot` stay
        as the guard's own age.
        """
        with self._store.writing() as db:
            db.execute("DELETE FROM guard WHERE slot < ?", (slot,))
        self._decided = slot


def check_guard(store: ChainStore, epoch: int, slot: int, block: bytes) -> None:
    """Check at start that the guard has signed the head and nothing behind it that the store lacks.

    Raises `Fault` under `R16.guard-older` or `R16.store-older`. `slot` and `block` are those of the last final block.
    """
    rows = store.read("SELECT slot, step, block FROM guard WHERE epoch = ? AND slot >= ?", epoch, slot)
    ahead = [row for row in rows if isinstance(row[0], int) and row[0] > slot]
    if ahead:
        message = (
            f"the sign guard in {store.path} signed slot {ahead[0][0]}, the store ends at {slot}: the store is older"
        )
        raise Fault(f"{message}. Put back both from the newest copy", rule="R16.store-older")
    if slot > 0 and (slot, Step.FINALIZE.value, block) not in rows:
        message = (
            f"the sign guard in {store.path} does not know the last block, slot {slot}: it is older than the store"
        )
        raise Fault(f"{message}. Put back both from the newest copy", rule="R16.guard-older")
