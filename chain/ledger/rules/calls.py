"""Asking a provider for a sign of life, and its answer (R6; rows 8 and 9).

So a dead provider is replaced in seconds: without an answer the lease ends as by its deadline (row 10, in
`chain.ledger.rules.leases`). Its latest receipt need not come with the answer: anyone may put it on the chain by
`Extend`.
"""

from __future__ import annotations

import msgspec

from chain.base.errors import Refused
from chain.base.units import checked
from chain.ledger.entries import LeaseState
from chain.ledger.rules.bank import check_balance
from chain.ledger.rules.scope import Scope, change_account, change_totals, save_lease
from chain.ledger.rules.table import Event, check_row
from chain.ledger.transactions import Answer, Call

CALL_PAUSE = 60_000
"""Milliseconds between two calls of one lease (R6)."""

CALL_FEES = 9
"""A call burns so many flat fees besides its own: ten times what its answer costs the provider, so that to call for
nothing costs the caller most (R6).
"""


def process_call(scope: Scope, body: Call) -> None:
    """Row 8: the provider has the order's answer window, at most until the deadline, to answer."""
    lease = scope.need_lease(body.lease)
    check_row(lease, Event.CALL)
    terms = lease.terms
    if scope.sender not in (terms.requester, terms.watcher, terms.auctioneer):
        raise Refused("only the requester, its watcher or the auctioneer calls", rule="lease.call.sender")
    if lease.called is not None and scope.now < lease.called + CALL_PAUSE:
        raise Refused(f"called less than {CALL_PAUSE} ms ago", rule="R6.pause")
    fee = checked(scope.params.fee * CALL_FEES)
    check_balance(scope, fee)

    change_account(scope.state, scope.sender, -fee)
    change_totals(scope.state, burned=fee)
    timer = min(terms.deadline, checked(scope.now + terms.windows.answer))
    called = msgspec.structs.replace(lease, state=LeaseState.CALLED, timer=timer, called=scope.now)
    save_lease(scope, called, row=8)


def process_answer(scope: Scope, body: Answer) -> None:
    """Row 9: the provider lives; the lease is open as before."""
    lease = scope.need_lease(body.lease)
    check_row(lease, Event.ANSWER)
    if scope.sender != lease.terms.provider:
        raise Refused("only the provider answers", rule="lease.answer.sender")
    if body.called != lease.called:
        raise Refused(f"the call was at {lease.called}, not at {body.called}", rule="R6.called")

    answered = msgspec.structs.replace(lease, state=LeaseState.OPEN, timer=lease.terms.deadline)
    save_lease(scope, answered, row=9)
