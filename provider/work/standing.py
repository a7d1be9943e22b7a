"""What the chain says of a lease, and the transactions by which its provider answers (the table of law.md).

A receipt that follows one on the chain needs a proof of consistency (R5). Somebody else may put a longer one there
meanwhile: then what was refused is asked again with a new proof.
"""

from __future__ import annotations

from chain.base.hashing import Tag, compute_signed_bytes
from chain.base.keys import Signed, is_signature
from chain.ledger.terms.outcome import Cause
from chain.ledger.terms.work import Acceptance, Receipt, StorageReceipt
from chain.ledger.transactions import Answer, Deliver, Extend, GiveBack, Settle
from provider.work.events import LeaseMoved, LeaseOpened, LeaseState, Submit, Task
from provider.work.papers import Papers, is_settled_by

MAX_WAITING = 8
"""So many acceptances of a lease are heard on which it can't be settled yet: a requester needs one, and silence accepts
what the others would.
"""


class Standing:
    """State of one lease on the chain as far as it is known, and what was asked and refused."""

    def __init__(self, opened: LeaseOpened, papers: Papers, chain_id: bytes) -> None:
        self.state = LeaseState.OPEN
        self.served = 0
        self.held = opened.count
        self.called = 0
        self._lease = opened.lease
        self._papers = papers
        self._chain_id = chain_id
        self._accepted: tuple[Signed[Receipt], Signed[Acceptance]] | None = None
        self._heard = 0
        self._refused: set[Task] = set()
        self._asked: dict[Task, int] = {}

    @property
    def is_cancelling(self) -> bool:
        """Whether the requester wants the work stopped (row 6)."""
        return self.state is LeaseState.CANCELLING

    def move(self, event: LeaseMoved) -> bool:
        """Take over what the chain says; whether it is a call that was not seen yet."""
        is_new = event.state is LeaseState.CALLED and (self.state is not event.state or self.called != event.called)
        self.state, self.served, self.held, self.called = event.state, event.served, event.held, event.called
        return is_new

    def is_at(self, event: LeaseMoved) -> bool:
        """Whether this is how the lease stands."""
        known = (self.state, self.served, self.held, self.called)
        return known == (event.state, event.served, event.held, event.called)

    def refuse(self, task: Task) -> bool:
        """A transaction was refused; True where it should be asked again, since a longer receipt stands there now."""
        again = self._asked.get(task, self.served) != self.served
        if not again:
            self._refused.add(task)
        return again

    def has_refused(self, task: Task) -> bool:
        """Whether this was refused for good."""
        return task in self._refused

    def was_asked(self, task: Task) -> bool:
        """Whether this was handed in, in this life or an earlier one."""
        return task in self._asked

    def accept(self, signed: Signed[Acceptance]) -> bool:
        """Take an acceptance that is genuine and covers all that its receipt does; whether to settle on it now. One
        that can't be settled yet (its receipt is not final for what is at stake) waits for the chain to move; no more
        than `MAX_WAITING` are heard.
        """
        if self.is_settling:
            return False
        receipt = self._papers.find_accepted(signed)
        if receipt is None:
            return False
        must_wait = not self._is_free(receipt.body)
        if must_wait and self._heard >= MAX_WAITING:
            return False
        message = compute_signed_bytes(Tag.ACCEPTANCE, self._chain_id, signed.body)
        if not is_signature(signed.body.signer, message, signed.signature):
            return False
        self._heard += 1
        self._accepted = (receipt, signed)
        return not must_wait

    @property
    def is_settling(self) -> bool:
        """Whether there is an acceptance on which settling costs nothing."""
        return self._accepted is not None and self._is_free(self._accepted[0].body)

    def _is_free(self, receipt: Receipt) -> bool:
        """Whether settling on this receipt costs nothing (R7): it is final for what is still at stake, or the work was
        cancelled and it covers all that is done. On a shorter one a settle would give away what came behind it: who
        cancels could have accepted the first segment long before. What was refused is not tried again.
        """
        if self.has_refused(Task.SETTLE):
            return False
        if is_settled_by(receipt, self.held):
            return True
        return self.is_cancelling and self._papers.done <= receipt.count <= self.held

    def settle(self) -> tuple[Submit, ...]:
        """Row 3, where there is an acceptance for it."""
        if self._accepted is None or not self.is_settling:
            return ()
        return (self._ask(Task.SETTLE, Settle(*self._accepted), "accepted"),)

    def deliver(self, receipt: Signed[Receipt], storage: Signed[StorageReceipt], why: str) -> tuple[Submit, ...]:
        """Row 11; nothing once it was refused, or where the chain has cut the lease."""
        if self.has_refused(Task.DELIVER) or self.state in (LeaseState.DELIVERED, LeaseState.DISPUTED):
            return ()
        proof = self._papers.prove(self.served, receipt.body.count)
        return (self._ask(Task.DELIVER, Deliver(receipt, storage, proof), why),)

    def extend(self, receipt: Signed[Receipt], storage: Signed[StorageReceipt]) -> tuple[Submit, ...]:
        """Row 2; nothing where as much stands on the chain, or once it was refused."""
        body = receipt.body
        if self.has_refused(Task.EXTEND) or body.count <= self.served or body.cause is not Cause.OK:
            return ()
        proof = self._papers.prove(self.served, body.count)
        return (self._ask(Task.EXTEND, Extend(receipt, storage, proof), f"{body.count} segments are done"),)

    def give_back(self, why: str) -> tuple[Submit, ...]:
        """Rows 5 and 7; nothing once it was refused, or where the lease can't be returned any more (rows 6, 11)."""
        if self.has_refused(Task.GIVE_BACK) or self.state not in (LeaseState.OPEN, LeaseState.CALLED):
            return ()
        return (self._ask(Task.GIVE_BACK, GiveBack(self._lease), why),)

    def answer(self) -> tuple[Submit, ...]:
        """Row 9, where we are called."""
        if self.state is not LeaseState.CALLED:
            return ()
        return (self._ask(Task.ANSWER, Answer(self._lease, self.called), "called"),)

    def _ask(self, task: Task, body: Settle | Deliver | Extend | Answer | GiveBack, why: str) -> Submit:
        self._asked[task] = self.served
        return Submit(task, body, why)
