"""One block: due timers, then transactions, each on an overlay of its own (R1, R13, R15).

`Execution` is the one funnel for whatever changes the state. It is made for one block, fires the timers that are due at
its start, takes transactions in order, and is sealed
into roots. The proposer and the verifier of a block run the same code; only what they do with a refusal differs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, assert_never

from chain.base.codec import decode, encode
from chain.base.errors import Refused
from chain.base.hashing import Tag
from chain.base.units import MICRO
from chain.ledger.entries import LeaseRecord, get_lease_key
from chain.ledger.genesis import Params
from chain.ledger.recent import Recent, Sent
from chain.ledger.results import LedgerEvent, Result
from chain.ledger.rules.bank import process_transfer
from chain.ledger.rules.calls import process_answer, process_call
from chain.ledger.rules.leases import (
    process_cancel,
    process_deliver,
    process_extend,
    process_lease_timer,
    process_order_timer,
    process_return,
    process_settle,
)
from chain.ledger.rules.opening import process_open
from chain.ledger.rules.providers import process_register
from chain.ledger.rules.scope import Scope, change_account, change_totals
from chain.ledger.signatures import SignatureMemo
from chain.ledger.state import State, Timer
from chain.ledger.terms.agreement import compute_order_id
from chain.ledger.transactions import (
    MAX_TX_BYTES,
    MAX_VALIDITY,
    Answer,
    Body,
    Call,
    Cancel,
    Deliver,
    Extend,
    GiveBack,
    Open,
    RegisterProvider,
    Settle,
    SignedTransaction,
    Transfer,
    compute_transaction_id,
)


@dataclass(frozen=True, slots=True)
class Rules:
    """What stays the same from block to block: the chain, its constants, and the memo of signatures."""

    chain_id: bytes
    params: Params
    memo: SignatureMemo


@dataclass(frozen=True, slots=True)
class Subject:
    """How one kind of transaction body is processed, and how many signatures it carries inside (R15 d)."""

    process: Callable[[Scope, Any], None]
    inner: int = 0


SUBJECTS: dict[type, Subject] = {
    Transfer: Subject(process_transfer),
    RegisterProvider: Subject(process_register),
    Open: Subject(process_open, 3),
    Settle: Subject(process_settle, 2),
    Deliver: Subject(process_deliver, 2),
    Extend: Subject(process_extend, 2),
    Call: Subject(process_call),
    Answer: Subject(process_answer),
    Cancel: Subject(process_cancel),
    GiveBack: Subject(process_return),
}
"""Every transaction body; a body that is not here has no effect and is refused."""


def count_signatures(body: Body) -> int:
    """Signatures to be checked for a transaction: the outer one and those inside (R15 d)."""
    runner_up = isinstance(body, Open) and body.award.body.runner_up is not None
    return 1 + SUBJECTS[type(body)].inner + runner_up


class Execution:
    """A block in the making on top of a parent's state and window."""

    __slots__ = ("_backlog", "_height", "_rules", "events", "recent", "results", "state", "time")

    def __init__(self, rules: Rules, state: State, recent: Recent, time: int, height: int) -> None:
        """`state` and `recent` are the parent's; `time` is the block's. Fires the first due timers (R1)."""
        self._rules = rules
        self._height = height
        self.time = time
        self.state = state.child()
        self.recent = recent.child(time)
        self.results: list[Result] = []
        self.events: list[LedgerEvent] = []
        due = self.state.find_due(time)
        for timer in due[: rules.params.block_timers]:
            self._fire(self.state, timer, self.results, self.events)
        self._backlog: dict[bytes, set[Timer]] = {}
        for timer in due[rules.params.block_timers :]:
            for party in _list_parties(self.state, timer):
                self._backlog.setdefault(party, set()).add(timer)

    def run(self, signed: SignedTransaction) -> bytes:
        """Carry out one transaction and return its id; raises `Refused` and changes nothing."""
        transaction = signed.body
        identity = compute_transaction_id(transaction)
        signatures = self._check_frame(signed, identity)
        child = self.state.child()
        results: list[Result] = []
        events: list[LedgerEvent] = []
        fired = self._find_touched(child, transaction.body)
        for timer in fired:
            self._fire(child, timer, results, events)
        change_account(child, transaction.sender, -self._rules.params.fee)
        change_totals(child, burned=self._rules.params.fee)
        scope = self._scope(child, transaction.sender, identity)
        SUBJECTS[type(transaction.body)].process(scope, transaction.body)

        self.state.merge(child)
        self.recent.add(Sent(identity, transaction.sender, signatures))
        for timer in fired:
            for party in _list_parties(child, timer):
                self._backlog[party].discard(timer)
        self.results += [*results, _make_result(identity, scope.events, timer=False)]
        self.events += [*events, *scope.events]
        return identity

    def _scope(self, state: State, sender: bytes = b"", transaction: bytes | None = None) -> Scope:
        rules = self._rules
        return Scope(rules.chain_id, rules.params, rules.memo, state, self.time, self._height, sender, transaction)

    def _check_frame(self, signed: SignedTransaction, identity: bytes) -> int:
        """R15: form, chain, time, id, account, fee, quota, and the outer signature last. Returns what counts against
        the quota.
        """
        transaction, rules = signed.body, self._rules
        # 1. The canonical form of a transaction that fits (R18, threats.md A5): a struct made in memory is held to the
        # same bounds as bytes.
        data = encode(signed)
        decode(data, SignedTransaction, max_bytes=MAX_TX_BYTES)
        # 2. For this chain and this window (R15 a).
        if transaction.chain != rules.chain_id:
            raise Refused("made for another chain", rule="R15.chain")
        if transaction.valid_until < self.time:
            raise Refused("its valid_until has passed", rule="R15.a.expired")
        if transaction.valid_until > self.time + MAX_VALIDITY:
            raise Refused(f"valid_until lies more than {MAX_VALIDITY} ms ahead", rule="R15.a.ahead")
        if self.recent.knows(identity):
            raise Refused("this transaction is on the chain already", rule="R15.a.known")
        # 3. Who pays (R15 c).
        account = self.state.account(transaction.sender)
        if account is None:
            raise Refused("the sender has no account; a transfer to it makes one", rule="R15.c.account")
        if account.balance < rules.params.fee:
            raise Refused(f"cannot pay the fee of {rules.params.fee} micro-credits", rule="R15.c.fee")
        signatures = count_signatures(transaction.body)
        allowed = rules.params.quota + account.balance // MICRO
        if self.recent.count_spent(transaction.sender) + signatures > allowed:
            raise Refused(f"more than {allowed} signatures of this account within 120 s", rule="R15.c.quota")
        # 4. The outer signature (R15 d); owner key for transfers and bonds, else the operating key (R19).
        owner = isinstance(transaction.body, Transfer | RegisterProvider)
        key = transaction.sender if owner else account.operating
        rules.memo.check(signed, Tag.TX, rules.chain_id, key, "R15.signature")
        return signatures

    def _find_touched(self, state: State, body: Body) -> list[Timer]:
        """R1: due timers of the order and the provider whose lease a transaction touches; they fire before it."""
        if not self._backlog:
            return []
        touched = _find_parties(state, self._rules.chain_id, body)
        return sorted({timer for party in touched for timer in self._backlog.get(party, ())})

    def _fire(self, state: State, timer: Timer, results: list[Result], events: list[LedgerEvent]) -> None:
        """Fire one timer. An order's may have gone with its record, when its last lease ended earlier in this block."""
        _, identity, key = timer
        scope = self._scope(state)
        if key == get_lease_key(identity):
            process_lease_timer(scope, state.need(key, LeaseRecord))
        elif (order := state.order(identity)) is not None:
            process_order_timer(scope, identity, order)
        else:
            return
        results.append(_make_result(identity, scope.events, timer=True))
        events += scope.events


def _make_result(trigger: bytes, events: Iterable[LedgerEvent], *, timer: bool) -> Result:
    return Result(trigger, timer, tuple(event.happening for event in events))


def _list_parties(state: State, timer: Timer) -> frozenset[bytes]:
    """Order and provider that a timer belongs to."""
    _, identity, key = timer
    lease = state.lease(identity) if key == get_lease_key(identity) else None
    return frozenset({lease.terms.order, lease.terms.provider} if lease else {identity})


def _find_parties(state: State, chain_id: bytes, body: Body) -> frozenset[bytes]:
    """Order and provider whose leases a transaction touches."""
    match body:
        case Transfer() | RegisterProvider():
            return frozenset()
        case Open(order, _, bid):
            return frozenset({compute_order_id(chain_id, order.body), bid.body.provider})
        case Settle(receipt) | Deliver(receipt) | Extend(receipt):
            identity = receipt.body.lease
        case Call(identity) | Answer(identity) | Cancel(identity) | GiveBack(identity):
            pass
        case _:
            assert_never(body)
    lease = state.lease(identity)
    return frozenset({lease.terms.order, lease.terms.provider} if lease else ())
